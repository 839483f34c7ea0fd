//! Parquet table: a table as a Parquet file of one row group, every column optional.

use super::Table;
use crate::error::{Error, Result};
use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::Type;
use serde_json::Value;
use std::sync::Arc;

/// What a column holds: the narrowest of these that all its values are.
#[derive(Clone, Copy)]
enum Kind {
    Boolean,
    Integer,
    Number,
    Text,
}

/// The bytes of the file.
pub(super) fn parquet(table: &Table) -> Result<Vec<u8>> {
    write(table).map_err(|error| Error::input("table to be written as Parquet", error.to_string()))
}

fn write(table: &Table) -> std::result::Result<Vec<u8>, ParquetError> {
    let kinds: Vec<Kind> = (0..table.columns.len()).map(|column| kind(table, column)).collect();
    let fields = table.columns.iter().zip(&kinds).map(|(name, kind)| field(name, *kind));
    let fields = fields.collect::<std::result::Result<Vec<_>, _>>()?;
    let schema = Arc::new(Type::group_type_builder("schema").with_fields(fields).build()?);
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    for (column, kind) in kinds.into_iter().enumerate() {
        let values = table.rows.iter().map(|row| &row[column]).filter(|value| !value.is_null());
        let levels: Vec<i16> = table.rows.iter().map(|row| i16::from(!row[column].is_null())).collect();
        match kind {
            Kind::Boolean => {
                put::<BoolType>(&mut group, &values.filter_map(Value::as_bool).collect::<Vec<_>>(), &levels)?;
            }
            Kind::Integer => {
                put::<Int64Type>(&mut group, &values.filter_map(Value::as_i64).collect::<Vec<_>>(), &levels)?;
            }
            Kind::Number => {
                put::<DoubleType>(&mut group, &values.filter_map(Value::as_f64).collect::<Vec<_>>(), &levels)?;
            }
            Kind::Text => {
                let texts = values.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
                put::<ByteArrayType>(
                    &mut group,
                    &texts.map(|text| ByteArray::from(text.into_bytes())).collect::<Vec<_>>(),
                    &levels,
                )?;
            }
        }
    }
    group.close()?;
    writer.into_inner()
}

fn put<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    values: &[T::T],
    levels: &[i16],
) -> std::result::Result<(), ParquetError> {
    let missing = || ParquetError::General("a column has no writer".into());
    let mut column = group.next_column()?.ok_or_else(missing)?;
    column.typed::<T>().write_batch(values, Some(levels), None)?;
    column.close()
}

fn kind(table: &Table, column: usize) -> Kind {
    let mut values = table.rows.iter().map(|row| &row[column]).filter(|value| !value.is_null()).peekable();
    if values.peek().is_none() {
        return Kind::Number;
    }
    let values: Vec<&Value> = values.collect();
    if values.iter().all(|value| value.is_boolean()) {
        Kind::Boolean
    } else if values.iter().all(|value| value.is_i64()) {
        Kind::Integer
    } else if values.iter().all(|value| value.is_number()) {
        Kind::Number
    } else {
        Kind::Text
    }
}

fn field(name: &str, kind: Kind) -> std::result::Result<Arc<Type>, ParquetError> {
    let (physical, logical) = match kind {
        Kind::Boolean => (Physical::BOOLEAN, None),
        Kind::Integer => (Physical::INT64, None),
        Kind::Number => (Physical::DOUBLE, None),
        Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
    };
    let builder = Type::primitive_type_builder(name, physical).with_repetition(Repetition::OPTIONAL);
    builder.with_logical_type(logical).build().map(Arc::new)
}
