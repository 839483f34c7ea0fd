//! Documents: text read from text, JSON Lines, Parquet and Arrow files, whichever a file's name says it is.

use std::path::Path;

use super::json_lines::read_json_lines;
use super::lines::{Compression, Lines, without_line_end};
use super::{BadRecord, OnBadRecord, TokenType};
use crate::error::{Error, Result};

/// The line that stands between two documents of a text file: ASCII's record separator.
const SEPARATOR: &str = "\u{1e}";

/// One document and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The text, possibly empty.
    pub text: String,
    /// `file:line` of a JSON record, `file (row 3)` of a table's, `file` of a lone text document, or `file (document 3)`;
    /// all counted from 1.
    pub place: String,
}

/// How the files of a corpus are read.
///
/// # Examples
/// ```
/// use mixpool::text::ReadOptions;
///
/// let options = ReadOptions { text_field: "page.body".to_string(), ..ReadOptions::default() };
/// assert_eq!(options.max_document_bytes, 64 << 20);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOptions {
    /// The field of a JSON record, or the column of a table, that holds the text; `a.b` is the field `b` of the object `a`.
    /// Default `text`.
    pub text_field: String,
    /// The longest text document or JSON line accepted, in bytes, line ends included. Default 64 MiB.
    pub max_document_bytes: usize,
    /// What is done about records without usable text. Default: they are errors.
    pub on_bad_record: OnBadRecord,
    /// The type of the ids in files of token ids that do not tell it themselves. Default: none, such files are refused.
    pub token_type: Option<TokenType>,
    /// The token that ends documents in files of token ids. Default: the tokenizer's EOS under a usual name.
    pub end_token: Option<String>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            text_field: "text".to_string(),
            max_document_bytes: 64 << 20,
            on_bad_record: OnBadRecord::Fail,
            token_type: None,
            end_token: None,
        }
    }
}

/// Reads a file and hands its documents to `each` one at a time, in order.
///
/// The name tells the format, in letters of either case:
/// - `.txt`, `.text`, `.md`: the file is one document, or several with a line that holds only U+001E between any two.
///   That line and the line end before it belong to neither document.
/// - `.jsonl`, `.ndjson`, `.json`: every line is a JSON object with its text in `options.text_field`; blank lines are
///   skipped.
/// - `.parquet`, `.pq`: the column `options.text_field` of a Parquet file, if this build reads them.
/// - `.arrow`, `.feather`: that column of an Arrow IPC file or stream.
///
/// The first two may be compressed, with `.gz` or `.zst` after the name. The text is UTF-8; a byte order mark at its start
/// is skipped. Documents without text are handed on like any other.
///
/// # Errors
/// - [`Error::Io`] when the file cannot be opened or read.
/// - [`Error::Input`] when it is a folder, of another format, truncated, corrupt, binary, not UTF-8, or without any
///   text at all; when a document is longer than `options.max_document_bytes`; and when a line is not a JSON object
///   with a string in the text field. Documents before the fault have been handed on by then.
/// - Whatever `each` returns, at once.
///
/// # Examples
/// ```
/// use mixpool::text::{ReadOptions, read_documents};
///
/// # let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("pages.jsonl");
/// std::fs::write(&path, "{\"text\": \"one\"}\n{\"text\": \"two\"}\n").unwrap();
/// let mut texts = Vec::new();
/// read_documents(&path, &ReadOptions::default(), &mut |document| {
///     texts.push(document.text);
///     Ok(())
/// })?;
/// assert_eq!(texts, ["one", "two"]);
/// # Ok::<(), mixpool::error::Error>(())
/// ```
pub fn read_documents(path: &Path, options: &ReadOptions, each: &mut dyn FnMut(Document) -> Result<()>) -> Result<()> {
    read_records(path, options, &mut |record| each(record?))
}

/// As [`read_documents`], but a record without usable text is handed on as such and reading goes on behind it.
///
/// What makes the whole file unusable (another format, cut short, corrupt) is an error here too.
///
/// # Errors
/// Those of [`read_documents`] that are not about one record.
pub fn read_records(
    path: &Path,
    options: &ReadOptions,
    each: &mut dyn FnMut(std::result::Result<Document, BadRecord>) -> Result<()>,
) -> Result<()> {
    let (format, compression) = format_of(path)?;
    let lines = || Lines::open(path, compression, options.max_document_bytes);
    let mut has_text = false;
    let mut pass = |record: std::result::Result<Document, BadRecord>| {
        has_text |= record.as_ref().is_ok_and(|document| !document.text.trim().is_empty());
        each(record)
    };
    match format {
        Format::Text => read_text(lines()?, &mut pass)?,
        Format::JsonLines => read_json_lines(lines()?, &options.text_field, &mut pass)?,
        Format::Parquet => read_parquet(path, options, &mut pass)?,
        Format::Arrow => super::arrow_file::read_arrow(path, options, &mut pass)?,
        Format::Tokens => {
            return Err(Error::input(
                path.display(),
                "holds token ids where text is needed; give the text they were made of",
            ));
        }
    }
    if has_text {
        Ok(())
    } else {
        Err(Error::input(path.display(), "holds no text; expected at least one document that is not blank"))
    }
}

