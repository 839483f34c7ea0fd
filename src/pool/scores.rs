//! Score log: checksummed, append-only records of every score, one file per eval set and protocol.
//!
//! A record is: a checked prefix with the lengths of its parts, a JSON head, the per-document sums as little-endian f64, and 16 bytes of the
//! BLAKE3 hash of all that. A record cut short at the end of the file (a crash while appending) is ignored and
//! overwritten; a damaged record elsewhere is an error, and never used.

use super::claim::{is_same, knows_no_locks};
use crate::error::{Error, Result};
use crate::eval::Score;
use crate::files;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 4] = b"mps1";
/// Magic, length of the head, number of documents, checksum of these.
const PREFIX: usize = 16;
const HASH: usize = 16;

/// One stored score.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ScoreRecord {
    /// Hash of the models and exact weights that were merged.
    pub key: String,
    /// The mixture as it was asked for, for people who read the log.
    pub mixture: String,
    /// How the model came about: `merged` from experts, or `ground-truth`.
    pub estimator: String,
    /// The sums.
    #[serde(flatten)]
    pub score: Score,
    /// Seconds spent merging.
    pub merge_seconds: f64,
    /// Seconds spent in the model.
    pub eval_seconds: f64,
    /// The kind of device that computed it, `cuda`; empty for the processor.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// Negative log-likelihood of each document, in nats.
    #[serde(skip)]
    pub documents: Vec<f64>,
}

/// The scores of one eval set under one protocol: `<hash>.log`, and the logs `<hash>.<process>.log` of processes on file
/// systems where an append cannot be locked.
pub struct ScoreLog {
    path: PathBuf,
    own: PathBuf, // what this process appends to
    records: BTreeMap<String, Arc<ScoreRecord>>,
    ends: BTreeMap<PathBuf, usize>, // where the last record read of each file ends
    is_named: bool, // whether the file's name is known to be durable: who made it may have been killed before
}

impl ScoreLog {
    /// Reads the log; one that does not exist is empty.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a record that is followed by others does not match its checksum.
    pub fn open(path: &Path) -> Result<Self> {
        let mut log = Self::new(path);
        log.refresh()?;
        Ok(log)
    }

    /// Reads one file, without those of other processes.
    pub(super) fn open_one(path: &Path) -> Result<Self> {
        let mut log = Self::new(path);
        log.read(path)?;
        Ok(log)
    }

    /// As [`ScoreLog::open`]; appends go to a file that no other process writes to.
    pub(super) fn open_apart(path: &Path, process: &files::Process) -> Result<Self> {
        let files::Process { space, pid, started, .. } = process;
        let own = path.with_extension(format!("{space}-{pid}-{started}.log"));
        let mut log = Self { own, ..Self::new(path) };
        log.refresh()?;
        Ok(log)
    }

    fn new(path: &Path) -> Self {
        let (path, own) = (path.to_path_buf(), path.to_path_buf());
        Self { path, own, records: BTreeMap::new(), ends: BTreeMap::new(), is_named: false }
    }

    /// The record of a key, if it was scored.
    pub fn get(&self, key: &str) -> Option<&Arc<ScoreRecord>> {
        self.records.get(key)
    }

    /// All records, sorted by key.
    pub fn records(&self) -> impl Iterator<Item = &Arc<ScoreRecord>> {
        self.records.values()
    }

