//! Loading: whether weights and tokens are compared with their hashes when a process first opens them.

use super::verify::verify_files;
use super::{MANIFEST, Manifest};
use crate::error::{Error, Result};
use crate::files;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

static ON: AtomicBool = AtomicBool::new(false);
static SEEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// From now on, hashes models and tokens when they are first opened, and refuses what does not match.
pub fn verify_on_load() {
    ON.store(true, Ordering::Relaxed);
}

/// Runs a check the first time that something is opened, when that was asked for.
///
/// # Errors
/// Those of `check`.
pub(super) fn once(path: &Path, check: impl FnOnce() -> Result<()>) -> Result<()> {
    if !ON.load(Ordering::Relaxed) || SEEN.lock().unwrap_or_else(PoisonError::into_inner).contains(path) {
        return Ok(());
    }
    check()?;
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_path_buf());
    Ok(())
}

/// Checks the files of an object, as [`once`].
///
/// # Errors
/// [`Error::Damaged`] when a file is not what the manifest tells of.
pub(super) fn object(folder: &Path) -> Result<()> {
    once(folder, || {
        let path = folder.join(MANIFEST);
        let manifest: Manifest = files::read_json(&path).map_err(Error::missing_is_damage)?;
        if manifest.id != folder.file_name().unwrap_or_default().to_string_lossy() {
            return Err(Error::damaged(path, "it is about another object"));
        }
        verify_files(folder, &manifest)
    })
}
