//! Verify: everything a pool stores, compared with what it says of itself, and how each damage is mended.

use super::fitted::FITTED;
use super::training::WEIGHTS;
use super::{ESTIMATES, EvalBinding, MANIFEST, Manifest, POOL, Partition, Pool, ScoreLog, TOKENIZER, TokenNll};
use crate::error::{Error, Result};
use crate::files;
use crate::text::{Reading, TokenFile, Tokenizer};
use crate::train::State;
use std::path::{Path, PathBuf};

/// Something that is not what was written.
#[derive(Debug)]
pub struct Damage {
    /// What is wrong.
    pub error: Error,
    /// The command that mends it.
    pub repair: String,
    /// The file or folder that is mended as a whole.
    pub(super) place: PathBuf,
}

/// What a look at a whole pool found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Objects and token files looked at.
    pub checked: usize,
    /// Score logs read.
    pub logs: usize,
    /// What is not whole.
    pub damages: Vec<Damage>,
}

impl Verified {
    /// Notes damage with its repair; other failures end the search.
    fn note(&mut self, outcome: Result<()>, place: &Path, repair: impl FnOnce() -> String) -> Result<()> {
        match outcome {
            Err(error @ Error::Damaged { .. }) => {
                self.damages.push(Damage { error, repair: repair(), place: place.to_path_buf() });
            }
            other => other?,
        }
        Ok(())
    }
}

/// How a damaged `pool.json` is mended.
pub(super) fn pool_repair(root: &Path) -> String {
    format!("{} && {}", remove(&root.join(POOL)), program(root, "init RECIPE.yaml"))
}

impl Pool {
    /// Looks at everything in the pool; with `deep`, reads every byte and compares it with the recorded hash.
    ///
    /// # Errors
    /// [`Error::Io`] when something cannot be read. What is damaged is no error, but noted.
    pub fn verify(&self, deep: bool) -> Result<Verified> {
        let mut found = Verified::default();
        if deep {
            found.note(self.verify_tokenizer(), &self.root.join(TOKENIZER), || self.program("init RECIPE.yaml"))?;
        }
        for path in self.stored("partitions", "json")? {
            found.note(
                self.verify_binding(&path, |partition: &Partition| (&partition.name, partition.tokens.as_ref())),
                &path,
                || self.binding_repair(&path),
            )?;
        }
        for path in self.stored("evals", "json")? {
            found.note(
                self.verify_binding(&path, |eval: &EvalBinding| (&eval.name, Some(&eval.tokens))),
                &path,
                || self.binding_repair(&path),
            )?;
        }
        for folder in files::list(&self.root.join("tokens"))? {
            found.note(verify_tokens(&folder, deep), &folder, || self.tokens_repair(&folder))?;
            found.checked += 1;
        }
        for folder in files::list(&self.root.join("objects"))? {
            found.note(self.verify_object(&folder, deep), &folder, || self.object_repair(&folder))?;
            found.checked += 1;
        }
        for path in self.stored("scores", "log")? {
            found.note(ScoreLog::open_one(&path).map(|_| ()), &path, || remove(&path))?;
            found.logs += 1;
        }
        if deep {
            self.verify_derived(&mut found)?;
        }
        Ok(found)
    }

    /// What methods worked out, answers, and states of unfinished training: all of it is made again when it is asked for.
    fn verify_derived(&self, found: &mut Verified) -> Result<()> {
        for path in self.stored(FITTED, "json")? {
            let tensors = path.with_extension("safetensors");
            let both =
                || if tensors.exists() { format!("{} '{}'", remove(&path), tensors.display()) } else { remove(&path) };
            found.note(self.verify_fitted(&stem(&path)), &path, both)?;
        }
        for path in self.stored(FITTED, "f32")? {
            let whole = TokenNll::read(&path)?.is_some();
            let outcome =
                if whole { Ok(()) } else { Err(Error::damaged(&path, "its bytes do not match its checksum")) };
            found.note(outcome, &path, || remove(&path))?;
        }
        for path in self.stored(ESTIMATES, "json")? {
            found.note(files::read_json::<serde_json::Value>(&path).map(|_| ()), &path, || remove(&path))?;
        }
        for path in self.stored("work", "seen")? {
            let both = || format!("{} '{}'", remove(&path), path.with_extension("state").display());
            found.note(files::read_json::<serde_json::Value>(&path).map(|_| ()), &path, both)?;
        }
        for path in self.stored("work", "state")? {
            found.note(State::load(&path, &self.layout).map(|_| ()), &path, || remove(&path))?;
        }
        Ok(())
    }

