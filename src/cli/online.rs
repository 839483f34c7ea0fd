//! Online command: a training run whose data weights follow a policy, and what it came to.

use super::data::token_budget;
use super::training::train_seed;
use super::{Session, print};
use crate::error::{Error, Result};
use crate::files;
use crate::mixture::{Mixture, Notation};
use crate::pool::{Domain, FixedWeights, Manifest, Online as Weighing, OnlineRun, Pool, Recipe, Scored, Target};
use crate::progress::Observer;
use crate::report::{Format, render};
use crate::train::{Dga, Method, Odm, Reward};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Train a model whose data weights follow an online method, and print what it recommends
///
/// The run starts from the seed model and draws every sequence from the weights then in force. `dga` moves weight to
/// domains whose gradients point where the target's does; `odm` to domains of high training loss; `uniform`, `natural` (in
/// proportion to tokens) and `importance` (as often as the target's text looks like the domain) keep theirs.
///
/// A target that is an eval set shows the method its first half of documents; the table tells the loss on the others apart
/// (`loss_unseen`). Training may be stopped at any time; the same command goes on and ends with the same bytes.
///
/// Example: mixpool online --method dga --target wiki-test --tokens 500k --every 5 --csv weights.csv
#[derive(Args)]
pub(super) struct Online {
    /// Which method sets the weights
    #[arg(long, value_enum)]
    method: MethodArg,
    /// What to get good at: an eval set or a partition (dga, importance)
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// How many of the target's documents the method sees [default: half of an eval set, all of a partition]
    #[arg(long, value_name = "N", requires = "target")]
    documents: Option<usize>,
    /// Partitions to train on, e.g. code+wiki [default: all but the target]
    #[arg(long, value_name = "PARTITIONS", default_value = "all")]
    from: String,
    /// Weigh every unit of a partition by itself
    #[arg(long)]
    units: bool,
    /// Weigh histograms instead of domains: one by importance sampling for each of these eval sets or partitions (dga)
    #[arg(long, value_name = "NAME", num_args = 1..)]
    basis: Vec<String>,
    /// Training tokens, e.g. 500k [default: those of the experts together]
    #[arg(long, value_name = "TOKENS")]
    tokens: Option<String>,
    /// Steps between two comparisons of gradients (dga)
    #[arg(long, value_name = "T", default_value_t = Dga::default().every)]
    every: u64,
    /// Step size of the weights (dga)
    #[arg(long, value_name = "η", default_value_t = Dga::default().rate)]
    rate: f64,
    /// Share of the new weights in their moving average; 1 for none (dga)
    #[arg(long, value_name = "β", default_value_t = Dga::default().ema)]
    ema: f64,
    /// Sequences of a mini-batch whose gradient is compared (dga)
    #[arg(long, value_name = "N", default_value_t = Dga::default().probe)]
    probe: usize,
    /// How much of the old reward stays (odm)
    #[arg(long, value_name = "γ", default_value_t = Odm::default().smoothing)]
    smoothing: f64,
    /// What a loss is worth: the loss over its weight as in the paper, or e to the loss as in its code (odm)
    #[arg(long, value_enum, default_value_t)]
    reward: RewardArg,
    /// Seeds the draws
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Eval sets to score the model on [default: all]
    #[arg(long = "eval", value_name = "NAME", num_args = 1..)]
    evals: Vec<String>,
    /// Also write the weights over time to a CSV file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MethodArg {
    Uniform,
    Natural,
    Importance,
    Dga,
    Odm,
}

impl MethodArg {
    fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Natural => "natural",
            Self::Importance => "importance",
            Self::Dga => "dga",
            Self::Odm => "odm",
        }
    }

    /// The fixed weights it stands for, or the ones it starts from.
    fn fixed(self) -> FixedWeights {
        match self {
            Self::Natural => FixedWeights::Natural,
            Self::Importance => FixedWeights::Importance,
            Self::Uniform | Self::Dga | Self::Odm => FixedWeights::Uniform,
        }
    }
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum RewardArg {
    #[default]
    Loss,
    Perplexity,
}

/// The model on one eval set.
#[derive(Serialize)]
struct Row {
    model: String,
    method: &'static str,
    target: String,
    eval_set: String,
    loss: f64,
    perplexity: f64,
    seen_documents: usize,
    loss_unseen: Option<f64>,
}

