//! Report: rows as people and programs read them: tables, CSV and JSON.
//!
//! Every number on the screen is in the export under the same name; an absent value is empty, never 0.

mod rows;

pub use rows::{AgreementLine, AgreementRow, DocumentRow, RankingRow, ScoreRow};

use crate::error::{Error, Result};
use crate::files;
use comfy_table::{CellAlignment, ColumnConstraint, Table, presets};
use serde::Serialize;
use std::path::Path;

/// How rows are written to stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Aligned columns, numbers rounded.
    #[default]
    Table,
    /// Comma-separated, full precision.
    Csv,
    /// One JSON value, full precision.
    Json,
}

/// Rows in the given format, with a final newline.
pub fn render<T: Serialize>(rows: &[T], format: Format) -> Result<String> {
    match format {
        Format::Table => table(rows),
        Format::Csv => csv(rows),
        Format::Json => Ok(String::from_utf8_lossy(&files::to_json(&rows)?).into_owned()),
    }
}

/// Publishes rows as a CSV file: complete, or not at all.
pub fn write_csv<T: Serialize>(path: &Path, rows: &[T]) -> Result<()> {
    let bytes = csv(rows)?;
    files::sweep_for(path)?;
    files::publish(path, bytes.as_bytes())
}

/// Rows as CSV: a header, then one line each; numbers are the shortest decimals that read back as the same f64.
pub fn csv<T: Serialize>(rows: &[T]) -> Result<String> {
    let failed = |error: &dyn std::fmt::Display| Error::input("table to be written as CSV", error.to_string());
    let mut writer = csv::Writer::from_writer(Vec::new());
    rows.iter().try_for_each(|row| writer.serialize(row)).map_err(|error| failed(&error))?;
    let bytes = writer.into_inner().map_err(|error| failed(&error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Rows as an aligned table: the CSV, with numbers rounded for the eye and without columns that are empty throughout.
fn table<T: Serialize>(rows: &[T]) -> Result<String> {
    let text = csv(rows)?;
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let failed = |error: csv::Error| Error::input("table", error.to_string());
    let headers = reader.headers().map_err(failed)?.clone();
    let records = reader.records().collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
    let cells = |index: usize| records.iter().map(move |record| &record[index]);
    let shown: Vec<usize> = (0..headers.len()).filter(|index| cells(*index).any(|cell| !cell.is_empty())).collect();

    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(shown.iter().map(|index| &headers[*index]));
    for record in &records {
        table.add_row(shown.iter().map(|index| rounded(&record[*index])));
    }
    for (column, index) in table.column_iter_mut().zip(shown) {
        column.set_padding((0, 2));
        column.set_constraint(ColumnConstraint::ContentWidth);
        if cells(index).all(|cell| cell.is_empty() || cell.parse::<f64>().is_ok()) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    Ok(table.lines().map(|line| format!("{}\n", line.trim_end())).collect())
}

/// Four decimals for what has a fraction; everything else as it is.
fn rounded(cell: &str) -> String {
    match cell.parse::<f64>() {
        Ok(number) if cell.contains(['.', 'e']) && number.abs() < 1e15 => format!("{number:.4}"),
        _ => cell.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Row {
        name: &'static str,
        loss: Option<f64>,
        order: Option<f64>,
    }

    #[test]
    fn tables_leave_out_columns_without_a_value_and_csv_keeps_them() {
        let rows = [Row { name: "a", loss: Some(2.5), order: None }, Row { name: "b", loss: None, order: None }];
        assert_eq!(render(&rows, Format::Table).unwrap(), "name    loss\na     2.5000\nb\n");
        assert_eq!(render(&rows, Format::Csv).unwrap(), "name,loss,order\na,2.5,\nb,,\n");
    }
}
