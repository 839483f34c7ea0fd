//! Noise: how much of the truth's spread is chance, and the correlation that leaves for a perfect predictor.
//!
//! Train a mixture twice, with its batches in another order, and the losses differ. A predictor that knew the expected
//! loss μ of every mixture would still not correlate perfectly with single runs y = μ + ε: its Pearson correlation is
//! `σ_μ / σ_y = √(1 − σ_ε² / σ_y²)`, the square root of the reliability of y (Spearman 1904).

use serde::Serialize;

/// Noise of ground-truth runs on one eval set, in nats per token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Noise {
    /// `σ_ε`, the standard deviation of runs of one mixture.
    pub sigma: f64,
    /// `σ_y`, the standard deviation of single runs over the mixtures judged.
    pub spread: f64,
    /// `√(1 − σ_ε² / σ_y²)`, 0 where the noise exceeds the spread: the Pearson correlation of a perfect predictor.
    pub ceiling: f64,
}

impl Noise {
    /// Noise from repeated runs: `runs` holds the losses of every run of each repeated mixture, `truth` one loss of each
    /// mixture judged.
    ///
    /// The variance within mixtures is pooled and unbiased, Σ (y − ȳ)² / Σ (repeats − 1): mixtures run once add nothing.
    /// None where it is undefined: no mixture was run twice, fewer than two are judged, all of those have one loss, or a
    /// loss is not finite.
    ///
    /// # Examples
    /// ```
    /// use mixpool::rank::Noise;
    /// let noise = Noise::of(&[vec![2.0, 2.2], vec![3.1, 2.9]], &[2.0, 3.1, 2.5]).ok_or("undefined")?;
    /// assert!((noise.sigma - 0.02_f64.sqrt()).abs() < 1e-12);
    /// # Ok::<(), &str>(())
    /// ```
    pub fn of(runs: &[Vec<f64>], truth: &[f64]) -> Option<Self> {
        let degrees: usize = runs.iter().map(|runs| runs.len().saturating_sub(1)).sum();
        let finite = runs.iter().flatten().chain(truth).all(|loss| loss.is_finite());
        if degrees == 0 || truth.len() < 2 || !finite {
            return None;
        }
        let noise = runs.iter().map(|runs| squares(runs)).sum::<f64>() / degrees as f64;
        let total = squares(truth) / (truth.len() - 1) as f64;
        let ceiling = (1.0 - noise / total).max(0.0).sqrt();
        (total > 0.0).then(|| Self { sigma: noise.sqrt(), spread: total.sqrt(), ceiling })
    }
}

/// Σ (x − x̄)².
fn squares(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    values.iter().map(|value| (value - mean).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank::agreement::pearson;
    use crate::rng::Stream;

    #[test]
    fn simulated_noise_is_found_and_bounds_a_perfect_predictor() {
        let (mixtures, repeats, sigma) = (4000, 3, 0.5);
        let mut stream = Stream::new(9, "noise");
        let expected: Vec<f64> = (0..mixtures).map(|_| stream.normal()).collect();
        let runs: Vec<Vec<f64>> =
            expected.iter().map(|mean| (0..repeats).map(|_| mean + sigma * stream.normal()).collect()).collect();
        let truth: Vec<f64> = runs.iter().map(|runs| runs[0]).collect();
        let noise = Noise::of(&runs, &truth).unwrap();
        // Four standard errors of a deviation σ over ν degrees of freedom, 4 σ / √(2ν).
        assert!((noise.sigma - sigma).abs() < 4.0 * sigma / (2.0 * 8000.0_f64).sqrt(), "{noise:?}");
        assert!((noise.spread - 1.25_f64.sqrt()).abs() < 4.0 * 1.25_f64.sqrt() / 8000.0_f64.sqrt(), "{noise:?}");
        // √(1 / 1.25) in expectation; the correlation measured has a standard error of (1 − ρ²) / √n = 0.0032.
        assert!((noise.ceiling - 0.8_f64.sqrt()).abs() < 0.0128, "{noise:?}");
        assert!((noise.ceiling - pearson(&expected, &truth).unwrap()).abs() < 0.0128, "{noise:?}");
    }

    #[test]
    fn unequal_repeats_are_pooled_by_their_degrees_of_freedom() {
        let noise = Noise::of(&[vec![1.0, 3.0], vec![5.0], vec![0.0, 3.0, 6.0]], &[0.0, 10.0]).unwrap();
        assert_eq!(noise.sigma, (20.0_f64 / 3.0).sqrt()); // (2 + 18) / (1 + 2)
        assert_eq!(noise.spread, 50.0_f64.sqrt());
    }

    #[test]
    fn undefined_noise_is_none_and_noise_alone_leaves_nothing() {
        let repeated = [vec![1.0, 2.0]];
        assert_eq!(Noise::of(&[vec![1.0], vec![2.0]], &[1.0, 2.0]), None);
        assert_eq!(Noise::of(&repeated, &[1.0]), None);
        assert_eq!(Noise::of(&repeated, &[1.0, 1.0]), None);
        assert_eq!(Noise::of(&repeated, &[1.0, f64::NAN]), None);
        assert_eq!(Noise::of(&repeated, &[1.0, 1.1]).map(|noise| noise.ceiling), Some(0.0));
    }
}
