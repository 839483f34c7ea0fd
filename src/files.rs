//! Files: read, map, hash and publish, so that a name always stands for a complete file.
//!
//! Publishing is: write under a temporary name on the same file system, fsync, rename, fsync the folder. A reader sees
//! the old state or the new one; a crash leaves only a temporary name, which [`sweep`] removes.

mod first;
mod host;
mod map;
mod seal;
mod sweep;
mod volume;

pub use first::publish_new;
pub use host::Process;
pub use map::{Mapped, map, read_instead_of_mapping, watch_maps};
pub use sweep::{sweep, sweep_for};
pub use volume::{room, shared_kind};

use crate::error::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// The BLAKE3 hash of a byte string, as 64 hexadecimal digits.
pub fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The BLAKE3 hash of a file's content, read rather than mapped, by all threads.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; HASHED.min(length.max(1) as usize)];
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => return Ok(hasher.finalize().to_hex().to_string()),
            n => hash_on(&mut hasher, &buffer[..n]),
        }
    }
}

/// Bytes of a file that are hashed at a time.
const HASHED: usize = 1 << 22;

/// Adds bytes to a hash, by all threads where there are many.
pub fn hash_on(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    if bytes.len() < 1 << 18 {
        hasher.update(bytes)
    } else {
        hasher.update_rayon(bytes)
    };
}

/// The whole content of a regular file that may be anyone's.
///
/// # Errors
/// [`Error::Input`] when it is no regular file: a pipe would never end.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    if !fs::metadata(path).map_err(Error::io("read", path))?.is_file() {
        return Err(Error::input(path.display(), "not a regular file"));
    }
    fs::read(path).map_err(Error::io("read", path))
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

/// The bytes of a damaged JSON file as they were, if just one bit was flipped since: its seal tells which.
pub fn mended_json(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    if seal::content(&bytes).is_some() { None } else { seal::mended(&bytes) }
}

/// The bytes with the one bit flipped back that makes them `whole`; none when there is no such bit.
pub fn unflipped(bytes: &[u8], whole: impl Fn(&[u8]) -> bool + Sync) -> Option<Vec<u8>> {
    seal::unflipped(bytes, 1 << 14, whole)
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

/// A file under construction whose place is known only when it is whole; dropped, it leaves nothing behind.
pub struct StagedFile {
    path: PathBuf,
    writer: Option<Writer>,
}

impl StagedFile {
    /// Starts a file beside `neighbour`, on the same file system as its future place.
    pub fn create(neighbour: &Path) -> Result<Self> {
        let path = temporary_sibling(neighbour);
        let writer = Some(Writer::create(&path)?);
        Ok(Self { path, writer })
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.as_mut().map_or(Ok(()), |writer| writer.write(bytes))
    }

    /// Publishes the file as `destination`, replacing what was there; durable on return.
    pub fn publish(mut self, destination: &Path) -> Result<()> {
        self.writer.take().map_or(Ok(()), Writer::close)?;
        create_folder(parent(destination))?;
        fs::rename(&self.path, destination).map_err(Error::io("rename", destination))?;
        sync_folder(parent(destination))
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // already renamed, or unfinished and worth nothing
    }
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
    parent(path).join(format!("{TEMPORARY}{}@{}-{unique}-{}", std::process::id(), host::space(), name(path)))
}

/// Removes a folder with all it holds; one that does not exist is no failure.
pub fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a file, or a folder with all it holds, that others may still open: they find it whole or not at all.
pub fn discard(path: &Path) -> Result<()> {
    let aside = temporary_sibling(path);
    match fs::rename(path, &aside) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(Error::io("rename", path))?,
    }
    sync_folder(parent(path))?;
    if aside.is_dir() { remove_folder(&aside) } else { fs::remove_file(&aside).map_err(Error::io("remove", &aside)) }
}

/// Bytes of a file, or of all files below a folder; what cannot be read counts nothing.
pub fn size(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => entries(path).unwrap_or_default().iter().map(|entry| size(entry)).sum(),
        Ok(data) => data.len(),
        Err(_) => 0,
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// How long ago something was changed.
pub fn age(path: &Path) -> Option<Duration> {
    fs::metadata(path).ok()?.modified().ok()?.elapsed().ok()
}

/// What the clock of a folder's file system says: hosts that share it need not agree on theirs.
pub fn clock(folder: &Path) -> Result<SystemTime> {
    let path = temporary_sibling(&folder.join("clock"));
    let made = File::create(&path).and_then(|mut file| file.write_all(b"now").and_then(|()| file.sync_data()));
    let now = made.and_then(|()| fs::metadata(&path)).and_then(|data| data.modified());
    let _ = fs::remove_file(&path);
    now.map_err(Error::io("read the time of", folder))
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
