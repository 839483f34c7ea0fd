//! Adopt: models trained elsewhere, made part of the pool as its origin or as the experts of a partition.

use super::foreign::Foreign;
use super::training::WEIGHTS;
use super::{MANIFEST, Manifest, Outcome, Partition, Pool, Recipe, Start};
use crate::error::{Error, Result};
use crate::files;
use crate::mixture::check_name;
use crate::model::{Checkpoint, Layout};
use crate::progress::Observer;
use crate::train::TrainConfig;
use std::collections::BTreeMap;
use std::path::PathBuf;

impl Pool {
    /// Makes models from elsewhere the experts of a partition, one per unit: a registered one whose experts are not trained
    /// yet, or a new one without text. Model folders are copied whole, adapters as adapters.
    ///
    /// All models are compared with the seed model before any is kept. Adopting the same again changes nothing.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with every difference of every model; [`Error::Input`] when a file is not what it should be;
    /// [`Error::Usage`] when there is no seed model yet, or the partition has experts or another number of units.
    pub fn adopt(&self, name: &str, folders: &[PathBuf], observer: &dyn Observer) -> Result<(Partition, Outcome)> {
        check_name(name)?;
        let before: Option<Partition> = self.bound("partitions", name)?;
        if let Some(partition) = &before {
            self.refuse_taken(partition, folders.len())?;
        }
        let base_id = self.seed_recipe()?.id()?;
        let seed = self.seed_member()?;
        let base = Self::checkpoint(&seed.folder)?;
        let tied = self.settings.model.tie_word_embeddings;
        let (mut models, mut differences) = (Vec::new(), Vec::new());
        for folder in folders {
            observer.check()?;
            let foreign = Foreign::copy(&self.root, folder, Some((&base, tied)))?;
            let place = |difference| format!("'{}': {difference}", folder.display());
            differences.extend(foreign.differences(self)?.into_iter().map(place));
            models.push(foreign);
        }
        if !differences.is_empty() {
            let what = format!("'{name}' cannot be averaged with the pool's models");
            return Err(Error::Mismatch { what, differences: differences.join("; ") });
        }
        let _naming = self.naming()?;
        let mut adopted = BTreeMap::new();
        for (unit, model) in models.into_iter().enumerate() {
            note_type(&model, &base, observer);
            let hash = model.hash.clone();
            let (start, weights) = if model.is_adapter() {
                let weights = files::hash(format!("low-rank update {hash} of {}", seed.weights).as_bytes());
                (Start::Adapter { base: base_id.clone(), weights: hash }, Some(weights))
            } else {
                (Start::Imported(hash), None)
            };
            adopted.insert(unit, self.publish_foreign(model, &self.untrained(start), weights, Some(&base))?.id);
        }
        let units = vec![(0, 0); folders.len()];
        let new = Partition {
            name: name.to_owned(),
            tokens: None,
            units,
            adopted: BTreeMap::new(),
            filtered: None,
            bad_records: None,
        };
        let partition = Partition { adopted, ..before.clone().unwrap_or(new) };
        let outcome = self.bind("partitions", name, &partition, before.as_ref(), None)?;
        Ok((partition, outcome))
    }

    /// Refuses to adopt for a partition of another number of units, or with experts of its own.
    fn refuse_taken(&self, partition: &Partition, models: usize) -> Result<()> {
        let (name, units) = (&partition.name, partition.units.len());
        if units != models {
            return Err(Error::Usage(format!(
                "'{name}' has {units} unit(s), {models} model(s) were given; give one each"
            )));
        }
        let trained = || self.unit_experts(partition).map(|experts| experts.iter().any(Option::is_some));
        if partition.adopted.is_empty() && trained()? {
            return Err(Error::Usage(format!("the experts of '{name}' are trained already; adopt under another name")));
        }
        Ok(())
    }

    /// The recipe of a model that is not trained here.
    fn untrained(&self, start: Start) -> Recipe {
        self.recipe(start, Vec::new(), TrainConfig::new(0, 1, 1, 0.0))
    }

    /// The recipe of the pool's origin.
    pub(super) fn import_recipe(&self, origin: &Foreign) -> Recipe {
        self.untrained(Start::Imported(origin.hash.clone()))
    }

    /// Makes a copied model the pool's origin.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when its tensors are not those its `config.json` calls for.
    pub(super) fn import(&self, origin: Foreign) -> Result<()> {
        origin.check(&self.layout)?;
        let recipe = self.import_recipe(&origin);
        self.publish_foreign(origin, &recipe, None, None).map(|_| ())
    }

    /// Publishes a copied model as the object of `recipe`, unless it is there. `weights` names those of an adapter.
    fn publish_foreign(
        &self,
        model: Foreign,
        recipe: &Recipe,
        weights: Option<String>,
        seed: Option<&Checkpoint>,
    ) -> Result<Manifest> {
        let id = recipe.id()?;
        if let Some(manifest) = self.manifest(&id)? {
            return Ok(manifest);
        }
        let folder = self.object_folder(&id);
        files::remove_folder(&folder)?; // without a manifest: published whole, damaged since
        let Foreign { staging, checkpoint, .. } = model;
        self.copy_tokenizer(&staging)?;
        let mut files = staging.hashes()?;
        let whole = files.remove(WEIGHTS);
        let manifest = Manifest {
            id,
            weights: weights.or(whole).unwrap_or_default(),
            recipe: recipe.clone(),
            n_parameters: self.layout.len() as u64,
            n_tokens: 0,
            final_loss: None,
            relative_update: seed.map(|seed| relative_update(&self.layout, seed, &checkpoint)),
            seconds: 0.0,
            created_by: format!("mixpool {}", env!("CARGO_PKG_VERSION")),
            files,
            online: None,
        };
        staging.write(MANIFEST, &files::to_sealed_json(&manifest)?)?;
        staging.publish(&folder)?;
        Ok(manifest)
    }
}

/// Σ|θ − θ₀| / Σ(|θ| + |θ₀|) of two models in files, one tensor in memory at a time.
fn relative_update(layout: &Layout, seed: &Checkpoint, model: &Checkpoint) -> f64 {
    let (mut moved, mut size) = (0.0, 0.0);
    for parameter in layout.parameters() {
        let [old, new] = [seed, model].map(|model| model.values(&parameter.name).unwrap_or_default());
        for (old, new) in old.into_iter().zip(new) {
            moved += (f64::from(new) - f64::from(old)).abs();
            size += f64::from(new).abs() + f64::from(old).abs();
        }
    }
    moved / size
}

/// Says when a model's numbers are of another type than the seed's: sums are taken of both as they are.
fn note_type(model: &Foreign, seed: &Checkpoint, observer: &dyn Observer) {
    let name = |checkpoint: &Checkpoint| checkpoint.dtype().map_or("mixed", |dtype| dtype.name());
    let (ours, theirs) = (name(seed), name(&model.checkpoint));
    if ours != theirs {
        let folder = model.source.display();
        observer.note(&format!("'{folder}' is {theirs}, the seed model {ours}; both are read as they are"));
    }
}
