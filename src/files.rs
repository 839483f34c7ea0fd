//! Files: read, map, hash and publish, so that a name always stands for a complete file.
//!
//! Publishing is: write under a temporary name on the same file system, fsync, rename, fsync the folder. A reader sees
//! the old state or the new one; a crash leaves only a temporary name, which [`sweep`] removes.
#![allow(unsafe_code)] // one call: mapping a file

mod first;
mod seal;

pub use first::publish_new;

use crate::error::{Error, Result};
use memmap2::Mmap;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Maps a file for reading.
///
/// Only files that are published once and never changed afterwards may be mapped (pool objects and token files).
///
/// # Errors
/// [`Error::Io`] when it cannot be opened, [`Error::Damaged`] when it is empty.
pub fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    if length == 0 {
        return Err(Error::damaged(path, "the file is empty"));
    }
    // SAFETY: published files are immutable: they are replaced by rename, never written or truncated in place.
    unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))
}

/// The BLAKE3 hash of a byte string, as 64 hexadecimal digits.
pub fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The BLAKE3 hash of a file's content, read rather than mapped.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => return Ok(hasher.finalize().to_hex().to_string()),
            n => hasher.update(&buffer[..n]),
        };
    }
}

/// The whole content of a text file.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io("read", path))
}

/// How every damaged file of a pool is mended: what is missing is made again, byte for byte.
pub const MAKE_AGAIN: &str = "delete it and run the command that made it (init, register, eval-set or train) again";

/// A JSON file of the pool; its seal, if it has one, must fit.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::Damaged`] when it is not what was written.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let content = seal::content(&bytes)
        .ok_or_else(|| Error::damaged(path, format!("its bytes do not match its checksum; {MAKE_AGAIN}")))?;
    serde_json::from_slice(&content)
        .map_err(|error| Error::damaged(path, format!("not the expected JSON ({error}); {MAKE_AGAIN}")))
}

/// A JSON object as the pool stores it: the last field, `checksum`, is the hash of the JSON without that field.
pub fn to_sealed_json(value: &impl Serialize) -> Result<Vec<u8>> {
    to_json(value).map(|content| seal::sealed(&content))
}

/// Pretty JSON with a final newline.
pub fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::input("value to be stored as JSON", error.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Creates a folder and its parents; what is new survives a power cut once this returns.
pub fn create_folder(path: &Path) -> Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !exists(folder)).collect();
    fs::create_dir_all(path).map_err(Error::io("create folder", path))?;
    missing.into_iter().rev().try_for_each(|folder| sync_folder(parent(folder)))
}

fn exists(path: &Path) -> bool {
    path.as_os_str().is_empty() || path.exists()
}

/// A file being written; its content is on the disk once [`Writer::close`] returns.
pub struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Writer {
    /// Creates the file, or empties it.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io("create", path))?;
        Ok(Self { path: path.to_path_buf(), file: BufWriter::with_capacity(1 << 20, file) })
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    /// Flushes everything to the disk.
    pub fn close(mut self) -> Result<()> {
        self.file.flush().map_err(Error::io("write", &self.path))?;
        if is_planted("no-file-fsync") {
            return Ok(());
        }
        self.file.get_ref().sync_all().map_err(Error::io("flush", &self.path))
    }
}

/// Copies a regular file that may be anyone's, flushed to the disk; returns the hash of what was copied.
///
/// # Errors
/// [`Error::Input`] when it is no regular file (a pipe would never end) or changes its length meanwhile.
pub fn copy(from: &Path, to: &Path) -> Result<String> {
    let refuse = |problem: &str| Error::input(from.display(), problem);
    let told = fs::metadata(from).map_err(Error::io("read", from))?;
    if !told.is_file() {
        return Err(refuse("not a regular file"));
    }
    let file = File::open(from).map_err(Error::io("open", from))?;
    let mut source = file.take(told.len() + 1);
    let mut target = Writer::create(to)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut copied = 0;
    loop {
        let n = source.read(&mut buffer).map_err(Error::io("read", from))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        target.write(&buffer[..n])?;
        copied += n as u64;
    }
    target.close()?;
    if copied != told.len() {
        return Err(refuse("its length changed while it was read; run this again when it is complete"));
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Publishes `bytes` as `path`, replacing what was there; durable on return.
pub fn publish(path: &Path, bytes: &[u8]) -> Result<()> {
    publish_with(path, |temporary| write_durably(temporary, bytes))
}

/// Publishes the file that `write` makes, durably, at the path it is given, as `path`.
pub fn publish_with(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if is_planted("write-in-place") {
        return write(path);
    }
    let temporary = temporary_sibling(path);
    let result = write(&temporary)
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::io("rename", path)))
        .and_then(|()| sync_folder(parent(path)));
    if result.is_err() {
        let _ = fs::remove_file(&temporary); // what matters is the first failure
    }
    result
}

