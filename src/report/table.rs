//! Table: rows as columns and values, from which every form of output is made.

use crate::error::{Error, Result};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;

/// Named columns and their values, row by row; an absent value is null.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// A value per column.
    pub rows: Vec<Vec<Value>>,
}

/// The columns that name what a row is about, where it has them.
const KEYS: [&str; 2] = ["mixture", "estimator"];
/// The column whose values become columns of the wide form.
const PIVOT: &str = "eval_set";

impl Table {
    /// The rows in long form, columns in the order of their fields.
    ///
    /// # Errors
    /// [`Error::Input`] when a row is not a list of named values.
    pub fn of<T: Serialize>(rows: &[T]) -> Result<Self> {
        let failed = |error: String| Error::input("table to be written", error);
        let mut columns = Vec::new();
        if let Some(row) = rows.first() {
            let mut writer = csv::Writer::from_writer(Vec::new()); // knows the order of fields, which JSON does not keep
            writer.serialize(row).map_err(|error| failed(error.to_string()))?;
            let bytes = writer.into_inner().map_err(|error| failed(error.to_string()))?;
            let mut reader = csv::Reader::from_reader(&bytes[..]);
            columns = reader.headers().map_err(|error| failed(error.to_string()))?.iter().map(str::to_owned).collect();
        }
        let values = |row: &T| {
            let mut value = serde_json::to_value(row).map_err(|error| failed(error.to_string()))?;
            Ok(columns.iter().map(|column| value[column].take()).collect())
        };
        let rows = rows.iter().map(values).collect::<Result<_>>()?;
        Ok(Self { columns, rows })
    }

    /// One row a mixture (and estimator), one column per eval set and metric (`wiki.loss`), one per partition's weight
    /// (`weight.wiki`, 0 where the mixture leaves it out).
    ///
    /// `weights` holds the weights of the mixtures by their names.
    #[must_use]
    pub fn wide(&self, weights: &BTreeMap<String, BTreeMap<String, f64>>) -> Self {
        let place = |name: &str| self.columns.iter().position(|column| column == name);
        let keys: Vec<usize> = KEYS.iter().filter_map(|key| place(key)).collect();
        let Some(pivot) = place(PIVOT) else { return self.clone() };
        let metrics: Vec<usize> = (0..self.columns.len()).filter(|c| *c != pivot && !keys.contains(c)).collect();
        let (mut evals, mut found): (Vec<&str>, Vec<Vec<&Value>>) = (Vec::new(), Vec::new());
        let mut places: BTreeMap<Vec<String>, usize> = BTreeMap::new();
        let mut cells: BTreeMap<(usize, usize, usize), &Value> = BTreeMap::new(); // by row, eval set, metric
        for row in &self.rows {
            let eval = row[pivot].as_str().unwrap_or_default();
            let eval_index = evals.iter().position(|known| *known == eval).unwrap_or_else(|| {
                evals.push(eval);
                evals.len() - 1
            });
            let key: Vec<&Value> = keys.iter().map(|key| &row[*key]).collect();
            let index = *places.entry(key.iter().map(ToString::to_string).collect()).or_insert_with(|| {
                found.push(key);
                found.len() - 1
            });
            cells.extend(metrics.iter().map(|metric| ((index, eval_index, *metric), &row[*metric])));
        }
        let partitions: std::collections::BTreeSet<&String> = weights.values().flat_map(BTreeMap::keys).collect();
        let mut columns: Vec<String> = keys.iter().map(|key| self.columns[*key].clone()).collect();
        columns.extend(partitions.iter().map(|partition| format!("weight.{partition}")));
        columns
            .extend(evals.iter().flat_map(|eval| metrics.iter().map(move |m| format!("{eval}.{}", self.columns[*m]))));
        let row = |(index, key): (usize, &Vec<&Value>)| {
            let of = key.first().and_then(|mixture| weights.get(mixture.as_str()?));
            let weight =
                |partition: &&String| of.map_or(Value::Null, |of| of.get(*partition).copied().unwrap_or(0.0).into());
            let values = (0..evals.len()).flat_map(|eval| metrics.iter().map(move |metric| (index, eval, *metric)));
            let values = values.map(|cell| cells.get(&cell).map_or(Value::Null, |value| (*value).clone()));
            key.iter().map(|value| (*value).clone()).chain(partitions.iter().map(weight)).chain(values).collect()
        };
        let rows = found.iter().enumerate().map(row).collect();
        Self { columns, rows }
    }

    /// As CSV: a header, then one line each; numbers are the shortest decimals that read back as the same f64.
    pub(super) fn csv(&self) -> Result<String> {
        let failed = |error: &dyn std::fmt::Display| Error::input("table to be written as CSV", error.to_string());
        let mut writer = csv::Writer::from_writer(Vec::new());
        if !self.columns.is_empty() {
            writer.write_record(&self.columns).map_err(|error| failed(&error))?;
        }
        self.rows.iter().try_for_each(|row| writer.serialize(row)).map_err(|error| failed(&error))?;
        let bytes = writer.into_inner().map_err(|error| failed(&error))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The rows as objects, in the order of their columns.
    pub(super) fn objects(&self) -> impl Iterator<Item = Object<'_>> {
        self.rows.iter().map(|row| Object { columns: &self.columns, row })
    }
}

/// One row as an object.
pub(super) struct Object<'a> {
    columns: &'a [String],
    row: &'a [Value],
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.row.len()))?;
        for (column, value) in self.columns.iter().zip(self.row) {
            map.serialize_entry(column, value)?;
        }
        map.end()
    }
}
