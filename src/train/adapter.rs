//! Adapters: low-rank additions to linear layers, trained while everything else stands still.
//!
//! Hu et al. 2021 (arXiv 2106.09685): W = W₀ + s B A with A `[rank, in]` and B `[out, rank]`. The gradient of W gives those of
//! the factors, ∂A = s Bᵀ∂W and ∂B = s ∂W Aᵀ, so a model runs on merged weights and knows nothing of adapters.

use super::{CurvePoint, Pace, State, TrainConfig, take_steps};
use crate::error::{Error, Result};
use crate::kernels::{
    AdamW, Compute, Exec, Into, Matrix, MatrixMut, Precision, adamw_step, fill_zero, matmul, rewrite, sum_of_squares,
    values,
};
use crate::model::{Layout, ModelConfig, Sequences, Transformer, Weights};
use crate::progress::Observer;
use crate::rng::Stream;
use crate::text::{Batch, Batches};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::ops::Range;

/// The layers that get an adapter: those of Li et al. 2024 (arXiv 2409.19458).
const TARGETS: [&str; 3] = ["q_proj.weight", "k_proj.weight", "v_proj.weight"];

/// Where adapters lie, in a vector of their own, and what they add to.
pub struct Adapters {
    layout: Layout,
    pairs: Vec<Pair>,
    scale: f32,
}

/// The adapter of one matrix `[rows, columns]`.
struct Pair {
    weight: Range<usize>,
    a: Range<usize>,
    b: Range<usize>,
    rows: usize,
    columns: usize,
    rank: usize,
}

impl Adapters {
    /// Adapters of the queries, keys and values of every block, with s = `scale`.
    ///
    /// # Errors
    /// [`Error::Usage`] when the rank is 0 or above the size of a matrix, or the model has no such layers.
    pub fn new(model: &Layout, rank: usize, scale: f32) -> Result<Self> {
        let is_target = |name: &str| TARGETS.iter().any(|target| name.ends_with(target));
        let targets: Vec<_> = model.parameters().iter().filter(|parameter| is_target(&parameter.name)).collect();
        if targets.is_empty() {
            let problem =
                "adapters go to queries, keys and values that are layers of their own, which this model has not";
            return Err(Error::Usage(problem.into()));
        }
        let largest = targets.iter().flat_map(|parameter| parameter.shape.iter().copied()).min().unwrap_or(0);
        if !(1..=largest).contains(&rank) {
            return Err(Error::Usage(format!("adapters of rank {rank}: expected 1 to {largest}")));
        }
        let names = |name: &str| ["lora_A", "lora_B"].map(|part| name.replace(".weight", &format!(".{part}.weight")));
        let mut shapes = BTreeMap::new();
        for parameter in &targets {
            let [a, b] = names(&parameter.name);
            shapes.extend([(a, vec![rank, parameter.shape[1]]), (b, vec![parameter.shape[0], rank])]);
        }
        let layout = Layout::from_shapes(shapes);
        let mut pairs = Vec::with_capacity(targets.len());
        for parameter in targets {
            let [a, b] = names(&parameter.name);
            let (a, b) = (layout.parameter(&a)?.range(), layout.parameter(&b)?.range());
            let (rows, columns) = (parameter.shape[0], parameter.shape[1]);
            pairs.push(Pair { weight: parameter.range(), a, b, rows, columns, rank });
        }
        Ok(Self { layout, pairs, scale })
    }

