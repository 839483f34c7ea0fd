//! Needs: the least memory and disk that long work takes, compared with what there is before it begins.
//!
//! Bounds from below: what is refused cannot work, what is not refused may still fail.

use super::Pool;
use crate::error::{Error, Result};
use crate::files;
use crate::train::TrainConfig;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

static IGNORED: AtomicBool = AtomicBool::new(false);

/// From now on, nothing is refused for what it seems to need.
pub fn ignore_needs() {
    IGNORED.store(true, Ordering::Relaxed);
}

/// Bytes of an f32.
const FLOAT: u64 = 4;
/// Text files are compressed to no less than this fraction by the formats that are read, roughly; tokens are no smaller than
/// a sixteenth of their text.
const TOKENS_OF_TEXT: u64 = 16;

impl Pool {
    /// Refuses training that cannot fit: parameters, gradient and two moments stay in memory, as do the logits of a pass; the
    /// state and the object go to the disk.
    pub(super) fn refuse_impossible_training(&self, train: &TrainConfig) -> Result<()> {
        let model = self.layout.len() as u64 * FLOAT;
        let rows = (train.micro_batch_size * train.sequence_length) as u64;
        let on_cpu = u64::from(self.device().is_cpu()); // elsewhere, activations lie elsewhere
        let hidden = on_cpu * rows * (self.settings.model.vocab_size + self.settings.model.hidden_size) as u64 * FLOAT;
        refuse_memory("training", model.saturating_mul(4).saturating_add(hidden))?;
        refuse_disk("training", &self.root, model.saturating_mul(4))
    }

    /// Refuses scoring that cannot fit: one model in memory.
    pub(super) fn refuse_impossible_scoring(&self) -> Result<()> {
        refuse_memory("scoring", self.layout.len() as u64 * FLOAT)
    }

    /// Refuses to write a model of `bytes` a number at `path` when the disk has no room for it.
    pub fn refuse_impossible_export(&self, path: &Path, bytes: u64) -> Result<()> {
        refuse_memory("merging", self.layout.len() as u64 * FLOAT)?;
        refuse_disk("the model", path, self.layout.len() as u64 * bytes)
    }
}

/// Refuses to tokenise files whose tokens cannot fit on the disk.
pub(super) fn refuse_impossible_tokens(store: &Path, texts: &[PathBuf]) -> Result<()> {
    let text: u64 = texts.iter().map(|path| files::size(path)).sum();
    refuse_disk("the tokens", store, text / TOKENS_OF_TEXT)
}

fn refuse_memory(what: &str, needed: u64) -> Result<()> {
    match available() {
        Some(there) if needed > there => refuse(what, needed, there, "memory"),
        _ => Ok(()),
    }
}

fn refuse_disk(what: &str, path: &Path, needed: u64) -> Result<()> {
    let there = files::room(path)?;
    if needed > there { refuse(what, needed, there, "disk") } else { Ok(()) }
}

/// Refuses work on a GPU that has too little memory.
pub(super) fn refuse_device(what: &str, needed: u64, there: u64, device: &str, advice: &str) -> Result<()> {
    if IGNORED.load(Ordering::Relaxed) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{what} needs about {} of memory on '{device}', {} can be used; {advice}",
        human(needed),
        human(there)
    )))
}

fn refuse(what: &str, needed: u64, there: u64, of: &str) -> Result<()> {
    if IGNORED.load(Ordering::Relaxed) {
        return Ok(());
    }
    Err(Error::NoRoom(format!(
        "{what} needs at least {} of {of}, {} is available; free some, or go on with --ignore-limits",
        human(needed),
        human(there)
    )))
}

/// Bytes that this process may still take: what the host has and what the limits of its control groups leave; none where
/// neither can be read.
fn available() -> Option<u64> {
    [available_on_host(), left_by_limits()].into_iter().flatten().min()
}

/// What the memory limits of the control groups (version 2) leave that this process is in, as under Slurm or in a container.
fn left_by_limits() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let number = |path: PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok(); // no limit reads "max"
    let folders = Path::new(group).ancestors().map(|group| Path::new("/sys/fs/cgroup").join(group));
    let left = |folder: PathBuf| {
        let (limit, used) = (number(folder.join("memory.max"))?, number(folder.join("memory.current"))?);
        let pages = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let given_up = pages.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
        Some(limit.saturating_sub(used.saturating_sub(given_up.unwrap_or(0)))) // cached files count as used and give way
    };
    folders.filter_map(left).min()
}

/// `MemAvailable` of `/proc/meminfo`.
fn available_on_host() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes in the unit that people would choose.
pub(super) fn human(bytes: u64) -> String {
    let gib = bytes as f64 / f64::from(1 << 30);
    if gib >= 0.1 { format!("{gib:.1} GiB") } else { format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)) }
}
