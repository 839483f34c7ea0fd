//! Statistics: what a profiler would count, by kernel, the same on every run.

use std::collections::BTreeMap;

/// Counts by kernel.
#[derive(Default, Debug, Clone)]
pub struct Statistics {
    /// By name.
    pub kernels: BTreeMap<String, Counts>,
}

/// What the launches of one kernel did.
#[derive(Default, Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Launches.
    pub launches: u64,
}
