//! Binding: the names of a pool, each a small file that points to immutable tokens.

use super::claim::{Claim, Claimed};
use super::{Pool, QUARANTINE};
use crate::error::{Error, Result};
use crate::eval::Score;
use crate::files;
use crate::mixture::{check_name, unknown};
use crate::progress::Observer;
use crate::text::{BadRecordCounts, ReadOptions, StagedTokens, TokenFile};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// `partitions/<name>.json`: a named slice of training text, cut into units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Its name.
    pub name: String,
    /// Hash of its token file; none when its experts were adopted without their text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<String>,
    /// First document of each unit, and the one after its last.
    pub units: Vec<(usize, usize)>,
    /// Objects of the experts that were trained elsewhere, by unit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub adopted: BTreeMap<usize, String>,
    /// How it was filtered from another partition; none when it was registered from files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filtered: Option<Provenance>,
    /// Records of its files that were left out when it was registered; none when all were good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bad_records: Option<BadRecordCounts>,
}

impl Partition {
    /// Hash of its token file.
    ///
    /// # Errors
    /// [`Error::Usage`] when its experts were adopted without their text.
    pub fn text(&self) -> Result<&str> {
        let (name, units) = (&self.name, self.units.len());
        let units = if units == 1 { String::new() } else { format!(" --units {units}") };
        self.tokens.as_deref().ok_or_else(|| {
            Error::Usage(format!(
                "'{name}' was adopted without its text, which this needs; give it with 'mixpool register {name} FILE...{units}'"
            ))
        })
    }
}

/// How a partition was filtered from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Name of the partition it was filtered from.
    pub source: String,
    /// Hash of that partition's token file.
    pub tokens: String,
    /// The method with its options.
    pub method: String,
    /// Names of the eval sets that it was filtered for.
    pub targets: Vec<String>,
    /// The share of documents kept, as a decimal.
    pub keep: String,
}

/// `evals/<name>.json`: named held-out documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvalBinding {
    /// Its name.
    pub name: String,
    /// Hash of its token file.
    pub tokens: String,
    /// Records of its files that were left out when it was added; none when all were good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bad_records: Option<BadRecordCounts>,
}

/// Whether `register` found something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The name was bound.
    Added,
    /// The name was bound to the same content before.
    Unchanged,
}

impl Pool {
    /// Adds a partition: tokenises `paths` and cuts the documents into `units`. Registering the same again changes nothing.
    ///
    /// # Errors
    /// Those of reading and tokenising; [`Error::Usage`] when the name is taken by other content or there are fewer
    /// documents than units; [`Error::Input`] when a document is also in an eval set.
    pub fn register(
        &self,
        name: &str,
        paths: &[PathBuf],
        units: usize,
        options: &ReadOptions,
        observer: &dyn Observer,
    ) -> Result<(Partition, Outcome)> {
        check_name(name)?;
        let staged = self.tokenize(paths, options, observer)?;
        if staged.manifest().n_tokens == 0 {
            return Err(Error::input(format!("partition '{name}'"), "no token to train on; every document is empty"));
        }
        let tokens = staged.open()?;
        let units: Vec<_> = tokens.split(units)?.into_iter().map(|unit| (unit.start, unit.end)).collect();
        let hash = Some(staged.manifest().hash.clone());
        let before: Option<Partition> = self.bound("partitions", name)?;
        // The same documents from files of another quality are the same.
        let bad_records = match &before {
            Some(before) => before.bad_records.clone(),
            None => staged.bad_records().cloned(),
        };
        // Text for experts that were adopted without it, or the same text again for some that were adopted with it.
        let takes = |p: &Partition| p.units.len() == units.len() && p.tokens.is_none() || p.tokens == hash;
        let before = before.filter(takes);
        let adopted = before.as_ref().map_or_else(BTreeMap::new, |partition| partition.adopted.clone());
        let partition = Partition { name: name.to_owned(), tokens: hash, units, adopted, filtered: None, bad_records };
        self.refuse_small_units(&partition, &tokens)?;
        let _turn = self.turn(observer)?;
        for eval in self.eval_names()? {
            refuse_overlap(&tokens, &self.tokens(&self.eval_binding(&eval)?.tokens)?, name, &eval)?;
        }
        let before = before.filter(|partition| partition.tokens.is_none());
        let outcome = self.bind("partitions", name, &partition, before.as_ref(), Some(staged))?;
        Ok((partition, outcome))
    }

