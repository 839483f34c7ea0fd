//! Self-bench: one piece of work on a device, timed for every line on stdin, for `scripts/gpu-check`.

use super::{Session, print};
use crate::error::{Error, Result};
use crate::eval::{EvalSet, Evaluator};
use crate::files;
use crate::kernels::{Compute, Floats, Source, StreamedSums, weighted_sums_on_device};
use crate::model::{Layout, ModelConfig};
use crate::progress::Observer;
use crate::text::{Batches, Share, TokenFile};
use crate::train::{State, TrainConfig, Trainer};
use candle_core::{DType, Tensor};
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Time one piece of work: `{"seconds": S, "amount": A, "unit": U}` on stdout for each line on stdin
#[derive(Args)]
pub(super) struct SelfBench {
    /// train, score, merge (members on the device), stream (members from memory) or copy
    work: String,
    /// A preset
    model: String,
    /// Tokens of a step, or of a scored text; members of a merge
    amount: usize,
    /// Tokens of a sequence or window
    #[arg(default_value_t = 1024)]
    length: usize,
    /// An empty folder for a little text
    #[arg(long, value_name = "DIR")]
    scratch: PathBuf,
}

impl SelfBench {
    pub(super) fn run(self, session: &Session) -> Result<()> {
        let compute = session.device.open(session.precision())?;
        let config = ModelConfig::preset(&self.model)?;
        let layout = Layout::of(&config);
        files::create_folder(&self.scratch)?;
        match self.work.as_str() {
            "train" => self.train(&compute, session, &config, &layout),
            "score" => self.score(&compute, &config, &layout),
            "merge" | "copy" => self.merge(&compute, &layout),
            "stream" => self.stream(&compute, &layout),
            other => Err(Error::Usage(format!("'{other}': expected train, score, merge, stream or copy"))),
        }
    }

    /// Steps as `mixpool train` takes them: as many in a row as it does between two looks at the losses.
    fn train(&self, compute: &Compute, session: &Session, config: &ModelConfig, layout: &Layout) -> Result<()> {
        let tokens = text(&self.scratch, 1 << 20, config.vocab_size)?;
        let mut batches = Batches::new(&[Share { tokens: &tokens, documents: 0..1, weight: 1.0 }], 0, self.length, 0)?;
        let batch = (self.amount / self.length).max(1);
        let schedule =
            TrainConfig { precision: session.precision(), ..TrainConfig::new(1 << 40, batch, self.length, 1e-4) };
        let state = State::fresh(layout.initial_values(config, 0));
        let mut trainer = Trainer::on(compute, config, layout, &schedule, state)?;
        let clock = Clock(Mutex::new((None, 0)));
        match trainer.run(&mut batches, "bench", &clock, f64::INFINITY, |_| Ok(())) {
            Err(Error::Stopped { .. }) => Ok(()), // no more was asked
            ended => ended,
        }
    }

    fn score(&self, compute: &Compute, config: &ModelConfig, layout: &Layout) -> Result<()> {
        let set = EvalSet::new("random", &text(&self.scratch, self.amount, config.vocab_size)?, 0, self.length)?;
        let mut evaluator = Evaluator::on(compute, config, layout, self.length)?;
        evaluator.set_pass_tokens(32 << 10);
        evaluator.set(|out| {
            out.copy_from_slice(&layout.initial_values(config, 0));
            Ok(())
        })?;
        measure(self.amount as f64, "tokens", || evaluator.nll(&set).map(|_| ()))
    }

