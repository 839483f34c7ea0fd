//! Model: the shape of a language model, its parameters as one vector, and the transformer that reads them.

mod checkpoint;
mod config;
mod config_file;
mod family;
mod gguf;
mod index;
mod layout;
mod tap;
mod transformer;
mod weights;

pub use checkpoint::{Checkpoint, write_checkpoint, write_tensors};
pub use config::{ModelConfig, PRESETS};
pub use config_file::read_config;
pub use family::{Family, RopeScaling};
pub use gguf::{read_gguf, read_gguf_config};
pub use layout::{Layout, Parameter, linear_layers};
pub use tap::{Factors, Part, See};
pub use transformer::{Sequences, Transformer};
pub use weights::Weights;
