//! Candidate: the one model whose parameters every candidate overwrites, and the members of merges on its device.

use super::members::{Checkpoints, Member, score_key};
use super::{Pool, Settings};
use crate::error::{Error, Result};
use crate::eval::{EvalSet, Evaluator, gradient_pass};
use crate::kernels::{Compute, Later, Mark};
use crate::merge::{DeviceMerger, average};
use crate::model::{Checkpoint, Layout};
use candle_core::Tensor;
use std::collections::{BTreeMap, VecDeque};

/// Candidates that are merged in one pass over members that do not stay on the device.
const TOGETHER: usize = 4;

/// Writes parameters, in the order of the layout, from checkpoints that are open or get opened.
pub(super) type Write<'w> = Box<dyn FnOnce(&mut Checkpoints, &mut [f32]) -> Result<()> + 'w>;

/// What the parameters of a candidate are.
pub(super) enum Parameters<'p> {
    /// The weighted average of models.
    Average(&'p [Member]),
    /// What a method writes.
    Written(Write<'p>),
}

/// What a candidate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Scores, in the pool's precision.
    Scores,
    /// Gradients, in f32.
    Gradients,
}

/// A model on the device of a pool.
pub(super) struct Candidate {
    pub(super) evaluator: Evaluator,
    pub(super) purpose: Purpose,
    compute: Compute,
    layout: Layout,
    merger: Option<DeviceMerger>,              // none on the processor
    expected: VecDeque<(String, Vec<Member>)>, // with their score keys
    merged: BTreeMap<String, Tensor>,          // candidates merged ahead of their turn, by score key
}

impl Candidate {
    /// With all parameters 0.
    ///
    /// # Errors
    /// Those of opening the device; [`Error::Usage`] or [`Error::OutOfMemory`] when the model does not fit.
    pub(super) fn new(pool: &Pool, purpose: Purpose) -> Result<Self> {
        let Settings { model, window, .. } = &pool.settings;
        let layout = pool.layout.clone();
        let (compute, room) = match purpose {
            Purpose::Scores => {
                let compute = pool.scoring_device()?;
                let room = pool.scoring_room(&compute)?;
                (compute, room)
            }
            Purpose::Gradients => {
                let compute = pool.gradient_device()?;
                let room = pool.differentiating_room(&compute, gradient_pass(*window))?;
                (compute, room)
            }
        };
        let mut evaluator = Evaluator::on(&compute, model, &layout, *window)?;
        let mut merger = None;
        if let Some(room) = room {
            evaluator.set_pass_tokens(room.pass_tokens);
            evaluator.set_recomputing(room.recomputes);
            merger = Some(DeviceMerger::new(&compute, room.members));
        }
        let (expected, merged) = (VecDeque::new(), BTreeMap::new());
        Ok(Self { evaluator, purpose, compute, layout, merger, expected, merged })
    }

    /// What averages will be asked for next, in order: some may be merged together.
    pub(super) fn expect(&mut self, averages: impl Iterator<Item = Vec<Member>>) {
        if self.merger.is_some() {
            self.expected = averages.map(|members| (score_key(&members), members)).collect();
        }
    }

    /// The average that will be asked for next, with its score key, where it is worth beginning early: on a device.
    pub(super) fn next(&self) -> Option<(String, Vec<Member>)> {
        self.expected.front().cloned()
    }

    /// Overwrites the parameters; returns where that begins and ends in the device's queue.
    ///
    /// # Errors
    /// Those of what is merged or written, [`Error::OutOfMemory`] when a merge does not fit the device.
    pub(super) fn set(&mut self, open: &mut Checkpoints, parameters: Parameters<'_>) -> Result<[Mark; 2]> {
        let begin = self.mark()?;
        let name = self.compute.name();
        self.overwrite(open, parameters)
            .map_err(|error| if error.is_out_of_memory() { no_room(&name, "merge") } else { error })?;
        Ok([begin, self.mark()?])
    }

    /// Whether its device works on while nobody waits.
    pub(super) fn is_queued(&self) -> bool {
        self.compute.is_queued()
    }

    /// Where the queue of the device ends now.
    pub(super) fn mark(&self) -> Result<Mark> {
        self.compute.mark()
    }

    fn overwrite(&mut self, open: &mut Checkpoints, parameters: Parameters<'_>) -> Result<()> {
        match (parameters, &mut self.merger) {
            (Parameters::Average(members), Some(_)) => self.merge(open, members),
            (Parameters::Average(members), None) => {
                let layout = &self.layout;
                self.evaluator.set(|out| average(out, layout, &open.of(members)?))
            }
            (Parameters::Written(write), _) => self.evaluator.set(|out| write(open, out)),
        }
    }

