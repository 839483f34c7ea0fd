//! Token array: documents that arrive as token ids, in headerless memory maps and `NumPy` files.

use super::npy::{self, Header};
use super::{ReadOptions, Tokenizer};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// How many ids are read before the ids of a wrong type can be recognised by their zeros.
const TELLING: u64 = 16;

/// The type of the ids in a file, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenType {
    /// One byte.
    U8,
    /// Two bytes.
    U16,
    /// Four bytes.
    U32,
    /// Eight bytes.
    U64,
    /// Two bytes, signed.
    I16,
    /// Four bytes, signed.
    I32,
    /// Eight bytes, signed.
    I64,
}

impl TokenType {
    /// Bytes of an id.
    pub fn width(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 => 4,
            Self::U64 | Self::I64 => 8,
        }
    }

    /// The type that `NumPy` calls so, without its byte order.
    pub(super) fn of_numpy(kind: &str) -> Option<Self> {
        Some(match kind {
            "u1" => Self::U8,
            "u2" => Self::U16,
            "u4" => Self::U32,
            "u8" => Self::U64,
            "i2" => Self::I16,
            "i4" => Self::I32,
            "i8" => Self::I64,
            _ => return None,
        })
    }

    fn is_signed(self) -> bool {
        matches!(self, Self::I16 | Self::I32 | Self::I64)
    }

    /// The number in these bytes.
    fn number(self, bytes: &[u8]) -> i128 {
        let unsigned = bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        let unused = 64 - 8 * self.width() as u32;
        if self.is_signed() { i128::from((unsigned << unused) as i64 >> unused) } else { i128::from(unsigned) }
    }
}

/// Which ids there are, and which of them only mark the ends of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vocabulary {
    /// Ids are below this.
    pub size: usize,
    /// The id that begins a document, where it has no other use.
    pub beginning: Option<u32>,
    /// The id that ends a document.
    pub end: Option<u32>,
}

impl Vocabulary {
    /// The vocabulary of a tokenizer.
    ///
    /// # Errors
    /// [`Error::Usage`] when `options` name an end token that the tokenizer does not have.
    pub fn of(tokenizer: &Tokenizer, options: &ReadOptions) -> Result<Self> {
        let end = match &options.end_token {
            None => tokenizer.end(),
            Some(token) => Some(tokenizer.id(token).ok_or_else(|| {
                Error::Usage(format!("'--end-token {token}': the tokenizer does not have this token"))
            })?),
        };
        let beginning = tokenizer.beginning().filter(|beginning| Some(*beginning) != end);
        Ok(Self { size: tokenizer.vocabulary(), beginning, end })
    }

    /// A document's ids without those that only mark its ends.
    fn bare<'a>(&self, mut ids: &'a [u32]) -> &'a [u32] {
        if let Some((first, rest)) = ids.split_first()
            && Some(*first) == self.beginning
        {
            ids = rest;
        }
        while let Some((last, rest)) = ids.split_last()
            && Some(*last) == self.end
        {
            ids = rest;
        }
        ids
    }
}

/// One document as token ids, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenDocument {
    /// Its ids, without those that only mark its ends; at least one.
    pub ids: Vec<u32>,
    /// `file (document 3)` or, of an array of two dimensions, `file (row 3)`, counted from 1.
    pub place: String,
}

