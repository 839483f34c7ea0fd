//! Online: recipes of runs whose data weights follow a policy, and what such runs leave in their folders.
//!
//! A run has *domains* (partitions, or their units) and perhaps a *target*: text that the policy compares gradients with or
//! samples by, and that is never trained on. A target is a partition, or the first documents of an eval set; the other
//! documents of that eval set stay unseen by the method and tell what it is worth.

use super::training::SAVE_EVERY;
use super::{DataShare, Manifest, Pool, Recipe, Start, loading};
use crate::error::{Error, Result};
use crate::files::{self, Staging};
use crate::progress::Observer;
use crate::train::{
    Alignments, Method, OnlineSources, OnlineTrainer, Progress, State, TrainConfig, Weighting, average_weights,
    classify,
};
use serde::{Deserialize, Serialize};

const WEIGHTS: &str = "weights.csv";
const ALIGNMENTS: &str = "alignments.csv";
/// Makes the order in which text is compared another one than that in which it is trained on.
const PROBE_SEED: u64 = 1 << 63;

/// The part of a recipe that makes data weights change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Online {
    /// The policy and its settings.
    pub method: Method,
    /// Text that the policy compares gradients with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<DataShare>,
    /// The arms as histograms over the data, in its order; empty when every domain is an arm.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub basis: Vec<Vec<f64>>,
}

/// What an online method did beside training, as its manifest says it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OnlineCost {
    /// Tokens that went forward and backward to compare gradients.
    pub gradient_tokens: u64,
    /// Seconds of that.
    pub gradient_seconds: f64,
}

/// Text to train on, as one thing to be weighed.
#[derive(Debug, Clone, PartialEq)]
pub struct Domain {
    /// The partition, or `partition/unit` with units counted from 1.
    pub name: String,
    /// Its documents, with the weight it starts at.
    pub share: DataShare,
    /// How many units it holds.
    pub units: usize,
}

/// Text that a method may look at.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The partition or eval set.
    pub name: String,
    /// The documents the method sees.
    pub share: DataShare,
    /// Documents of the whole.
    pub n_docs: usize,
}

/// Weights that do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FixedWeights {
    /// Every domain the same.
    Uniform,
    /// In proportion to tokens.
    Natural,
    /// By the share of the target's sequences that look like the domain.
    Importance,
}

/// What an online run left behind, read from its folder.
#[derive(Debug, Clone, PartialEq)]
pub struct OnlineRun {
    /// The domains, in the order of all weights.
    pub domains: Vec<String>,
    /// The weights, from the first on.
    pub trajectory: Vec<Weighting>,
    /// Every comparison with the target.
    pub alignments: Vec<Alignments>,
    steps: u64,
}

impl OnlineRun {
    /// The mean weights over all steps: the mixture that was trained on.
    pub fn average(&self) -> Vec<f64> {
        average_weights(&self.trajectory, self.steps)
    }

    /// The last weights.
    pub fn last(&self) -> &[f64] {
        self.trajectory.last().map_or(&[], |weighting| &weighting.weights)
    }

    /// The mean alignment of every arm; none without comparisons.
    pub fn mean_alignments(&self) -> Option<Vec<f64>> {
        let mut mean = vec![0.0; self.alignments.first()?.alignments.len()];
        for at in &self.alignments {
            let share = 1.0 / self.alignments.len() as f64;
            mean.iter_mut().zip(&at.alignments).for_each(|(mean, alignment)| *mean += share * alignment);
        }
        Some(mean)
    }
}

impl Pool {
    /// The domains of some partitions in the canonical order of data, with equal weights: one per partition, or one per
    /// unit.
    ///
    /// # Errors
    /// [`Error::Usage`] when a partition is unknown or none is named.
    pub fn domains(&self, partitions: &[String], by_unit: bool) -> Result<Vec<Domain>> {
        let mut domains = Vec::new();
        for name in partitions {
            let partition = self.partition(name)?;
            let (first, end) = (partition.units.first(), partition.units.last());
            let whole = (first.map_or(0, |unit| unit.0), end.map_or(0, |unit| unit.1));
            let tokens = partition.text()?;
            let share = |documents| DataShare { tokens: tokens.to_owned(), documents, weight: 0.0 };
            if by_unit && partition.units.len() > 1 {
                let unit = |(index, unit): (usize, &(usize, usize))| Domain {
                    name: format!("{name}/{}", index + 1),
                    share: share(*unit),
                    units: 1,
                };
                domains.extend(partition.units.iter().enumerate().map(unit));
            } else {
                domains.push(Domain { name: name.clone(), share: share(whole), units: partition.units.len() });
            }
        }
        if domains.is_empty() {
            return Err(Error::Usage("no partition to train on; run 'mixpool register NAME FILE...' first".into()));
        }
        domains.sort_by(|a, b| (&a.share.tokens, a.share.documents).cmp(&(&b.share.tokens, b.share.documents)));
        let equal = 1.0 / domains.len() as f64;
        domains.iter_mut().for_each(|domain| domain.share.weight = equal);
        Ok(domains)
    }

