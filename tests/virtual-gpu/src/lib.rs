//! Virtual GPU: NVIDIA's driver, cuBLAS and cuRAND as one library that interprets PTX, checks what it does and counts what it costs.

pub mod fault;
pub mod memory;
pub mod ptx;
pub mod statistics;

pub use fault::Fault;
