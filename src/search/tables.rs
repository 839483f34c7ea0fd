//! Tables: mixtures and losses as neighbouring projects keep them, olmix and `RegMix`.
//!
//! olmix: `run,name,index,<domain>...` and `run,name,index,<metric>...`. `RegMix`: `index,train_<domain>...` and
//! `index,metric/<domain>_val_loss...`, or a YAML file with `train: {train_<domain>: weight}`. Rows of two tables belong together by
//! what names them, never by their order.

use crate::error::{Error, Result};
use crate::files;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How far from 1 the weights of a row may sum: they were rounded when they were written.
const ROUNDING: f64 = 0.005;
/// How far from 1 a sum may be without a word.
const EXACT: f64 = 1e-6;
/// What `RegMix` writes before a domain.
const TRAIN: &str = "train_";
/// Columns that name a row, the best first.
const NAMES: [&str; 4] = ["run", "run_id", "index", "name"];

/// Numbers by row and column; rows have names.
#[derive(Debug, Clone, PartialEq)]
pub struct NumberTable {
    /// The columns that hold numbers, by the names that partitions or eval sets can have.
    pub columns: Vec<String>,
    /// The rows, in order.
    pub rows: Vec<NumberRow>,
    /// Rows whose weights were divided by a sum that was not quite 1.
    pub renormalised: usize,
}

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct NumberRow {
    /// Its line, from 1.
    pub line: usize,
    /// What names it, by the column that does.
    pub names: BTreeMap<String, String>,
    /// A number per column; none for an empty cell.
    pub values: Vec<Option<f64>>,
}

/// `train:` of a `RegMix` configuration.
#[derive(Deserialize)]
struct Configuration {
    train: BTreeMap<String, f64>,
}

