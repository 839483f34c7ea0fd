//! Arrow file: the text column of an Arrow IPC file or stream, record batch by record batch.
//!
//! Of every batch only the buffers of that column are read. Layout: the Arrow columnar format, version 1.x, "Serialization and
//! Interprocess Communication"; the numbers of fields are those of its Message.fbs and Schema.fbs.

use super::flatbuffer::Table;
use super::{BadRecord, Document, ReadOptions};
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// What the file variant begins with, before the messages of a stream.
const MAGIC: &[u8; 8] = b"ARROW1\0\0";
/// The largest metadata of one message accepted.
const MAX_METADATA: u64 = 16 << 20;
/// The largest buffer accepted, compressed or not.
const MAX_BUFFER: u64 = 4 << 30;
/// How deep types may nest.
const MAX_DEPTH: usize = 64;

/// Hands every text of the column to `each`, in order.
pub(super) fn read_arrow(
    path: &Path,
    options: &ReadOptions,
    each: &mut dyn FnMut(std::result::Result<Document, BadRecord>) -> Result<()>,
) -> Result<()> {
    let mut messages = Messages::open(path)?;
    let Some((schema, body)) = messages.next()? else { return Err(messages.damaged("it holds no message")) };
    let column = Table::root(&schema).and_then(|message| message.table(2));
    let column = column.ok_or_else(|| messages.damaged("its first message is not a schema"))?;
    let column = Column::find(&column, &options.text_field, path)?;
    messages.skip(body)?;
    let mut row = 0;
    while let Some((metadata, body)) = messages.next()? {
        let message = Table::root(&metadata).ok_or_else(|| messages.damaged("a message is not readable"))?;
        if message.number::<1>(1) == Some(RECORD_BATCH) {
            let batch = message.table(2).ok_or_else(|| messages.damaged("a record batch is not readable"))?;
            let texts = messages.texts(&batch, &column, body)?;
            for index in 0..texts.length {
                row += 1;
                let place = format!("{} (row {row})", path.display());
                each(
                    texts
                        .get(index, options)
                        .map_err(|(kind, reason, bytes)| BadRecord::new(place.clone(), kind, reason, bytes))
                        .map(|text| Document { text: text.to_owned(), place: place.clone() }),
                )?;
            }
        }
        messages.skip(body)?;
    }
    Ok(())
}

const RECORD_BATCH: u64 = 3;

/// Where the texts lie among the arrays of a batch.
struct Column {
    /// Structs that hold the column, outermost first: the number of the first buffer of each, its validity.
    parents: Vec<Place>,
    place: Place,
    /// Bytes of an offset.
    width: usize,
}

/// How many nodes, buffers, and counts of variadic buffers come before an array.
#[derive(Clone, Copy, Default)]
struct Place {
    node: usize,
    buffer: usize,
    variadic: usize,
}

impl Column {
    /// Finds the column at a dotted path.
    fn find(schema: &Table<'_>, field: &str, path: &Path) -> Result<Self> {
        let damaged = || Error::input(path.display(), "is corrupt (its schema is not readable); copy it again");
        if schema.number::<2>(0) != Some(0) {
            return Err(Error::input(path.display(), "is big-endian; write it on a little-endian machine"));
        }
        let mut fields = schema.tables(1).ok_or_else(damaged)?;
        let (mut place, mut parents) = (Place::default(), Vec::new());
        let mut names = field.split('.').peekable();
        while let Some(name) = names.next() {
            let mut found = None;
            for candidate in &fields {
                if candidate.text(0) == Some(name) {
                    found = Some(*candidate);
                    break;
                }
                advance(&mut place, candidate, 0).ok_or_else(damaged)?;
            }
            let Some(found) = found else {
                let known: Vec<String> = fields
                    .iter()
                    .filter_map(|field| field.text(0))
                    .map(|name| format!("'{}'", name.escape_debug()))
                    .collect();
                let problem = format!(
                    "expected a column '{field}', got the columns {}; name the one with the text by --text-field",
                    known.join(", ")
                );
                return Err(Error::input(path.display(), problem));
            };
            let kind = found.number::<1>(2).ok_or_else(damaged)?;
            let width = match kind {
                BINARY | UTF8 => 4,
                LARGE_BINARY | LARGE_UTF8 => 8,
                _ => 0,
            };
            let is_last = names.peek().is_none();
            if !found.has(4) && is_last && width > 0 {
                return Ok(Self { parents, place, width });
            }
            if found.has(4) || is_last || kind != STRUCT {
                let got = if found.has(4) { "a dictionary-encoded column" } else { "one of another type" };
                let problem = format!("expected a column '{field}' of type string or large_string, got {got}; cast it");
                return Err(Error::input(path.display(), problem));
            }
            parents.push(place);
            place = Place { node: place.node + 1, buffer: place.buffer + 1, ..place };
            fields = found.tables(5).ok_or_else(damaged)?;
        }
        Err(damaged())
    }
}

