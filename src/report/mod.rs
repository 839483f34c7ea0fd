//! Report: rows as people and programs read them: tables, Markdown, CSV, JSON, JSON Lines and Parquet.
//!
//! Every number on the screen is in the export under the same name; an absent value is empty, never 0.

mod exchange;
#[cfg(feature = "parquet")]
mod parquet_table;
mod rows;
mod table;

pub use exchange::{Measured, Neighbour};
pub use rows::{AgreementLine, AgreementRow, DocumentRow, RankingRow, ScoreRow};
pub use table::Table;

use crate::error::{Error, Result};
use crate::files;
use comfy_table::{CellAlignment, ColumnConstraint, presets};
use serde::Serialize;
use std::path::Path;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Aligned columns, numbers rounded.
    #[default]
    Table,
    /// As the table, as Markdown.
    Markdown,
    /// Comma-separated, full precision.
    Csv,
    /// One JSON value, full precision.
    Json,
    /// One JSON object a line, full precision.
    JsonLines,
    /// Columns of a Parquet file; into files only.
    Parquet,
}

impl Format {
    /// The format that a file's name asks for.
    ///
    /// # Errors
    /// [`Error::Usage`] when it asks for none, or for one that this build cannot write.
    pub fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        match extension.as_str() {
            "csv" => Ok(Self::Csv),
            "json" => Ok(Self::Json),
            "jsonl" | "ndjson" => Ok(Self::JsonLines),
            "md" => Ok(Self::Markdown),
            "txt" => Ok(Self::Table),
            "parquet" if cfg!(feature = "parquet") => Ok(Self::Parquet),
            "parquet" => Err(Error::Usage(format!(
                "'{}': this build writes no Parquet; build with the cargo feature 'parquet'",
                path.display()
            ))),
            _ => Err(Error::Usage(format!(
                "'{}': expected a name that ends in .csv, .json, .jsonl, .md, .txt or .parquet",
                path.display()
            ))),
        }
    }
}

/// Rows in the given format, with a final newline.
pub fn render<T: Serialize>(rows: &[T], format: Format) -> Result<String> {
    match format {
        Format::Csv => csv(rows),
        _ => render_table(&Table::of(rows)?, format),
    }
}

/// A table in the given format, with a final newline.
///
/// # Errors
/// [`Error::Usage`] for Parquet, which is not text.
pub fn render_table(table: &Table, format: Format) -> Result<String> {
    match format {
        Format::Table => aligned(table),
        Format::Markdown => markdown(table),
        Format::Csv => table.csv(),
        Format::Json => {
            Ok(String::from_utf8_lossy(&files::to_json(&table.objects().collect::<Vec<_>>())?).into_owned())
        }
        Format::JsonLines => table.objects().map(|object| json_line(&object)).collect(),
        Format::Parquet => Err(Error::Usage("Parquet is written into files only; pass --out FILE.parquet".into())),
    }
}

/// One JSON value on a line of its own.
pub fn json_line(value: &impl Serialize) -> Result<String> {
    let line = serde_json::to_string(value);
    line.map(|line| line + "\n").map_err(|error| Error::input("value to be written as JSON", error.to_string()))
}

/// Publishes a table as a file, complete or not at all, in the format that its name asks for.
pub fn write_table(path: &Path, table: &Table) -> Result<()> {
    let bytes = match Format::of(path)? {
        #[cfg(feature = "parquet")]
        Format::Parquet => parquet_table::parquet(table)?,
        format => render_table(table, format)?.into_bytes(),
    };
    files::sweep_for(path)?;
    files::publish(path, &bytes)
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

/// What a table shows: header and rows of texts, numbers rounded for the eye, without columns that are empty throughout; and
/// which columns hold numbers.
fn shown(table: &Table) -> Result<(Vec<Vec<String>>, Vec<bool>)> {
    let text = table.csv()?;
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let failed = |error: csv::Error| Error::input("table", error.to_string());
    let headers = reader.headers().map_err(failed)?.clone();
    let records = reader.records().collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
    let cells = |index: usize| records.iter().map(move |record| &record[index]);
    let shown: Vec<usize> = (0..headers.len()).filter(|index| cells(*index).any(|cell| !cell.is_empty())).collect();
    let is_number = |index: &usize| cells(*index).all(|cell| cell.is_empty() || cell.parse::<f64>().is_ok());
    let mut rows = vec![shown.iter().map(|index| headers[*index].to_owned()).collect()];
    rows.extend(records.iter().map(|record| shown.iter().map(|index| rounded(&record[*index])).collect()));
    Ok((rows, shown.iter().map(is_number).collect()))
}

/// Aligned columns.
fn aligned(table: &Table) -> Result<String> {
    let (rows, is_number) = shown(table)?;
    let mut table = comfy_table::Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(&rows[0]);
    table.add_rows(&rows[1..]);
    for (column, is_number) in table.column_iter_mut().zip(is_number) {
        column.set_padding((0, 2));
        column.set_constraint(ColumnConstraint::ContentWidth);
        if is_number {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    Ok(table.lines().map(|line| format!("{}\n", line.trim_end())).collect())
}

/// A Markdown table, numbers to the right.
fn markdown(table: &Table) -> Result<String> {
    let (rows, is_number) = shown(table)?;
    let line = |cells: &[String]| {
        let cells = cells.iter().map(|cell| cell.replace('|', "\\|"));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule: Vec<String> = is_number.iter().map(|number| if *number { "---:" } else { "---" }.to_owned()).collect();
    Ok(line(&rows[0]) + &line(&rule) + &rows[1..].iter().map(|row| line(row)).collect::<String>())
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
        assert_eq!(Table::of(&rows).unwrap().csv().unwrap(), render(&rows, Format::Csv).unwrap());
        let markdown = "| name | loss |\n| --- | ---: |\n| a | 2.5000 |\n| b |  |\n";
        assert_eq!(render(&rows, Format::Markdown).unwrap(), markdown);
        let lines = "{\"name\":\"a\",\"loss\":2.5,\"order\":null}\n{\"name\":\"b\",\"loss\":null,\"order\":null}\n";
        assert_eq!(render(&rows, Format::JsonLines).unwrap(), lines);
    }
}