    /// The names and places of the factors.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Adapters that add nothing yet: A uniform in ±1/√in, B = 0, as in `peft`.
    pub fn initial_values(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; self.layout.len()];
        for parameter in self.layout.parameters().iter().filter(|parameter| parameter.name.contains("lora_A")) {
            let bound = 1.0 / (parameter.shape[1] as f64).sqrt();
            let mut stream = Stream::new(seed, &format!("init {}", parameter.name));
            values[parameter.range()].fill_with(|| (bound * (2.0 * stream.uniform() - 1.0)) as f32);
        }
        values
    }

    /// Writes the parameters `base` with the adapters added over `out`, both in the order of the model's layout.
    pub fn merge(&self, base: &[f32], adapters: &[f32], out: &mut [f32]) {
        out.copy_from_slice(base);
        for pair in &self.pairs {
            let mut product = vec![0f32; pair.weight.len()];
            let into = MatrixMut::new(&mut product, pair.rows, pair.columns);
            matmul(Exec::Split, Into::Overwrite, into, pair.b(adapters), pair.a(adapters));
            out[pair.weight.clone()].iter_mut().zip(product).for_each(|(w, add)| *w += self.scale * add);
        }
    }

    /// Writes the gradient of the adapters over `out`, from that of the merged model, in the order of its layout.
    pub fn gradient(&self, adapters: &[f32], whole: &[f32], out: &mut [f32]) {
        for pair in &self.pairs {
            let whole = Matrix::new(&whole[pair.weight.clone()], pair.rows, pair.columns);
            let a = MatrixMut::new(&mut out[pair.a.clone()], pair.rank, pair.columns);
            matmul(Exec::Split, Into::Overwrite, a, pair.b(adapters).t(), whole);
            let b = MatrixMut::new(&mut out[pair.b.clone()], pair.rows, pair.rank);
            matmul(Exec::Split, Into::Overwrite, b, whole, pair.a(adapters).t());
        }
        out.iter_mut().for_each(|value| *value *= self.scale);
    }
}

impl Pair {
    fn a<'v>(&self, adapters: &'v [f32]) -> Matrix<'v> {
        Matrix::new(&adapters[self.a.clone()], self.rank, self.columns)
    }

    fn b<'v>(&self, adapters: &'v [f32]) -> Matrix<'v> {
        Matrix::new(&adapters[self.b.clone()], self.rows, self.rank)
    }
}

/// Adapters in training.
pub struct AdapterTrainer<'a> {
    config: &'a TrainConfig,
    adapters: &'a Adapters,
    base: &'a [f32],
    compute: Compute,
    model: Transformer,
    merged: Tensor, // with its gradient, where the model runs; the adapters are on the processor
    whole: Tensor,
    views: Weights,
    values: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    step: u64,
    curve: Vec<CurvePoint>,
}

impl<'a> AdapterTrainer<'a> {
    /// Starts on the processor from a state of adapters, fresh or as it was stored, of a model with parameters `base`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the layout does not fit the model.
    pub fn new(
        model: &ModelConfig,
        layout: &Layout,
        config: &'a TrainConfig,
        base: &'a [f32],
        adapters: &'a Adapters,
        state: State,
    ) -> Result<Self> {
        Self::on(&Compute::cpu(), model, layout, config, base, adapters, state)
    }

    /// As [`AdapterTrainer::new`], the model running in f32 wherever `compute` says; what concerns the adapters alone, their update too, stays
    /// on the processor.
    ///
    /// # Errors
    /// As [`AdapterTrainer::new`], and those of the device.
    pub fn on(
        compute: &Compute,
        model: &ModelConfig,
        layout: &Layout,
        config: &'a TrainConfig,
        base: &'a [f32],
        adapters: &'a Adapters,
        state: State,
    ) -> Result<Self> {
        let compute = compute.in_precision(Precision::F32);
        let zeros = |length: usize, device: &Device| Tensor::zeros(length, DType::F32, device);
        let flat = |values: Vec<f32>| -> Result<Tensor> {
            let length = values.len();
            Ok(Tensor::from_vec(values, length, &Device::Cpu)?)
        };
        let (merged, whole) = (zeros(layout.len(), compute.device())?, zeros(layout.len(), compute.device())?);
        Ok(Self {
            config,
            adapters,
            base,
            model: Transformer::new(model, layout, &merged, config.sequence_length, compute.exec())?,
            views: Weights::views(model, layout, &whole)?,
            compute,
            merged,
            whole,
            gradient: zeros(state.parameters.len(), &Device::Cpu)?,
            values: flat(state.parameters)?,
            first: flat(state.first)?,
            second: flat(state.second)?,
            step: state.step,
            curve: state.curve,
        })
    }

