//! Comparison: how well every estimator's stored answers match the ground truth, and at what cost.

use super::agreement::Agreement;
use crate::estimators::{Answer, Cost, Gives};
use std::collections::{BTreeMap, BTreeSet};

/// The fewest mixtures of one size that are worth a line of their own.
const FEWEST: usize = 4;

/// One estimator judged on one eval set, or on all of them together.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// The estimator that is judged.
    pub estimator: String,
    /// The eval set; none for the mean of every statistic over all eval sets.
    pub eval_set: Option<String>,
    /// Training tokens of every ground-truth model; none where they grow with the mixture.
    pub tokens: Option<u64>,
    /// Number of partitions of the mixtures compared; none for mixtures of every size.
    pub size: Option<usize>,
    /// The statistics.
    pub agreement: Agreement,
    /// Mean of predicted minus true loss, nats per token; none for an order.
    pub mean_offset: Option<f64>,
    /// Largest minus smallest true loss, nats per token: what there is to tell apart.
    pub true_spread: f64,
    /// What the estimator cost.
    pub cost: Cost,
}

/// Judges all estimators among `answers` by the ground truth among them, mixtures that both speak of.
///
/// For each estimator: all eval sets together, then each; of every size, then each size that has at least four mixtures.
pub fn compare(answers: &[Answer]) -> Vec<Judgement> {
    let truths: BTreeMap<_, &Answer> = answers
        .iter()
        .filter(|answer| answer.is_truth())
        .map(|answer| ((answer.tokens, &answer.eval_set), answer))
        .collect();
    let mut estimators: Vec<(Option<u64>, &String)> = Vec::new();
    for answer in answers.iter().filter(|answer| !answer.estimator.starts_with("ground-truth")) {
        let key = (answer.tokens, &answer.estimator);
        if !estimators.contains(&key) {
            estimators.push(key);
        }
    }
    let mut judgements = Vec::new();
    for (tokens, estimator) in estimators {
        let of = answers.iter().filter(|answer| answer.tokens == tokens && answer.estimator == *estimator);
        let pairs: Vec<Pair<'_>> =
            of.filter_map(|answer| Some(Pair { answer, truth: truths.get(&(tokens, &answer.eval_set))? })).collect();
        let sizes: BTreeSet<usize> = pairs.iter().flat_map(|pair| pair.sizes()).collect();
        for size in std::iter::once(None).chain(sizes.into_iter().map(Some)) {
            let fewest = if size.is_some() { FEWEST } else { 2 };
            let each: Vec<Judgement> = pairs.iter().filter_map(|pair| pair.judge(size, fewest)).collect();
            judgements.extend(overall(&each));
            judgements.extend(each);
        }
    }
    judgements
}

/// An estimator's answer and the truth about the same eval set.
struct Pair<'a> {
    answer: &'a Answer,
    truth: &'a Answer,
}

impl Pair<'_> {
    /// Mixtures that both speak of.
    fn shared(&self) -> impl Iterator<Item = &String> {
        self.truth.predictions.keys().filter(|mixture| self.answer.predictions.contains_key(*mixture))
    }

    fn sizes(&self) -> BTreeSet<usize> {
        self.shared().map(|mixture| size_of(mixture)).collect()
    }

    fn judge(&self, size: Option<usize>, fewest: usize) -> Option<Judgement> {
        let mixtures: Vec<String> =
            self.shared().filter(|mixture| size.is_none_or(|size| size_of(mixture) == size)).cloned().collect();
        if mixtures.len() < fewest {
            return None;
        }
        let (predicted, truth) = (self.answer.of(&mixtures)?, self.truth.of(&mixtures)?);
        let offset: f64 = predicted.iter().zip(&truth).map(|(predicted, truth)| predicted - truth).sum();
        let highest = truth.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lowest = truth.iter().copied().fold(f64::INFINITY, f64::min);
        Some(Judgement {
            estimator: self.answer.estimator.clone(),
            eval_set: Some(self.answer.eval_set.clone()),
            tokens: self.answer.tokens,
            size,
            agreement: Agreement::between(&predicted, &truth),
            mean_offset: (self.answer.gives == Gives::Loss).then(|| offset / mixtures.len() as f64),
            true_spread: highest - lowest,
            cost: self.answer.cost,
        })
    }
}

/// The number of partitions in a mixture, as it is written.
fn size_of(mixture: &str) -> usize {
    mixture.split('+').count()
}

/// The mean of every statistic over several eval sets, as far as it is defined on them.
fn overall(each: &[Judgement]) -> Option<Judgement> {
    let first = each.first().filter(|_| each.len() > 1)?;
    let mean = |value: fn(&Judgement) -> Option<f64>| {
        let values: Vec<f64> = each.iter().filter_map(value).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let agreement = Agreement {
        n: first.agreement.n,
        pearson: mean(|one| one.agreement.pearson),
        spearman: mean(|one| one.agreement.spearman),
        kendall: mean(|one| one.agreement.kendall),
        decision_accuracy: mean(|one| one.agreement.decision_accuracy),
        top_overlap: mean(|one| one.agreement.top_overlap),
        top_k: first.agreement.top_k,
        regret: mean(|one| one.agreement.regret),
    };
    let (mean_offset, spread) = (mean(|one| one.mean_offset), mean(|one| Some(one.true_spread)));
    Some(Judgement { eval_set: None, agreement, mean_offset, true_spread: spread.unwrap_or_default(), ..first.clone() })
}
