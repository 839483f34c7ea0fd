//! Answer: what one estimator says of some mixtures, asked now or read from the pool.
//!
//! Every answer is stored under `estimates/`, one file per estimator, eval set and protocol of training, so that estimators
//! can be compared later without computing anything.

use super::calibrated::Calibrated;
use super::{Cost, Gives, Question, Spec};
use crate::error::Result;
use crate::files;
use crate::kernels::Precision;
use crate::mixture::Mixture;
use crate::pool::{ESTIMATES, Pool};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The predictions of one estimator on one eval set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The estimator with its options, e.g. `merged:exponent=0.5`.
    pub estimator: String,
    /// All its options, defaults included; none in files of mixpool 0.1 from before they were kept.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Whether the predictions are losses or only an order.
    pub gives: Gives,
    /// Name of the eval set.
    pub eval_set: String,
    /// Training tokens of the ground truth it is about; none where they grow with the mixture.
    pub tokens: Option<u64>,
    /// What the estimator had cost when it last answered, on all eval sets it was asked about together.
    pub cost: Cost,
    /// Prediction by mixture: nats per token, or a number that only orders. Smaller is better.
    pub predictions: BTreeMap<String, f64>,
}

impl Answer {
    /// Whether these are losses of models trained on the mixtures, in the order of the first repetition.
    pub fn is_truth(&self) -> bool {
        self.repetition() == Some(0)
    }

    /// Which repetition of the ground truth this is, 0 for the first; none for an estimator.
    pub fn repetition(&self) -> Option<u64> {
        let rest = self.estimator.strip_prefix(TRUTH)?;
        if rest.is_empty() { Some(0) } else { rest.strip_prefix(":repeat=")?.parse().ok() }
    }

    /// Whether its name still means the options it was given: a default may have changed since.
    fn is_current(&self) -> bool {
        let name = self.estimator.split_once("+offset").map_or(self.estimator.as_str(), |(name, _)| name);
        self.options.is_empty() || Spec::parse(name).is_ok_and(|spec| spec.options.all() == self.options)
    }

    /// The predictions of some mixtures, in their order; none where one is missing.
    pub fn of(&self, mixtures: &[String]) -> Option<Vec<f64>> {
        mixtures.iter().map(|mixture| self.predictions.get(mixture).copied()).collect()
    }
}

/// What the ground truth is called.
const TRUTH: &str = "ground-truth";

/// Fits an estimator, asks it about some mixtures and stores what it says: one answer per eval set of the question.
///
/// With `calibrate` above 0, losses are shifted, per eval set, by their mean distance from the losses of that many models
/// trained on other mixtures.
///
/// # Errors
/// Those of the estimator.
pub fn ask(spec: &Spec, question: &Question<'_>, mixtures: &[Mixture], calibrate: usize) -> Result<Vec<Answer>> {
    let mut estimator = spec.fit(question)?;
    let mut name = spec.to_string();
    if calibrate > 0 && spec.method.gives == Gives::Loss && spec.method.name != TRUTH {
        estimator = Box::new(Calibrated::new(estimator, question, calibrate)?);
        name = format!("{name}+offset({calibrate})");
    }
    let predicted = estimator.estimate(mixtures)?;
    let store = Store::new(question.pool)?;
    let answer = |(index, eval_set): (usize, &String)| {
        let predictions = mixtures.iter().zip(&predicted).map(|(mixture, all)| (mixture.to_string(), all[index]));
        let answer = Answer {
            estimator: name.clone(),
            options: spec.options.all(),
            gives: spec.method.gives,
            eval_set: eval_set.clone(),
            tokens: question.tokens,
            cost: estimator.cost(),
            predictions: predictions.collect(),
        };
        store.add(&answer)?;
        Ok(answer)
    };
    question.evals.iter().enumerate().map(answer).collect()
}

/// Every stored answer about the pool's present experts and eval sets, sorted by estimator, tokens and eval set.
///
/// # Errors
/// [`crate::Error::Damaged`] when a file is not what was written.
pub fn stored(pool: &Pool) -> Result<Vec<Answer>> {
    Store::new(pool)?.all()
}

