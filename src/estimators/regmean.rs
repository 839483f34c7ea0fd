//! `RegMean`: the loss of experts merged by regression instead of averaged.
//!
//! Jin et al. 2023 (arXiv 2212.09849); the merge itself is [`regression_mean`]. Each expert's Gram matrices are collected once,
//! on the first sequences that it was trained on, in the order of its training. The default, 16k tokens, is ten times the
//! widest input of the presets; the authors' program takes about 1000 batches.

use super::merged::{expert_cost, in_turns, losses};
use super::{Cost, Estimator, OptionRow, Options, Question};
use crate::error::{Error, Result};
use crate::eval::{gram_layout, gram_pass};
use crate::files;
use crate::merge::{average, regression_mean};
use crate::mixture::{Mixture, Notation};
use crate::model::Checkpoint;
use crate::pool::{Checkpoints, Experts, Manifest, Member, Pool, Recipe, Scored, Scorer, parse_count};
use crate::progress::Observer;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

pub(super) const OPTIONS: &[OptionRow] = &[
    OptionRow {
        name: "tokens",
        default: "16k",
        help: "training tokens of each expert that its Gram matrices are taken on",
    },
    OptionRow { name: "scale", default: "0.9", help: "multiplies the off-diagonals of Gram matrices; 0 to 1" },
];

/// Version of the Gram matrices and of the merge; raised when the same inputs would give other bytes.
const VERSION: u32 = 1;

pub(super) fn fit<'a>(question: &Question<'a>, options: &Options) -> Result<Box<dyn Estimator + 'a>> {
    let text = options.text("tokens");
    let tokens = parse_count(text)
        .filter(|n| *n > 0)
        .ok_or_else(|| Error::Usage(format!("option 'tokens={text}': expected a number such as 16000 or 16k")))?;
    let scale: f64 = options.number("scale")?;
    if !(0.0..=1.0).contains(&scale) {
        return Err(Error::Usage(format!("option 'scale={scale}': expected a number from 0 to 1")));
    }
    let pool = question.pool;
    let experts = pool.experts()?;
    experts.members(&Mixture::parse("all", &pool.unit_counts()?, Notation::default())?)?; // refuses missing experts
    let (grams, cost) = collect(question, tokens)?;
    let cost = cost + expert_cost(pool)?;
    let scorer = pool.scorer(question.evals)?;
    let usual = OPTIONS.iter().all(|row| options.text(row.name) == row.default);
    let kind = if usual { "regmean".into() } else { format!("regmean:tokens={text},scale={scale}") };
    Ok(Box::new(RegMean { pool, scorer, experts, grams, scale, kind, observer: question.observer, cost }))
}

/// `RegMean` merges scored on the eval sets of a question.
struct RegMean<'a> {
    pool: &'a Pool,
    scorer: Scorer<'a>,
    experts: Experts,
    grams: BTreeMap<Arc<str>, Grams>, // by hash of the expert's weights
    scale: f64,
    kind: String, // how the log of scores calls it
    observer: &'a dyn Observer,
    cost: Cost,
}

/// The Gram matrices of one expert, as they lie in the pool.
struct Grams {
    key: String,
    matrices: Checkpoint,
}

impl RegMean<'_> {
    /// The key of a merge's scores: everything it depends on.
    fn key(&self, members: &[Member]) -> String {
        let member = |member: &Member| {
            let grams = files::hash(self.grams[&member.weights].key.as_bytes());
            format!("\n{}:{:016x}:{grams}", member.weights, member.weight.to_bits())
        };
        let members: String = members.iter().map(member).collect();
        files::hash(format!("regmean version {VERSION} scale {:016x}{members}", self.scale.to_bits()).as_bytes())
    }

    fn score(&mut self, key: &str, members: &[Member], label: &str) -> Result<Option<Vec<Scored>>> {
        let Self { pool, scorer, grams, scale, kind, observer, .. } = self;
        scorer.try_score_with(key, label, kind, *observer, |open, out| {
            let models = members.iter().zip(open.of(members)?);
            let models = models.map(|(member, (weight, model))| (weight, model, &grams[&member.weights].matrices));
            regression_mean(out, &pool.settings().model, pool.layout(), &models.collect::<Vec<_>>(), *scale)
        })
    }
}

