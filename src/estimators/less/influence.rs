//! Influence: the cosine of the optimiser's step on a window and the gradient of an eval set, summed over checkpoints.

use super::warmup::{Mark, WarmUp};
use crate::error::{Error, Result};
use crate::estimators::{Cost, Question};
use crate::eval::{Evaluator, gradient_pass};
use crate::kernels::{AdamW, Directions, Projection, adamw_direction};
use crate::text::Window;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Version of what is stored; raised when the same inputs would give other numbers.
const VERSION: u32 = 1;
/// Windows whose cosines are stored together: what a kill may lose.
const TOGETHER: usize = 256;
/// Seeds the projection.
const SEED: u64 = 0;

/// Training text as windows, and what names it.
pub(super) struct Text {
    /// All that the windows depend on.
    pub(super) key: String,
    pub(super) windows: Vec<Window>,
}

/// Cosines of consecutive windows at one checkpoint, as they are stored: `[windows][eval sets]`.
#[derive(Serialize, Deserialize)]
struct Cosines {
    cosines: Vec<Vec<f64>>,
    seconds: f64,
}

/// The gradients of the eval sets at one checkpoint, each divided by its norm.
struct Targets {
    directions: Directions,
    projected: Vec<Vec<f64>>,
    seconds: f64,
}

/// Takes cosines between training windows and the eval sets of a question.
pub(super) struct Influence<'a> {
    question: Question<'a>,
    warmup: WarmUp<'a>,
    dim: usize,
    evals: Vec<String>, // what scores on each depend on
    pub(super) cost: Cost,
}

impl<'a> Influence<'a> {
    pub(super) fn new(question: &Question<'a>, warmup: WarmUp<'a>, dim: usize) -> Result<Self> {
        let scorer = question.pool.scorer(question.evals)?;
        let evals = (0..scorer.eval_names().len()).map(|eval| scorer.gradient_key(eval)).collect::<Result<_>>()?;
        let cost = warmup.cost;
        Ok(Self { question: *question, warmup, dim, evals, cost })
    }

    /// The influence of every window on every eval set: one list per text, `[windows][eval sets]`.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`] when a gradient is not finite; those of the pool.
    pub(super) fn of(&mut self, texts: &[Text]) -> Result<Vec<Vec<Vec<f64>>>> {
        let n_evals = self.evals.len();
        let mut sums: Vec<Vec<Vec<f64>>> =
            texts.iter().map(|text| vec![vec![0.0; n_evals]; text.windows.len()]).collect();
        for index in 0..self.warmup.len() {
            let mark = self.warmup.mark(index)?;
            let cosines = self.at(&mark, texts)?;
            for (sums, cosines) in sums.iter_mut().flatten().zip(cosines.into_iter().flatten()) {
                sums.iter_mut().zip(cosines).for_each(|(sum, cosine)| *sum += mark.weight * cosine);
            }
        }
        Ok(sums)
    }

