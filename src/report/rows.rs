//! Rows: the columns of every table and export, in one place.

use crate::estimators::{Answer, Gives};
use crate::eval::Score;
use crate::pool::Scored;
use crate::rank::{Entry, Judgement, Ranking};
use serde::Serialize;

/// One document of a partition and one eval set it was scored for, as `filter` writes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DocumentRow {
    /// The document's number, from 1.
    pub document: usize,
    /// The eval set.
    pub eval_set: String,
    /// Tokens of the document.
    pub n_tokens: u64,
    /// How much the document should help on the eval set; more is better. None for an empty document.
    pub influence: Option<f64>,
    /// What decided: the largest influence on any of the eval sets.
    pub score: Option<f64>,
    /// Whether the document was kept.
    pub kept: bool,
}

/// One mixture on one eval set, as `score` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScoreRow {
    /// The mixture.
    pub mixture: String,
    /// The eval set.
    pub eval_set: String,
    /// Nats per token.
    pub loss: f64,
    /// e to the loss.
    pub perplexity: f64,
    /// Bits per byte of text.
    pub bits_per_byte: f64,
    /// Σ negative log-likelihood, nats.
    pub nll_sum: f64,
    /// Predicted tokens.
    pub n_tokens: u64,
    /// Bytes of text.
    pub n_bytes: u64,
    /// Documents.
    pub n_docs: u64,
    /// Whether the score was stored before.
    pub cached: bool,
    /// Seconds spent merging when it was computed.
    pub merge_seconds: f64,
    /// Seconds spent in the model when it was computed.
    pub eval_seconds: f64,
    /// Predicted tokens per second of the model when it was computed.
    pub tokens_per_second: f64,
}

impl ScoreRow {
    /// The row of one score.
    pub fn new(mixture: &str, scored: &Scored) -> Self {
        let (record, score) = (&scored.record, &scored.record.score);
        Self {
            mixture: mixture.to_owned(),
            eval_set: scored.eval_set.clone(),
            loss: score.loss(),
            perplexity: score.perplexity(),
            bits_per_byte: score.bits_per_byte(),
            nll_sum: score.nll_sum,
            n_tokens: score.n_tokens,
            n_bytes: score.n_bytes,
            n_docs: score.n_docs,
            cached: scored.cached,
            merge_seconds: record.merge_seconds,
            eval_seconds: record.eval_seconds,
            tokens_per_second: score.n_tokens as f64 / record.eval_seconds,
        }
    }
}

/// One candidate of a ranking.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RankingRow {
    /// 1 for the best; equal predictions share a rank.
    pub rank: usize,
    /// The mixture.
    pub mixture: String,
    /// What predicted it.
    pub estimator: String,
    /// The eval set.
    pub eval_set: String,
    /// Nats per token; none where the estimator predicts only an order.
    pub loss: Option<f64>,
    /// e to the loss.
    pub perplexity: Option<f64>,
    /// Bits per byte of text.
    pub bits_per_byte: Option<f64>,
    /// What an estimator that predicts only an order gave; the smallest is best.
    pub order: Option<f64>,
    /// Predicted tokens of the eval set.
    pub n_tokens: u64,
    /// Its bytes of text.
    pub n_bytes: u64,
    /// Its documents.
    pub n_docs: u64,
}

impl RankingRow {
    /// The rows of an answer, best first; `size` holds the counts of its eval set.
    pub fn of(answer: &Answer, size: &Score) -> Vec<Self> {
        let predictions = answer.predictions.iter().map(|(mixture, value)| (mixture.clone(), *value));
        let is_loss = answer.gives == Gives::Loss;
        let tokens_per_bit = size.n_tokens as f64 / (size.n_bytes as f64 * std::f64::consts::LN_2);
        let row = |entry: Entry| {
            let loss = is_loss.then_some(entry.prediction);
            Self {
                rank: entry.rank,
                mixture: entry.mixture,
                estimator: answer.estimator.clone(),
                eval_set: answer.eval_set.clone(),
                loss,
                perplexity: loss.map(f64::exp),
                bits_per_byte: loss.map(|loss| loss * tokens_per_bit),
                order: (!is_loss).then_some(entry.prediction),
                n_tokens: size.n_tokens,
                n_bytes: size.n_bytes,
                n_docs: size.n_docs,
            }
        };
        Ranking::new(&answer.eval_set, predictions).entries.into_iter().map(row).collect()
    }
}

