//! Regression: loss as a function of a mixture's weights, learnt per eval set; a line or boosted trees.
//!
//! `RegMix`, Liu et al. 2024 (arXiv 2407.01492). The linear model is least squares with an intercept; as weights sum to one,
//! intercept and weights are collinear, and the shortest of the equally good solutions is taken. The trees are those of
//! the crate `forust-ml`: histogram splits, grown leaf by leaf as `LightGBM` grows them, with `RegMix`'s settings. There is no
//! early stopping: the notebook of the paper stops on the mixtures it is then judged by.
//!
//! The paper trains 512 mixtures. Our designs are smaller by default, and the fewest rows of a leaf shrink with them.

use super::design::{self, Design};
use super::{Cost, Estimator, OptionRow, Options, Question, weights};
use crate::error::{Error, Result};
use crate::mixture::Mixture;
use forust_ml::gradientbooster::GrowPolicy;
use forust_ml::objective::ObjectiveType;
use forust_ml::{GradientBooster, Matrix};
use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;
use std::time::Instant;

pub(super) const OPTIONS: &[OptionRow] = &[
    OptionRow { name: "model", default: "linear", help: "linear or trees" },
    design::LABELS,
    design::SIZE,
    OptionRow { name: "rounds", default: "1000", help: "trees" },
    OptionRow { name: "rate", default: "0.01", help: "what each tree is multiplied by" },
    OptionRow { name: "leaves", default: "31", help: "leaves of a tree at most" },
    OptionRow { name: "rows", default: "0", help: "mixtures in a leaf at least; 0 for 20 of 512 and as many of fewer" },
];

pub(super) fn fit<'a>(question: &Question<'a>, options: &Options) -> Result<Box<dyn Estimator + 'a>> {
    let how = match options.text("model") {
        "linear" => None,
        "trees" => Some(TreesFit::asked(options)?),
        model => return Err(Error::Usage(format!("option 'model={model}': expected linear or trees"))),
    };
    let (design, partitions) = (Design::asked(question, options)?, question.partitions()?);
    let begin = Instant::now();
    let evals = 0..design.losses.first().map_or(0, Vec::len);
    let fit = |eval: usize| {
        let losses = design.losses_on(eval);
        match how {
            None => Linear::fit(&design.weights, &losses).map(Model::Linear),
            Some(how) => Trees::fit(&design.weights, &losses, how).map(|trees| Model::Trees(Box::new(trees))),
        }
    };
    let models = evals.into_par_iter().map(fit).collect::<Result<_>>()?;
    let cost = design.cost + Cost::of_seconds(begin.elapsed().as_secs_f64());
    Ok(Box::new(Regression { partitions, models, cost }))
}

/// One model per eval set.
struct Regression {
    partitions: Vec<String>,
    models: Vec<Model>,
    cost: Cost,
}

enum Model {
    Linear(Linear),
    Trees(Box<Trees>),
}

impl Estimator for Regression {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        let weights: Vec<Vec<f64>> = mixtures.iter().map(|mixture| weights(mixture, &self.partitions)).collect();
        let per_eval = self.models.iter().map(|model| match model {
            Model::Linear(linear) => Ok(weights.iter().map(|weights| linear.predict(weights)).collect()),
            Model::Trees(trees) => trees.predict(&weights),
        });
        let per_eval = per_eval.collect::<Result<Vec<Vec<f64>>>>()?;
        Ok((0..mixtures.len()).map(|row| per_eval.iter().map(|losses| losses[row]).collect()).collect())
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}

/// A fitted line: intercept + Σⱼ coefficientⱼ weightⱼ.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// The prediction where all weights are 0, which no mixture has.
    pub intercept: f64,
    /// One per partition.
    pub coefficients: Vec<f64>,
}