    /// Takes in what other processes added.
    pub fn refresh(&mut self) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let rest = name.strip_prefix(&stem).and_then(|rest| rest.strip_suffix("log"));
            rest.is_some_and(|rest| rest.starts_with('.') && rest.ends_with('.'))
        };
        let files: Vec<PathBuf> = files::list(folder)?.into_iter().filter(is_ours).collect();
        files.iter().try_for_each(|path| self.read(path))
    }

    /// Takes in what is new in one file.
    fn read(&mut self, path: &Path) -> Result<()> {
        let end = self.ends.get(path).copied().unwrap_or(0) as u64;
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("open", path)(error)),
        };
        let io = |action| Error::io(action, path);
        if file.metadata().map_err(io("read"))?.len() <= end {
            return Ok(());
        }
        let mut news = Vec::new();
        file.seek(SeekFrom::Start(end)).and_then(|_| file.read_to_end(&mut news)).map_err(io("read"))?;
        self.take_in(path, &news)
    }

    /// Puts a copy of a damaged log at `aside` and keeps in the log what is whole, or was before a single bit was flipped.
    /// Returns how many records these are, of either kind, and the other records whose heads can still be read: what they say
    /// need not be true.
    pub(super) fn salvage(path: &Path, aside: &Path) -> Result<([usize; 2], Vec<ScoreRecord>)> {
        let file = open_locked(path, true)?;
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let (mut whole, mut kept, mut lost, mut start) = (Vec::new(), [0, 0], Vec::new(), 0);
        while start < bytes.len() {
            if let Decoded::Record(_, length) = decode(&bytes[start..]) {
                whole.extend(&bytes[start..start + length]);
                kept[0] += 1;
                start += length;
                continue;
            }
            if let Some(record) = unflipped(&bytes[start..]) {
                whole.extend(&record);
                kept[1] += 1;
                start += record.len();
                continue;
            }
            lost.extend(head(&bytes[start..]));
            let magic = |at: &usize| bytes[*at..].starts_with(MAGIC);
            start = (start + 1..bytes.len()).find(magic).unwrap_or(bytes.len());
        }
        files::write_durably(aside, &bytes)?;
        files::sync_folder(aside.parent().unwrap_or(Path::new(".")))?;
        files::publish(path, &whole)?; // who waits for the lock of the old file finds that it lost its name
        drop(file);
        Ok((kept, lost))
    }

    /// Appends records; they are on the disk when this returns. Several processes may append to one log.
    pub fn append(&mut self, records: Vec<Arc<ScoreRecord>>) -> Result<()> {
        let path = self.own.clone();
        let io = |action| Error::io(action, &path);
        let mut file = open_locked(&path, path == self.path)?;
        self.read(&path)?;
        let bytes = records.iter().map(|record| encode(record)).collect::<Result<Vec<_>>>()?.concat();
        let end = self.ends.get(&path).copied().unwrap_or(0);
        file.set_len(end as u64).map_err(io("truncate"))?; // a record cut short by a crash
        file.seek(SeekFrom::Start(end as u64)).map_err(io("seek"))?;
        if let Err(error) =
            file.write_all(&bytes).map_err(io("write")).and_then(|()| file.sync_all().map_err(io("flush")))
        {
            // What could not be flushed must not be read back from memory as stored.
            let _ = file.set_len(end as u64);
            return Err(error);
        }
        if !std::mem::replace(&mut self.is_named, true) {
            files::sync_folder(path.parent().unwrap_or(Path::new(".")))?;
        }
        self.ends.insert(path, end + bytes.len());
        self.records.extend(records.into_iter().map(|record| (record.key.clone(), record)));
        Ok(())
    }

    /// Takes in the whole records at the head of `bytes`, which lie in the file where the known ones end.
    fn take_in(&mut self, path: &Path, bytes: &[u8]) -> Result<()> {
        let end = self.ends.get(path).copied().unwrap_or(0);
        let (mut places, mut start) = (Vec::new(), 0);
        while let Some(length) = length(&bytes[start..]) {
            places.push(start..start + length);
            start += length;
        }
        if start < bytes.len() {
            places.push(start..bytes.len()); // cut, or damaged
        }
        let records: Vec<Decoded> = places.par_iter().map(|place| decode(&bytes[place.clone()])).collect();
        let mut whole = Vec::with_capacity(records.len());
        for (record, place) in records.into_iter().zip(&places) {
            match record {
                Decoded::Record(record, length) => {
                    whole.push((record.key.clone(), Arc::from(record)));
                    start = place.start + length;
                }
                Decoded::Cut => start = place.start,
                Decoded::Damaged => {
                    let at = end + place.start;
                    let problem = format!(
                        "the score record at byte {at} does not match its checksum; delete the file to score again"
                    );
                    return Err(Error::damaged(path, problem));
                }
            }
        }
        self.records.extend(whole);
        self.ends.insert(path.to_path_buf(), end + start);
        Ok(())
    }
}

