//! Models in and out: experts adopted from elsewhere, and what the pool holds written for other programs.

use super::show::objects_beginning_with;
use super::{NotationArgs, Session};
use crate::error::{Error, Result};
use crate::files;
use crate::merge::average;
use crate::mixture::Mixture;
use crate::model::{FloatType, LowRankUpdate};
use crate::pool::{Checkpoints, Manifest, Member, Outcome, Pool, Start};
use crate::progress::Observer;
use clap::Args;
use std::path::PathBuf;

/// The file of the model card in an exported folder.
const CARD: &str = "README.md";

/// Make models trained elsewhere the experts of a partition
///
/// Each FOLDER is a Hugging Face model folder or a low-rank adapter in PEFT's format, one per unit. Tensors, config and
/// tokenizer must be those of the seed model; every difference is listed before anything is kept. Adapters stay low-rank on
/// disk and are merged from their factors.
///
/// With a registered partition, the models become its experts. Otherwise NAME is new and has no text: it can be merged and
/// scored, not trained on, until `register` gives it some.
///
/// Examples: mixpool adopt code runs/code-final | mixpool adopt law lora-law-1 lora-law-2
#[derive(Args)]
pub(super) struct Adopt {
    /// Name of the partition
    name: String,
    /// Model or adapter folders, one per unit
    #[arg(required = true)]
    folders: Vec<PathBuf>,
}

impl Adopt {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let pool = session.open()?;
        let (partition, outcome) = pool.adopt(&self.name, &self.folders, &session.observer)?;
        let experts = pool.unit_experts(&partition)?;
        let moved = experts.iter().flatten().filter_map(|expert| expert.relative_update);
        let moved: Vec<String> = moved.map(|moved| format!("{moved:.4}")).collect();
        let (name, n) = (&self.name, experts.len());
        let done = if outcome == Outcome::Added { "adopted" } else { "were adopted already" };
        session.observer.note(&format!("'{name}': {n} expert(s) {done}, relative update {}", moved.join(", ")));
        super::show::note_unmergeable(&pool, std::slice::from_ref(name), session)
    }
}

#[derive(Args)]
pub(super) struct ExportModel {
    /// A mixture, `seed`, or the first digits (eight at least) of an object's id
    mixture: String,
    /// The folder to write; must not exist, or hold this very model
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Numbers to write: f32, bf16 or f16 [default: those of the object; f32 for a merge]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    #[command(flatten)]
    notation: NotationArgs,
}

#[derive(Args)]
pub(super) struct ExportMergekit {
    /// A mixture, e.g. code=0.7+wiki=0.3
    mixture: String,
    /// The YAML file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    notation: NotationArgs,
}

/// What is exported: its members, and the mixture that they are of.
struct Chosen {
    members: Vec<Member>,
    mixture: Option<Mixture>,
}

impl Chosen {
    fn new(pool: &Pool, text: &str, notation: NotationArgs) -> Result<Self> {
        if text == "seed" {
            return Ok(Self { members: vec![pool.seed_member()?], mixture: None });
        }
        if is_id(text) && !pool.unit_counts()?.contains_key(text) {
            return match objects_beginning_with(pool, text)?.as_slice() {
                [manifest] => Ok(Self { members: pool.single(manifest), mixture: None }),
                several => {
                    Err(Error::Usage(format!("{} objects begin with '{text}'; give more digits", several.len())))
                }
            };
        }
        let mixture = notation.parse(&[text.to_owned()], pool)?.remove(0);
        Ok(Self { members: pool.experts()?.members(&mixture)?, mixture: Some(mixture) })
    }

    /// Manifests of the members, with their weights.
    fn manifests(&self, pool: &Pool) -> Result<Vec<(f64, Manifest)>> {
        let manifest = |member: &Member| {
            let id = member.folder.file_name().unwrap_or_default().to_string_lossy();
            let missing = || Error::damaged(&member.folder, "its manifest is missing");
            Ok((member.weight, pool.manifest(&id)?.ok_or_else(missing)?))
        };
        self.members.iter().map(manifest).collect()
    }
}

/// Whether a text can only be the beginning of an object's id, unless a partition is called so.
fn is_id(text: &str) -> bool {
    text.len() >= 8 && text.chars().all(|c| c.is_ascii_hexdigit())
}

impl ExportModel {
    pub(super) fn write(self, pool: &Pool) -> Result<PathBuf> {
        let dtype = self.dtype.as_deref().map(FloatType::parse).transpose()?;
        let chosen = Chosen::new(pool, &self.mixture, self.notation)?;
        let mut open = Checkpoints::default();
        let weighted = open.of(&chosen.members)?;
        let own = match weighted.as_slice() {
            [(1.0, single)] if single.update().is_none() => single.dtype(),
            _ => None,
        };
        let dtype = dtype.or(own).unwrap_or(FloatType::Float32);
        let card = self.card(pool, &chosen, dtype)?;
        let taken = || Error::Usage(format!("'{}' exists already; choose another --out", self.out.display()));
        let exists = self.out.exists();
        if exists && std::fs::read(self.out.join(CARD)).ok().as_deref() != Some(card.as_bytes()) {
            return Err(taken());
        }
        pool.refuse_impossible_export(&self.out, if dtype == FloatType::Float32 { 4 } else { 2 })?;
        let mut values = vec![0f32; pool.layout().len()];
        average(&mut values, pool.layout(), &weighted)?;
        files::sweep_for(&self.out)?;
        let staging = files::Staging::new(&self.out)?;
        pool.write_model(&staging, dtype, &values, pool.origin_folder().as_deref())?;
        staging.write(CARD, card.as_bytes())?;
        if exists && !staging.equals(&self.out)? {
            return Err(taken());
        }
        staging.publish(&self.out)?; // the same model again is no conflict: who wrote it may have been killed
        Ok(self.out)
    }

