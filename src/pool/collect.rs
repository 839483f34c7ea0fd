//! Garbage: what lies in a pool and nothing names, and how it is removed without harm to those who are at work.

use super::claim::knows_no_locks;
use super::fitted::FITTED;
use super::verify::stem;
use super::{EvalBinding, Manifest, Partition, Pool, Start, TokenNll};
use crate::error::{Error, Result};
use crate::files;
use crate::kernels::Precision;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How old something must be to be garbage where no lock tells whether someone is about to name it.
const SETTLED: Duration = Duration::from_hours(24);

/// Something that nothing names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbage {
    /// The file or folder.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Why nobody needs it.
    pub why: &'static str,
}

/// What the pool's names lead to.
struct Named {
    tokens: BTreeSet<String>,
    objects: BTreeSet<String>,
    manifests: BTreeMap<String, Manifest>,
}

impl Pool {
    /// Keeps `gc` away for as long as the result lives: from before that which a name needs is there until the name is.
    pub(super) fn naming(&self) -> Result<Option<File>> {
        let path = self.root.join("work");
        let folder = File::open(&path).map_err(Error::io("open", &path))?;
        match folder.lock_shared() {
            Ok(()) => Ok(Some(folder)),
            Err(error) if knows_no_locks(&error) || self.sharing().is_some() => Ok(None), // gc spares what is young
            Err(error) => Err(Error::io("lock", &path)(error)),
        }
    }

    /// Keeps everyone away who is about to name something; none where locks cannot be trusted.
    fn collecting(&self) -> Result<Option<File>> {
        let path = self.root.join("work");
        let folder = File::open(&path).map_err(Error::io("open", &path))?;
        if self.sharing().is_some() {
            return Ok(None);
        }
        match folder.try_lock() {
            Ok(()) => Ok(Some(folder)),
            Err(TryLockError::WouldBlock) => {
                Err(Error::Locked("data or models are being added by another process; run this again then".into()))
            }
            Err(TryLockError::Error(error)) if knows_no_locks(&error) => Ok(None),
            Err(TryLockError::Error(error)) => Err(Error::io("lock", &path)(error)),
        }
    }

    /// Lists what nothing names and, unless it is a rehearsal, removes it. Really trained mixtures count as named unless
    /// `trained_mixtures` gives them up; score logs are never garbage. `answers` are files under `estimates/` that are about
    /// experts or eval sets that are gone.
    ///
    /// What a live process has claimed is left alone. A process may be killed at any point of this.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a name cannot be read: what it names is not known then. [`Error::Locked`] when something is
    /// being added.
    pub fn collect(&self, rehearsal: bool, trained_mixtures: bool, answers: &[PathBuf]) -> Result<Vec<Garbage>> {
        let lock = self.collecting()?;
        let mut named = self.named()?;
        let mut found = self.nameless_objects(&named, trained_mixtures)?;
        found.iter().for_each(|garbage| drop(named.manifests.remove(&stem(&garbage.path))));
        for folder in files::list(&self.root.join("tokens"))? {
            if !named.tokens.contains(&stem(&folder)) {
                found.push(garbage(folder, "no partition, eval set or seed is bound to these tokens"));
            }
        }
        self.nameless_fits(&named, &mut found)?;
        found.extend(
            answers.iter().map(|path| garbage(path.clone(), "an answer about experts or eval sets that are gone")),
        );
        if lock.is_none() {
            found.retain(|garbage| files::age(&garbage.path).is_some_and(|age| age > SETTLED));
        }
        self.ended_work(&mut found)?;
        for garbage in found.iter().filter(|_| !rehearsal) {
            self.discard(&garbage.path)?;
        }
        Ok(found)
    }

    /// Removes one thing. A folder gets a temporary name first: under its own, it is whole or gone.
    fn discard(&self, path: &Path) -> Result<()> {
        if path.extension().is_some_and(|kind| kind == "claim") {
            let id = stem(path);
            drop(self.try_claim(id.split('.').next().unwrap_or_default())?); // whoever gets it may remove it
            return Ok(());
        }
        files::discard(path)
    }

    /// Everything that bindings, settings and objects lead to.
    fn named(&self) -> Result<Named> {
        let mut tokens: BTreeSet<String> = self.settings.seed.iter().map(|seed| seed.tokens.clone()).collect();
        let mut roots: BTreeSet<String> = self.settings.origin.iter().cloned().collect();
        roots.insert(self.seed_recipe()?.id()?);
        for path in self.stored("partitions", "json")? {
            let partition: Partition = files::read_json(&path)?;
            for unit in 0..partition.units.len() {
                roots.insert(self.expert_id(&partition, unit)?);
            }
            tokens.extend(partition.tokens);
            tokens.extend(partition.filtered.map(|from| from.tokens));
        }
        for path in self.stored("evals", "json")? {
            tokens.insert(files::read_json::<EvalBinding>(&path)?.tokens);
        }
        let mut manifests = BTreeMap::new();
        for folder in files::list(&self.root.join("objects"))? {
            let id = stem(&folder);
            match self.manifest(&id) {
                Ok(Some(manifest)) => drop(manifests.insert(id, manifest)),
                Ok(None) | Err(Error::Damaged { .. }) => drop(roots.insert(id)), // for `verify` to say
                Err(error) => return Err(error),
            }
        }
        Ok(Named { tokens, objects: roots, manifests })
    }

