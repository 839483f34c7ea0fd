//! Exchange commands: mixtures and losses in tables, wide ones and those of neighbouring projects.

use super::Session;
use crate::error::{Error, Result, closest};
use crate::estimators::{Answer, Cost, Gives, stored};
use crate::files::Staging;
use crate::mixture::{Mixture, Notation};
use crate::pool::Pool;
use crate::progress::Observer;
use crate::report::{Format, Measured, Neighbour, Table, write_table};
use crate::search::NumberTable;
use clap::Args;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where else a table goes.
#[derive(Args, Clone)]
pub(super) struct Output {
    /// Also write every row, with every column, to a file: .csv, .json, .jsonl, .md or .parquet by its name
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Output {
    /// Refuses a file whose name asks for no format, before anything is computed for it.
    pub(super) fn check(&self) -> Result<()> {
        self.out.as_deref().map_or(Ok(()), |path| Format::of(path).map(|_| ()))
    }

    /// Whether there is somewhere to write to.
    pub(super) fn is_given(&self) -> bool {
        self.out.is_some()
    }

    /// Writes rows where they were asked for.
    pub(super) fn write<T: Serialize>(&self, rows: &[T], session: &Session) -> Result<()> {
        self.write_table(&Table::of(rows)?, session)
    }

    pub(super) fn write_table(&self, table: &Table, session: &Session) -> Result<()> {
        if let Some(path) = &self.out {
            write_table(path, table)?;
            session.observer.note(&format!("wrote '{}'", path.display()));
        }
        Ok(())
    }
}

/// The long or the wide form of a table about mixtures.
#[derive(Args, Clone, Copy)]
pub(super) struct Form {
    /// One row a mixture: a column per eval set and metric, and one per partition's weight
    #[arg(long)]
    pub(super) wide: bool,
}

impl Form {
    /// The rows in the form asked for.
    pub(super) fn table<T: Serialize>(self, rows: &[T], pool: &Pool) -> Result<Table> {
        let table = Table::of(rows)?;
        if !self.wide {
            return Ok(table);
        }
        let partitions = pool.unit_counts()?;
        let mixture = table.columns.iter().position(|column| column == "mixture");
        let names: BTreeSet<&str> = table.rows.iter().filter_map(|row| row[mixture?].as_str()).collect();
        let weights = names.into_iter().filter_map(|name| {
            let mixture = Mixture::parse(name, &partitions, Notation::default()).ok()?; // a partition may be gone by now
            Some((name.to_owned(), mixture.weights()))
        });
        Ok(table.wide(&weights.collect()))
    }
}

/// What of the pool goes into tables of another project.
#[derive(Args)]
pub(super) struct ExportTables {
    /// The folder to write; must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Whose losses: an estimator with its options, or ground-truth
    #[arg(long, value_name = "E", default_value = "merged")]
    estimator: String,
    /// Training tokens of the truth that the estimator's answer is about, where there are several
    #[arg(long, value_name = "TOKENS")]
    tokens: Option<String>,
    /// Eval sets [default: all]
    #[arg(long = "eval", value_name = "NAME", num_args = 1..)]
    evals: Vec<String>,
}

impl ExportTables {
    pub(super) fn write(self, pool: &Pool, neighbour: Neighbour, session: &Session) -> Result<PathBuf> {
        if self.out.exists() {
            return Err(Error::Usage(format!("'{}' exists already; choose another --out", self.out.display())));
        }
        let evals = pool.chosen_evals(&self.evals)?;
        let partitions = pool.unit_counts()?;
        let mut rows: BTreeMap<String, Measured> = BTreeMap::new();
        let mut cut = BTreeSet::new();
        for (eval_set, mixture, loss) in self.losses(pool, &evals)? {
            let parsed = Mixture::parse(&mixture, &partitions, Notation::default());
            match parsed.ok().filter(|mixture| mixture.shares().values().all(|share| share.whole)) {
                None => drop(cut.insert(mixture)),
                Some(parsed) => {
                    let row = rows.entry(mixture.clone()).or_insert_with(|| Measured {
                        mixture,
                        weights: parsed.weights(),
                        losses: BTreeMap::new(),
                    });
                    row.losses.insert(eval_set, loss);
                }
            }
        }
        if !cut.is_empty() {
            session
                .observer
                .note(&format!("{} mixture(s) of single units are left out: tables hold partitions", cut.len()));
        }
        if rows.is_empty() {
            return Err(Error::Usage(format!(
                "nothing is stored of '{}'; run 'mixpool rank' or 'mixpool validate' first",
                self.estimator
            )));
        }
        let names: Vec<String> = partitions.into_keys().collect();
        let staging = Staging::new(&self.out)?;
        for (name, bytes) in neighbour.files(&rows.into_values().collect::<Vec<_>>(), &names, &evals)? {
            staging.write(&name, &bytes)?;
        }
        staging.publish(&self.out)?;
        Ok(self.out)
    }

