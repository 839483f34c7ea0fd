//! Train: optimiser steps on a mixture, from given parameters; resumable at any step, bit for bit.

mod adapter;
mod attribution;
mod online;
mod queue;
mod schedule;
mod state;
mod steps;

pub use adapter::{AdapterTrainer, Adapters};
pub use attribution::{Attribution, Gradients, HESSIAN_STEP, Update, Values};
pub use online::{
    Alignments, Dga, Fixed, Method, Odm, OnlineSources, OnlineTrainer, Policy, PolicyState, Progress, Reward, Seen,
    Weighting, average_weights, classify,
};
pub use schedule::{Schedule, TrainConfig};
pub use state::State;
pub use steps::{Pace, take_steps};

use crate::error::{Error, Result};
use crate::kernels::{AdamW, Along, Compute, Directions, adamw_step, fill_zero, sum_of_squares};
use crate::model::{Layout, ModelConfig, Sequences, Transformer, Weights};
use crate::progress::Observer;
use crate::text::{Batch, Batches};
use candle_core::Tensor;
use queue::Queue;
use serde::{Deserialize, Serialize};

/// One row of the loss curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Steps done, counted from 1.
    pub step: u64,
    /// Tokens seen so far.
    pub tokens: u64,
    /// Mean loss of the step's batch before its update, in nats per token.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
}

/// A model in training: parameters, moments and gradient, each one flat tensor.
pub struct Trainer<'a> {
    config: &'a TrainConfig,
    layout: &'a Layout,
    compute: Compute,
    model: Transformer,
    parameters: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    gradient_views: Weights,
    step: u64,
    curve: Vec<CurvePoint>,
    queue: Option<Queue>, // on a device
}

impl<'a> Trainer<'a> {
    /// Starts on the processor from a state: fresh, or as it was stored.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the layout does not fit the model.
    pub fn new(model: &ModelConfig, layout: &'a Layout, config: &'a TrainConfig, state: State) -> Result<Self> {
        Self::on(&Compute::cpu(), model, layout, config, state)
    }

    /// As [`Trainer::new`], wherever `compute` says. Parameters, moments and gradient are f32 everywhere.
    ///
    /// # Errors
    /// As [`Trainer::new`], and those of the device.
    pub fn on(
        compute: &Compute,
        model: &ModelConfig,
        layout: &'a Layout,
        config: &'a TrainConfig,
        state: State,
    ) -> Result<Self> {
        let flat = |values: Vec<f32>| -> Result<Tensor> {
            let length = values.len();
            Ok(Tensor::from_vec(values, length, compute.device())?)
        };
        let parameters = flat(state.parameters)?;
        let gradient = flat(vec![0.0; layout.len()])?;
        let queue = Queue::new(compute, layout, config, &parameters)?;
        let weights = queue.as_ref().map_or(&parameters, |queue| queue.weights(&parameters));
        Ok(Self {
            config,
            layout,
            compute: compute.clone(),
            model: Transformer::new(model, layout, weights, config.sequence_length, compute.exec())?,
            gradient_views: Weights::views(model, layout, &gradient)?,
            parameters,
            first: flat(state.first)?,
            second: flat(state.second)?,
            gradient,
            step: state.step,
            curve: state.curve,
            queue,
        })
    }

    /// The run computing activations again in the backward pass from now on, or not: see [`Transformer::recomputing`].
    #[must_use]
    pub fn recomputing(mut self, recomputes: bool) -> Self {
        self.model = self.model.recomputing(recomputes);
        self
    }

    /// Runs to the end of the schedule. `save` is called with the state every `save_every` seconds of work, and before
    /// a stop that the observer asked for.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a loss or gradient is NaN or infinite, [`Error::Stopped`] when asked to stop, and
    /// whatever `save` returns.
    pub fn run(
        &mut self,
        batches: &mut Batches,
        name: &str,
        observer: &dyn Observer,
        save_every: f64,
        mut save: impl FnMut(&State) -> Result<()>,
    ) -> Result<()> {
        batches.skip(self.step * self.config.batch_size as u64);
        let (config, done) = (self.config, self.step);
        take_steps(
            config,
            done,
            Pace { name, observer, save_every },
            &mut (self, batches),
            |(trainer, batches)| trainer.some_steps(batches, name),
            |(trainer, _)| save(&trainer.state()?),
        )
    }

    /// One optimiser step.
    pub fn step(&mut self, batches: &mut Batches, name: &str) -> Result<CurvePoint> {
        if let Some(queue) = self.queue.take() {
            let point = self.queued_steps(&queue, 1, batches, name);
            self.queue = Some(queue);
            return point;
        }
        let drawn = self.draw(batches).0;
        let loss = self.accumulate(&drawn, None)?.0;
        self.descend(loss, name)
    }

    /// Updates the parameters by the gradient of a batch whose mean loss this was.
    fn descend(&mut self, loss: f64, name: &str) -> Result<CurvePoint> {
        if let Some(queue) = self.queue.take() {
            let point = self.queued_descent(&queue, loss, name);
            self.queue = Some(queue);
            return point;
        }
        let norm = self.check(loss, name)?;
        self.advance(loss, norm)
    }

