//! Select commands: which partitions to keep by any estimator, and how far `GradEx`'s linearisation can be trusted.

use super::data::token_budget;
use super::exchange::Output;
use super::{Session, print};
use crate::error::{Error, Result};
use crate::estimators::{Question, Spec, linearity};
use crate::files;
use crate::mixture::{Mixture, Notation};
use crate::pool::Pool;
use crate::report::{Format, render, write_csv};
use crate::search::{forward, inclusion, keep, random_subsets};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;

/// Choose the partitions that an estimator finds worth keeping
///
/// ensemble: scores random subsets of half the partitions; a partition's score is the mean loss of the subsets that hold it,
/// with a 95 % bootstrap interval over the subsets, and the best share of the partitions is kept. forward: adds the partition
/// that lowers the loss most until none does. Scores are kept in the pool, so that a stopped selection goes on.
///
/// Example: mixpool select --eval wiki-test --how ensemble --subsets 200 --keep 0.7
#[derive(Args)]
pub(super) struct Select {
    /// Eval set that the partitions are chosen for
    #[arg(long, value_name = "NAME")]
    eval: String,
    /// Estimator, as NAME or NAME:OPTION=VALUE,... (see 'mixpool estimators')
    #[arg(long, value_name = "E", default_value = "merged")]
    estimator: String,
    /// How partitions are chosen
    #[arg(long, value_enum, default_value_t)]
    how: How,
    /// Random subsets [default: 200; all when there are no more]
    #[arg(long, value_name = "M", default_value_t = 200)]
    subsets: usize,
    /// Share of the partitions that an ensemble keeps
    #[arg(long, value_name = "SHARE", default_value_t = 0.7)]
    keep: f64,
    /// Seeds the random subsets
    #[arg(long, value_name = "N", default_value_t = 0)]
    random_seed: u64,
    /// Training tokens of every really trained model, e.g. 500k [default: those of the experts in it together]
    #[arg(long, value_name = "TOKENS")]
    tokens: Option<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum How {
    /// Add the best partition until none helps
    Forward,
    /// Keep those whose random subsets score best
    #[default]
    Ensemble,
}

/// One partition of a selection.
#[derive(Serialize)]
struct SelectionRow {
    partition: String,
    chosen: bool,
    /// Ensemble: the mean score of subsets that hold it. Forward: the score once it had joined.
    score: Option<f64>,
    score_low: Option<f64>,
    score_high: Option<f64>,
    /// Forward: when it joined, from 1.
    step: Option<usize>,
}

impl Select {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        self.output.check()?;
        if !(self.keep > 0.0 && self.keep <= 1.0) {
            return Err(Error::Usage(format!("'--keep {}': expected a share above 0, at most 1", self.keep)));
        }
        let pool = session.open()?;
        let spec = Spec::parse(&self.estimator)?;
        let evals = [self.eval.clone()];
        let tokens = token_budget(self.tokens.as_deref())?;
        let question = Question { pool: &pool, evals: &evals, judged: &[], tokens, observer: &session.observer };
        let partitions = question.partitions()?;
        if partitions.len() < 2 {
            return Err(Error::Usage(format!(
                "expected at least two partitions to choose from, got {}",
                partitions.len()
            )));
        }
        pool.eval_key(&self.eval)?; // refuses an unknown name before anything is fitted
        let mut estimator = spec.fit(&question)?;
        let score = |sets: &[Vec<usize>]| -> Result<Vec<f64>> {
            let mixtures = sets.iter().map(|set| mixture(&pool, &partitions, set)).collect::<Result<Vec<_>>>()?;
            Ok(estimator.estimate(&mixtures)?.into_iter().map(|scores| scores[0]).collect())
        };
        let (rows, chosen) = match self.how {
            How::Forward => stepwise(&partitions, score)?,
            How::Ensemble => self.ensemble(&partitions, score)?,
        };
        self.output.write(&rows, session)?;
        show(&rows, &mixture(&pool, &partitions, &chosen)?, session)
    }