impl Estimator for RegMean<'_> {
    fn estimate(&mut self, mixtures: &[Mixture]) -> Result<Vec<Vec<f64>>> {
        let keyed = |mixture: &Mixture| {
            let members = self.experts.members(mixture)?;
            Ok((self.key(&members), members, mixture.to_string()))
        };
        let merges = mixtures.iter().map(keyed).collect::<Result<Vec<_>>>()?;
        let missing = merges.iter().filter(|(key, ..)| !self.scorer.is_stored(key)).count();
        let scored = in_turns(&merges, missing, "score RegMean merges", self.observer, |(key, members, label)| {
            self.score(key, members, label)
        })?;
        self.cost += scored.iter().map(|scored| Cost::of_scoring(scored, self.pool.layout().len())).sum();
        Ok(losses(&scored))
    }

    fn cost(&self) -> Cost {
        self.cost
    }
}

/// The Gram matrices of every expert, by the hash of its weights, and what they took.
fn collect(question: &Question<'_>, tokens: u64) -> Result<(BTreeMap<Arc<str>, Grams>, Cost)> {
    let (pool, observer) = (question.pool, question.observer);
    let mut experts = Vec::new();
    for partition in pool.partitions()?.values() {
        for (unit, expert) in pool.unit_experts(partition)?.into_iter().enumerate() {
            let recipe = pool.expert_recipe(partition, unit)?; // its text, whoever trained it
            experts.extend(expert.map(|expert| (expert, recipe)));
        }
    }
    let keys = experts.iter().map(|(expert, recipe)| key(expert, recipe, tokens)).collect::<Result<Vec<_>>>()?;
    let missing = keys.iter().filter(|key| !pool.is_fitted(key)).count() as u64;
    if missing > 0 {
        observer.begin("collect Gram matrices", missing, "experts");
    }
    let (mut grams, mut cost, mut done) = (BTreeMap::new(), Cost::default(), 0);
    for ((expert, recipe), key) in experts.into_iter().zip(keys) {
        cost += pool.fitted(&key, || {
            observer.check()?;
            let cost = measure(pool, &expert, &recipe, tokens, &key)?;
            done += 1;
            observer.advance(done, "");
            Ok(cost)
        })?;
        let matrices = pool.stored_tensors(&key)?;
        grams.insert(expert.weights.into(), Grams { key, matrices });
    }
    if missing > 0 {
        observer.finish();
    }
    Ok((grams, cost))
}

/// All that the Gram matrices of an expert depend on.
fn key(expert: &Manifest, recipe: &Recipe, tokens: u64) -> Result<String> {
    Ok(format!("grams version {VERSION} weights {} recipe {} tokens {tokens}", expert.weights, recipe.id()?))
}

/// Computes and stores the Gram matrices of one expert; returns what it took.
fn measure(pool: &Pool, expert: &Manifest, recipe: &Recipe, tokens: u64, key: &str) -> Result<Cost> {
    let start = Instant::now();
    let length = recipe.train.sequence_length;
    let mut batches = pool.batches(recipe)?;
    let blocks: usize = (0..recipe.data.len()).map(|unit| batches.blocks(unit)).sum();
    let batch = batches.next(blocks.min((tokens as usize).div_ceil(length))); // no sequence twice

    let (model, layout) = (&pool.settings().model, pool.layout());
    let evaluator = pool.differentiator(length, gram_pass(length))?;
    let mut open = Checkpoints::default();
    evaluator.set(|out| average(out, layout, &open.of(&pool.single(expert))?))?;
    pool.store_tensors(key, &gram_layout(model, layout)?, &evaluator.grams(&batch, length)?)?;
    let flops = 2.0 * layout.len() as f64 * batch.inputs.len() as f64;
    Ok(Cost { flops, ..Cost::of_seconds(start.elapsed().as_secs_f64()) })
}