/// Opens a log to append to it; with `lock`, no other process does until it is closed, also by a crash.
fn open_locked(path: &Path, lock: bool) -> Result<File> {
    loop {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(Error::io("open", path))?;
        match if lock { file.lock() } else { Ok(()) } {
            Err(error) if !knows_no_locks(&error) => return Err(Error::io("lock", path)(error)),
            _ if is_same(&file, path)? => return Ok(file),
            _ => {} // replaced by a repair while it was waited for
        }
    }
}

/// The record at the head of `bytes` as it was, if just one bit of it was flipped.
fn unflipped(bytes: &[u8]) -> Option<Vec<u8>> {
    let is_prefix = |prefix: &[u8]| prefix.starts_with(MAGIC) && checksum::<4>(&prefix[..12]) == prefix[12..];
    let prefix = bytes.first_chunk::<PREFIX>()?;
    let prefix = if is_prefix(prefix) {
        prefix.to_vec()
    } else {
        files::unflipped(prefix, is_prefix).unwrap_or(prefix.to_vec())
    };
    let number = |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]) as usize;
    let length = PREFIX + number(4) + 8 * number(8) + HASH;
    let is_record = |bytes: &[u8]| matches!(decode(bytes), Decoded::Record(..));
    files::unflipped(bytes.get(..length)?, is_record)
}

/// What can still be read at the head of a damaged record.
fn head(bytes: &[u8]) -> Option<ScoreRecord> {
    let prefix = bytes.first_chunk::<PREFIX>()?;
    let whole = prefix.starts_with(MAGIC) && checksum::<4>(&prefix[..12]) == prefix[12..];
    let length = u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]) as usize;
    let body = bytes.get(PREFIX..PREFIX.checked_add(length)?).filter(|_| whole)?;
    serde_json::from_slice(body).ok()
}

fn encode(record: &ScoreRecord) -> Result<Vec<u8>> {
    let head = serde_json::to_vec(record).map_err(|error| Error::input("score record", error.to_string()))?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend((head.len() as u32).to_le_bytes());
    bytes.extend((record.documents.len() as u32).to_le_bytes());
    bytes.extend(checksum::<4>(&bytes));
    bytes.extend(head);
    bytes.extend(record.documents.iter().flat_map(|nll| nll.to_le_bytes()));
    bytes.extend(checksum::<HASH>(&bytes));
    Ok(bytes)
}

fn checksum<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut short = [0; N];
    short.copy_from_slice(&blake3::hash(bytes).as_bytes()[..N]);
    short
}

enum Decoded {
    Record(Box<ScoreRecord>, usize),
    /// The bytes end before the record does.
    Cut,
    Damaged,
}

/// The length of the record at the head of `bytes`, when its prefix is whole and all of it is there.
fn length(bytes: &[u8]) -> Option<usize> {
    let (head, documents) = lengths(bytes.first_chunk::<PREFIX>()?)?;
    Some(PREFIX + head + 8 * documents + HASH).filter(|length| *length <= bytes.len())
}

/// Bytes of the head and number of documents, as a prefix tells; they have a checksum of their own: a damaged length must
/// not pass for a record cut short.
fn lengths(prefix: &[u8; PREFIX]) -> Option<(usize, usize)> {
    let number = |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]) as usize;
    let is_whole = prefix.starts_with(MAGIC) && checksum::<4>(&prefix[..12]) == prefix[12..];
    is_whole.then(|| (number(4), number(8)))
}

fn decode(bytes: &[u8]) -> Decoded {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else { return Decoded::Cut };
    let Some((head, documents)) = lengths(prefix) else { return Decoded::Damaged };
    let body = PREFIX + head;
    let end = body + 8 * documents;
    let Some(hash) = bytes.get(end..end + HASH) else { return Decoded::Cut };
    if checksum::<HASH>(&bytes[..end]) != *hash {
        return Decoded::Damaged;
    }
    let Ok(mut record) = serde_json::from_slice::<ScoreRecord>(&bytes[PREFIX..body]) else { return Decoded::Damaged };
    let (values, _) = bytes[body..end].as_chunks::<8>();
    record.documents = values.iter().map(|value| f64::from_le_bytes(*value)).collect();
    Decoded::Record(Box::new(record), end + HASH)
}