    fn ensemble(
        &self,
        partitions: &[String],
        mut score: impl FnMut(&[Vec<usize>]) -> Result<Vec<f64>>,
    ) -> Result<(Vec<SelectionRow>, Vec<usize>)> {
        let n = partitions.len();
        let subsets = random_subsets(n, n / 2, self.subsets, self.random_seed)?;
        let found = inclusion(n, &subsets, &score(&subsets)?, 0.95);
        let means: Vec<f64> = found.iter().map(|found| found.map_or(f64::INFINITY, |found| found.mean)).collect();
        let chosen = keep(&means, self.keep);
        let row = |(part, found): (usize, &Option<crate::search::Inclusion>)| SelectionRow {
            partition: partitions[part].clone(),
            chosen: chosen.contains(&part),
            score: found.map(|found| found.mean),
            score_low: found.map(|found| found.interval.0),
            score_high: found.map(|found| found.interval.1),
            step: None,
        };
        let mut rows: Vec<SelectionRow> = found.iter().enumerate().map(row).collect();
        let score = |row: &SelectionRow| row.score.unwrap_or(f64::INFINITY);
        rows.sort_by(|a, b| score(a).total_cmp(&score(b)));
        Ok((rows, chosen))
    }
}

fn stepwise(
    partitions: &[String],
    score: impl FnMut(&[Vec<usize>]) -> Result<Vec<f64>>,
) -> Result<(Vec<SelectionRow>, Vec<usize>)> {
    let steps = forward(partitions.len(), score)?;
    let mut chosen: Vec<usize> = steps.iter().map(|step| step.part).collect();
    let row = |part: usize, score, step: Option<usize>| SelectionRow {
        partition: partitions[part].clone(),
        chosen: step.is_some(),
        score,
        score_low: None,
        score_high: None,
        step,
    };
    let joined = steps.iter().enumerate().map(|(index, step)| row(step.part, Some(step.score), Some(index + 1)));
    let left = (0..partitions.len()).filter(|part| !chosen.contains(part)).map(|part| row(part, None, None));
    let rows = joined.chain(left).collect();
    chosen.sort_unstable();
    Ok((rows, chosen))
}

/// The mixture of equal weights of some partitions.
fn mixture(pool: &Pool, partitions: &[String], set: &[usize]) -> Result<Mixture> {
    let names: Vec<&str> = set.iter().map(|part| partitions[*part].as_str()).collect();
    Mixture::parse(&names.join("+"), &pool.unit_counts()?, Notation::default())
}

fn show(rows: &[SelectionRow], chosen: &Mixture, session: &Session) -> Result<()> {
    match session.format {
        Format::Json => {
            let value = json!({ "mixture": chosen.to_string(), "partitions": rows });
            print(&String::from_utf8_lossy(&files::to_json(&value)?))
        }
        Format::Table => print(&format!("{}\nmixture  {chosen}\n", render(rows, Format::Table)?)),
        format => print(&render(rows, format)?),
    }
}

/// Measure how wrong `GradEx`'s linearisation is, by distance from the model of all partitions
///
/// For every distance, and three directions (that which `GradEx` fits to the mixture, the mean gradient, and to the model
/// really trained on the mixture): the mean squared relative error of outputs predicted by gradients, exact and projected.
///
/// Example: mixpool linearity code+wiki --distances 0.01 0.05 0.2 --csv linearity.csv
#[derive(Args)]
pub(super) struct Linearity {
    /// The mixture that directions belong to
    mixture: String,
    /// Distances, as shares of the length of the parameters that move
    #[arg(long, value_name = "D", num_args = 1.., default_values_t = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4])]
    distances: Vec<f64>,
    /// `GradEx` with its options
    #[arg(long, value_name = "E", default_value = "gradex:samples=8")]
    estimator: String,
    /// Training tokens of every really trained model, e.g. 500k [default: those of the experts in it together]
    #[arg(long, value_name = "TOKENS")]
    tokens: Option<String>,
    /// Also write the rows to a CSV file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl Linearity {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        self.output.check()?;
        let pool = session.open()?;
        let spec = Spec::parse(&self.estimator)?;
        if spec.method.name != "gradex" {
            return Err(Error::Usage(format!("'--estimator {}': expected gradex", self.estimator)));
        }
        if let Some(distance) = self.distances.iter().find(|distance| !(**distance > 0.0 && distance.is_finite())) {
            return Err(Error::Usage(format!("'--distances {distance}': expected numbers above 0")));
        }
        let mixture = Mixture::parse(&self.mixture, &pool.unit_counts()?, Notation::default())?;
        let tokens = token_budget(self.tokens.as_deref())?;
        let question = Question { pool: &pool, evals: &[], judged: &[], tokens, observer: &session.observer };
        let rows = linearity(&question, &spec.options, &mixture, &self.distances)?;
        if let Some(path) = &self.csv {
            write_csv(path, &rows)?;
        }
        self.output.write(&rows, session)?;
        print(&render(&rows, session.format)?)
    }
}
