//! Rank: candidates in order of their scores, and how well two orders match.

pub mod agreement;
mod bootstrap;
mod comparison;
mod noise;
mod ranking;

pub use agreement::Agreement;
pub use bootstrap::{Intervals, RESAMPLES};
pub use comparison::{Judgement, compare};
pub use noise::Noise;
pub use ranking::{Entry, Ranking};
