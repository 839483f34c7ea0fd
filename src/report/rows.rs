//! Rows: the columns of every table and export, in one place.

use crate::pool::Scored;
use crate::rank::{Agreement, Ranking};
use serde::Serialize;

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
    /// 1 for the best; equal losses share a rank.
    pub rank: usize,
    /// The mixture.
    pub mixture: String,
    /// What predicted the score.
    pub estimator: &'static str,
    /// The eval set.
    pub eval_set: String,
    /// Nats per token.
    pub loss: f64,
    /// e to the loss.
    pub perplexity: f64,
    /// Bits per byte of text.
    pub bits_per_byte: f64,
    /// Predicted tokens.
    pub n_tokens: u64,
    /// Bytes of text.
    pub n_bytes: u64,
    /// Documents.
    pub n_docs: u64,
    /// Σ negative log-likelihood, nats.
    pub nll_sum: f64,
}

impl RankingRow {
    /// The rows of a ranking, best first; at most `top` of them.
    pub fn of(ranking: &Ranking, estimator: &'static str, top: usize) -> Vec<Self> {
        let row = |entry: &crate::rank::Entry| Self {
            rank: entry.rank,
            mixture: entry.mixture.clone(),
            estimator,
            eval_set: ranking.eval_set.clone(),
            loss: entry.score.loss(),
            perplexity: entry.score.perplexity(),
            bits_per_byte: entry.score.bits_per_byte(),
            n_tokens: entry.score.n_tokens,
            n_bytes: entry.score.n_bytes,
            n_docs: entry.score.n_docs,
            nll_sum: entry.score.nll_sum,
        };
        ranking.entries.iter().take(top).map(row).collect()
    }
}

/// How well an estimator's order matches the ground truth on one eval set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AgreementRow {
    /// The eval set.
    pub eval_set: String,
    /// The estimator that is judged.
    pub estimator: &'static str,
    /// Mixtures compared.
    pub n: usize,
    /// Pearson correlation of the losses.
    pub pearson: Option<f64>,
    /// Spearman correlation.
    pub spearman: Option<f64>,
    /// Kendall's τ-b.
    pub kendall: Option<f64>,
    /// Share of pairs put in the right order.
    pub decision_accuracy: Option<f64>,
    /// True loss of the estimator's pick minus the best true loss, nats per token.
    pub regret: Option<f64>,
    /// Mean of estimated minus true loss, nats per token.
    pub mean_offset: f64,
    /// Largest minus smallest true loss, nats per token: what there is to tell apart.
    pub true_spread: f64,
}

impl AgreementRow {
    /// Compares estimated with true losses of the same mixtures.
    pub fn new(eval_set: &str, estimator: &'static str, estimated: &[f64], truth: &[f64]) -> Self {
        let Agreement { n, pearson, spearman, kendall, decision_accuracy, regret, .. } =
            Agreement::between(estimated, truth);
        let offset: f64 = estimated.iter().zip(truth).map(|(estimated, truth)| estimated - truth).sum();
        let highest = truth.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lowest = truth.iter().copied().fold(f64::INFINITY, f64::min);
        Self {
            eval_set: eval_set.to_owned(),
            estimator,
            n,
            pearson,
            spearman,
            kendall,
            decision_accuracy,
            regret,
            mean_offset: offset / n as f64,
            true_spread: highest - lowest,
        }
    }
}
