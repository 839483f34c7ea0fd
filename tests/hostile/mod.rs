//! Hostile: damaged files by the thousand, and what reading one may cost: one line of refusal, soon, and little memory.
#![allow(dead_code, unreachable_pub, unsafe_code)] // each test binary uses its own part; an allocator that counts

use mixpool::Result;
use serde_json::{Value, json};
use std::alloc::{GlobalAlloc, Layout as Block, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What reading a file may allocate beyond its own length.
const ALLOWED: usize = 512 << 20;
/// Far more than any file of these sizes takes; only a loop over a made-up count gets there.
const PATIENCE: Duration = Duration::from_secs(20);

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, block: Block) -> *mut u8 {
        PEAK.fetch_max(NOW.fetch_add(block.size(), Ordering::Relaxed) + block.size(), Ordering::Relaxed);
        unsafe { System.alloc(block) }
    }

    unsafe fn alloc_zeroed(&self, block: Block) -> *mut u8 {
        PEAK.fetch_max(NOW.fetch_add(block.size(), Ordering::Relaxed) + block.size(), Ordering::Relaxed);
        unsafe { System.alloc_zeroed(block) }
    }

    unsafe fn dealloc(&self, at: *mut u8, block: Block) {
        NOW.fetch_sub(block.size(), Ordering::Relaxed);
        unsafe { System.dealloc(at, block) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What came of reading damaged files.
#[derive(Debug, Default)]
pub struct Outcomes {
    pub read: usize,
    pub refused: usize,
}

impl Outcomes {
    /// Reads one file of `length` bytes: it must end in a value or in an error of one line, in time and within memory.
    pub fn add<T>(&mut self, what: &str, length: usize, read: impl FnOnce() -> Result<T>) {
        let (before, start) = (NOW.load(Ordering::Relaxed), Instant::now());
        PEAK.store(before, Ordering::Relaxed);
        let outcome = read().map(drop);
        let (taken, used) = (start.elapsed(), PEAK.load(Ordering::Relaxed).saturating_sub(before));
        assert!(taken < PATIENCE, "{what}: {taken:?}");
        assert!(used <= length + ALLOWED, "{what}: {used} bytes for a file of {length}");
        match outcome {
            Ok(()) => self.read += 1,
            Err(error) => {
                let line = error.to_string();
                assert!(
                    !line.trim().is_empty() && !line.contains('\n') && !line.contains("panicked"),
                    "{what}: {line}"
                );
                self.refused += 1;
            }
        }
    }
}

/// Random numbers of a test, the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

/// A copy of `bytes` with one thing wrong: cut, flipped, doubled, overwritten, or a length field of absurd size.
pub fn damaged(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.is_empty() {
        return bytes; // cut before its first byte
    }
    let at = random.below(bytes.len());
    match random.below(6) {
        0 => bytes.truncate(at),
        1 => bytes[at] ^= 1 << random.below(8),
        2 => {
            let piece = bytes[at..(at + random.below(64)).min(bytes.len())].to_vec();
            bytes.splice(at..at, piece);
        }
        3 => drop(bytes.drain(at..(at + random.below(64)).min(bytes.len()))),
        4 => {
            let absurd = [u64::MAX, 1 << 63, 1 << 40, u64::from(u32::MAX), 0, 7][random.below(6)].to_le_bytes();
            let end = (at + 8).min(bytes.len());
            bytes[at..end].copy_from_slice(&absurd[..end - at]);
        }
        _ => {
            let end = (at + random.below(16)).min(bytes.len());
            bytes[at..end].fill([0, 0xff, b'{', b'"'][random.below(4)]);
        }
    }
    bytes
}

/// A copy of a JSON value with one leaf, entry or name replaced by something absurd.
pub fn damaged_json(value: &Value, random: &mut Random) -> Value {
    let mut value = value.clone();
    let mut place = &mut value;
    loop {
        let stop = random.below(4) == 0;
        let length = place.as_object().map_or_else(|| place.as_array().map_or(0, Vec::len), serde_json::Map::len);
        if stop || length == 0 {
            break;
        }
        let at = random.below(length);
        place = match place {
            Value::Object(fields) => fields.iter_mut().nth(at).unwrap().1,
            Value::Array(items) => &mut items[at],
            _ => unreachable!(),
        };
    }
    let absurd = [
        json!(null),
        json!(-1),
        json!(0),
        json!(1e300),
        json!(u64::MAX),
        json!(1u64 << 40),
        json!(4_294_967_297_u64),
        json!(0.5),
        json!(""),
        json!("\u{1b}[31m"),
        json!("x".repeat(5000)),
        json!([]),
        json!({}),
        json!(true),
        json!([[[[[[1]]]]]]),
        json!([u64::MAX, u64::MAX]),
        json!({"a": {"a": 1}}),
    ];
    match (random.below(4), &mut *place) {
        (0, Value::Object(fields)) if !fields.is_empty() => {
            let name = fields.keys().nth(random.below(fields.len())).unwrap().clone();
            let entry = fields.remove(&name).unwrap();
            let names = ["", "../x", "a\nb", "__metadata__", "\u{0}", "weight"];
            fields.insert(names[random.below(names.len())].to_owned(), entry);
        }
        (1, Value::Object(fields)) if !fields.is_empty() => {
            let name = fields.keys().nth(random.below(fields.len())).unwrap().clone();
            fields.remove(&name);
        }
        (1, Value::Array(items)) if !items.is_empty() => drop(items.remove(random.below(items.len()))),
        _ => *place = absurd[random.below(absurd.len())].clone(),
    }
    value
}