/// Reads a file of token ids and hands its documents to `each` one at a time, in order.
///
/// A file that begins as `NumPy`'s do tells its type and shape: every row of two dimensions is a document, one dimension is cut at
/// the end token. Any other file is ids and nothing else, of the type that `options` state. Empty documents are left out.
///
/// # Errors
/// [`Error::Io`] when it cannot be read; [`Error::Input`] when its type is not stated, its length is no multiple of an id's, an id
/// lies outside the vocabulary, or a document is longer than `options` allow; whatever `each` returns.
pub fn read_token_documents(
    path: &Path,
    options: &ReadOptions,
    vocabulary: &Vocabulary,
    each: &mut dyn FnMut(TokenDocument) -> Result<()>,
) -> Result<()> {
    let mut ids = Ids::open(path, options, vocabulary.size)?;
    let refuse = |problem: String| Error::input(path.display(), problem);
    let unit = if ids.columns.is_some() { "row" } else { "document" };
    let end = match (ids.columns, vocabulary.end) {
        (None, None) => {
            let problem =
                "holds documents end to end, and the tokenizer has no EOS under a usual name; name it by --end-token";
            return Err(refuse(problem.into()));
        }
        (columns, end) => end.filter(|_| columns.is_none()),
    };
    let most = options.max_document_bytes / 4;
    let (mut document, mut number, mut found) = (Vec::new(), 0, false);
    loop {
        let id = ids.next()?;
        let is_whole = id.is_none() || id == end || ids.columns.is_some_and(|columns| document.len() as u64 == columns);
        if is_whole && !document.is_empty() {
            number += 1;
            let bare = vocabulary.bare(&document);
            if !bare.is_empty() {
                found = true;
                each(TokenDocument { ids: bare.to_vec(), place: format!("{} ({unit} {number})", path.display()) })?;
            }
            document.clear();
        }
        match id {
            None => break,
            Some(_) if id == end => {}
            Some(_) if document.len() >= most => {
                let problem = format!(
                    "{unit} {} is longer than {most} ids; is it cut at the right token? see --end-token",
                    number + 1
                );
                return Err(refuse(problem));
            }
            Some(id) => document.push(id),
        }
    }
    if found { Ok(()) } else { Err(refuse("holds no document but empty ones".into())) }
}

/// The ids of a file, one at a time, each checked.
struct Ids {
    path: PathBuf,
    reader: BufReader<File>,
    token_type: TokenType,
    columns: Option<u64>,
    size: usize,
    left: u64,
    read: u64,
    /// Whether every second id so far was 0.
    has_zeros: bool,
}

impl Ids {
    fn open(path: &Path, options: &ReadOptions, size: usize) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        let refuse = |problem: String| Error::input(path.display(), problem);
        if length == 0 {
            return Err(refuse("is empty (0 bytes); expected token ids".into()));
        }
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut start = [0; npy::MAGIC.len()];
        let has_header = reader.read_exact(&mut start).is_ok() && start == *npy::MAGIC;
        let header = if has_header {
            npy::read_header(&mut reader).map_err(refuse)?
        } else {
            reader.seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?;
            let problem = "is token ids without a NumPy header, whose type cannot be known; state it by --token-dtype, e.g. u16 or u32";
            let token_type = options.token_type.ok_or_else(|| refuse(problem.into()))?;
            let entries = length / token_type.width() as u64;
            Header { token_type, columns: None, entries, bytes: 0 }
        };
        let Header { token_type, columns, entries, bytes } = header;
        if options.token_type.is_some_and(|stated| stated != token_type) {
            let problem =
                format!("holds {token_type:?} by its NumPy header, --token-dtype says otherwise; leave that out");
            return Err(refuse(problem));
        }
        let expected = entries.checked_mul(token_type.width() as u64).and_then(|ids| ids.checked_add(bytes));
        if expected != Some(length) {
            return Err(refuse(if has_header {
                format!("is {length} bytes long, its NumPy header says otherwise; copy it again")
            } else {
                let width = token_type.width();
                format!("is {length} bytes long, not a multiple of the {width} bytes of an id; is --token-dtype right?")
            }));
        }
        Ok(Self {
            path: path.to_path_buf(),
            reader,
            token_type,
            columns,
            size,
            left: entries,
            read: 0,
            has_zeros: true,
        })
    }

    fn next(&mut self) -> Result<Option<u32>> {
        if self.left == 0 {
            return if self.has_zeros && self.read >= TELLING { Err(self.zeros()) } else { Ok(None) };
        }
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..self.token_type.width()];
        self.reader.read_exact(bytes).map_err(Error::io("read", &self.path))?;
        let number = self.token_type.number(bytes);
        if !(0..self.size as i128).contains(&number) {
            let problem = format!(
                "id {number} at position {} lies outside the tokenizer's {} ids; is it this tokenizer's, and --token-dtype right?",
                self.read, self.size
            );
            return Err(Error::input(self.path.display(), problem));
        }
        self.has_zeros &= self.read.is_multiple_of(2) || number == 0;
        self.read += 1;
        self.left -= 1;
        Ok(Some(number as u32))
    }

    /// Ids of twice the width, read as this one, have a 0 in every second place.
    fn zeros(&self) -> Error {
        let problem = "every second id is 0, as when ids of twice the width are read; is the type of the ids right?";
        Error::input(self.path.display(), problem)
    }
}
