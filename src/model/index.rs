//! Index: `model.safetensors.index.json`, which says in which shard of a checkpoint every tensor lies.
//!
//! A foreign file names files to be opened, so nothing but plain names of regular files inside its folder is believed.

use crate::error::{Error, Result};
use crate::files;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// File name of the index inside a model folder.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// An index larger than this is refused unread; 100,000 tensors need about 10 MB.
const MAX_BYTES: u64 = 16 << 20;

/// Which shard holds which tensor.
pub(super) struct Index {
    place: String,
    shards: Vec<PathBuf>,             // sorted by name
    tensors: BTreeMap<String, usize>, // shard by tensor
}

#[derive(Deserialize)]
struct IndexFile {
    weight_map: Pairs,
}

/// The entries of a JSON object as they stand, so that a repeated key is seen.
struct Pairs(Vec<(String, String)>);

impl Index {
    /// Reads the index at `path` of `folder`.
    ///
    /// # Errors
    /// [`Error::Input`] naming the first tensor declared twice or the first shard that is not a plain file of the folder.
    pub(super) fn read(folder: &Path, path: &Path) -> Result<Self> {
        let place = path.display().to_string();
        let refuse = |problem: String| Error::input(&place, problem);
        let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        if size > MAX_BYTES {
            return Err(refuse(format!("an index of {size} bytes; at most {MAX_BYTES} are accepted")));
        }
        let file: IndexFile =
            serde_json::from_str(&files::read_text(path)?).map_err(|error| refuse(error.to_string()))?;
        let mut names = BTreeMap::new();
        for (_, shard) in &file.weight_map.0 {
            names.insert(shard.as_str(), 0);
        }
        for (number, place) in names.values_mut().enumerate() {
            *place = number;
        }
        let mut tensors = BTreeMap::new();
        for (tensor, shard) in &file.weight_map.0 {
            if tensors.insert(tensor.clone(), names[shard.as_str()]).is_some() {
                return Err(refuse(format!("tensor '{tensor}' is declared twice")));
            }
        }
        if tensors.is_empty() {
            return Err(refuse("'weight_map' names no tensor".into()));
        }
        let shards = names.keys().map(|name| shard(folder, name).map_err(refuse)).collect::<Result<_>>()?;
        Ok(Self { place, shards, tensors })
    }

    /// The files, sorted by name.
    pub(super) fn shards(&self) -> &[PathBuf] {
        &self.shards
    }

    /// Refuses shards that hold other tensors than declared; `held` gives the shard of every tensor, `buffers` of what is no
    /// parameter and need not be declared.
    ///
    /// # Errors
    /// [`Error::Input`] naming the first tensor that is missing, elsewhere or undeclared.
    pub(super) fn check(&self, held: &BTreeMap<&str, usize>, buffers: &BTreeMap<String, usize>) -> Result<()> {
        let refuse = |problem: String| Err(Error::input(&self.place, problem));
        let file = |shard: usize| self.shards[shard].display();
        for (name, shard) in &self.tensors {
            match held.get(name.as_str()).or_else(|| buffers.get(name)) {
                Some(found) if found == shard => {}
                Some(found) => {
                    return refuse(format!(
                        "tensor '{}' is declared in '{}' and lies in '{}'",
                        name.escape_debug(),
                        file(*shard),
                        file(*found)
                    ));
                }
                None => return refuse(format!("tensor '{}' is missing from '{}'", name.escape_debug(), file(*shard))),
            }
        }
        match held.iter().find(|(name, _)| !self.tensors.contains_key(**name)) {
            Some((name, shard)) => {
                refuse(format!("tensor '{}' of '{}' is not declared", name.escape_debug(), file(*shard)))
            }
            None => Ok(()),
        }
    }
}

/// The path of a shard that the index names.
fn shard(folder: &Path, name: &str) -> std::result::Result<PathBuf, String> {
    let is_plain = !name.starts_with('.') && !name.contains(['/', '\\', ':']) && !name.chars().any(char::is_control);
    let has_ending = Path::new(name).extension().is_some_and(|ending| ending == "safetensors");
    if !(is_plain && has_ending) {
        return Err(format!("shard {name:?} is not the plain name of a .safetensors file"));
    }
    let path = folder.join(name);
    let problem = |error: std::io::Error| format!("shard '{name}' cannot be read ({error})");
    let (inside, target) = (folder.canonicalize().map_err(problem)?, path.canonicalize().map_err(problem)?);
    if !target.starts_with(&inside) {
        return Err(format!(
            "shard '{name}' is a link out of the folder; copy the folder with its links followed (cp -rL)"
        ));
    }
    if !target.is_file() {
        return Err(format!("shard '{name}' is not a regular file"));
    }
    Ok(path)
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Pairs;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object from tensor names to file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
