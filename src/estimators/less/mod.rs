//! `LESS`: training text by how alike the optimiser's step on it and the gradient of an eval set are.
//!
//! Xia et al. 2024 (arXiv 2402.04333). At some checkpoints of a warm-up, with rates ηᵢ, a sequence z has influence
//!
//! Σᵢ ηᵢ / Σ η · cos(∇L(D; θᵢ), Γ(z; θᵢ))
//!
//! on an eval set D, where Γ = m̂ / (√v̂ + ε) is the step that the optimiser would take next with the gradient of z alone, from
//! the checkpoint's moments. What differs here:
//! * The paper tunes a `LoRA` adapter on instructions; here all parameters are trained on text, and a sequence is one
//!   training sequence or one window of a document. Rate, moments and ε are those of the pool's optimiser.
//! * ∇L is that of the whole eval set, as the paper writes it; its program takes the mean of cosines with single examples.
//! * The paper projects gradients to 8192 dimensions at random, to store them. Here only cosines are stored, so they are
//!   exact unless `dim` asks for the projection.

mod influence;
mod warmup;

use super::{Cost, Estimator, OptionRow, Options, Question};
use crate::error::{Error, Result};
use crate::mixture::Mixture;
use crate::pool::parse_count;
use crate::text::{Window, rolling_windows};
use influence::{Influence, Text};
use std::collections::BTreeMap;
use std::time::Instant;
use warmup::WarmUp;

pub(super) const OPTIONS: &[OptionRow] = &[
    OptionRow { name: "checkpoints", default: "4", help: "checkpoints of the warm-up" },
    OptionRow {
        name: "warmup",
        default: "0",
        help: "training tokens of the warm-up; 0 for those of a trained mixture, or else of an expert on average",
    },
    OptionRow { name: "dim", default: "0", help: "dimensions that gradients are projected to at random; 0 for none" },
    OptionRow { name: "sample", default: "32", help: "training sequences of every unit that stand for it" },
];

/// The most dimensions to project to.
const MAX_DIM: usize = 1 << 16;

fn influence<'a>(question: &Question<'a>, options: &Options) -> Result<Influence<'a>> {
    let dim: usize = options.number("dim")?;
    if dim > MAX_DIM {
        return Err(Error::Usage(format!("option 'dim={dim}': expected at most {MAX_DIM}")));
    }
    let text = options.text("warmup");
    let tokens = parse_count(text)
        .ok_or_else(|| Error::Usage(format!("option 'warmup={text}': expected a number such as 50000 or 50k")))?;
    Influence::new(question, WarmUp::new(question, options.number("checkpoints")?, tokens)?, dim)
}

pub(super) fn fit<'a>(question: &Question<'a>, options: &Options) -> Result<Box<dyn Estimator + 'a>> {
    let sample: usize = options.number("sample")?;
    if sample == 0 {
        return Err(Error::Usage("option 'sample=0': expected at least 1".into()));
    }
    let pool = question.pool;
    let (mut texts, mut units) = (Vec::new(), Vec::new());
    for (name, partition) in pool.partitions()? {
        for unit in 0..partition.units.len() {
            let recipe = pool.expert_recipe(&partition, unit)?;
            let (length, seed) = (recipe.train.sequence_length, recipe.train.seed);
            let mut batches = pool.batches(&recipe)?;
            let n = sample.min(batches.blocks(0));
            let batch = batches.next(n);
            let sequences = batch.inputs.chunks_exact(length).zip(batch.targets.chunks_exact(length));
            let window = |(document, (input, targets)): (usize, (&[u32], &[u32]))| Window {
                document,
                input: input.to_vec(),
                targets: targets.to_vec(),
            };
            let (tokens, (first, end)) = (partition.text()?, partition.units[unit]);
            let prefix = recipe.prefix_token;
            texts.push(Text {
                key: format!("{n} sequences of {length} seed {seed} prefix {prefix} of {tokens} {first}..{end}"),
                windows: sequences.enumerate().map(window).collect(),
            });
            units.push((name.clone(), unit));
        }
    }
    let mut influence = influence(question, options)?;
    let mean = |windows: Vec<Vec<f64>>| -> Vec<f64> {
        let n = windows.len() as f64;
        (0..question.evals.len()).map(|eval| windows.iter().map(|of| of[eval]).sum::<f64>() / n).collect()
    };
    let means = influence.of(&texts)?.into_iter().map(mean);
    let units = units.into_iter().zip(means).collect();
    Ok(Box::new(Less { units, n_evals: question.evals.len(), cost: influence.cost }))
}

/// Mean influences of units, read as scores of mixtures.
struct Less {
    units: BTreeMap<(String, usize), Vec<f64>>, // [eval sets]
    n_evals: usize,
    cost: Cost,
}

impl Estimator for Less {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        let start = Instant::now();
        let score = |mixture: &Mixture, eval: usize| -> Result<f64> {
            let of = |(name, unit, weight): (&str, usize, f64)| {
                let influences = self.units.get(&(name.to_owned(), unit));
                let missing = || Error::Usage(format!("'{name}' was not there when influences were taken"));
                Ok(-weight * influences.ok_or_else(missing)?[eval])
            };
            mixture.members().map(of).sum()
        };
        let scores = mixtures.iter().map(|mixture| (0..self.n_evals).map(|eval| score(mixture, eval)).collect());
        let scores = scores.collect();
        self.cost += Cost::of_seconds(start.elapsed().as_secs_f64());
        scores
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}

/// The influence of every document of a partition on every eval set: the mean over its windows, each counted by the
/// tokens it predicts. `[documents][eval sets]`; none for an empty document.
///
/// # Errors
/// [`Error::Usage`] when options make no sense or the partition is unknown; those of training.
pub(super) fn documents(
    question: &Question<'_>,
    options: &Options,
    partition: &str,
) -> Result<(Vec<Option<Vec<f64>>>, Cost)> {
    let pool = question.pool;
    let settings = pool.settings();
    let partition = pool.partition(partition)?;
    let hash = partition.text()?;
    let tokens = pool.tokens(hash)?;
    let n_documents = tokens.documents().len();
    let cut = |document| rolling_windows(document, &tokens.document(document), settings.prefix_token, settings.window);
    let windows: Vec<Window> = (0..n_documents).flat_map(cut).collect();
    let owners: Vec<(usize, f64)> = windows.iter().map(|w| (w.document, w.targets.len() as f64)).collect();
    let key = format!("documents of {hash} window {} prefix {}", settings.window, settings.prefix_token);
    let mut influence = influence(question, options)?;
    let cosines = influence.of(&[Text { key, windows }])?.concat();
    let mut sums: Vec<(f64, Vec<f64>)> = vec![(0.0, vec![0.0; question.evals.len()]); n_documents];
    for ((document, weight), cosines) in owners.into_iter().zip(cosines) {
        let (total, sums) = &mut sums[document];
        *total += weight;
        sums.iter_mut().zip(cosines).for_each(|(sum, cosine)| *sum += weight * cosine);
    }
    let mean = |(total, sums): (f64, Vec<f64>)| (total > 0.0).then(|| sums.iter().map(|sum| sum / total).collect());
    Ok((sums.into_iter().map(mean).collect(), influence.cost))
}
