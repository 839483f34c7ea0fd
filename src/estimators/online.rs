//! Online: orders of mixtures from runs that looked for their own weights while they trained.
//!
//! `dga` runs gradient alignment once per eval set, whose first half of documents is the target, over all partitions, and
//! orders mixtures by −Σ wᵢ āᵢ with āᵢ the mean alignment of partition i over the run (`by=alignment`), or by their total
//! variation distance ½ Σ |wᵢ − ᾱᵢ| to the mean weights of the run (`by=distance`). `odm` runs online data mixing once, for
//! all eval sets, and orders by that distance; no target enters, so it says the same of every eval set.
//!
//! The papers recommend one mixture and order none: this is the order that their signal implies.

use super::{Cost, Estimator, OptionRow, Options, Question, weights};
use crate::error::{Error, Result};
use crate::mixture::Mixture;
use crate::pool::{Manifest, Online, OnlineRun};
use crate::train::{Dga, Method, Odm, Reward};
use std::collections::BTreeMap;

pub(super) const DGA_OPTIONS: &[OptionRow] = &[
    OptionRow { name: "by", default: "alignment", help: "order by mean alignment, or by distance to the mean weights" },
    OptionRow { name: "every", default: "5", help: "steps between two comparisons of gradients" },
    OptionRow { name: "rate", default: "10", help: "step size of the weights" },
    OptionRow { name: "ema", default: "0.1", help: "share of the new weights" },
    OptionRow { name: "probe", default: "4", help: "sequences of a mini-batch whose gradient is compared" },
    SEED,
];
pub(super) const ODM_OPTIONS: &[OptionRow] = &[
    OptionRow { name: "smoothing", default: "0.9", help: "how much of the old reward stays" },
    OptionRow { name: "reward", default: "loss", help: "loss (the paper) or perplexity (its code)" },
    SEED,
];
const SEED: OptionRow = OptionRow { name: "seed", default: "0", help: "seeds the draws" };

pub(super) fn fit_dga<'a>(question: &Question<'a>, options: &Options) -> Result<Box<dyn Estimator + 'a>> {
    let number = |name: &str| options.number::<f64>(name);
    let dga = Dga {
        every: options.number("every")?,
        rate: number("rate")?,
        ema: number("ema")?,
        probe: options.number("probe")?,
    };
    let by_alignment = match options.text("by") {
        "alignment" => true,
        "distance" => false,
        other => return Err(Error::Usage(format!("option 'by={other}': expected alignment or distance"))),
    };
    let mut rules = Vec::new();
    let mut cost = Cost::default();
    for eval in question.evals {
        let target = question.pool.target(eval, None)?;
        let online = Online { method: Method::Dga(dga.clone()), target: Some(target.share), basis: Vec::new() };
        let (run, manifest) = train(question, online, &format!("dga towards '{eval}'"), options.number("seed")?)?;
        cost += cost_of(&manifest);
        let values = if by_alignment { run.mean_alignments() } else { Some(run.average()) };
        let missing = || {
            let steps = manifest.recipe.train.steps;
            Error::Usage(format!(
                "dga: {steps} step(s) are too few to compare gradients every {}; lower 'every'",
                dga.every
            ))
        };
        let by_name = run.domains.into_iter().zip(values.ok_or_else(missing)?).collect();
        rules.push(if by_alignment { Rule::Gain(by_name) } else { Rule::Distance(by_name) });
    }
    Ok(Box::new(Ordered { partitions: question.partitions()?, rules, cost }))
}

pub(super) fn fit_odm<'a>(question: &Question<'a>, options: &Options) -> Result<Box<dyn Estimator + 'a>> {
    let reward = match options.text("reward") {
        "loss" => Reward::Loss,
        "perplexity" => Reward::Perplexity,
        other => return Err(Error::Usage(format!("option 'reward={other}': expected loss or perplexity"))),
    };
    let method = Method::Odm(Odm { smoothing: options.number("smoothing")?, reward });
    let online = Online { method, target: None, basis: Vec::new() };
    let (run, manifest) = train(question, online, "odm", options.number("seed")?)?;
    let weights: BTreeMap<String, f64> = run.domains.iter().cloned().zip(run.average()).collect();
    let rules = question.evals.iter().map(|_| Rule::Distance(weights.clone())).collect();
    Ok(Box::new(Ordered { partitions: question.partitions()?, rules, cost: cost_of(&manifest) }))
}

/// Trains one run over all partitions.
fn train(question: &Question<'_>, online: Online, name: &str, seed: u64) -> Result<(OnlineRun, Manifest)> {
    let Question { pool, tokens, observer, .. } = *question;
    let domains = pool.domains(&question.partitions()?, false)?;
    let equal = vec![1.0 / domains.len() as f64; domains.len()];
    pool.get_or_train(&pool.seed_recipe()?, "seed model", observer)?;
    let recipe = pool.online_recipe(&domains, online, &equal, tokens, seed)?;
    let manifest = pool.get_or_train(&recipe, name, observer)?;
    Ok((pool.online_run(&manifest)?, manifest))
}

/// What training the run took, its comparisons of gradients included.
fn cost_of(manifest: &Manifest) -> Cost {
    let extra = manifest.online.map_or(0, |online| online.gradient_tokens) as f64;
    let flops = 6.0 * manifest.n_parameters as f64 * extra;
    Cost::of_training(manifest) + Cost { flops, ..Cost::default() }
}

/// How one eval set orders mixtures, by name of partition.
enum Rule {
    /// By what the partitions gain: smaller is −Σ wᵢ gᵢ.
    Gain(BTreeMap<String, f64>),
    /// By half the sum of differences to these weights.
    Distance(BTreeMap<String, f64>),
}

struct Ordered {
    partitions: Vec<String>,
    rules: Vec<Rule>,
    cost: Cost,
}

impl Estimator for Ordered {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        let estimate = |mixture: &Mixture| {
            let weights = weights(mixture, &self.partitions);
            self.rules.iter().map(|rule| rule.order(&self.partitions, &weights)).collect()
        };
        Ok(mixtures.iter().map(estimate).collect())
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}

impl Rule {
    fn order(&self, partitions: &[String], weights: &[f64]) -> f64 {
        let of = |values: &BTreeMap<String, f64>, name: &String| values.get(name).copied().unwrap_or(0.0);
        let pairs = partitions.iter().zip(weights);
        match self {
            Self::Gain(gains) => -pairs.map(|(name, weight)| weight * of(gains, name)).sum::<f64>(),
            Self::Distance(to) => pairs.map(|(name, weight)| (weight - of(to, name)).abs()).sum::<f64>() / 2.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_by_gain_or_by_distance() {
        let names = ["a", "b", "c"].map(String::from);
        let values: BTreeMap<String, f64> = names.iter().cloned().zip([0.5, 0.25, 0.25]).collect();
        let at = |rule: &Rule, weights: &[f64]| rule.order(&names, weights);
        assert_eq!(at(&Rule::Gain(values.clone()), &[0.0, 1.0, 0.0]), -0.25);
        let distance = Rule::Distance(values);
        assert_eq!(at(&distance, &[0.5, 0.25, 0.25]), 0.0);
        assert_eq!(at(&distance, &[0.0, 0.0, 1.0]), 0.75);
    }
}