    /// The target of that name: the first `documents` of an eval set (half of them, rounded up, when not said), or a
    /// partition (all of it).
    ///
    /// # Errors
    /// [`Error::Usage`] when the name is unknown or there are fewer documents.
    pub fn target(&self, name: &str, documents: Option<usize>) -> Result<Target> {
        let partitions = self.partitions()?;
        let (tokens, of_eval) = match partitions.get(name) {
            Some(partition) => (partition.text()?.to_owned(), false),
            None => (self.eval_binding(name)?.tokens, true),
        };
        let n_docs = self.tokens(&tokens)?.documents().len();
        let seen = documents.unwrap_or(if of_eval { n_docs.div_ceil(2) } else { n_docs });
        if seen == 0 || seen > n_docs {
            return Err(Error::Usage(format!("target '{name}' has {n_docs} document(s), not {seen}")));
        }
        Ok(Target { name: name.to_owned(), share: DataShare { tokens, documents: (0, seen), weight: 1.0 }, n_docs })
    }

    /// Fixed weights of some domains.
    ///
    /// # Errors
    /// [`Error::Usage`] for importance sampling without a target.
    pub fn fixed_weights(&self, kind: FixedWeights, domains: &[Domain], target: Option<&Target>) -> Result<Vec<f64>> {
        let equal = vec![1.0 / domains.len() as f64; domains.len()];
        match kind {
            FixedWeights::Uniform => Ok(equal),
            FixedWeights::Natural => {
                let length = |domain: &Domain| -> Result<u64> {
                    let (first, end) = domain.share.documents;
                    Ok(self.tokens(&domain.share.tokens)?.stream_length(first..end))
                };
                let lengths = domains.iter().map(length).collect::<Result<Vec<_>>>()?;
                let total: u64 = lengths.iter().sum();
                Ok(lengths.into_iter().map(|length| length as f64 / total as f64).collect())
            }
            FixedWeights::Importance => {
                let target = target.ok_or_else(|| Error::Usage("importance sampling needs a target".into()))?;
                let stream = |share: &DataShare| -> Result<Vec<u32>> {
                    let (first, end) = share.documents;
                    Ok(self.tokens(&share.tokens)?.stream(first..end, self.settings.prefix_token))
                };
                let streams = domains.iter().map(|domain| stream(&domain.share)).collect::<Result<Vec<_>>>()?;
                let streams: Vec<&[u32]> = streams.iter().map(Vec::as_slice).collect();
                let length = self.settings.expert.sequence_length;
                Ok(classify(&streams, &stream(&target.share)?, length, self.settings.model.vocab_size))
            }
        }
    }

    /// The recipe of an online run from the seed model, of the experts' training settings and `tokens` tokens (as many as
    /// the experts of its domains saw, when not said).
    ///
    /// # Errors
    /// [`Error::Usage`] when the settings of the method make no run, or it lacks a target.
    pub fn online_recipe(
        &self,
        domains: &[Domain],
        online: Online,
        weights: &[f64],
        tokens: Option<u64>,
        seed: u64,
    ) -> Result<Recipe> {
        online.method.check()?;
        if online.method.probe() > 0 && online.target.is_none() {
            return Err(Error::Usage("this method compares gradients with a target's; name one".into()));
        }
        let expert = &self.settings.expert;
        let steps = match tokens {
            Some(tokens) => expert.steps_for(tokens),
            None if expert.steps > 0 => domains.iter().map(|domain| expert.steps * domain.units as u64).sum(),
            None => domains.iter().map(|domain| self.unit_steps(&domain.share)).sum::<Result<u64>>()?,
        };
        let train = TrainConfig { steps, seed: expert.seed + seed, ..expert.clone() };
        let weighted = domains.iter().zip(weights);
        let data = weighted.map(|(domain, weight)| DataShare { weight: *weight, ..domain.share.clone() }).collect();
        let recipe = self.recipe(Start::Object(self.seed_recipe()?.id()?), data, train);
        Ok(Recipe { online: Some(online), ..recipe })
    }

    /// Trains an online run, from the state that `load` gives to the end; as `train_mixed` where a device runs out of memory.
    pub(super) fn train_online(
        &self,
        recipe: &Recipe,
        online: &Online,
        load: impl Fn() -> Result<State>,
        (name, observer): (&str, &dyn Observer),
        mut save: impl FnMut(&State) -> Result<()>,
    ) -> Result<State> {
        let compute = self.training_device(recipe.train.precision)?;
        let beside = if online.method.probe() > 0 { 4 } else { 0 }; // the target's gradient
        self.train_as_fits(&compute, &recipe.train, beside, (name, observer), |train, recomputes| {
            let (model, method, sources) = (&recipe.model, &online.method, self.sources(recipe, online)?);
            let trainer = OnlineTrainer::on(&compute, model, &self.layout, train, method, sources, load()?)?;
            let mut trainer = trainer.recomputing(recomputes);
            trainer.run(name, observer, SAVE_EVERY, &mut save)?;
            trainer.state()
        })
    }

