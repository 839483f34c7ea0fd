//! Repair: what can be made again without the user is; what was damaged goes to `quarantine/`, and nothing is deleted.

use super::members::score_key;
use super::verify::{damaged_json, stem};
use super::{
    EvalBinding, MANIFEST, Manifest, POOL, Partition, Pool, QUARANTINE, Recipe, ScoreLog, ScoreRecord, TOKENIZER,
    Verified,
};
use crate::error::{Error, Result};
use crate::files;
use crate::mixture::{Mixture, Notation};
use crate::progress::Observer;
use crate::text::{Reading, TokenFile, Tokenizer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A damaged binding differs from what it was in at most as many bytes; two bindings differ in more.
const ALIKE: usize = 8;

impl Pool {
    /// Mends what can be mended without the user, and looks at everything again.
    ///
    /// Models are trained again by their recipes, tokens made again from the files they came from if these still give the
    /// same ones, score logs rid of what is damaged. Each is said in a line to the observer.
    ///
    /// # Errors
    /// [`Error::Stopped`] when asked to stop, [`Error::Io`]; a repair that fails is no error: its damage is left.
    pub fn repair(&self, deep: bool, observer: &dyn Observer) -> Result<Verified> {
        let mut found = self.verify(deep)?;
        if found.damages.is_empty() {
            return Ok(found);
        }
        let seed = self.seed_recipe().and_then(|recipe| recipe.id()).unwrap_or_default();
        // What others are made of first.
        let order = ["", "tokens", "partitions", "evals", "objects", "scores"];
        found.damages.sort_by_key(|damage| {
            let rank = order.iter().position(|kind| *kind == self.kind(&damage.place)).unwrap_or(order.len());
            (rank, stem(&damage.place) != seed)
        });
        for damage in &found.damages {
            observer.check()?;
            match self.mend(&damage.place, observer) {
                Ok(Some(line)) => observer.note(&line),
                Ok(None) => {}
                Err(error @ (Error::Stopped { .. } | Error::Io { .. })) => return Err(error),
                Err(error) => observer.note(&format!("'{}' cannot be mended: {error}", damage.place.display())),
            }
        }
        self.verify(deep)
    }

    /// The folder of the pool that something lies in; empty for the pool's own files.
    fn kind(&self, place: &Path) -> String {
        let folder = place.parent().and_then(|folder| folder.strip_prefix(&self.root).ok());
        folder.unwrap_or(Path::new("")).display().to_string()
    }

    /// Mends one thing; says what was done, or nothing when that takes the user.
    fn mend(&self, place: &Path, observer: &dyn Observer) -> Result<Option<String>> {
        let json = if place.is_dir() { place.join(MANIFEST) } else { place.to_path_buf() };
        if let Some(line) = mend_bit(&self.root, &json)? {
            return Ok(Some(line));
        }
        match self.kind(place).as_str() {
            "" => self.mend_tokenizer(place),
            "tokens" => self.mend_tokens(place, observer),
            "partitions" | "evals" => self.mend_binding(place),
            "objects" => self.mend_object(place, observer),
            "scores" => self.mend_log(place, observer),
            _ => self.set_aside(place), // made again when it is asked for
        }
    }

    /// As [`Pool::repair`] for the settings of a pool that cannot be opened; says what was done.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn repair_settings(root: &Path) -> Result<Option<String>> {
        mend_bit(root, &root.join(POOL))
    }

    /// Every object has a copy of the tokenizer.
    fn mend_tokenizer(&self, path: &Path) -> Result<Option<String>> {
        let copies = files::list(&self.root.join("objects"))?.into_iter().map(|folder| folder.join(TOKENIZER));
        let is_it = |path: &PathBuf| Tokenizer::load(path).is_ok_and(|copy| copy.hash() == self.settings.tokenizer);
        let Some(copy) = copies.filter(|path| path.exists()).find(is_it) else { return Ok(None) };
        let bytes = std::fs::read(&copy).map_err(Error::io("read", &copy))?;
        let aside = if path.exists() { Some(self.quarantine(path)?) } else { None };
        files::publish(path, &bytes)?;
        Ok(Some(told(path, aside.as_deref(), "copied from an object")))
    }

    /// The files that the tokens came from are read again.
    fn mend_tokens(&self, folder: &Path, observer: &dyn Observer) -> Result<Option<String>> {
        let hash = stem(folder);
        let manifest = damaged_json(&folder.join(MANIFEST));
        let texts: Vec<PathBuf> = manifest["sources"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|path| path.as_str().map(PathBuf::from))
            .collect();
        if texts.is_empty() || !texts.iter().all(|path| path.exists()) {
            return Ok(None);
        }
        let reading: Reading = serde_json::from_value(manifest).unwrap_or_default();
        let options = reading.options();
        let staged = self.tokenize(&texts, &options, observer)?;
        if staged.manifest().hash != hash {
            return Ok(None); // filtered, or the files have changed
        }
        let aside = self.quarantine(folder)?;
        staged.publish()?;
        Ok(Some(told(folder, Some(&aside), "made again from the files it came from")))
    }

    /// A binding is what the tokens it may name would be bound by, if just one of these is all but equal to what is left.
    fn mend_binding(&self, path: &Path) -> Result<Option<String>> {
        let left = std::fs::read(path).map_err(Error::io("read", path))?;
        let is_eval = self.kind(path) == "evals";
        let mut candidates: Vec<Vec<u8>> = Vec::new();
        for folder in files::list(&self.root.join("tokens"))? {
            let (name, tokens) = (stem(path), stem(&folder));
            if is_eval {
                candidates.push(files::to_sealed_json(&EvalBinding { name, tokens, bad_records: None })?);
                continue;
            }
            let Ok(file) = TokenFile::open(&folder) else { continue };
            for units in 1..=file.documents().len() {
                let units: Vec<_> = file.split(units)?.into_iter().map(|unit| (unit.start, unit.end)).collect();
                let (name, tokens) = (name.clone(), Some(tokens.clone()));
                let binding =
                    Partition { name, tokens, units, adopted: BTreeMap::new(), filtered: None, bad_records: None };
                let bytes = files::to_sealed_json(&binding)?;
                if bytes.len() > left.len() {
                    break; // more units make longer bindings
                }
                candidates.push(bytes);
            }
        }
        let is_alike = |bytes: &Vec<u8>| {
            let differing = bytes.iter().zip(&left).filter(|(new, left)| new != left).count();
            bytes.len() == left.len() && differing <= ALIKE
        };
        candidates.retain(is_alike);
        let [bytes] = candidates.as_slice() else { return Ok(None) };
        let aside = self.quarantine(path)?;
        files::publish(path, bytes)?;
        Ok(Some(told(path, Some(&aside), "bound again to the tokens that are all but named in it")))
    }

    /// An object is trained again.
    fn mend_object(&self, folder: &Path, observer: &dyn Observer) -> Result<Option<String>> {
        let Some((recipe, name)) = self.known_recipe(folder)? else { return Ok(None) };
        let aside = self.quarantine(folder)?;
        self.get_or_train(&recipe, &name, observer)?;
        Ok(Some(told(folder, Some(&aside), "trained again")))
    }

    /// What an object was trained by, as settings, bindings or what is left of it tell, and what progress calls it.
    fn known_recipe(&self, folder: &Path) -> Result<Option<(Recipe, String)>> {
        let id = stem(folder);
        let is_it = |recipe: &Recipe| recipe.id().is_ok_and(|other| other == id) && !recipe.data.is_empty();
        if let Some(recipe) = self.seed_recipe().ok().filter(is_it) {
            return Ok(Some((recipe, "seed model".into())));
        }
        for path in self.stored("partitions", "json")? {
            let Ok(partition) = files::read_json::<Partition>(&path) else { continue };
            for unit in (0..partition.units.len()).filter(|unit| !partition.adopted.contains_key(unit)) {
                if let Some(recipe) = self.expert_recipe(&partition, unit).ok().filter(is_it) {
                    return Ok(Some((recipe, format!("expert '{}' {}", partition.name, unit + 1))));
                }
            }
        }
        let manifest = files::read_json::<Manifest>(&folder.join(MANIFEST)).ok();
        Ok(manifest.map(|manifest| manifest.recipe).filter(is_it).map(|recipe| (recipe, format!("model {id:.12}"))))
    }

    /// The whole records of a log are kept; merges that can still be read in the damaged ones are scored again.
    fn mend_log(&self, path: &Path, observer: &dyn Observer) -> Result<Option<String>> {
        let aside = self.aside(path)?;
        let (kept, lost) = ScoreLog::salvage(path, &aside)?;
        let key = stem(path).split('.').next().unwrap_or_default().to_owned();
        let evals = self.eval_names()?.into_iter().filter(|name| self.eval_key(name).is_ok_and(|other| other == key));
        let names: Vec<String> = evals.take(1).collect();
        let mut again = 0;
        if !names.is_empty() {
            let mut scorer = self.scorer(&names)?;
            for record in &lost {
                let Some(members) = self.merge_of(record) else { continue };
                scorer.score_as(&members, &record.mixture, &record.estimator, observer)?;
                again += 1;
            }
        }
        let [kept, mended] = kept;
        let how = format!(
            "{kept} whole record(s) kept, {mended} mended by a bit, {again} scored again; what else was in the damaged part is scored when it is asked for"
        );
        Ok(Some(told(path, Some(&aside), &how)))
    }

    /// The members of the merge that a record, which need not be whole, says it is of; none when they do not give its key.
    fn merge_of(&self, record: &ScoreRecord) -> Option<Vec<super::Member>> {
        let mixture = Mixture::parse(&record.mixture, &self.unit_counts().ok()?, Notation::default()).ok()?;
        let members = self.experts().ok()?.members(&mixture).ok()?;
        (score_key(&members) == record.key).then_some(members)
    }

    /// Puts something aside that is made again when it is asked for, with what makes no sense without it.
    fn set_aside(&self, path: &Path) -> Result<Option<String>> {
        let aside = self.quarantine(path)?;
        for kind in ["safetensors", "state"] {
            let beside = path.with_extension(kind);
            if path.extension().is_some_and(|own| own != kind && own != "f32") && beside.exists() {
                self.quarantine(&beside)?;
            }
        }
        Ok(Some(told(path, Some(&aside), "it is made again when it is asked for")))
    }

    /// Moves something to the quarantine; returns where it is now.
    fn quarantine(&self, path: &Path) -> Result<PathBuf> {
        let aside = self.aside(path)?;
        std::fs::rename(path, &aside).map_err(Error::io("rename", path))?;
        for folder in [path, &aside].into_iter().filter_map(Path::parent) {
            files::sync_folder(folder)?;
        }
        Ok(aside)
    }

    fn aside(&self, path: &Path) -> Result<PathBuf> {
        aside(&self.root, path)
    }
}

