//! Demo command: the whole job on the text that ships with the project.

use super::data::{train_experts, train_seed};
use super::question::{rankings, rows, score_all, subsets};
use super::validate::{agreement, draw, ground_truth};
use super::{Session, print};
use crate::error::{Error, Result};
use crate::files;
use crate::mixture::{Mixture, Notation};
use crate::pool::{Pool, Scored};
use crate::progress::Observer;
use crate::report::{AgreementRow, Format, render, write_csv};
use crate::text::{ReadOptions, Tokenizer};
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Partitions of the demo: folders of the demo text with `train.txt` and `heldout.txt`.
const PARTITIONS: [&str; 6] = ["austen", "bible", "math", "python", "spanish", "wordnet"];
/// Entries of the demo's tokenizer.
const VOCABULARY: usize = 4096;
/// Mixtures trained for real.
const TRUTHS: usize = 12;
/// Training tokens of each of them, as many as of an expert: one budget for all sizes, so that size alone moves no loss.
const TRUTH_TOKENS: u64 = 122_880;

/// The recipe of the demo's pool.
///
/// The seed's cosine ends at a tenth of its peak, 4e-4; experts go on at that rate, constant, for one short pass: they
/// move a few per cent from the seed (the relative update that `show` prints) and stay mergeable.
const RECIPE: &str = "\
model: nano
tokenizer: tokenizer.json
seed:
  files: [SEED]
  tokens: 800k
  learning_rate: 4e-3
  batch_size: 16
  sequence_length: 256
expert:
  tokens: 120k
  learning_rate: 4e-4
";

/// Run the whole job on the text that ships with the project
///
/// Trains a tokenizer, a seed model of 1.3 million parameters and one expert for each of six partitions; ranks all 63
/// subsets on seven eval sets by merging; trains twelve mixtures for real; and prints how well merging predicted them.
/// Takes a few minutes on two cores. A second run reads what is stored; an interrupted one goes on.
#[derive(Args)]
pub(super) struct Demo {
    /// Where the demo's text lies [default: data/demo of the project]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where tables are written
    #[arg(long, value_name = "DIR", default_value = "results/demo")]
    out: PathBuf,
}

impl Demo {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let started = Instant::now();
        let observer = &session.observer;
        let data = self.data.map_or_else(find_data, Ok)?;
        let pool = prepare(&session.pool.join("demo"), &data, observer)?;
        train_seed(&pool, observer)?;
        for partition in pool.partitions()?.values() {
            train_experts(&pool, partition, observer)?;
        }
        let partitions = pool.unit_counts()?;
        let mixtures = subsets(&partitions, 1..=partitions.len(), Notation::default())?;
        let mut scorer = pool.scorer(&[])?;
        let scored = score_all(&pool, &mut scorer, &mixtures, "rank every subset", observer)?;
        let chosen = draw(mixtures.clone(), TRUTHS);
        let merged = score_all(&pool, &mut scorer, &chosen, "score", observer)?;
        let truth = ground_truth(&pool, &mut scorer, &chosen, Some(TRUTH_TOKENS), observer)?;

        let evals = scorer.eval_names();
        let rankings = rankings(&evals, &mixtures, &scored);
        let agreement = agreement(&evals, &merged, &truth);
        files::create_folder(&self.out)?;
        write_csv(&self.out.join("ranking.csv"), &rows(&rankings, usize::MAX))?;
        write_csv(&self.out.join("truth.csv"), &truth_rows(&chosen, &merged, &truth))?;
        write_csv(&self.out.join("agreement.csv"), &agreement)?;
        observer.note(&format!(
            "wrote ranking.csv, truth.csv and agreement.csv to '{}'; the pool is '{}'; {:.1} s in all",
            self.out.display(),
            pool.root().display(),
            started.elapsed().as_secs_f64()
        ));
        if session.format != Format::Table {
            return print(&render(&rows(&rankings, usize::MAX), session.format)?);
        }
        print(&format!(
            "\nThe three best of {} mixtures on each eval set, by merged experts:\n\n{}\n{}",
            mixtures.len(),
            render(&rows(&rankings, 3), Format::Table)?,
            verdict(&agreement, chosen.len())?
        ))
    }
}

/// The demo's text: beside the source the program was built from, or below the current folder.
fn find_data() -> Result<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo");
    let here = PathBuf::from("data/demo");
    [here, built].into_iter().find(|path| path.join("seed/train.txt").exists()).ok_or_else(|| {
        Error::Usage(
            "the demo's text is not here; run this in a clone of the project, or name it with --data DIR".into(),
        )
    })
}

/// Tokenizer, recipe, pool, partitions and eval sets; what is there already is kept.
fn prepare(root: &Path, data: &Path, observer: &dyn Observer) -> Result<Pool> {
    let train = |name: &str| data.join(name).join("train.txt");
    files::create_folder(root)?;
    let tokenizer = root.join("demo-tokenizer.json");
    if !tokenizer.exists() {
        let texts: Vec<PathBuf> = std::iter::once("seed").chain(PARTITIONS).map(train).collect();
        files::publish(&tokenizer, &Tokenizer::train(&texts, &ReadOptions::default(), VOCABULARY)?)?;
    }
    let seed = std::path::absolute(train("seed")).map_err(Error::io("find", train("seed")))?;
    let recipe = root.join("demo-recipe.yaml");
    let quoted = format!("'{}'", seed.display().to_string().replace('\'', "''"));
    let text = RECIPE.replace("tokenizer.json", "demo-tokenizer.json").replace("SEED", &quoted);
    files::publish(&recipe, text.as_bytes())?;
    let pool = Pool::init(root, &recipe, observer)?;
    let options = ReadOptions::default();
    for name in PARTITIONS {
        pool.register(name, &[train(name)], 1, &options, observer)?;
    }
    for name in PARTITIONS.into_iter().chain(["mixed"]) {
        pool.add_eval_set(name, &[data.join(name).join("heldout.txt")], &options, observer)?;
    }
    Ok(pool)
}

/// One mixture on one eval set, predicted and true.
#[derive(Serialize)]
struct TruthRow {
    mixture: String,
    eval_set: String,
    merged_loss: f64,
    true_loss: f64,
    n_tokens: u64,
}

fn truth_rows(mixtures: &[Mixture], merged: &[Vec<Scored>], truth: &[Vec<Scored>]) -> Vec<TruthRow> {
    let row = |mixture: &Mixture, merged: &Scored, truth: &Scored| TruthRow {
        mixture: mixture.to_string(),
        eval_set: truth.eval_set.clone(),
        merged_loss: merged.record.score.loss(),
        true_loss: truth.record.score.loss(),
        n_tokens: truth.record.score.n_tokens,
    };
    let per_mixture = mixtures.iter().zip(merged).zip(truth);
    per_mixture
        .flat_map(|((mixture, merged), truth)| merged.iter().zip(truth).map(move |(m, t)| row(mixture, m, t)))
        .collect()
}

/// The agreement table and how to read it.
fn verdict(agreement: &[AgreementRow], n: usize) -> Result<String> {
    let correlations: Vec<f64> = agreement.iter().filter_map(|row| row.spearman).collect();
    let mean = correlations.iter().sum::<f64>() / correlations.len().max(1) as f64;
    Ok(format!(
        "How well merging predicted {n} mixtures that were really trained, {TRUTH_TOKENS} tokens each:\n\n{}\n\
         Mean Spearman {mean:.2}. Losses of merges are offset from losses of trained models (mean_offset): \
         read them as an order.\n",
        render(agreement, Format::Table)?
    ))
}