    /// Merges of bf16 members that lie on the device into an f32 model, or copies of one, in a row; the bytes read and written.
    fn merge(&self, compute: &Compute, layout: &Layout) -> Result<()> {
        const ROW: usize = 10;
        let (n, device) = (layout.len(), compute.device());
        let member = |index: usize| -> Result<Tensor> {
            let values: Vec<f32> = (0..n).map(|i| ((i * 7 + index * 13) % 1009) as f32 * 1e-3).collect();
            Ok(Tensor::from_vec(values, n, &candle_core::Device::Cpu)?.to_dtype(DType::BF16)?.to_device(device)?)
        };
        let members = (0..self.amount).map(member).collect::<Result<Vec<_>>>()?;
        let out = Tensor::zeros(n, DType::F32, device)?;
        let is_copy = self.work == "copy";
        let from = Tensor::zeros(n, DType::F32, device)?;
        let bytes = if is_copy { 8 * n } else { (2 * self.amount + 4) * n };
        let weights = vec![vec![1.0 / self.amount.max(1) as f64; self.amount]];
        measure((ROW * bytes) as f64, "bytes", || {
            for _ in 0..ROW {
                if is_copy {
                    out.slice_set(&from, 0, 0)?;
                } else {
                    weighted_sums_on_device(std::slice::from_ref(&out), &weights, &members)?;
                }
            }
            compute.wait()
        })
    }

    /// Merges of bf16 members that lie in the host's memory; the bytes brought over.
    fn stream(&self, compute: &Compute, layout: &Layout) -> Result<()> {
        let n = layout.len();
        let host: Vec<Vec<u8>> = (0..self.amount).map(|index| vec![60 + index as u8; 2 * n]).collect();
        let out = Tensor::zeros(n, DType::F32, compute.device())?;
        let mut sums = StreamedSums::new(compute.device(), 64 << 20);
        let weights = vec![vec![1.0 / self.amount.max(1) as f64; self.amount]];
        measure((2 * self.amount * n) as f64, "bytes", || {
            let members: Vec<_> = host.iter().map(|bytes| Source::Host(vec![Floats::BF16(bytes)])).collect();
            sums.sum(std::slice::from_ref(&out), &weights, &members)?;
            compute.wait()
        })
    }
}

/// Runs once to warm up, then once for every line on stdin.
fn measure(amount: f64, unit: &str, mut run: impl FnMut() -> Result<()>) -> Result<()> {
    run()?;
    loop {
        if !asked()? {
            return Ok(());
        }
        let start = Instant::now();
        run()?;
        answer(start, amount, unit)?;
    }
}

/// Waits for a line on stdin; false at its end.
fn asked() -> Result<bool> {
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line).map_err(Error::io("read", "stdin"))?;
    Ok(read > 0)
}

fn answer(start: Instant, amount: f64, unit: &str) -> Result<()> {
    let seconds = start.elapsed().as_secs_f64();
    print(&format!("{{\"seconds\": {seconds}, \"amount\": {amount}, \"unit\": \"{unit}\"}}\n"))
}

/// Waits before some steps until they are asked for, and answers after them: when they began, and how many tokens were done.
struct Clock(Mutex<(Option<Instant>, u64)>);

impl Observer for Clock {
    fn begin(&self, _: &str, _: u64, _: &'static str) {}
    fn finish(&self) {}
    fn note(&self, _: &str) {}

    fn advance(&self, done: u64, _: &str) {
        let mut clock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (started, before) = *clock;
        if let Some(start) = started {
            let _ = answer(start, (done - before) as f64, "tokens");
        }
        clock.1 = done;
    }

    fn check(&self) -> Result<()> {
        let mut clock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if clock.1 > 0 {
            if !asked()? {
                return Err(Error::Stopped { signal: "SIGTERM" });
            }
            clock.0 = Some(Instant::now()); // the first steps warm up
        }
        Ok(())
    }
}

/// One document of so many random ids, as a token folder.
fn text(folder: &Path, count: usize, vocabulary: usize) -> Result<TokenFile> {
    let mut stream = crate::rng::Stream::new(0, "bench");
    let ids: Vec<u8> = (0..count).flat_map(|_| ((stream.uniform() * vocabulary as f64) as u16).to_le_bytes()).collect();
    let document = [(count as u64).to_le_bytes(), (4 * count as u64).to_le_bytes(), [0; 8], [0; 8]].concat();
    let manifest = serde_json::json!({
        "hash": "random", "tokenizer": "none", "id_bytes": 2, "n_tokens": count, "n_bytes": 4 * count, "n_docs": 1,
        "sources": [],
    });
    for (name, bytes) in
        [("tokens.bin", ids), ("documents.bin", document), ("manifest.json", manifest.to_string().into())]
    {
        files::write_durably(&folder.join(name), &bytes)?;
    }
    TokenFile::open(folder)
}
