//! Mixing law: loss as a constant plus an exponential of the mixture's weights, fitted per eval set.
//!
//! Ye et al. 2024 (arXiv 2403.16952): L(r) = c + k exp(Σⱼ tⱼ rⱼ), fitted by L-BFGS on the Huber loss from many random
//! starts. c and k are kept above 0, as in the authors' program, which fits their logarithms.
//!
//! Olmix (arXiv 2602.12237) writes c + exp(Σⱼ aⱼ rⱼ). Where weights sum to one that is the same family, aⱼ = tⱼ + ln k, so
//! there is no separate form to choose. For the same reason k and t are not determined one by one: compare predictions.
//! From Olmix are the defaults of δ and of the size of the design, 3 (K + 1) for K partitions.
//!
//! The papers train every mixture of the design. Here `labels=merged` scores merged experts instead, which costs no
//! training and fits the surface that merging sees; `labels=trained` is theirs.

use super::design::{self, Design};
use super::lbfgs::{Limits, Point, minimize};
use super::{Cost, Estimator, OptionRow, Options, Question, weights};
use crate::error::{Error, Result};
use crate::mixture::Mixture;
use crate::resample;
use crate::rng::Stream;
use rayon::prelude::*;
use std::time::Instant;

pub(super) const OPTIONS: &[OptionRow] = &[
    design::LABELS,
    design::SIZE,
    OptionRow { name: "starts", default: "32", help: "random starts of the fit; the lowest minimum is kept" },
    OptionRow { name: "delta", default: "0.02", help: "δ of the Huber loss, nats: beyond it errors count linearly" },
];

pub(super) fn fit<'a>(question: &Question<'a>, options: &Options) -> Result<Box<dyn Estimator + 'a>> {
    let how = LawFit { delta: options.number("delta")?, starts: options.number("starts")? };
    how.check()?;
    Ok(Box::new(MixingLaw::new(question, Design::asked(question, options)?, how)?))
}

/// How a law is fitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LawFit {
    /// δ of the Huber loss in the unit of the losses: r² / 2 up to it, δ (|r| − δ / 2) beyond. Ye et al. take 0.01 to
    /// 0.08, Olmix 0.02.
    pub delta: f64,
    /// Random starts.
    pub starts: usize,
}

impl Default for LawFit {
    fn default() -> Self {
        Self { delta: 0.02, starts: 32 }
    }
}

impl LawFit {
    fn check(&self) -> Result<()> {
        if !(self.delta > 0.0 && self.delta.is_finite()) {
            return Err(Error::Usage(format!("option 'delta={}': expected a number above 0", self.delta)));
        }
        if self.starts == 0 {
            return Err(Error::Usage("option 'starts=0': expected at least one start".into()));
        }
        Ok(())
    }
}

/// A fitted law of one eval set.
#[derive(Debug, Clone, PartialEq)]
pub struct Law {
    /// ln c: the logarithm of the loss that no mixture gets below.
    pub log_floor: f64,
    /// ln k.
    pub log_scale: f64,
    /// t, one per partition: negative where data of the partition lowers the loss.
    pub exponents: Vec<f64>,
    /// The mean Huber loss over the design.
    pub objective: f64,
}

/// Exponents above this are cut off: e⁶⁰ nats is no loss, and an overflow would end the search.
const LARGEST_EXPONENT: f64 = 60.0;
const LIMITS: Limits = Limits { steps: 5000, decrease: 1e-13, gradient: 1e-9 };

