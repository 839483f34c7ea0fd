//! Validate command: trains mixtures for real and reports how well merging predicted them.

use super::data::{token_budget, train_seed};
use super::question::{CandidateArgs, score_all};
use super::{NotationArgs, Session, print};
use crate::error::{Error, Result};
use crate::mixture::Mixture;
use crate::pool::{Pool, Scored, Scorer};
use crate::progress::Observer;
use crate::report::{AgreementRow, render, write_csv};
use crate::rng::Stream;
use clap::Args;
use std::path::PathBuf;

/// Train some mixtures for real and report how well merging predicted them
///
/// Trains a model on each chosen mixture, scores it on every eval set, and compares with the scores of the merged
/// experts: Pearson, Spearman, Kendall's tau-b, share of pairs in the right order, and what picking by the proxy would
/// have cost. Trained models are kept in the pool.
///
/// Example: mixpool validate --mixtures 8 --csv agreement.csv
#[derive(Args)]
pub(super) struct Validate {
    /// Number of mixtures, drawn at random from the candidates
    #[arg(long, value_name = "N")]
    mixtures: Option<usize>,
    #[command(flatten)]
    candidates: CandidateArgs,
    /// Training tokens per mixture, e.g. 500k [default: those of the experts in it together]
    #[arg(long, value_name = "TOKENS")]
    tokens: Option<String>,
    /// Eval sets [default: all]
    #[arg(long = "eval", value_name = "NAME", num_args = 1..)]
    evals: Vec<String>,
    /// Also write the agreement to a CSV file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    notation: NotationArgs,
}

impl Validate {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let pool = session.open()?;
        let mut mixtures = self.candidates.mixtures(&pool, self.notation)?;
        if let Some(n) = self.mixtures {
            mixtures = draw(mixtures, n);
        }
        if mixtures.len() < 2 {
            return Err(Error::Usage("at least two mixtures are needed to compare orders".into()));
        }
        let tokens = token_budget(self.tokens.as_deref())?;
        let mut scorer = pool.scorer(&self.evals)?;
        let merged = score_all(&pool, &mut scorer, &mixtures, "score merges", &session.observer)?;
        let truth = ground_truth(&pool, &mut scorer, &mixtures, tokens, &session.observer)?;
        let rows = agreement(&scorer.eval_names(), &merged, &truth);
        if let Some(path) = &self.csv {
            write_csv(path, &rows)?;
        }
        print(&render(&rows, session.format)?)
    }
}

/// `n` of the candidates, chosen at random but always the same ones, in their order.
pub(super) fn draw(candidates: Vec<Mixture>, n: usize) -> Vec<Mixture> {
    let mut chosen = Stream::new(0, "validate").permutation(candidates.len());
    chosen.truncate(n);
    chosen.sort_unstable();
    chosen.into_iter().map(|index| candidates[index as usize].clone()).collect()
}

/// Trains every mixture for real and scores the models.
pub(super) fn ground_truth(
    pool: &Pool,
    scorer: &mut Scorer<'_>,
    mixtures: &[Mixture],
    tokens: Option<u64>,
    observer: &dyn Observer,
) -> Result<Vec<Vec<Scored>>> {
    train_seed(pool, observer)?;
    let train = |(index, mixture): (usize, &Mixture)| {
        let name = format!("truth {}/{} {mixture}", index + 1, mixtures.len());
        let manifest = pool.get_or_train(&pool.mixture_recipe(mixture, tokens)?, &name, observer)?;
        scorer.score_as(&pool.single(&manifest), &mixture.to_string(), "ground-truth", observer)
    };
    mixtures.iter().enumerate().map(train).collect()
}

/// How well the merged scores match the true ones, per eval set.
pub(super) fn agreement(evals: &[String], merged: &[Vec<Scored>], truth: &[Vec<Scored>]) -> Vec<AgreementRow> {
    let losses = |scored: &[Vec<Scored>], eval: usize| -> Vec<f64> {
        scored.iter().map(|scored| scored[eval].record.score.loss()).collect()
    };
    let row = |(index, name): (usize, &String)| {
        AgreementRow::new(name, "merged", &losses(merged, index), &losses(truth, index))
    };
    evals.iter().enumerate().map(row).collect()
}
