//! Design: the mixtures a regression is fitted on, and their losses, merged or really trained.

use super::ground_truth::GroundTruth;
use super::merged::Merged;
use super::{Cost, Estimator, OptionRow, Options, Question, weights};
use crate::error::{Error, Result};
use crate::mixture::Mixture;
use crate::search;
use std::collections::BTreeSet;

/// The option of every fitted method that says where its losses come from.
pub(super) const LABELS: OptionRow =
    OptionRow { name: "labels", default: "merged", help: "losses of the design from models merged or trained" };
/// The option of every fitted method that says how many mixtures it is fitted on.
pub(super) const SIZE: OptionRow =
    OptionRow { name: "design", default: "0", help: "mixtures it is fitted on; 0 for three per partition and three" };

/// Where the losses of a design come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// Merged experts: cheap, and biased as merging is.
    Merged,
    /// Models trained on the mixtures: what the papers do.
    Trained,
}

impl std::str::FromStr for Labels {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "merged" => Ok(Self::Merged),
            "trained" => Ok(Self::Trained),
            _ => Err(Error::Usage(format!("option 'labels={text}': expected merged or trained"))),
        }
    }
}

/// Mixtures and their losses.
pub struct Design {
    /// Weights over all partitions, in their order, of each mixture.
    pub weights: Vec<Vec<f64>>,
    /// Losses of each mixture, per eval set.
    pub losses: Vec<Vec<f64>>,
    /// What it took.
    pub cost: Cost,
}

impl Design {
    /// `n` mixtures, none of which is judged, with their losses: every partition alone first, then draws from Dirichlet
    /// distributions, half of them flat and half favouring few partitions.
    ///
    /// # Errors
    /// Those of scoring or of training.
    pub fn new(question: &Question<'_>, n: usize, labels: Labels) -> Result<Self> {
        let mixtures = draw(question, n, Purpose::Design)?;
        let partitions = question.partitions()?;
        let mut source: Box<dyn Estimator + '_> = match labels {
            Labels::Merged => Box::new(Merged::new(question, 0.0)?),
            Labels::Trained => Box::new(GroundTruth::new(question, 0)?),
        };
        let losses = source.estimate(&mixtures)?;
        let weights = mixtures.iter().map(|mixture| weights(mixture, &partitions)).collect();
        Ok(Self { weights, losses, cost: source.cost() })
    }

    /// The design that the options [`LABELS`] and [`SIZE`] ask for.
    pub(super) fn asked(question: &Question<'_>, options: &Options) -> Result<Self> {
        let labels = options.text("labels").parse()?;
        let n = match options.number("design")? {
            0 => 3 * (question.partitions()?.len() + 1),
            n => n,
        };
        Self::new(question, n, labels)
    }

    /// The losses of all mixtures on one eval set.
    pub fn losses_on(&self, eval: usize) -> Vec<f64> {
        self.losses.iter().map(|losses| losses[eval]).collect()
    }
}

/// Refuses what nothing can be fitted to.
pub(super) fn check(weights: &[Vec<f64>], losses: &[f64]) -> Result<()> {
    let refuse = |problem: String| Err(Error::input("the design of a fit", problem));
    let partitions = weights.first().map_or(0, Vec::len);
    if partitions == 0 {
        return refuse("expected at least one mixture of at least one partition, got none".into());
    }
    if weights.len() != losses.len() {
        return refuse(format!("expected one loss a mixture, got {} for {}", losses.len(), weights.len()));
    }
    if let Some(row) = weights.iter().find(|row| row.len() != partitions) {
        return refuse(format!("expected {partitions} weights a mixture, got {}", row.len()));
    }
    match weights.iter().flatten().chain(losses).find(|value| !value.is_finite()) {
        Some(value) => refuse(format!("expected finite weights and losses, got {value}")),
        None => Ok(()),
    }
}

/// What mixtures are drawn for. Each purpose has draws of its own, so that what one is fitted on is not what shifts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A fit over the whole simplex: every partition alone first.
    Design,
    /// The exponent of a merge.
    Exponent,
    /// The offset of an estimator.
    Calibration,
}

/// `n` mixtures that no truth is judged on; the same question gives the same ones.
pub(super) fn draw(question: &Question<'_>, n: usize, purpose: Purpose) -> Result<Vec<Mixture>> {
    let partitions = question.pool.unit_counts()?;
    let names = question.partitions()?;
    let alone = names.iter().filter(|_| purpose == Purpose::Design).map(|name| [(name.clone(), 1.0)].into());
    let draws = |seed, concentration| search::dirichlet(&names, 2 * n + 16, seed, concentration);
    let seed = if purpose == Purpose::Calibration { 3 } else { 1 };
    let (flat, few) = (draws(seed, 1.0)?, draws(seed + 1, 0.25)?);
    let in_turns = flat.into_iter().zip(few).flat_map(|(flat, few)| [flat, few]);
    let mut seen: BTreeSet<String> = question.judged.iter().map(Mixture::to_string).collect();
    let mut mixtures = Vec::with_capacity(n);
    for weights in alone.chain(in_turns) {
        let mixture = Mixture::from_weights(&weights, &partitions)?;
        if mixtures.len() < n && seen.insert(mixture.to_string()) {
            mixtures.push(mixture);
        }
    }
    Ok(mixtures)
}
