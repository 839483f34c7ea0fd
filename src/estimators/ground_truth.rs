//! Ground truth: the loss of a model really trained on the mixture.

use super::merged::losses;
use super::{Cost, Estimator, OptionRow, Options, Question};
use crate::error::{Error, Result};
use crate::mixture::Mixture;
use crate::pool::{Pool, Scorer, parse_count};
use crate::progress::Observer;

pub(super) const OPTIONS: &[OptionRow] = &[
    OptionRow {
        name: "tokens",
        default: "",
        help: "training tokens of every model; none for as many as its experts had together",
    },
    OptionRow { name: "repeat", default: "0", help: "which repetition: each draws its batches in another order" },
];

pub(super) fn fit<'a>(question: &Question<'a>, options: &Options) -> Result<Box<dyn Estimator + 'a>> {
    let tokens = match options.text("tokens") {
        "" => question.tokens,
        text => Some(parse_count(text).filter(|n| *n > 0).ok_or_else(|| {
            Error::Usage(format!("option 'tokens={text}': expected a number such as 500000, 500k or 2M"))
        })?),
    };
    Ok(Box::new(GroundTruth::new(question, tokens, options.number("repeat")?)?))
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
    pub(super) fn new(question: &Question<'a>, tokens: Option<u64>, repeat: u64) -> Result<Self> {
        let (pool, observer) = (question.pool, question.observer);
        Ok(Self { pool, scorer: pool.scorer(question.evals)?, tokens, repeat, observer, cost: Cost::default() })
    }
}

impl Estimator for GroundTruth<'_> {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        self.pool.get_or_train(&self.pool.seed_recipe()?, "seed model", self.observer)?;
        let mut scored = Vec::with_capacity(mixtures.len());
        for (index, mixture) in mixtures.iter().enumerate() {
            let name = format!("truth {}/{} {mixture}", index + 1, mixtures.len());
            let recipe = self.pool.mixture_recipe(mixture, self.tokens)?.repeated(self.repeat);
            let manifest = self.pool.get_or_train(&recipe, &name, self.observer)?;
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
