//! Rank: candidates in order of their scores, and how well two orders match.

pub mod agreement;
mod bootstrap;
mod noise;
mod ranking;

pub use agreement::Agreement;
pub use bootstrap::{Intervals, RESAMPLES};
pub use noise::Noise;
pub use ranking::{Entry, Ranking};