    /// Objects that nothing leads to, with what they start from where nothing else does.
    fn nameless_objects(&self, named: &Named, trained_mixtures: bool) -> Result<Vec<Garbage>> {
        let mut kept = named.objects.clone();
        let mut reasons = BTreeMap::new();
        for (id, Manifest { recipe, .. }) in named.manifests.iter().filter(|(id, _)| !named.objects.contains(*id)) {
            let target = recipe.online.as_ref().and_then(|online| online.target.as_ref());
            let mut data = recipe.data.iter().chain(target);
            let why = match &recipe.start {
                Start::Imported(_) | Start::Adapter { .. } => "a model that no partition has adopted",
                _ if !data.all(|share| named.tokens.contains(&share.tokens)) => {
                    "a model trained on text that no name is bound to"
                }
                _ if trained_mixtures => "a model trained on a mixture, given up by --trained-mixtures",
                _ => {
                    kept.insert(id.clone());
                    continue;
                }
            };
            if self.is_held(id)? {
                kept.insert(id.clone());
            } else {
                reasons.insert(id, why);
            }
        }
        loop {
            let starts: BTreeSet<String> =
                kept.iter().filter_map(|id| start(&named.manifests.get(id)?.recipe.start)).collect();
            let before = kept.len();
            kept.extend(starts);
            if kept.len() == before {
                break;
            }
        }
        reasons.retain(|id, _| !kept.contains(*id));
        Ok(reasons.into_iter().map(|(id, why)| garbage(self.object_folder(id), why)).collect())
    }

    /// What methods worked out of models that are all gone.
    fn nameless_fits(&self, named: &Named, found: &mut Vec<Garbage>) -> Result<()> {
        let weights: BTreeSet<&String> = named.manifests.values().map(|manifest| &manifest.weights).collect();
        let names = self.eval_names()?;
        let keys = |precision| names.iter().map(move |name| self.eval_key_in(precision, name));
        let evals = Precision::ALL.into_iter().flat_map(keys).collect::<Result<Vec<_>>>()?;
        let pairs = evals.iter().flat_map(|eval| weights.iter().map(move |weights| (eval, weights)));
        let nll: BTreeSet<PathBuf> = pairs.map(|(eval, weights)| TokenNll::path(&self.root, eval, weights)).collect();
        for path in self.stored(FITTED, "f32")? {
            if !nll.contains(&path) {
                found.push(garbage(path, "losses of a model or an eval set that is gone"));
            }
        }
        let values = self.stored(FITTED, "json")?;
        let mut known: BTreeSet<String> = weights.into_iter().cloned().chain(evals).collect();
        known.extend(named.manifests.keys().chain(&named.objects).chain(&named.tokens).cloned());
        known.extend(values.iter().map(|path| stem(path)));
        for path in values {
            let Ok(value) = files::read_json::<serde_json::Value>(&path) else { continue };
            let inputs = hashes(value["key"].as_str().unwrap_or_default());
            if !inputs.is_empty() && inputs.iter().all(|input| !known.contains(*input)) {
                let tensors = path.with_extension("safetensors");
                found.push(garbage(path, WORKED_OUT));
                found.extend(tensors.exists().then(|| garbage(tensors, WORKED_OUT)));
            }
        }
        for path in self.stored(FITTED, "safetensors")? {
            let is_old = files::age(&path).is_some_and(|age| age > SETTLED);
            if is_old && !path.with_extension("json").exists() {
                found.push(garbage(path, "tensors whose value was never stored"));
            }
        }
        Ok(())
    }

    /// Claims of nobody, and states of what is finished.
    fn ended_work(&self, found: &mut Vec<Garbage>) -> Result<()> {
        for path in files::list(&self.root.join("work"))? {
            let id = stem(&path);
            let id = id.split('.').next().unwrap_or_default();
            let kind = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            let is_done = || {
                self.object_folder(id).join(super::MANIFEST).exists()
                    || self.root.join(FITTED).join(format!("{id}.json")).exists()
            };
            let why = match kind.as_str() {
                "claim" => "the claim of a process that is gone",
                "state" | "seen" if is_done() => "the state of a run that is finished",
                _ => continue,
            };
            if !self.is_held(id)? {
                found.push(garbage(path, why));
            }
        }
        Ok(())
    }
}

const WORKED_OUT: &str = "worked out of models that are gone";

/// The object that training starts from.
fn start(start: &Start) -> Option<String> {
    match start {
        Start::Object(id) | Start::Adapter { base: id, .. } => Some(id.clone()),
        Start::Scratch | Start::Imported(_) => None,
    }
}

/// The words of a key that are hashes.
fn hashes(key: &str) -> Vec<&str> {
    let words = key.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|word| word.len() == 64 && word.chars().all(|c| c.is_ascii_hexdigit())).collect()
}

fn garbage(path: PathBuf, why: &'static str) -> Garbage {
    Garbage { bytes: files::size(&path), path, why }
}
