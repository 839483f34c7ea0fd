//! Scorer: merges scored on eval sets, each score computed once and stored at once.

use super::begun::Begun;
use super::candidate::{Candidate, Parameters, Purpose};
use super::members::{Checkpoints, Member, score_key};
use super::{Pool, ScoreLog, ScoreRecord, Settings, TokenNll};
use crate::error::{Error, Result};
use crate::eval::{EvalSet, PROTOCOL};
use crate::files;
use crate::kernels::{Mark, Precision};
use crate::progress::Observer;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks at what another process is at.
const PAUSE: Duration = Duration::from_millis(20);

/// One eval set of a scorer: its log, and its windows once they are needed.
pub(super) struct EvalHandle {
    pub(super) name: String,
    key: String,
    tokens: String,
    set: Option<EvalSet>,
    pub(super) log: ScoreLog,
}

impl EvalHandle {
    pub(super) fn set(&mut self, pool: &Pool) -> Result<&EvalSet> {
        let Settings { window, prefix_token, .. } = pool.settings;
        Ok(match &mut self.set {
            Some(set) => set,
            none => none.insert(EvalSet::new(&self.name, &pool.tokens(&self.tokens)?, prefix_token, window)?),
        })
    }

    /// Where −ln p of every token under a model is kept.
    fn tokens_path(&self, pool: &Pool, model: &Member) -> PathBuf {
        TokenNll::path(&pool.root, &self.key, &model.weights)
    }
}

/// A score with what is known about how it came about.
#[derive(Debug, Clone)]
pub struct Scored {
    /// Name of the eval set.
    pub eval_set: String,
    /// The stored record.
    pub record: Arc<ScoreRecord>,
    /// Whether it was there before.
    pub cached: bool,
}

/// Scores member lists on some eval sets; what was scored before is read from the log.
pub struct Scorer<'a> {
    pub(super) pool: &'a Pool,
    pub(super) evals: Vec<EvalHandle>,
    pub(super) candidate: Option<Candidate>,
    pub(super) ahead: Option<Begun>, // the merge after the one that is scored
    expected: Vec<Vec<Member>>,
    pub(super) open: Checkpoints,
}

impl Pool {
    /// The hash of all that a score on an eval set depends on besides the model.
    ///
    /// # Errors
    /// [`Error::Usage`] when the name is unknown.
    pub fn eval_key(&self, name: &str) -> Result<String> {
        self.eval_key_in(self.precision(), name)
    }

    /// As [`Pool::eval_key`], of scores in a precision. Those in f32 have one key wherever they were computed: their numbers differ
    /// by the order of additions only.
    pub fn eval_key_in(&self, precision: Precision, name: &str) -> Result<String> {
        let Settings { window, prefix_token, .. } = self.settings;
        let tokens = self.eval_binding(name)?.tokens;
        let mut inputs = format!("protocol {PROTOCOL} tokens {tokens} window {window} prefix {prefix_token}");
        if !precision.is_f32() {
            inputs.push_str(&format!(" precision {precision}"));
        }
        Ok(files::hash(inputs.as_bytes()))
    }

    /// An eval set and its score log.
    fn eval(&self, name: &str) -> Result<EvalHandle> {
        let (binding, key) = (self.eval_binding(name)?, self.eval_key(name)?);
        let log = self.score_log(&key)?;
        Ok(EvalHandle { name: name.to_owned(), key, tokens: binding.tokens, set: None, log })
    }

    /// The score log of an eval set's key.
    pub(super) fn score_log(&self, key: &str) -> Result<ScoreLog> {
        let path = self.root.join("scores").join(format!("{key}.log"));
        match self.sharing() {
            Some(_) => ScoreLog::open_apart(&path, &files::Process::this()),
            None => ScoreLog::open(&path),
        }
    }

