//! Shapley: what every partition contributed to every eval set during one training run on all of them.
//!
//! In-run data Shapley (Wang et al. 2024, arXiv 2406.11011), see [`crate::train::Attribution`] for what is summed. The run is
//! the ground truth of the uniform mixture, to the bit, at the question's budget; its sequences are valued on a random part
//! of every eval set, a new one each step and the same for every sequence of it. A mixture's score is the sum that it would
//! have been credited with, had its run been this one and every sequence of a unit worth the mean φ̄ᵤ of those seen:
//!
//! N Σ wᵤ φ̄ᵤ,
//!
//! with N sequences in the run. It is linear in the weights, as the run has one trajectory: what a mixture would do to
//! the value of later sequences is not seen. So it orders mixtures and predicts no loss.

use super::{Cost, Estimator, OptionRow, Options, Question};
use crate::error::{Error, Result};
use crate::eval::{EvalSet, Evaluator};
use crate::mixture::{Mixture, Notation};
use crate::pool::{Pool, Recipe, Watch, parse_count};
use crate::rng::Stream;
use crate::text::Batches;
use crate::train::{Attribution, CurvePoint, HESSIAN_STEP, Trainer, Update, Values};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Instant;

pub(super) const OPTIONS: &[OptionRow] = &[
    OptionRow { name: "order", default: "1", help: "1: gradients; 2: and the curvature of the eval losses" },
    OptionRow {
        name: "update",
        default: "sgd",
        help: "sgd: contributions to a step of gradient descent, as in the paper; adam: to one of the optimiser",
    },
    OptionRow { name: "tokens", default: "512", help: "tokens of every eval set that a step is valued on" },
];

/// Version of what is stored; raised when the same inputs would give other numbers.
const VERSION: u32 = 1;

/// A unit of a partition.
type Unit = (String, usize);

/// What the sequences of every unit contributed to every eval set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contributions {
    /// Partitions and units, in the order of all lists of units.
    pub units: Vec<(String, usize)>,
    /// Sequences seen of each unit.
    pub sequences: Vec<u64>,
    /// Σ ⟨∇L, uᵢ⟩ over the sequences of each unit, nats per token: `[eval sets][units]`.
    pub first: Vec<Vec<f64>>,
    /// The sums of the second-order terms; none when they were not asked for.
    pub second: Vec<Vec<f64>>,
    /// What it took.
    pub cost: Cost,
}

impl Contributions {
    /// What all sequences together contributed to each eval set: the predicted change of its loss over the run.
    pub fn totals(&self) -> Vec<f64> {
        (0..self.first.len()).map(|eval| (0..self.units.len()).map(|unit| self.sum(eval, unit)).sum()).collect()
    }

    fn sum(&self, eval: usize, unit: usize) -> f64 {
        self.first[eval][unit] + self.second.get(eval).map_or(0.0, |second| second[unit])
    }

    /// The score of a mixture on an eval set.
    ///
    /// # Errors
    /// [`Error::Usage`] when it has a unit that is not among these.
    fn score(&self, eval: usize, mixture: &Mixture) -> Result<f64> {
        let all: u64 = self.sequences.iter().sum();
        let of = |(name, unit, weight): (&str, usize, f64)| {
            let place = self.units.iter().position(|(known, index)| known == name && *index == unit);
            let place = place.ok_or_else(|| Error::Usage(format!("'{name}' was not in the run that was valued")))?;
            Ok(weight * self.sum(eval, place) * all as f64 / self.sequences[place] as f64)
        };
        mixture.members().map(of).sum()
    }
}