#[cfg(feature = "parquet")]
use super::parquet_file::read_parquet;

/// Says that this build reads no Parquet.
#[cfg(not(feature = "parquet"))]
fn read_parquet(
    path: &Path,
    _: &ReadOptions,
    _: &mut dyn FnMut(std::result::Result<Document, BadRecord>) -> Result<()>,
) -> Result<()> {
    Err(Error::input(
        path.display(),
        "is Parquet, which this build cannot read; build with the cargo feature 'parquet'",
    ))
}

/// The text of a value of a table, or what is wrong with it: in short, in full, and its bytes.
pub(super) fn checked_text<'a>(
    bytes: &'a [u8],
    options: &ReadOptions,
) -> std::result::Result<&'a str, (&'static str, String, &'a [u8])> {
    let limit = options.max_document_bytes;
    if bytes.len() > limit {
        let reason = format!("the document is longer than {limit} bytes; split it into smaller documents");
        return Err(("too long", reason, bytes));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let reason = format!("is not UTF-8 (byte offset {} of the text); convert it to UTF-8", error.valid_up_to());
        ("not UTF-8", reason, bytes)
    })
}

/// What a file's documents look like, once decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    JsonLines,
    Parquet,
    Arrow,
    Tokens,
}

/// Tells the format and the compression from the file's name.
pub(super) fn format_of(path: &Path) -> Result<(Format, Compression)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let (name, compression) = match (name.strip_suffix(".gz"), name.strip_suffix(".zst")) {
        (Some(name), _) => (name, Compression::Gzip),
        (_, Some(name)) => (name, Compression::Zstd),
        _ => (name.as_str(), Compression::None),
    };
    match name.rsplit_once('.') {
        Some((_, "txt" | "text" | "md")) => Ok((Format::Text, compression)),
        Some((_, "jsonl" | "ndjson" | "json")) => Ok((Format::JsonLines, compression)),
        Some((_, "parquet" | "pq")) if compression == Compression::None => Ok((Format::Parquet, compression)),
        Some((_, "arrow" | "feather")) if compression == Compression::None => Ok((Format::Arrow, compression)),
        Some((_, "bin" | "npy")) if compression == Compression::None => Ok((Format::Tokens, compression)),
        _ => Err(Error::input(
            path.display(),
            "has a name of no known format; expected .txt, .text, .md, .jsonl, .ndjson or .json, \
             each also with .gz or .zst after it, .parquet, .arrow, .feather, .bin or .npy",
        )),
    }
}

/// Reads the documents of a text file, split at its separator lines. Of a bad document the first fault is told.
fn read_text(
    mut lines: Lines,
    each: &mut dyn FnMut(std::result::Result<Document, BadRecord>) -> Result<()>,
) -> Result<()> {
    let (mut text, mut separators, mut is_bad) = (String::new(), 0, false);
    while lines.advance()? {
        let fault = match lines.text() {
            Ok(line) if without_line_end(line) == SEPARATOR => {
                separators += 1;
                text.truncate(without_line_end(&text).len());
                let document =
                    Document { text: std::mem::take(&mut text), place: numbered_place(&lines.path, separators) };
                if !std::mem::take(&mut is_bad) {
                    each(Ok(document))?;
                }
                continue;
            }
            _ if is_bad => continue,
            Ok(line) if text.len() + line.len() <= lines.max_bytes => {
                text.push_str(line);
                continue;
            }
            Ok(_) => lines.too_long(),
            Err(fault) => fault,
        };
        (text, is_bad) = (String::new(), true);
        each(Err(fault))?;
    }
    let place = match separators {
        0 => lines.path.display().to_string(),
        _ => numbered_place(&lines.path, separators + 1),
    };
    if is_bad { Ok(()) } else { each(Ok(Document { text, place })) }
}

fn numbered_place(path: &Path, number: usize) -> String {
    format!("{} (document {number})", path.display())
}
