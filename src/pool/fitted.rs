//! Fitted: what a method worked out about the pool's models, kept under the hash of all it depends on.
//!
//! A method names its inputs in a key; the same key finds what was computed then, with what it cost.

use super::{Pool, loading};
use crate::error::{Error, Result};
use crate::files;
use crate::model::{Checkpoint, Layout, write_tensors};
use serde::{Serialize, de::DeserializeOwned};
use std::path::PathBuf;

/// `fitted/<hash>.json`.
#[derive(serde::Serialize, serde::Deserialize)]
struct Stored<T> {
    /// What the value depends on, for people; the file's name is its hash.
    key: String,
    value: T,
    /// Hash of the tensors beside it; none where there are none, and in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tensors: Option<String>,
}

impl Pool {
    /// What is stored under `key`; computed and stored when there is nothing yet.
    ///
    /// `key` says all that the value depends on: method and version, hashes of models and data, exact numbers. A value
    /// should hold what it cost, so that a later run can tell. Stored floats are read back bit for bit; NaN and infinity are
    /// not kept by JSON and must be refused by `compute`.
    ///
    /// # Errors
    /// Those of `compute`; [`Error::Damaged`] when the file is not what was written.
    pub fn fitted<T: Serialize + DeserializeOwned>(&self, key: &str, compute: impl FnOnce() -> Result<T>) -> Result<T> {
        let path = self.fitted_path(key, "json");
        if self.is_fitted(key) {
            self.forget_watched(key)?; // left by a process that was killed when the value was stored
            return Ok(files::read_json::<Stored<T>>(&path)?.value);
        }
        let value = compute()?;
        let tensors = self.fitted_path(key, "safetensors");
        let tensors = if tensors.exists() { Some(files::hash_file(&tensors)?) } else { None };
        let stored = Stored { key: key.to_owned(), value, tensors };
        files::create_folder(&self.root.join(FITTED))?;
        files::publish(&path, &files::to_sealed_json(&stored)?)?;
        self.forget_watched(key)?;
        Ok(stored.value)
    }

    /// Whether something is stored under `key`.
    pub fn is_fitted(&self, key: &str) -> bool {
        self.fitted_path(key, "json").exists()
    }

    /// Stores tensors beside the value of `key`: called by its `compute`, so that the value stands for both.
    pub fn store_tensors(&self, key: &str, layout: &Layout, values: &[f32]) -> Result<()> {
        files::create_folder(&self.root.join(FITTED))?;
        files::publish_with(&self.fitted_path(key, "safetensors"), |path| write_tensors(path, layout, values))
    }

    /// Maps the tensors stored beside the value of `key`.
    ///
    /// # Errors
    /// [`Error::Damaged`] when they are missing or not whole.
    pub fn stored_tensors(&self, key: &str) -> Result<Checkpoint> {
        let path = self.fitted_path(key, "safetensors");
        if self.is_fitted(key) {
            loading::once(&path, || self.verify_fitted(&files::hash(key.as_bytes())))?;
        }
        Checkpoint::open_file(&path).map_err(Error::missing_is_damage).map_err(|error| match error {
            Error::Damaged { path, problem } => {
                let value = self.fitted_path(key, "json");
                let problem = format!("{problem}; delete '{}' to compute it again", value.display());
                Error::Damaged { path, problem }
            }
            other => other,
        })
    }

    /// Checks what is stored under the hash `stem`, tensors included.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is not what was written.
    pub(super) fn verify_fitted(&self, stem: &str) -> Result<()> {
        let path = self.root.join(FITTED).join(format!("{stem}.json"));
        let stored: Stored<serde_json::Value> = files::read_json(&path)?;
        if files::hash(stored.key.as_bytes()) != stem {
            return Err(Error::damaged(path, "its name is not the hash of its key"));
        }
        let Some(expected) = stored.tensors else { return Ok(()) };
        let path = path.with_extension("safetensors");
        if files::hash_file(&path).map_err(Error::missing_is_damage)? != expected {
            return Err(Error::damaged(path, "its bytes do not match the hash stored beside it"));
        }
        Ok(())
    }

    fn fitted_path(&self, key: &str, kind: &str) -> PathBuf {
        self.root.join(FITTED).join(format!("{}.{kind}", files::hash(key.as_bytes())))
    }
}

/// The folder, made when it is first needed.
pub(super) const FITTED: &str = "fitted";
