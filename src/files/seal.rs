//! Seal: the hash of a stored JSON object as its own last field, so that a flipped bit does not pass for a value.
//!
//! A file without one is taken as it is: pools made before there were seals have none. A file whose seal is damaged must
//! not pass for one of those, so what looks like a seal and does not fit is refused.

use rayon::prelude::*;
use std::borrow::Cow;

const BEFORE: &[u8] = b",\n  \"checksum\": \"";
const AFTER: &[u8] = b"\"\n}\n";
const END: &[u8] = b"\n}\n";
const LENGTH: usize = BEFORE.len() + 64 + AFTER.len();
/// A last part that differs from the seal in at most as many bytes is a damaged seal.
const ALIKE: usize = 8;

/// A JSON object, pretty-printed and ended by a newline, with its seal.
pub(super) fn sealed(content: &[u8]) -> Vec<u8> {
    let body = content.strip_suffix(END).unwrap_or(content);
    [body, &seal(content)].concat()
}

/// What was sealed, or the bytes as they are when they bear no seal; none when the seal does not fit.
pub(super) fn content(bytes: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(at) = bytes.len().checked_sub(LENGTH) else { return Some(bytes.into()) };
    let (body, end) = bytes.split_at(at);
    let content = [body, END].concat();
    let expected = seal(&content);
    if end == expected {
        return Some(content.into());
    }
    let looks_like_one = end.starts_with(BEFORE) && end.ends_with(AFTER);
    let differing = end.iter().zip(&expected).filter(|(got, expected)| got != expected).count();
    (!looks_like_one && differing > ALIKE).then_some(bytes.into())
}

/// Longer files are not searched for a flipped bit: it takes as many hashes as there are bits.
const SEARCHED: usize = 1 << 14;

/// What was sealed, with its seal, if just one bit of it was flipped since; none when that is not what happened.
pub(super) fn mended(bytes: &[u8]) -> Option<Vec<u8>> {
    unflipped(bytes, SEARCHED, |bytes| {
        let Some(at) = bytes.len().checked_sub(LENGTH) else { return false };
        let (body, end) = bytes.split_at(at);
        end == seal(&[body, END].concat())
    })
}

/// The bytes with the one bit flipped back that makes them `whole`; none when there is none, or they are more than `longest`.
pub(super) fn unflipped(bytes: &[u8], longest: usize, whole: impl Fn(&[u8]) -> bool + Sync) -> Option<Vec<u8>> {
    if bytes.len() > longest {
        return None;
    }
    (0..bytes.len()).into_par_iter().find_map_any(|at| {
        let mut tried = bytes.to_vec();
        (0..8).find_map(|bit| {
            tried[at] ^= 1 << bit;
            if whole(&tried) {
                return Some(tried.clone());
            }
            tried[at] ^= 1 << bit;
            None
        })
    })
}

fn seal(content: &[u8]) -> Vec<u8> {
    [BEFORE, super::hash(content).as_bytes(), AFTER].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_seen_and_a_file_without_a_seal_is_read() {
        let plain = b"{\n  \"name\": \"wiki\",\n  \"units\": 3\n}\n";
        assert_eq!(content(plain).as_deref(), Some(&plain[..]));
        let whole = sealed(plain);
        assert!(serde_json::from_slice::<serde_json::Value>(&whole).is_ok());
        assert_eq!(content(&whole).as_deref(), Some(&plain[..]));
        for bit in 0..8 * whole.len() {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(content(&flipped), None, "bit {bit}");
        }
    }
}
