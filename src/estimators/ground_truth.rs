//! Ground truth: the loss of a model really trained on the mixture.

use super::merged::losses;
use super::{Cost, Estimator, OptionRow, Options, Question};
use crate::error::Result;
use crate::mixture::Mixture;
use crate::pool::{Pool, Scorer};
use crate::progress::Observer;

pub(super) const OPTIONS: &[OptionRow] =
    &[OptionRow { name: "repeat", default: "0", help: "which repetition: each draws its batches in another order" }];

pub(super) fn fit<'a>(question: &Question<'a>, options: &Options) -> Result<Box<dyn Estimator + 'a>> {
    Ok(Box::new(GroundTruth::new(question, options.number("repeat")?)?))
}

/// Models trained on mixtures.
pub(super) struct GroundTruth<'a> {
    pool: &'a Pool,
    scorer: Scorer<'a>,
    tokens: Option<u64>,
    repeat: u64,
    observer: &'a dyn Observer,
    cost: Cost,
}

impl<'a> GroundTruth<'a> {
    pub(super) fn new(question: &Question<'a>, repeat: u64) -> Result<Self> {
        let Question { pool, evals, tokens, observer, .. } = *question;
        Ok(Self { pool, scorer: pool.scorer(evals)?, tokens, repeat, observer, cost: Cost::default() })
    }
}

impl Estimator for GroundTruth<'_> {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        self.pool.get_or_train(&self.pool.seed_recipe()?, "seed model", self.observer)?;
        let recipe = |(index, mixture): (usize, &Mixture)| {
            let name = format!("truth {}/{} {mixture}", index + 1, mixtures.len());
            Ok((self.pool.mixture_recipe(mixture, self.tokens)?.repeated(self.repeat), name))
        };
        let recipes = mixtures.iter().enumerate().map(recipe).collect::<Result<Vec<_>>>()?;
        self.pool.train_side_by_side(&recipes, self.observer)?;
        let mut scored = Vec::with_capacity(mixtures.len());
        for (index, (mixture, (recipe, name))) in mixtures.iter().zip(&recipes).enumerate() {
            let manifest = self.pool.get_or_train(recipe, name, self.observer)?;
            let model = self.pool.single(&manifest);
            scored.push(self.scorer.score_as(&model, &mixture.to_string(), "ground-truth", self.observer)?);
            self.cost += Cost::of_training(&manifest);
            self.cost += Cost::of_scoring(&scored[index], self.pool.layout().len());
        }
        Ok(losses(&scored))
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}
