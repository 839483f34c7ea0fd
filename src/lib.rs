//! mixpool answers one question cheaply: how good would a language model be if it were trained on this mixture of data?
//!
//! One *expert* is trained per data partition and kept in a *pool*; any *mixture* is then scored by averaging the
//! experts' parameters and measuring perplexity, so that n trainings answer 2ⁿ questions (Na et al. 2024,
//! arXiv 2410.15661).
//!
//! The modules, from the bottom up; imports point down only:
//!
//! | layer | modules |
//! |---|---|
//! | ground | [`error`], [`files`], [`rng`], [`resample`], [`progress`], [`mixture`] |
//! | numerics | [`kernels`] |
//! | text and model | [`text`], [`model`] |
//! | work | [`train`], [`merge`], [`eval`] |
//! | store | [`pool`] |
//! | methods | [`estimators`] |
//! | questions | [`search`], [`rank`] |
//! | answers | [`report`], [`cli`] |

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

#[cfg(any(feature = "cuda", feature = "cuda-emulation"))]
extern crate self as mixpool; // what the self-test shares with the tests calls it so

pub mod cli;
pub mod error;
pub mod estimators;
pub mod eval;
pub mod files;
pub mod gguf;
pub mod kernels;
pub mod merge;
pub mod mixture;
pub mod model;
pub mod pool;
pub mod progress;
pub mod rank;
pub mod report;
pub mod resample;
pub mod rng;
pub mod search;
pub mod text;
pub mod train;

pub use error::{Error, Result};
