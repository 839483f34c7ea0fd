//! Warm-up: the run that `LESS` takes its checkpoints from, each with the optimiser's moments.
//!
//! It is the run on all partitions in equal parts, without those that were filtered from others: so filtering once more, for
//! the same or for another target, starts from the same run. Checkpoints lie at equal distances, the last at its end. The
//! paper warms up on 5 % of its data for four epochs and keeps one checkpoint an epoch.

use crate::error::{Error, Result};
use crate::estimators::{Cost, Question};
use crate::mixture::{Mixture, Notation};
use crate::model::Layout;
use crate::pool::{Pool, Recipe, Watch};
use crate::text::Batches;
use crate::train::{CurvePoint, TrainConfig, Trainer};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Version of what is stored; raised when the same inputs would give other bytes.
const VERSION: u32 = 1;

/// A finished warm-up.
pub(super) struct WarmUp<'a> {
    pool: &'a Pool,
    /// What it depends on.
    pub(super) key: String,
    recipe: Recipe,
    marks: Vec<u64>,
    /// What it took.
    pub(super) cost: Cost,
}

/// Parameters and moments at one step.
pub(super) struct Mark {
    /// Steps done.
    pub(super) step: u64,
    /// Its part of the sum of learning rates, each the mean of the steps since the last checkpoint.
    pub(super) weight: f64,
    pub(super) parameters: Vec<f32>,
    pub(super) first: Vec<f32>,
    pub(super) second: Vec<f32>,
}

impl<'a> WarmUp<'a> {
    /// Trains, unless it was done before. `tokens` of 0 are those of the question, or of an expert on average.
    ///
    /// # Errors
    /// [`Error::Usage`] when there are more checkpoints than steps; those of training.
    pub(super) fn new(question: &Question<'a>, checkpoints: u64, tokens: u64) -> Result<Self> {
        let (pool, observer) = (question.pool, question.observer);
        pool.get_or_train(&pool.seed_recipe()?, "seed model", observer)?;
        let recipe = recipe(question, tokens)?;
        let steps = recipe.train.steps;
        if checkpoints == 0 || checkpoints > steps {
            return Err(Error::Usage(format!("less: {checkpoints} checkpoints of a warm-up of {steps} steps")));
        }
        let marks: Vec<u64> = (1..=checkpoints).map(|mark| (mark * steps).div_ceil(checkpoints)).collect();
        let key = format!("less warm-up version {VERSION} run {} checkpoints {checkpoints}", recipe.id()?);
        let seconds: f64 = pool.fitted(&key, || {
            let mut watch = Keeping { pool, key: &key, marks: &marks };
            Ok(pool.watched(&key, &recipe, "warm up", observer, &mut watch)?.into_iter().sum())
        })?;
        let train_tokens = steps * recipe.train.tokens_per_step();
        let flops = 6.0 * pool.layout().len() as f64 * train_tokens as f64;
        Ok(Self { pool, key, recipe, marks, cost: Cost { train_tokens, flops, seconds } })
    }

    /// How it was trained.
    pub(super) fn train(&self) -> &TrainConfig {
        &self.recipe.train
    }

    /// How many checkpoints there are.
    pub(super) fn len(&self) -> usize {
        self.marks.len()
    }

    /// One checkpoint.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is missing or not whole.
    pub(super) fn mark(&self, index: usize) -> Result<Mark> {
        let layout = self.pool.layout();
        let stored = self.pool.stored_tensors(&mark_key(&self.key, index))?;
        let mut values = stored.read(&with_moments(layout))?;
        let second = values.split_off(2 * layout.len());
        let parameters = values.split_off(layout.len());
        let rate = |index: usize| {
            let start = if index == 0 { 0 } else { self.marks[index - 1] };
            let steps = start..self.marks[index];
            let n = (steps.end - steps.start) as f64;
            steps.map(|step| self.recipe.train.rate_at(step)).sum::<f64>() / n
        };
        let weight = rate(index) / (0..self.len()).map(rate).sum::<f64>();
        Ok(Mark { step: self.marks[index], weight, parameters, first: values, second })
    }
}

fn recipe(question: &Question<'_>, tokens: u64) -> Result<Recipe> {
    let pool = question.pool;
    let registered = pool.partitions()?.into_values().filter(|partition| partition.filtered.is_none());
    let names: Vec<String> = registered.map(|partition| partition.name).collect();
    let all = Mixture::parse(&names.join("+"), &pool.unit_counts()?, Notation::default())?;
    let tokens = (tokens > 0).then_some(tokens).or(question.tokens);
    let mut recipe = pool.mixture_recipe(&all, tokens)?;
    if tokens.is_none() {
        recipe.train.steps = recipe.train.steps.div_ceil(recipe.data.len() as u64);
    }
    Ok(recipe)
}

/// A run whose checkpoints are stored as it comes by them.
struct Keeping<'a> {
    pool: &'a Pool,
    key: &'a str,
    marks: &'a [u64],
}

impl Watch for Keeping<'_> {
    type Seen = f64; // seconds

    fn step(&mut self, trainer: &mut Trainer<'_>, batches: &mut Batches) -> Result<(CurvePoint, f64)> {
        let start = Instant::now();
        let point = trainer.step(batches, "warm up")?;
        if let Some(index) = self.marks.iter().position(|mark| *mark == point.step) {
            let (key, state) = (mark_key(self.key, index), trainer.state()?);
            let values = [state.first, state.parameters, state.second].concat();
            self.pool.fitted(&key, || {
                self.pool.store_tensors(&key, &with_moments(self.pool.layout()), &values)?;
                Ok(MarkRecord { step: point.step, run: self.key.to_owned() })
            })?;
        }
        Ok((point, start.elapsed().as_secs_f64()))
    }
}

/// What stands beside the tensors of a checkpoint.
#[derive(Serialize, Deserialize)]
struct MarkRecord {
    step: u64,
    run: String,
}

fn mark_key(run: &str, index: usize) -> String {
    format!("{run} checkpoint {}", index + 1)
}

/// First moments, parameters and second moments as one vector, in this order.
fn with_moments(layout: &Layout) -> Layout {
    let parts = ["first", "parameters", "second"].into_iter();
    let named = |part| layout.parameters().iter().map(move |p| (format!("{part}.{}", p.name), p.shape.clone()));
    Layout::from_shapes(parts.flat_map(named).collect())
}
