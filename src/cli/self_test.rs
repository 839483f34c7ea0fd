//! Self-test: the kernels of a device against their CPU twins, for `scripts/gpu-check`.

use super::{Session, print, print_error};
use crate::error::{Error, Result};
use clap::Args;
use std::time::Instant;

/// Compare every kernel, and training and scoring of whole models, with the CPU; stdout has a line for each
#[derive(Args)]
pub(super) struct SelfTest {
    /// Only cases whose name holds this
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    only: String,
}

// The cases are those of the tests, as they stand there.
#[cfg(all(not(test), any(feature = "cuda", feature = "cuda-emulation")))]
#[path = "../../tests/cuda_kernels.rs"]
#[allow(clippy::all, clippy::pedantic, clippy::unwrap_used, clippy::print_stdout, missing_docs, unreachable_pub)]
mod kernels;
#[cfg(all(not(test), any(feature = "cuda", feature = "cuda-emulation")))]
#[path = "../../tests/cuda_training.rs"]
#[allow(clippy::all, clippy::pedantic, clippy::unwrap_used, clippy::print_stdout, missing_docs, unreachable_pub)]
mod training;

/// Every case.
#[cfg(all(not(test), any(feature = "cuda", feature = "cuda-emulation")))]
fn cases(session: &Session) -> Vec<(&'static str, fn())> {
    kernels::common::choose(session.device);
    training::common::choose(session.device);
    kernels::CASES.iter().chain(training::CASES).copied().collect()
}

#[cfg(not(all(not(test), any(feature = "cuda", feature = "cuda-emulation"))))]
fn cases(_: &Session) -> Vec<(&'static str, fn())> {
    Vec::new()
}

impl SelfTest {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        if session.device.is_cpu() {
            return Err(Error::Usage("there is nothing to compare the CPU with; name a GPU with --device cuda".into()));
        }
        let compute = session.device.open(crate::kernels::Precision::F32)?;
        let (mut failed, mut n) = (Vec::new(), 0);
        for (name, case) in cases(session).into_iter().filter(|(name, _)| name.contains(&self.only)) {
            let started = Instant::now();
            let passed = std::panic::catch_unwind(case).is_ok();
            let told = if passed { "ok" } else { "FAILED" };
            print_error(&format!("{told:<6} {:7.2} s  {name}", started.elapsed().as_secs_f64()));
            n += 1;
            if !passed {
                failed.push(name);
            }
        }
        print(&format!("{n} cases on '{}', {} failed\n", compute.name(), failed.len()))?;
        match failed.first() {
            None => Ok(()),
            Some(first) => Err(Error::Usage(format!("{} of {n} cases failed, the first is '{first}'", failed.len()))),
        }
    }
}