    /// A model card: what was merged, how that was trained, and what the mixture's scores are.
    fn card(&self, pool: &Pool, chosen: &Chosen, dtype: FloatType) -> Result<String> {
        let Self { mixture: asked, .. } = self;
        let version = env!("CARGO_PKG_VERSION");
        let mut card = format!(
            "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [mixpool, merge]\n---\n\n# {asked}\n\n"
        );
        card.push_str(&match &chosen.mixture {
            Some(mixture) => format!("The parameter average of experts in the data mixture `{mixture}`"),
            None => "One model of a pool".to_owned(),
        });
        let (parameters, tokenizer) = (pool.layout().len(), &pool.settings().tokenizer);
        card.push_str(&format!(
            ", written by mixpool {version}: {parameters} parameters as {}, tokenizer `{tokenizer:.16}` (BLAKE3).\n\n\
             | weight | object | from | tokens | learning rate | steps | relative update | weights (BLAKE3) |\n|---|---|---|---|---|---|---|---|\n",
            dtype.name()
        ));
        for (weight, manifest) in chosen.manifests(pool)? {
            let Manifest { id, weights, n_tokens, recipe, relative_update, .. } = &manifest;
            let from = match &recipe.start {
                Start::Scratch => "scratch".to_owned(),
                Start::Object(id) => format!("`{id:.12}`"),
                Start::Imported(_) => "elsewhere".to_owned(),
                Start::Adapter { base, .. } => format!("an adapter of `{base:.12}`"),
            };
            let moved = relative_update.map_or("–".to_owned(), |moved| format!("{moved:.4}"));
            let (rate, steps) = (recipe.train.learning_rate, recipe.train.steps);
            card.push_str(&format!(
                "| {weight} | `{id:.12}` | {from} | {n_tokens} | {rate} | {steps} | {moved} | `{weights:.16}` |\n"
            ));
        }
        card.push_str(&scores(pool, &chosen.members)?);
        card.push_str(&format!("\n`mixpool export model {asked} --dtype {}` wrote this folder.\n", dtype.name()));
        Ok(card)
    }
}

/// What is stored of the scores of these members, as a table; nothing where there is none.
fn scores(pool: &Pool, members: &[Member]) -> Result<String> {
    if pool.eval_names()?.is_empty() {
        return Ok(String::new());
    }
    let stored = pool.scorer(&[])?.stored_of(members);
    if stored.is_empty() {
        return Ok(String::new());
    }
    let mut table = String::from(
        "\n| eval set | loss (nats per token) | perplexity | bits per byte | tokens |\n|---|---|---|---|---|\n",
    );
    for scored in stored {
        let (eval, score) = (&scored.eval_set, &scored.record.score);
        let (loss, perplexity) = (score.loss(), score.perplexity());
        let (bits, tokens) = (score.bits_per_byte(), score.n_tokens);
        table.push_str(&format!("| {eval} | {loss:.4} | {perplexity:.2} | {bits:.4} | {tokens} |\n"));
    }
    Ok(table)
}

impl ExportMergekit {
    /// Writes the mixture as a merge of mergekit's: the same weights, in f32, of the same files.
    pub(super) fn write(self, pool: &Pool) -> Result<PathBuf> {
        let chosen = Chosen::new(pool, &self.mixture, self.notation)?;
        let mut yaml = format!(
            "# {} as mixpool averages it. Run: mergekit-yaml THIS_FILE OUT_FOLDER (with adapters: --lora-merge-cache FOLDER)\n\
             merge_method: linear\ndtype: float32\nparameters:\n  normalize: false # the weights are the mixture's\nmodels:\n",
            self.mixture
        );
        for member in &chosen.members {
            let mut model = absolute(&member.folder)?;
            if LowRankUpdate::is_in(&member.folder) {
                // As mergekit writes an adapter on top of a model.
                model = format!("{}+{model}", absolute(&pool.seed_member()?.folder)?);
            }
            let quoted = serde_json::Value::String(model); // a JSON string is a YAML string
            yaml.push_str(&format!("  - model: {quoted}\n    parameters:\n      weight: {}\n", member.weight));
        }
        files::publish(&self.out, yaml.as_bytes())?;
        Ok(self.out)
    }
}

fn absolute(path: &std::path::Path) -> Result<String> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    Ok(path.display().to_string())
}
