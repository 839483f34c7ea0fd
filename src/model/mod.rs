//! Model: the shape of a language model, its parameters as one vector, and the transformer that reads them.

mod checkpoint;
mod config;
mod layout;
mod tap;
mod transformer;

pub use checkpoint::{Checkpoint, read_config, write_checkpoint, write_tensors};
pub use config::{ModelConfig, PRESETS};
pub use layout::{Layout, Parameter, linear_layers};
pub use tap::{Factors, Part, See};
pub use transformer::{Sequences, Transformer, Weights};