impl Law {
    /// The best law of `how.starts` searches; `weights` holds one mixture a row, `losses` its loss.
    ///
    /// A start draws c uniformly between 0 and the smallest loss, every tⱼ from the standard normal distribution, and
    /// puts k where c + k is the mean loss. The same arguments give the same law.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no mixture, rows differ in length, or a loss is not above 0; [`Error::Usage`] when
    /// `how` makes no sense.
    pub fn fit(weights: &[Vec<f64>], losses: &[f64], how: LawFit) -> Result<Self> {
        how.check()?;
        let data = Data::new(weights, losses, how.delta)?;
        let found = (0..how.starts).into_par_iter().map(|start| data.search(data.start(start)));
        let found: Vec<Point> = found.collect();
        let best = found.into_iter().min_by(|a, b| a.value.total_cmp(&b.value));
        best.map(Self::from_point).ok_or_else(|| Error::Usage("expected at least one start".into()))
    }

    /// The loss it gives a mixture, nats per token.
    pub fn predict(&self, weights: &[f64]) -> f64 {
        let exponent: f64 = self.exponents.iter().zip(weights).map(|(t, weight)| t * weight).sum();
        self.log_floor.exp() + (self.log_scale + exponent).min(LARGEST_EXPONENT).exp()
    }

    /// This law fitted again, from where it is, to each of `resamples` resamples of the design it was fitted on.
    ///
    /// # Errors
    /// As [`Law::fit`].
    pub fn resampled(&self, weights: &[Vec<f64>], losses: &[f64], how: LawFit, resamples: usize) -> Result<Vec<Self>> {
        Data::new(weights, losses, how.delta)?; // so that one message names the design, not a resample
        let again = |resample: usize| {
            let mut stream = Stream::new(resample as u64, "mixing law resample");
            let rows = resample::rows(&mut stream, losses.len());
            let (weights, losses): (Vec<_>, Vec<_>) =
                rows.into_iter().map(|row| (weights[row].clone(), losses[row])).unzip();
            Ok(Self::from_point(Data::new(&weights, &losses, how.delta)?.search(self.parameters())))
        };
        (0..resamples).into_par_iter().map(again).collect()
    }

    fn parameters(&self) -> Vec<f64> {
        [&[self.log_floor, self.log_scale], self.exponents.as_slice()].concat()
    }

    fn from_point(point: Point) -> Self {
        let exponents = point.at[2..].to_vec();
        Self { log_floor: point.at[0], log_scale: point.at[1], exponents, objective: point.value }
    }
}

/// What a law is fitted to. Parameters are ln c, ln k, t.
struct Data<'a> {
    weights: Vec<f64>, // row after row
    partitions: usize,
    losses: &'a [f64],
    delta: f64,
}

impl<'a> Data<'a> {
    fn new(weights: &[Vec<f64>], losses: &'a [f64], delta: f64) -> Result<Self> {
        design::check(weights, losses)?;
        if let Some(loss) = losses.iter().find(|loss| **loss <= 0.0) {
            return Err(Error::input("the design of a mixing law", format!("expected losses above 0, got {loss}")));
        }
        Ok(Self { weights: weights.concat(), partitions: weights[0].len(), losses, delta })
    }

    fn start(&self, index: usize) -> Vec<f64> {
        let mut stream = Stream::new(index as u64, "mixing law start");
        let smallest = self.losses.iter().copied().fold(f64::INFINITY, f64::min);
        let mean = self.losses.iter().sum::<f64>() / self.losses.len() as f64;
        let floor = smallest * stream.uniform().max(f64::EPSILON);
        // With equal losses and a floor at them nothing would be left for k.
        let mut start = vec![floor.ln(), (mean - floor).max(f64::EPSILON * mean).ln()];
        start.extend((0..self.partitions).map(|_| stream.normal()));
        start
    }

    fn search(&self, start: Vec<f64>) -> Point {
        minimize(start, LIMITS, |at, gradient| self.huber(at, gradient))
    }

