//! Data commands: tokenizer, init, register, eval-set, train.

use super::training::{expert_recipes, train_all, train_seed};
use super::{NotationArgs, Session, print};
use crate::error::{Error, Result};
use crate::files;
use crate::pool::{Outcome, Pool, parse_count};
use crate::progress::Observer;
use crate::text::{BadRecordCounts, OnBadRecord, ReadOptions, TokenType, Tokenizer};
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Subcommand)]
pub(super) enum TokenizerCommand {
    /// Train byte-level BPE on text files
    ///
    /// Example: mixpool tokenizer train general.txt code.jsonl.gz --vocab 4096 --out tokenizer.json
    Train(TokenizerTrain),
}

#[derive(Args)]
pub(super) struct TokenizerTrain {
    /// Files, folders or patterns: .txt or .jsonl, plain, .gz or .zst; .parquet, .arrow
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Number of entries, `<|endoftext|>` included
    #[arg(long, value_name = "N")]
    vocab: usize,
    /// Where to write tokenizer.json
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    text: TextArgs,
}

/// How data is read.
#[derive(Args, Clone)]
struct TextArgs {
    /// Field of JSON records, or column of tables, that holds the text; dots reach into nested objects
    #[arg(long, default_value = "text", value_name = "FIELD")]
    text_field: String,
    /// What to do about records without usable text
    #[arg(long, value_enum, default_value_t)]
    on_bad_record: BadRecordArg,
    /// Type of the ids in files of token ids that have no `NumPy` header; it is never guessed
    #[arg(long, value_enum, value_name = "TYPE")]
    token_dtype: Option<TokenTypeArg>,
    /// Token that ends the documents in files of token ids [default: the tokenizer's EOS]
    #[arg(long, value_name = "TOKEN")]
    end_token: Option<String>,
}

#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum BadRecordArg {
    /// Stop, naming file, line and reason
    #[default]
    Fail,
    /// Leave them out and count them
    Skip,
    /// As skip, and keep place, reason and first bytes in the pool's quarantine folder
    Quarantine,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum TokenTypeArg {
    U8,
    U16,
    U32,
    U64,
    I16,
    I32,
    I64,
}

impl From<TokenTypeArg> for TokenType {
    fn from(token_type: TokenTypeArg) -> Self {
        match token_type {
            TokenTypeArg::U8 => Self::U8,
            TokenTypeArg::U16 => Self::U16,
            TokenTypeArg::U32 => Self::U32,
            TokenTypeArg::U64 => Self::U64,
            TokenTypeArg::I16 => Self::I16,
            TokenTypeArg::I32 => Self::I32,
            TokenTypeArg::I64 => Self::I64,
        }
    }
}

impl TextArgs {
    fn options(&self) -> ReadOptions {
        ReadOptions {
            text_field: self.text_field.clone(),
            on_bad_record: match self.on_bad_record {
                BadRecordArg::Fail => OnBadRecord::Fail,
                BadRecordArg::Skip => OnBadRecord::Skip,
                BadRecordArg::Quarantine => OnBadRecord::Quarantine,
            },
            token_type: self.token_dtype.map(TokenType::from),
            end_token: self.end_token.clone(),
            ..ReadOptions::default()
        }
    }
}

/// "; 3 bad records skipped (2 not JSON, 1 null)", or nothing.
fn counted(bad: Option<&BadRecordCounts>) -> String {
    bad.map(|bad| format!("; {bad}")).unwrap_or_default()
}

impl TokenizerCommand {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let Self::Train(TokenizerTrain { files: paths, vocab, out, text }) = self;
        let bytes = Tokenizer::train(&paths, &text.options(), vocab)?;
        files::sweep_for(&out)?;
        files::publish(&out, &bytes)?;
        session.observer.note(&format!("wrote '{}' with {vocab} entries", out.display()));
        Ok(())
    }
}

/// Create a pool from a recipe
///
/// A recipe is a YAML file:
///
///   model: nano                # pico, nano, micro, small, smol-135m, or the fields of a config.json
///   tokenizer: tokenizer.json
///   seed:                      # the model every expert starts from
///     files: [general.txt]
///     tokens: 2M
///     learning_rate: 3e-3      # cosine by default
///   expert:                    # one per unit of every partition
///     tokens: 200k             # default: one pass over the unit
///     learning_rate: 3e-4      # constant and small: what keeps experts mergeable
///
/// `precision: bf16` in `seed` trains faster, on GPUs only; `--precision`, or a GPU in `--device`, is the default for recipes without it.
///
/// `from: model.gguf`, or a Hugging Face folder, in place of model, tokenizer and seed starts from a pretrained model.
#[derive(Args)]
#[command(verbatim_doc_comment)]
#[allow(clippy::doc_markdown)] // a recipe as it is written
pub(super) struct Init {
    /// The recipe
    recipe: PathBuf,
}

impl Init {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let precision = session.init_precision();
        let pool = Pool::init_in(precision, &session.pool, &self.recipe, &session.observer)?;
        let parameters = pool.layout().len();
        if let Err(unknown) = pool.settings().model.check_runs() {
            session.observer.note(&unknown.to_string());
        }
        session.observer.note(&format!(
            "pool '{}': models of {parameters} parameters, vocabulary {}; next: register partitions, then train",
            pool.root().display(),
            pool.settings().model.vocab_size
        ));
        Ok(())
    }
}

