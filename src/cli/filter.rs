//! Filter command: the documents of a partition that should help an eval set most, as a partition of their own.

use super::data::token_budget;
use super::{Session, print};
use crate::error::{Error, Result};
use crate::estimators::{DocumentScores, Filter as Method, Question};
use crate::mixture::check_name;
use crate::pool::{Outcome, Pool, Provenance};
use crate::progress::Observer;
use crate::report::{DocumentRow, write_csv};
use clap::Args;
use std::path::PathBuf;

/// Keep the documents of a partition that should help an eval set most
///
/// Scores every document and registers the best as a new partition, which remembers where it came from. `less` compares the
/// optimiser's step on a document with the gradient of the eval set, at checkpoints of a short run on all partitions;
/// `random:seed=N` is what it must beat.
///
/// Example: mixpool filter web --target math-test --keep 0.05 --as web-math --csv scores.csv
#[derive(Args)]
pub(super) struct Filter {
    /// The partition
    partition: String,
    /// Eval sets to help; a document counts by the one that it helps most
    #[arg(long, value_name = "NAME", required = true, num_args = 1..)]
    target: Vec<String>,
    /// Share of the documents to keep
    #[arg(long, value_name = "SHARE", default_value = "0.05")]
    keep: String,
    /// Name of the new partition
    #[arg(long = "as", value_name = "NAME")]
    name: String,
    /// How documents are scored: less, less:OPTIONS (see `mixpool estimators`), random, random:seed=N
    #[arg(long, value_name = "METHOD", default_value = "less")]
    method: String,
    /// Training tokens of the warm-up run on all partitions, e.g. 500k [default: those of an expert on average]
    #[arg(long, value_name = "TOKENS")]
    tokens: Option<String>,
    /// Also write the score of every document to a CSV file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

impl Filter {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let pool = session.open()?;
        let share: f64 = self.keep.trim().parse().unwrap_or(f64::NAN);
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::Usage(format!("'--keep {}': expected a share above 0, at most 1", self.keep)));
        }
        check_name(&self.name)?;
        let tokens = pool.partition(&self.partition)?.text()?.to_owned();
        self.target.iter().try_for_each(|target| pool.eval_binding(target).map(|_| ()))?;
        let method = Method::parse(&self.method)?;
        let question = Question {
            pool: &pool,
            evals: &self.target,
            judged: &[],
            tokens: token_budget(self.tokens.as_deref())?,
            observer: &session.observer,
        };
        let scores = method.scores(&question, &self.partition)?;
        let best = scores.best(share);
        if let Some(path) = &self.csv {
            write_csv(path, &self.rows(&pool, &scores, &best)?)?;
        }
        let filtered = Provenance {
            source: self.partition.clone(),
            tokens,
            method: self.method.clone(),
            targets: self.target.clone(),
            keep: share.to_string(),
        };
        let (partition, outcome) = pool.register_filtered(&self.name, &best, filtered)?;
        let kept = pool.tokens(partition.text()?)?.manifest().clone();
        session.observer.note(&format!(
            "partition '{}' {}: {} of {} documents, {} tokens",
            self.name,
            if outcome == Outcome::Added { "added" } else { "was there already" },
            kept.n_docs,
            scores.scores.len(),
            kept.n_tokens
        ));
        print(&format!("{}\n", self.name))
    }

    fn rows(&self, pool: &Pool, scores: &DocumentScores, best: &[usize]) -> Result<Vec<DocumentRow>> {
        let tokens = pool.tokens(pool.partition(&self.partition)?.text()?)?;
        let row = |document: usize, target: usize| DocumentRow {
            document: document + 1,
            eval_set: self.target[target].clone(),
            n_tokens: tokens.documents()[document].n_tokens,
            influence: scores.influences[document].as_ref().map(|of| of[target.min(of.len() - 1)]),
            score: scores.scores[document],
            kept: best.binary_search(&document).is_ok(),
        };
        let pairs = (0..scores.scores.len()).flat_map(|document| (0..self.target.len()).map(move |t| (document, t)));
        Ok(pairs.map(|(document, target)| row(document, target)).collect())
    }
}