    /// The norm of the gradient; refuses a loss or a gradient that is not finite.
    fn check(&self, loss: f64, name: &str) -> Result<f64> {
        let place = format!("step {} of '{name}'", self.step + 1);
        if !loss.is_finite() {
            return Err(Error::NotFinite { what: format!("loss {loss}"), place });
        }
        let norm = sum_of_squares(&self.gradient)?.sqrt();
        if !norm.is_finite() {
            return Err(Error::NotFinite { what: self.culprit()?, place });
        }
        Ok(norm)
    }

    /// Updates the parameters by the gradient, and notes the step.
    fn advance(&mut self, loss: f64, norm: f64) -> Result<CurvePoint> {
        let learning_rate = self.config.rate_at(self.step);
        self.step += 1;
        self.update(learning_rate, norm)?;
        let tokens = self.step * self.config.tokens_per_step();
        let point = CurvePoint { step: self.step, tokens, loss, gradient_norm: norm, learning_rate };
        self.curve.push(point);
        Ok(point)
    }

    /// The state now.
    pub fn state(&self) -> Result<State> {
        Ok(State {
            step: self.step,
            parameters: self.parameters.to_vec1()?,
            first: self.first.to_vec1()?,
            second: self.second.to_vec1()?,
            curve: self.curve.clone(),
            online: None,
        })
    }

    /// The norm of each tensor's gradient from the last step, by name.
    pub fn gradient_norms(&self) -> Result<Vec<(String, f64)>> {
        let norm = |name: &str| -> Result<f64> { Ok(sum_of_squares(&self.layout.view(&self.gradient, name)?)?.sqrt()) };
        self.layout.parameters().iter().map(|p| Ok((p.name.clone(), norm(&p.name)?))).collect()
    }

    /// The sequences of one step, a micro-batch at a time, and the unit that each is from.
    fn draw(&self, batches: &mut Batches) -> (Vec<Batch>, Vec<usize>) {
        let TrainConfig { batch_size, micro_batch_size, .. } = *self.config;
        let sizes = (0..batch_size).step_by(micro_batch_size).map(|start| micro_batch_size.min(batch_size - start));
        let (drawn, units): (Vec<Batch>, Vec<Vec<usize>>) = sizes.map(|size| batches.next_with_units(size)).unzip();
        (drawn, units.concat())
    }

    /// Fills the gradient from the sequences of one step. Returns their mean loss and, for every direction, its inner
    /// product with what each sequence adds to the gradient.
    fn accumulate(&mut self, drawn: &[Batch], directions: Option<&Directions>) -> Result<(f64, Vec<Vec<f64>>)> {
        fill_zero(self.compute.exec(), &self.gradient)?;
        let TrainConfig { batch_size, sequence_length, .. } = *self.config;
        let mut products = vec![Vec::new(); directions.map_or(0, Directions::count)];
        let mut loss = 0.0;
        for batch in drawn {
            let lengths = vec![sequence_length; batch.inputs.len() / sequence_length];
            let inputs = Sequences { tokens: &batch.inputs, lengths: &lengths };
            let share = lengths.len() as f64 / batch_size as f64;
            let (targets, views) = (&batch.targets, &self.gradient_views);
            let Some(directions) = directions else {
                loss += share * self.model.loss_and_gradient(inputs, None, targets, share as f32, views)?;
                continue;
            };
            let mut along = Along::new(directions, &lengths)?;
            loss += share
                * self.model.loss_and_gradient_seen(inputs, targets, share as f32, views, &mut |part| {
                    attribution::add(&mut along, &part)
                })?;
            let sums = along.sums()?;
            products.iter_mut().zip(sums.chunks_exact(lengths.len())).for_each(|(all, new)| all.extend(new));
        }
        Ok((loss, products))
    }

    /// `AdamW` on every tensor; matrices decay, vectors do not.
    fn update(&self, rate: f64, norm: f64) -> Result<()> {
        for parameter in self.layout.parameters() {
            let weight_decay = if parameter.decays() { self.config.weight_decay } else { 0.0 };
            let gradient_scale = self.config.gradient_scale(norm);
            let options = AdamW { rate, weight_decay, gradient_scale, ..self.config.adamw(self.step) };
            let part = |flat: &Tensor| flat.narrow(0, parameter.offset, parameter.len());
            adamw_step(
                &options,
                &part(&self.parameters)?,
                &part(&self.first)?,
                &part(&self.second)?,
                &part(&self.gradient)?,
            )?;
        }
        Ok(())
    }

    /// Names the first tensor whose gradient is not finite.
    fn culprit(&self) -> Result<String> {
        let norms = self.gradient_norms()?;
        let name = norms.iter().find(|(_, norm)| !norm.is_finite()).map_or("(overflow of the norm)", |(name, _)| name);
        Ok(format!("gradient of '{name}'"))
    }
}
