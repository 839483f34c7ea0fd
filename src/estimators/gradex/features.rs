//! Features: the meta-initialisation θ* and the projected gradients of sequences there, kept in the pool.

use super::super::{Cost, Question};
use crate::error::Result;
use crate::eval::Evaluator;
use crate::files;
use crate::kernels::{Floats, Projection};
use crate::mixture::{Mixture, Notation};
use crate::model::{Layout, Parameter};
use crate::pool::{Manifest, Partition, Pool};
use crate::rng::Stream;
use crate::text::{Batch, Batches, Share};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

/// Version of what is stored; raised when the same inputs would give other numbers.
const VERSION: u32 = 1;
/// Which repetition of the uniform mixture θ* is: none that a truth would be.
const REPEAT: u64 = 1 << 20;
/// The share of labels that are 1.
const POSITIVE: f64 = 0.7;

/// θ*: a model trained on all partitions, and the part of it that is moved.
pub(super) struct Meta {
    pub(super) manifest: Manifest,
    pub(super) parameters: Vec<f32>,
    pub(super) moved: Vec<Range<usize>>,
    /// ‖θ*‖ of the moved part.
    pub(super) norm: f64,
}

impl Meta {
    /// Trains θ* or reads it: the uniform mixture of all partitions, with the budget of a truth, its batches in an order
    /// that no truth has.
    pub(super) fn new(question: &Question<'_>) -> Result<Self> {
        let (pool, observer) = (question.pool, question.observer);
        pool.get_or_train(&pool.seed_recipe()?, "seed model", observer)?;
        let all = Mixture::parse("all", &pool.unit_counts()?, Notation::default())?;
        let recipe = pool.mixture_recipe(&all, question.tokens)?.repeated(REPEAT);
        let manifest = pool.get_or_train(&recipe, "meta-initialisation", observer)?;
        let parameters = Pool::checkpoint(&pool.object_folder(&manifest.id))?.read(pool.layout())?;
        let is_moved = |parameter: &&Parameter| parameter.decays() && !is_excluded(&parameter.name);
        let moved: Vec<_> = pool.layout().parameters().iter().filter(is_moved).map(Parameter::range).collect();
        let norm = length(moved.iter().flat_map(|range| &parameters[range.clone()]));
        Ok(Self { manifest, parameters, moved, norm })
    }

    /// Pᵀx of the moved part of a vector in the order of the layout.
    pub(super) fn project(&self, projection: Projection, x: &[f32]) -> Vec<f64> {
        let mut sums = vec![0.0; projection.columns()];
        self.moved.iter().for_each(|range| projection.project(range.start, &x[range.clone()], &mut sums));
        sums
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

/// Embeddings, the output matrix and norms are not moved, as in the authors' program.
fn is_excluded(name: &str) -> bool {
    name.contains("embed_tokens") || name.contains("lm_head") || name.contains("norm")
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
        let keyed = |(partition, unit)| (partition, unit, key(meta, partition, unit, projection, samples));
        let all: Vec<_> = all.map(keyed).collect();
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
    let settings = pool.settings();
    let tokens = pool.tokens(&partition.tokens)?;
    let (first, end) = partition.units[unit];
    let share = Share { tokens: &tokens, documents: first..end, weight: 1.0 };
    let train = &settings.expert;
    let mut batches = Batches::new(&[share], settings.prefix_token, train.sequence_length, train.seed)?;
    let blocks = batches.blocks(0);
    Ok(batches.next(samples.min(blocks)))
}

/// All that the features of a unit depend on.
fn key(meta: &Meta, partition: &Partition, unit: usize, projection: Projection, samples: usize) -> String {
    let ((first, end), train) = (partition.units[unit], &meta.manifest.recipe.train);
    format!(
        "gradex features version {VERSION} model {} tokens {} documents {first}..{end} sequences {samples} of {} seed {} \
         prefix {} projection {projection:?}",
        meta.manifest.weights,
        partition.tokens,
        train.sequence_length,
        train.seed - REPEAT,
        meta.manifest.recipe.prefix_token,
    )
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
    let evaluator = Evaluator::new(&pool.settings().model, pool.layout(), length)?;
    evaluator.set(|out| {
        out.copy_from_slice(&meta.parameters);
        Ok(())
    })?;
    let mut features = Vec::new();
    evaluator.log_odds_gradients(batch, length, |_, gradient| {
        features.extend(meta.project(projection, gradient).into_iter().map(|value| value as f32));
        Ok(())
    })?;
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
    let rows = stored.tensor(FEATURES).map_or(0, |values: Floats<'_>| values.len()) / columns;
    let values = stored.read(&layout(rows, columns))?;
    let mut stream = Stream::new(0, &format!("gradex labels {}", files::hash(key.as_bytes())));
    let sample = |row: &[f32]| {
        let label = stream.uniform() < POSITIVE;
        let sign = if label { 1.0 } else { -1.0 };
        Sample { feature: row.iter().map(|x| sign * f64::from(*x)).collect(), label }
    };
    Ok(values.chunks(columns).map(sample).collect())
}