/// Writes a file and flushes it to the disk.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut writer = Writer::create(path)?;
    writer.write(bytes)?;
    writer.close()
}

/// Flushes the entries of a folder, so that a rename in it survives a power cut.
pub fn sync_folder(path: &Path) -> Result<()> {
    if is_planted("no-folder-fsync") {
        return Ok(());
    }
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io("flush folder", path))
}

/// Whether this bug was asked for, to see whether the tests of faults find it; never in an ordinary build.
pub fn is_planted(bug: &str) -> bool {
    cfg!(feature = "planted-bugs") && std::env::var("MIXPOOL_PLANTED_BUG").is_ok_and(|wanted| wanted == bug)
}

/// A folder under construction that becomes visible whole, by one rename, or not at all.
pub struct Staging {
    path: PathBuf,
}

impl Staging {
    /// Starts a folder beside its future place, `destination`.
    pub fn new(destination: &Path) -> Result<Self> {
        let path = temporary_sibling(destination);
        create_folder(&path)?;
        Ok(Self { path })
    }

    /// The temporary path of a file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes and flushes one file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_durably(&self.file(name), bytes)
    }

    /// Makes the folder appear as `destination`; a complete folder already there is kept and this one dropped.
    pub fn publish(self, destination: &Path) -> Result<()> {
        sync_folder(&self.path)?;
        match fs::rename(&self.path, destination) {
            Err(source) if !destination.is_dir() => Err(Error::io("rename", destination)(source)),
            // Also when it was there: who made it may have been killed before it was durable.
            _ => sync_folder(parent(destination)),
        }
    }

    /// Whether `folder` holds exactly these files, byte for byte.
    pub fn equals(&self, folder: &Path) -> Result<bool> {
        let (ours, theirs) = (entries(&self.path)?, entries(folder)?);
        if !ours.iter().map(|path| name(path)).eq(theirs.iter().map(|path| name(path))) {
            return Ok(false);
        }
        for (our, their) in ours.iter().zip(&theirs) {
            if !their.is_file() || hash_file(our)? != hash_file(their)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The hash of every file in the folder, by name.
    pub fn hashes(&self) -> Result<BTreeMap<String, String>> {
        entries(&self.path)?.iter().map(|path| Ok((name(path), hash_file(path)?))).collect()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path); // already renamed, or unfinished and worth nothing
    }
}

const TEMPORARY: &str = ".tmp-";

fn temporary_sibling(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let unique = NEXT.fetch_add(1, Ordering::Relaxed);
    parent(path).join(format!("{TEMPORARY}{}-{unique}-{}", std::process::id(), name(path)))
}

/// Removes a folder with all it holds; one that does not exist is no failure.
pub fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

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
    for entry in entries(folder)?.into_iter().filter(|entry| ours(entry)) {
        let owner = name(&entry).strip_prefix(TEMPORARY).and_then(|rest| rest.split('-').next()?.parse().ok());
        let Some(owner) = owner else { continue };
        if process_is_alive(owner) {
            continue;
        }
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

/// Whether a process of this host still runs. Where there is no `/proc`, every owner counts as alive.
fn process_is_alive(pid: u32) -> bool {
    let processes = Path::new("/proc");
    !processes.join("self").exists() || processes.join(pid.to_string()).exists()
}

/// What is published in a folder, sorted; nothing when it does not exist.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = entries(folder)?;
    paths.retain(|path| !name(path).starts_with(TEMPORARY));
    Ok(paths)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The entries of a folder, sorted, temporary ones included; none when it does not exist.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", folder)(error)),
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(Error::io("list", folder))?;
    paths.sort();
    Ok(paths)
}
