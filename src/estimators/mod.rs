//! Estimators: ways to predict the score of training on a mixture, behind one two-phase trait and in one table.
//!
//! A method pays its one-time cost in [`Method::fit`] and its marginal cost in [`Estimator::estimate`]; both are told by
//! [`Estimator::cost`], work that was cached included, so that methods can be compared fairly. Adding a method takes one
//! file, one row of [`METHODS`], one golden and one section of `docs/ESTIMATORS.md`.

mod answer;
mod calibrated;
mod cost;
mod derivatives;
mod design;
mod ensemble;
mod experts;
mod filter;
mod gradex;
mod ground_truth;
mod lbfgs;
mod less;
mod merged;
mod mixing_law;
mod mixmin;
mod online;
mod regmean;
mod regression;
mod shapley;
mod spec;

pub use answer::{Answer, ask, outdated, stored};
pub use cost::Cost;
pub use derivatives::{Order, STEP, Surrogate};
pub use design::{Design, Labels};
pub use ensemble::ensemble_loss;
pub use filter::{DocumentScores, Filter};
pub use gradex::{LinearityRow, Observation, linearity, logistic_regression};
pub use merged::score_all;
pub use mixing_law::{Law, LawFit, MixingLaw};
pub use mixmin::{Descent, Optimum, mixmin};
pub use regression::{Linear, Trees, TreesFit};
pub use shapley::{Contributions, contributions};
pub use spec::{OptionRow, Options, Spec};

use crate::error::Result;
use crate::mixture::Mixture;
use crate::pool::Pool;
use crate::progress::Observer;

/// What is asked: about which pool, on which eval sets. The truth that will judge the answer is not part of it.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// The pool, with all experts trained.
    pub pool: &'a Pool,
    /// Names of the eval sets; at least one.
    pub evals: &'a [String],
    /// Mixtures whose ground truth will judge the answer; nothing may be fitted on the truth of these.
    pub judged: &'a [Mixture],
    /// Training tokens of a ground-truth model; none for as many as the experts of its mixture had together.
    pub tokens: Option<u64>,
    /// Who is told how work proceeds.
    pub observer: &'a dyn Observer,
}

impl Question<'_> {
    /// The names of all partitions, in the order of every vector of weights.
    pub fn partitions(&self) -> Result<Vec<String>> {
        Ok(self.pool.unit_counts()?.into_keys().collect())
    }
}

/// The weights of a mixture over `partitions`, 0 for those it leaves out.
pub fn weights(mixture: &Mixture, partitions: &[String]) -> Vec<f64> {
    partitions.iter().map(|name| mixture.shares().get(name).map_or(0.0, |share| share.weight)).collect()
}

/// A method that has been fitted and answers for mixtures.
pub trait Estimator {
    /// Predictions for every mixture: one per eval set of the question, smaller is better, in the unit of the method's
    /// [`Gives`].
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>>;

    /// All it cost so far, as if nothing had been cached. Training of the seed model, which every method starts from, is
    /// not counted.
    fn cost(&self) -> Cost;
}

/// What a prediction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gives {
    /// A loss in nats per token.
    Loss,
    /// Only an order: smaller is predicted to be better.
    Order,
}

/// Fits a method to a question.
pub type Fit = for<'a> fn(&Question<'a>, &Options) -> Result<Box<dyn Estimator + 'a>>;

/// One row of the registry.
pub struct Method {
    /// How it is called on the command line.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// The paper it is from.
    pub source: &'static str,
    /// What its predictions are.
    pub gives: Gives,
    /// Whether it trains models besides the experts, whatever its options are; such a method answers only when it is asked.
    pub trains: bool,
    /// The options it takes, `name:key=value,...`.
    pub options: &'static [OptionRow],
    /// Its first phase.
    pub fit: Fit,
}