    /// Eval set, mixture and loss of everything the estimator is known to have said.
    fn losses(&self, pool: &Pool, evals: &[String]) -> Result<Vec<(String, String, f64)>> {
        if self.estimator == "merged" {
            let scores = pool.scorer(evals)?.stored("merged").into_iter();
            let each = scores.flat_map(|(eval_set, scores)| {
                scores.into_iter().map(move |s| (eval_set.clone(), s.record.mixture.clone(), s.record.score.loss()))
            });
            return Ok(each.collect());
        }
        let tokens = super::data::token_budget(self.tokens.as_deref())?;
        let is_asked = |answer: &Answer| {
            answer.estimator == self.estimator && answer.gives == Gives::Loss && evals.contains(&answer.eval_set)
        };
        let mut answers: Vec<Answer> = stored(pool)?.into_iter().filter(is_asked).collect();
        if tokens.is_some() {
            answers.retain(|answer| answer.tokens == tokens);
        }
        if let Some(other) = answers.iter().find(|answer| answer.tokens != answers[0].tokens) {
            return Err(Error::Usage(format!(
                "'{}' answered for several budgets; name one by --tokens, e.g. {}",
                self.estimator,
                other.tokens.or(answers[0].tokens).unwrap_or_default()
            )));
        }
        let each = answers.into_iter().flat_map(|answer| {
            let Answer { eval_set, predictions, .. } = answer;
            predictions.into_iter().map(move |(mixture, loss)| (eval_set.clone(), mixture, loss))
        });
        Ok(each.collect())
    }
}

/// The mixtures of a table of olmix or `RegMix`, with the lines they stand in; none when the file is no such table.
pub(super) fn table_mixtures(path: &Path, observer: &dyn Observer) -> Result<Option<Vec<(usize, String)>>> {
    let Some(table) = NumberTable::mixtures(path)? else { return Ok(None) };
    note_renormalised(&table, path, observer);
    Ok(Some(table.rows.iter().map(|row| (row.line, table.mixture(row))).collect()))
}

fn note_renormalised(table: &NumberTable, path: &Path, observer: &dyn Observer) {
    if table.renormalised > 0 {
        let (n, all) = (table.renormalised, table.rows.len());
        observer.note(&format!(
            "'{}': weights of {n} of {all} mixtures did not sum to 1 and were divided by their sum",
            path.display()
        ));
    }
}

/// Answers that two tables hold, mixtures and their losses: one per eval set of the pool that has a column. A mixture that occurs
/// again is the ground truth's next repetition; of an estimator it is refused.
pub(super) fn tabled(estimator: &str, paths: &[PathBuf], pool: &Pool, observer: &dyn Observer) -> Result<Vec<Answer>> {
    let [mixtures, losses] = paths else {
        return Err(Error::Usage("expected two tables: mixtures and losses".into()));
    };
    let place = format!("{} and {}", mixtures.display(), losses.display());
    let table = NumberTable::mixtures(mixtures)?;
    let table = table
        .ok_or_else(|| Error::input(mixtures.display(), "is no table of mixtures as olmix or RegMix write them"))?;
    let measured = NumberTable::read(losses)?;
    let partitions = pool.unit_counts()?;
    let evals = pool.eval_names()?;
    let known: Vec<usize> = (0..measured.columns.len()).filter(|c| evals.contains(&measured.columns[*c])).collect();
    if known.is_empty() {
        let near = measured.columns.iter().find_map(|column| closest(column, evals.iter().map(String::as_str)));
        let hint = near.map(|near| format!("; did you mean '{near}'?")).unwrap_or_default();
        let problem = format!("no column is an eval set of the pool ({}){hint}", evals.join(", "));
        return Err(Error::input(losses.display(), problem));
    }
    let mut answers: BTreeMap<(usize, usize), Answer> = BTreeMap::new(); // by repetition and column
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for (row, losses) in table.rows.iter().zip(table.join(&measured, &place)?) {
        let Some(losses) = losses else { continue };
        let at = || format!("{}:{}", mixtures.display(), row.line);
        let mixture = Mixture::parse(&table.mixture(row), &partitions, Notation::default());
        let mixture = mixture.map_err(|error| Error::input(at(), short(&error)))?.to_string();
        let repeat = *times.entry(mixture.clone()).and_modify(|n| *n += 1).or_default();
        let name = if repeat == 0 { estimator.to_owned() } else { format!("{estimator}:repeat={repeat}") };
        if repeat > 0 && estimator != "ground-truth" {
            return Err(Error::input(at(), format!("the mixture '{mixture}' is there twice")));
        }
        for column in &known {
            let Some(loss) = losses.values[*column] else { continue };
            let answer = answers.entry((repeat, *column)).or_insert_with(|| Answer {
                estimator: name.clone(),
                options: BTreeMap::new(),
                gives: Gives::Loss,
                eval_set: measured.columns[*column].clone(),
                tokens: None,
                cost: Cost::default(),
                predictions: BTreeMap::new(),
            });
            answer.predictions.insert(mixture.clone(), loss);
        }
    }
    note_renormalised(&table, mixtures, observer);
    if known.len() < measured.columns.len() {
        let (n, all) = (measured.columns.len() - known.len(), measured.columns.len());
        observer.note(&format!(
            "'{}': {n} of {all} columns are no eval set of the pool and are left out",
            losses.display()
        ));
    }
    Ok(answers.into_values().collect())
}

/// What is wrong with a mixture of many partitions, without the mixture.
pub(super) fn short(error: &Error) -> String {
    let message = error.to_string();
    match message.strip_prefix("mixture '").and_then(|rest| rest.split_once("': ")) {
        Some((_, problem)) => problem.to_owned(),
        None => message,
    }
}