impl Linear {
    /// Least squares; `weights` holds one mixture a row, `losses` its loss. Where several lines fit equally well, the one
    /// with the smallest coefficients: weights and losses are centred and solved by singular values.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no mixture, rows differ in length or a number is not finite.
    pub fn fit(weights: &[Vec<f64>], losses: &[f64]) -> Result<Self> {
        design::check(weights, losses)?;
        let (n, partitions) = (weights.len(), weights[0].len());
        let centre: Vec<f64> =
            (0..partitions).map(|column| weights.iter().map(|row| row[column]).sum::<f64>() / n as f64).collect();
        let mean = losses.iter().sum::<f64>() / n as f64;
        let matrix = DMatrix::from_fn(n, partitions, |row, column| weights[row][column] - centre[column]);
        let target = DVector::from_iterator(n, losses.iter().map(|loss| loss - mean));
        let svd = matrix.svd(true, true);
        // What rounding leaves of a singular value that is 0: weights are below 1 in size.
        let cutoff = f64::EPSILON * n.max(partitions) as f64 * svd.singular_values.max().max(1.0);
        let solved = svd.solve(&target, cutoff);
        let solved = solved.map_err(|problem| Error::input("the design of a regression", problem))?;
        let coefficients: Vec<f64> = solved.iter().copied().collect();
        let intercept = mean - coefficients.iter().zip(&centre).map(|(b, x)| b * x).sum::<f64>();
        Ok(Self { intercept, coefficients })
    }

    /// The loss it gives a mixture.
    pub fn predict(&self, weights: &[f64]) -> f64 {
        self.intercept + self.coefficients.iter().zip(weights).map(|(b, weight)| b * weight).sum::<f64>()
    }
}

/// How trees are grown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TreesFit {
    /// How many.
    pub rounds: usize,
    /// What each is multiplied by.
    pub rate: f32,
    /// Leaves of each at most.
    pub leaves: usize,
    /// Mixtures in a leaf at least; 0 for 20 or, of fewer than 512 mixtures, as large a part of them.
    pub rows: usize,
}

impl Default for TreesFit {
    /// The settings of `RegMix`.
    fn default() -> Self {
        Self { rounds: 1000, rate: 0.01, leaves: 31, rows: 0 }
    }
}

impl TreesFit {
    fn asked(options: &Options) -> Result<Self> {
        let how = Self {
            rounds: options.number("rounds")?,
            rate: options.number("rate")?,
            leaves: options.number("leaves")?,
            rows: options.number("rows")?,
        };
        if how.rounds == 0 || how.leaves < 2 || !(how.rate > 0.0 && how.rate <= 1.0) {
            let expected = "expected at least 1 round, 2 leaves and a rate above 0 and at most 1";
            return Err(Error::Usage(format!(
                "options 'rounds={},leaves={},rate={}': {expected}",
                how.rounds, how.leaves, how.rate
            )));
        }
        Ok(how)
    }

    fn rows_of(self, mixtures: usize) -> usize {
        if self.rows == 0 { (20 * mixtures / 512).clamp(1, 20) } else { self.rows }
    }
}

/// Fitted trees.
pub struct Trees {
    booster: GradientBooster,
    partitions: usize,
}

impl Trees {
    /// Boosts trees on squared errors; `weights` holds one mixture a row, `losses` its loss. Nothing is random.
    ///
    /// # Errors
    /// As [`Linear::fit`].
    pub fn fit(weights: &[Vec<f64>], losses: &[f64], how: TreesFit) -> Result<Self> {
        design::check(weights, losses)?;
        let partitions = weights[0].len();
        let mut booster = GradientBooster::default()
            .set_objective_type(ObjectiveType::SquaredLoss)
            .set_iterations(how.rounds)
            .set_learning_rate(how.rate)
            .set_max_depth(usize::MAX)
            .set_max_leaves(how.leaves)
            .set_min_leaf_weight(how.rows_of(weights.len()) as f32) // each row weighs 1
            .set_l2(0.0)
            .set_nbins(255)
            .set_initialize_base_score(true) // start from the mean loss
            .set_parallel(false);
        booster.grow_policy = GrowPolicy::LossGuide;
        let columns = by_column(weights, partitions);
        let fitted = booster.fit_unweighted(&Matrix::new(&columns, weights.len(), partitions), losses, None);
        fitted.map_err(|problem| Error::input("the design of a regression", problem.to_string()))?;
        Ok(Self { booster, partitions })
    }

