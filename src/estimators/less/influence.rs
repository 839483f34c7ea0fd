//! Influence: the cosine of the optimiser's step on a window and the gradient of an eval set, summed over checkpoints.

use super::warmup::{Mark, WarmUp};
use crate::error::Result;
use crate::estimators::{Cost, Question};
use crate::eval::Evaluator;
use crate::files;
use crate::kernels::{AdamW, Directions, Projection, adamw_direction};
use crate::pool::Pool;
use crate::progress::Observer;
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
    cost: Cost,
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
        let evals = (0..scorer.eval_names().len()).map(|eval| scorer.eval_key(eval).to_owned()).collect();
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
            .map(|(text, n, windows)| (text, self.key(mark, &texts[text], n), windows))
            .collect();
        let missing = tasks.iter().filter(|(_, key, _)| !pool.is_fitted(key)).map(|(.., windows)| windows.len() as u64);
        let missing: u64 = missing.sum();
        let evaluator = Evaluator::new(&pool.settings().model, pool.layout(), self.longest(texts))?;
        let targets = pool.fitted_cost(missing, || self.targets(pool, &evaluator, mark))?;
        let mut cosines: Vec<Vec<Vec<f64>>> = vec![Vec::new(); texts.len()];
        let mut done = 0;
        todo!()
    }
}
