//! Validate and compare commands: how well estimators match models that were really trained.

use super::exchange::{Output, tabled};
use super::question::{CandidateArgs, EstimatorArgs};
use super::show::note_unmergeable;
use super::{NotationArgs, Session, print};
use crate::error::{Error, Result};
use crate::estimators::{Answer, Gives, METHODS, Method, OptionRow, Spec, stored};
use crate::mixture::Mixture;
use crate::rank::compare;
use crate::report::{AgreementLine, AgreementRow, Format, render, write_csv};
use crate::rng::Stream;
use clap::Args;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Train some mixtures for real and report how well each estimator predicted them
///
/// Trains a model on each chosen mixture, scores it on every eval set, and compares with what every estimator predicts:
/// Pearson, Spearman, Kendall's tau-b, share of pairs in the right order, overlap of the best quarter, what picking by the
/// estimator would have cost in nats, each with a 95 % bootstrap interval, and what the estimator itself costs. No
/// estimator is fitted on the mixtures that judge it. Trained models and predictions are kept in the pool; `compare` shows them again.
/// `--device cuda` trains on every GPU of the machine, one model at a time on each.
///
/// Example: mixpool validate --mixtures 8 --estimator merged ensemble --csv agreement.csv
#[derive(Args)]
pub(super) struct Validate {
    /// Number of mixtures, drawn at random from the candidates
    #[arg(long, value_name = "N")]
    mixtures: Option<usize>,
    /// Train some of the mixtures R times in all, to learn how much of the truth is chance
    #[arg(long, value_name = "R", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    repeats: u64,
    /// How many mixtures are trained again
    #[arg(long, value_name = "M", default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..))]
    repeated: u64,
    #[command(flatten)]
    candidates: CandidateArgs,
    #[command(flatten)]
    estimators: EstimatorArgs,
    /// Eval sets [default: all]
    #[arg(long = "eval", value_name = "NAME", num_args = 1..)]
    evals: Vec<String>,
    #[command(flatten)]
    shown: Shown,
    #[command(flatten)]
    notation: NotationArgs,
}

/// Compare what estimators predicted with what was trained, as far as it is stored; computes nothing
///
/// Reads what `validate` and `rank` left in the pool. An estimator is compared on the mixtures that both it and the ground
/// truth have spoken of. Losses measured elsewhere are read from tables of olmix (ratios.csv metrics.csv) or `RegMix` (mixtures,
/// losses), whose rows are joined by run or index: as the truth, or as one more answer.
///
/// Examples: mixpool compare --all --csv agreement.csv | mixpool compare --truth ratios.csv metrics.csv
#[derive(Args)]
pub(super) struct Compare {
    /// Estimators [default: all]
    #[arg(long = "estimator", value_name = "E", num_args = 1..)]
    estimators: Vec<String>,
    /// Eval sets [default: all]
    #[arg(long = "eval", value_name = "NAME", num_args = 1..)]
    evals: Vec<String>,
    /// Judge by losses from tables instead of by those stored
    #[arg(long, num_args = 2, value_names = ["MIXTURES", "LOSSES"])]
    truth: Vec<PathBuf>,
    /// Judge losses from tables too, as the estimator `table`
    #[arg(long, num_args = 2, value_names = ["MIXTURES", "LOSSES"])]
    answers: Vec<PathBuf>,
    #[command(flatten)]
    shown: Shown,
}

/// How much of an agreement is shown.
#[derive(Args, Clone)]
struct Shown {
    /// Show every eval set and every size of mixture, not only the means over the eval sets
    #[arg(long)]
    all: bool,
    /// Also write every line, with every column, to a CSV file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl Validate {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        self.shown.output.check()?;
        let pool = session.open()?;
        let mut specs = self.estimators.specs(&default_estimators())?;
        let mut mixtures = self.candidates.mixtures(&pool, self.notation, &session.observer)?;
        if let Some(n) = self.mixtures {
            mixtures = draw(mixtures, n);
        }
        if mixtures.len() < 2 {
            return Err(Error::Usage("at least two mixtures are needed to compare orders".into()));
        }
        let evals = pool.chosen_evals(&self.evals)?;
        note_unmergeable(&pool, &pool.unit_counts()?.into_keys().collect::<Vec<_>>(), session)?;
        specs.retain(|spec| spec.method.name != "ground-truth");
        specs.push(Spec::parse("ground-truth")?);
        let mut answers = self.estimators.ask(&pool, &evals, &specs, &mixtures, &session.observer)?;
        if self.repeats > 1 {
            let again = |repeat| Spec::parse(&format!("ground-truth:repeat={repeat}"));
            let specs = (1..self.repeats).map(again).collect::<Result<Vec<_>>>()?;
            let repeated = evenly(&mixtures, self.repeated as usize);
            answers.extend(self.estimators.ask(&pool, &evals, &specs, &repeated, &session.observer)?);
        }
        self.shown.print(&answers, session)
    }
}

