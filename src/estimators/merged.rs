//! Merged: the loss of the average of the mixture's experts, the proxy that mixpool is built around.
//!
//! Na et al. 2024 (arXiv 2410.15661). The average of k experts moves less from the seed model the larger k is, while a model
//! trained on k units moves further. `exponent` γ corrects for it: the merge is θ₀ + k^γ Σ wᵢ(θᵢ − θ₀), with the effective
//! number of experts k = 1 / Σ wᵢ² (k for k equal weights).

use super::{Cost, Estimator, OptionRow, Options, Question};
use crate::error::{Error, Result};
use crate::mixture::Mixture;
use crate::pool::{Experts, Member, Pool, Scored, Scorer};
use crate::progress::Observer;

pub(super) const OPTIONS: &[OptionRow] = &[OptionRow {
    name: "exponent",
    default: "0",
    help: "γ in θ₀ + k^γ Σ wᵢ(θᵢ − θ₀), k the effective number of experts; 0 is the plain average",
}];

pub(super) fn fit<'a>(question: &Question<'a>, options: &Options) -> Result<Box<dyn Estimator + 'a>> {
    let exponent: f64 = options.number("exponent")?;
    if !(-1.0..=2.0).contains(&exponent) {
        return Err(Error::Usage(format!("option 'exponent={exponent}': expected a number from -1 to 2")));
    }
    Ok(Box::new(Merged::new(question, exponent)?))
}

/// Merges scored on the eval sets of a question.
pub(super) struct Merged<'a> {
    pool: &'a Pool,
    scorer: Scorer<'a>,
    experts: Experts,
    seed: Option<Member>, // only needed by a correction
    exponent: f64,
    observer: &'a dyn Observer,
    cost: Cost,
}

impl<'a> Merged<'a> {
    pub(super) fn new(question: &Question<'a>, exponent: f64) -> Result<Self> {
        let pool = question.pool;
        let seed = if exponent == 0.0 { None } else { Some(pool.seed_member()?) };
        let (scorer, experts, cost) = (pool.scorer(question.evals)?, pool.experts()?, expert_cost(pool)?);
        Ok(Self { pool, scorer, experts, seed, exponent, observer: question.observer, cost })
    }

    /// The members of the merge, the seed model among them when the task vector is scaled.
    fn members(&self, mixture: &Mixture) -> Result<Vec<Member>> {
        let mut members = self.experts.members(mixture)?;
        let Some(seed) = &self.seed else { return Ok(members) };
        let scale = effective_number(mixture).powf(self.exponent);
        members.iter_mut().for_each(|member| member.weight *= scale);
        members.push(Member { weight: 1.0 - scale, ..seed.clone() });
        Ok(members)
    }
}

impl Estimator for Merged<'_> {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        let questions = mixtures.iter().map(|mixture| Ok((mixture.to_string(), self.members(mixture)?)));
        let questions = questions.collect::<Result<Vec<_>>>()?;
        let kind = if self.exponent == 0.0 { "merged".into() } else { format!("merged:exponent={}", self.exponent) };
        let scored = score_all(&mut self.scorer, &questions, &kind, "score merges", self.observer)?;
        self.cost += scored.iter().map(|scored| Cost::of_scoring(scored, self.pool.layout().len())).sum();
        Ok(losses(&scored))
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}

/// 1 / Σ wᵢ² over the experts of a mixture: how many of them it has in effect.
pub(super) fn effective_number(mixture: &Mixture) -> f64 {
    1.0 / mixture.members().map(|(_, _, weight)| weight * weight).sum::<f64>()
}

/// What training all experts of the pool took.
pub(super) fn expert_cost(pool: &Pool) -> Result<Cost> {
    let mut cost = Cost::default();
    for partition in pool.partitions()?.values() {
        for unit in 0..partition.units.len() {
            let manifest = pool.manifest(&pool.expert_recipe(partition, unit)?.id()?)?;
            cost += manifest.as_ref().map(Cost::of_training).unwrap_or_default();
        }
    }
    Ok(cost)
}

/// Scores labelled merges with progress; what is stored is read, what is missing computed and stored.
///
/// # Errors
/// Those of [`Scorer::score_as`].
pub fn score_all(
    scorer: &mut Scorer<'_>,
    merges: &[(String, Vec<Member>)],
    kind: &str,
    what: &str,
    observer: &dyn Observer,
) -> Result<Vec<Vec<Scored>>> {
    let missing = merges.iter().filter(|(_, members)| !scorer.is_cached(members)).count();
    if missing > 0 {
        observer.begin(what, missing as u64, "mixtures");
    }
    let mut done = 0;
    let mut scored = Vec::with_capacity(merges.len());
    for (label, members) in merges {
        let scores = scorer.score_as(members, label, kind, observer)?;
        if scores.iter().any(|score| !score.cached) {
            done += 1;
            observer.advance(done, "");
        }
        scored.push(scores);
    }
    if missing > 0 {
        observer.finish();
    }
    Ok(scored)
}

/// The losses of scored merges, nats per token.
pub(super) fn losses(scored: &[Vec<Scored>]) -> Vec<Vec<f64>> {
    scored.iter().map(|scored| scored.iter().map(|scored| scored.record.score.loss()).collect()).collect()
}
