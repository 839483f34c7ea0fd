//! Peer: runs one piece of mixpool's work and prints how long it took as a line of JSON; `scripts/bench-peers` sets it
//! beside other programs.
//!
//! `cargo bench --bench peer -- score micro 256`
#![allow(clippy::print_stdout)]

#[path = "../src/allocator.rs"]
mod allocator;
#[path = "../tests/common/mod.rs"]
mod common;

use candle_core::Tensor;
use clap::{Parser, Subcommand};
use mixpool::eval::{EvalSet, Evaluator};
use mixpool::kernels::{Exec, linear};
use mixpool::merge::average;
use mixpool::model::{Checkpoint, Layout, ModelConfig, write_checkpoint};
use mixpool::text::{Batches, Share};
use mixpool::train::{State, TrainConfig, Trainer};
use rayon::prelude::*;
use std::path::PathBuf;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Time one piece of work.
#[derive(Parser)]
struct Options {
    /// Threads to use [default: all cores]
    #[arg(long, global = true, default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Runs behind one measurement; their median is printed
    #[arg(long, global = true, default_value_t = 1)]
    repeats: usize,
    /// Measure once for every line on stdin instead of once
    #[arg(long, global = true)]
    ask: bool,
    /// Passed by `cargo bench`
    #[arg(long, global = true, hide = true)]
    bench: bool,
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Score random tokens in windows of WINDOW predictions
    Score {
        preset: String,
        window: usize,
        #[arg(default_value_t = 8192)]
        tokens: usize,
    },
    /// One optimiser step on BATCH sequences
    Train { preset: String, batch: usize, sequence: usize },
    /// Average COUNT of the models in FOLDERS, one folder further each time
    Merge {
        count: usize,
        #[arg(required = true)]
        folders: Vec<PathBuf>,
    },
    /// Copy BYTES from one buffer to another: what the memory allows
    Copy { bytes: usize },
    /// `kernels::linear` of M rows, N outputs and K inputs
    Gemm { m: usize, n: usize, k: usize },
    /// Print a preset's config instead of measuring
    Config { preset: String },
    /// Write a model of random weights instead of measuring
    Model { preset: String, seed: u64, folder: PathBuf },
}

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    let options = Options::parse();
    let workers = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
    workers.install(|| match &options.work {
        Work::Score { preset, window, tokens } => score(&options, preset, *window, *tokens),
        Work::Train { preset, batch, sequence } => train(&options, preset, *batch, *sequence),
        Work::Merge { count, folders } => merge(&options, *count, folders),
        Work::Copy { bytes } => copy(&options, *bytes),
        Work::Gemm { m, n, k } => gemm(&options, *m, *n, *k),
        Work::Config { preset } => {
            println!("{}", serde_json::to_string(&ModelConfig::preset(preset)?)?);
            Ok(())
        }
        Work::Model { preset, seed, folder } => {
            let (config, layout) = shape(preset)?;
            std::fs::create_dir_all(folder)?;
            Ok(write_checkpoint(folder, &config, &layout, &layout.initial_values(&config, *seed))?)
        }
    })
}

/// What is measured: a work and its model, and how many tokens, bytes or operations one run handles.
struct Subject<'a> {
    work: &'a str,
    model: &'a str,
    amount: f64,
    unit: &'a str,
}

impl Options {
    /// Runs `run` once to warm up, then for one measurement or as many as stdin asks for.
    fn measure(&self, subject: &Subject<'_>, mut run: impl FnMut() -> Result<()>) -> Result<()> {
        run()?;
        let mut once = || -> Result<()> {
            let mut seconds = Vec::new();
            for _ in 0..self.repeats.max(1) {
                let start = Instant::now();
                run()?;
                seconds.push(start.elapsed().as_secs_f64());
            }
            seconds.sort_by(f64::total_cmp);
            let median = f64::midpoint(seconds[seconds.len() / 2], seconds[(seconds.len() - 1) / 2]);
            let mut line = serde_json::json!({
                "work": subject.work, "model": subject.model, "seconds": median, "repeats": seconds.len(),
            });
            line[format!("{}_per_second", subject.unit)] = (subject.amount / median).into();
            println!("{line}");
            Ok(())
        };
        if self.ask { std::io::stdin().lines().try_for_each(|_| once()) } else { once() }
    }
}

