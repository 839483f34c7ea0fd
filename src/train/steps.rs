//! Steps: the way of every run to the end of its schedule, told to an observer and stored as it goes.

use super::{CurvePoint, TrainConfig};
use crate::error::Result;
use crate::progress::Observer;
use std::time::Instant;

/// How a run is told of and kept.
#[derive(Clone, Copy)]
pub struct Pace<'a> {
    /// What the observer calls it.
    pub name: &'a str,
    /// Who is told, and asked whether to stop.
    pub observer: &'a dyn Observer,
    /// Seconds of work between two calls of `save`.
    pub save_every: f64,
}

/// Takes the steps of a run from `done` to the last of its schedule. `save` is called every so often, and before a stop
/// that the observer asked for; not after the last step.
///
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped) when asked to stop; those of `step` and `save`.
pub fn take_steps<R>(
    config: &TrainConfig,
    mut done: u64,
    pace: Pace<'_>,
    run: &mut R,
    mut step: impl FnMut(&mut R) -> Result<CurvePoint>,
    mut save: impl FnMut(&R) -> Result<()>,
) -> Result<()> {
    pace.observer.begin(pace.name, config.steps * config.tokens_per_step(), "tokens");
    let mut saved = Instant::now();
    while done < config.steps {
        if let Err(stop) = pace.observer.check() {
            save(run)?;
            return Err(stop);
        }
        let point = step(run)?;
        done = point.step;
        pace.observer.advance(point.tokens, &format!("loss {:.3}", point.loss));
        if saved.elapsed().as_secs_f64() >= pace.save_every && done < config.steps {
            save(run)?;
            saved = Instant::now();
        }
    }
    pace.observer.finish();
    Ok(())
}
