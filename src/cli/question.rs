//! Question commands: score, rank, export.

use super::{NotationArgs, Session, print};
use crate::error::{Error, Result};
use crate::eval::Score as Sums;
use crate::files;
use crate::merge::average;
use crate::mixture::{Mixture, Notation};
use crate::model::{Checkpoint, write_checkpoint};
use crate::pool::{Pool, Scored, Scorer};
use crate::progress::Observer;
use crate::rank::Ranking;
use crate::report::{Format, RankingRow, ScoreRow, render, write_csv};
use crate::search;
use clap::{Args, Subcommand};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Score mixtures by merging experts
///
/// A mixture is `code+wiki` (equal weights), `code=0.7+wiki=0.3` (weights), `code:3+wiki:1` (units) or `all`.
///
/// Example: mixpool score code code+wiki code=0.7+wiki=0.3 --eval wiki-test --format json
#[derive(Args)]
pub(super) struct Score {
    /// Mixtures
    #[arg(required = true)]
    mixtures: Vec<String>,
    /// Eval sets [default: all]
    #[arg(long = "eval", value_name = "NAME", num_args = 1..)]
    evals: Vec<String>,
    #[command(flatten)]
    notation: NotationArgs,
}

impl Score {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let pool = session.open()?;
        let mixtures = self.notation.parse(&self.mixtures, &pool)?;
        let mut scorer = pool.scorer(&self.evals)?;
        let scored = score_all(&pool, &mut scorer, &mixtures, "score", &session.observer)?;
        let pairs = mixtures.iter().zip(&scored);
        let rows = pairs.flat_map(|(mixture, scored)| {
            scored.iter().map(move |scored| (mixture.weights(), ScoreRow::new(&mixture.to_string(), scored)))
        });
        if session.format == Format::Json {
            let with_weights = rows.map(|(weights, row)| -> Result<serde_json::Value> {
                let mut value = serde_json::to_value(row).map_err(|error| Error::input("score", error.to_string()))?;
                value["weights"] = json!(weights);
                Ok(value)
            });
            let scores = with_weights.collect::<Result<Vec<_>>>()?;
            return print(&String::from_utf8_lossy(&files::to_json(&json!({ "scores": scores }))?));
        }
        print(&render(&rows.map(|(_, row)| row).collect::<Vec<_>>(), session.format)?)
    }
}

