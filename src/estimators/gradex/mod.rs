//! `GradEx`: the loss after one step from a model of all partitions, along gradients of the mixture's sequences.
//!
//! Li et al. 2024 (arXiv 2409.19458). A model θ* is trained on all partitions once. Near it the output of a sequence, its mean
//! [log-odds](crate::kernels::log_odds) f, is nearly linear: f(θ) ≈ f(θ*) + ⟨∇f, θ − θ*⟩, so that training on a subset is a
//! logistic regression on gradients, which are projected to few dimensions by random signs, g̃ = Pᵀ∇f. Per mixture: labels
//! y ~ Bernoulli(0.7), features of y = 0 flipped, the L2 regression of y on ±g̃ with C = 1e-4, Δ = P w rescaled to a share of
//! ‖θ*‖, θ̂ = θ* + Δ. `gradex` scores θ̂; `gradex-linear` says f(θ*) + ⟨g̃, w⟩ of the eval set and runs no model.
//!
//! Where this differs from the paper: sequences of text instead of instructions with answers, so every token is a label; all
//! linear layers move unless `rank` asks for the paper's adapters of the queries, keys and values; and a mixture has weights:
//! each sequence counts wᵢ / Σ wⱼ², which is 1 in a mixture of equal weights.

mod features;
mod linearity;
mod logistic;

pub use linearity::{LinearityRow, linearity};
pub use logistic::{Observation, logistic_regression};

use super::merged::{effective_number, in_turns, losses};
use super::{Cost, Estimator, OptionRow, Options, Question};
use crate::error::{Error, Result};
use crate::files;
use crate::kernels::Projection;
use crate::mixture::Mixture;
use crate::pool::{Pool, Scored, Scorer};
use crate::progress::Observer;
use features::{Features, Meta, length};
use serde::{Deserialize, Serialize};
use std::time::Instant;

pub(super) const OPTIONS: &[OptionRow] = &[COLUMNS, SAMPLES, SCALE, RANK];
pub(super) const LINEAR_OPTIONS: &[OptionRow] = &[COLUMNS, SAMPLES, RANK];
const COLUMNS: OptionRow = OptionRow { name: "d", default: "200", help: "dimensions that gradients are projected to" };
const SAMPLES: OptionRow = OptionRow { name: "samples", default: "32", help: "sequences of each unit" };
const SCALE: OptionRow =
    OptionRow { name: "scale", default: "0.01", help: "length of the step as a share of ‖θ*‖" };

const RANK: OptionRow =
    OptionRow { name: "rank", default: "0", help: "rank of adapters to train and move; 0 moves all linear layers" };

/// Version of the fit; raised when the same inputs would give other numbers.
const VERSION: u32 = 1;
/// The weight of the losses against the regulariser, the authors' value.
const C: f64 = 1e-4;
/// The most dimensions; a fit takes their cube.
const MAX_COLUMNS: usize = 4096;

pub(super) fn fit<'a>(question: &Question<'a>, options: &Options) -> Result<Box<dyn Estimator + 'a>> {
    Ok(Box::new(Forward { scorer: question.pool.scorer(question.evals)?, fitted: Fitted::new(question, options)? }))
}

pub(super) fn fit_linear<'a>(question: &Question<'a>, options: &Options) -> Result<Box<dyn Estimator + 'a>> {
    Ok(Box::new(Linear::new(question, options)?))
}

/// θ* with the features of all sequences: what both ways to answer share.
struct Fitted<'a> {
    pool: &'a Pool,
    observer: &'a dyn Observer,
    meta: Meta,
    features: Features,
    projection: Projection,
    scale: f64,
    kind: String, // how the log of scores calls it
    cost: Cost,
}

impl<'a> Fitted<'a> {
    fn new(question: &Question<'a>, options: &Options) -> Result<Self> {
        let (columns, samples) = (options.number("d")?, options.number("samples")?);
        if !(1..=MAX_COLUMNS).contains(&columns) {
            return Err(Error::Usage(format!("option 'd={columns}': expected 1 to {MAX_COLUMNS}")));
        }
        if samples == 0 {
            return Err(Error::Usage("option 'samples=0': expected at least 1".into()));
        }
        let text = options.text("scale");
        let scale: f64 = if text.is_empty() { 1.0 } else { options.number("scale")? };
        if !(scale > 0.0 && scale <= 10.0) {
            return Err(Error::Usage(format!("option 'scale={text}': expected a number above 0 and at most 10")));
        }
        let Question { pool, observer, .. } = *question;
        let projection = Projection::new(0, columns);
        let rank: usize = options.number("rank")?;
        let meta = Meta::new(question, rank)?;
        let features = Features::new(question, &meta, projection, samples)?;
        let cost = meta.cost + features.cost;
        let usual = OPTIONS.iter().all(|row| options.text(row.name) == row.default);
        let kind = if usual {
            "gradex".into()
        } else {
            format!("gradex:d={columns},samples={samples},scale={scale},rank={rank}")
        };
        Ok(Self { pool, observer, meta, features, projection, scale, kind, cost })
    }

    /// The coefficients w of a mixture, and the factor that gives P w its length.
    fn direction(&self, mixture: &Mixture) -> Result<(Vec<f64>, f64)> {
        let effective = effective_number(mixture);
        let mut observations = Vec::new();
        for (name, unit, weight) in mixture.members() {
            let samples = &self.features.units[name][unit].samples;
            observations.extend(samples.iter().map(|sample| Observation {
                features: &sample.feature,
                label: sample.label,
                weight: weight * effective,
            }));
        }
        let mut w = logistic_regression(&observations, C)?;
        w.pop(); // the intercept
        let norm = length(self.meta.back_project(self.projection, &w).iter());
        if norm > 0.0 {
            return Ok((w, self.scale * self.meta.norm / norm));
        }
        Err(Error::NotFinite { what: "the direction of a step of length 0".into(), place: mixture.to_string() })
    }

