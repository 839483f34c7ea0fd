//! JSON lines: the text in one field of every line's object.

use serde_json::{Map, Value};

use super::lines::{Lines, without_line_end};
use super::{BadRecord, Document};
use crate::error::Result;

/// How many of a record's fields an error names.
const FIELDS_NAMED: usize = 8;

/// Reads the documents of a file with one JSON object a line.
pub(super) fn read_json_lines(
    mut lines: Lines,
    field: &str,
    each: &mut dyn FnMut(std::result::Result<Document, BadRecord>) -> Result<()>,
) -> Result<()> {
    while lines.advance()? {
        let record = match lines.text() {
            Ok(line) if line.trim().is_empty() => continue,
            Ok(line) => parse_record(&lines, without_line_end(line), field),
            Err(bad) => Err(bad),
        };
        each(record.map(|text| Document { text, place: lines.place() }))?;
    }
    Ok(())
}

/// The text of the record on the current line.
fn parse_record(lines: &Lines, line: &str, field: &str) -> std::result::Result<String, BadRecord> {
    match serde_json::from_str(line) {
        Ok(Value::Object(record)) => take_text(record, field).map_err(|problem| lines.bad("no text field", problem)),
        Ok(other) => Err(lines.bad(
            "not an object",
            format!(
                "expected a JSON object, got {}; write one object a line ('jq -c .[]' unpacks an array)",
                type_of(&other)
            ),
        )),
        Err(error) => Err(json_problem(lines, line, &error)),
    }
}

/// Says where in the current line the JSON breaks, in characters from 1, and why.
fn json_problem(lines: &Lines, line: &str, error: &serde_json::Error) -> BadRecord {
    let is_before = |(start, _): &(usize, char)| *start < error.column();
    let column = line.char_indices().take_while(is_before).count();
    let message = error.to_string();
    let reason = message.rsplit_once(" at line ").map_or(message.as_str(), |(reason, _)| reason);
    let problem = format!("{reason}; expected one whole JSON object a line ('jq -c .' writes it so)");
    BadRecord { place: format!("{}:{column}", lines.place()), ..lines.bad("not JSON", problem) }
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