    fn verify_tokenizer(&self) -> Result<()> {
        let path = self.root.join(TOKENIZER);
        if Tokenizer::load(&path).is_ok_and(|tokenizer| tokenizer.hash() == self.settings.tokenizer) {
            return Ok(());
        }
        Err(Error::damaged(path, "it is not the tokenizer the pool was made with"))
    }

    /// A binding bears its own name and names tokens that are there.
    fn verify_binding<T: serde::de::DeserializeOwned>(
        &self,
        path: &Path,
        parts: impl Fn(&T) -> (&String, Option<&String>),
    ) -> Result<()> {
        let binding: T = files::read_json(path)?;
        let (name, tokens) = parts(&binding);
        if *name != stem(path) {
            return Err(Error::damaged(path, format!("it says it is '{name}'")));
        }
        match tokens.filter(|tokens| !self.root.join("tokens").join(tokens).is_dir()) {
            Some(tokens) => Err(Error::damaged(path, format!("its tokens '{tokens}' are missing"))),
            None => Ok(()),
        }
    }

    /// An object's manifest is about it, and its files are those the manifest tells of.
    fn verify_object(&self, folder: &Path, deep: bool) -> Result<()> {
        let path = folder.join(MANIFEST);
        let manifest: Manifest = files::read_json(&path).map_err(Error::missing_is_damage)?;
        if manifest.id != stem(folder) || manifest.recipe.id()? != manifest.id {
            return Err(Error::damaged(path, "it is about another object"));
        }
        let weights = folder.join(WEIGHTS);
        if let Some(difference) = self.layout.differences(&Self::checkpoint(folder)?.layout()).first() {
            return Err(Error::damaged(weights, difference.clone()));
        }
        if !deep {
            return Ok(());
        }
        verify_files(folder, &manifest)
    }

    /// The files of one kind in a folder of the pool.
    pub(super) fn stored(&self, folder: &str, kind: &str) -> Result<Vec<PathBuf>> {
        let mut paths = files::list(&self.root.join(folder))?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == kind));
        Ok(paths)
    }

    /// The bindings that can be read, as the words that made them: command, name, tokens and options.
    fn bindings(&self) -> Vec<(&'static str, String, String, String)> {
        let mut found = Vec::new();
        for path in self.stored("partitions", "json").unwrap_or_default() {
            if let Ok(Partition { name, tokens: Some(tokens), units, filtered, .. }) = files::read_json(&path) {
                let (command, options) = match filtered {
                    None if units.len() == 1 => ("register", String::new()),
                    None => ("register", format!(" --units {}", units.len())),
                    Some(from) => {
                        let targets = from.targets.join(" ");
                        let (source, keep, method) = (from.source, from.keep, from.method);
                        ("filter", format!("{source} --target {targets} --keep {keep} --method {method} --as {name}"))
                    }
                };
                found.push((command, name, tokens, options));
            }
        }
        for path in self.stored("evals", "json").unwrap_or_default() {
            if let Ok(EvalBinding { name, tokens, .. }) = files::read_json(&path) {
                found.push(("eval-set", name, tokens, String::new()));
            }
        }
        found
    }

    /// A token folder is made again by the command that registered it, or, when nothing names it, not needed.
    fn tokens_repair(&self, folder: &Path) -> String {
        let hash = stem(folder);
        if self.settings.seed.as_ref().is_some_and(|seed| seed.tokens == hash) {
            return self.program("init RECIPE.yaml");
        }
        let (text_files, field) = sources(folder);
        match self.bindings().into_iter().find(|(_, _, tokens, _)| *tokens == hash) {
            Some(("filter", _, _, options)) => self.program(&format!("filter {options}")),
            Some((command, name, _, options)) => {
                self.program(&format!("{command} {name} {text_files}{options}{field}"))
            }
            None => remove(folder),
        }
    }

    /// A binding is made again by the command that made it, as far as what is left of it tells.
    fn binding_repair(&self, path: &Path) -> String {
        let is_eval = path.parent().is_some_and(|folder| folder.ends_with("evals"));
        let left = damaged_json(path);
        let folder = self.root.join("tokens").join(left["tokens"].as_str().unwrap_or_default());
        let (text_files, field) = sources(&folder);
        let units = match left["units"].as_array().map_or(1, Vec::len) {
            1 => String::new(),
            units => format!(" --units {units}"),
        };
        let command = if is_eval { "eval-set" } else { "register" };
        format!("{} && {}", remove(path), self.program(&format!("{command} {} {text_files}{units}{field}", stem(path))))
    }

    /// An object is trained again; the same recipe gives the same bytes.
    fn object_repair(&self, folder: &Path) -> String {
        let id = stem(folder);
        if self.settings.origin.as_ref() == Some(&id) {
            return format!("{} && {}", remove(folder), self.program("init RECIPE.yaml"));
        }
        let is_seed = || self.seed_recipe()?.id().map(|seed| seed == id);
        let is_expert_of = |partition: &Partition| {
            let mut experts = (0..partition.units.len()).map(|unit| self.expert_id(partition, unit));
            experts.any(|expert| expert.is_ok_and(|expert| expert == id))
        };
        let again = |partition: Partition| match partition.adopted.len() {
            0 => format!("train {}", partition.name),
            models => format!("adopt {} {}", partition.name, vec!["FOLDER"; models].join(" ")),
        };
        let owner = || self.partitions().ok()?.into_values().find(is_expert_of).map(again);
        match if is_seed().unwrap_or(false) { Some("train seed".to_owned()) } else { owner() } {
            Some(command) => format!("{} && {}", remove(folder), self.program(&command)),
            None => remove(folder), // trained on a mixture: made again when it is asked for
        }
    }

    fn program(&self, line: &str) -> String {
        program(&self.root, line)
    }
}

