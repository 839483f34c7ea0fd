//! Model: the shape of a language model, its parameters as one vector, and the transformer that reads them.

mod checkpoint;
mod config;
mod config_file;
mod family;
mod float_type;
mod folder;
mod header;
mod index;
mod layout;
mod low_rank;
mod tap;
mod transformer;
mod weights;

pub use checkpoint::Checkpoint;
pub use config::{ModelConfig, PRESETS};
pub use config_file::read_config;
pub use family::{Family, RopeScaling};
pub use float_type::FloatType;
pub use folder::{write_checkpoint, write_checkpoint_as, write_tensors};
pub use layout::{Layout, Parameter, linear_layers};
pub use low_rank::{ADAPTER_FILES, LowRankUpdate};
pub use tap::{Factors, Part, See};
pub use transformer::{Sequences, Transformer};
pub use weights::Weights;
