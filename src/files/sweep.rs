//! Sweep: what processes that are gone left under temporary names, removed by whoever comes next.

use super::{TEMPORARY, age, entries, host, name, parent};
use crate::error::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the temporary files of a process on another host are left alone.
const FOREIGN: Duration = Duration::from_hours(24);

/// Removes what processes that are gone left under temporary names in a folder.
pub fn sweep(folder: &Path) -> Result<()> {
    sweep_where(folder, |_| true)
}

/// Removes what processes that are gone left of attempts to publish `path`; outside a pool nothing else is ours.
pub fn sweep_for(path: &Path) -> Result<()> {
    let ending = format!("-{}", name(path));
    sweep_where(parent(path), |entry| name(entry).ends_with(&ending))
}

fn sweep_where(folder: &Path, ours: impl Fn(&Path) -> bool) -> Result<()> {
    for entry in abandoned(folder)?.into_iter().filter(|entry| ours(entry)) {
        let removed = if entry.is_dir() { fs::remove_dir_all(&entry) } else { fs::remove_file(&entry) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &entry)(error));
            }
            _ => {} // another process may sweep at the same time
        }
    }
    Ok(())
}

/// Temporary names in a folder whose processes are gone. Those of other hosts count as gone after a day without change.
fn abandoned(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = entries(folder)?;
    found.retain(|entry| {
        let name = name(entry);
        let owner = name.strip_prefix(TEMPORARY).and_then(|rest| rest.split('-').next());
        let (pid, space) = owner.map_or(("", None), |owner| match owner.split_once('@') {
            Some((pid, space)) => (pid, Some(space)),
            None => (owner, None), // of a version that did not name its host
        });
        match (pid.parse(), space) {
            (Err(_), _) => false,
            (Ok(_), Some(space)) if space != host::space() => age(entry).is_some_and(|age| age > FOREIGN),
            (Ok(pid), _) => !host::is_alive(pid),
        }
    });
    Ok(found)
}
