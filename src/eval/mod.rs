//! Eval: summed log-likelihoods of held-out documents under a model.

mod evaluator;
mod gradient;
mod grams;
mod log_odds;
mod samples;
mod score;

pub use evaluator::{EvalSet, Evaluator};
pub use gradient::{Gradient, gradient_pass};
pub use grams::{gram_layout, gram_pass};
pub use score::Score;

/// Version of the score protocol (windows, prefix, packing, summation); part of every score's key.
pub const PROTOCOL: u32 = 1;