const BINARY: u64 = 4;
const UTF8: u64 = 5;
const STRUCT: u64 = 13;
const LARGE_BINARY: u64 = 19;
const LARGE_UTF8: u64 = 20;

/// Moves past the arrays of a field; none when its type is not known.
fn advance(place: &mut Place, field: &Table<'_>, depth: usize) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    place.node += 1;
    if field.has(4) {
        place.buffer += 2; // validity and indices; the values come in a message of their own
        return Some(());
    }
    place.buffer += match field.number::<1>(2)? {
        1 | 22 => 0,                                                 // null, run-end encoded
        2 | 3 | 6..=11 | 15 | 18 => 2,                               // validity and values of fixed width
        BINARY | UTF8 | LARGE_BINARY | LARGE_UTF8 => 3,              // validity, offsets, bytes
        12 | 17 | 21 => 2,                                           // lists and maps: validity, offsets
        STRUCT | 16 => 1,                                            // struct, list of fixed size: validity
        14 => 1 + usize::from(field.table(3)?.number::<2>(0)? == 1), // union: types, and offsets of a dense one
        23 | 24 => {
            place.variadic += 1;
            2 // validity and views, then as many buffers as the batch says
        }
        25 | 26 => 3, // list views: validity, offsets, sizes
        _ => return None,
    };
    field.tables(5)?.iter().try_for_each(|child| advance(place, child, depth + 1))
}

/// The messages of a file.
struct Messages {
    path: PathBuf,
    reader: BufReader<File>,
    length: u64,
    /// Where the body of the last message begins.
    body: u64,
}