impl Compare {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        self.shown.output.check()?;
        let pool = session.open()?;
        let evals = pool.chosen_evals(&self.evals)?;
        let wanted = |answer: &Answer| {
            let listed = self.estimators.is_empty() || self.estimators.contains(&answer.estimator);
            evals.contains(&answer.eval_set) && (listed || answer.repetition().is_some())
        };
        let mut answers: Vec<Answer> = stored(&pool)?.into_iter().filter(wanted).collect();
        if !self.truth.is_empty() {
            answers.retain(|answer| answer.repetition().is_none());
        }
        let budgets = |answers: &[Answer]| answers.iter().map(|answer| answer.tokens).collect::<BTreeSet<_>>();
        if !self.answers.is_empty() {
            let tabled = tabled("table", &self.answers, &pool, &session.observer)?;
            let truths: Vec<Answer> = answers.iter().filter(|answer| answer.is_truth()).cloned().collect();
            answers.extend(for_budgets(&tabled, &evals, budgets(&truths)));
        }
        if !self.truth.is_empty() {
            let tabled = tabled("ground-truth", &self.truth, &pool, &session.observer)?;
            let judged = budgets(&answers);
            answers.extend(for_budgets(&tabled, &evals, judged));
        }
        if !answers.iter().any(Answer::is_truth) {
            return Err(Error::Usage("no ground truth yet; run 'mixpool validate' first".into()));
        }
        self.shown.print(&answers, session)
    }
}

/// Answers from tables, which say nothing of training tokens, for each of these budgets.
fn for_budgets(answers: &[Answer], evals: &[String], mut budgets: BTreeSet<Option<u64>>) -> Vec<Answer> {
    if budgets.is_empty() {
        budgets.insert(None);
    }
    let answers = answers.iter().filter(|answer| evals.contains(&answer.eval_set));
    answers.flat_map(|answer| budgets.iter().map(|tokens| Answer { tokens: *tokens, ..answer.clone() })).collect()
}

impl Shown {
    fn print(&self, answers: &[Answer], session: &Session) -> Result<()> {
        let rows = agreement(answers);
        if let Some(path) = &self.csv {
            write_csv(path, &rows)?;
        }
        self.output.write(&rows, session)?;
        if !matches!(session.format, Format::Table | Format::Markdown) {
            return print(&render(&rows, session.format)?);
        }
        let has_means = rows.iter().any(|row| row.is_overall);
        let is_shown = |row: &&AgreementRow| self.all || (row.size.is_none() && row.is_overall == has_means);
        let lines: Vec<AgreementLine> = rows.iter().filter(is_shown).map(AgreementLine::from).collect();
        print(&render(&lines, session.format)?)
    }
}

/// One line of `estimators`.
#[derive(Serialize)]
struct EstimatorRow {
    estimator: &'static str,
    gives: Gives,
    what: &'static str,
    options: String,
    source: &'static str,
}

/// Lists the registry.
pub(super) fn list(session: &Session) -> Result<()> {
    let option = |row: &OptionRow| format!("{}={} ({})", row.name, row.default, row.help);
    let row = |method: &Method| EstimatorRow {
        estimator: method.name,
        gives: method.gives,
        what: method.summary,
        options: method.options.iter().map(option).collect::<Vec<_>>().join("; "),
        source: method.source,
    };
    print(&render(&METHODS.iter().map(row).collect::<Vec<_>>(), session.format)?)
}

/// How well the ground truth among some answers is matched by the others.
pub(super) fn agreement(answers: &[Answer]) -> Vec<AgreementRow> {
    compare(answers).into_iter().map(AgreementRow::from).collect()
}

/// Every estimator that needs no training but the experts'.
fn default_estimators() -> Vec<&'static str> {
    METHODS.iter().filter(|method| !method.trains).map(|method| method.name).collect()
}

/// `n` of the mixtures, evenly spread over them; all of them when there are no more.
fn evenly(mixtures: &[Mixture], n: usize) -> Vec<Mixture> {
    let n = n.min(mixtures.len());
    (0..n).map(|index| mixtures[index * mixtures.len() / n].clone()).collect()
}

/// `n` of the candidates, chosen at random but always the same ones, in their order.
pub(super) fn draw(candidates: Vec<Mixture>, n: usize) -> Vec<Mixture> {
    let mut chosen = Stream::new(0, "validate").permutation(candidates.len());
    chosen.truncate(n);
    chosen.sort_unstable();
    chosen.into_iter().map(|index| candidates[index as usize].clone()).collect()
}