/// Scores one document of `tokens` random ids, as `mixpool score` does after the merge.
fn score(options: &Options, preset: &str, window: usize, tokens: usize) -> Result<()> {
    let (config, layout) = shape(preset)?;
    let folder = tempfile::tempdir()?;
    write_checkpoint(folder.path(), &config, &layout, &layout.initial_values(&config, 0))?;
    let document = common::tokens(0, tokens, config.vocab_size);
    let set = EvalSet::new("random", &common::token_file(&folder.path().join("tokens"), &[document]), 0, window)?;
    let evaluator = Evaluator::new(&config, &layout, window)?;
    evaluator.set(|out| average(out, &layout, &[(1.0, &Checkpoint::open(folder.path())?)]))?;
    options.measure(&Subject { work: "score", model: preset, amount: tokens as f64, unit: "tokens" }, || {
        std::hint::black_box(evaluator.nll(&set)?);
        Ok(())
    })
}

/// Takes optimiser steps as `mixpool train` does.
fn train(options: &Options, preset: &str, batch: usize, sequence: usize) -> Result<()> {
    const DOCUMENT: usize = 1 << 18;
    let (config, layout) = shape(preset)?;
    let folder = tempfile::tempdir()?;
    let tokens = common::token_file(folder.path(), &[common::tokens(0, DOCUMENT, config.vocab_size)]);
    let mut batches = Batches::new(&[Share { tokens: &tokens, documents: 0..1, weight: 1.0 }], 0, sequence, 0)?;
    let schedule = TrainConfig::new(u64::MAX, batch, sequence, 3e-4);
    let state = State::fresh(layout.initial_values(&config, 0));
    let mut trainer = Trainer::new(&config, &layout, &schedule, state)?;
    let amount = (batch * sequence) as f64;
    options.measure(&Subject { work: "train", model: preset, amount, unit: "tokens" }, || {
        trainer.step(&mut batches, "bench")?;
        Ok(())
    })
}

/// Averages mapped files into one buffer; they stay mapped from one run to the next, as in `mixpool rank`.
///
/// Counts the bytes read and written.
fn merge(options: &Options, count: usize, folders: &[PathBuf]) -> Result<()> {
    let layout = Checkpoint::open(&folders[0])?.layout();
    let file = std::fs::metadata(folders[0].join("model.safetensors"))?.len();
    let mut out = vec![0f32; layout.len()];
    let open = folders.iter().map(|folder| Checkpoint::open(folder)).collect::<mixpool::Result<Vec<_>>>()?;
    let mut order = open.iter().cycle();
    let weight = 1.0 / count as f64;
    let amount = (count as u64 * file) as f64 + (layout.len() * size_of::<f32>()) as f64;
    options.measure(&Subject { work: "merge", model: "", amount, unit: "bytes" }, || {
        let start = order.next();
        let members = start.into_iter().chain(order.clone().take(count - 1));
        let weighted: Vec<_> = members.map(|member| (weight, member)).collect();
        average(&mut out, &layout, &weighted)?;
        Ok(())
    })
}

/// Copies in blocks over all threads; bytes read and written.
fn copy(options: &Options, bytes: usize) -> Result<()> {
    const BLOCK: usize = 1 << 20;
    let (source, mut target) = (vec![1u8; bytes], vec![0u8; bytes]);
    options.measure(&Subject { work: "copy", model: "", amount: 2.0 * bytes as f64, unit: "bytes" }, || {
        target.par_chunks_mut(BLOCK).zip(source.par_chunks(BLOCK)).for_each(|(to, from)| to.copy_from_slice(from));
        Ok(())
    })
}

/// One product, with the result's allocation, split over all threads.
fn gemm(options: &Options, m: usize, n: usize, k: usize) -> Result<()> {
    let matrix = |name: &str, rows: usize, columns: usize| -> Result<Tensor> {
        Ok(common::flat(common::values(name, rows * columns)).reshape((rows, columns))?)
    };
    let (x, w) = (matrix("x", m, k)?, matrix("w", n, k)?);
    let amount = 2.0 * (m * n * k) as f64;
    options.measure(&Subject { work: "gemm", model: "", amount, unit: "operations" }, || {
        std::hint::black_box(linear(Exec::Split, &x, &w)?);
        Ok(())
    })
}

fn shape(preset: &str) -> Result<(ModelConfig, Layout)> {
    let config = ModelConfig::preset(preset)?;
    let layout = Layout::of(&config);
    Ok((config, layout))
}