    /// Merges on the device; what comes next too, where members have to be brought over for it anyway.
    fn merge(&mut self, open: &mut Checkpoints, members: &[Member]) -> Result<()> {
        let Some(merger) = &mut self.merger else { return Ok(()) };
        let key = score_key(members);
        if let Some(at) = self.expected.iter().position(|(next, _)| *next == key) {
            self.expected.drain(..=at); // those before it are scored, or another process is at them
        }
        let target = self.evaluator.parameters();
        if let Some(merged) = self.merged.remove(&key) {
            return Ok(target.slice_set(&merged, 0, 0)?);
        }
        self.merged.clear(); // for whom they were meant, another process has scored them
        let mut candidates = vec![members.to_vec()];
        let mut outs = vec![target.clone()];
        if in_order(members) && !merger.keeps(&open.of(members)?.iter().map(|(_, model)| *model).collect::<Vec<_>>()) {
            for (_, next) in self.expected.iter().take(TOGETHER - 1).take_while(|(_, next)| in_order(next)) {
                let Ok(out) = target.zeros_like() else { break }; // no room: one at a time
                candidates.push(next.clone());
                outs.push(out);
            }
        }
        let union = union(&candidates);
        let weight_in = |candidate: &Vec<Member>, member: &Member| -> f64 {
            candidate.iter().find(|other| other.weights == member.weights).map_or(0.0, |other| other.weight)
        };
        let weights: Vec<Vec<f64>> = candidates
            .iter()
            .map(|candidate| union.iter().map(|member| weight_in(candidate, member)).collect())
            .collect();
        let models: Vec<&Checkpoint> = open.of(&union)?.into_iter().map(|(_, model)| model).collect();
        merger.average(&outs, &self.layout, &weights, &models)?;
        for (candidate, out) in candidates.iter().zip(outs).skip(1) {
            self.merged.insert(score_key(candidate), out);
        }
        Ok(())
    }

    /// The negative log-likelihood of every document of a set, in nats; in smaller passes when the device has no room for large
    /// ones.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the smallest pass does not fit.
    pub(super) fn nll(&mut self, set: &EvalSet) -> Result<Vec<f64>> {
        self.with_less(|evaluator| evaluator.nll(set), in_smaller_passes)
    }

    /// As [`Candidate::token_nll`], on a device that is not waited for.
    pub(super) fn queue_token_nll(&mut self, set: &EvalSet) -> Result<Later> {
        self.with_less(|evaluator| evaluator.queue_token_nll(set), in_smaller_passes)
    }

    /// As [`Candidate::nll`], of every token.
    pub(super) fn token_nll(&mut self, set: &EvalSet) -> Result<Vec<f64>> {
        self.with_less(|evaluator| evaluator.token_nll(set), in_smaller_passes)
    }

    /// What `differentiate` makes of the model; with activations computed again when the device has no room for them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when that does not fit either, and those of `differentiate`.
    pub(super) fn gradient<T>(&mut self, differentiate: impl Fn(&Evaluator) -> Result<T>) -> Result<T> {
        let again = |evaluator: &mut Evaluator| {
            if evaluator.set_recomputing(true) { Ok(()) } else { Err("take a gradient".to_owned()) }
        };
        self.with_less(differentiate, again)
    }

    /// Runs until the device has room for it: without members that it keeps, then with what `less` still takes away, or says what
    /// there is no room for.
    fn with_less<T>(
        &mut self,
        run: impl Fn(&Evaluator) -> Result<T>,
        less: impl Fn(&mut Evaluator) -> std::result::Result<(), String>,
    ) -> Result<T> {
        loop {
            match run(&self.evaluator) {
                Err(error) if error.is_out_of_memory() => {
                    if self.merger.as_ref().is_some_and(|merger| merger.kept() > 0) || !self.merged.is_empty() {
                        self.merged.clear();
                        self.merger.iter_mut().for_each(DeviceMerger::forget);
                    } else if let Err(what) = less(&mut self.evaluator) {
                        return Err(no_room(&self.compute.name(), &what));
                    }
                }
                done => return done,
            }
        }
    }
}

fn in_smaller_passes(evaluator: &mut Evaluator) -> std::result::Result<(), String> {
    let tokens = evaluator.pass_tokens();
    if evaluator.set_pass_tokens(tokens / 2) { Ok(()) } else { Err(format!("score {tokens} tokens at a time")) }
}

fn no_room(device: &str, what: &str) -> Error {
    Error::OutOfMemory(format!("'{device}' has no room to {what}; end what else runs there, or use --device cpu"))
}

/// Whether members are in the order of their weights' hash, each once: then the order of several candidates' is one.
fn in_order(members: &[Member]) -> bool {
    members.is_sorted_by(|a, b| a.weights < b.weights)
}

/// The members of several candidates, each once, in the order that each candidate has them in.
fn union(candidates: &[Vec<Member>]) -> Vec<Member> {
    let [candidate] = candidates else {
        let all = candidates.iter().flatten().map(|member| (member.weights.clone(), member.clone()));
        return all.collect::<BTreeMap<_, Member>>().into_values().collect();
    };
    candidate.clone()
}
