//! Ensemble: the loss of the mixture of the experts' predictions, P(x) = Σ wᵢ Pᵢ(x), token by token.
//!
//! MDE, arXiv 2502.15950. −ln Pᵢ of every token of every eval set is worked out once for each expert and kept in the pool
//! as f32 (see [`crate::pool::TokenNll`]); a mixture then costs a log-sum-exp in f64 for each token and no model. The
//! paper has one expert a domain; here a partition of several units weighs the expert of each by its share. Tokens are
//! divided into blocks of fixed size whose sums are added in order, so results do not depend on the number of threads.

use super::merged::expert_cost;
use super::{Cost, Estimator, Options, Question};
use crate::error::Result;
use crate::mixture::Mixture;
use crate::pool::{Experts, Member, TokenNll};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Tokens whose sum is formed by one thread.
pub(super) const BLOCK: usize = 4096;

pub(super) fn fit<'a>(question: &Question<'a>, _: &Options) -> Result<Box<dyn Estimator + 'a>> {
    let (pool, observer) = (question.pool, question.observer);
    let experts = pool.experts()?;
    let models = all(question, &experts)?;
    let mut scorer = pool.scorer(question.evals)?;
    let missing = models.iter().filter(|model| !scorer.has_token_nll(model)).count();
    if missing > 0 {
        observer.begin("score tokens", missing as u64, "experts");
    }
    let mut cost = expert_cost(pool)?;
    let mut tokens = BTreeMap::new();
    let mut done = 0;
    for model in models {
        let nll = scorer.token_nll(&model, "an expert", observer)?;
        if nll.iter().any(|nll| !nll.cached) {
            done += 1;
            observer.advance(done, "");
        }
        cost += nll.iter().map(|nll| of_scoring(nll, pool.layout().len())).sum();
        tokens.insert(model.weights, nll);
    }
    if missing > 0 {
        observer.finish();
    }
    Ok(Box::new(Ensemble { experts, tokens, n_evals: scorer.eval_names().len(), cost }))
}

/// Every expert of the pool, once.
fn all(question: &Question<'_>, experts: &Experts) -> Result<Vec<Member>> {
    let partitions = question.pool.unit_counts()?;
    let mut models = BTreeMap::new();
    for name in partitions.keys() {
        let alone = Mixture::from_weights(&[(name.clone(), 1.0)].into(), &partitions)?;
        models.extend(experts.members(&alone)?.into_iter().map(|model| (model.weights.clone(), model)));
    }
    Ok(models.into_values().collect())
}

fn of_scoring(nll: &TokenNll, n_parameters: usize) -> Cost {
    let flops = 2.0 * n_parameters as f64 * nll.values.len() as f64;
    Cost { flops, ..Cost::of_seconds(nll.seconds) }
}

struct Ensemble {
    experts: Experts,
    tokens: BTreeMap<Arc<str>, Vec<TokenNll>>, // by hash of the weights: per eval set
    n_evals: usize,
    cost: Cost,
}

impl Estimator for Ensemble {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        let start = Instant::now();
        let mut estimates = Vec::with_capacity(mixtures.len());
        for mixture in mixtures {
            let members = self.experts.members(mixture)?;
            let on = |eval: usize| {
                let nll = |member: &Member| (member.weight, self.tokens[&member.weights][eval].values.as_slice());
                ensemble_loss(&members.iter().map(nll).collect::<Vec<_>>())
            };
            estimates.push((0..self.n_evals).map(on).collect());
        }
        self.cost += Cost::of_seconds(start.elapsed().as_secs_f64());
        Ok(estimates)
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}

/// The loss of a mixture of predictions, −meanₜ ln Σ wᵢ e^(−nllᵢₜ), in nats per token.
///
/// `experts` are weights, each with −ln p of every token: `[n_tokens]`, all of one length. Experts of weight 0 do not
/// count. NaN without tokens; ∞ without an expert of positive weight.
///
/// # Examples
/// ```
/// use mixpool::estimators::ensemble_loss;
/// let (certain, unsure) = ([0.0], [2f32.ln()]); // p = 1 and p = 1/2
/// assert!((ensemble_loss(&[(0.5, &certain), (0.5, &unsure)]) + 0.75f64.ln()).abs() < 1e-7);
/// ```
pub fn ensemble_loss(experts: &[(f64, &[f32])]) -> f64 {
    let experts: Vec<(f64, &[f32])> =
        experts.iter().filter(|(weight, _)| *weight > 0.0).map(|(weight, nll)| (weight.ln(), *nll)).collect();
    let Some(n_tokens) = experts.iter().map(|(_, nll)| nll.len()).min() else { return f64::INFINITY };
    let starts: Vec<usize> = (0..n_tokens).step_by(BLOCK).collect();
    let sum = |start: &usize| -> f64 { (*start..n_tokens.min(start + BLOCK)).map(|token| nll(&experts, token)).sum() };
    let blocks: Vec<f64> = starts.par_iter().map(sum).collect();
    blocks.iter().sum::<f64>() / n_tokens as f64
}

/// −ln Σ e^(aᵢ) for aᵢ = ln wᵢ − nllᵢ of one token.
fn nll(experts: &[(f64, &[f32])], token: usize) -> f64 {
    let terms = || experts.iter().map(|(log_weight, nll)| log_weight - f64::from(nll[token]));
    let largest = terms().fold(f64::NEG_INFINITY, f64::max);
    -(largest + terms().map(|term| (term - largest).exp()).sum::<f64>().ln())
}