    /// As [`Trainer::recomputing`](super::Trainer::recomputing).
    #[must_use]
    pub fn recomputing(mut self, recomputes: bool) -> Self {
        self.model = self.model.recomputing(recomputes);
        self
    }

    /// Runs to the end of the schedule; returns the adapters. `save` is called as by [`Trainer::run`](super::Trainer::run).
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a loss or gradient is not, [`Error::Stopped`] when asked to stop, those of `save`.
    pub fn run(
        mut self,
        batches: &mut Batches,
        name: &str,
        observer: &dyn Observer,
        save_every: f64,
        mut save: impl FnMut(&State) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let (config, done) = (self.config, self.step);
        batches.skip(done * config.batch_size as u64);
        take_steps(
            config,
            done,
            Pace { name, observer, save_every },
            &mut self,
            |trainer| trainer.step(&batches.next(config.batch_size)),
            |trainer| save(&trainer.state()?),
        )?;
        Ok(self.values.to_vec1()?)
    }

    /// One optimiser step.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when the loss or the gradient is not.
    pub fn step(&mut self, batch: &Batch) -> Result<CurvePoint> {
        let length = self.config.sequence_length;
        let tokens = self.config.micro_batch_size * length;
        self.merge()?;
        fill_zero(self.compute.exec(), &self.whole)?;
        let mut loss = 0.0;
        for (inputs, targets) in batch.inputs.chunks(tokens).zip(batch.targets.chunks(tokens)) {
            let share = inputs.len() as f64 / batch.inputs.len() as f64;
            let lengths = vec![length; inputs.len() / length];
            let sequences = Sequences { tokens: inputs, lengths: &lengths };
            loss += share * self.model.loss_and_gradient(sequences, None, targets, share as f32, &self.views)?;
        }
        let whole = self.whole.to_vec1::<f32>()?;
        rewrite(&self.gradient, |out| {
            self.adapters.gradient(&values(&self.values)?, &whole, out);
            Ok(())
        })?;
        let norm = sum_of_squares(&self.gradient)?.sqrt();
        if !(loss.is_finite() && norm.is_finite()) {
            let place = format!("step {} of adapters", self.step + 1);
            return Err(Error::NotFinite { what: format!("loss {loss} or its gradient"), place });
        }
        self.update(norm, loss)
    }

    /// Overwrites the model's parameters by those that the adapters make.
    fn merge(&self) -> Result<()> {
        let merge = |out: &mut [f32]| -> Result<()> {
            self.adapters.merge(self.base, &values(&self.values)?, out);
            Ok(())
        };
        if !self.compute.is_queued() {
            return rewrite(&self.merged, merge);
        }
        let mut merged = vec![0f32; self.base.len()];
        merge(&mut merged)?;
        let merged = Tensor::from_vec(merged, self.base.len(), self.compute.device())?;
        Ok(self.merged.slice_set(&merged, 0, 0)?)
    }

    /// The state now; its parameters are the adapters, in the order of their layout.
    pub fn state(&self) -> Result<State> {
        Ok(State {
            step: self.step,
            parameters: self.values.to_vec1()?,
            first: self.first.to_vec1()?,
            second: self.second.to_vec1()?,
            curve: self.curve.clone(),
            online: None,
        })
    }

    fn update(&mut self, norm: f64, loss: f64) -> Result<CurvePoint> {
        let config = self.config;
        self.step += 1;
        let (weight_decay, gradient_scale) = (config.weight_decay, config.gradient_scale(norm));
        let options = AdamW { weight_decay, gradient_scale, ..config.adamw(self.step) };
        adamw_step(&options, &self.values, &self.first, &self.second, &self.gradient)?;
        let (step, tokens) = (self.step, self.step * config.tokens_per_step());
        let point = CurvePoint { step, tokens, loss, gradient_norm: norm, learning_rate: options.rate };
        self.curve.push(point);
        Ok(point)
    }
}
