//! Documents: text read from .txt and .jsonl files, plain, gzip or zstd.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::text::lines::{Compression, Lines, without_line_end};

/// The line that stands between two documents of a text file: ASCII's record separator.
const SEPARATOR: &str = "\u{1e}";

/// How many of a record's fields an error names.
const FIELDS_NAMED: usize = 8;

/// One document and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The text, possibly empty.
    pub text: String,
    /// `file:line` of a JSON record, `file` of a lone text document, or `file (document 3)`, counted from 1.
    pub place: String,
}

/// How [`read_documents`] finds the text.
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
    /// The field of a JSON record that holds its text; `a.b` is the field `b` of the object `a`. Default `text`.
    pub text_field: String,
    /// The longest text document or JSON line accepted, in bytes, line ends included. Default 64 MiB.
    pub max_document_bytes: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { text_field: "text".to_string(), max_document_bytes: 64 << 20 }
    }
}

/// Reads a file and hands its documents to `each` one at a time, in order.
///
/// The name tells the format, in letters of either case:
/// - `.txt`, `.text`, `.md`: the file is one document, or several with a line that holds only U+001E between any two.
///   That line and the line end before it belong to neither document.
/// - `.jsonl`, `.ndjson`, `.json`: every line is a JSON object with its text in `options.text_field`; blank lines are
///   skipped.
///
/// Either may be compressed, with `.gz` or `.zst` after the name. The text is UTF-8; a byte order mark at its start
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
    let (format, compression) = format_of(path)?;
    let lines = Lines::open(path, compression, options.max_document_bytes)?;
    let mut has_text = false;
    let mut pass = |document: Document| {
        has_text |= !document.text.trim().is_empty();
        each(document)
    };
    match format {
        Format::Text => read_text(lines, &mut pass)?,
        Format::JsonLines => read_json_lines(lines, &options.text_field, &mut pass)?,
    }
    if has_text {
        Ok(())
    } else {
        Err(Error::input(path.display(), "holds no text; expected at least one document that is not blank"))
    }
}

/// What a file's documents look like, once decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    JsonLines,
}

/// Tells the format and the compression from the file's name.
fn format_of(path: &Path) -> Result<(Format, Compression)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let (name, compression) = match (name.strip_suffix(".gz"), name.strip_suffix(".zst")) {
        (Some(name), _) => (name, Compression::Gzip),
        (_, Some(name)) => (name, Compression::Zstd),
        _ => (name.as_str(), Compression::None),
    };
    match name.rsplit_once('.') {
        Some((_, "txt" | "text" | "md")) => Ok((Format::Text, compression)),
        Some((_, "jsonl" | "ndjson" | "json")) => Ok((Format::JsonLines, compression)),
        _ => Err(Error::input(
            path.display(),
            "has a name of no known format; expected .txt, .text, .md, .jsonl, .ndjson or .json, \
             each also with .gz or .zst after it",
        )),
    }
}

/// Reads the documents of a text file, split at its separator lines.
fn read_text(mut lines: Lines, each: &mut dyn FnMut(Document) -> Result<()>) -> Result<()> {
    let mut text = String::new();
    let mut separators = 0;
    while lines.advance()? {
        if lines.content() == SEPARATOR {
            separators += 1;
            text.truncate(without_line_end(&text).len());
            let place = numbered_place(&lines.path, separators);
            each(Document { text: std::mem::take(&mut text), place })?;
        } else if text.len() + lines.text.len() > lines.max_bytes {
            return Err(lines.too_long());
        } else {
            text.push_str(&lines.text);
        }
    }
    let place = match separators {
        0 => lines.path.display().to_string(),
        _ => numbered_place(&lines.path, separators + 1),
    };
    each(Document { text, place })
}

fn numbered_place(path: &Path, number: usize) -> String {
    format!("{} (document {number})", path.display())
}

/// Reads the documents of a file with one JSON object a line.
fn read_json_lines(mut lines: Lines, field: &str, each: &mut dyn FnMut(Document) -> Result<()>) -> Result<()> {
    while lines.advance()? {
        if !lines.content().trim().is_empty() {
            let text = parse_record(&lines, field)?;
            each(Document { text, place: lines.place() })?;
        }
    }
    Ok(())
}

/// The text of the record on the current line.
fn parse_record(lines: &Lines, field: &str) -> Result<String> {
    let line = lines.content();
    match serde_json::from_str(line) {
        Ok(Value::Object(record)) => take_text(record, field).map_err(|problem| lines.problem(problem)),
        Ok(other) => Err(lines.problem(format!(
            "expected a JSON object, got {}; write one object a line ('jq -c .[]' unpacks an array)",
            type_of(&other)
        ))),
        Err(error) => Err(json_problem(lines, &error)),
    }
}

/// Says where in the current line the JSON breaks, in characters from 1, and why.
fn json_problem(lines: &Lines, error: &serde_json::Error) -> Error {
    let is_before = |(start, _): &(usize, char)| *start < error.column();
    let column = lines.content().char_indices().take_while(is_before).count();
    let message = error.to_string();
    let reason = message.rsplit_once(" at line ").map_or(message.as_str(), |(reason, _)| reason);
    Error::input(
        format_args!("{}:{column}", lines.place()),
        format!("{reason}; expected one whole JSON object a line ('jq -c .' writes it so)"),
    )
}

/// The string at the dotted path `field`, or what is wrong with the record.
fn take_text(record: Map<String, Value>, field: &str) -> std::result::Result<String, String> {
    let mut value = Value::Object(record);
    let mut walked = String::new();
    for name in field.split('.') {
        let Value::Object(mut object) = value else {
            let kind = type_of(&value);
            return Err(format!("expected an object in field '{walked}' of '{field}', got {kind}; see --text-field"));
        };
        value = object.remove(name).ok_or_else(|| missing_field(&object, field, &walked))?;
        walked = join(&walked, name);
    }
    match value {
        Value::String(text) => Ok(text),
        other => Err(format!(
            "expected a string in field '{field}', got {}; name the field with the text by --text-field",
            type_of(&other)
        )),
    }
}

/// Names the fields that the object at `walked` has instead of the one on the way to `field`.
fn missing_field(object: &Map<String, Value>, field: &str, walked: &str) -> String {
    if object.is_empty() {
        return format!("expected a field '{field}', got an object without fields");
    }
    let named = object.keys().take(FIELDS_NAMED).map(|name| format!("'{}'", join(walked, name).escape_debug()));
    let mut present = named.collect::<Vec<_>>().join(", ");
    if object.len() > FIELDS_NAMED {
        present.push_str(&format!(" and {} more", object.len() - FIELDS_NAMED));
    }
    format!("expected a field '{field}', got the fields {present}; name the field with the text by --text-field")
}

/// The dotted path of the field `name` in the object at `walked`.
fn join(walked: &str, name: &str) -> String {
    if walked.is_empty() { name.to_string() } else { format!("{walked}.{name}") }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