impl Online {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let pool = session.open()?;
        let target = self.target.as_deref().map(|name| pool.target(name, self.documents)).transpose()?;
        self.check(target.as_ref())?;
        let domains = pool.domains(&self.partitions(&pool)?, self.units)?;
        let recipe = self.recipe(&pool, &domains, target.as_ref())?;
        let mut scorer = pool.scorer(&self.evals)?;
        let observer = &session.observer;
        train_seed(&pool, observer)?;
        let toward = target.as_ref().map(|target| format!(" towards '{}'", target.name)).unwrap_or_default();
        let name = format!("{}{toward}", self.method.name());
        let manifest = pool.get_or_train(&recipe, &name, observer)?;
        let run = pool.online_run(&manifest)?;
        if let Some(path) = &self.csv {
            let weights = std::path::Path::new("weights.csv");
            let text = files::read_text(&pool.object_folder(&manifest.id).join(weights))?;
            files::publish(path, text.as_bytes())?;
            observer.note(&format!("wrote '{}'", path.display()));
        }
        let scored = scorer.score_as(&pool.single(&manifest), &name, "online", observer)?;
        let rows = scored.iter().map(|scored| self.row(&pool, &manifest, target.as_ref(), scored));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        match session.format {
            Format::Json => {
                let value = self.value(&pool, &manifest, &run, &rows)?;
                print(&String::from_utf8_lossy(&files::to_json(&value)?))
            }
            Format::Table => {
                print(&self.summary(&pool, &manifest, &run, target.as_ref())?)?;
                print(&render(&rows, Format::Table)?)
            }
            format => print(&render(&rows, format)?),
        }
    }

    fn check(&self, target: Option<&Target>) -> Result<()> {
        let name = self.method.name();
        let wants = matches!(self.method, MethodArg::Dga | MethodArg::Importance);
        if wants && target.is_none() {
            return Err(Error::Usage(format!("'--method {name}' needs a --target: an eval set or a partition")));
        }
        if !wants && target.is_some() {
            return Err(Error::Usage(format!("'--method {name}' has no use for a --target; leave it out")));
        }
        if !self.basis.is_empty() && self.method != MethodArg::Dga {
            return Err(Error::Usage(format!("'--basis' is for '--method dga', not for {name}")));
        }
        Ok(())
    }

    /// The partitions to train on.
    fn partitions(&self, pool: &Pool) -> Result<Vec<String>> {
        let counts = pool.unit_counts()?;
        if self.from.contains(['=', ':']) {
            return Err(Error::Usage(format!(
                "'--from {}': expected names without weights, e.g. code+wiki",
                self.from
            )));
        }
        let names = Mixture::parse(&self.from, &counts, Notation::default())?.weights().into_keys();
        let is_target = |name: &String| self.from == "all" && self.target.as_ref() == Some(name);
        Ok(names.filter(|name| !is_target(name)).collect())
    }

    fn recipe(&self, pool: &Pool, domains: &[Domain], target: Option<&Target>) -> Result<Recipe> {
        let method = match self.method {
            MethodArg::Uniform | MethodArg::Natural | MethodArg::Importance => Method::Fixed,
            MethodArg::Dga => Method::Dga(Dga { every: self.every, rate: self.rate, ema: self.ema, probe: self.probe }),
            MethodArg::Odm => {
                let reward = match self.reward {
                    RewardArg::Loss => Reward::Loss,
                    RewardArg::Perplexity => Reward::Perplexity,
                };
                Method::Odm(Odm { smoothing: self.smoothing, reward })
            }
        };
        let histogram = |name: &String| -> Result<Vec<f64>> {
            pool.fixed_weights(FixedWeights::Importance, domains, Some(&pool.target(name, None)?))
        };
        let basis = self.basis.iter().map(histogram).collect::<Result<_>>()?;
        let weights = pool.fixed_weights(self.method.fixed(), domains, target)?;
        let watched = target.filter(|_| self.method == MethodArg::Dga).map(|target| target.share.clone());
        let online = Weighing { method, target: watched, basis };
        pool.online_recipe(domains, online, &weights, token_budget(self.tokens.as_deref())?, self.seed)
    }

    fn row(&self, pool: &Pool, manifest: &Manifest, target: Option<&Target>, scored: &Scored) -> Result<Row> {
        let score = &scored.record.score;
        let seen = target.filter(|target| target.name == scored.eval_set).map_or(0, |target| target.share.documents.1);
        let tokens = pool.tokens(&pool.eval_binding(&scored.eval_set)?.tokens)?;
        let rest = tokens.documents().iter().zip(&scored.record.documents).skip(seen);
        let (nll, n) = rest.fold((0.0, 0), |(nll, n), (document, sum)| (nll + sum, n + document.n_tokens));
        Ok(Row {
            model: manifest.id.chars().take(12).collect(),
            method: self.method.name(),
            target: target.map(|target| target.name.clone()).unwrap_or_default(),
            eval_set: scored.eval_set.clone(),
            loss: score.loss(),
            perplexity: score.perplexity(),
            seen_documents: seen,
            loss_unseen: (n > 0).then(|| nll / n as f64),
        })
    }

    fn value(&self, pool: &Pool, manifest: &Manifest, run: &OnlineRun, rows: &[Row]) -> Result<serde_json::Value> {
        let by_name = |weights: &[f64]| -> BTreeMap<String, f64> {
            run.domains.iter().cloned().zip(weights.iter().copied()).collect()
        };
        Ok(json!({
            "model": manifest.id,
            "method": self.method.name(),
            "target": self.target,
            "final": mixture(pool, run, run.last())?.to_string(),
            "average": mixture(pool, run, &run.average())?.to_string(),
            "final_weights": by_name(run.last()),
            "average_weights": by_name(&run.average()),
            "mean_alignments": run.mean_alignments().filter(|mean| mean.len() == run.domains.len()).map(|mean| by_name(&mean)),
            "comparisons": run.alignments.len(),
            "steps": manifest.recipe.train.steps,
            "tokens": manifest.n_tokens,
            "gradient_tokens": manifest.online.map_or(0, |online| online.gradient_tokens),
            "gradient_seconds": manifest.online.map_or(0.0, |online| online.gradient_seconds),
            "seconds": manifest.seconds,
            "scores": rows,
        }))
    }

    fn summary(&self, pool: &Pool, manifest: &Manifest, run: &OnlineRun, target: Option<&Target>) -> Result<String> {
        let mut lines = vec![format!("model    {}", manifest.id), format!("method   {}", self.method.name())];
        if let Some(Target { name, share, n_docs }) = target {
            lines.push(format!(
                "target   {name}, the first {} of {n_docs} documents seen by the method",
                share.documents.1
            ));
        }
        lines.push(format!("final    {}", mixture(pool, run, run.last())?));
        lines.push(format!("average  {}", mixture(pool, run, &run.average())?));
        let mut cost = format!("cost     {} tokens in {:.1} s", manifest.n_tokens, manifest.seconds);
        if let Some(online) = manifest.online.filter(|online| online.gradient_tokens > 0) {
            let steps = manifest.seconds - online.gradient_seconds;
            cost.push_str(&format!(
                ", {:.1} s of it for {} comparisons of gradients: {:.0} % more tokens, {:.0} % more time",
                online.gradient_seconds,
                run.alignments.len(),
                100.0 * online.gradient_tokens as f64 / manifest.n_tokens as f64,
                100.0 * online.gradient_seconds / steps
            ));
        }
        lines.push(cost);
        Ok(lines.join("\n") + "\n\n")
    }
}