    /// Adds a partition of one unit: some documents of another, whose name and how they were chosen `filtered` tells.
    ///
    /// # Errors
    /// [`Error::Usage`] when the name is taken by other content; [`Error::Input`] when the documents are too few to train on.
    pub fn register_filtered(
        &self,
        name: &str,
        documents: &[usize],
        filtered: Provenance,
    ) -> Result<(Partition, Outcome)> {
        check_name(name)?;
        let staged = StagedTokens::select(&self.root.join("tokens"), &self.tokens(&filtered.tokens)?, documents)?;
        let (tokens, hash) = (staged.open()?, staged.manifest().hash.clone());
        let units = vec![(0, documents.len())];
        let partition = Partition {
            name: name.to_owned(),
            tokens: Some(hash),
            units,
            adopted: BTreeMap::new(),
            filtered: Some(filtered),
            bad_records: None,
        };
        self.refuse_small_units(&partition, &tokens)?;
        let outcome = self.bind("partitions", name, &partition, None, Some(staged))?;
        Ok((partition, outcome))
    }

    /// Adds held-out documents. Adding the same again changes nothing.
    ///
    /// # Errors
    /// As [`Pool::register`]; [`Error::Input`] when a document is also in a partition or in the seed's text.
    pub fn add_eval_set(
        &self,
        name: &str,
        paths: &[PathBuf],
        options: &ReadOptions,
        observer: &dyn Observer,
    ) -> Result<(EvalBinding, Outcome)> {
        check_name(name)?;
        let staged = self.tokenize(paths, options, observer)?;
        if staged.manifest().n_tokens == 0 {
            return Err(Error::input(format!("eval set '{name}'"), "no token to score; every document is empty"));
        }
        let held_out = staged.open()?;
        let (tokens, bad_records) = (staged.manifest().hash.clone(), staged.bad_records().cloned());
        let mut binding = EvalBinding { name: name.to_owned(), tokens, bad_records };
        let _turn = self.turn(observer)?;
        for partition in self.partitions()?.values() {
            if let Some(tokens) = &partition.tokens {
                refuse_overlap(&self.tokens(tokens)?, &held_out, &partition.name, name)?;
            }
        }
        if let Some(seed) = &self.settings.seed {
            refuse_overlap(&self.tokens(&seed.tokens)?, &held_out, "seed", name)?;
        }
        if self.eval_names()?.iter().any(|known| known == name) {
            binding.bad_records = self.eval_binding(name)?.bad_records;
        }
        let outcome = self.bind("evals", name, &binding, None, Some(staged))?;
        Ok((binding, outcome))
    }

    /// Waits for processes that are about to bind a name, until the claim is dropped: training and held-out documents that
    /// are added at the same moment must not miss each other.
    fn turn(&self, observer: &dyn Observer) -> Result<Claim> {
        loop {
            match self.try_claim("names")? {
                Claimed::Ours(claim) => return Ok(claim),
                Claimed::Theirs(_) => std::thread::sleep(Duration::from_millis(10)),
            }
            observer.check()?;
        }
    }

    /// Refuses a partition with a unit that is too small to train on.
    fn refuse_small_units(&self, partition: &Partition, tokens: &TokenFile) -> Result<()> {
        let wanted = self.settings.expert.sequence_length as u64 + 1;
        let length = |(first, end): (usize, usize)| tokens.stream_length(first..end);
        match partition.units.iter().position(|unit| length(*unit) < wanted) {
            None => Ok(()),
            Some(unit) => Err(Error::input(
                format!("partition '{}', unit {} of {}", partition.name, unit + 1, partition.units.len()),
                format!(
                    "{} tokens, fewer than one training sequence takes ({wanted}); register more text or fewer units, or \
                     make a pool with a smaller 'sequence_length'",
                    length(partition.units[unit])
                ),
            )),
        }
    }

    /// What a name stands for so far.
    pub(super) fn bound<T: for<'de> Deserialize<'de>>(&self, kind: &str, name: &str) -> Result<Option<T>> {
        let path = self.root.join(kind).join(format!("{name}.json"));
        if path.exists() { files::read_json(&path).map(Some) } else { Ok(None) }
    }

    /// Publishes tokens and the binding that names them, unless the name stands for the same content already. A name that
    /// stands for other content than `replaced` is refused.
    pub(super) fn bind<T: Serialize + for<'de> Deserialize<'de> + PartialEq>(
        &self,
        kind: &str,
        name: &str,
        value: &T,
        replaced: Option<&T>,
        mut tokens: Option<StagedTokens>,
    ) -> Result<Outcome> {
        let path = self.root.join(kind).join(format!("{name}.json"));
        let before: Option<T> = self.bound(kind, name)?;
        let unchanged = before.as_ref() == Some(value);
        let taken = || {
            Error::Usage(format!(
                "'{name}' is already registered with other content; choose another name, or delete '{}' first",
                path.display()
            ))
        };
        if !unchanged && before.is_some() && before.as_ref() != replaced {
            return Err(taken());
        }
        if files::is_planted("bind-before-object") {
            files::publish(&path, &files::to_sealed_json(value)?)?;
        }
        if let Some(quarantine) = tokens.as_mut().and_then(StagedTokens::take_quarantine) {
            quarantine.publish(&self.root.join(QUARANTINE).join(format!("{kind}-{name}.jsonl")))?;
        }
        let _naming = self.naming()?;
        tokens.map(StagedTokens::publish).transpose()?; // also when the name is bound: a damaged folder is replaced
        if unchanged {
            return Ok(Outcome::Unchanged);
        }
        let bytes = files::to_sealed_json(value)?;
        if before.is_some() {
            files::publish(&path, &bytes)?;
        } else if !files::publish_new(&path, &bytes)? {
            // Another process was faster; what it was told is done stays so.
            return if self.bound(kind, name)?.as_ref() == Some(value) { Ok(Outcome::Unchanged) } else { Err(taken()) };
        }
        Ok(Outcome::Added)
    }

