//! Origin: the model that `from` of a recipe names, a Hugging Face folder or a GGUF file.

use super::TOKENIZER;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::model::{ModelConfig, read_config, read_gguf_config};
use crate::text::{gguf_prefix, gguf_tokenizer};
use std::path::{Path, PathBuf};

/// A model from elsewhere.
pub(super) enum Origin {
    /// A folder with `config.json`, safetensors and `tokenizer.json`.
    Folder(PathBuf),
    /// A file that holds all of it.
    Gguf(Gguf),
}

impl Origin {
    /// What lies at `path`: a file is taken for GGUF.
    ///
    /// # Errors
    /// Those of [`Gguf::open`]; what is wrong with a folder is found when it is read.
    pub(super) fn at(path: PathBuf) -> Result<Self> {
        if path.is_file() { Gguf::open(&path).map(Self::Gguf) } else { Ok(Self::Folder(path)) }
    }

    /// The shape of the model.
    pub(super) fn config(&self) -> Result<ModelConfig> {
        match self {
            Self::Folder(folder) => read_config(folder),
            Self::Gguf(file) => read_gguf_config(file),
        }
    }

    /// Its `tokenizer.json`, and what to call it.
    pub(super) fn tokenizer(&self) -> Result<(Vec<u8>, String)> {
        match self {
            Self::Folder(folder) => read_tokenizer(&folder.join(TOKENIZER)),
            Self::Gguf(file) => Ok((gguf_tokenizer(file)?, format!("tokenizer of '{}'", file.path().display()))),
        }
    }

    /// The token that begins a document, where the model says so by its id.
    pub(super) fn prefix(&self) -> Result<Option<u32>> {
        match self {
            Self::Folder(_) => Ok(None),
            Self::Gguf(file) => gguf_prefix(file),
        }
    }

    /// The folder or the file.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Folder(folder) => folder,
            Self::Gguf(file) => file.path(),
        }
    }
}

/// The bytes of a `tokenizer.json`, and what to call it.
pub(super) fn read_tokenizer(path: &Path) -> Result<(Vec<u8>, String)> {
    Ok((std::fs::read(path).map_err(Error::io("read", path))?, path.display().to_string()))
}
