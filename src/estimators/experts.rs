//! Experts alone: what the losses of a mixture's experts say without merging them.
//!
//! The comparison proxies of Na et al. 2024 (arXiv 2410.15661): `mean-of-experts` is Σ wᵢ Lᵢ, `best-expert` min Lᵢ.

use super::merged::{expert_cost, losses, score_all};
use super::{Cost, Estimator, Options, Question};
use crate::error::Result;
use crate::mixture::Mixture;
use crate::pool::{Experts, Member, Pool, Scorer};
use crate::progress::Observer;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) fn fit_mean<'a>(question: &Question<'a>, _: &Options) -> Result<Box<dyn Estimator + 'a>> {
    fit(question, |losses| losses.iter().map(|(weight, loss)| weight * loss).sum())
}

pub(super) fn fit_best<'a>(question: &Question<'a>, _: &Options) -> Result<Box<dyn Estimator + 'a>> {
    fit(question, |losses| losses.iter().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min))
}

/// From (weight, loss) of every expert of a mixture to one number.
type Summary = fn(&[(f64, f64)]) -> f64;

struct Alone<'a> {
    pool: &'a Pool,
    scorer: Scorer<'a>,
    experts: Experts,
    scored: BTreeMap<Arc<str>, Vec<f64>>, // by hash of the weights: losses per eval set
    summary: Summary,
    observer: &'a dyn Observer,
    cost: Cost,
}

fn fit<'a>(question: &Question<'a>, summary: Summary) -> Result<Box<dyn Estimator + 'a>> {
    let pool = question.pool;
    let (scorer, experts, cost) = (pool.scorer(question.evals)?, pool.experts()?, expert_cost(pool)?);
    Ok(Box::new(Alone { pool, scorer, experts, scored: BTreeMap::new(), summary, observer: question.observer, cost }))
}

impl Alone<'_> {
    fn score(&mut self, member: &Member, label: &str) -> Result<()> {
        if !self.scored.contains_key(&member.weights) {
            let single = vec![Member { weight: 1.0, ..member.clone() }];
            let merges = [(format!("an expert of {label}"), single)];
            let scored = score_all(&mut self.scorer, &merges, "expert", "score an expert", self.observer)?;
            self.cost += Cost::of_scoring(&scored[0], self.pool.layout().len());
            self.scored.insert(member.weights.clone(), losses(&scored).remove(0));
        }
        Ok(())
    }
}

impl Estimator for Alone<'_> {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        let mut estimates = Vec::with_capacity(mixtures.len());
        for mixture in mixtures {
            let members = self.experts.members(mixture)?;
            members.iter().try_for_each(|member| self.score(member, &mixture.to_string()))?;
            let of = |eval: usize| -> Vec<(f64, f64)> {
                members.iter().map(|member| (member.weight, self.scored[&member.weights][eval])).collect()
            };
            estimates.push((0..self.scorer.eval_names().len()).map(|eval| (self.summary)(&of(eval))).collect());
        }
        Ok(estimates)
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}