/// Compares the files of an object with the hashes in its manifest.
///
/// # Errors
/// [`Error::Damaged`] naming the first that differs.
pub(super) fn verify_files(folder: &Path, manifest: &Manifest) -> Result<()> {
    let weights = folder.join(WEIGHTS);
    let expected = manifest.files.iter().map(|(name, hash)| (folder.join(name), hash));
    let single = weights.exists().then_some((weights, &manifest.weights)); // else shards or an adapter, among the files
    for (path, hash) in expected.chain(single) {
        if files::hash_file(&path).map_err(Error::missing_is_damage)? != *hash {
            let remedy = format!("delete '{}' and run 'mixpool train' again", folder.display());
            return Err(Error::damaged(path, format!("its bytes do not match its manifest; {remedy}")));
        }
    }
    Ok(())
}

fn verify_tokens(folder: &Path, deep: bool) -> Result<()> {
    let tokens = TokenFile::open(folder).map_err(Error::missing_is_damage)?;
    verify_ids(&tokens, folder, deep)
}

/// Tokens are those that their folder is named after; with `deep`, by every byte.
///
/// # Errors
/// [`Error::Damaged`] when they are not.
pub(super) fn verify_ids(tokens: &TokenFile, folder: &Path, deep: bool) -> Result<()> {
    if deep || tokens.manifest().hash != stem(folder) {
        tokens.verify(folder)?;
    }
    if tokens.manifest().hash != stem(folder) {
        return Err(Error::damaged(folder, "its manifest is about other tokens"));
    }
    Ok(())
}

/// The files that tokens came from and the options they were read with, as words of a command.
fn sources(folder: &Path) -> (String, String) {
    let manifest = damaged_json(&folder.join(MANIFEST));
    let paths = manifest["sources"].as_array().into_iter().flatten().filter_map(|path| path.as_str());
    let quoted: Vec<String> = paths.map(|path| format!("'{path}'")).collect();
    let files = if quoted.is_empty() { "FILE...".into() } else { quoted.join(" ") };
    (files, serde_json::from_value::<Reading>(manifest).unwrap_or_default().arguments())
}

/// What can still be read of a JSON file that need not be whole: good for advice, not for use.
pub(super) fn damaged_json(path: &Path) -> serde_json::Value {
    std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn program(root: &Path, line: &str) -> String {
    format!("mixpool --pool '{}' {line}", root.display())
}

fn remove(path: &Path) -> String {
    format!("rm -r '{}'", path.display())
}

pub(super) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