/// Add a data partition
///
/// The documents are tokenised and kept in the pool; registering the same again changes nothing. A folder stands for all its
/// files, one that Hugging Face `datasets` saved for its shards; a quoted pattern is searched by mixpool. Files of token ids must
/// be of the pool's tokenizer.
///
/// Examples: mixpool register wiki wiki-0.jsonl.zst wiki-1.jsonl.zst --units 4 | mixpool register web 'web/**/*.parquet'
/// | mixpool register code tokens.bin --token-dtype u16
#[derive(Args)]
pub(super) struct Register {
    /// Name of the partition
    name: String,
    /// Files, folders or patterns: .txt or .jsonl, plain, .gz or .zst; .parquet, .arrow; token ids as .npy or .bin
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Cut the documents into N units of about equal length; one expert is trained per unit
    #[arg(long, default_value_t = 1, value_name = "N")]
    units: usize,
    #[command(flatten)]
    text: TextArgs,
}

impl Register {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let Self { name, files, units, text } = self;
        let pool = session.open()?;
        let (partition, outcome) = pool.register(&name, &files, units, &text.options(), &session.observer)?;
        let manifest = pool.tokens(partition.text()?)?.manifest().clone();
        session.observer.note(&format!(
            "partition '{name}' {}: {} documents, {} tokens, {units} unit(s){}",
            worded(outcome),
            manifest.n_docs,
            manifest.n_tokens,
            counted(partition.bad_records.as_ref())
        ));
        Ok(())
    }
}

/// Add held-out documents
///
/// Documents that also occur in a partition or in the seed's text are refused.
///
/// Example: mixpool eval-set wiki-test held-out.jsonl --text-field content
#[derive(Args)]
pub(super) struct EvalSet {
    /// Name of the eval set
    name: String,
    /// Files, folders or patterns: .txt or .jsonl, plain, .gz or .zst; .parquet, .arrow; token ids as .npy or .bin
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
}

impl EvalSet {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let Self { name, files, text } = self;
        let pool = session.open()?;
        let (binding, outcome) = pool.add_eval_set(&name, &files, &text.options(), &session.observer)?;
        let manifest = pool.tokens(&binding.tokens)?.manifest().clone();
        session.observer.note(&format!(
            "eval set '{name}' {}: {} documents, {} tokens{}",
            worded(outcome),
            manifest.n_docs,
            manifest.n_tokens,
            counted(binding.bad_records.as_ref())
        ));
        Ok(())
    }
}

fn worded(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Added => "added",
        Outcome::Unchanged => "was there already",
    }
}

/// Train what is missing: seed model, experts, or a model on a mixture
///
/// Without a name: the seed model, then the experts of every partition. Training may be stopped at any time; the same
/// command goes on where it stopped and ends with the same bytes. Several processes, on several hosts, may train one pool: each
/// takes what no other has taken; `--device cuda` trains on every GPU of the machine, one model at a time on each.
///
/// Examples: mixpool train | mixpool train code wiki | mixpool train --mixture code=0.7+wiki=0.3
#[derive(Args)]
pub(super) struct Train {
    /// Partitions whose experts are wanted, or `seed` [default: all]
    names: Vec<String>,
    /// Train a model on this mixture for real
    #[arg(long, value_name = "MIX", conflicts_with = "names")]
    mixture: Option<String>,
    /// Training tokens for --mixture, e.g. 500k [default: those of the experts in it together]
    #[arg(long, value_name = "TOKENS", requires = "mixture")]
    tokens: Option<String>,
    /// When all that is left is being trained by other processes, wait for them instead of ending with exit code 11
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    notation: NotationArgs,
}

impl Train {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let pool = session.open()?;
        session.check_training_precision(&pool)?;
        let observer = &session.observer;
        if let Some(mixture) = &self.mixture {
            let tokens = token_budget(self.tokens.as_deref())?;
            let mixture = &self.notation.parse(std::slice::from_ref(mixture), &pool)?[0];
            let recipe = pool.mixture_recipe(mixture, tokens)?;
            train_seed(&pool, observer)?;
            let manifest = pool.get_or_train(&recipe, &mixture.to_string(), observer)?;
            return print(&format!("{}\n", manifest.id));
        }
        let names = if self.names.is_empty() { pool.partitions()?.into_keys().collect() } else { self.names };
        let partitions = names.iter().filter(|name| *name != "seed").map(|name| pool.partition(name));
        let partitions = partitions.collect::<Result<Vec<_>>>()?; // all names checked before anything is trained
        let seed = vec![(pool.seed_recipe()?, "seed model".to_owned())];
        train_all(&pool, seed, self.wait, session)?;
        let mut experts = Vec::new();
        for partition in &partitions {
            experts.extend(expert_recipes(&pool, partition)?);
        }
        train_all(&pool, experts, self.wait, session)
    }
}

/// Reads `--tokens`.
pub(super) fn token_budget(text: Option<&str>) -> Result<Option<u64>> {
    let refuse = |text: &str| Error::Usage(format!("'--tokens {text}': expected a number such as 500000, 500k or 2M"));
    text.map(|text| parse_count(text).filter(|n| *n > 0).ok_or_else(|| refuse(text))).transpose()
}