impl Messages {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        let mut messages = Self { path: path.to_path_buf(), reader: BufReader::new(file), length, body: 0 };
        let mut start = [0; 8];
        let start = &mut start[..length.min(8) as usize];
        messages.fill(start)?;
        if start != MAGIC {
            messages.reader.seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?; // a stream has no magic
        }
        Ok(messages)
    }

    fn damaged(&self, problem: &str) -> Error {
        Error::input(self.path.display(), format!("is no Arrow file, or corrupt ({problem}); write or copy it again"))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.reader.read_exact(bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.damaged("it ends within a message"),
            _ => Error::io("read", &self.path)(error),
        })
    }

    /// The metadata of the next message and the length of its body; none at the end of the stream.
    fn next(&mut self) -> Result<Option<(Vec<u8>, u64)>> {
        let place = self.reader.stream_position().map_err(Error::io("read", &self.path))?;
        if place == self.length {
            return Ok(None); // a stream may end without saying so
        }
        let mut word = [0; 4];
        self.fill(&mut word)?;
        if word == [0xff; 4] {
            self.fill(&mut word)?;
        }
        let size = u64::from(u32::from_le_bytes(word));
        if size == 0 {
            return Ok(None);
        }
        if size > MAX_METADATA || size > self.length {
            return Err(self.damaged("a message's metadata is longer than 16 MiB or than the file"));
        }
        let mut metadata = vec![0; size as usize];
        self.fill(&mut metadata)?;
        let body = Table::root(&metadata).and_then(|message| message.number::<8>(3));
        self.body = self.reader.stream_position().map_err(Error::io("read", &self.path))?;
        match body {
            Some(body) if body <= self.length - self.body => Ok(Some((metadata, body))),
            _ => Err(self.damaged("it ends within a message")),
        }
    }

    /// Goes to the end of the last message's body.
    fn skip(&mut self, body: u64) -> Result<()> {
        let end = self.body + body;
        self.reader.seek(SeekFrom::Start(end)).map(|_| ()).map_err(Error::io("read", &self.path))
    }

    /// The texts of one batch.
    fn texts(&mut self, batch: &Table<'_>, column: &Column, body: u64) -> Result<Texts> {
        let unreadable = "a record batch is not readable";
        let parts = (|| Some((batch.pairs(1)?, batch.pairs(2)?, batch.numbers(4)?)))();
        let (nodes, buffers, variadic) = parts.ok_or_else(|| self.damaged(unreadable))?;
        let codec = batch.table(3).map(|compression| compression.number::<1>(0).unwrap_or(u64::MAX));
        let length = nodes.get(column.place.node).ok_or_else(|| self.damaged(unreadable))?.0;
        let mut buffer = |place: &Place, n: usize| -> Result<Vec<u8>> {
            let views: u64 = variadic.iter().take(place.variadic).fold(0, |sum, n| sum.saturating_add(*n));
            let index = usize::try_from(views).ok().and_then(|views| views.checked_add(place.buffer + n));
            let buffer = index.and_then(|index| buffers.get(index)).ok_or_else(|| self.damaged(unreadable))?;
            self.buffer(*buffer, body, codec)
        };
        let mut validity = Vec::new();
        for place in column.parents.iter().chain([&column.place]) {
            validity.push(buffer(place, 0)?);
        }
        let (offsets, bytes) = (buffer(&column.place, 1)?, buffer(&column.place, 2)?);
        Texts::new(length, validity, offsets, bytes, column.width)
            .ok_or_else(|| self.damaged("a column's sizes do not fit"))
    }

    /// One buffer of the last message's body, decompressed.
    fn buffer(&mut self, (offset, length): (u64, u64), body: u64, codec: Option<u64>) -> Result<Vec<u8>> {
        if length > MAX_BUFFER || offset.checked_add(length).is_none_or(|end| end > body) {
            return Err(self.damaged("a buffer lies outside its message or is longer than 4 GiB"));
        }
        self.reader.seek(SeekFrom::Start(self.body + offset)).map_err(Error::io("read", &self.path))?;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        let Some(codec) = codec.filter(|_| length > 0) else { return Ok(bytes) };
        let (size, rest) =
            bytes.split_first_chunk().ok_or_else(|| self.damaged("a compressed buffer has no length"))?;
        let size = i64::from_le_bytes(*size);
        if size == -1 {
            return Ok(rest.to_vec()); // not worth compressing
        }
        let size = u64::try_from(size).ok().filter(|size| *size <= MAX_BUFFER);
        let size = size.ok_or_else(|| self.damaged("a buffer claims to be longer than 4 GiB"))?;
        let mut plain = Vec::new(); // grows as it is filled: the size is only claimed
        let read = match codec {
            0 => lz4_flex::frame::FrameDecoder::new(rest).take(size).read_to_end(&mut plain),
            1 => zstd::Decoder::with_buffer(rest).and_then(|decoder| decoder.take(size).read_to_end(&mut plain)),
            _ => return Err(self.damaged("its compression is neither lz4 nor zstd")),
        };
        match read {
            Ok(n) if n as u64 == size => Ok(plain),
            _ => Err(self.damaged("a compressed buffer is not readable")),
        }
    }
}

/// The texts of one batch.
struct Texts {
    length: usize,
    /// One bit a row; empty where every row has a value.
    validity: Vec<Vec<u8>>,
    ends: Vec<usize>,
    bytes: Vec<u8>,
}

impl Texts {
    /// Checks that offsets ascend and lie within the bytes.
    fn new(length: u64, validity: Vec<Vec<u8>>, offsets: Vec<u8>, bytes: Vec<u8>, width: usize) -> Option<Self> {
        let length = usize::try_from(length).ok()?;
        let bits = length.div_ceil(8);
        if length == 0 {
            return Some(Self { length, validity: Vec::new(), ends: vec![0], bytes });
        }
        let offsets = offsets.get(..length.checked_add(1)?.checked_mul(width)?)?;
        let number =
            |offset: &[u8]| offset.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte)) as usize;
        let ends: Vec<usize> = offsets.chunks_exact(width).map(number).collect();
        let fits = ends.is_sorted()
            && *ends.last()? <= bytes.len()
            && validity.iter().all(|v| v.is_empty() || v.len() >= bits);
        fits.then_some(Self { length, validity, ends, bytes })
    }

    /// One text, or what is wrong with it: in short, in full, and its bytes.
    fn get(&self, index: usize, options: &ReadOptions) -> std::result::Result<&str, (&'static str, String, &[u8])> {
        let is_null = |validity: &Vec<u8>| !validity.is_empty() && validity[index / 8] >> (index % 8) & 1 == 0;
        if self.validity.iter().any(is_null) {
            return Err(("null", format!("expected text in column '{}', got null", options.text_field), &[]));
        }
        super::documents::checked_text(&self.bytes[self.ends[index]..self.ends[index + 1]], options)
    }
}