    /// A scorer over some eval sets; all of them when `names` is empty.
    ///
    /// # Errors
    /// Those of [`Pool::chosen_evals`].
    pub fn scorer(&self, names: &[String]) -> Result<Scorer<'_>> {
        let evals = self.chosen_evals(names)?.iter().map(|name| self.eval(name)).collect::<Result<_>>()?;
        Ok(Scorer {
            pool: self,
            evals,
            candidate: None,
            ahead: None,
            expected: Vec::new(),
            open: Checkpoints::default(),
        })
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
            let scored = |record: &Arc<ScoreRecord>| Scored {
                eval_set: eval.name.clone(),
                record: record.clone(),
                cached: true,
            };
            (eval.name.clone(), records.map(scored).collect())
        };
        self.evals.iter().map(of).collect()
    }

    /// What is stored of the average of these members, by eval set; computes nothing.
    pub fn stored_of(&self, members: &[Member]) -> Vec<Scored> {
        self.stored_under(&score_key(members))
    }

    /// What is stored under a key, by eval set.
    pub(super) fn stored_under(&self, key: &str) -> Vec<Scored> {
        let scored = |eval: &EvalHandle| {
            let record = eval.log.get(key)?.clone();
            Some(Scored { eval_set: eval.name.clone(), record, cached: true })
        };
        self.evals.iter().filter_map(scored).collect()
    }

    /// Whether a score is stored under this key for every eval set.
    pub fn is_stored(&self, key: &str) -> bool {
        self.evals.iter().all(|eval| eval.log.get(key).is_some())
    }

    /// As [`Scorer::score_as`], of a merge.
    pub fn score(&mut self, members: &[Member], label: &str, observer: &dyn Observer) -> Result<Vec<Scored>> {
        self.score_as(members, label, "merged", observer)
    }

    /// Scores the average of `members` on every eval set, in order; `label` is kept in the log for readers, with
    /// `estimator`, how the model came about. What another process is at is waited for.
    ///
    /// The merge goes straight from the mapped files into the model; each finished score is stored at once.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when members do not fit the pool, [`Error::NotFinite`] when a log-likelihood is not finite.
    pub fn score_as(
        &mut self,
        members: &[Member],
        label: &str,
        estimator: &str,
        observer: &dyn Observer,
    ) -> Result<Vec<Scored>> {
        loop {
            if let Some(scored) = self.try_score_as(members, label, estimator, observer)? {
                return Ok(scored);
            }
            Self::pause(observer)?;
        }
    }

    /// As [`Scorer::score_as`]; none when another process is at it.
    pub fn try_score_as(
        &mut self,
        members: &[Member],
        label: &str,
        estimator: &str,
        observer: &dyn Observer,
    ) -> Result<Option<Vec<Scored>>> {
        self.try_score_keyed(&score_key(members), members, label, estimator, observer)
    }

    /// As [`Scorer::try_score_as`], with the [`score_key`] of the members.
    pub(crate) fn try_score_keyed(
        &mut self,
        key: &str,
        members: &[Member],
        label: &str,
        estimator: &str,
        observer: &dyn Observer,
    ) -> Result<Option<Vec<Scored>>> {
        self.try_score(key, label, estimator, observer, Parameters::Average(members))
    }

    /// Says which averages will be scored next, in order, so that a device may merge several at a time.
    pub fn expect(&mut self, averages: impl Iterator<Item = Vec<Member>>) {
        self.expected = averages.collect();
        if let Some(candidate) = &mut self.candidate {
            candidate.expect(std::mem::take(&mut self.expected).into_iter());
        }
    }

    /// Waits a little for other processes.
    pub fn pause(observer: &dyn Observer) -> Result<()> {
        std::thread::sleep(PAUSE);
        observer.check()
    }

    /// As [`Scorer::try_score_as`], of the model whose parameters `write` writes, in the order of the layout.
    ///
    /// `key` is a hash that names everything they depend on. `write` is called once at most, and only when a score is
    /// missing: it is claimed for as long as it takes, so that several processes share the work.
    pub fn try_score_with(
        &mut self,
        key: &str,
        label: &str,
        estimator: &str,
        observer: &dyn Observer,
        write: impl FnOnce(&mut Checkpoints, &mut [f32]) -> Result<()>,
    ) -> Result<Option<Vec<Scored>>> {
        self.try_score(key, label, estimator, observer, Parameters::Written(Box::new(write)))
    }

    /// −ln p of every predicted token of every eval set under one model, read where it was stored before.
    ///
    /// `label` names the model to people.
    ///
    /// # Errors
    /// As [`Scorer::score`].
    pub fn token_nll(&mut self, model: &Member, label: &str, observer: &dyn Observer) -> Result<Vec<TokenNll>> {
        let single = [Member { weight: 1.0, ..model.clone() }];
        let mut parameters = Some(Parameters::Average(&single));
        let mut tokens = Vec::with_capacity(self.evals.len());
        for index in 0..self.evals.len() {
            let path = self.evals[index].tokens_path(self.pool, model);
            if let Some(stored) = TokenNll::read(&path)? {
                tokens.push(stored);
                continue;
            }
            observer.check()?;
            if let Some(parameters) = parameters.take() {
                self.set_for(Purpose::Scores, parameters)?;
            }
            let place = format!("eval set '{}' under {label}", self.evals[index].name);
            let set = self.evals[index].set(self.pool)?;
            let start = Instant::now();
            let values = ready(self.candidate.as_mut())?.token_nll(set)?;
            tokens.push(TokenNll::store(&path, &values, start.elapsed().as_secs_f64(), &place)?);
        }
        Ok(tokens)
    }

    /// Whether [`Scorer::token_nll`] of a model is stored for every eval set; a damaged file counts.
    pub fn has_token_nll(&self, model: &Member) -> bool {
        self.evals.iter().all(|eval| eval.tokens_path(self.pool, model).exists())
    }

    /// The windows of every eval set, in order.
    ///
    /// # Errors
    /// [`Error::Damaged`] when tokens are missing or not whole.
    pub fn sets(&mut self) -> Result<Vec<&EvalSet>> {
        self.evals.iter_mut().map(|eval| eval.set(self.pool)).collect()
    }

    /// Predicted tokens of an eval set.
    pub fn n_tokens(&mut self, eval: usize) -> Result<u64> {
        Ok(self.evals[eval].set(self.pool)?.n_tokens())
    }

    /// What every score on an eval set depends on beside the model: a hash of protocol, tokens, window and prefix.
    pub fn eval_key(&self, eval: usize) -> &str {
        &self.evals[eval].key
    }

    /// Overwrites the parameters of a model for a purpose, the only one on the device; returns where that begins and ends in its queue.
    pub(super) fn set_for(&mut self, purpose: Purpose, parameters: Parameters<'_>) -> Result<[Mark; 2]> {
        self.candidate.take_if(|candidate| candidate.purpose != purpose);
        let candidate = if let Some(candidate) = &mut self.candidate {
            candidate
        } else {
            self.pool.refuse_impossible_scoring()?;
            let candidate = self.candidate.insert(Candidate::new(self.pool, purpose)?);
            candidate.expect(std::mem::take(&mut self.expected).into_iter());
            candidate
        };
        candidate.set(&mut self.open, parameters)
    }
}

pub(super) fn ready(candidate: Option<&mut Candidate>) -> Result<&mut Candidate> {
    candidate.ok_or_else(|| Error::Usage("nothing was merged".into()))
}