    /// One partition.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is none of that name, with the closest known one.
    pub fn partition(&self, name: &str) -> Result<Partition> {
        let path = self.root.join("partitions").join(format!("{name}.json"));
        if check_name(name).is_ok() && path.exists() {
            return files::read_json(&path);
        }
        Err(Error::Usage(unknown(name, self.partitions()?.keys())))
    }

    /// All partitions by name.
    pub fn partitions(&self) -> Result<BTreeMap<String, Partition>> {
        let names = self.names("partitions")?;
        names.into_iter().map(|name| Ok((name.clone(), self.partition(&name)?))).collect()
    }

    /// Units of every partition: what mixture expressions are read against.
    pub fn unit_counts(&self) -> Result<BTreeMap<String, usize>> {
        Ok(self.partitions()?.into_iter().map(|(name, partition)| (name, partition.units.len())).collect())
    }

    /// Names of all eval sets, sorted.
    pub fn eval_names(&self) -> Result<Vec<String>> {
        self.names("evals")
    }

    /// These eval sets, or all of them when none is named.
    ///
    /// # Errors
    /// [`Error::Usage`] when a name is unknown or there is no eval set at all.
    pub fn chosen_evals(&self, names: &[String]) -> Result<Vec<String>> {
        names.iter().try_for_each(|name| self.eval_binding(name).map(|_| ()))?;
        let chosen = if names.is_empty() { self.eval_names()? } else { names.to_vec() };
        if chosen.is_empty() {
            return Err(Error::Usage("no eval set yet; run 'mixpool eval-set NAME FILE...' first".into()));
        }
        Ok(chosen)
    }

    /// Tokens, bytes and documents of some eval sets, as a score of 0 nats each.
    ///
    /// # Errors
    /// As [`Pool::eval_key`].
    pub fn eval_sizes(&self, names: &[String]) -> Result<BTreeMap<String, Score>> {
        let size = |name: &String| {
            let tokens = self.tokens(&self.eval_binding(name)?.tokens)?;
            let (manifest, n_docs) = (tokens.manifest(), tokens.documents().len() as u64);
            let size = Score { nll_sum: 0.0, n_tokens: manifest.n_tokens, n_bytes: manifest.n_bytes, n_docs };
            Ok((name.clone(), size))
        };
        names.iter().map(size).collect()
    }

    /// One eval set.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is none of that name, with the closest known one.
    pub fn eval_binding(&self, name: &str) -> Result<EvalBinding> {
        let path = self.root.join("evals").join(format!("{name}.json"));
        if check_name(name).is_ok() && path.exists() {
            return files::read_json(&path);
        }
        Err(Error::Usage(unknown_eval(name, &self.eval_names()?)))
    }

    fn names(&self, kind: &str) -> Result<Vec<String>> {
        let paths = files::list(&self.root.join(kind))?;
        let json = paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let stems = json.filter_map(|path| path.file_stem()).map(|stem| stem.to_string_lossy().into_owned());
        Ok(stems.filter(|stem| !stem.starts_with('.')).collect())
    }
}

/// Refuses training and eval data that share a document.
fn refuse_overlap(training: &TokenFile, held_out: &TokenFile, partition: &str, eval: &str) -> Result<()> {
    let known: BTreeSet<[u8; 16]> = training
        .documents()
        .iter()
        .filter(|document| document.n_tokens > 0)
        .map(|document| document.text_hash)
        .collect();
    let held_out = held_out.documents().iter().enumerate();
    let shared: Vec<usize> =
        held_out.filter(|(_, document)| known.contains(&document.text_hash)).map(|(index, _)| index + 1).collect();
    let Some(first) = shared.first() else { return Ok(()) };
    Err(Error::input(
        format!("eval set '{eval}' and training data '{partition}'"),
        format!(
            "{} document(s) are in both (first: document {first} of the eval set); remove them from one side",
            shared.len()
        ),
    ))
}

/// "unknown eval set ...", worded like an unknown partition.
fn unknown_eval(name: &str, known: &[String]) -> String {
    unknown(name, known.iter()).replacen("partition", "eval set", 1)
}
