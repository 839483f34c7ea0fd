//! Merged: the loss of the average of the mixture's experts, the proxy that mixpool is built around.
//!
//! Na et al. 2024 (arXiv 2410.15661). The average of k experts moves less from the seed model the larger k is, while a model
//! trained on k units moves further. `exponent` γ corrects for it: the merge is θ₀ + k^γ Σ wᵢ(θᵢ − θ₀), with the effective
//! number of experts k = 1 / Σ wᵢ² (k for k equal weights).
//!
//! `exponent=fit` chooses γ by a few models trained on mixtures that are not judged: the one whose errors, true minus merged
//! loss, spread least around their mean. The mean itself, an offset that changes no order, is not corrected here: that is
//! what calibrating (`--calibrate`) does, with any estimator.

use super::design::{Purpose, draw};
use super::ground_truth::GroundTruth;
use super::{Cost, Estimator, OptionRow, Options, Question};
use crate::error::{Error, Result};
use crate::mixture::Mixture;
use crate::pool::{Experts, Member, Pool, Scored, Scorer, score_key};
use crate::progress::Observer;
use rayon::prelude::*;

pub(super) const OPTIONS: &[OptionRow] = &[
    OptionRow {
        name: "exponent",
        default: "0",
        help: "γ in θ₀ + k^γ Σ wᵢ(θᵢ − θ₀), k the effective number of experts; 0 is the plain average, fit learns it",
    },
    OptionRow { name: "truths", default: TRUTHS, help: "with exponent=fit: mixtures trained to learn γ from" },
];
const TRUTHS: &str = "4";
/// The fewest trained mixtures that γ is chosen by: with two, a spread is one difference, and any γ may fit it by chance.
const FEWEST: usize = 3;

/// The exponents that are tried, the first of equally good ones wins.
///
/// At 0 the merge moves as far as the average of the experts does; at 1 it is the sum of their movements (of equal ones),
/// as far as a model could go that is trained on all their data; at 1/2 it is as long as one of them when they are
/// orthogonal. A few trained mixtures do not tell finer steps apart, and every step costs as many merges as there are.
const EXPONENTS: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];

pub(super) fn fit<'a>(question: &Question<'a>, options: &Options) -> Result<Box<dyn Estimator + 'a>> {
    let (text, truths) = (options.text("exponent"), options.number("truths")?);
    if text == "fit" {
        return Ok(Box::new(Merged::fitted(question, truths)?));
    }
    if options.text("truths") != TRUTHS {
        return Err(Error::Usage(format!("option 'truths={truths}': it is for exponent=fit, got exponent={text}")));
    }
    match text.parse() {
        Ok(exponent) if (-1.0..=2.0).contains(&exponent) => Ok(Box::new(Merged::new(question, exponent)?)),
        _ => Err(Error::Usage(format!("option 'exponent={text}': expected a number from -1 to 2, or fit"))),
    }
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

    /// Chooses the exponent by `n` mixtures trained for it.
    fn fitted(question: &Question<'a>, n: usize) -> Result<Self> {
        let mixtures = draw(question, n, Purpose::Exponent)?;
        if mixtures.len() < FEWEST {
            let problem = if n < FEWEST { "" } else { "; the pool has no more mixtures that are not judged" };
            let got = mixtures.len().min(n);
            return Err(Error::Usage(format!(
                "option 'exponent=fit' needs at least truths={FEWEST} trained mixtures, got {got}{problem}"
            )));
        }
        let mut truth = GroundTruth::new(question, 0)?;
        let trained = truth.estimate(&mixtures)?;
        let mut merged = Self { seed: Some(question.pool.seed_member()?), ..Self::new(question, 0.0)? };
        let mut best = (f64::INFINITY, 0.0);
        for exponent in EXPONENTS {
            merged.exponent = exponent;
            let share = unexplained(&merged.estimate(&mixtures)?, &trained);
            if share < best.0 {
                best = (share, exponent);
            }
        }
        merged.exponent = best.1;
        merged.cost += truth.cost();
        let kept = 100.0 * best.0;
        question.observer.note(&format!(
            "merged: of the exponents tried, {} fits {} trained mixtures best; the errors have {kept:.0} % of their variance",
            best.1,
            mixtures.len(),
        ));
        Ok(merged)
    }
}

impl Estimator for Merged<'_> {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        let (experts, seed, exponent) = (&self.experts, self.seed.as_ref(), self.exponent);
        let question = |mixture: &Mixture| Ok((mixture.to_string(), members(experts, seed, exponent, mixture)?));
        let questions = mixtures.par_iter().map(question).collect::<Result<Vec<_>>>()?;
        let kind = if self.exponent == 0.0 { "merged".into() } else { format!("merged:exponent={}", self.exponent) };
        let scored = score_all(&mut self.scorer, &questions, &kind, "score merges", self.observer)?;
        self.cost += scored.iter().map(|scored| Cost::of_scoring(scored, self.pool.layout().len())).sum();
        Ok(losses(&scored))
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}

