//! Import: what another pool of equal settings holds, copied into this one while its hashes are verified.

use super::verify::{stem, verify_files, verify_ids};
use super::{EvalBinding, MANIFEST, Manifest, Partition, Pool, ScoreLog};
use crate::error::{Error, Result};
use crate::files::{self, Staging};
use crate::mixture::check_name;
use crate::progress::Observer;
use crate::text::TokenFile;
use std::collections::BTreeSet;
use std::path::Path;

/// What an import added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imported {
    /// Token folders.
    pub tokens: usize,
    /// Models.
    pub objects: usize,
    /// Partitions and eval sets.
    pub names: usize,
    /// Score records.
    pub scores: usize,
}

/// A name of the other pool, and what it is bound to.
enum Binding {
    Partition(Partition),
    Eval(EvalBinding),
}

impl Pool {
    /// Brings the tokens, models, names and scores of `other` into this pool. What is here already is not copied again, so
    /// the same import again goes on where one was killed, and changes nothing when it was not.
    ///
    /// With `prefix`, names that mean something else here are bound under `prefix` and their name.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the pools' settings differ; [`Error::Usage`] with all names that both pools use for different
    /// things; [`Error::Damaged`] when something of `other` is not whole. Nothing is bound then.
    pub fn import_pool(&self, other: &Self, prefix: Option<&str>, observer: &dyn Observer) -> Result<Imported> {
        if self.settings != other.settings {
            return Err(Error::Mismatch {
                what: format!("'{}' cannot be brought into '{}'", other.root.display(), self.root.display()),
                differences: super::init::different_settings(&self.settings, &other.settings),
            });
        }
        let _naming = self.naming()?;
        let bindings = self.new_bindings(other, prefix)?;
        let mut imported = Imported::default();
        for (kind, n) in [("tokens", &mut imported.tokens), ("objects", &mut imported.objects)] {
            let folders = files::list(&other.root.join(kind))?;
            observer.begin(&format!("import {kind}"), folders.len() as u64, "folders");
            for (index, folder) in folders.iter().enumerate() {
                observer.check()?;
                *n += usize::from(self.import_folder(kind, folder)?);
                observer.advance(index as u64 + 1, "");
            }
            observer.finish();
        }
        imported.scores = self.import_scores(other)?;
        for binding in bindings {
            imported.names += 1;
            match binding {
                Binding::Partition(partition) => self.bind("partitions", &partition.name, &partition, None, None)?,
                Binding::Eval(eval) => self.bind("evals", &eval.name, &eval, None, None)?,
            };
        }
        Ok(imported)
    }

    /// The names of `other` that are not bound here, under the names that they get.
    fn new_bindings(&self, other: &Self, prefix: Option<&str>) -> Result<Vec<Binding>> {
        let (mut new, mut conflicts) = (Vec::new(), Vec::new());
        let taken: BTreeSet<String> = self.partitions()?.into_keys().chain(self.eval_names()?).collect();
        let renamed = |name: &str| -> Result<Option<String>> {
            let Some(prefix) = prefix else { return Ok(None) };
            let name = format!("{prefix}{name}");
            check_name(&name)?;
            Ok(Some(name))
        };
        for (name, partition) in other.partitions()? {
            match self.bound::<Partition>("partitions", &name)? {
                Some(there) if there == partition => {}
                None => new.push(Binding::Partition(partition)),
                Some(_) => match renamed(&name)? {
                    Some(name)
                        if self.bound("partitions", &name)?.is_some_and(|there: Partition| {
                            there == Partition { name: name.clone(), ..partition.clone() }
                        }) => {}
                    Some(name) if !taken.contains(&name) => {
                        new.push(Binding::Partition(Partition { name, ..partition }));
                    }
                    _ => conflicts.push(format!("partition '{name}'")),
                },
            }
        }
        for name in other.eval_names()? {
            let eval = other.eval_binding(&name)?;
            match self.bound::<EvalBinding>("evals", &name)? {
                Some(there) if there == eval => {}
                None => new.push(Binding::Eval(eval)),
                Some(_) => match renamed(&name)? {
                    Some(name)
                        if self
                            .bound("evals", &name)?
                            .is_some_and(|there: EvalBinding| there.tokens == eval.tokens) => {}
                    Some(name) if !taken.contains(&name) => new.push(Binding::Eval(EvalBinding { name, ..eval })),
                    _ => conflicts.push(format!("eval set '{name}'")),
                },
            }
        }
        if conflicts.is_empty() {
            return Ok(new);
        }
        Err(Error::Usage(format!(
            "both pools have, and mean different things by: {}; bring them in under other names with --rename-prefix PREFIX",
            conflicts.join(", ")
        )))
    }

    /// Copies a folder of tokens or of an object unless it is there; checked as a copy, so that what is published is whole.
    fn import_folder(&self, kind: &str, folder: &Path) -> Result<bool> {
        let destination = self.root.join(kind).join(folder.file_name().unwrap_or_default());
        if destination.join(MANIFEST).exists() {
            return Ok(false);
        }
        let staging = Staging::new(&destination)?;
        for path in files::list(folder)? {
            files::copy(&path, &staging.file(&path.file_name().unwrap_or_default().to_string_lossy()))?;
        }
        let copied = staging.file(".");
        let checked = if kind == "tokens" {
            TokenFile::open(&copied).and_then(|tokens| verify_ids(&tokens, folder, true))
        } else {
            files::read_json(&copied.join(MANIFEST)).and_then(|manifest: Manifest| {
                if manifest.id != stem(folder) || manifest.recipe.id()? != manifest.id {
                    return Err(Error::damaged(folder.join(MANIFEST), "it is about another object"));
                }
                verify_files(&copied, &manifest)
            })
        };
        checked.map_err(|error| in_the_other_pool(error.missing_is_damage(), folder))?;
        files::remove_folder(&destination)?; // without a manifest: published whole, damaged since
        staging.publish(&destination)?;
        Ok(true)
    }

    /// Adds the records that are not here, log by log.
    fn import_scores(&self, other: &Self) -> Result<usize> {
        let logs = other.stored("scores", "log")?;
        let keys: BTreeSet<String> =
            logs.iter().map(|path| stem(path).split('.').next().unwrap_or_default().to_owned()).collect();
        let mut added = 0;
        for key in keys {
            let theirs = ScoreLog::open(&other.root.join("scores").join(format!("{key}.log")))?;
            let mut ours = self.score_log(&key)?;
            let new: Vec<_> = theirs.records().filter(|record| ours.get(&record.key).is_none()).cloned().collect();
            added += new.len();
            for records in new.chunks(1000) {
                ours.append(records.to_vec())?;
            }
        }
        Ok(added)
    }
}

/// Damage of a copy is that of what was copied.
fn in_the_other_pool(error: Error, folder: &Path) -> Error {
    match error {
        Error::Damaged { path, problem } => {
            let path = folder.join(path.file_name().unwrap_or_default());
            let root = folder.parent().and_then(Path::parent).unwrap_or(folder).display();
            Error::damaged(path, format!("{problem}; see 'mixpool --pool {root} verify --deep'"))
        }
        other => other,
    }
}