/// Flips the one bit of a sealed file back that was flipped.
fn mend_bit(root: &Path, path: &Path) -> Result<Option<String>> {
    if path.extension().is_none_or(|kind| kind != "json" && kind != "seen") {
        return Ok(None);
    }
    let Some(bytes) = files::mended_json(path) else { return Ok(None) };
    let aside = aside(root, path)?;
    files::copy(path, &aside)?;
    files::publish(path, &bytes)?;
    Ok(Some(told(path, Some(&aside), "one bit was wrong, as its checksum tells")))
}

/// A name in the quarantine that is free: where the thing lay, its name, and a number when there was one before.
fn aside(root: &Path, path: &Path) -> Result<PathBuf> {
    let folder = root.join(QUARANTINE);
    files::create_folder(&folder)?;
    let place = path.strip_prefix(root).unwrap_or(path).display().to_string().replace('/', "-");
    let named = |number: u32| match number {
        0 => folder.join(&place),
        _ => folder.join(format!("{place}.{number}")),
    };
    let free = (0..u32::MAX).map(named).find(|path| !path.exists());
    free.ok_or_else(|| Error::Usage(format!("'{}' is full", folder.display())))
}

fn told(path: &Path, aside: Option<&Path>, how: &str) -> String {
    let kept = aside.map_or_else(String::new, |aside| format!(" (the damaged one is '{}')", aside.display()));
    format!("mended '{}': {how}{kept}", path.display())
}
