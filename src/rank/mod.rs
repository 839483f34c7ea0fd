//! Rank: candidates in order of their scores, and how well two orders match.

pub mod agreement;
mod comparison;
mod ranking;

pub use agreement::Agreement;
pub use comparison::{Judgement, compare};
pub use ranking::{Entry, Ranking};
