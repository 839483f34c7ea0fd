//! Derivatives: the loss of a merge as a polynomial of its weights, from gradients of the loss at one merge.
//!
//! The inner product of a data source's gradient and the eval set's gradient tells how much the source helps (Fan et al.
//! 2024, arXiv 2410.02498). Here it is carried to weight space: an expert θᵤ is what its data did to the seed model, and
//! with L(w) the loss of the merge θ(w) = Σ wᵤθᵤ and w⁰ the uniform merge of all partitions,
//!
//! L(w) ≈ L(w⁰) + Σᵤ aᵤ ⟨∇L, dᵤ⟩ + ½ Σᵤᵥ aᵤaᵥ dᵤᵀ∇²L dᵥ,   a = w − w⁰,   dᵤ = θᵤ − θ(w⁰),
//!
//! derivatives taken at θ(w⁰). `first-order` keeps the linear term: one backward pass per eval set gives all slopes.
//! `second-order` adds the curvature, whose row u is the change of all slopes after a step [`STEP`] · dᵤ: one more backward
//! pass per expert and eval set. Directions are units' experts, so mixtures of some units of a partition are answered too.

use super::merged::expert_cost;
use super::{Cost, Estimator, Options, Question};
use crate::error::Result;
use crate::mixture::{Mixture, Notation};
use crate::pool::{Experts, Member, Scorer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// How far towards an expert the slopes are taken again: the share of the way from the uniform merge.
///
/// The error of the curvature is STEP / 2 times the third derivative, plus rounding of f32 gradients over STEP. Measured on
/// a model of 1.3 million parameters it falls in proportion to the step, to 7e-4 of the curvature here, until rounding
/// stops it at 2e-4 (step 3e-4).
pub const STEP: f64 = 1e-3;

/// Version of what is stored; raised when the same inputs would give other numbers.
const VERSION: u32 = 1;

/// How many terms of the polynomial are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Slopes.
    First,
    /// Slopes and curvature.
    Second,
}

/// A loss as a polynomial of the weights of models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Surrogate {
    /// The weights it is expanded around, w⁰.
    pub base: Vec<f64>,
    /// The loss there.
    pub loss: f64,
    /// ⟨∇L, dᵤ⟩ of every model.
    pub slopes: Vec<f64>,
    /// dᵤᵀ∇²L dᵥ, symmetric; empty for first order.
    pub curvature: Vec<Vec<f64>>,
}

impl Surrogate {
    /// Expands a loss around `base`, weights that sum to 1. `derive` gives the loss at some weights and its derivatives by
    /// each; it is asked once, and for second order once more per weight.
    ///
    /// # Errors
    /// Those of `derive`.
    pub fn fit(base: &[f64], order: Order, mut derive: impl FnMut(&[f64]) -> Result<(f64, Vec<f64>)>) -> Result<Self> {
        let (loss, slopes) = derive(base)?;
        // The derivative along dᵤ, which goes from the base to model u.
        let along = |slopes: &[f64]| -> Vec<f64> {
            let mean: f64 = base.iter().zip(slopes).map(|(weight, slope)| weight * slope).sum();
            slopes.iter().map(|slope| slope - mean).collect()
        };
        let slopes = along(&slopes);
        let mut curvature = Vec::new();
        if order == Order::Second {
            for model in 0..base.len() {
                let towards =
                    |(index, weight): (usize, &f64)| weight * (1.0 - STEP) + if index == model { STEP } else { 0.0 };
                let stepped = derive(&base.iter().enumerate().map(towards).collect::<Vec<_>>())?.1;
                curvature.push(along(&stepped).iter().zip(&slopes).map(|(new, old)| (new - old) / STEP).collect());
            }
        }
        Ok(Self { base: base.to_vec(), loss, slopes, curvature: symmetric(&curvature) })
    }

    /// The loss predicted at some weights.
    pub fn at(&self, weights: &[f64]) -> f64 {
        let away: Vec<f64> = weights.iter().zip(&self.base).map(|(weight, base)| weight - base).collect();
        let product = |row: &[f64]| -> f64 { row.iter().zip(&away).map(|(x, a)| x * a).sum() };
        let bend: f64 = self.curvature.iter().zip(&away).map(|(row, a)| a * product(row)).sum();
        self.loss + product(&self.slopes) + bend / 2.0
    }
}