/// The members of the merge of a mixture, the seed model among them when the task vector is scaled.
fn members(experts: &Experts, seed: Option<&Member>, exponent: f64, mixture: &Mixture) -> Result<Vec<Member>> {
    let mut members = experts.members(mixture)?;
    let Some(seed) = seed else { return Ok(members) };
    let scale = effective_number(mixture).powf(exponent);
    if scale == 1.0 {
        return Ok(members);
    }
    members.iter_mut().for_each(|member| member.weight *= scale);
    members.push(Member { weight: 1.0 - scale, ..seed.clone() });
    Ok(members)
}

/// The variance of true minus merged losses as a share of that of the true ones, the mean over eval sets where that is
/// above 0. Both arguments hold, for each mixture, one loss per eval set.
fn unexplained(merged: &[Vec<f64>], truth: &[Vec<f64>]) -> f64 {
    let n_evals = truth.first().map_or(0, Vec::len);
    let share = |eval: usize| {
        let errors = truth.iter().zip(merged).map(|(truth, merged)| truth[eval] - merged[eval]).collect();
        let total = squares(truth.iter().map(|truth| truth[eval]).collect());
        (total > 0.0).then(|| squares(errors) / total)
    };
    let shares: Vec<f64> = (0..n_evals).filter_map(share).collect();
    shares.iter().sum::<f64>() / shares.len() as f64
}

/// Σ (x − x̄)².
fn squares(values: Vec<f64>) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    values.iter().map(|value| (value - mean).powi(2)).sum()
}

/// 1 / Σ wᵢ² over the experts of a mixture: how many of them it has in effect.
pub(super) fn effective_number(mixture: &Mixture) -> f64 {
    1.0 / mixture.members().map(|(_, _, weight)| weight * weight).sum::<f64>()
}

/// What training all experts of the pool took.
pub(super) fn expert_cost(pool: &Pool) -> Result<Cost> {
    let mut cost = Cost::default();
    for partition in pool.partitions()?.values() {
        cost += pool.unit_experts(partition)?.iter().flatten().map(Cost::of_training).sum();
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
    let keys: Vec<String> = merges.par_iter().map(|(_, members)| score_key(members)).collect();
    let keyed: Vec<_> = merges.iter().zip(&keys).collect();
    let missing: Vec<&Vec<Member>> =
        keyed.iter().filter(|(_, key)| !scorer.is_stored(key)).map(|((_, members), _)| members).collect();
    scorer.expect(missing.iter().copied().cloned());
    in_turns(&keyed, missing.len(), what, observer, |((label, members), key)| {
        scorer.try_score_keyed(key, members, label, kind, observer)
    })
}

/// Scores one item after the other with progress over those that are `missing` from the store. Items that another process is
/// at (`score` gives none) are put off until the others are done.
pub(super) fn in_turns<T>(
    items: &[T],
    missing: usize,
    what: &str,
    observer: &dyn Observer,
    mut score: impl FnMut(&T) -> Result<Option<Vec<Scored>>>,
) -> Result<Vec<Vec<Scored>>> {
    if missing > 0 {
        observer.begin(what, missing as u64, "mixtures");
    }
    let mut done = 0;
    let mut scored: Vec<Option<Vec<Scored>>> = items.iter().map(|_| None).collect();
    let mut left: Vec<usize> = (0..items.len()).collect();
    while !left.is_empty() {
        let before = left.len();
        for index in std::mem::take(&mut left) {
            let Some(scores) = score(&items[index])? else {
                left.push(index);
                continue;
            };
            if scores.iter().any(|score| !score.cached) {
                done += 1;
                observer.advance(done, "");
            }
            scored[index] = Some(scores);
        }
        if left.len() == before {
            Scorer::pause(observer)?;
        }
    }
    if missing > 0 {
        observer.finish();
    }
    Ok(scored.into_iter().flatten().collect())
}

/// The losses of scored merges, nats per token.
pub(super) fn losses(scored: &[Vec<Scored>]) -> Vec<Vec<f64>> {
    scored.iter().map(|scored| scored.iter().map(|scored| scored.record.score.loss()).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_explains_nothing_away_and_costs_nothing() {
        let truth = [vec![2.0, 5.0], vec![3.0, 5.0], vec![7.0, 5.0]]; // constant on the second eval set: left out
        let offset = truth.clone().map(|losses| losses.iter().map(|loss| loss + 0.5).collect());
        assert_eq!(unexplained(&offset, &truth), 0.0);
        let halved = truth.clone().map(|losses| losses.iter().map(|loss| loss / 2.0).collect());
        assert_eq!(unexplained(&halved, &truth), 0.25);
        assert!(unexplained(&halved[..1], &truth[..1]).is_nan()); // no variance: nothing is chosen
    }
}
