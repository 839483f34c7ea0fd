//! Begun: a candidate whose scores are on their way, and the one after it, so that a device never waits for us.
//!
//! On a device, everything that scores a candidate is laid in its queue, and then everything of the next candidate that is
//! expected, before the losses of the first are looked at: what the processor does with them (sums, records, the disk) takes
//! none of the device's time. On the processor, sets are scored one after the other, each stored before the next begins.

use super::candidate::{Candidate, Parameters, Purpose};
use super::claim::{Claim, Claimed};
use super::scorer::{EvalHandle, ready};
use super::{ScoreRecord, Scored, Scorer};
use crate::error::{Error, Result};
use crate::eval::Score;
use crate::kernels::{Later, Mark};
use crate::progress::Observer;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// A candidate of this process.
pub(super) struct Begun {
    key: String,
    _claim: Claim,
    merge: [Mark; 2],                        // where it begins and ends in the queue
    coming: Option<BTreeMap<usize, Coming>>, // by eval set; none on the processor, whose model still is the candidate
}

/// The losses of one eval set's tokens, on a device.
struct Coming {
    losses: Later,
    place: [Mark; 2], // where the work begins and ends in the queue
}

/// What became of an attempt to begin.
enum Beginning {
    Ours(Begun),
    Stored,
    Theirs,
}

impl Scorer<'_> {
    /// Scores what `parameters` are on every eval set, under a key; none when another process is at it.
    pub(super) fn try_score(
        &mut self,
        key: &str,
        label: &str,
        estimator: &str,
        observer: &dyn Observer,
        parameters: Parameters<'_>,
    ) -> Result<Option<Vec<Scored>>> {
        let begun = match self.ahead.take_if(|ahead| ahead.key == key) {
            Some(ahead) => ahead,
            None => match self.begin(key, observer, parameters)? {
                Beginning::Ours(begun) => begun,
                Beginning::Stored => return Ok(Some(self.stored_under(key))),
                Beginning::Theirs => return Ok(None),
            },
        };
        self.look_ahead(observer);
        self.finish(begun, label, estimator, observer).map(Some)
    }

    /// Claims a candidate, overwrites the model by it and queues what is missing.
    fn begin(&mut self, key: &str, observer: &dyn Observer, parameters: Parameters<'_>) -> Result<Beginning> {
        if self.is_stored(key) {
            return Ok(Beginning::Stored);
        }
        observer.check()?;
        // The claim before the look: who had it has stored what it computed.
        let claimed = self.pool.try_claim(key)?;
        self.evals.iter_mut().try_for_each(|eval| eval.log.refresh())?;
        let claim = match claimed {
            _ if self.is_stored(key) => return Ok(Beginning::Stored),
            Claimed::Ours(claim) => claim,
            Claimed::Theirs(_) => return Ok(Beginning::Theirs),
        };
        self.ahead = None; // it was not asked for after all
        let merge = self.set_for(Purpose::Scores, parameters)?;
        let is_queued = ready(self.candidate.as_mut())?.is_queued();
        let coming = is_queued.then(|| self.queue_missing(key)).transpose()?;
        Ok(Beginning::Ours(Begun { key: key.to_owned(), _claim: claim, merge, coming }))
    }

    /// Queues the model on every eval set that has no score under a key.
    fn queue_missing(&mut self, key: &str) -> Result<BTreeMap<usize, Coming>> {
        let candidate = ready(self.candidate.as_mut())?;
        let missing = self.evals.iter_mut().enumerate().filter(|(_, eval)| eval.log.get(key).is_none());
        let queue = |(index, eval): (usize, &mut EvalHandle)| {
            let begin = candidate.mark()?;
            let losses = candidate.queue_token_nll(eval.set(self.pool)?)?;
            Ok((index, Coming { losses, place: [begin, candidate.mark()?] }))
        };
        missing.map(queue).collect()
    }

    /// Begins the merge that is expected next. Why it cannot be begun is said when it is its turn, after what is begun is stored.
    fn look_ahead(&mut self, observer: &dyn Observer) {
        let Some((key, members)) = self.candidate.as_ref().and_then(Candidate::next) else { return };
        if let Ok(Beginning::Ours(begun)) = self.begin(&key, observer, Parameters::Average(&members)) {
            self.ahead = Some(begun);
        }
    }

    /// The scores of a candidate in the order of the eval sets; each that was missing is stored as soon as it is there.
    fn finish(
        &mut self,
        mut begun: Begun,
        label: &str,
        estimator: &str,
        observer: &dyn Observer,
    ) -> Result<Vec<Scored>> {
        let mut scored = Vec::with_capacity(self.evals.len());
        for index in 0..self.evals.len() {
            let stored = self.evals[index].log.get(&begun.key).cloned();
            let cached = stored.is_some();
            let record = if let Some(record) = stored {
                record
            } else {
                let sums = self.sums(index, &mut begun, label, observer)?;
                let (key, mixture, estimator) = (begun.key.clone(), label.to_owned(), estimator.to_owned());
                let record = Arc::new(ScoreRecord { key, mixture, estimator, ..sums });
                self.evals[index].log.append(vec![record.clone()])?;
                record
            };
            scored.push(Scored { eval_set: self.evals[index].name.clone(), record, cached });
        }
        Ok(scored)
    }

    /// The sums of one eval set, and what they took.
    fn sums(&mut self, index: usize, begun: &mut Begun, label: &str, observer: &dyn Observer) -> Result<ScoreRecord> {
        let eval = &mut self.evals[index];
        let place = format!("eval set '{}' under mixture '{label}'", eval.name);
        let set = eval.set(self.pool)?;
        let (documents, eval_seconds) = if let Some(coming) = &mut begun.coming {
            let lost = || Error::Usage(format!("{place}: nothing was queued"));
            let Coming { losses, place } = coming.remove(&index).ok_or_else(lost)?;
            (set.by_document(&losses.take()?), seconds_of(&place)?)
        } else {
            observer.check()?;
            let start = Instant::now();
            (ready(self.candidate.as_mut())?.nll(set)?, start.elapsed().as_secs_f64())
        };
        Ok(ScoreRecord {
            score: Score::from_documents(&documents, set.n_tokens(), set.n_bytes(), &place)?,
            merge_seconds: seconds_of(&begun.merge)?,
            eval_seconds,
            documents,
            device: self.pool.device_label(),
            ..ScoreRecord::default()
        })
    }
}

fn seconds_of([begin, end]: &[Mark; 2]) -> Result<f64> {
    end.seconds_since(begin)
}