/// Files of answers about experts or eval sets that the pool no longer has, or by options that mean something else by now.
///
/// # Errors
/// As [`stored`].
pub fn outdated(pool: &Pool) -> Result<Vec<PathBuf>> {
    let stores = Precision::ALL.into_iter().map(|precision| Store::of(pool, precision)).collect::<Result<Vec<_>>>()?;
    let mut found = Vec::new();
    for path in
        files::list(&stores[0].folder)?.into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "json"))
    {
        let answer: Answer = files::read_json(&path)?;
        if stores.iter().all(|store| store.path(&answer) != path) || !answer.is_current() {
            found.push(path);
        }
    }
    Ok(found)
}

/// The folder of answers, and what in the pool they depend on.
struct Store {
    folder: PathBuf,
    experts: String,
    evals: BTreeMap<String, String>,
}

impl Store {
    fn new(pool: &Pool) -> Result<Self> {
        Self::of(pool, pool.precision())
    }

    /// Of answers that rest on scores in a precision.
    fn of(pool: &Pool, precision: Precision) -> Result<Self> {
        let mut experts = String::new();
        for partition in pool.partitions()?.values() {
            for unit in 0..partition.units.len() {
                experts.push_str(&pool.expert_id(partition, unit)?);
            }
        }
        let keyed = |name: String| pool.eval_key_in(precision, &name).map(|key| (name, key));
        let evals = pool.eval_names()?.into_iter().map(keyed).collect::<Result<_>>()?;
        Ok(Self { folder: pool.root().join(ESTIMATES), experts, evals })
    }

    fn path(&self, answer: &Answer) -> PathBuf {
        let Answer { estimator, eval_set, tokens, .. } = answer;
        let eval = self.evals.get(eval_set).map_or("", String::as_str);
        let key = format!("estimates 1\n{estimator}\n{eval_set}\n{eval}\n{tokens:?}\n{}", self.experts);
        self.folder.join(format!("{}.json", files::hash(key.as_bytes())))
    }

    /// Stores an answer beside what the same estimator said before of other mixtures.
    fn add(&self, answer: &Answer) -> Result<()> {
        files::create_folder(&self.folder)?;
        let path = self.path(answer);
        let before = if path.exists() { Some(files::read_json::<Answer>(&path)?) } else { None };
        let mut all = before.filter(Answer::is_current).map_or_else(BTreeMap::new, |before| before.predictions);
        let is_new =
            |(mixture, value): (&String, &f64)| all.get(mixture).map(|known| known.to_bits()) != Some(value.to_bits());
        if !answer.predictions.iter().any(is_new) {
            return Ok(()); // said before
        }
        all.extend(answer.predictions.clone());
        files::publish(&path, &files::to_sealed_json(&Answer { predictions: all, ..answer.clone() })?)
    }

    fn all(&self) -> Result<Vec<Answer>> {
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let paths = files::list(&self.folder)?.into_iter();
        let paths = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let mut answers = Vec::new();
        for path in paths {
            let answer: Answer = files::read_json(&path)?;
            if self.path(&answer) == path && answer.is_current() {
                answers.push(answer); // others speak of experts or eval sets that are no longer there
            }
        }
        let order = |answer: &Answer| (answer.estimator.clone(), answer.tokens, answer.eval_set.clone());
        answers.sort_by_key(order);
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_from_before_a_default_changed_is_not_current() {
        let spec = Spec::parse("merged:exponent=0.5").unwrap();
        let mut answer = Answer {
            estimator: format!("{spec}+offset(3)"),
            options: spec.options.all(),
            gives: Gives::Loss,
            eval_set: "wiki".into(),
            tokens: None,
            cost: Cost::default(),
            predictions: BTreeMap::new(),
        };
        assert!(answer.is_current());
        answer.options.insert("truths".into(), "7".into()); // what the name would have left out, were 7 the default
        assert!(!answer.is_current());
        answer.options.clear();
        assert!(answer.is_current(), "files without options are taken at their word");
    }
}
