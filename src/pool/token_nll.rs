//! Token NLL: −ln p of every token of an eval set under one model, as stored in `fitted/tokens-<hash>.f32`.
//!
//! The file is 8 bytes that name the format, the number of tokens (u64), the seconds it took (f64), −ln p of every token
//! in document order (f32), all little-endian, and 16 bytes of the BLAKE3 hash of all that. Rounding −ln p to f32 moves it,
//! and so every mean of it, by at most 2⁻²⁴ (6·10⁻⁸) of its size. The file's name is a hash of the model's weights and
//! of what scores on the eval set depend on. What is damaged or cut is worked out again.

use super::fitted::FITTED;
use crate::error::{Error, Result};
use crate::files;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"mptokens";
const HEAD: usize = 24;
const HASH: usize = 16;

/// −ln p of every token of an eval set under one model.
///
/// It lies in memory, 4 bytes a token: ten experts on a million tokens take 40 MB.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenNll {
    /// Nats, in document order: `[n_tokens]`.
    pub values: Vec<f32>,
    /// Seconds spent in the model.
    pub seconds: f64,
    /// Whether it was stored before.
    pub cached: bool,
}

impl TokenNll {
    /// Where it is kept, by the key of the eval set and the hash of the model's weights.
    pub(super) fn path(pool: &Path, eval: &str, weights: &str) -> PathBuf {
        let hash = files::hash(format!("nll of tokens on cpu f32\n{eval}\n{weights}").as_bytes());
        pool.join(FITTED).join(format!("tokens-{hash}.f32"))
    }

    /// What is stored; nothing when it is missing, damaged or cut.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(decode(&bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", path)(error)),
        }
    }

    /// Rounds to f32 and stores; a first and a later run thus use the same values.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a value is NaN or infinite.
    pub(super) fn store(path: &Path, nll: &[f64], seconds: f64, place: &str) -> Result<Self> {
        if let Some(index) = nll.iter().position(|nll| !nll.is_finite()) {
            let what = format!("log-likelihood {}", -nll[index]);
            return Err(Error::NotFinite { what, place: format!("token {} of {place}", index + 1) });
        }
        let values: Vec<f32> = nll.iter().map(|nll| *nll as f32).collect();
        files::create_folder(path.parent().unwrap_or(Path::new(".")))?;
        files::publish(path, &encode(&values, seconds))?;
        Ok(Self { values, seconds, cached: false })
    }
}

fn encode(values: &[f32], seconds: f64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + 4 * values.len() + HASH);
    bytes.extend(MAGIC);
    bytes.extend((values.len() as u64).to_le_bytes());
    bytes.extend(seconds.to_le_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let hash = blake3::hash(&bytes);
    bytes.extend(&hash.as_bytes()[..HASH]);
    bytes
}

fn decode(bytes: &[u8]) -> Option<TokenNll> {
    let (content, hash) = bytes.split_last_chunk::<HASH>()?;
    let body = content.strip_prefix(MAGIC)?;
    let (n_tokens, body) = body.split_first_chunk::<8>()?;
    let (seconds, body) = body.split_first_chunk::<8>()?;
    let (values, rest) = body.as_chunks::<4>();
    let whole = values.len() as u64 == u64::from_le_bytes(*n_tokens) && rest.is_empty();
    let values = values.iter().map(|value| f32::from_le_bytes(*value));
    let intact = whole && blake3::hash(content).as_bytes()[..HASH] == *hash;
    intact.then(|| TokenNll { values: values.collect(), seconds: f64::from_le_bytes(*seconds), cached: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_back_and_any_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = TokenNll::path(folder.path(), "eval", "weights");
        assert_eq!(TokenNll::read(&path).unwrap(), None);
        let stored = TokenNll::store(&path, &[0.5, 1e-9, 17.3], 0.25, "test").unwrap();
        let read = TokenNll::read(&path).unwrap().unwrap();
        assert_eq!(read, TokenNll { cached: true, ..stored });
        let bytes = std::fs::read(&path).unwrap();
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_none(), "cut at {end}");
            let mut damaged = bytes.clone();
            damaged[end] ^= 1;
            assert!(decode(&damaged).is_none(), "damaged at {end}");
        }
        assert!(TokenNll::store(&path, &[0.5, f64::NAN], 0.0, "test").is_err());
    }
}
