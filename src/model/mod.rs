//! Model: the shape of a language model, its parameters as one vector, and the transformer that reads them.

mod attention;
mod block;
mod checkpoint;
mod config;
mod config_file;
mod description;
mod family;
mod feed_forward;
mod index;
mod layout;
mod names;
mod tap;
mod transformer;
mod weights;

pub use checkpoint::{Checkpoint, write_tensors};
pub use config::{ModelConfig, PRESETS};
pub use config_file::{config_of, read_config};
pub use description::{write_checkpoint, write_description};
pub use family::{Activation, Family, RopeScaling};
pub use layout::{Layout, Parameter, linear_layers};
pub use tap::{Factors, Part, See};
pub use transformer::{Sequences, Transformer};
pub use weights::Weights;
