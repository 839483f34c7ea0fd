//! Features: the meta-initialisation θ* and the projected gradients of sequences there, kept in the pool.

use super::super::{Cost, Question};
use crate::error::Result;
use crate::files;
use crate::kernels::Projection;
use crate::mixture::{Mixture, Notation};
use crate::model::{Layout, Parameter};
use crate::pool::{Partition, Pool, Recipe};
use crate::rng::Stream;
use crate::text::Batch;
use crate::train::{AdapterTrainer, Adapters, State};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

/// Version of what is stored; raised when the same inputs would give other numbers.
const VERSION: u32 = 1;
/// Which repetition of the uniform mixture θ* is: none that a truth would be.
const REPEAT: u64 = 1 << 20;
/// The share of labels that are 1.
const POSITIVE: f64 = 0.7;

/// Seconds of training adapters between two stored states.
const SAVE_EVERY: f64 = 30.0;
/// s of adapters, the authors' α / rank for small models.
const ADAPTER_SCALE: f32 = 8.0;

/// θ*: a model trained on all partitions, and the part of it that is moved.
pub(super) struct Meta {
    /// Names θ* by its content.
    pub(super) id: String,
    /// What is moved, and what is not: the whole model, or its adapters.
    pub(super) parameters: Vec<f32>,
    pub(super) moved: Vec<Range<usize>>,
    /// ‖θ*‖ of the moved part.
    pub(super) norm: f64,
    pub(super) cost: Cost,
    adapted: Option<Adapted>,
}

/// A model under adapters.
struct Adapted {
    base: Vec<f32>,
    adapters: Adapters,
}

impl Meta {
    /// Trains θ* or reads it: on the uniform mixture of all partitions, with the budget of a truth, its batches in an order
    /// that no truth has. With a rank above 0 only adapters of that rank are trained, on the seed model.
    pub(super) fn new(question: &Question<'_>, rank: usize) -> Result<Self> {
        let (pool, observer) = (question.pool, question.observer);
        pool.get_or_train(&pool.seed_recipe()?, "seed model", observer)?;
        let all = Mixture::parse("all", &pool.unit_counts()?, Notation::default())?;
        let recipe = pool.mixture_recipe(&all, question.tokens)?.repeated(REPEAT);
        if rank > 0 {
            return Self::adapted(question, &recipe, rank);
        }
        let manifest = pool.get_or_train(&recipe, "meta-initialisation", observer)?;
        let parameters = Pool::checkpoint(&pool.object_folder(&manifest.id))?.read(pool.layout())?;
        let is_moved = |parameter: &&Parameter| parameter.decays() && !is_excluded(&parameter.name);
        let moved: Vec<_> = pool.layout().parameters().iter().filter(is_moved).map(Parameter::range).collect();
        let norm = length(moved.iter().flat_map(|range| &parameters[range.clone()]));
        let cost = Cost::of_training(&manifest);
        Ok(Self { id: manifest.weights, parameters, moved, norm, cost, adapted: None })
    }

    fn adapted(question: &Question<'_>, recipe: &Recipe, rank: usize) -> Result<Self> {
        let pool = question.pool;
        let adapters = Adapters::new(pool.layout(), rank, ADAPTER_SCALE)?;
        let seed = pool.seed_member()?;
        let base = Pool::checkpoint(&seed.folder)?.read(pool.layout())?;
        let key = format!("gradex adapters version {VERSION} rank {rank} recipe {}", recipe.id()?);
        let cost = pool.fitted(&key, || {
            let start = Instant::now();
            let id = files::hash(key.as_bytes());
            let values = train(question, recipe, &base, &adapters, &id)?;
            pool.store_tensors(&key, adapters.layout(), &values)?;
            pool.remove_state(&id)?;
            let train_tokens = recipe.train.steps * recipe.train.tokens_per_step();
            let flops = 6.0 * pool.layout().len() as f64 * train_tokens as f64;
            Ok(Cost { train_tokens, flops, seconds: start.elapsed().as_secs_f64() })
        })?;
        let parameters = pool.stored_tensors(&key)?.read(adapters.layout())?;
        let bytes: Vec<u8> = parameters.iter().flat_map(|value| value.to_le_bytes()).collect();
        let id = format!("{} and adapters {}", seed.weights, files::hash(&bytes));
        let everything = 0..parameters.len();
        let (moved, norm) = (Vec::from([everything]), length(parameters.iter()));
        Ok(Self { id, parameters, moved, norm, cost, adapted: Some(Adapted { base, adapters }) })
    }