impl NumberTable {
    /// The mixtures of a file; none when it is not one of these tables but something else.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::Input`], with its line, for a weight that is none and for weights that sum to
    /// something more than 0.005 from 1.
    pub fn mixtures(path: &Path) -> Result<Option<Self>> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let mut table = if matches!(extension.as_str(), "yaml" | "yml") {
            configuration(path)?
        } else {
            let text = String::from_utf8_lossy(&std::fs::read(path).map_err(Error::io("read", path))?).into_owned();
            let mut reader = csv::Reader::from_reader(text.as_bytes());
            let Ok(headers) = reader.headers() else { return Ok(None) };
            let (names, numbers): (Vec<&str>, Vec<&str>) =
                headers.iter().map(bare).partition(|name| NAMES.contains(name));
            let is_olmix = names.contains(&"run") || names.contains(&"run_id");
            let is_regmix = !names.is_empty() && numbers.iter().all(|name| name.starts_with(TRAIN));
            if headers.iter().any(|name| bare(name) == "mixture") || numbers.is_empty() || !(is_olmix || is_regmix) {
                return Ok(None);
            }
            Self::read(path)?
        };
        for row in &mut table.rows {
            let place = format!("{}:{}", path.display(), row.line);
            if let Some(index) =
                row.values.iter().position(|weight| weight.is_none_or(|weight| weight < 0.0 || !weight.is_finite()))
            {
                let column = &table.columns[index];
                return Err(Error::input(place, format!("expected a weight of at least 0 for '{column}'")));
            }
            let sum: f64 = row.values.iter().flatten().sum();
            if (sum - 1.0).abs() > ROUNDING + 1e-12 {
                return Err(Error::input(place, format!("the weights sum to {sum}, expected 1 within {ROUNDING}")));
            }
            if (sum - 1.0).abs() > EXACT {
                row.values.iter_mut().flatten().for_each(|weight| *weight /= sum);
                table.renormalised += 1;
            }
        }
        Ok(Some(table))
    }

    /// A table of losses.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::Input`], with its line, for a row that does not fit the header, a cell that is no
    /// number, a table without a column that names rows, and a name given twice.
    pub fn read(path: &Path) -> Result<Self> {
        let text = files::read_text(path)?;
        let refuse = |line: Option<u64>, problem: String| {
            let place = line.map_or(path.display().to_string(), |line| format!("{}:{line}", path.display()));
            Error::input(place, problem)
        };
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let headers = reader.headers().map_err(|error| refuse(Some(1), error.to_string()))?.clone();
        let headers: Vec<&str> = headers.iter().map(bare).collect();
        if !headers.iter().any(|header| NAMES.contains(header)) {
            return Err(refuse(Some(1), "expected a column 'run', 'run_id' or 'index' that names the rows".into()));
        }
        let numbers: Vec<usize> = (0..headers.len()).filter(|column| !NAMES.contains(&headers[*column])).collect();
        let is_regmix = numbers.iter().all(|column| headers[*column].starts_with(TRAIN));
        let plain = |column: &usize| {
            plain(headers[*column].strip_prefix(TRAIN).filter(|_| is_regmix).unwrap_or(headers[*column]))
        };
        let columns: Vec<String> = numbers.iter().map(plain).collect();
        if let Some(index) = (1..columns.len()).find(|index| columns[..*index].contains(&columns[*index])) {
            return Err(refuse(Some(1), format!("two columns are called '{}'", columns[index])));
        }
        let mut rows: Vec<NumberRow> = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|error| refuse(error.position().map(csv::Position::line), worded(&error)))?;
            let line = record.position().map_or(0, csv::Position::line);
            let value = |column: &usize| match record[*column].trim() {
                "" | "nan" | "NaN" => Ok(None),
                cell => cell.parse().ok().filter(|number: &f64| number.is_finite()).map(Some).ok_or_else(|| {
                    refuse(Some(line), format!("expected a number in column '{}', got '{cell}'", headers[*column]))
                }),
            };
            let values = numbers.iter().map(value).collect::<Result<_>>()?;
            let named = (0..headers.len()).filter(|column| NAMES.contains(&headers[*column]));
            let names = named.map(|column| (headers[column].to_owned(), record[column].trim().to_owned())).collect();
            rows.push(NumberRow { line: line as usize, names, values });
        }
        Ok(Self { columns, rows, renormalised: 0 })
    }

    /// The mixture of a row, in the notation of mixtures; partitions of weight 0 are named too, so that unknown ones are noticed.
    pub fn mixture(&self, row: &NumberRow) -> String {
        let terms = self.columns.iter().zip(&row.values);
        terms.map(|(name, weight)| format!("{name}={}", weight.unwrap_or(0.0))).collect::<Vec<_>>().join("+")
    }

    /// The rows of `other` that belong to the rows of this table, by the first of `run`, `run_id`, `index` and `name` that both
    /// have; none for a row that `other` lacks.
    ///
    /// # Errors
    /// [`Error::Input`] when they have no such column in common, a name is given twice, or no row finds another.
    pub fn join<'a>(&self, other: &'a Self, place: &str) -> Result<Vec<Option<&'a NumberRow>>> {
        let refuse = |problem: String| Error::input(place, problem);
        let has = |table: &Self, name: &str| table.rows.first().is_some_and(|row| row.names.contains_key(name));
        let shared = NAMES.into_iter().find(|name| has(self, name) && has(other, name));
        let shared = shared
            .ok_or_else(|| refuse("the tables have no column in common that names rows, such as 'index'".into()))?;
        let name = |row: &'_ NumberRow| row.names[shared].clone();
        for table in [self, other] {
            let mut seen = BTreeSet::new();
            if let Some(row) = table.rows.iter().find(|row| !seen.insert(name(row))) {
                return Err(refuse(format!("line {}: the {shared} '{}' is given twice", row.line, name(row))));
            }
        }
        let by_name: BTreeMap<String, &NumberRow> = other.rows.iter().map(|row| (name(row), row)).collect();
        let found: Vec<Option<&NumberRow>> = self.rows.iter().map(|row| by_name.get(&name(row)).copied()).collect();
        if found.iter().all(Option::is_none) {
            return Err(refuse(format!("no {shared} of one table is in the other")));
        }
        Ok(found)
    }
}

/// The mixture of a `RegMix` configuration.
fn configuration(path: &Path) -> Result<NumberTable> {
    let read: std::result::Result<Configuration, _> = serde_saphyr::from_str(&files::read_text(path)?);
    let Configuration { train } = read.map_err(|error| {
        let line = error.to_string().lines().next().unwrap_or_default().to_owned();
        Error::input(path.display(), format!("expected 'train:' with a weight for each 'train_<domain>' ({line})"))
    })?;
    let columns = train.keys().map(|name| plain(name.strip_prefix(TRAIN).unwrap_or(name))).collect();
    let names = [("index".to_owned(), "1".to_owned())].into();
    let row = NumberRow { line: 1, names, values: train.into_values().map(Some).collect() };
    Ok(NumberTable { columns, rows: vec![row], renormalised: 0 })
}

/// A header without what editors leave around it.
fn bare(header: &str) -> &str {
    header.trim_start_matches('\u{feff}').trim()
}

/// The name that a partition or an eval set of this column can have: without what `RegMix` adds to metrics, and with `-` for
/// characters that names do not have.
fn plain(header: &str) -> String {
    let metric = header.strip_prefix("metric/").and_then(|rest| rest.strip_suffix("_val_loss"));
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    metric.unwrap_or(header).chars().map(|c| if allowed(c) { c } else { '-' }).collect()
}

fn worded(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("expected {expected_len} cells as in the header, got {len}")
        }
        _ => error.to_string(),
    }
}