    /// The sequences of an online run, from the first on.
    fn sources(&self, recipe: &Recipe, online: &Online) -> Result<OnlineSources> {
        let seed = recipe.train.seed;
        let of_target = |target| self.batches_of(std::slice::from_ref(target), recipe, seed);
        let arms = online.basis.len();
        Ok(OnlineSources {
            domains: self.batches(recipe)?,
            probes: self.batches_of(&recipe.data, recipe, seed ^ PROBE_SEED)?,
            target: online.target.as_ref().map(of_target).transpose()?,
            basis: online.basis.clone(),
            start: match arms {
                0 => recipe.data.iter().map(|share| share.weight).collect(),
                _ => vec![1.0 / arms as f64; arms],
            },
        })
    }

    /// Writes the trajectory of an online run into its object.
    pub(super) fn write_progress(&self, staging: &Staging, recipe: &Recipe, progress: &Progress) -> Result<()> {
        let names = self.domain_names(recipe)?;
        let tokens = recipe.train.tokens_per_step();
        let mut weights = format!("step,tokens,{}\n", names.join(","));
        for Weighting { step, weights: row } in &progress.trajectory {
            weights.push_str(&format!(
                "{step},{}{}\n",
                step * tokens,
                row.iter().map(|w| format!(",{w}")).collect::<String>()
            ));
        }
        staging.write(WEIGHTS, weights.as_bytes())?;
        if progress.alignments.is_empty() {
            return Ok(());
        }
        let mut alignments = String::from("step,arm,before,alignment,after\n");
        for at in &progress.alignments {
            for (arm, alignment) in at.alignments.iter().enumerate() {
                let name = names.get(arm).filter(|_| at.alignments.len() == names.len());
                let name = name.cloned().unwrap_or_else(|| format!("basis {}", arm + 1));
                alignments.push_str(&format!("{},{name},{},{alignment},{}\n", at.step, at.before[arm], at.after[arm]));
            }
        }
        staging.write(ALIGNMENTS, alignments.as_bytes())
    }

    /// What the domains of a recipe are called now: partitions, `partition/unit`, or the beginning of the tokens' hash.
    fn domain_names(&self, recipe: &Recipe) -> Result<Vec<String>> {
        let partitions: Vec<String> = self.partitions()?.into_keys().collect();
        let mut known = self.domains(&partitions, false)?;
        known.extend(self.domains(&partitions, true)?);
        let same = |a: &DataShare, b: &DataShare| a.tokens == b.tokens && a.documents == b.documents;
        let name = |share: &DataShare| match known.iter().find(|domain| same(&domain.share, share)) {
            Some(domain) => domain.name.clone(),
            None => format!("{:.8}:{}-{}", share.tokens, share.documents.0, share.documents.1),
        };
        Ok(recipe.data.iter().map(name).collect())
    }

    /// What an online run left behind.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is not what was written.
    pub fn online_run(&self, manifest: &Manifest) -> Result<OnlineRun> {
        let folder = self.object_folder(&manifest.id);
        loading::object(&folder)?;
        let steps = manifest.recipe.train.steps;
        let path = folder.join(WEIGHTS);
        let damaged = |problem: &str| {
            Error::damaged(&path, format!("{problem}; delete '{}' to train it again", folder.display()))
        };
        let text = files::read_text(&path)?;
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
        let domains = rows.first().ok_or_else(|| damaged("it is empty"))?.iter().skip(2).map(ToString::to_string);
        let weighting = |row: &Vec<&str>| {
            let weights = row.get(2..)?.iter().map(|cell| cell.parse().ok()).collect::<Option<Vec<f64>>>()?;
            Some(Weighting { step: row[0].parse().ok()?, weights })
        };
        let trajectory = rows[1..].iter().map(|row| weighting(row).ok_or_else(|| damaged("a row is not numbers")));
        let trajectory = trajectory.collect::<Result<_>>()?;
        Ok(OnlineRun { domains: domains.collect(), trajectory, alignments: read_alignments(&folder)?, steps })
    }
}

fn read_alignments(folder: &std::path::Path) -> Result<Vec<Alignments>> {
    let path = folder.join(ALIGNMENTS);
    let mut all: Vec<Alignments> = Vec::new();
    if !path.exists() {
        return Ok(all);
    }
    for line in files::read_text(&path)?.lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let number = |index: usize| cells.get(index).and_then(|cell| cell.parse::<f64>().ok());
        let read = (|| Some((number(0)? as u64, number(2)?, number(3)?, number(4)?)))();
        let (step, before, alignment, after) =
            read.ok_or_else(|| Error::damaged(&path, format!("the row '{line}' is not numbers")))?;
        if all.last().is_none_or(|last| last.step != step) {
            all.push(Alignments { step, before: Vec::new(), alignments: Vec::new(), after: Vec::new() });
        }
        if let Some(last) = all.last_mut() {
            last.before.push(before);
            last.alignments.push(alignment);
            last.after.push(after);
        }
    }
    Ok(all)
}