    /// Whether adapters are moved and not the model.
    pub(super) fn is_adapted(&self) -> bool {
        self.adapted.is_some()
    }

    /// Writes the model whose moved and other parameters are `parameters` over `out`.
    pub(super) fn write(&self, parameters: &[f32], out: &mut [f32]) {
        match &self.adapted {
            None => out.copy_from_slice(parameters),
            Some(Adapted { base, adapters }) => adapters.merge(base, parameters, out),
        }
    }

    /// The gradient by θ*'s parameters, from that by the model's.
    pub(super) fn gradient<'g>(&self, whole: &'g [f32]) -> Cow<'g, [f32]> {
        let Some(Adapted { adapters, .. }) = &self.adapted else { return Cow::Borrowed(whole) };
        let mut own = vec![0.0; self.parameters.len()];
        adapters.gradient(&self.parameters, whole, &mut own);
        Cow::Owned(own)
    }

    /// Pᵀx of the moved part of a vector.
    pub(super) fn project(&self, projection: Projection, x: &[f32]) -> Vec<f64> {
        projection.project_ranges(&self.moved, x)
    }

    /// P w over the moved part, 0 elsewhere.
    pub(super) fn back_project(&self, projection: Projection, w: &[f64]) -> Vec<f32> {
        let mut way = vec![0.0; self.parameters.len()];
        self.moved.iter().for_each(|range| projection.back_project(w, range.start, &mut way[range.clone()]));
        way
    }

    /// Values that are moved.
    pub(super) fn n_moved(&self) -> usize {
        self.moved.iter().map(ExactSizeIterator::len).sum()
    }
}

/// Trains adapters by a recipe, from where the training called `id` was stopped.
fn train(question: &Question<'_>, recipe: &Recipe, base: &[f32], adapters: &Adapters, id: &str) -> Result<Vec<f32>> {
    let (pool, train) = (question.pool, &recipe.train);
    let (compute, recomputes) = pool.differentiating(train.micro_batch_size * train.sequence_length)?;
    let mut batches = pool.batches(recipe)?;
    let path = pool.state_path(id);
    let fresh = || State::fresh(adapters.initial_values(train.seed));
    let state = State::load(&path, adapters.layout())?.unwrap_or_else(fresh);
    let trainer = AdapterTrainer::on(&compute, &recipe.model, pool.layout(), train, base, adapters, state)?;
    let trainer = trainer.recomputing(recomputes);
    let save = |state: &State| state.save(&path);
    trainer.run(&mut batches, "adapters of all partitions", question.observer, SAVE_EVERY, save)
}

/// Embeddings, the output matrix and norms are not moved, as in the authors' program.
fn is_excluded(name: &str) -> bool {
    ["embed_tokens", "lm_head", "norm", "wte", "wpe", "embed_in", "embed_out"].iter().any(|part| name.contains(part))
}