/// The mean of a matrix and its transpose.
fn symmetric(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let row = |i: usize| (0..rows.len()).map(|j| f64::midpoint(rows[i][j], rows[j][i])).collect();
    (0..rows.len()).map(row).collect()
}

pub(super) fn fit_first<'a>(question: &Question<'a>, _: &Options) -> Result<Box<dyn Estimator + 'a>> {
    Ok(Box::new(Expanded::new(question, Order::First)?))
}

pub(super) fn fit_second<'a>(question: &Question<'a>, _: &Options) -> Result<Box<dyn Estimator + 'a>> {
    Ok(Box::new(Expanded::new(question, Order::Second)?))
}

/// A surrogate for every eval set.
struct Expanded {
    experts: Experts,
    places: BTreeMap<Arc<str>, usize>, // by hash of the weights: index into the surrogates' weights
    surrogates: Vec<Surrogate>,
    cost: Cost,
}

/// What is kept in the pool.
#[derive(Serialize, Deserialize)]
struct Stored {
    surrogate: Surrogate,
    cost: Cost,
}

impl Expanded {
    fn new(question: &Question<'_>, order: Order) -> Result<Self> {
        let pool = question.pool;
        let experts = pool.experts()?;
        let all = Mixture::parse("all", &pool.unit_counts()?, Notation::default())?;
        let base = experts.members(&all)?;
        let mut scorer = pool.scorer(question.evals)?;
        let (mut surrogates, mut cost) = (Vec::new(), expert_cost(pool)?);
        for eval in 0..scorer.eval_names().len() {
            let key = key(&base, order, &scorer.gradient_key(eval)?);
            let stored = pool.fitted(&key, || expand(question, &mut scorer, eval, &base, order))?;
            surrogates.push(stored.surrogate);
            cost += stored.cost;
        }
        let places = base.into_iter().enumerate().map(|(index, member)| (member.weights, index)).collect();
        Ok(Self { experts, places, surrogates, cost })
    }
}

impl Estimator for Expanded {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        let start = Instant::now();
        let estimate = |mixture: &Mixture| -> Result<Vec<f64>> {
            let mut weights = vec![0.0; self.places.len()];
            for member in self.experts.members(mixture)? {
                weights[self.places[&member.weights]] = member.weight;
            }
            Ok(self.surrogates.iter().map(|surrogate| surrogate.at(&weights)).collect())
        };
        let estimates = mixtures.iter().map(estimate).collect();
        self.cost += Cost::of_seconds(start.elapsed().as_secs_f64());
        estimates
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}

/// All that a surrogate depends on.
fn key(base: &[Member], order: Order, eval: &str) -> String {
    let members = base.iter().map(|member| format!(" {}:{:016x}", member.weights, member.weight.to_bits()));
    let order = match order {
        Order::First => "first order".to_owned(),
        Order::Second => format!("second order step {STEP}"),
    };
    format!("derivatives version {VERSION} {order} eval {eval} base{}", members.collect::<String>())
}

fn expand(
    question: &Question<'_>,
    scorer: &mut Scorer<'_>,
    eval: usize,
    base: &[Member],
    order: Order,
) -> Result<Stored> {
    let (start, observer) = (Instant::now(), question.observer);
    let total = if order == Order::Second { 1 + base.len() as u64 } else { 1 };
    observer.begin(&format!("differentiate {}", scorer.eval_names()[eval]), total, "gradients");
    let weights: Vec<f64> = base.iter().map(|member| member.weight).collect();
    let mut done = 0;
    let surrogate = Surrogate::fit(&weights, order, |weights| {
        observer.check()?;
        let merge = base.iter().zip(weights).map(|(member, weight)| Member { weight: *weight, ..member.clone() });
        let slopes = scorer.slopes(eval, &merge.collect::<Vec<_>>())?;
        done += 1;
        observer.advance(done, "");
        Ok(slopes)
    })?;
    observer.finish();
    let tokens = (total * scorer.n_tokens(eval)?) as f64;
    let flops = 6.0 * question.pool.layout().len() as f64 * tokens; // 2 forward, 4 backward
    Ok(Stored { surrogate, cost: Cost { flops, ..Cost::of_seconds(start.elapsed().as_secs_f64()) } })
}