/// Mixtures are printed in parts of this many.
const PARTS: f64 = 1e4;

/// Weights as a mixture of partitions in four decimals that sum to 1, those of units added up; the notation of `score`.
fn mixture(pool: &Pool, run: &OnlineRun, weights: &[f64]) -> Result<Mixture> {
    let mut by_partition: BTreeMap<String, f64> = BTreeMap::new();
    for (domain, weight) in run.domains.iter().zip(weights) {
        let name = domain.split('/').next().unwrap_or(domain);
        *by_partition.entry(name.to_owned()).or_default() += weight;
    }
    let total: f64 = by_partition.values().sum();
    let exact = |weight: &f64| weight / total * PARTS;
    let mut parts: BTreeMap<&String, u64> =
        by_partition.iter().map(|(name, w)| (name, exact(w).floor() as u64)).collect();
    let mut by_remainder: Vec<(&String, f64)> =
        by_partition.iter().map(|(name, weight)| (name, exact(weight) - exact(weight).floor())).collect();
    by_remainder.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    let missing = (PARTS as u64).saturating_sub(parts.values().sum());
    for (name, _) in by_remainder.into_iter().take(missing as usize) {
        *parts.entry(name).or_default() += 1;
    }
    let rounded = parts.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.clone(), n as f64 / PARTS)).collect();
    Mixture::from_weights(&rounded, &pool.unit_counts()?)
}
