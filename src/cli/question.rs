//! Question commands: score and rank, with the arguments that say what is asked about.

use super::data::token_budget;
use super::exchange::{Form, Output, short, table_mixtures};
use super::{NotationArgs, Session, print};
use crate::error::{Error, Result};
use crate::estimators::{Answer, Question, Spec, ask, score_all};
use crate::eval::Score as Sums;
use crate::files;
use crate::mixture::{Mixture, Notation};
use crate::pool::{Member, Pool};
use crate::progress::Observer;
use crate::report::{Format, RankingRow, ScoreRow, Table, json_line, render_table, write_csv};
use crate::search;
use clap::Args;
use rayon::prelude::*;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Score mixtures by merging experts
///
/// A mixture is `code+wiki` (equal weights), `code=0.7+wiki=0.3` (weights), `code:3+wiki:1` (units) or `all`.
///
/// Example: mixpool score code code+wiki code=0.7+wiki=0.3 --eval wiki-test --format json
#[derive(Args)]
pub(super) struct Score {
    /// Mixtures
    #[arg(required_unless_present = "candidates")]
    mixtures: Vec<String>,
    /// Also the mixtures of a file: one a line, a CSV with a column `mixture`, or a table of olmix or `RegMix`
    #[arg(long, value_name = "FILE")]
    candidates: Option<PathBuf>,
    /// Eval sets [default: all]
    #[arg(long = "eval", value_name = "NAME", num_args = 1..)]
    evals: Vec<String>,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    notation: NotationArgs,
}

impl Score {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        self.output.check()?;
        let pool = session.open()?;
        let mut mixtures = self.notation.parse(&self.mixtures, &pool)?;
        if let Some(path) = &self.candidates {
            mixtures.extend(read_mixtures(path, &pool, self.notation, &session.observer)?);
        }
        let mut scorer = pool.scorer(&self.evals)?;
        let scored = score_all(&mut scorer, &merges(&pool, &mixtures)?, "merged", "score", &session.observer)?;
        let pairs = mixtures.iter().zip(&scored);
        let rows = pairs.flat_map(|(mixture, scored)| {
            scored.iter().map(move |scored| (mixture.weights(), ScoreRow::new(&mixture.to_string(), scored)))
        });
        let rows: Vec<(BTreeMap<String, f64>, ScoreRow)> = rows.collect();
        let table = self.form.table(&rows.iter().map(|(_, row)| row).collect::<Vec<_>>(), &pool)?;
        self.output.write_table(&table, session)?;
        if self.form.wide || !matches!(session.format, Format::Json | Format::JsonLines) {
            return print(&render_table(&table, session.format)?);
        }
        let with_weights = rows.into_iter().map(|(weights, row)| -> Result<serde_json::Value> {
            let mut value = serde_json::to_value(row).map_err(|error| Error::input("score", error.to_string()))?;
            value["weights"] = json!(weights);
            Ok(value)
        });
        let scores = with_weights.collect::<Result<Vec<_>>>()?;
        if session.format == Format::JsonLines {
            return print(&scores.iter().map(json_line).collect::<Result<String>>()?);
        }
        print(&String::from_utf8_lossy(&files::to_json(&json!({ "scores": scores }))?))
    }
}

/// The mixtures of a file, each once.
fn read_mixtures(path: &Path, pool: &Pool, notation: NotationArgs, observer: &dyn Observer) -> Result<Vec<Mixture>> {
    let partitions = pool.unit_counts()?;
    let (rows, notation, is_table) = match table_mixtures(path, observer)? {
        Some(rows) => (rows, Notation::default(), true),
        None => (search::read_candidates(path)?, notation.notation(), false),
    };
    let read = |(line, text): (usize, String)| {
        let said = |error: Error| if is_table { short(&error) } else { error.to_string() };
        Mixture::parse(&text, &partitions, notation)
            .map_err(|error| Error::input(format!("{}:{line}", path.display()), said(error)))
    };
    let mut mixtures = rows.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    let mut seen = BTreeSet::new(); // a ranking names each mixture once per eval set
    mixtures.retain(|mixture| seen.insert(mixture.to_string()));
    Ok(mixtures)
}

/// The merges that stand for some mixtures.
fn merges(pool: &Pool, mixtures: &[Mixture]) -> Result<Vec<(String, Vec<Member>)>> {
    let experts = pool.experts()?;
    mixtures.iter().map(|mixture| Ok((mixture.to_string(), experts.members(mixture)?))).collect()
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
    /// Mixtures from a file: one a line, a CSV with a column `mixture`, or a table of olmix or `RegMix`
    #[arg(long, value_name = "FILE", group = "candidates-from")]
    candidates: Option<PathBuf>,
    /// Seeds random candidates
    #[arg(long, default_value_t = 0, value_name = "N")]
    random_seed: u64,
}

