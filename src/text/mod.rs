//! Text: documents from files, their tokens on disk, and the batches and windows cut from them.

mod batches;
mod documents;
mod gguf_tokenizer;
mod lines;
mod tokenizer;
mod tokens;
mod windows;

pub use batches::{Batch, Batches, Share};
pub use documents::{Document, ReadOptions, read_documents};
pub use gguf_tokenizer::{gguf_prefix, gguf_tokenizer};
pub use tokenizer::Tokenizer;
pub use tokens::{DocumentEntry, StagedTokens, TokenFile, TokenManifest};
pub use windows::{Window, rolling_windows};
