//! Model: the shape of a language model, its parameters as one vector, and the transformer that reads them.

mod attention;
mod block;
mod checkpoint;
mod config;
mod config_file;
mod description;
mod family;
mod feed_forward;
mod float_type;
mod gguf;
mod header;
mod index;
mod layout;
mod low_rank;
mod names;
mod tap;
mod tensors;
mod transformer;
mod weights;

pub use checkpoint::Checkpoint;
pub use config::{ModelConfig, PRESETS};
pub use config_file::{config_of, read_config};
pub use description::{write_checkpoint, write_description};
pub use family::{Activation, Family, RopeScaling};
pub use float_type::FloatType;
pub use gguf::{read_gguf, read_gguf_config};
pub use layout::{Layout, Parameter, linear_layers};
pub use low_rank::{ADAPTER_FILES, LowRankUpdate};
pub use tap::{Factors, Part, See};
pub use tensors::{write_stored, write_tensors, write_tensors_as};
pub use transformer::{Sequences, Transformer};
pub use weights::Weights;