/// Scores every mixture on every eval set of the scorer, cached where possible.
pub(super) fn score_all(
    pool: &Pool,
    scorer: &mut Scorer<'_>,
    mixtures: &[Mixture],
    what: &str,
    observer: &dyn Observer,
) -> Result<Vec<Vec<Scored>>> {
    let experts = pool.experts()?;
    let members = mixtures.iter().map(|mixture| experts.members(mixture)).collect::<Result<Vec<_>>>()?;
    let missing = members.iter().filter(|members| !scorer.is_cached(members)).count();
    if missing > 0 {
        observer.begin(what, missing as u64, "mixtures");
    }
    let mut done = 0;
    let mut scored = Vec::with_capacity(mixtures.len());
    for (mixture, members) in mixtures.iter().zip(&members) {
        let scores = scorer.score(members, &mixture.to_string(), observer)?;
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

/// Which mixtures are candidates.
#[derive(Args, Clone)]
pub(super) struct CandidateArgs {
    /// Every subset of A to B partitions, equally weighted [default: of every size]
    #[arg(long, value_name = "A..=B", group = "candidates-from")]
    subsets: Option<String>,
    /// Every mixture whose weights are multiples of STEP
    #[arg(long, value_name = "STEP", group = "candidates-from")]
    grid: Option<f64>,
    /// N random mixtures from a flat Dirichlet distribution
    #[arg(long, value_name = "N", group = "candidates-from")]
    dirichlet: Option<usize>,
    /// Mixtures from a file: one a line, or a CSV with a column `mixture`
    #[arg(long, value_name = "FILE", group = "candidates-from")]
    candidates: Option<PathBuf>,
    /// Seeds random candidates
    #[arg(long, default_value_t = 0, value_name = "N")]
    random_seed: u64,
}

impl CandidateArgs {
    pub(super) fn mixtures(&self, pool: &Pool, notation: NotationArgs) -> Result<Vec<Mixture>> {
        let mixtures = self.all(pool, notation)?;
        if mixtures.is_empty() {
            return Err(Error::Usage("0 candidates were asked for; expected at least one mixture".into()));
        }
        Ok(mixtures)
    }

    fn all(&self, pool: &Pool, notation: NotationArgs) -> Result<Vec<Mixture>> {
        let partitions = pool.unit_counts()?;
        if let Some(path) = &self.candidates {
            let read = |(line, text): (usize, String)| {
                Mixture::parse(&text, &partitions, notation.notation())
                    .map_err(|error| Error::input(format!("{}:{line}", path.display()), error.to_string()))
            };
            let mut mixtures: Vec<Mixture> =
                search::read_candidates(path)?.into_iter().map(read).collect::<Result<_>>()?;
            let mut seen = BTreeSet::new(); // a ranking names each mixture once per eval set
            mixtures.retain(|mixture| seen.insert(mixture.to_string()));
            return Ok(mixtures);
        }
        let names: Vec<String> = partitions.keys().cloned().collect();
        if names.is_empty() {
            return Err(Error::Usage("no partition yet; run 'mixpool register NAME FILE...' first".into()));
        }
        if let Some(step) = self.grid {
            return weighted(&search::grid(&names, step)?, &partitions);
        }
        if let Some(n) = self.dirichlet {
            return weighted(&search::dirichlet(&names, n, self.random_seed, 1.0)?, &partitions);
        }
        let sizes = match &self.subsets {
            Some(text) => parse_range(text)?,
            None => 1..=names.len(),
        };
        subsets(&partitions, sizes, notation.notation())
    }
}

/// Every subset of the partitions whose size lies in `sizes`.
pub(super) fn subsets(
    partitions: &BTreeMap<String, usize>,
    sizes: std::ops::RangeInclusive<usize>,
    notation: Notation,
) -> Result<Vec<Mixture>> {
    let names: Vec<String> = partitions.keys().cloned().collect();
    let bare = |subset: &search::Weights| subset.keys().cloned().collect::<Vec<_>>().join("+");
    let subsets = search::subsets(&names, sizes)?;
    subsets.iter().map(|subset| Mixture::parse(&bare(subset), partitions, notation)).collect()
}

fn weighted(candidates: &[search::Weights], partitions: &BTreeMap<String, usize>) -> Result<Vec<Mixture>> {
    candidates.iter().map(|weights| Mixture::from_weights(weights, partitions)).collect()
}

/// Reads `2..=4`, `2..4` (4 excluded) or `3`.
fn parse_range(text: &str) -> Result<std::ops::RangeInclusive<usize>> {
    let number = |text: &str| text.trim().parse::<usize>().ok();
    let range = if let Some((first, last)) = text.split_once("..=") {
        number(first).zip(number(last))
    } else if let Some((first, end)) = text.split_once("..") {
        number(first).zip(number(end).and_then(|end| end.checked_sub(1)))
    } else {
        number(text).map(|size| (size, size))
    };
    let (first, last) =
        range.ok_or_else(|| Error::Usage(format!("'--subsets {text}': expected a range of sizes such as 1..=3")))?;
    Ok(first..=last)
}

/// Rank candidate mixtures by merging experts
///
/// Without options: every subset of the partitions, on every eval set. Finished scores are kept: an interrupted ranking
/// goes on where it stopped, and a repeated one reads what is stored.
///
/// Examples: mixpool rank --top 5 | mixpool rank --subsets 2..=3 --eval wiki-test --csv ranking.csv
#[derive(Args)]
pub(super) struct Rank {
    #[command(flatten)]
    candidates: CandidateArgs,
    /// Eval sets [default: all]
    #[arg(long = "eval", value_name = "NAME", num_args = 1..)]
    evals: Vec<String>,
    /// Show only the best N of each eval set [default: 10 in a table, all elsewhere]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Also write the whole ranking to a CSV file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    notation: NotationArgs,
}

impl Rank {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let pool = session.open()?;
        let mixtures = self.candidates.mixtures(&pool, self.notation)?;
        let mut scorer = pool.scorer(&self.evals)?;
        let scored = score_all(&pool, &mut scorer, &mixtures, "rank", &session.observer)?;
        let rankings = rankings(&scorer.eval_names(), &mixtures, &scored);
        if let Some(path) = &self.csv {
            write_csv(path, &rows(&rankings, usize::MAX))?;
            session.observer.note(&format!("wrote '{}'", path.display()));
        }
        let top = self.top.unwrap_or(if session.format == Format::Table { 10 } else { usize::MAX });
        print(&render(&rows(&rankings, top), session.format)?)
    }
}

/// One ranking per eval set.
pub(super) fn rankings(evals: &[String], mixtures: &[Mixture], scored: &[Vec<Scored>]) -> Vec<Ranking> {
    let candidates = |index: usize| -> Vec<(String, Sums)> {
        mixtures.iter().zip(scored).map(|(m, scored)| (m.to_string(), scored[index].record.score)).collect()
    };
    evals.iter().enumerate().map(|(index, name)| Ranking::new(name, candidates(index))).collect()
}

/// The rows of several rankings.
pub(super) fn rows(rankings: &[Ranking], top: usize) -> Vec<RankingRow> {
    rankings.iter().flat_map(|ranking| RankingRow::of(ranking, "merged", top)).collect()
}

#[derive(Subcommand)]
pub(super) enum Export {
    /// Write a ranking of what was scored so far to a CSV file; computes nothing
    Ranking(ExportRanking),
    /// Write every stored score to a CSV file; computes nothing
    Scores(ExportScores),
    /// Write the seed model, or the average of a mixture's experts, as a Hugging Face folder
    ///
    /// Example: mixpool export model code=0.7+wiki=0.3 --out merged
    Model(ExportModel),
}

#[derive(Args)]
pub(super) struct ExportRanking {
    /// Eval sets [default: all]
    #[arg(long = "eval", value_name = "NAME", num_args = 1..)]
    evals: Vec<String>,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Args)]
pub(super) struct ExportScores {
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Args)]
pub(super) struct ExportModel {
    /// A mixture, or `seed`
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
            Self::Ranking(ExportRanking { evals, out }) => {
                let scorer = pool.scorer(&evals)?;
                let ranking = |(name, records): (String, Vec<Scored>)| {
                    Ranking::new(&name, records.into_iter().map(|s| (s.record.mixture, s.record.score)))
                };
                let rankings: Vec<Ranking> = scorer.stored("merged").into_iter().map(ranking).collect();
                write_csv(&out, &rows(&rankings, usize::MAX))?;
                out
            }
            Self::Scores(ExportScores { out }) => {
                let stored = pool.scorer(&[])?.stored("merged");
                let records = stored.into_iter().flat_map(|(_, records)| records);
                let rows: Vec<ScoreRow> = records.map(|s| ScoreRow::new(&s.record.mixture, &s)).collect();
                write_csv(&out, &rows)?;
                out
            }
            Self::Model(command) => command.write(&pool)?,
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
