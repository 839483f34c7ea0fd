//! Calibrated: an estimator whose losses are shifted by what a few trained models say.
//!
//! Losses of merges lie a nearly constant distance from losses of trained models. The shift of an eval set is the mean of
//! true minus predicted loss over mixtures that are not judged; it changes no order.

use super::design::{Purpose, draw};
use super::ground_truth::GroundTruth;
use super::{Cost, Estimator, Question};
use crate::error::Result;
use crate::mixture::Mixture;

pub(super) struct Calibrated<'a> {
    inner: Box<dyn Estimator + 'a>,
    offsets: Vec<f64>, // per eval set
    truth: Cost,
}

impl<'a> Calibrated<'a> {
    /// Trains `n` mixtures to learn the offsets from.
    pub(super) fn new(mut inner: Box<dyn Estimator + 'a>, question: &Question<'a>, n: usize) -> Result<Self> {
        let mixtures = draw(question, n, Purpose::Calibration)?;
        let predicted = inner.estimate(&mixtures)?;
        let mut truth = GroundTruth::new(question, 0)?;
        let trained = truth.estimate(&mixtures)?;
        let offset = |eval: usize| {
            let differences =
                trained.iter().zip(&predicted).map(|(trained, predicted)| trained[eval] - predicted[eval]);
            differences.sum::<f64>() / mixtures.len().max(1) as f64
        };
        let offsets = (0..question.evals.len()).map(offset).collect();
        Ok(Self { inner, offsets, truth: truth.cost() })
    }
}

impl Estimator for Calibrated<'_> {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        let mut estimates = self.inner.estimate(mixtures)?;
        for losses in &mut estimates {
            losses.iter_mut().zip(&self.offsets).for_each(|(loss, offset)| *loss += offset);
        }
        Ok(estimates)
    }

    fn cost(&self) -> Cost {
        self.inner.cost() + self.truth
    }
}
