//! Demo command: the whole job on the text that ships with the project.

use super::question::{rows, subsets};
use super::training::{expert_recipes, train_all, train_seed};
use super::validate::{agreement, draw};
use super::{Session, print};
use crate::error::{Error, Result};
use crate::estimators::{Answer, Question, Spec, ask};
use crate::files;
use crate::kernels::Precision;
use crate::mixture::{Mixture, Notation};
use crate::pool::Pool;
use crate::progress::Observer;
use crate::report::{AgreementLine, AgreementRow, Format, render, write_csv};
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
/// Takes a few minutes on two cores; with `--device cuda` it is trained in bf16, in a pool of its own. A second run reads what is stored; an interrupted one goes on.
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
        let precision = session.init_precision();
        let name = if precision.is_f32() { "demo".into() } else { format!("demo-{precision}") };
        let pool = prepare(&session.pool.join(name), &data, precision, observer)?;
        let pool = pool.computing_on(session.device, session.precision());
        train_seed(&pool, observer)?;
        let mut experts = Vec::new();
        for partition in pool.partitions()?.values() {
            experts.extend(expert_recipes(&pool, partition)?);
        }
        train_all(&pool, experts, false, session)?;
        let partitions = pool.unit_counts()?;
        let mixtures = subsets(&partitions, 1..=partitions.len(), Notation::default())?;
        let evals = pool.chosen_evals(&[])?;
        let sizes = pool.eval_sizes(&evals)?;
        let chosen = draw(mixtures.clone(), TRUTHS);
        let question = Question { pool: &pool, evals: &evals, judged: &chosen, tokens: Some(TRUTH_TOKENS), observer };
        let say = |name: &str, mixtures: &[Mixture]| ask(&Spec::parse(name)?, &question, mixtures, 0);
        let ranked = say("merged", &mixtures)?;
        let truth = say("ground-truth", &chosen)?;
        let answers = [&ranked[..], &say("mean-of-experts", &chosen)?, &truth].concat();

        let agreement = agreement(&answers);
        files::create_folder(&self.out)?;
        write_csv(&self.out.join("ranking.csv"), &rows(&sizes, &ranked, usize::MAX))?;
        write_csv(&self.out.join("truth.csv"), &truth_rows(&ranked, &truth))?;
        write_csv(&self.out.join("agreement.csv"), &agreement)?;
        observer.note(&format!(
            "wrote ranking.csv, truth.csv and agreement.csv to '{}'; the pool is '{}'; {:.1} s in all",
            self.out.display(),
            pool.root().display(),
            started.elapsed().as_secs_f64()
        ));
        if session.format != Format::Table {
            return print(&render(&rows(&sizes, &ranked, usize::MAX), session.format)?);
        }
        print(&format!(
            "\nThe three best of {} mixtures on each eval set, by merged experts:\n\n{}\n{}",
            mixtures.len(),
            render(&rows(&sizes, &ranked, 3), Format::Table)?,
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
fn prepare(root: &Path, data: &Path, precision: Precision, observer: &dyn Observer) -> Result<Pool> {
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
    let pool = Pool::init_in(precision, root, &recipe, observer)?;
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
}

fn truth_rows(merged: &[Answer], truth: &[Answer]) -> Vec<TruthRow> {
    let pairs = merged.iter().zip(truth).flat_map(|(merged, truth)| {
        let row = |(mixture, true_loss): (&String, &f64)| {
            let (mixture, eval_set) = (mixture.clone(), truth.eval_set.clone());
            merged.predictions.get(&mixture).map(|loss| TruthRow {
                mixture,
                eval_set,
                merged_loss: *loss,
                true_loss: *true_loss,
            })
        };
        truth.predictions.iter().filter_map(row)
    });
    pairs.collect()
}

/// The agreement table and how to read it.
fn verdict(agreement: &[AgreementRow], n: usize) -> Result<String> {
    let every_size = || agreement.iter().filter(|row| row.size.is_none());
    let lines: Vec<AgreementLine> =
        every_size().filter(|row| row.estimator == "merged" || row.is_overall).map(AgreementLine::from).collect();
    let overall = |name: &str| every_size().find(|row| row.is_overall && row.estimator == name)?.spearman;
    let worded = |name: &str| overall(name).map_or("undefined".to_owned(), |spearman| format!("{spearman:.2}"));
    Ok(format!(
        "How well merging predicted {n} mixtures that were really trained, {TRUTH_TOKENS} tokens each:\n\n{}\n\
         Mean Spearman {} by merging, {} by the mean of the experts' losses. Losses of merges are offset from losses of \
         trained models (mean_offset): read them as an order.\n",
        render(&lines, Format::Table)?,
        worded("merged"),
        worded("mean-of-experts"),
    ))
}
