//! Lines: a text file's lines, decompressed, each known to be UTF-8 text or to be a bad record.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::BadRecord;
use crate::error::{Error, Result};

/// Bytes read from the file, and decompressed, at a time.
const BUFFER_BYTES: usize = 1 << 16;

/// The largest zstd window accepted, as its base-2 logarithm: 128 MiB, what the zstd tool accepts by default.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// The lines of a file, one at a time: [`Lines::advance`] reads the next one.
pub(super) struct Lines {
    /// The file.
    pub path: PathBuf,
    /// The longest line, and document of several lines, accepted: in bytes, line ends included.
    pub max_bytes: usize,
    reader: Box<dyn BufRead>,
    /// The current line with its line end; one byte more than allowed when the line is too long.
    bytes: Vec<u8>,
    /// The current line's number, from 1.
    number: usize,
    /// The decompressed bytes before the current line.
    start: usize,
    /// The decompressed bytes read so far.
    offset: usize,
}

impl Lines {
    /// Opens a file whose lines and documents are at most `max_bytes` long, line ends included.
    pub(super) fn open(path: &Path, compression: Compression, max_bytes: usize) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        if file.metadata().map_err(Error::io("read", path))?.is_dir() {
            return Err(Error::input(path.display(), "is a folder; expected a file of text"));
        }
        let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
        let start = file.fill_buf().map_err(Error::io("read", path))?;
        if start.is_empty() {
            return Err(Error::input(path.display(), "is empty (0 bytes); expected text"));
        }
        compression.check_start(start, path)?;
        let reader = compression.decompress(file).map_err(Error::io("decompress", path))?;
        let path = path.to_path_buf();
        Ok(Self { path, max_bytes, reader, bytes: Vec::new(), number: 0, start: 0, offset: 0 })
    }

    /// Reads the next line; false at the end of the file.
    pub(super) fn advance(&mut self) -> Result<bool> {
        while self.bytes.len() > self.max_bytes && !self.bytes.ends_with(b"\n") && self.read()? > 0 {} // the rest of one too long
        self.start = self.offset;
        self.number += 1;
        Ok(self.read()? > 0)
    }

    /// Reads to the end of the line, but no further than one byte too many; returns the number of bytes.
    fn read(&mut self) -> Result<usize> {
        self.bytes.clear();
        let one_too_many = (self.max_bytes as u64).saturating_add(1);
        let read = (&mut self.reader).take(one_too_many).read_until(b'\n', &mut self.bytes);
        let n = read.map_err(|source| self.read_problem(source))?;
        self.offset += n;
        Ok(n)
    }

    /// The current line with its line end, without the byte order mark of the file.
    pub(super) fn text(&self) -> std::result::Result<&str, BadRecord> {
        if let Some(position) = self.bytes.iter().position(|byte| *byte == 0) {
            let offset = self.start + position;
            let problem = format!("looks binary (NUL byte at offset {offset}); expected UTF-8 text");
            return Err(BadRecord::new(self.path.display().to_string(), "binary", problem, &self.bytes));
        }
        if self.bytes.len() > self.max_bytes {
            return Err(self.too_long());
        }
        let text = std::str::from_utf8(&self.bytes).map_err(|error| {
            let offset = self.start + error.valid_up_to();
            let problem = format!("is not UTF-8 (byte offset {offset} of the text); convert the file to UTF-8");
            self.bad("not UTF-8", problem)
        })?;
        Ok(if self.start == 0 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text })
    }

    /// The current line as `file:line`.
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.path.display(), self.number)
    }

    /// Says what is wrong with the current line.
    pub(super) fn bad(&self, kind: &'static str, reason: impl Into<String>) -> BadRecord {
        BadRecord::new(self.place(), kind, reason, &self.bytes)
    }

    /// Says that the document that reaches into the current line is too long.
    pub(super) fn too_long(&self) -> BadRecord {
        let limit = self.max_bytes;
        self.bad("too long", format!("the document is longer than {limit} bytes; split it into smaller documents"))
    }

    /// Tells what the decompressor found apart from what the operating system said, which alone has an error number.
    fn read_problem(&self, source: io::Error) -> Error {
        let problem = if source.raw_os_error().is_some() {
            return Error::io("read", &self.path)(source);
        } else if source.kind() == io::ErrorKind::UnexpectedEof {
            "is truncated (the compressed stream ends early); copy or download it again".to_string()
        } else if source.to_string().contains("too much memory") {
            format!("needs a zstd window above 128 MiB; compress it with --long={ZSTD_WINDOW_LOG} or less")
        } else {
            format!("is corrupt ({source}); copy or download it again")
        };
        Error::input(self.path.display(), problem)
    }
}

impl Compression {
    /// Refuses a file that does not start as this compression's files do.
    fn check_start(self, start: &[u8], path: &Path) -> Result<()> {
        let (name, suffix, matches) = match self {
            Self::None => return Ok(()),
            Self::Gzip => ("gzip", ".gz", start.starts_with(&[0x1f, 0x8b])),
            Self::Zstd => ("zstd", ".zst", starts_zstd_frame(start)),
        };
        if matches {
            return Ok(());
        }
        let problem =
            format!("does not look like {name} (wrong first bytes); drop '{suffix}' from its name if it is not");
        Err(Error::input(path.display(), problem))
    }

    fn decompress(self, file: BufReader<File>) -> io::Result<Box<dyn BufRead>> {
        Ok(match self {
            Self::None => Box::new(file),
            Self::Gzip => Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(file))),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(file)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder))
            }
        })
    }
}

/// Whether a zstd frame starts here, be it one with data or one to skip, as parallel compressors write first.
fn starts_zstd_frame(start: &[u8]) -> bool {
    matches!(start, [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// The line without the `\n` or `\r\n` at its end.
pub(super) fn without_line_end(line: &str) -> &str {
    match line.strip_suffix('\n') {
        Some(line) => line.strip_suffix('\r').unwrap_or(line),
        None => line,
    }
}
