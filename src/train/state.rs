//! State: everything a training run needs to go on, stored as one file that replaces the last by rename.

use super::{CurvePoint, Progress};
use crate::error::{Error, Result};
use crate::files::{self, Writer};
use crate::model::Layout;
use std::path::Path;

const MAGIC: &[u8; 16] = b"mixpool-state-1\n";
/// Begins a state with the progress of an online method in it.
const ONLINE: &[u8; 16] = b"mixpool-state-2\n";

/// Parameters, moments, step and loss curve of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Parameters, in the order of the layout.
    pub parameters: Vec<f32>,
    /// First moments.
    pub first: Vec<f32>,
    /// Second moments.
    pub second: Vec<f32>,
    /// The loss curve so far.
    pub curve: Vec<CurvePoint>,
    /// What an online method has seen and done; none where the weights of the data do not change.
    pub online: Option<Progress>,
}

impl State {
    /// The state before the first step.
    pub fn fresh(parameters: Vec<f32>) -> Self {
        let zeros = vec![0.0; parameters.len()];
        Self { step: 0, first: zeros.clone(), second: zeros, parameters, curve: Vec::new(), online: None }
    }

    /// Stores the state at `path`, replacing an earlier one; durable on return.
    ///
    /// The file is a magic word, the lengths of its parts, the curve as JSON, the progress of an online method as JSON
    /// (where there is one: the magic word says so), the three vectors, and the BLAKE3 hash of all that.
    pub fn save(&self, path: &Path) -> Result<()> {
        let curve = files::to_json(&self.curve)?;
        let online = self.online.as_ref().map(files::to_json).transpose()?;
        files::publish_with(path, |temporary| {
            let mut writer = Writer::create(temporary)?;
            let mut hasher = blake3::Hasher::new();
            let mut write = |bytes: &[u8]| {
                hasher.update(bytes);
                writer.write(bytes)
            };
            write(if online.is_some() { ONLINE } else { MAGIC })?;
            for number in [self.step, curve.len() as u64, self.parameters.len() as u64] {
                write(&number.to_le_bytes())?;
            }
            if let Some(online) = &online {
                write(&(online.len() as u64).to_le_bytes())?;
            }
            write(&curve)?;
            write(online.as_deref().unwrap_or_default())?;
            for values in [&self.parameters, &self.first, &self.second] {
                for block in values.chunks(1 << 16) {
                    write(&block.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
                }
            }
            writer.write(hasher.finalize().as_bytes())?;
            writer.close()
        })
    }

    /// Loads a state for a model of the given layout; `None` when there is no file.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the file is not a complete state of that layout.
    pub fn load(path: &Path, layout: &Layout) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        Self::parse(&bytes, layout)
            .map(Some)
            .ok_or_else(|| Error::damaged(path, "not a complete training state; delete it to train from the start"))
    }

    fn parse(bytes: &[u8], layout: &Layout) -> Option<Self> {
        let (content, hash) = bytes.split_last_chunk::<32>()?;
        if blake3::hash(content).as_bytes() != hash {
            return None;
        }
        let has_progress = content.starts_with(ONLINE);
        let mut rest = content.strip_prefix(if has_progress { ONLINE } else { MAGIC })?;
        let mut number = || {
            let (head, tail) = rest.split_first_chunk::<8>()?;
            rest = tail;
            Some(u64::from_le_bytes(*head))
        };
        let (step, curve, length) = (number()?, number()?, number()?);
        let online = if has_progress { number()? } else { 0 };
        let (curve, rest) = rest.split_at_checked(usize::try_from(curve).ok()?)?;
        let (online, vectors) = rest.split_at_checked(usize::try_from(online).ok()?)?;
        let length = usize::try_from(length).ok()?;
        if length != layout.len() || vectors.len() != 12 * length {
            return None;
        }
        let (values, _) = vectors.as_chunks::<4>();
        let vector = |index: usize| {
            values[index * length..(index + 1) * length].iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let curve = serde_json::from_slice(curve).ok()?;
        let online = if has_progress { Some(serde_json::from_slice(online).ok()?) } else { None };
        Some(Self { step, parameters: vector(0), first: vector(1), second: vector(2), curve, online })
    }
}
