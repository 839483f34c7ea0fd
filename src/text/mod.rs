//! Text: documents from files, their tokens on disk, and the batches and windows cut from them.

mod arrow_file;
mod bad_records;
mod batches;
mod documents;
mod flatbuffer;
mod gguf_tokenizer;
mod guarded;
mod json_lines;
mod lines;
mod npy;
#[cfg(feature = "parquet")]
mod parquet_file;
mod reading;
mod sources;
mod token_arrays;
mod token_writer;
mod tokenizer;
mod tokens;
mod windows;

pub use bad_records::{BadRecord, BadRecordCounts, OnBadRecord};
pub use batches::{Batch, Batches, Share};
pub use documents::{Document, ReadOptions, read_documents, read_records};
pub use gguf_tokenizer::{gguf_prefix, gguf_tokenizer};
pub use reading::Reading;
pub use sources::expand;
pub use token_arrays::{TokenDocument, TokenType, Vocabulary, read_token_documents};
pub use tokenizer::Tokenizer;
pub use tokens::{DocumentEntry, StagedTokens, TokenFile, TokenManifest};
pub use windows::{Window, rolling_windows};