    /// The mean Huber loss and its gradient.
    fn huber(&self, at: &[f64], gradient: &mut [f64]) -> f64 {
        let (floor, log_scale, exponents) = (at[0].exp(), at[1], &at[2..]);
        gradient.fill(0.0);
        let mut sum = 0.0;
        for (row, loss) in self.weights.chunks_exact(self.partitions).zip(self.losses) {
            let exponent = log_scale + row.iter().zip(exponents).map(|(weight, t)| weight * t).sum::<f64>();
            let term = exponent.min(LARGEST_EXPONENT).exp();
            let error = floor + term - loss;
            let slope = error.clamp(-self.delta, self.delta);
            sum += slope.abs() * (error.abs() - slope.abs() / 2.0);
            gradient[0] += slope;
            gradient[1] += slope * term;
            gradient[2..].iter_mut().zip(row).for_each(|(gradient, weight)| *gradient += slope * term * weight);
        }
        gradient[0] *= floor;
        let n = self.losses.len() as f64;
        gradient.iter_mut().for_each(|gradient| *gradient /= n);
        sum / n
    }
}

/// One law per eval set of a question.
pub struct MixingLaw {
    partitions: Vec<String>,
    design: Design,
    how: LawFit,
    laws: Vec<Law>,
    seconds: f64,
}

impl MixingLaw {
    /// Fits a law to the losses of a design on every eval set.
    ///
    /// # Errors
    /// Those of [`Law::fit`].
    pub fn new(question: &Question<'_>, design: Design, how: LawFit) -> Result<Self> {
        let (begin, partitions) = (Instant::now(), question.partitions()?);
        let evals = design.losses.first().map_or(0, Vec::len);
        let laws = (0..evals).map(|eval| Law::fit(&design.weights, &design.losses_on(eval), how));
        let laws = laws.collect::<Result<_>>()?;
        Ok(Self { partitions, design, how, laws, seconds: begin.elapsed().as_secs_f64() })
    }

    /// The laws, one per eval set.
    pub fn laws(&self) -> &[Law] {
        &self.laws
    }

    /// Bootstrap intervals of the predictions, (low, high) per mixture and eval set: what the laws of resampled designs
    /// predict, its central fraction `level`. They say how far the design determines the law, not whether the law holds.
    ///
    /// # Errors
    /// [`Error::Usage`] when `resamples` is 0; those of [`Law::resampled`].
    pub fn intervals(&self, mixtures: &[Mixture], resamples: usize, level: f64) -> Result<Vec<Vec<(f64, f64)>>> {
        let again = |(eval, law): (usize, &Law)| {
            law.resampled(&self.design.weights, &self.design.losses_on(eval), self.how, resamples)
        };
        let laws = self.laws.iter().enumerate().map(again).collect::<Result<Vec<_>>>()?;
        let interval = |laws: &Vec<Law>, weights: &[f64]| {
            let predictions = laws.iter().map(|law| law.predict(weights)).collect();
            let none = || Error::Usage("intervals need at least one resample".into());
            resample::interval(predictions, level).ok_or_else(none)
        };
        let of = |mixture: &Mixture| {
            let weights = weights(mixture, &self.partitions);
            laws.iter().map(|laws| interval(laws, &weights)).collect()
        };
        mixtures.iter().map(of).collect()
    }
}

