//! Score log: checksummed, append-only records of every score, one file per eval set and protocol.
//!
//! A record is: a checked prefix with the lengths of its parts, a JSON head, the per-document sums as little-endian f64, and 16 bytes of the
//! BLAKE3 hash of all that. A record cut short at the end of the file (a crash while appending) is ignored and
//! overwritten; a damaged record elsewhere is an error, and never used.

use crate::error::{Error, Result};
use crate::eval::Score;
use crate::files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

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
    /// Negative log-likelihood of each document, in nats.
    #[serde(skip)]
    pub documents: Vec<f64>,
}

/// The scores of one eval set under one protocol.
pub struct ScoreLog {
    path: PathBuf,
    records: BTreeMap<String, ScoreRecord>,
    end: usize,     // where the last record read ends
    is_named: bool, // whether the file's name is known to be durable: who made it may have been killed before
}

impl ScoreLog {
    /// Reads the log; one that does not exist is empty.
    ///
    /// # Errors
    /// [`Error::Damaged`] when a record that is followed by others does not match its checksum.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let mut log = Self { path: path.to_path_buf(), records: BTreeMap::new(), end: 0, is_named: false };
        log.take_in(&bytes)?;
        Ok(log)
    }

    /// The record of a key, if it was scored.
    pub fn get(&self, key: &str) -> Option<&ScoreRecord> {
        self.records.get(key)
    }

    /// All records, sorted by key.
    pub fn records(&self) -> impl Iterator<Item = &ScoreRecord> {
        self.records.values()
    }

    /// Appends a record; it is on the disk when this returns. Several processes may append to one log.
    pub fn append(&mut self, record: ScoreRecord) -> Result<()> {
        let path = self.path.clone();
        let io = |action| Error::io(action, &path);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io("open"))?;
        file.lock().map_err(io("lock"))?; // released when the file is closed, also by a crash
        file.seek(SeekFrom::Start(self.end as u64)).map_err(io("seek"))?;
        let mut news = Vec::new();
        file.read_to_end(&mut news).map_err(io("read"))?;
        self.take_in(&news)?;
        let bytes = encode(&record)?;
        file.set_len(self.end as u64).map_err(io("truncate"))?; // a record cut short by a crash
        file.seek(SeekFrom::Start(self.end as u64)).map_err(io("seek"))?;
        if let Err(error) =
            file.write_all(&bytes).map_err(io("write")).and_then(|()| file.sync_all().map_err(io("flush")))
        {
            // What could not be flushed must not be read back from memory as stored.
            let _ = file.set_len(self.end as u64);
            return Err(error);
        }
        if !std::mem::replace(&mut self.is_named, true) {
            files::sync_folder(path.parent().unwrap_or(Path::new(".")))?;
        }
        self.end += bytes.len();
        self.records.insert(record.key.clone(), record);
        Ok(())
    }

    /// Takes in the whole records at the head of `bytes`, which lie in the file where the known ones end.
    fn take_in(&mut self, bytes: &[u8]) -> Result<()> {
        let mut start = 0;
        while start < bytes.len() {
            match decode(&bytes[start..]) {
                Decoded::Record(record, length) => {
                    self.records.insert(record.key.clone(), record);
                    start += length;
                }
                Decoded::Cut => break,
                Decoded::Damaged => {
                    let at = self.end + start;
                    let problem = format!(
                        "the score record at byte {at} does not match its checksum; delete the file to score again"
                    );
                    return Err(Error::damaged(&self.path, problem));
                }
            }
        }
        self.end += start;
        Ok(())
    }
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
    Record(ScoreRecord, usize),
    /// The bytes end before the record does.
    Cut,
    Damaged,
}

fn decode(bytes: &[u8]) -> Decoded {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else { return Decoded::Cut };
    // The lengths have a checksum of their own: a damaged length must not pass for a record cut short.
    if !prefix.starts_with(MAGIC) || checksum::<4>(&prefix[..12]) != prefix[12..] {
        return Decoded::Damaged;
    }
    let number = |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]) as usize;
    let body = PREFIX + number(4);
    let end = body + 8 * number(8);
    let Some(hash) = bytes.get(end..end + HASH) else { return Decoded::Cut };
    if checksum::<HASH>(&bytes[..end]) != *hash {
        return Decoded::Damaged;
    }
    let Ok(mut record) = serde_json::from_slice::<ScoreRecord>(&bytes[PREFIX..body]) else { return Decoded::Damaged };
    let (values, _) = bytes[body..end].as_chunks::<8>();
    record.documents = values.iter().map(|value| f64::from_le_bytes(*value)).collect();
    Decoded::Record(record, end + HASH)
}
