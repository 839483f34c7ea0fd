//! First: a name that only the first of several processes can give.

use super::{is_planted, parent, sync_folder, temporary_sibling, write_durably};
use crate::error::{Error, Result};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Publishes `bytes` as `path` unless something bears that name: of several processes one does. Returns whether this one did.
pub fn publish_new(path: &Path, bytes: &[u8]) -> Result<bool> {
    if is_planted("write-in-place") {
        return write_durably(path, bytes).map(|()| true);
    }
    let temporary = temporary_sibling(path);
    let published = write_durably(&temporary, bytes).and_then(|()| name_unless_taken(&temporary, path));
    let _ = fs::remove_file(&temporary); // a second name of what is published, or worth nothing
    let published = published?;
    sync_folder(parent(path))?; // also when another did: it may have been killed before it was durable
    Ok(published)
}

/// Gives a file a name that nothing may bear so far; returns whether it did.
fn name_unless_taken(file: &Path, path: &Path) -> Result<bool> {
    match fs::hard_link(file, path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        // A file system without second names: there two processes at once may both believe that they were first.
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
            fs::rename(file, path).map_err(Error::io("rename", path)).map(|()| true)
        }
        Err(error) => Err(Error::io("link", path)(error)),
    }
}