impl Estimator for MixingLaw {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        let of = |mixture: &Mixture| {
            let weights = weights(mixture, &self.partitions);
            self.laws.iter().map(|law| law.predict(&weights)).collect()
        };
        Ok(mixtures.iter().map(of).collect())
    }

    fn cost(&self) -> Cost {
        self.design.cost + Cost::of_seconds(self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A design of `n` mixtures of three partitions, and the losses of a known law, with noise.
    fn simulated(n: usize, noise: f64) -> (Vec<Vec<f64>>, Vec<f64>) {
        let mut stream = Stream::new(2, "simulated design");
        let weights: Vec<Vec<f64>> = (0..n)
            .map(|_| {
                let parts: [f64; 3] = std::array::from_fn(|_| -(1.0 - stream.uniform()).ln());
                parts.iter().map(|part| part / parts.iter().sum::<f64>()).collect()
            })
            .collect();
        let losses = weights.iter().map(|weights| truth(weights) + noise * stream.normal()).collect();
        (weights, losses)
    }

    /// c = 2, k = 1.5, t = (−3, 0.5, −0.2).
    fn truth(weights: &[f64]) -> f64 {
        2.0 + 1.5 * (-3.0 * weights[0] + 0.5 * weights[1] - 0.2 * weights[2]).exp()
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let (weights, losses) = simulated(20, 0.1);
        let data = Data::new(&weights, &losses, 0.05).unwrap();
        let at = data.start(0);
        let (mut gradient, mut unused) = (vec![0.0; at.len()], vec![0.0; at.len()]);
        data.huber(&at, &mut gradient);
        for i in 0..at.len() {
            let mut moved = |by: f64| {
                let mut at = at.clone();
                at[i] += by;
                data.huber(&at, &mut unused)
            };
            let numeric = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((numeric - gradient[i]).abs() < 1e-8, "{i}: {numeric} and {}", gradient[i]);
        }
    }

    #[test]
    fn an_exact_law_is_recovered() {
        let (weights, losses) = simulated(12, 0.0);
        let law = Law::fit(&weights, &losses, LawFit { starts: 8, ..LawFit::default() }).unwrap();
        let fresh = simulated(60, 0.0);
        let worst = fresh.0.iter().zip(&fresh.1).map(|(w, loss)| (law.predict(w) - loss).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-4, "{worst:e} {law:?}"); // a mean Huber loss of 1e-9 is an error of 4e-5
        assert!((law.log_floor.exp() - 2.0).abs() < 1e-3, "{law:?}");
    }

    #[test]
    fn an_outlier_counts_linearly() {
        let (weights, mut losses) = simulated(30, 0.0);
        losses[7] += 1.0;
        let law = Law::fit(&weights, &losses, LawFit::default()).unwrap();
        assert!((law.predict(&weights[3]) - losses[3]).abs() < 0.01, "{law:?}");
        assert!((law.objective - 0.02 * 0.99 / 30.0).abs() < 1e-4, "{law:?}");
    }

    #[test]
    fn intervals_hold_the_truth_and_narrow_with_the_noise() {
        let how = LawFit { delta: 0.02, starts: 8 };
        let width = |noise: f64| {
            let (weights, losses) = simulated(60, noise);
            let law = Law::fit(&weights, &losses, how).unwrap();
            let laws = law.resampled(&weights, &losses, how, 100).unwrap();
            let at = [1.0 / 3.0; 3];
            let (low, high) = resample::interval(laws.iter().map(|law| law.predict(&at)).collect(), 0.99).unwrap();
            assert!(low < truth(&at) && truth(&at) < high, "noise {noise}: {low} to {high}, truth {}", truth(&at));
            high - low
        };
        let (loud, quiet) = (width(0.02), width(0.002));
        // The mean of 60 losses has a standard error of σ/√60 = 0.0026, and 99 % of 5.2 of them, 0.013, or somewhat more.
        assert!((0.006..0.04).contains(&loud) && quiet < loud / 4.0, "{loud} and {quiet}");
    }

    #[test]
    fn a_design_that_cannot_be_fitted_is_refused() {
        let fit = |weights: &[Vec<f64>], losses: &[f64]| Law::fit(weights, losses, LawFit::default());
        assert!(fit(&[], &[]).is_err());
        assert!(fit(&[vec![1.0]], &[1.0, 2.0]).is_err());
        assert!(fit(&[vec![1.0], vec![0.5, 0.5]], &[1.0, 2.0]).is_err());
        assert!(fit(&[vec![1.0]], &[0.0]).is_err());
        assert!(fit(&[vec![1.0]], &[f64::NAN]).is_err());
        let law = fit(&[vec![1.0], vec![1.0]], &[3.0, 3.0]).unwrap();
        assert!((law.predict(&[1.0]) - 3.0).abs() < 1e-3, "{law:?}");
    }
}