impl CandidateArgs {
    pub(super) fn mixtures(
        &self,
        pool: &Pool,
        notation: NotationArgs,
        observer: &dyn Observer,
    ) -> Result<Vec<Mixture>> {
        let mixtures = self.all(pool, notation, observer)?;
        if mixtures.is_empty() {
            return Err(Error::Usage("0 candidates were asked for; expected at least one mixture".into()));
        }
        Ok(mixtures)
    }

    fn all(&self, pool: &Pool, notation: NotationArgs, observer: &dyn Observer) -> Result<Vec<Mixture>> {
        let partitions = pool.unit_counts()?;
        if let Some(path) = &self.candidates {
            return read_mixtures(path, pool, notation, observer);
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
    candidates.par_iter().map(|weights| Mixture::from_weights(weights, partitions)).collect()
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

/// Which estimators answer, and what they may learn from.
#[derive(Args, Clone)]
pub(super) struct EstimatorArgs {
    /// Estimators, as NAME or NAME:OPTION=VALUE,... (see 'mixpool estimators')
    #[arg(long = "estimator", value_name = "E", num_args = 1..)]
    pub(super) estimators: Vec<String>,
    /// Shift predicted losses by their mean distance from those of N models trained on other mixtures
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) calibrate: usize,
    /// Training tokens of every really trained model, e.g. 500k [default: those of the experts in it together]
    #[arg(long, value_name = "TOKENS")]
    pub(super) tokens: Option<String>,
}

impl EstimatorArgs {
    /// The estimators asked for, or these when there are none.
    pub(super) fn specs(&self, default: &[&str]) -> Result<Vec<Spec>> {
        let default = default.iter().map(|name| (*name).to_owned());
        let texts: Vec<String> = if self.estimators.is_empty() { default.collect() } else { self.estimators.clone() };
        texts.iter().map(|text| Spec::parse(text)).collect()
    }

    /// Asks every estimator about `mixtures`; whatever is fitted on trained models is fitted on others than these.
    pub(super) fn ask(
        &self,
        pool: &Pool,
        evals: &[String],
        specs: &[Spec],
        mixtures: &[Mixture],
        observer: &dyn Observer,
    ) -> Result<Vec<Answer>> {
        let tokens = token_budget(self.tokens.as_deref())?;
        let question = Question { pool, evals, judged: mixtures, tokens, observer };
        let answers = specs.iter().map(|spec| ask(spec, &question, mixtures, self.calibrate));
        Ok(answers.collect::<Result<Vec<_>>>()?.concat())
    }
}

/// Rank candidate mixtures by merging experts, or by other estimators
///
/// Without options: every subset of the partitions, on every eval set, by merging. Finished scores are kept: an interrupted
/// ranking goes on where it stopped, and a repeated one reads what is stored.
///
/// Examples: mixpool rank --top 5 | mixpool rank --subsets 2..=3 --eval wiki-test --estimator merged ensemble --csv r.csv
#[derive(Args)]
pub(super) struct Rank {
    #[command(flatten)]
    candidates: CandidateArgs,
    /// Eval sets [default: all]
    #[arg(long = "eval", value_name = "NAME", num_args = 1..)]
    evals: Vec<String>,
    #[command(flatten)]
    estimators: EstimatorArgs,
    /// Show only the best N of each eval set [default: 10 in a table, all elsewhere]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Also write the whole ranking to a CSV file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    notation: NotationArgs,
}

impl Rank {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        self.output.check()?;
        let pool = session.open()?;
        let specs = self.estimators.specs(&["merged"])?;
        let mixtures = self.candidates.mixtures(&pool, self.notation, &session.observer)?;
        let evals = pool.chosen_evals(&self.evals)?;
        let answers = self.estimators.ask(&pool, &evals, &specs, &mixtures, &session.observer)?;
        let sizes = pool.eval_sizes(&evals)?;
        if let Some(path) = &self.csv {
            write_csv(path, &rows(&sizes, &answers, usize::MAX))?;
            session.observer.note(&format!("wrote '{}'", path.display()));
        }
        if self.output.is_given() {
            self.output.write_table(&self.form.table(&rows(&sizes, &answers, usize::MAX), &pool)?, session)?;
        }
        let is_short = matches!(session.format, Format::Table | Format::Markdown) && !self.form.wide;
        let top = self.top.unwrap_or(if is_short { 10 } else { usize::MAX });
        let table: Table = self.form.table(&rows(&sizes, &answers, top), &pool)?;
        print(&render_table(&table, session.format)?)
    }
}

/// The rankings of several answers, the best `top` of each.
pub(super) fn rows(sizes: &BTreeMap<String, Sums>, answers: &[Answer], top: usize) -> Vec<RankingRow> {
    let rows = answers.iter().filter_map(|answer| {
        let rows = RankingRow::of(answer, sizes.get(&answer.eval_set)?);
        Some(rows.into_iter().take(top))
    });
    rows.flatten().collect()
}
