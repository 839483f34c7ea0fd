//! Parquet file: the text column of one, row group by row group; no other column is read.

use super::documents::checked_text;
use super::guarded::guarded;
use super::{BadRecord, Document, ReadOptions};
use crate::error::{Error, Result};
use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// The largest footer accepted.
const MAX_FOOTER: u64 = 16 << 20;
/// How many rows are asked for at a time.
const ROWS: usize = 256;

type Records<'a> = dyn FnMut(std::result::Result<Document, BadRecord>) -> Result<()> + 'a;

/// Hands every text of the column to `each`, in order.
pub(super) fn read_parquet(path: &Path, options: &ReadOptions, each: &mut Records<'_>) -> Result<()> {
    let file = open(path)?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let reader = sound(path, || SerializedFileReader::new(file))?;
    let column = sound(path, || Ok(find(&reader, &options.text_field)))?
        .map_err(|problem| Error::input(path.display(), problem))?;
    let present = reader.metadata().file_metadata().schema_descr().column(column).max_def_level();
    let mut row = 0;
    for group in 0..reader.num_row_groups() {
        let mut texts = sound(path, || {
            let group = reader.get_row_group(group)?;
            let (start, bytes) = group.metadata().column(column).byte_range();
            if start.checked_add(bytes).is_none_or(|end| end > length) {
                return Err(ParquetError::General("a column lies outside the file".into()));
            }
            match group.get_column_reader(column)? {
                ColumnReader::ByteArrayColumnReader(reader) => Ok(Texts::new(reader, present)),
                _ => Err(ParquetError::General("a column is of another type than its schema says".into())),
            }
        })?;
        let rows = reader.metadata().row_group(group).num_rows();
        let before = row;
        while sound(path, || texts.advance())? {
            for text in texts.rows() {
                row += 1;
                let place = format!("{} (row {row})", path.display());
                let text = match text {
                    Some(bytes) => checked_text(bytes, options),
                    None => {
                        Err(("null", format!("expected text in column '{}', got null", options.text_field), &[][..]))
                    }
                };
                each(match text {
                    Ok(text) => Ok(Document { text: text.to_owned(), place }),
                    Err((kind, reason, bytes)) => Err(BadRecord::new(place, kind, reason, bytes)),
                })?;
            }
        }
        if row - before != rows {
            return Err(corrupt(path, &format!("a row group has {} rows, its footer says {rows}", row - before)));
        }
    }
    Ok(())
}

/// Opens the file once its ends are what they should be.
fn open(path: &Path) -> Result<File> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let mut end = [0; 8];
    if length >= 12 {
        file.seek(SeekFrom::End(-8)).and_then(|_| file.read_exact(&mut end)).map_err(Error::io("read", path))?;
    }
    let refuse = |problem: &str| Err(Error::input(path.display(), problem));
    let [a, b, c, d, magic @ ..] = end;
    let footer = u64::from(u32::from_le_bytes([a, b, c, d]));
    match &magic {
        b"PAR1" if footer > MAX_FOOTER => refuse("has a footer of more than 16 MiB; write it with fewer row groups"),
        b"PAR1" if footer + 12 > length => Err(corrupt(path, "its footer is longer than the file")),
        b"PAR1" => Ok(file),
        b"PARE" => refuse("is encrypted; decrypt it first"),
        _ => Err(corrupt(path, "it does not end as Parquet files do")),
    }
}

fn corrupt(path: &Path, problem: &str) -> Error {
    let problem = problem.split_whitespace().collect::<Vec<_>>().join(" ");
    Error::input(path.display(), format!("is no Parquet file, or corrupt ({problem}); write or copy it again"))
}

/// What the library makes of the file; its failures and panics are the file's fault.
fn sound<T>(path: &Path, work: impl FnOnce() -> std::result::Result<T, ParquetError>) -> Result<T> {
    match guarded(work) {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(corrupt(path, &error.to_string())),
        None => Err(corrupt(path, "the parquet library failed on it")),
    }
}

/// The number of the column at a dotted path, or what is wrong with it.
fn find(reader: &SerializedFileReader<File>, field: &str) -> std::result::Result<usize, String> {
    let columns = reader.metadata().file_metadata().schema_descr().columns();
    let Some(index) = columns.iter().position(|column| column.path().string() == field) else {
        let known = columns.iter().map(|column| format!("'{}'", column.path().string().escape_debug()));
        return Err(format!(
            "expected a column '{field}', got the columns {}; name the one with the text by --text-field",
            known.collect::<Vec<_>>().join(", ")
        ));
    };
    if is_text(&columns[index]) {
        Ok(index)
    } else {
        Err(format!("expected one string a row in column '{field}', got another type; name the column by --text-field"))
    }
}

fn is_text(column: &ColumnDescriptor) -> bool {
    let is_plain = matches!(column.converted_type(), ConvertedType::NONE | ConvertedType::UTF8 | ConvertedType::ENUM);
    let is_string = matches!(column.logical_type_ref(), None | Some(LogicalType::String | LogicalType::Enum));
    column.physical_type() == Type::BYTE_ARRAY && column.max_rep_level() == 0 && is_plain && is_string
}

/// The texts of one row group, some rows at a time.
struct Texts {
    reader: ColumnReaderImpl<ByteArrayType>,
    present: i16,
    levels: Vec<i16>,
    values: Vec<ByteArray>,
    rows: usize,
}

impl Texts {
    /// `present` is the definition level of a row that has a value.
    fn new(reader: ColumnReaderImpl<ByteArrayType>, present: i16) -> Self {
        Self { reader, present, levels: Vec::new(), values: Vec::new(), rows: 0 }
    }

    /// Reads some rows; false when there are none left.
    fn advance(&mut self) -> std::result::Result<bool, ParquetError> {
        self.levels.clear();
        self.values.clear();
        (self.rows, ..) = self.reader.read_records(ROWS, Some(&mut self.levels), None, &mut self.values)?;
        let present = if self.present == 0 {
            self.rows
        } else {
            self.levels.iter().filter(|level| **level == self.present).count()
        };
        if self.present > 0 && self.levels.len() != self.rows || present != self.values.len() {
            return Err(ParquetError::General("a page holds another number of values than it says".into()));
        }
        Ok(self.rows > 0)
    }

    /// The rows read last; none for null.
    fn rows(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let mut values = self.values.iter();
        let is_present = |row: usize| self.levels.get(row).is_none_or(|level| *level == self.present);
        (0..self.rows).map(move |row| if is_present(row) { values.next().map(ByteArray::data) } else { None })
    }
}
