//! Bad record: one that holds no usable text, where it stands, and what is done about it.

use crate::error::{Error, Result};
use crate::files::StagedFile;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// How much of a bad record is kept, in bytes.
const KEPT_BYTES: usize = 1024;

/// One record that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRecord {
    /// `file:line`, `file:line:column`, `file (row 3)`, or the file.
    pub place: String,
    /// What is wrong, in one or two words: the name under which it is counted.
    pub kind: &'static str,
    /// What is wrong in full: expected, got, remedy.
    pub reason: String,
    /// The first bytes of the record, at most 1,024.
    pub bytes: Vec<u8>,
}

impl BadRecord {
    /// A bad record of which the beginning is kept.
    pub(super) fn new(place: String, kind: &'static str, reason: impl Into<String>, bytes: &[u8]) -> Self {
        Self { place, kind, reason: reason.into(), bytes: bytes[..bytes.len().min(KEPT_BYTES)].to_vec() }
    }
}

impl From<BadRecord> for Error {
    fn from(bad: BadRecord) -> Self {
        Self::input(bad.place, bad.reason)
    }
}

/// What is done about a bad record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBadRecord {
    /// It is an error that names place and reason.
    #[default]
    Fail,
    /// It is counted and left out.
    Skip,
    /// It is counted, left out, and its place, reason and first bytes are kept in a file.
    Quarantine,
}

/// How many records were left out, by what was wrong with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRecordCounts {
    /// What was done about them.
    pub policy: OnBadRecord,
    /// Number of records by kind.
    pub kinds: BTreeMap<String, u64>,
}

/// "3 bad records skipped (1 not UTF-8, 2 not JSON)".
impl std::fmt::Display for BadRecordCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let done = if self.policy == OnBadRecord::Quarantine { "quarantined" } else { "skipped" };
        let kinds: Vec<String> = self.kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        write!(f, "{} bad record(s) {done} ({})", self.kinds.values().sum::<u64>(), kinds.join(", "))
    }
}

/// Treats bad records as asked, and counts them.
pub(super) struct BadRecords<'a> {
    policy: OnBadRecord,
    kinds: BTreeMap<String, u64>,
    folder: &'a Path,
    quarantine: Option<StagedFile>,
}

impl<'a> BadRecords<'a> {
    /// No bad record yet; the file that holds those in quarantine is begun in `folder`.
    pub(super) fn new(policy: OnBadRecord, folder: &'a Path) -> Self {
        Self { policy, kinds: BTreeMap::new(), folder, quarantine: None }
    }

    /// Takes one bad record.
    ///
    /// # Errors
    /// The record's own when bad records are not suffered, [`Error::Io`] when it cannot be put in quarantine.
    pub(super) fn take(&mut self, bad: BadRecord) -> Result<()> {
        match self.policy {
            OnBadRecord::Fail => return Err(bad.into()),
            OnBadRecord::Skip => {}
            OnBadRecord::Quarantine => self.write(&bad)?,
        }
        *self.kinds.entry(bad.kind.to_owned()).or_default() += 1;
        Ok(())
    }

    fn write(&mut self, bad: &BadRecord) -> Result<()> {
        let file = match &mut self.quarantine {
            Some(file) => file,
            none => none.insert(StagedFile::create(&self.folder.join("quarantine"))?),
        };
        let hexadecimal: String = bad.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = json!({"place": bad.place, "kind": bad.kind, "reason": bad.reason, "bytes": hexadecimal});
        file.write(format!("{line}\n").as_bytes())
    }

    /// The counts, none when no record was bad, and the file of those in quarantine.
    pub(super) fn close(self) -> (Option<BadRecordCounts>, Option<StagedFile>) {
        let Self { policy, kinds, quarantine, .. } = self;
        ((!kinds.is_empty()).then_some(BadRecordCounts { policy, kinds }), quarantine)
    }
}
