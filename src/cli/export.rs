//! Export commands: rankings, scores and merged models as files.

use super::exchange::{ExportTables, Form};
use super::question::rows;
use super::show::objects_beginning_with;
use super::{NotationArgs, Session};
use crate::error::{Error, Result};
use crate::estimators::{Answer, Cost, Gives};
use crate::files;
use crate::merge::average;
use crate::model::{Checkpoint, write_checkpoint};
use crate::pool::{Pool, Scored};
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
    /// Example: mixpool export model code=0.7+wiki=0.3 --out merged
    Model(ExportModel),
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

#[derive(Args)]
pub(super) struct ExportModel {
    /// A mixture, `seed`, or the first digits (eight at least) of an object's id
    mixture: String,
    /// The folder to write; must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    notation: NotationArgs,
}

impl Export {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let pool = session.open()?;
        let out = match self {
            Self::Ranking(ExportRanking { evals, out, form }) => {
                let scorer = pool.scorer(&evals)?;
                let answers: Vec<Answer> = scorer.stored("merged").into_iter().map(merged).collect();
                write_table(&out, &form.table(&rows(&scorer, &answers, usize::MAX)?, &pool)?)?;
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
            Self::Olmix(command) => command.write(&pool, Neighbour::Olmix, session)?,
            Self::Regmix(command) => command.write(&pool, Neighbour::RegMix, session)?,
        };
        session.observer.note(&format!("wrote '{}'", out.display()));
        Ok(())
    }
}

impl ExportModel {
    fn write(self, pool: &Pool) -> Result<PathBuf> {
        let members = if self.mixture == "seed" {
            let id = pool.seed_recipe()?.id()?;
            let manifest = pool.manifest(&id)?;
            let missing = || Error::Usage("the seed model is not trained yet; run 'mixpool train seed' first".into());
            pool.single(&manifest.ok_or_else(missing)?)
        } else if is_id(&self.mixture) && !pool.unit_counts()?.contains_key(&self.mixture) {
            match objects_beginning_with(pool, &self.mixture)?.as_slice() {
                [manifest] => pool.single(manifest),
                several => {
                    let n = several.len();
                    return Err(Error::Usage(format!("{n} objects begin with '{}'; give more digits", self.mixture)));
                }
            }
        } else {
            pool.experts()?.members(&self.notation.parse(std::slice::from_ref(&self.mixture), pool)?[0])?
        };
        if self.out.exists() {
            return Err(Error::Usage(format!("'{}' exists already; choose another --out", self.out.display())));
        }
        let open = members.iter().map(|member| Pool::checkpoint(&member.folder)).collect::<Result<Vec<_>>>()?;
        let weighted: Vec<(f64, &Checkpoint)> = members.iter().map(|member| member.weight).zip(&open).collect();
        let mut values = vec![0f32; pool.layout().len()];
        average(&mut values, pool.layout(), &weighted)?;
        let staging = files::Staging::new(&self.out)?;
        write_checkpoint(&staging.file("."), &pool.settings().model, pool.layout(), &values)?;
        pool.copy_tokenizer(&staging)?;
        staging.write("README.md", self.card(pool).as_bytes())?;
        staging.publish(&self.out)?;
        Ok(self.out)
    }

    /// A model card that says what was merged.
    fn card(&self, pool: &Pool) -> String {
        format!(
            "# {}\n\nWritten by mixpool {} as the parameter average of the experts in the mixture `{}`\n\
             (weights kept in f64, one rounding to f32). {} parameters, tokenizer `{}`.\n",
            self.mixture,
            env!("CARGO_PKG_VERSION"),
            self.mixture,
            pool.layout().len(),
            pool.settings().tokenizer
        )
    }
}

/// Whether a text can only be the beginning of an object's id, unless a partition is called so.
fn is_id(text: &str) -> bool {
    text.len() >= 8 && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// The scores of merges as an answer.
fn merged((eval_set, scores): (String, Vec<Scored>)) -> Answer {
    let predictions = scores.into_iter().map(|scored| (scored.record.mixture, scored.record.score.loss()));
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