    /// P w, of the length asked for.
    fn way(&self, mixture: &Mixture) -> Result<Vec<f32>> {
        let (w, factor) = self.direction(mixture)?;
        let w: Vec<f64> = w.iter().map(|w| w * factor).collect();
        Ok(self.meta.back_project(self.projection, &w))
    }

    /// Names everything that the model of a mixture depends on.
    fn key(&self, mixture: &Mixture) -> String {
        let member = |(name, unit, weight): (&str, usize, f64)| {
            let unit = &self.features.units[name][unit];
            format!("\n{}:{:016x}", files::hash(unit.key.as_bytes()), weight.to_bits())
        };
        let mut members: Vec<String> = mixture.members().map(member).collect();
        members.sort();
        let scale = self.scale.to_bits();
        files::hash(format!("gradex version {VERSION} C {C} scale {scale:016x}{}", members.concat()).as_bytes())
    }

    /// What making one model, or one direction, takes beside passes through models.
    fn back_projections(&self, mixtures: usize) -> Cost {
        let flops = 2.0 * (self.meta.n_moved() * self.projection.columns() * mixtures) as f64;
        Cost { flops, ..Cost::default() }
    }
}

/// Losses of θ̂ by forward passes.
struct Forward<'a> {
    scorer: Scorer<'a>,
    fitted: Fitted<'a>,
}

impl Forward<'_> {
    fn score(&mut self, mixture: &Mixture) -> Result<Option<Vec<Scored>>> {
        let Self { scorer, fitted } = self;
        scorer.try_score_with(&fitted.key(mixture), &mixture.to_string(), &fitted.kind, fitted.observer, |_, out| {
            let way = fitted.way(mixture)?;
            let moved: Vec<f32> = fitted.meta.parameters.iter().zip(&way).map(|(start, way)| start + way).collect();
            fitted.meta.write(&moved, out);
            Ok(())
        })
    }
}

impl Estimator for Forward<'_> {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        let missing = mixtures.iter().filter(|mixture| !self.scorer.is_stored(&self.fitted.key(mixture))).count();
        let observer = self.fitted.observer;
        let scored = in_turns(mixtures, missing, "score steps", observer, |mixture| self.score(mixture))?;
        let n_parameters = self.fitted.pool.layout().len();
        self.fitted.cost += scored.iter().map(|scored| Cost::of_scoring(scored, n_parameters)).sum();
        self.fitted.cost += self.fitted.back_projections(mixtures.len());
        Ok(losses(&scored))
    }

    fn cost(&self) -> Cost {
        self.fitted.cost
    }
}

/// The output of an eval set at θ* and its projected gradient.
#[derive(Serialize, Deserialize)]
struct EvalFeature {
    output: f64,
    feature: Vec<f64>,
    cost: Cost,
}

/// Outputs of eval sets by the linearisation alone.
struct Linear<'a> {
    fitted: Fitted<'a>,
    evals: Vec<EvalFeature>,
}

impl<'a> Linear<'a> {
    fn new(question: &Question<'a>, options: &Options) -> Result<Self> {
        let mut fitted = Fitted::new(question, options)?;
        let mut scorer = question.pool.scorer(question.evals)?;
        let (meta, projection) = (&fitted.meta, fitted.projection);
        let mut evals = Vec::new();
        for eval in 0..question.evals.len() {
            let (weights, key) = (&meta.id, scorer.gradient_key(eval)?);
            let key = format!("gradex eval version {VERSION} model {weights} eval {key} projection {projection:?}");
            evals.push(question.pool.fitted(&key, || {
                question.observer.check()?;
                differentiate(question.pool, &mut scorer, eval, meta, projection)
            })?);
        }
        fitted.cost += evals.iter().map(|eval| eval.cost).sum();
        Ok(Self { fitted, evals })
    }
}

fn differentiate(
    pool: &Pool,
    scorer: &mut Scorer<'_>,
    eval: usize,
    meta: &Meta,
    projection: Projection,
) -> Result<EvalFeature> {
    let start = Instant::now();
    let (output, gradient) = scorer.log_odds_gradient(eval, |out| meta.write(&meta.parameters, out))?;
    let feature = meta.project(projection, &meta.gradient(&gradient));
    let passes = 6.0 * pool.layout().len() as f64 * scorer.n_tokens(eval)? as f64;
    let flops = passes + 2.0 * (meta.n_moved() * projection.columns()) as f64;
    Ok(EvalFeature { output, feature, cost: Cost { flops, ..Cost::of_seconds(start.elapsed().as_secs_f64()) } })
}

impl Estimator for Linear<'_> {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        let start = Instant::now();
        let estimate = |mixture: &Mixture| -> Result<Vec<f64>> {
            self.fitted.observer.check()?;
            let (w, factor) = self.fitted.direction(mixture)?;
            let along = |eval: &EvalFeature| eval.feature.iter().zip(&w).map(|(x, w)| x * w).sum::<f64>() * factor;
            // Log-odds grow as a model gets better; an order is smaller for better.
            Ok(self.evals.iter().map(|eval| -(eval.output + along(eval))).collect())
        };
        let estimates = mixtures.iter().map(estimate).collect::<Result<_>>()?;
        self.fitted.cost += self.fitted.back_projections(mixtures.len());
        self.fitted.cost += Cost::of_seconds(start.elapsed().as_secs_f64());
        Ok(estimates)
    }

    fn cost(&self) -> Cost {
        self.fitted.cost
    }
}