/// √Σ x² in f64.
pub(super) fn length<'a>(values: impl Iterator<Item = &'a f32>) -> f64 {
    values.map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// What is known of one sequence: its signed feature and its label.
pub(super) struct Sample {
    pub(super) feature: Vec<f64>,
    pub(super) label: bool,
}

/// The samples of one unit.
pub(super) struct Unit {
    /// Names all that they depend on.
    pub(super) key: String,
    pub(super) samples: Vec<Sample>,
}

/// The samples of every unit, by partition.
pub(super) struct Features {
    pub(super) units: BTreeMap<String, Vec<Unit>>,
    pub(super) cost: Cost,
}

impl Features {
    /// Collects the features of `samples` sequences of every unit, or reads them; what is finished stays.
    pub(super) fn new(question: &Question<'_>, meta: &Meta, projection: Projection, samples: usize) -> Result<Self> {
        let (pool, observer) = (question.pool, question.observer);
        let partitions = pool.partitions()?;
        let all =
            partitions.values().flat_map(|partition| (0..partition.units.len()).map(move |unit| (partition, unit)));
        let keyed = |(partition, unit)| Ok((partition, unit, key(pool, meta, partition, unit, projection, samples)?));
        let all = all.map(keyed).collect::<Result<Vec<_>>>()?;
        let missing = all.iter().filter(|(_, _, key)| !pool.is_fitted(key)).count() as u64;
        if missing > 0 {
            observer.begin("collect gradients", missing, "units");
        }
        let (mut units, mut cost, mut done) = (BTreeMap::<String, Vec<Unit>>::new(), Cost::default(), 0);
        for (partition, unit, key) in all {
            cost += pool.fitted(&key, || {
                observer.check()?;
                let cost = measure(pool, meta, &sequences(pool, partition, unit, samples)?, projection, &key)?;
                done += 1;
                observer.advance(done, "");
                Ok(cost)
            })?;
            let samples = read(pool, &key, projection.columns())?;
            units.entry(partition.name.clone()).or_default().push(Unit { key, samples });
        }
        if missing > 0 {
            observer.finish();
        }
        Ok(Self { units, cost })
    }
}

/// The first sequences that training on a unit would take, none twice.
pub(super) fn sequences(pool: &Pool, partition: &Partition, unit: usize, samples: usize) -> Result<Batch> {
    let mut batches = pool.batches(&pool.expert_recipe(partition, unit)?)?;
    let blocks = batches.blocks(0);
    Ok(batches.next(samples.min(blocks)))
}

/// All that the features of a unit depend on.
fn key(
    pool: &Pool,
    meta: &Meta,
    partition: &Partition,
    unit: usize,
    projection: Projection,
    samples: usize,
) -> Result<String> {
    let ((first, end), settings) = (partition.units[unit], pool.settings());
    let (train, prefix) = (&settings.expert, settings.prefix_token);
    Ok(format!(
        "gradex features version {VERSION} model {} tokens {} documents {first}..{end} sequences {samples} of {} seed {} \
         prefix {prefix} projection {projection:?}",
        meta.id,
        partition.text()?,
        train.sequence_length,
        train.seed,
    ))
}

/// Features as they are stored: a matrix, a row a sequence.
fn layout(rows: usize, columns: usize) -> Layout {
    Layout::from_shapes([(FEATURES.to_owned(), vec![rows, columns])].into())
}

const FEATURES: &str = "features";

/// Computes and stores the features of one unit; returns what it took.
fn measure(pool: &Pool, meta: &Meta, batch: &Batch, projection: Projection, key: &str) -> Result<Cost> {
    let start = Instant::now();
    let length = pool.settings().expert.sequence_length;
    let evaluator = pool.differentiator(length, length)?;
    evaluator.set(|out| {
        meta.write(&meta.parameters, out);
        Ok(())
    })?;
    let mut projected = Vec::new();
    if meta.is_adapted() {
        evaluator.log_odds_gradients(batch, length, |_, gradient| {
            projected.push(meta.project(projection, &meta.gradient(gradient)));
            Ok(())
        })?;
    } else {
        projected = evaluator.projected_log_odds_gradients(batch, length, projection, &meta.moved)?;
    }
    let features: Vec<f32> = projected.into_iter().flatten().map(|value| value as f32).collect();
    let rows = features.len() / projection.columns();
    pool.store_tensors(key, &layout(rows, projection.columns()), &features)?;
    let passes = 6.0 * pool.layout().len() as f64 * batch.inputs.len() as f64;
    let projections = 2.0 * (meta.n_moved() * projection.columns() * rows) as f64;
    Ok(Cost { flops: passes + projections, ..Cost::of_seconds(start.elapsed().as_secs_f64()) })
}

/// Reads the features of one unit and draws their labels, which depend on nothing but the unit and the sequence: y = 1 with
/// probability 0.7, and a feature of y = 0 has its sign flipped.
fn read(pool: &Pool, key: &str, columns: usize) -> Result<Vec<Sample>> {
    let stored = pool.stored_tensors(key)?;
    let rows = stored.shape(FEATURES).map_or(0, |shape| shape[0]);
    let values = stored.read(&layout(rows, columns))?;
    let mut stream = Stream::new(0, &format!("gradex labels {}", files::hash(key.as_bytes())));
    let sample = |row: &[f32]| {
        let label = stream.uniform() < POSITIVE;
        let sign = if label { 1.0 } else { -1.0 };
        Sample { feature: row.iter().map(|x| sign * f64::from(*x)).collect(), label }
    };
    Ok(values.chunks(columns).map(sample).collect())
}
