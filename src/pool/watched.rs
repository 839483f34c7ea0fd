//! Watched run: a recipe trained with someone looking at every step, resumable together with what was seen.
//!
//! Its object is not kept: who watches keeps what is wanted. `work/<hash>.state` and `work/<hash>.seen` hold an unfinished
//! run by the hash of its key; `seen` is stored first, so that it never knows less than the state.

use super::training::{SAVE_EVERY, remove_if_there};
use super::{Pool, Recipe};
use crate::error::{Error, Result};
use crate::files;
use crate::progress::Observer;
use crate::text::Batches;
use crate::train::{CurvePoint, Pace, State, Trainer, take_steps};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::path::Path;

/// Someone who takes the steps of a run and keeps what they show.
pub trait Watch {
    /// What is kept of one step.
    type Seen: Serialize + DeserializeOwned;

    /// Bytes a parameter that watching takes on the device of the training.
    fn beside(&self) -> u64 {
        0
    }

    /// Takes the next step.
    fn step(&mut self, trainer: &mut Trainer<'_>, batches: &mut Batches) -> Result<(CurvePoint, Self::Seen)>;
}

impl Pool {
    /// Runs a recipe from its start to its end and returns what was seen of every step.
    ///
    /// `key` says all that the run and what is seen depend on. An unfinished run goes on where its last state was stored;
    /// that is every 30 seconds of work, when the observer asks to stop, and at the end: [`Pool::fitted`] under the same key
    /// drops it when the result is stored.
    ///
    /// # Errors
    /// Those of `watch`; [`crate::Error::Locked`] when another process is at it, [`crate::Error::Damaged`] when what is stored
    /// is not whole.
    pub fn watched<W: Watch>(
        &self,
        key: &str,
        recipe: &Recipe,
        name: &str,
        observer: &dyn Observer,
        watch: &mut W,
    ) -> Result<Vec<W::Seen>> {
        let id = files::hash(key.as_bytes());
        let claim = self.claim(&id, name)?;
        let path = |kind: &str| self.root().join("work").join(format!("{id}.{kind}"));
        let (state_path, seen_path) = (path("state"), path("seen"));
        let compute = self.training_device(recipe.train.precision)?;
        self.train_as_fits(&compute, &recipe.train, watch.beside(), (name, observer), |train, recomputes| {
            let (state, seen) = match State::load(&state_path, self.layout())? {
                Some(state) => {
                    let seen = read_seen(&seen_path, state.step)?;
                    (state, seen)
                }
                None => (State::fresh(self.start_values(recipe)?), Vec::new()),
            };
            let mut batches = self.batches(recipe)?;
            batches.skip(state.step * train.batch_size as u64);
            let done = state.step;
            let trainer = Trainer::on(&compute, &recipe.model, self.layout(), train, state)?.recomputing(recomputes);
            let mut run: (Trainer<'_>, Vec<W::Seen>) = (trainer, seen);
            let save = |(trainer, seen): &(Trainer<'_>, Vec<W::Seen>)| {
                claim.check()?;
                files::publish(&seen_path, &files::to_sealed_json(&json!({ "seen": seen }))?)?;
                trainer.state()?.save(&state_path)
            };
            take_steps(
                train,
                done,
                Pace { name, observer, save_every: SAVE_EVERY },
                &mut run,
                |(trainer, seen)| {
                    let (point, new) = watch.step(trainer, &mut batches)?;
                    seen.push(new);
                    Ok(point)
                },
                save,
            )?;
            save(&run)?; // what comes of it is not stored yet
            Ok(run.1)
        })
    }

    /// Drops what is kept of a watched run, once what came of it is stored.
    pub(super) fn forget_watched(&self, key: &str) -> Result<()> {
        let id = files::hash(key.as_bytes());
        remove_if_there(&self.state_path(&id))?;
        remove_if_there(&self.root().join("work").join(format!("{id}.seen")))
    }
}

/// What was seen of the first `steps` steps of a run.
fn read_seen<S: DeserializeOwned>(path: &Path, steps: u64) -> Result<Vec<S>> {
    let mut stored: Value = files::read_json(path).map_err(Error::missing_is_damage)?;
    let list = if stored.is_object() { stored["seen"].take() } else { stored }; // a bare list before it had a checksum
    let mut seen: Vec<S> = serde_json::from_value(list).map_err(|error| Error::damaged(path, error.to_string()))?;
    seen.truncate(steps as usize); // it may have been stored once more than the state
    Ok(seen)
}