/// Every method.
pub const METHODS: &[Method] = &[
    Method {
        name: "merged",
        summary: "loss of the average of the mixture's experts",
        source: "Na et al. 2024, arXiv 2410.15661",
        gives: Gives::Loss,
        trains: false,
        options: merged::OPTIONS,
        fit: merged::fit,
    },
    Method {
        name: "mean-of-experts",
        summary: "weighted mean of the losses of the mixture's experts",
        source: "Na et al. 2024, arXiv 2410.15661",
        gives: Gives::Loss,
        trains: false,
        options: &[],
        fit: experts::fit_mean,
    },
    Method {
        name: "best-expert",
        summary: "loss of the best of the mixture's experts",
        source: "Na et al. 2024, arXiv 2410.15661",
        gives: Gives::Loss,
        trains: false,
        options: &[],
        fit: experts::fit_best,
    },
    Method {
        name: "first-order",
        summary: "loss of the merge, linear in the weights around the uniform merge",
        source: "after Fan et al. 2024, arXiv 2410.02498",
        gives: Gives::Loss,
        trains: false,
        options: &[],
        fit: derivatives::fit_first,
    },
    Method {
        name: "second-order",
        summary: "loss of the merge, quadratic in the weights around the uniform merge",
        source: "after Fan et al. 2024, arXiv 2410.02498",
        gives: Gives::Loss,
        trains: false,
        options: &[],
        fit: derivatives::fit_second,
    },
    Method {
        name: "ensemble",
        summary: "loss of the mixture of the experts' predictions",
        source: "MDE, arXiv 2502.15950",
        gives: Gives::Loss,
        trains: false,
        options: &[],
        fit: ensemble::fit,
    },
    Method {
        name: "mixing-law",
        summary: "a constant plus an exponential of the weights, fitted to a design",
        source: "Ye et al. 2024, arXiv 2403.16952",
        gives: Gives::Loss,
        trains: false,
        options: mixing_law::OPTIONS,
        fit: mixing_law::fit,
    },
    Method {
        name: "regression",
        summary: "a linear function of the weights or boosted trees, fitted to a design",
        source: "Liu et al. 2024, arXiv 2407.01492",
        gives: Gives::Loss,
        trains: false,
        options: regression::OPTIONS,
        fit: regression::fit,
    },
    Method {
        name: "regmean",
        summary: "loss of the mixture's experts merged by regression on their layers' inputs",
        source: "Jin et al. 2023, arXiv 2212.09849",
        gives: Gives::Loss,
        trains: false,
        options: regmean::OPTIONS,
        fit: regmean::fit,
    },
    Method {
        name: "gradex",
        summary: "loss after a step from a model of all partitions along the mixture's gradients",
        source: "Li et al. 2024, arXiv 2409.19458",
        gives: Gives::Loss,
        trains: true,
        options: gradex::OPTIONS,
        fit: gradex::fit,
    },
    Method {
        name: "gradex-linear",
        summary: "output after such a step, linear in it: no model is run",
        source: "Li et al. 2024, arXiv 2409.19458",
        gives: Gives::Order,
        trains: true,
        options: gradex::LINEAR_OPTIONS,
        fit: gradex::fit_linear,
    },
    Method {
        name: "shapley",
        summary: "what each partition contributed to the loss during one run on all of them",
        source: "Wang et al. 2024, arXiv 2406.11011",
        gives: Gives::Order,
        trains: true,
        options: shapley::OPTIONS,
        fit: shapley::fit,
    },
    Method {
        name: "less",
        summary: "how alike the optimiser's steps on each partition and the gradient of the eval set are",
        source: "Xia et al. 2024, arXiv 2402.04333",
        gives: Gives::Order,
        trains: true,
        options: less::OPTIONS,
        fit: less::fit,
    },
    Method {
        name: "dga",
        summary: "how much the gradients of the mixture's partitions point where the eval set's does, in a run that follows them",
        source: "Fan et al. 2024, arXiv 2410.02498",
        gives: Gives::Order,
        trains: true,
        options: online::DGA_OPTIONS,
        fit: online::fit_dga,
    },
    Method {
        name: "odm",
        summary: "distance to the mixture that a bandit over training losses drew",
        source: "Albalak et al. 2023, arXiv 2312.02406",
        gives: Gives::Order,
        trains: true,
        options: online::ODM_OPTIONS,
        fit: online::fit_odm,
    },
    Method {
        name: "ground-truth",
        summary: "loss of a model really trained on the mixture",
        source: "-",
        gives: Gives::Loss,
        trains: true,
        options: ground_truth::OPTIONS,
        fit: ground_truth::fit,
    },
];