    /// The cosines at one checkpoint.
    fn at(&mut self, mark: &Mark, texts: &[Text]) -> Result<Vec<Vec<Vec<f64>>>> {
        let Question { pool, observer, .. } = self.question;
        let tasks: Vec<(usize, String, &[Window])> = texts
            .iter()
            .enumerate()
            .flat_map(|(text, part)| part.windows.chunks(TOGETHER).enumerate().map(move |(n, w)| (text, n, w)))
            .map(|(text, n, w)| (text, self.key(mark, &format!("{} part {n} by {TOGETHER}", texts[text].key)), w))
            .collect();
        let missing = tasks.iter().filter(|(_, key, _)| !pool.is_fitted(key)).map(|(.., windows)| windows.len() as u64);
        let missing: u64 = missing.sum();
        let length = texts.iter().flat_map(|text| &text.windows).map(|window| window.input.len()).max().unwrap_or(0);
        let length = length.max(pool.settings().window);
        let evaluator = pool.differentiator(length, gradient_pass(length))?;
        let mut targets = None;
        if missing > 0 {
            observer.begin(&format!("take gradients at step {}", mark.step), missing, "sequences");
            evaluator.set(|out| {
                out.copy_from_slice(&mark.parameters);
                Ok(())
            })?;
            targets = Some(self.targets(&evaluator)?);
        }
        let seconds =
            pool.fitted(&self.key(mark, "targets"), || Ok(targets.as_ref().map_or(0.0, |targets| targets.seconds)))?;
        self.cost += Cost::of_seconds(seconds);
        let mut cosines: Vec<Vec<Vec<f64>>> = vec![Vec::new(); texts.len()];
        let mut done = 0;
        for (text, key, windows) in tasks {
            let stored: Cosines = pool.fitted(&key, || {
                observer.check()?;
                let start = Instant::now();
                let targets = targets.as_ref().ok_or_else(|| Error::Usage("another process removed results".into()))?;
                let cosines = self.cosines(&evaluator, mark, targets, windows)?;
                done += windows.len() as u64;
                observer.advance(done, "");
                Ok(Cosines { cosines, seconds: start.elapsed().as_secs_f64() })
            })?;
            let tokens: usize = windows.iter().map(|window| window.input.len()).sum();
            let flops = 6.0 * pool.layout().len() as f64 * tokens as f64;
            self.cost += Cost { flops, ..Cost::of_seconds(stored.seconds) };
            cosines[text].extend(stored.cosines);
        }
        if missing > 0 {
            observer.finish();
        }
        let mut scorer = pool.scorer(self.question.evals)?;
        for eval in 0..self.evals.len() {
            self.cost.flops += 6.0 * pool.layout().len() as f64 * scorer.n_tokens(eval)? as f64;
        }
        Ok(cosines)
    }

    /// The gradients of the eval sets at the evaluator's parameters.
    fn targets(&self, evaluator: &Evaluator) -> Result<Targets> {
        let start = Instant::now();
        let mut scorer = self.question.pool.scorer(self.question.evals)?;
        let mut gradients = Vec::with_capacity(self.evals.len());
        for set in scorer.sets()? {
            self.question.observer.check()?;
            gradients.push(unit(evaluator.gradient(set)?.values));
        }
        let projected = gradients.iter().map(|gradient| self.projected(gradient)).collect();
        let directions = Directions::new(&gradients);
        Ok(Targets { directions, projected, seconds: start.elapsed().as_secs_f64() })
    }

    /// The cosines of the steps on some windows and the gradients of the eval sets: `[windows][eval sets]`.
    fn cosines(
        &self,
        evaluator: &Evaluator,
        mark: &Mark,
        targets: &Targets,
        windows: &[Window],
    ) -> Result<Vec<Vec<f64>>> {
        let options: AdamW = self.warmup.train().adamw(mark.step + 1);
        evaluator.each_gradient(windows, |_, gradient| {
            adamw_direction(&options, &mark.first, &mark.second, gradient);
            if self.dim == 0 {
                let length = length(gradient.iter().map(|value| f64::from(*value)));
                return Ok(targets.directions.along(gradient).into_iter().map(|product| product / length).collect());
            }
            let step = self.projected(gradient);
            Ok(targets.projected.iter().map(|target| dot(target, &step)).collect())
        })
    }

    /// A vector projected at random and divided by its norm; nothing when no projection was asked for.
    fn projected(&self, vector: &[f32]) -> Vec<f64> {
        if self.dim == 0 {
            return Vec::new();
        }
        let mut sums = vec![0.0; self.dim];
        Projection::new(SEED, self.dim).project(0, vector, &mut sums);
        let length = length(sums.iter().copied());
        sums.into_iter().map(|sum| sum / length).collect()
    }

    /// All that cosines at one checkpoint depend on.
    fn key(&self, mark: &Mark, what: &str) -> String {
        let projection = if self.dim == 0 { "exact".into() } else { format!("projected to {} seed {SEED}", self.dim) };
        let (run, step, evals) = (&self.warmup.key, mark.step, self.evals.join(" "));
        format!("less cosines version {VERSION} {projection} {run} step {step} evals {evals} of {what}")
    }
}

/// A vector of norm 1 in its direction; a vector of zeros stays one.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = length(vector.iter().map(|value| f64::from(*value)));
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    vector
}

fn length(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