    /// The losses they give mixtures, one a row.
    ///
    /// # Errors
    /// [`Error::Input`] when a row has another length than those of the design.
    pub fn predict(&self, weights: &[Vec<f64>]) -> Result<Vec<f64>> {
        if let Some(row) = weights.iter().find(|row| row.len() != self.partitions) {
            let problem = format!("expected {} weights a mixture, got {}", self.partitions, row.len());
            return Err(Error::input("mixtures to predict", problem));
        }
        let columns = by_column(weights, self.partitions);
        Ok(self.booster.predict(&Matrix::new(&columns, weights.len(), self.partitions), false))
    }
}

/// Rows as one column after the other.
fn by_column(rows: &[Vec<f64>], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|column| rows.iter().map(move |row| row[column])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_recovered_though_weights_sum_to_one() {
        let weights: Vec<Vec<f64>> =
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.3, 0.5, 0.2], [0.1, 0.1, 0.8]].map(Vec::from).into();
        let truth = |w: &[f64]| 2.0 * w[0] + 3.0 * w[1] + 7.0 * w[2];
        let losses: Vec<f64> = weights.iter().map(|weights| truth(weights)).collect();
        let line = Linear::fit(&weights, &losses).unwrap();
        assert!((line.predict(&[0.2, 0.2, 0.6]) - truth(&[0.2, 0.2, 0.6])).abs() < 1e-12, "{line:?}");
        // The shortest coefficients sum to 0, so that the intercept is the mean of the three losses.
        assert!((line.intercept - 4.0).abs() < 1e-12, "{line:?}");
    }

    #[test]
    fn fewer_mixtures_than_partitions_are_fitted_exactly() {
        let weights = [vec![0.5, 0.25, 0.25, 0.0], vec![0.1, 0.2, 0.3, 0.4]];
        let line = Linear::fit(&weights, &[2.0, 3.0]).unwrap();
        assert!((line.predict(&weights[0]) - 2.0).abs() < 1e-12 && (line.predict(&weights[1]) - 3.0).abs() < 1e-12);
    }

    #[test]
    fn trees_learn_a_step_and_predict_within_the_losses() {
        let weights: Vec<Vec<f64>> = (0..60).map(|i| vec![f64::from(i) / 60.0, 1.0 - f64::from(i) / 60.0]).collect();
        let losses: Vec<f64> = (0..60).map(|i| if i < 30 { 3.0 } else { 2.0 }).collect();
        let trees = Trees::fit(&weights, &losses, TreesFit::default()).unwrap();
        let got = trees.predict(&[vec![0.1, 0.9], vec![0.9, 0.1]]).unwrap();
        // 0.99¹⁰⁰⁰ of the distance to the mean remains.
        assert!((got[0] - 3.0).abs() < 1e-4 && (got[1] - 2.0).abs() < 1e-4, "{got:?}");
        assert!(trees.predict(&[vec![1.0]]).is_err());
    }

    #[test]
    fn one_mixture_or_one_partition_gives_the_mean() {
        let weights = [vec![1.0], vec![1.0]];
        assert_eq!(Linear::fit(&weights, &[1.0, 3.0]).unwrap().predict(&[1.0]), 2.0);
        assert_eq!(
            Trees::fit(&weights, &[1.0, 3.0], TreesFit::default()).unwrap().predict(&weights).unwrap(),
            [2.0; 2]
        );
        assert!(Linear::fit(&[], &[]).is_err());
    }

    #[test]
    fn leaves_shrink_with_the_design() {
        let rows = |mixtures| TreesFit::default().rows_of(mixtures);
        assert_eq!([5, 64, 256, 512, 5000].map(rows), [1, 2, 10, 20, 20]);
        assert_eq!(TreesFit { rows: 3, ..TreesFit::default() }.rows_of(5000), 3);
    }
}
