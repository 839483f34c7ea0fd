//! Virtual GPU: NVIDIA's driver, cuBLAS and cuRAND as one library that interprets PTX, checks what it does and counts what it costs.

pub mod calls;
pub mod cublas;
pub mod curand;
pub mod driver;
pub mod fault;
pub mod machine;
pub mod memory;
pub mod modules;
pub mod pool;
pub mod product;
pub mod ptx;
pub mod queue;
pub mod report;
pub mod settings;
pub mod statistics;
pub mod tally;
pub mod work;

pub use fault::Fault;
