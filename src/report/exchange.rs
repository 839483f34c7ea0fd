//! Exchange: measured mixtures in the tables of neighbouring projects, olmix and `RegMix`.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// A mixture and what was measured or predicted for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Its name.
    pub mixture: String,
    /// Weights by partition.
    pub weights: BTreeMap<String, f64>,
    /// Loss by eval set, nats per token.
    pub losses: BTreeMap<String, f64>,
}

/// Whose tables are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbour {
    /// `ratios.csv` and `metrics.csv`.
    Olmix,
    /// `mixture.csv`, `loss.csv`, and a configuration `mixture-N.yaml` for each mixture.
    RegMix,
}

impl Neighbour {
    /// The files that hold some mixtures, by name: a row each, numbered from 1; a loss that is not there is an empty cell.
    ///
    /// # Errors
    /// [`Error::Input`] when a table cannot be written.
    pub fn files(
        self,
        rows: &[Measured],
        partitions: &[String],
        evals: &[String],
    ) -> Result<BTreeMap<String, Vec<u8>>> {
        let (weights, losses) = match self {
            Self::Olmix => ("ratios.csv", "metrics.csv"),
            Self::RegMix => ("mixture.csv", "loss.csv"),
        };
        let weight = |row: &Measured, name: &String| Some(row.weights.get(name).copied().unwrap_or(0.0));
        let loss = |row: &Measured, name: &String| row.losses.get(name).copied();
        let domain = |name: &String| if self == Self::Olmix { name.clone() } else { format!("train_{name}") };
        let metric = |name: &String| if self == Self::Olmix { name.clone() } else { format!("metric/{name}_val_loss") };
        let mut files = BTreeMap::new();
        files.insert(weights.to_owned(), self.table(rows, partitions, domain, weight)?);
        files.insert(losses.to_owned(), self.table(rows, evals, metric, loss)?);
        if self == Self::RegMix {
            let configurations = rows.iter().enumerate();
            files.extend(configurations.map(|(index, row)| {
                (format!("mixture-{}.yaml", index + 1), configuration(row, partitions, evals).into_bytes())
            }));
        }
        Ok(files)
    }

    fn table(
        self,
        rows: &[Measured],
        names: &[String],
        header: impl Fn(&String) -> String,
        value: impl Fn(&Measured, &String) -> Option<f64>,
    ) -> Result<Vec<u8>> {
        let failed = |error: &dyn std::fmt::Display| Error::input("table to be written as CSV", error.to_string());
        let mut writer = csv::Writer::from_writer(Vec::new());
        let keys: &[&str] = if self == Self::Olmix { &["run", "name", "index"] } else { &["index"] };
        let headers = keys.iter().map(|key| (*key).to_owned()).chain(names.iter().map(header));
        writer.write_record(headers).map_err(|error| failed(&error))?;
        for (index, row) in rows.iter().enumerate() {
            let values: Vec<Option<f64>> = names.iter().map(|name| value(row, name)).collect();
            let index = index + 1;
            let written = match self {
                Self::Olmix => writer.serialize((format!("mixpool-{index}"), &row.mixture, index, values)),
                Self::RegMix => writer.serialize((index, values)),
            };
            written.map_err(|error| failed(&error))?;
        }
        writer.into_inner().map_err(|error| failed(&error))
    }
}

/// `RegMix`'s configuration of one run. Names of partitions and eval sets need no quotes in YAML behind these prefixes.
fn configuration(row: &Measured, partitions: &[String], evals: &[String]) -> String {
    let weight = |name: &String| {
        let weight = row.weights.get(name).copied().unwrap_or(0.0);
        format!("  train_{name}: {weight:?}\n")
    };
    let train: String = partitions.iter().map(weight).collect();
    let valid: String = evals.iter().map(|name| format!("  valid_{name}: 1.0\n")).collect();
    format!("train:\n{train}valid:\n{valid}model_name: mixpool\n")
}