/// How well an estimator matches the ground truth on one eval set, or on the mean over all, and what it cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AgreementRow {
    /// The estimator that is judged.
    pub estimator: String,
    /// The eval set; `(mean)` for the mean over all of them.
    pub eval_set: String,
    /// Training tokens of every ground-truth model; none where they grow with the mixture.
    pub truth_tokens: Option<u64>,
    /// Partitions in the mixtures compared; none for mixtures of every size.
    pub size: Option<usize>,
    /// Mixtures compared.
    pub n: usize,
    /// Pearson correlation of the losses.
    pub pearson: Option<f64>,
    /// Low end of its 95 % bootstrap interval.
    pub pearson_low: Option<f64>,
    /// High end of it.
    pub pearson_high: Option<f64>,
    /// Spearman correlation.
    pub spearman: Option<f64>,
    /// Low end of its 95 % bootstrap interval.
    pub spearman_low: Option<f64>,
    /// High end of it.
    pub spearman_high: Option<f64>,
    /// Kendall's τ-b.
    pub kendall: Option<f64>,
    /// Low end of its 95 % bootstrap interval.
    pub kendall_low: Option<f64>,
    /// High end of it.
    pub kendall_high: Option<f64>,
    /// Share of pairs put in the right order.
    pub decision_accuracy: Option<f64>,
    /// Low end of its 95 % bootstrap interval.
    pub decision_accuracy_low: Option<f64>,
    /// High end of it.
    pub decision_accuracy_high: Option<f64>,
    /// Share of the predicted best quarter that is truly among the best quarter.
    pub top_overlap: Option<f64>,
    /// Low end of its 95 % bootstrap interval.
    pub top_overlap_low: Option<f64>,
    /// High end of it.
    pub top_overlap_high: Option<f64>,
    /// True loss of the estimator's pick minus the best true loss, nats per token.
    pub regret: Option<f64>,
    /// Low end of its 95 % bootstrap interval.
    pub regret_low: Option<f64>,
    /// High end of it.
    pub regret_high: Option<f64>,
    /// Mean of estimated minus true loss, nats per token.
    pub mean_offset: Option<f64>,
    /// Largest minus smallest true loss, nats per token: what there is to tell apart.
    pub true_spread: f64,
    /// Standard deviation of the loss of one mixture trained again, nats per token; none where none was.
    pub noise: Option<f64>,
    /// Pearson correlation of a perfect predictor under that noise.
    pub ceiling: Option<f64>,
    /// Tokens trained on, cached or not, the seed model not counted.
    pub train_tokens: u64,
    /// Floating-point operations of training and scoring.
    pub flops: f64,
    /// Seconds of training and scoring, as measured when it was done.
    pub seconds: f64,
    /// Whether this is the mean over several eval sets.
    #[serde(skip)]
    pub is_overall: bool,
}

impl From<Judgement> for AgreementRow {
    fn from(judgement: Judgement) -> Self {
        let Judgement { estimator, eval_set, tokens, size, agreement, intervals, noise, cost, .. } = judgement;
        let is_overall = eval_set.is_none();
        let low = |interval: Option<(f64, f64)>| interval.map(|(low, _)| low);
        let high = |interval: Option<(f64, f64)>| interval.map(|(_, high)| high);
        Self {
            estimator,
            eval_set: eval_set.unwrap_or_else(|| "(mean)".into()),
            truth_tokens: tokens,
            size,
            n: agreement.n,
            pearson: agreement.pearson,
            pearson_low: low(intervals.pearson),
            pearson_high: high(intervals.pearson),
            spearman: agreement.spearman,
            spearman_low: low(intervals.spearman),
            spearman_high: high(intervals.spearman),
            kendall: agreement.kendall,
            kendall_low: low(intervals.kendall),
            kendall_high: high(intervals.kendall),
            decision_accuracy: agreement.decision_accuracy,
            decision_accuracy_low: low(intervals.decision_accuracy),
            decision_accuracy_high: high(intervals.decision_accuracy),
            top_overlap: agreement.top_overlap,
            top_overlap_low: low(intervals.top_overlap),
            top_overlap_high: high(intervals.top_overlap),
            regret: agreement.regret,
            regret_low: low(intervals.regret),
            regret_high: high(intervals.regret),
            mean_offset: judgement.mean_offset,
            true_spread: judgement.true_spread,
            noise: noise.map(|noise| noise.sigma),
            ceiling: noise.map(|noise| noise.ceiling),
            train_tokens: cost.train_tokens,
            flops: cost.flops,
            seconds: cost.seconds,
            is_overall,
        }
    }
}

/// The columns of an [`AgreementRow`] that fit on a screen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AgreementLine {
    estimator: String,
    eval_set: String,
    truth_tokens: Option<u64>,
    size: Option<usize>,
    n: usize,
    spearman: Option<f64>,
    spearman_low: Option<f64>,
    spearman_high: Option<f64>,
    pearson: Option<f64>,
    kendall: Option<f64>,
    decision_accuracy: Option<f64>,
    regret: Option<f64>,
    mean_offset: Option<f64>,
    train_tokens: u64,
    seconds: f64,
}

impl From<&AgreementRow> for AgreementLine {
    fn from(row: &AgreementRow) -> Self {
        Self {
            estimator: row.estimator.clone(),
            eval_set: row.eval_set.clone(),
            truth_tokens: row.truth_tokens,
            size: row.size,
            n: row.n,
            spearman: row.spearman,
            spearman_low: row.spearman_low,
            spearman_high: row.spearman_high,
            pearson: row.pearson,
            kendall: row.kendall,
            decision_accuracy: row.decision_accuracy,
            regret: row.regret,
            mean_offset: row.mean_offset,
            train_tokens: row.train_tokens,
            seconds: row.seconds,
        }
    }
}
