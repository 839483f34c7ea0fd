//! Scorer: merges scored on eval sets, each score computed once and stored at once.

use super::members::{Member, score_key};
use super::{Pool, ScoreLog, ScoreRecord, Settings};
use crate::error::{Error, Result};
use crate::eval::{EvalSet, Evaluator, PROTOCOL, Score};
use crate::files;
use crate::merge::average;
use crate::model::Checkpoint;
use crate::progress::Observer;
use std::collections::BTreeMap;
use std::time::Instant;

/// One eval set of a scorer: its log, and its windows once they are needed.
struct EvalHandle {
    name: String,
    tokens: String,
    set: Option<EvalSet>,
    log: ScoreLog,
}

/// A score with what is known about how it came about.
#[derive(Debug, Clone)]
pub struct Scored {
    /// Name of the eval set.
    pub eval_set: String,
    /// The stored record.
    pub record: ScoreRecord,
    /// Whether it was there before.
    pub cached: bool,
}

/// Scores member lists on some eval sets; what was scored before is read from the log.
pub struct Scorer<'a> {
    pool: &'a Pool,
    evals: Vec<EvalHandle>,
    evaluator: Option<Evaluator>,
    open: BTreeMap<String, Checkpoint>, // mapped once; a map costs address space, not memory
}

impl Pool {
    /// An eval set and its score log.
    fn eval(&self, name: &str) -> Result<EvalHandle> {
        let binding = self.eval_binding(name)?;
        let key = files::hash(
            format!(
                "protocol {PROTOCOL} tokens {} window {} prefix {}",
                binding.tokens, self.settings.window, self.settings.prefix_token
            )
            .as_bytes(),
        );
        let log = ScoreLog::open(&self.root.join("scores").join(format!("{key}.log")))?;
        Ok(EvalHandle { name: name.to_owned(), tokens: binding.tokens, set: None, log })
    }

    /// A scorer over some eval sets; all of them when `names` is empty.
    ///
    /// # Errors
    /// [`Error::Usage`] when a name is unknown or there is no eval set at all.
    pub fn scorer(&self, names: &[String]) -> Result<Scorer<'_>> {
        let names = if names.is_empty() { self.eval_names()? } else { names.to_vec() };
        if names.is_empty() {
            return Err(Error::Usage("no eval set yet; run 'mixpool eval-set NAME FILE...' first".into()));
        }
        let evals = names.iter().map(|name| self.eval(name)).collect::<Result<_>>()?;
        Ok(Scorer { pool: self, evals, evaluator: None, open: BTreeMap::new() })
    }
}

impl Scorer<'_> {
    /// Names of the eval sets, in order.
    pub fn eval_names(&self) -> Vec<String> {
        self.evals.iter().map(|eval| eval.name.clone()).collect()
    }

    /// What is stored for each eval set, by how the model came about; computes nothing.
    pub fn stored(&self, estimator: &str) -> Vec<(String, Vec<Scored>)> {
        let of = |eval: &EvalHandle| {
            let records = eval.log.records().filter(|record| record.estimator == estimator);
            let scored =
                |record: &ScoreRecord| Scored { eval_set: eval.name.clone(), record: record.clone(), cached: true };
            (eval.name.clone(), records.map(scored).collect())
        };
        self.evals.iter().map(of).collect()
    }

    /// Whether every score of these members is stored.
    pub fn is_cached(&self, members: &[Member]) -> bool {
        let key = score_key(members);
        self.evals.iter().all(|eval| eval.log.get(&key).is_some())
    }

    /// Scores the average of `members` on every eval set, in order; `label` is kept in the log for readers.
    ///
    /// The merge goes straight from the mapped files into the model; each finished score is stored at once.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when members do not fit the pool, [`Error::NotFinite`] when a log-likelihood is not finite.
    pub fn score(&mut self, members: &[Member], label: &str, observer: &dyn Observer) -> Result<Vec<Scored>> {
        self.score_as(members, label, "merged", observer)
    }

    /// As [`Scorer::score`], noting in the log how the model came about.
    pub fn score_as(
        &mut self,
        members: &[Member],
        label: &str,
        estimator: &str,
        observer: &dyn Observer,
    ) -> Result<Vec<Scored>> {
        let key = score_key(members);
        let mut merge_seconds = None;
        let mut scored = Vec::with_capacity(self.evals.len());
        for index in 0..self.evals.len() {
            if let Some(record) = self.evals[index].log.get(&key) {
                let record = record.clone();
                scored.push(Scored { eval_set: self.evals[index].name.clone(), record, cached: true });
                continue;
            }
            observer.check()?;
            let merge_seconds = match merge_seconds {
                Some(seconds) => seconds,
                None => *merge_seconds.insert(self.merge(members)?),
            };
            let record = ScoreRecord {
                key: key.clone(),
                mixture: label.to_owned(),
                estimator: estimator.to_owned(),
                merge_seconds,
                ..self.evaluate(index, label)?
            };
            self.evals[index].log.append(record.clone())?;
            scored.push(Scored { eval_set: self.evals[index].name.clone(), record, cached: false });
        }
        Ok(scored)
    }

    /// Overwrites the model with the average of `members`; returns the seconds it took.
    fn merge(&mut self, members: &[Member]) -> Result<f64> {
        let Settings { model, window, .. } = &self.pool.settings;
        let evaluator = match &mut self.evaluator {
            Some(evaluator) => evaluator,
            None => self.evaluator.insert(Evaluator::new(model, &self.pool.layout, *window)?),
        };
        let start = Instant::now();
        for member in members {
            if !self.open.contains_key(&member.weights) {
                self.open.insert(member.weights.clone(), Pool::checkpoint(&member.folder)?);
            }
        }
        let weighted: Vec<(f64, &Checkpoint)> =
            members.iter().filter_map(|member| Some((member.weight, self.open.get(&member.weights)?))).collect();
        evaluator.set(|out| average(out, &self.pool.layout, &weighted))?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Runs the model over one eval set.
    fn evaluate(&mut self, index: usize, label: &str) -> Result<ScoreRecord> {
        let Settings { window, prefix_token, .. } = self.pool.settings;
        let eval = &mut self.evals[index];
        let set = if let Some(set) = &eval.set {
            set
        } else {
            let tokens = self.pool.tokens(&eval.tokens)?;
            eval.set.insert(EvalSet::new(&eval.name, &tokens, prefix_token, window)?)
        };
        let start = Instant::now();
        let Some(evaluator) = &self.evaluator else {
            return Err(Error::Usage("nothing was merged".into()));
        };
        let documents = evaluator.nll(set)?;
        let place = format!("eval set '{}' under mixture '{label}'", eval.name);
        Ok(ScoreRecord {
            score: Score::from_documents(&documents, set.n_tokens(), set.n_bytes(), &place)?,
            eval_seconds: start.elapsed().as_secs_f64(),
            documents,
            ..ScoreRecord::default()
        })
    }
}
