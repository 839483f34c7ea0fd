//! GGUF: a model in one file of llama.cpp's format, its metadata and its tensors, with every size checked.
//!
//! Layout (little-endian): `GGUF`, version, number of tensors, number of metadata entries; the entries; name, shape, type
//! and offset of every tensor; padding; the tensors. Counts and lengths in the file are believed only as far as the
//! file's own length bears them out, and arrays are read where they lie, so a header costs memory in proportion to what it
//! really holds. Values of quantised tensors are worked out by `candle`.

mod cursor;
mod metadata;
mod tensor;

pub use metadata::{Array, Value};
pub use tensor::TensorInfo;

use crate::error::{Error, Result};
use crate::files;
use cursor::Cursor;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What every file begins with.
const MAGIC: [u8; 4] = *b"GGUF";
/// Versions read; the first had shorter counts, and nobody writes it any more.
const VERSIONS: [u32; 2] = [2, 3];
/// Alignment of tensors where the file does not say.
const ALIGNMENT: u64 = 32;

/// An open file.
pub struct Gguf {
    path: PathBuf,
    content: Vec<u8>, // read, not mapped: the file is not the pool's and may change
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Reads a file and its header.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Input`] with the first thing that
    /// is not as the format says or not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let content = files::read(path)?;
        let (metadata, tensors) = header(&content).map_err(|problem| Error::input(path.display(), problem))?;
        Ok(Self { path: path.to_path_buf(), content, metadata, tensors })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says that something in the file cannot be used.
    pub fn refuse(&self, problem: impl Into<String>) -> Error {
        Error::input(self.path.display(), problem)
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The metadata by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// A text of the metadata, if it is there.
    ///
    /// # Errors
    /// [`Error::Input`] when the entry is of another type; so do the methods below.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.entry(key, "a text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A count of the metadata, if it is there.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        self.entry(key, "a count", |value| match value {
            Value::Integer(number) => usize::try_from(*number).ok(),
            _ => None,
        })
    }

    /// A real number of the metadata, if it is there.
    pub fn real(&self, key: &str) -> Result<Option<f64>> {
        self.entry(key, "a finite number", |value| match value {
            Value::Integer(number) => Some(*number as f64),
            Value::Real(number) => Some(*number).filter(|number| number.is_finite()),
            _ => None,
        })
    }

    /// A truth value of the metadata, if it is there.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.entry(key, "true or false", |value| match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        })
    }

    /// The texts of an array of the metadata, if it is there.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.array(key, "a list of texts", Array::texts)
    }

    /// The whole numbers of an array of the metadata, if it is there.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i128>>> {
        self.array(key, "a list of whole numbers", Array::integers)
    }

    /// The real numbers of an array of the metadata, if it is there.
    pub fn reals(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.array(key, "a list of numbers", Array::reals)
    }

    fn entry<'a, T>(&'a self, key: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let wrong = || self.refuse(format!("'{key}' is {}, expected {kind}", value.describe()));
        read(value).map(Some).ok_or_else(wrong)
    }

    fn array<'a, T>(
        &'a self,
        key: &str,
        kind: &str,
        read: impl Fn(&Array, &'a [u8]) -> Option<T>,
    ) -> Result<Option<T>> {
        self.entry(key, kind, |value| match value {
            Value::Array(array) => read(array, &self.content),
            _ => None,
        })
    }

    /// The values of a tensor, in the order in which they lie in the file.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no tensor of that name or one of its values is not finite.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.tensors.get(name).ok_or_else(|| self.refuse(format!("tensor '{name}' is missing")))?;
        let values = info.values(&self.content)?;
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(self.refuse(format!("value {index} of tensor '{name}' is not finite"))),
            None => Ok(values),
        }
    }
}

type Header = (BTreeMap<String, Value>, BTreeMap<String, TensorInfo>);

/// Reads everything before the tensors.
fn header(bytes: &[u8]) -> std::result::Result<Header, String> {
    let mut cursor = Cursor::new(bytes);
    if cursor.take(4, "the magic number").is_ok_and(|magic| magic != MAGIC) {
        return Err("not a GGUF file; 'from' names a model folder or a .gguf file".into());
    }
    let version = cursor.u32("the version")?;
    if VERSIONS.contains(&version.swap_bytes()) {
        return Err("a big-endian GGUF file; expected a little-endian one".into());
    }
    if !VERSIONS.contains(&version) {
        return Err(format!("GGUF version {version}; versions 2 and 3 are read"));
    }
    let (tensors, entries) = (cursor.u64("the number of tensors")?, cursor.u64("the number of metadata entries")?);
    let metadata = metadata::read(&mut cursor, entries)?;
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(Value::Integer(number)) => u64::try_from(*number).unwrap_or(0),
        Some(other) => return Err(format!("'general.alignment' is {}, expected a count", other.describe())),
    };
    if !alignment.is_power_of_two() || !(8..=1 << 20).contains(&alignment) {
        return Err(format!("'general.alignment' is {alignment}; expected a power of two from 8 on"));
    }
    if let Some(Value::Integer(parts)) = metadata.get("split.count").filter(|count| **count != Value::Integer(1)) {
        return Err(format!("one of {parts} parts of a split model; join them first (llama-gguf-split --merge)"));
    }
    let tensors = tensor::read(&mut cursor, tensors, alignment)?;
    Ok((metadata, tensors))
}
