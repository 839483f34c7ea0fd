//! Settings of the virtual GPUs, read from the environment once.

use std::env;
use std::fmt::Display;
use std::str::FromStr;

/// When queued work runs, of the moments at which CUDA may run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// When something waits for it, and no more than that.
    Late,
    /// As soon as it is queued.
    Early,
    /// At moments drawn from a seed, in an order between streams drawn as well.
    Drawn(u64),
}

/// An error that a function is to return instead of doing anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// Its name, as `cuMemAllocAsync`.
    pub function: String,
    /// Which call fails, from 1.
    pub nth: u64,
    /// Whether all later calls fail as well.
    pub onwards: bool,
    /// What it returns.
    pub code: i32,
}

/// What the environment asks for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `VIRTUAL_GPU_COUNT`: devices.
    pub count: usize,
    /// `VIRTUAL_GPU_MEMORY`: bytes of each.
    pub memory: u64,
    /// `VIRTUAL_GPU_CAPABILITY`: as `9.0`.
    pub capability: (i32, i32),
    /// `VIRTUAL_GPU_DRIVER`: the newest CUDA the driver knows, as 13000.
    pub driver: i32,
    /// `VIRTUAL_GPU_POOLS=0`: a device whose driver has no memory pools.
    pub pools: bool,
    /// `VIRTUAL_GPU_SCHEDULE`: `late`, `early` or a seed.
    pub schedule: Schedule,
    /// `VIRTUAL_GPU_FAIL`: `function:nth:code`, or `function:nth+:code` for all from the nth on; several with commas.
    pub fail: Vec<Injection>,
    /// `VIRTUAL_GPU_STATISTICS`: the file of the counts, written at exit.
    pub statistics: Option<String>,
    /// `VIRTUAL_GPU_TRACE=1`: every call is told on standard error.
    pub trace: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            count: 1,
            memory: 16 << 30,
            capability: (9, 0),
            driver: 13000,
            pools: true,
            schedule: Schedule::Late,
            fail: Vec::new(),
            statistics: None,
            trace: false,
        }
    }
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Panics
    /// When a variable does not say what it should: a run with other settings than asked for is worth nothing.
    pub fn from_environment() -> Self {
        let default = Self::default();
        Self {
            count: read("VIRTUAL_GPU_COUNT", default.count),
            memory: read("VIRTUAL_GPU_MEMORY", default.memory),
            capability: text("VIRTUAL_GPU_CAPABILITY").map_or(default.capability, |text| capability(&text)),
            driver: read("VIRTUAL_GPU_DRIVER", default.driver),
            pools: read("VIRTUAL_GPU_POOLS", 1) != 0,
            schedule: text("VIRTUAL_GPU_SCHEDULE").map_or(default.schedule, |text| schedule(&text)),
            fail: text("VIRTUAL_GPU_FAIL").map_or(default.fail, |text| text.split(',').map(injection).collect()),
            statistics: text("VIRTUAL_GPU_STATISTICS"),
            trace: read("VIRTUAL_GPU_TRACE", 0) != 0,
        }
    }
}

fn text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|text| !text.is_empty())
}

fn read<T: FromStr<Err: Display>>(name: &str, default: T) -> T {
    let parse = |text: String| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}"));
    text(name).map_or(default, parse)
}

fn capability(text: &str) -> (i32, i32) {
    let parts = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parts.unwrap_or_else(|| panic!("VIRTUAL_GPU_CAPABILITY={text}: expected MAJOR.MINOR"))
}

fn schedule(text: &str) -> Schedule {
    match text {
        "late" => Schedule::Late,
        "early" => Schedule::Early,
        seed => Schedule::Drawn(
            seed.parse().unwrap_or_else(|_| panic!("VIRTUAL_GPU_SCHEDULE={text}: expected late, early or a number")),
        ),
    }
}

fn injection(text: &str) -> Injection {
    let parse = || {
        let mut parts = text.split(':');
        let (function, nth, code) = (parts.next()?, parts.next()?, parts.next()?);
        let onwards = nth.ends_with('+');
        let nth = nth.trim_end_matches('+').parse().ok()?;
        Some(Injection { function: function.into(), nth, onwards, code: code.parse().ok()? })
    };
    parse().unwrap_or_else(|| panic!("VIRTUAL_GPU_FAIL={text}: expected FUNCTION:NTH:CODE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn injections_are_read() {
        let wanted = Injection { function: "cuInit".into(), nth: 3, onwards: true, code: 2 };
        assert_eq!(injection("cuInit:3+:2"), wanted);
        assert_eq!(injection("cuInit:3:2"), Injection { onwards: false, ..wanted });
        assert!(std::panic::catch_unwind(|| injection("cuInit")).is_err());
    }

    #[test]
    fn schedules_and_capabilities_are_read() {
        assert_eq!(schedule("late"), Schedule::Late);
        assert_eq!(schedule("7"), Schedule::Drawn(7));
        assert_eq!(capability("8.6"), (8, 6));
    }
}
