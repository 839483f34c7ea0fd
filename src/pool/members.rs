//! Members: the models that go into a merge, by what their weights are and not by what they are called.

use super::{MANIFEST, Manifest, Partition, Pool, Start, loading};
use crate::error::{Error, Result};
use crate::files;
use crate::mixture::Mixture;
use crate::model::{Checkpoint, LowRankUpdate};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How far experts may move from the seed model, as a relative update, for merges to be trusted: less is noise, and
/// the average of experts that moved further is worse than any of them.
pub const MERGEABLE: RangeInclusive<f64> = 0.02..=0.15;

/// A model as a member of a merge: the hash of its weights, its folder, its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// The hash of its weights that its manifest tells.
    pub weights: Arc<str>,
    /// The object's folder.
    pub folder: Arc<Path>,
    /// Its weight in the average.
    pub weight: f64,
}

/// The trained expert of every unit of every partition, as far as there is one.
pub struct Experts {
    units: BTreeMap<String, Vec<Option<Member>>>,
}

impl Experts {
    /// The expert models of a mixture, each with its weight.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the partitions whose experts are not trained yet.
    pub fn members(&self, mixture: &Mixture) -> Result<Vec<Member>> {
        let mut members = Vec::new();
        let mut missing = Vec::new();
        for (name, unit, weight) in mixture.members() {
            match self.units.get(name).and_then(|units| units.get(unit)?.clone()) {
                Some(expert) => members.push(Member { weight, ..expert }),
                None if missing.last() != Some(&name) => missing.push(name),
                None => {}
            }
        }
        if missing.is_empty() {
            return Ok(canonical(members));
        }
        let (names, list) = (missing.join("', '"), missing.join(" "));
        Err(Error::Usage(format!("no expert yet for '{names}'; run 'mixpool train {list}' first")))
    }
}

/// The parameters of members, by folder, mapped when they are first asked for; a map costs address space, not memory. The
/// adapters of one model share its maps.
#[derive(Default)]
pub struct Checkpoints(BTreeMap<PathBuf, Checkpoint>);

impl Checkpoints {
    /// The weight and the parameters of each member, in order.
    ///
    /// # Errors
    /// [`Error::Damaged`] when parameters are missing or not whole.
    pub fn of(&mut self, members: &[Member]) -> Result<Vec<(f64, &Checkpoint)>> {
        for member in members {
            self.open(&member.folder)?;
        }
        Ok(members.iter().filter_map(|member| Some((member.weight, self.0.get(&*member.folder)?))).collect())
    }

    pub(super) fn open(&mut self, folder: &Path) -> Result<Checkpoint> {
        if let Some(open) = self.0.get(folder) {
            return Ok(open.clone());
        }
        loading::object(folder)?;
        let checkpoint = if LowRankUpdate::is_in(folder) { self.adapted(folder)? } else { whole(folder)? };
        self.0.insert(folder.to_path_buf(), checkpoint.clone());
        Ok(checkpoint)
    }

    /// An adapter on top of its base.
    fn adapted(&mut self, folder: &Path) -> Result<Checkpoint> {
        let manifest: Manifest = files::read_json(&folder.join(MANIFEST))?;
        let Start::Adapter { base, .. } = &manifest.recipe.start else {
            return Err(Error::damaged(folder, "it is an adapter and does not say of what"));
        };
        let base = self.open(&folder.with_file_name(base))?;
        base.with_adapter(folder, manifest.recipe.model.tie_word_embeddings).map_err(|error| in_the_pool(folder, error))
    }
}

/// The weights of an object that is no adapter.
fn whole(folder: &Path) -> Result<Checkpoint> {
    Checkpoint::open(folder).map_err(|error| in_the_pool(folder, error))
}

/// What is wrong with the files of an object is damage, and training makes it again.
fn in_the_pool(folder: &Path, error: Error) -> Error {
    match error.missing_is_damage() {
        Error::Damaged { path, problem } => {
            let remedy = format!("delete '{}' and run 'mixpool train' again", folder.display());
            Error::Damaged { path, problem: format!("{problem}; {remedy}") }
        }
        other => other,
    }
}

impl Pool {
    /// Looks up the trained expert of every unit.
    pub fn experts(&self) -> Result<Experts> {
        let mut experts = Experts { units: BTreeMap::new() };
        for (name, partition) in self.partitions()? {
            let member = |manifest: Manifest| self.single(&manifest).remove(0);
            let units = self.unit_experts(&partition)?.into_iter().map(|manifest| manifest.map(member)).collect();
            experts.units.insert(name, units);
        }
        Ok(experts)
    }

    /// The name of the object that is the expert of a unit: the one adopted for it, or the one that training makes.
    ///
    /// # Errors
    /// [`Error::Usage`] when the unit has neither text nor an adopted expert.
    pub fn expert_id(&self, partition: &Partition, unit: usize) -> Result<String> {
        match partition.adopted.get(&unit) {
            Some(id) => Ok(id.clone()),
            None => self.expert_recipe(partition, unit)?.id(),
        }
    }

    /// The experts of a partition, by unit; none where one is not trained yet.
    pub fn unit_experts(&self, partition: &Partition) -> Result<Vec<Option<Manifest>>> {
        let expert = |unit| self.manifest(&self.expert_id(partition, unit)?);
        (0..partition.units.len()).map(expert).collect()
    }

    /// The trained experts of some partitions that moved less or more than [`MERGEABLE`], each as its partition and its
    /// relative update.
    pub fn unmergeable(&self, partitions: &[String]) -> Result<Vec<(String, f64)>> {
        let mut found = Vec::new();
        for name in partitions {
            for expert in self.unit_experts(&self.partition(name)?)?.into_iter().flatten() {
                let moved = expert.relative_update;
                found.extend(moved.filter(|moved| !MERGEABLE.contains(moved)).map(|moved| (name.clone(), moved)));
            }
        }
        Ok(found)
    }

    /// The seed model as a member of a merge.
    ///
    /// # Errors
    /// [`Error::Usage`] when it is not trained yet.
    pub fn seed_member(&self) -> Result<Member> {
        let manifest = self.manifest(&self.seed_recipe()?.id()?)?;
        let missing = || Error::Usage("the seed model is not trained yet; run 'mixpool train seed' first".into());
        Ok(self.single(&manifest.ok_or_else(missing)?).remove(0))
    }

    /// The member list of one trained object.
    pub fn single(&self, manifest: &Manifest) -> Vec<Member> {
        let folder = self.object_folder(&manifest.id).into();
        vec![Member { weights: manifest.weights.as_str().into(), folder, weight: 1.0 }]
    }
}

/// Sorts members by the hash of their weights and adds up the weights of equal ones, so that a merge and its key depend
/// on what is merged and not on names or order.
fn canonical(mut members: Vec<Member>) -> Vec<Member> {
    members.sort_by(|a, b| a.weights.cmp(&b.weights)); // stable: weights are added in the order of names
    members.dedup_by(|next, kept| {
        let is_same = next.weights == kept.weights;
        if is_same {
            kept.weight += next.weight;
        }
        is_same
    });
    members
}

/// The key of a score: hashes and exact weights of everything merged.
pub fn score_key(members: &[Member]) -> String {
    let mut inputs = String::from("weighted sum in f64 on cpu f32");
    for Member { weights, weight, .. } in members {
        let _ = write!(inputs, "\n{weights}:{:016x}", weight.to_bits()); // a String takes everything
    }
    files::hash(inputs.as_bytes())
}
