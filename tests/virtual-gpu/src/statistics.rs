//! Statistics: what a profiler would count, by kernel, the same on every run.

use std::collections::BTreeMap;
use std::ops::AddAssign;

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
    /// Blocks.
    pub blocks: u64,
    /// Threads.
    pub threads: u64,
    /// Instructions executed by warps.
    pub instructions: u64,
    /// Instructions executed by threads: 32 times those by warps, were no lane ever idle.
    pub lanes: u64,
    /// Branches that parted a warp.
    pub divergences: u64,
    /// Barriers, by warps.
    pub barriers: u64,
    /// `mma` instructions by warps.
    pub products: u64,
    /// Lanes of atomic instructions.
    pub atomics: u64,
    /// Reads of device memory, in sectors of 32 bytes.
    pub loads: Traffic,
    /// Writes of device memory, in sectors of 32 bytes.
    pub stores: Traffic,
    /// Accesses to shared memory, in passes over its banks.
    pub shared: Traffic,
    /// Accesses to shared memory that only lockstep orders, within a warp.
    pub within_warp: u64,
    /// The first of these.
    pub first_within_warp: Option<String>,
    /// By line of the PTX and the instruction there.
    pub lines: BTreeMap<(usize, String), Traffic>,
}

/// What memory instructions moved.
#[derive(Default, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Instructions by warps.
    pub requests: u64,
    /// Units (sectors, passes) that these took.
    pub taken: u64,
    /// Units that the same bytes fill at best.
    pub needed: u64,
    /// Bytes asked for, each once an instruction.
    pub bytes: u64,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.taken += other.taken;
        self.needed += other.needed;
        self.bytes += other.bytes;
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.launches += other.launches;
        self.blocks += other.blocks;
        self.threads += other.threads;
        self.instructions += other.instructions;
        self.lanes += other.lanes;
        self.divergences += other.divergences;
        self.barriers += other.barriers;
        self.products += other.products;
        self.atomics += other.atomics;
        self.loads += other.loads;
        self.stores += other.stores;
        self.shared += other.shared;
        self.within_warp += other.within_warp;
        self.first_within_warp = self.first_within_warp.take().or(other.first_within_warp);
        for (line, traffic) in other.lines {
            *self.lines.entry(line).or_default() += traffic;
        }
    }
}