pub(super) fn fit<'a>(question: &Question<'a>, options: &Options) -> Result<Box<dyn Estimator + 'a>> {
    let second_order = match options.text("order") {
        "1" => false,
        "2" => true,
        other => return Err(Error::Usage(format!("option 'order={other}': expected 1 or 2"))),
    };
    let update = match options.text("update") {
        "sgd" => Update::Sgd,
        "adam" => Update::Adam,
        other => return Err(Error::Usage(format!("option 'update={other}': expected sgd or adam"))),
    };
    let text = options.text("tokens");
    let tokens = parse_count(text)
        .filter(|n| *n > 0)
        .ok_or_else(|| Error::Usage(format!("option 'tokens={text}': expected a number such as 512 or 2k")))?;
    let contributions = contributions(question, Attribution { update, second_order }, tokens)?;
    Ok(Box::new(Shapley { n_evals: contributions.first.len(), cost: contributions.cost, contributions }))
}

/// Contributions, read as scores of mixtures.
struct Shapley {
    contributions: Contributions,
    n_evals: usize,
    cost: Cost,
}

impl Estimator for Shapley {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        let start = Instant::now();
        let score = |mixture: &Mixture| (0..self.n_evals).map(|eval| self.contributions.score(eval, mixture)).collect();
        let scores = mixtures.iter().map(score).collect();
        self.cost += Cost::of_seconds(start.elapsed().as_secs_f64());
        scores
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}

/// The run that is valued: on all partitions, at the question's budget; and the unit that each of its shares is.
fn run(question: &Question<'_>) -> Result<(Recipe, Vec<Unit>)> {
    let pool = question.pool;
    let all = Mixture::parse("all", &pool.unit_counts()?, Notation::default())?;
    let recipe = pool.mixture_recipe(&all, question.tokens)?;
    let mut places = BTreeMap::new();
    for (name, unit, _) in all.members() {
        let partition = pool.partition(name)?;
        places
            .entry((partition.text()?.to_owned(), partition.units[unit]))
            .or_insert_with(Vec::new)
            .push((name.to_owned(), unit));
    }
    Ok((recipe, places.into_values().flatten().collect())) // in the order of a recipe's data
}

/// Trains on all partitions and values what is seen; read from the pool where it was done before.
///
/// # Errors
/// [`Error::Usage`] when the budget is too small for a sequence of every unit; those of training.
pub fn contributions(question: &Question<'_>, attribution: Attribution, tokens: u64) -> Result<Contributions> {
    let pool = question.pool;
    pool.get_or_train(&pool.seed_recipe()?, "seed model", question.observer)?;
    let (recipe, units) = run(question)?;
    let drawn = recipe.train.steps * recipe.train.batch_size as u64;
    if drawn < units.len() as u64 {
        let problem = format!("a run of {drawn} sequences has none of some of {} units", units.len());
        return Err(Error::Usage(format!("shapley: {problem}; give it more --tokens")));
    }
    let mut scorer = pool.scorer(question.evals)?;
    let keys = (0..question.evals.len()).map(|eval| scorer.gradient_key(eval)).collect::<Result<Vec<String>>>()?;
    let Attribution { update, second_order } = attribution;
    let order = if second_order { format!("second order step {HESSIAN_STEP}") } else { "first order".into() };
    let (id, evals) = (recipe.id()?, keys.join(" "));
    let key = format!("shapley version {VERSION} run {id} {order} update {update:?} tokens {tokens} evals {evals}");
    pool.fitted(&key, || {
        let window = pool.settings().window;
        let evaluator = pool.differentiator(window, window + tokens as usize)?;
        let mut values = Valuation {
            sets: scorer.sets()?,
            keys,
            evaluator,
            attribution,
            tokens,
            seed: recipe.train.seed,
            n_units: units.len(),
            n_parameters: pool.layout().len() as f64,
        };
        let seen = pool.watched(&key, &recipe, "value partitions", question.observer, &mut values)?;
        Ok(summed(pool, &recipe, units, &seen))
    })
}

/// The steps of a run, valued.
struct Valuation<'a> {
    sets: Vec<&'a EvalSet>,
    keys: Vec<String>,
    evaluator: Evaluator,
    attribution: Attribution,
    tokens: u64,
    seed: u64,
    n_units: usize,
    n_parameters: f64,
}

