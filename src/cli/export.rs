//! Export commands: rankings and scores as files; models are written by their own module.

use super::Session;
use super::exchange::{ExportTables, Form};
use super::models::{ExportMergekit, ExportModel};
use super::question::rows;
use crate::error::Result;
use crate::estimators::{Answer, Cost, Gives};
use crate::pool::Scored;
use crate::progress::Observer;
use crate::report::{Neighbour, ScoreRow, write_table};
use clap::{Args, Subcommand};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Subcommand)]
pub(super) enum Export {
    /// Write a ranking of what was scored so far to a file; computes nothing
    ///
    /// Example: mixpool export ranking --wide --out ranking.parquet
    Ranking(ExportRanking),
    /// Write every stored score to a file; computes nothing
    Scores(ExportScores),
    /// Write the seed model, the average of a mixture's experts, or an object, as a Hugging Face folder
    ///
    /// Example: mixpool export model code=0.7+wiki=0.3 --out merged --dtype bf16
    Model(ExportModel),
    /// Write a mixture as a merge configuration for mergekit
    ///
    /// Example: mixpool export mergekit code=0.7+wiki=0.3 --out merge.yaml
    Mergekit(ExportMergekit),
    /// Write stored losses as olmix keeps them, ratios.csv and metrics.csv; computes nothing
    ///
    /// Example: mixpool export olmix --estimator ground-truth --out swarm
    Olmix(ExportTables),
    /// Write stored losses as `RegMix` keeps them, mixture.csv, loss.csv and a YAML file a mixture; computes nothing
    Regmix(ExportTables),
}

#[derive(Args)]
pub(super) struct ExportRanking {
    /// Eval sets [default: all]
    #[arg(long = "eval", value_name = "NAME", num_args = 1..)]
    evals: Vec<String>,
    /// The file to write: .csv, .json, .jsonl, .md or .parquet
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    form: Form,
}

#[derive(Args)]
pub(super) struct ExportScores {
    /// The file to write: .csv, .json, .jsonl, .md or .parquet
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    form: Form,
}

impl Export {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let pool = session.open()?;
        if matches!(self, Self::Model(_)) {
            pool.needs_cpu("'export model'")?;
        }
        let out = match self {
            Self::Ranking(ExportRanking { evals, out, form }) => {
                let scorer = pool.scorer(&evals)?;
                let answers: Vec<Answer> = scorer.stored("merged").into_iter().map(merged).collect();
                let sizes = pool.eval_sizes(&scorer.eval_names())?;
                write_table(&out, &form.table(&rows(&sizes, &answers, usize::MAX), &pool)?)?;
                out
            }
            Self::Scores(ExportScores { out, form }) => {
                let stored = pool.scorer(&[])?.stored("merged");
                let records = stored.into_iter().flat_map(|(_, records)| records);
                let rows: Vec<ScoreRow> = records.map(|s| ScoreRow::new(&s.record.mixture, &s)).collect();
                write_table(&out, &form.table(&rows, &pool)?)?;
                out
            }
            Self::Model(command) => command.write(&pool)?,
            Self::Mergekit(command) => command.write(&pool)?,
            Self::Olmix(command) => command.write(&pool, Neighbour::Olmix, session)?,
            Self::Regmix(command) => command.write(&pool, Neighbour::RegMix, session)?,
        };
        session.observer.note(&format!("wrote '{}'", out.display()));
        Ok(())
    }
}

/// The scores of merges as an answer.
fn merged((eval_set, scores): (String, Vec<Scored>)) -> Answer {
    let predictions = scores.into_iter().map(|scored| (scored.record.mixture.clone(), scored.record.score.loss()));
    Answer {
        estimator: "merged".into(),
        options: BTreeMap::new(),
        gives: Gives::Loss,
        eval_set,
        tokens: None,
        cost: Cost::default(),
        predictions: predictions.collect(),
    }
}
