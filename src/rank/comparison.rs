//! Comparison: how well every estimator's stored answers match the ground truth, how surely, and at what cost.

use super::{Agreement, Intervals, Noise, RESAMPLES};
use crate::estimators::{Answer, Cost, Gives};
use std::collections::{BTreeMap, BTreeSet};

/// The fewest mixtures of one size that are worth a line of their own.
const FEWEST: usize = 4;
/// What the intervals hold of the resamples.
const LEVEL: f64 = 0.95;

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
    /// 95 % bootstrap intervals of the statistics; of means, on the mixtures that all eval sets share.
    pub intervals: Intervals,
    /// Mean of predicted minus true loss, nats per token; none for an order.
    pub mean_offset: Option<f64>,
    /// Largest minus smallest true loss, nats per token: what there is to tell apart.
    pub true_spread: f64,
    /// How much of the spread is chance; none where no mixture was trained twice.
    pub noise: Option<Noise>,
    /// What the estimator cost.
    pub cost: Cost,
}

/// Judges all estimators among `answers` by the ground truth among them, mixtures that both speak of.
///
/// For each estimator: all eval sets together, then each; of every size, then each size that has at least four mixtures.
pub fn compare(answers: &[Answer]) -> Vec<Judgement> {
    let truths = truths(answers);
    let mut estimators: Vec<(Option<u64>, &String)> = Vec::new();
    for answer in answers.iter().filter(|answer| answer.repetition().is_none()) {
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
            let samples: Vec<Sample<'_>> = pairs.iter().filter_map(|pair| pair.sample(size, fewest)).collect();
            let each: Vec<Judgement> = samples.iter().map(|sample| sample.judge(size)).collect();
            judgements.extend(overall(&samples, &each));
            judgements.extend(each);
        }
    }
    judgements
}

/// The ground truth of one eval set.
struct Truth<'a> {
    first: &'a Answer,
    runs: Vec<Vec<f64>>, // of each mixture trained more than once: its losses
}

/// The ground truth by training tokens and eval set.
fn truths<'a>(answers: &'a [Answer]) -> BTreeMap<(Option<u64>, &'a String), Truth<'a>> {
    let truth = |first: &'a Answer| {
        let is_repeat = |answer: &&Answer| {
            let same = answer.tokens == first.tokens && answer.eval_set == first.eval_set;
            same && answer.repetition().is_some_and(|repetition| repetition > 0)
        };
        let repeats: Vec<&Answer> = answers.iter().filter(is_repeat).collect();
        let runs = first.predictions.iter().map(|(mixture, loss)| {
            let again = repeats.iter().filter_map(|repeat| repeat.predictions.get(mixture));
            std::iter::once(loss).chain(again).copied().collect()
        });
        let runs = runs.filter(|runs: &Vec<f64>| runs.len() > 1).collect();
        ((first.tokens, &first.eval_set), Truth { first, runs })
    };
    answers.iter().filter(|answer| answer.is_truth()).map(truth).collect()
}

/// An estimator's answer and the truth about the same eval set.
struct Pair<'a> {
    answer: &'a Answer,
    truth: &'a Truth<'a>,
}

impl<'a> Pair<'a> {
    /// Mixtures that both speak of.
    fn shared(&self) -> impl Iterator<Item = &'a String> {
        let predictions = &self.answer.predictions;
        self.truth.first.predictions.keys().filter(|mixture| predictions.contains_key(*mixture))
    }

    fn sizes(&self) -> BTreeSet<usize> {
        self.shared().map(|mixture| size_of(mixture)).collect()
    }

    /// The shared mixtures of a size; none when they are fewer than `fewest`.
    fn sample(&self, size: Option<usize>, fewest: usize) -> Option<Sample<'a>> {
        let mixtures: Vec<String> =
            self.shared().filter(|mixture| size.is_none_or(|size| size_of(mixture) == size)).cloned().collect();
        if mixtures.len() < fewest {
            return None;
        }
        let (predicted, truth) = (self.answer.of(&mixtures)?, self.truth.first.of(&mixtures)?);
        let noise = Noise::of(&self.truth.runs, &truth);
        Some(Sample { answer: self.answer, mixtures, predicted, truth, noise })
    }
}

/// Mixtures on one eval set: their losses as predicted and in truth, in the same order.
struct Sample<'a> {
    answer: &'a Answer,
    mixtures: Vec<String>,
    predicted: Vec<f64>,
    truth: Vec<f64>,
    noise: Option<Noise>,
}

impl Sample<'_> {
    fn judge(&self, size: Option<usize>) -> Judgement {
        let Self { answer, predicted, truth, noise, .. } = self;
        let offset: f64 = predicted.iter().zip(truth).map(|(predicted, truth)| predicted - truth).sum();
        let highest = truth.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lowest = truth.iter().copied().fold(f64::INFINITY, f64::min);
        Judgement {
            estimator: answer.estimator.clone(),
            eval_set: Some(answer.eval_set.clone()),
            tokens: answer.tokens,
            size,
            agreement: Agreement::between(predicted, truth),
            intervals: Intervals::of(predicted, truth, RESAMPLES, LEVEL),
            mean_offset: (answer.gives == Gives::Loss).then(|| offset / truth.len() as f64),
            true_spread: highest - lowest,
            noise: *noise,
            cost: answer.cost,
        }
    }

    /// Predictions and truth of some of the mixtures, in their order.
    fn of(&self, mixtures: &[&String]) -> (Vec<f64>, Vec<f64>) {
        let indices = mixtures.iter().filter_map(|mixture| self.mixtures.binary_search(mixture).ok());
        indices.map(|index| (self.predicted[index], self.truth[index])).unzip()
    }
}

/// The number of partitions in a mixture, as it is written.
fn size_of(mixture: &str) -> usize {
    mixture.split('+').count()
}

/// The mean of every statistic over several eval sets, as far as it is defined on them.
fn overall(samples: &[Sample<'_>], each: &[Judgement]) -> Option<Judgement> {
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
    let of_noise = |value: fn(&Judgement) -> Option<f64>| mean(value).unwrap_or_default();
    let noise = each.iter().any(|one| one.noise.is_some()).then(|| Noise {
        sigma: of_noise(|one| Some(one.noise?.sigma)),
        spread: of_noise(|one| Some(one.noise?.spread)),
        ceiling: of_noise(|one| Some(one.noise?.ceiling)),
    });
    Some(Judgement {
        eval_set: None,
        agreement,
        intervals: intervals_of_means(samples),
        mean_offset: mean(|one| one.mean_offset),
        true_spread: mean(|one| Some(one.true_spread)).unwrap_or_default(),
        noise,
        ..first.clone()
    })
}

/// Intervals of the means over all eval sets, on the mixtures they share.
fn intervals_of_means(samples: &[Sample<'_>]) -> Intervals {
    let Some((first, others)) = samples.split_first() else { return Intervals::default() };
    let everywhere = |mixture: &&String| others.iter().all(|sample| sample.mixtures.binary_search(mixture).is_ok());
    let shared: Vec<&String> = first.mixtures.iter().filter(everywhere).collect();
    let (predicted, truth): (Vec<_>, Vec<_>) = samples.iter().map(|sample| sample.of(&shared)).unzip();
    let (predicted, truth): (Vec<&[f64]>, Vec<&[f64]>) =
        predicted.iter().zip(&truth).map(|(predicted, truth)| (&predicted[..], &truth[..])).unzip();
    Intervals::overall(&predicted, &truth, RESAMPLES, LEVEL)
}