/// What a step showed: sequences and contributions by unit, operations and seconds.
#[derive(Serialize, Deserialize)]
struct Step {
    sequences: Vec<u64>,
    first: Vec<Vec<f64>>,
    second: Vec<Vec<f64>>,
    flops: f64,
    seconds: f64,
}

impl Watch for Valuation<'_> {
    type Seen = Step;

    /// Parameters and gradient of the model that is valued, and a gradient or two of each eval set.
    fn beside(&self) -> u64 {
        let directions = self.sets.len() * if self.attribution.second_order { 2 } else { 1 };
        8 + 4 * directions as u64
    }

    fn step(&mut self, trainer: &mut Trainer<'_>, batches: &mut Batches) -> Result<(CurvePoint, Step)> {
        let start = Instant::now();
        let (sets, keys, evaluator) = (&self.sets, &self.keys, &self.evaluator);
        let mut predicted = 0;
        let mut gradients = |step: u64, parameters: &[f32]| {
            evaluator.set(|out| {
                out.copy_from_slice(parameters);
                Ok(())
            })?;
            let part = |eval: usize| {
                let stream = Stream::new(self.seed, &format!("value {} step {step}", keys[eval]));
                sets[eval].sample(self.tokens, stream)
            };
            let samples: Vec<_> = (0..sets.len()).map(part).collect();
            predicted += samples.iter().flatten().map(|window| window.targets.len()).sum::<usize>();
            Ok(evaluator.gradients(&samples)?.into_iter().map(|gradient| gradient.values).collect())
        };
        let (point, values) = trainer.step_attributed(batches, "value partitions", self.attribution, &mut gradients)?;
        // Beside training: another pass when the step must be known first, the evaluation's passes, and the product that
        // sums every layer's gradient once more.
        let ahead = self.attribution.second_order || self.attribution.update == Update::Adam;
        let trained = (point.tokens / point.step) as f64;
        let flops = self.n_parameters * (trained * if ahead { 8.0 } else { 2.0 } + 6.0 * predicted as f64);
        let mut sequences = vec![0; self.n_units];
        values.units.iter().for_each(|unit| sequences[*unit] += 1);
        let Values { units, first, second } = values;
        let by_unit = |values: Vec<f64>| {
            let mut sums = vec![0.0; self.n_units];
            units.iter().zip(values).for_each(|(unit, value)| sums[*unit] += value);
            sums
        };
        let (first, second) = (first.into_iter().map(by_unit).collect(), second.into_iter().map(by_unit).collect());
        Ok((point, Step { sequences, first, second, flops, seconds: start.elapsed().as_secs_f64() }))
    }
}

fn summed(pool: &Pool, recipe: &Recipe, units: Vec<Unit>, steps: &[Step]) -> Contributions {
    let train_tokens = recipe.train.steps * recipe.train.tokens_per_step();
    let training = 6.0 * pool.layout().len() as f64 * train_tokens as f64;
    let flops = training + steps.iter().map(|step| step.flops).sum::<f64>();
    let seconds = steps.iter().map(|step| step.seconds).sum();
    let sum = |part: fn(&Step) -> &Vec<Vec<f64>>| {
        let mut sums = steps.first().map_or_else(Vec::new, |step| part(step).clone());
        for step in steps.iter().skip(1) {
            for (sums, new) in sums.iter_mut().zip(part(step)) {
                sums.iter_mut().zip(new).for_each(|(sum, new)| *sum += new);
            }
        }
        sums
    };
    let sequences = (0..units.len()).map(|unit| steps.iter().map(|step| step.sequences[unit]).sum()).collect();
    let (first, second) = (sum(|step| &step.first), sum(|step| &step.second));
    Contributions { units, sequences, first, second, cost: Cost { train_tokens, flops, seconds } }
}
