//! Metadata: the named values at the head of a GGUF file; arrays stay where they lie.

use super::cursor::Cursor;
use std::collections::BTreeMap;
use std::ops::Range;

/// More entries than this are refused; real files have some fifty.
const MAX_ENTRIES: u64 = 1 << 16;
/// A longer key is refused.
const MAX_KEY: u64 = 512;
/// Keys and values, arrays aside, may take this much.
const MAX_BYTES: usize = 16 << 20;

const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number of any width.
    Integer(i128),
    /// A real number; one of single precision is what its shortest decimal says, so that 1e-5 is 1e-5.
    Real(f64),
    /// True or false.
    Flag(bool),
    /// A text.
    Text(String),
    /// Many values of one type.
    Array(Array),
}

/// Where the values of an array lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    kind: u32,
    count: u64,
    bytes: Range<usize>,
}

impl Value {
    /// The value in few words, for messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Integer(number) => number.to_string(),
            Self::Real(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Text(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
            Self::Array(array) => format!("a list of {}", array.count),
        }
    }
}

impl Array {
    /// The elements, when they are texts in UTF-8.
    pub(super) fn texts<'a>(&self, file: &'a [u8]) -> Option<Vec<&'a str>> {
        let mut cursor = Cursor::new(&file[self.bytes.clone()]);
        let text = |_| cursor.text(u64::MAX, "a text").ok();
        if self.kind == TEXT { (0..self.count).map(text).collect() } else { None }
    }

    /// The elements, when they are whole numbers.
    pub(super) fn integers(&self, file: &[u8]) -> Option<Vec<i128>> {
        self.scalars(file, |value| match value {
            Value::Integer(number) => Some(number),
            _ => None,
        })
    }

    /// The elements, when they are numbers.
    pub(super) fn reals(&self, file: &[u8]) -> Option<Vec<f64>> {
        self.scalars(file, |value| match value {
            Value::Integer(number) => Some(number as f64),
            Value::Real(number) => Some(number),
            _ => None,
        })
    }

    fn scalars<T>(&self, file: &[u8], read: impl Fn(Value) -> Option<T>) -> Option<Vec<T>> {
        let width = width(self.kind)?;
        file[self.bytes.clone()].chunks_exact(width).map(|bytes| scalar(self.kind, bytes).and_then(&read)).collect()
    }
}

/// Bytes of a value of this type, when it is a number or a truth value.
fn width(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | BOOL => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// The number or truth value in `bytes`.
fn scalar(kind: u32, bytes: &[u8]) -> Option<Value> {
    let wide = bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    Some(match kind {
        0 | 2 | 4 | 10 => Value::Integer(i128::from(wide)),
        1 => Value::Integer(i128::from(wide as u8 as i8)),
        3 => Value::Integer(i128::from(wide as u16 as i16)),
        5 => Value::Integer(i128::from(wide as u32 as i32)),
        11 => Value::Integer(i128::from(wide as i64)),
        6 => {
            let single = f32::from_bits(wide as u32);
            Value::Real(single.to_string().parse().unwrap_or(f64::from(single)))
        }
        12 => Value::Real(f64::from_bits(wide)),
        BOOL => Value::Flag(wide != 0),
        _ => return None,
    })
}

/// Reads `count` entries.
pub(super) fn read(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, Value>, String> {
    if count > MAX_ENTRIES {
        return Err(format!("{count} metadata entries; at most {MAX_ENTRIES} are accepted"));
    }
    let mut entries = BTreeMap::new();
    let mut size = 0;
    for number in 0..count {
        let before = cursor.at();
        let key = cursor.name(MAX_KEY, &format!("the key of metadata entry {number}"))?;
        let what = format!("metadata '{key}'");
        let value = match cursor.u32(&what)? {
            TEXT => Value::Text(cursor.text(MAX_BYTES as u64, &what)?.to_owned()),
            ARRAY => Value::Array(array(cursor, &what)?),
            kind => {
                let width = width(kind).ok_or_else(|| format!("{what} is of unknown type {kind}"))?;
                let bytes = cursor.take(width as u64, &what)?;
                scalar(kind, bytes).ok_or_else(|| format!("{what} is of unknown type {kind}"))?
            }
        };
        let arrays = if let Value::Array(array) = &value { array.bytes.len() } else { 0 };
        size += cursor.at() - before - arrays;
        if size > MAX_BYTES {
            return Err(format!("more than {MAX_BYTES} bytes of metadata beside its lists"));
        }
        if entries.insert(key.to_owned(), value).is_some() {
            return Err(format!("{what} is there twice"));
        }
    }
    Ok(entries)
}

/// Passes over an array.
fn array(cursor: &mut Cursor<'_>, what: &str) -> Result<Array, String> {
    let (kind, count) = (cursor.u32(what)?, cursor.u64(what)?);
    let start = cursor.at();
    match width(kind) {
        Some(width) => drop(cursor.take(count.saturating_mul(width as u64), what)?),
        None if kind == TEXT => {
            for _ in 0..count {
                let length = cursor.u64(what)?;
                cursor.take(length, what)?;
            }
        }
        None if kind == ARRAY => return Err(format!("{what} is a list of lists, which no model has")),
        None => return Err(format!("{what} is a list of unknown type {kind}")),
    }
    Ok(Array { kind, count, bytes: start..cursor.at() })
}
