//! Header: what a safetensors file says of its tensors, checked before any of it is believed.
//!
//! The safetensors crate checks sizes and offsets. It lets the last of two tensors of one name win, and takes names of any length
//! and kind; files come from strangers and names are printed, so that is refused here.

use crate::error::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

/// A header larger than this is refused unread; 100,000 tensors need about 12 MiB.
const MAX_HEADER: u64 = 16 << 20;
const MAX_TENSORS: usize = 100_000;
const MAX_NAME: usize = 512;
const MAX_DIMENSIONS: usize = 8;

/// A tensor of a file.
pub(super) struct Declared {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Range<usize>, // in the file
}

/// The tensors of the safetensors file with this content, at any alignment.
///
/// # Errors
/// [`Error::Damaged`] naming `path` when the file is pickled, is not whole, or names tensors twice or strangely.
pub(super) fn read_header(path: &Path, content: &[u8]) -> Result<Vec<Declared>> {
    let damaged = |problem: String| Error::damaged(path, problem);
    if is_pickled(content) {
        return Err(damaged(format!("it is not a safetensors file: {PICKLED}")));
    }
    let declared = content.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    let declared = declared.ok_or_else(|| damaged("shorter than a safetensors header".into()))?;
    if declared > MAX_HEADER {
        return Err(damaged(format!("a header of {declared} bytes; at most {MAX_HEADER} are accepted")));
    }
    let json = content[8..].get(..declared as usize);
    let json =
        json.ok_or_else(|| damaged(format!("a header of {declared} bytes is declared, the file ends before")))?;
    let Names(names) = serde_json::from_slice(json).map_err(|error| damaged(format!("not a header: {error}")))?;
    check_names(&names).map_err(damaged)?;
    let (header, metadata) = SafeTensors::read_metadata(content).map_err(|error| damaged(error.to_string()))?;
    let mut tensors = Vec::with_capacity(names.len());
    for (name, info) in metadata.tensors() {
        if info.shape.len() > MAX_DIMENSIONS {
            return Err(damaged(format!(
                "tensor '{name}' has {} dimensions; at most {MAX_DIMENSIONS}",
                info.shape.len()
            )));
        }
        let bytes = header + 8 + info.data_offsets.0..header + 8 + info.data_offsets.1;
        tensors.push(Declared { name, dtype: info.dtype, shape: info.shape.clone(), bytes });
    }
    Ok(tensors)
}

/// Why pickled weights are refused, and what to do.
pub(super) const PICKLED: &str =
    "pickled weights can run code and are not read; convert them to safetensors (save_pretrained of transformers)";

/// Whether a file is a pickle, or the archive of pickles that `PyTorch` writes, whatever it is called.
fn is_pickled(content: &[u8]) -> bool {
    content.starts_with(b"PK\x03\x04")
        || matches!(content, [0x80, 2..=5, b'}' | b']' | b'c' | b'(' | b'\x8a' | 0x95, ..])
}

fn check_names(names: &[String]) -> std::result::Result<(), String> {
    if names.len() > MAX_TENSORS {
        return Err(format!("{} tensors; at most {MAX_TENSORS} are accepted", names.len()));
    }
    let mut seen = BTreeSet::new();
    for name in names {
        if name.len() > MAX_NAME || name.chars().any(char::is_control) {
            let shown: String = name.chars().take(40).collect();
            return Err(format!("{shown:?} is no name of a tensor (at most {MAX_NAME} bytes, nothing unprintable)"));
        }
        if !seen.insert(name) {
            return Err(format!("tensor '{name}' is declared twice"));
        }
    }
    Ok(())
}

/// The keys of a JSON object as they stand, so that a repeated one is seen.
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Names;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object with one entry per tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some((name, IgnoredAny)) = map.next_entry()? {
                    names.push(name);
                }
                Ok(Names(names))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}
