//! Training in the pool: the object of a recipe, trained first when it is missing.

use super::device_memory::Passage;
use super::settings::SeedTraining;
use super::{DataShare, MANIFEST, Manifest, OnlineCost, Partition, Pool, Recipe, Start, TOKENIZER};
use crate::error::{Error, Result};
use crate::files::{self, Staging};
use crate::kernels::Compute;
use crate::mixture::Mixture;
use crate::model::{FloatType, write_description, write_tensors_as};
use crate::progress::Observer;
use crate::text::{Batches, Share, TokenFile};
use crate::train::{CurvePoint, State, TrainConfig, Trainer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// File name of an object's parameters.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// Seconds of training between two stored states.
pub(super) const SAVE_EVERY: f64 = 30.0;

impl Pool {
    /// The recipe of the seed model.
    pub fn seed_recipe(&self) -> Result<Recipe> {
        let origin = self.settings.origin.clone();
        if let Some(SeedTraining { tokens, train }) = self.settings.seed.clone() {
            let documents = (0, self.tokens(&tokens)?.documents().len());
            let data = vec![DataShare { tokens, documents, weight: 1.0 }];
            return Ok(self.recipe(origin.map_or(Start::Scratch, Start::Object), data, train));
        }
        let imported = origin.map(|id| self.manifest(&id)).transpose()?.flatten();
        let missing =
            || Error::damaged(self.root.join("objects"), "the imported model is gone; run 'mixpool init' again");
        Ok(imported.ok_or_else(missing)?.recipe)
    }

    /// The recipe of the expert of one unit.
    pub fn expert_recipe(&self, partition: &Partition, unit: usize) -> Result<Recipe> {
        let tokens = partition.text()?.to_owned();
        let data = vec![DataShare { tokens, documents: partition.units[unit], weight: 1.0 }];
        let steps = self.unit_steps(&data[0])?;
        let train = TrainConfig { steps, ..self.settings.expert.clone() };
        Ok(self.recipe(Start::Object(self.seed_recipe()?.id()?), data, train))
    }

    /// The recipe of a model really trained on a mixture.
    ///
    /// Every unit contributes as many steps as its expert was trained for, so candidates of more units see more tokens
    /// (as in Na et al. 2024), unless `tokens` sets a budget.
    pub fn mixture_recipe(&self, mixture: &Mixture, tokens: Option<u64>) -> Result<Recipe> {
        let mut data = Vec::new();
        let mut steps = 0;
        for (name, unit, weight) in mixture.members() {
            let partition = self.partition(name)?;
            let tokens = partition.text()?.to_owned();
            let share = DataShare { tokens, documents: partition.units[unit], weight };
            steps += self.unit_steps(&share)?;
            data.push(share);
        }
        if let Some(tokens) = tokens {
            steps = self.settings.expert.steps_for(tokens);
        }
        let train = TrainConfig { steps, ..self.settings.expert.clone() };
        Ok(self.recipe(Start::Object(self.seed_recipe()?.id()?), data, train))
    }

    pub(super) fn recipe(&self, start: Start, data: Vec<DataShare>, train: TrainConfig) -> Recipe {
        let super::Settings { model, tokenizer, prefix_token, .. } = self.settings.clone();
        Recipe { version: Recipe::VERSION, model, tokenizer, prefix_token, start, data, train, online: None }.sorted()
    }

    /// Steps of an expert on this unit: as set, or one pass over the unit.
    pub(super) fn unit_steps(&self, share: &DataShare) -> Result<u64> {
        let expert = &self.settings.expert;
        if expert.steps > 0 {
            return Ok(expert.steps);
        }
        let tokens = self.tokens(&share.tokens)?;
        let (first, end) = share.documents;
        // The first token of the stream is never predicted.
        let sequences = tokens.stream_length(first..end).saturating_sub(1) / expert.sequence_length as u64;
        Ok((sequences / expert.batch_size as u64).max(1))
    }

    /// The object of a recipe; trained now when it does not exist yet. `name` is what progress calls it.
    ///
    /// Training is claimed, so that several processes never train one recipe twice; an unfinished run goes on where its
    /// last state was stored.
    ///
    /// # Errors
    /// Those of training; [`Error::Locked`] when another process is training this recipe.
    pub fn get_or_train(&self, recipe: &Recipe, name: &str, observer: &dyn Observer) -> Result<Manifest> {
        let id = recipe.id()?;
        if let Some(manifest) = self.manifest(&id)? {
            self.remove_state(&id)?; // left by a process that was killed when it was done
            return Ok(manifest);
        }
        recipe.model.check_runs()?;
        let claim = self.claim(&id, name)?;
        if let Some(manifest) = self.manifest(&id)? {
            return Ok(manifest); // finished by another process while we waited for the claim
        }
        self.refuse_impossible_training(&recipe.train)?;
        let started = Instant::now();
        let origin = self.origin(recipe)?;
        let state_path = self.state_path(&id);
        let load = || -> Result<State> {
            let stored = State::load(&state_path, &self.layout)?;
            Ok(stored.unwrap_or_else(|| State::fresh(self.fresh_values(recipe, origin.clone()))))
        };
        let save = |state: &State| claim.check().and_then(|()| state.save(&state_path));
        let state = match &recipe.online {
            Some(online) => self.train_online(recipe, online, load, (name, observer), save)?,
            None => self.train_mixed(recipe, load, (name, observer), save)?,
        };
        let like = self.origin_folder();
        let start = (origin.as_deref(), like.as_deref());
        let manifest = self.publish(&id, recipe, &state, start, started.elapsed().as_secs_f64())?;
        self.remove_state(&id)?;
        Ok(manifest)
    }

    /// Trains on units that take turns, from the state that `load` gives to the end; where a device runs out of memory, again from
    /// there with fewer sequences at a time, which changes the order of additions only.
    fn train_mixed(
        &self,
        recipe: &Recipe,
        load: impl Fn() -> Result<State>,
        (name, observer): (&str, &dyn Observer),
        mut save: impl FnMut(&State) -> Result<()>,
    ) -> Result<State> {
        let compute = self.training_device(recipe.train.precision)?;
        self.train_as_fits(&compute, &recipe.train, 0, (name, observer), |train, recomputes| {
            let mut batches = self.batches(recipe)?;
            let trainer = Trainer::on(&compute, &recipe.model, &self.layout, train, load()?)?;
            let mut trainer = trainer.recomputing(recomputes);
            trainer.run(&mut batches, name, observer, SAVE_EVERY, &mut save)?;
            trainer.state()
        })
    }

    /// Runs a training with the micro-batch that fits the device, and whether to compute activations again there; with less where the
    /// device runs out of memory. `beside` as for [`Pool::fitting_passage`].
    pub(super) fn train_as_fits<T>(
        &self,
        compute: &Compute,
        train: &TrainConfig,
        beside: u64,
        (name, observer): (&str, &dyn Observer),
        mut run: impl FnMut(&TrainConfig, bool) -> Result<T>,
    ) -> Result<T> {
        let run = |Passage { micro_batch, recomputes }| {
            run(&TrainConfig { micro_batch_size: micro_batch, ..train.clone() }, recomputes)
        };
        let first = self.fitting_passage(compute, train, beside)?;
        in_smaller_passages(
            train.micro_batch_size.min(train.batch_size),
            first,
            run,
            |Passage { micro_batch, recomputes }| {
                let again = if recomputes { ", activations being computed again in the backward pass" } else { "" };
                observer.note(&format!(
                    "{name}: {micro_batch} sequences at a time fit '{}'{again}; the result is the same up to rounding",
                    compute.name()
                ));
            },
        )
    }

    /// The parameters training starts from; none for a start from scratch.
    fn origin(&self, recipe: &Recipe) -> Result<Option<Vec<f32>>> {
        match &recipe.start {
            Start::Scratch | Start::Imported(_) | Start::Adapter { .. } => Ok(None),
            Start::Object(id) => Self::checkpoint(&self.object_folder(id))?.read(&self.layout).map(Some),
        }
    }

    /// The parameters before the first step.
    pub(super) fn start_values(&self, recipe: &Recipe) -> Result<Vec<f32>> {
        Ok(self.fresh_values(recipe, self.origin(recipe)?))
    }

    fn fresh_values(&self, recipe: &Recipe, origin: Option<Vec<f32>>) -> Vec<f32> {
        origin.unwrap_or_else(|| self.layout.initial_values(&recipe.model, recipe.train.seed))
    }

    /// The sequences of a recipe's training, from the first one on.
    pub fn batches(&self, recipe: &Recipe) -> Result<Batches> {
        self.batches_of(&recipe.data, recipe, recipe.train.seed)
    }

    /// Sequences of some data, cut as a recipe's are and in an order of their own.
    pub(super) fn batches_of(&self, data: &[DataShare], recipe: &Recipe, seed: u64) -> Result<Batches> {
        let files = data.iter().map(|share| Ok((share.tokens.clone(), self.tokens(&share.tokens)?)));
        let files: BTreeMap<String, TokenFile> = files.collect::<Result<_>>()?;
        let shares = data.iter().map(|share| Share {
            tokens: &files[&share.tokens],
            documents: share.documents.0..share.documents.1,
            weight: share.weight,
        });
        let shares: Vec<Share<'_>> = shares.collect();
        Batches::new(&shares, recipe.prefix_token, recipe.train.sequence_length, seed)
    }

    /// Writes the object: a Hugging Face folder, the loss curve and the manifest, visible all at once. Training started from
    /// `origin`; what is said of the model beside its weights is taken over from the folder `like`.
    fn publish(
        &self,
        id: &str,
        recipe: &Recipe,
        state: &State,
        (origin, like): (Option<&[f32]>, Option<&Path>),
        seconds: f64,
    ) -> Result<Manifest> {
        if let Some(index) = state.parameters.iter().position(|value| !value.is_finite()) {
            let name = self.layout.owner(index).map_or("(unknown)", |parameter| &parameter.name);
            let place = format!("after step {} of object {id}", state.step);
            return Err(Error::NotFinite { what: format!("tensor '{name}'"), place });
        }
        let folder = self.object_folder(id);
        if !folder.join(MANIFEST).exists() {
            files::remove_folder(&folder)?; // published whole, damaged since
        }
        let staging = Staging::new(&folder)?;
        self.write_model(&staging, FloatType::Float32, &state.parameters, like)?;
        staging.write("curve.csv", curve_csv(&state.curve).as_bytes())?;
        if let Some(progress) = &state.online {
            self.write_progress(&staging, recipe, progress)?;
        }
        let mut files = staging.hashes()?;
        let manifest = Manifest {
            id: id.to_owned(),
            weights: files.remove(WEIGHTS).unwrap_or_default(),
            recipe: recipe.clone(),
            n_parameters: self.layout.len() as u64,
            n_tokens: recipe.train.steps * recipe.train.tokens_per_step(),
            final_loss: state.curve.last().map(|point| point.loss),
            relative_update: origin.map(|origin| relative_update(origin, &state.parameters)),
            seconds: state.online.as_ref().map_or(seconds, |progress| progress.seconds),
            created_by: format!("mixpool {}", env!("CARGO_PKG_VERSION")),
            files,
            online: state.online.as_ref().map(|progress| OnlineCost {
                gradient_tokens: progress.gradient_tokens,
                gradient_seconds: progress.gradient_seconds,
            }),
        };
        staging.write(MANIFEST, &files::to_sealed_json(&manifest)?)?;
        staging.publish(&folder)?;
        Ok(manifest)
    }

    /// Writes a model of the pool as a Hugging Face folder: config, weights in the order of the layout, tokenizer. Ids of special
    /// tokens and the like are taken over from the folder `like`.
    pub(crate) fn write_model(
        &self,
        staging: &Staging,
        dtype: FloatType,
        values: &[f32],
        like: Option<&Path>,
    ) -> Result<()> {
        write_description(&staging.file("."), &self.settings.model, dtype, like)?;
        write_tensors_as(dtype, &staging.file(WEIGHTS), &self.layout, values)?;
        self.copy_tokenizer(staging)
    }

    /// Puts the pool's tokenizer beside a model.
    pub(super) fn copy_tokenizer(&self, staging: &Staging) -> Result<()> {
        let path = self.root.join(TOKENIZER);
        staging.write(TOKENIZER, &std::fs::read(&path).map_err(Error::io("read", &path))?)
    }

    /// The folder of the model from elsewhere that the pool starts from.
    pub(crate) fn origin_folder(&self) -> Option<PathBuf> {
        self.settings.origin.as_deref().map(|id| self.object_folder(id))
    }

    pub(crate) fn state_path(&self, id: &str) -> PathBuf {
        self.root.join("work").join(format!("{id}.state"))
    }

    /// Drops the state of a training that is finished.
    pub(crate) fn remove_state(&self, id: &str) -> Result<()> {
        remove_if_there(&self.state_path(id))
    }
}

/// Runs as said, and with less as long as a device has no room for it. `less` is told of what is below `asked` sequences at a time
/// with all activations kept.
fn in_smaller_passages<T>(
    asked: usize,
    mut passage: Passage,
    mut run: impl FnMut(Passage) -> Result<T>,
    less: impl Fn(Passage),
) -> Result<T> {
    loop {
        if passage.micro_batch < asked || passage.recomputes {
            less(passage);
        }
        match run(passage) {
            Err(error) if error.is_out_of_memory() => match passage.smaller() {
                Some(smaller) => passage = smaller,
                None => break,
            },
            done => return done,
        }
    }
    let remedy = "end what else runs on the GPU, take a smaller model or 'sequence_length', or use --device cpu";
    Err(Error::OutOfMemory(format!("the GPU has no room to train one sequence at a time; {remedy}")))
}

/// Σ|θ − θ₀| / Σ(|θ| + |θ₀|): 0 when nothing moved, 1 when nothing is left.
fn relative_update(origin: &[f32], parameters: &[f32]) -> f64 {
    let (mut moved, mut size) = (0.0, 0.0);
    for (old, new) in origin.iter().zip(parameters) {
        let (old, new) = (f64::from(*old), f64::from(*new));
        moved += (new - old).abs();
        size += new.abs() + old.abs();
    }
    moved / size
}

fn curve_csv(curve: &[CurvePoint]) -> String {
    let mut csv = String::from("step,tokens,loss,gradient_norm,learning_rate\n");
    for CurvePoint { step, tokens, loss, gradient_norm, learning_rate } in curve {
        csv.push_str(&format!("{step},{tokens},{loss},{gradient_norm},{learning_rate}\n"));
    }
    csv
}

pub(super) fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn what_does_not_fit_is_tried_in_halves() {
        let full = || Error::Tensor(candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY)".into()));
        let told = RefCell::new(Vec::new());
        // What a sequence takes is 2, and 1 when its activations are computed again.
        let takes = |passage: Passage| passage.micro_batch * if passage.recomputes { 1 } else { 2 };
        let fits_at_most =
            |limit: usize| move |passage: Passage| if takes(passage) > limit { Err(full()) } else { Ok(()) };
        let tell = |passage: Passage| told.borrow_mut().push((passage.micro_batch, passage.recomputes));
        let run = |size, limit| {
            told.borrow_mut().clear();
            in_smaller_passages(size, Passage { micro_batch: size, recomputes: false }, fits_at_most(limit), tell)
        };
        run(16, 32).unwrap();
        assert!(told.borrow().is_empty());
        run(12, 6).unwrap();
        assert_eq!(*told.borrow(), [(6, false), (3, false)]);
        run(2, 1).unwrap();
        assert_eq!(*told.borrow(), [(1, false), (1, true)]);
        let said = run(2, 0).unwrap_err();
        assert!(matches!(said, Error::OutOfMemory(_)), "{said}");
        let other = |_: Passage| -> Result<()> { Err(Error::Usage("another".into())) };
        let whole = Passage { micro_batch: 8, recomputes: false };
        assert!(matches!(in_smaller_passages(8, whole, other, tell).unwrap_err(), Error::Usage(_)));
    }
}
