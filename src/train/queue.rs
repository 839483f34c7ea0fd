//! Queue: optimiser steps on a device, several in a row, whose losses and norms are read back together.

use super::{CurvePoint, TrainConfig, Trainer};
use crate::error::{Error, Result};
use crate::kernels::{AdamW, Compute, DeviceAdamW, add_sum, fill_zero, weighted_sums_on_device};
use crate::model::{Layout, Parameter, Sequences};
use crate::text::Batches;
use candle_core::{DType, Tensor};

/// Steps between two looks at the losses: reading makes the processor wait for the device.
const STEPS: u64 = 10;

/// What the steps of a trainer need on its device.
pub(super) struct Queue {
    adamw: DeviceAdamW,
    rounded: Option<Tensor>, // the parameters as the model computes with them, where those are not the parameters themselves
}

impl Queue {
    /// None on the processor, whose steps are taken one by one.
    pub(super) fn new(
        compute: &Compute,
        layout: &Layout,
        config: &TrainConfig,
        parameters: &Tensor,
    ) -> Result<Option<Self>> {
        if !compute.is_queued() {
            return Ok(None);
        }
        let decaying = layout.parameters().iter().filter(|parameter| parameter.decays());
        let adamw = DeviceAdamW::new(decaying.map(Parameter::range), config.clip, compute.device())?;
        let rounded = if compute.dtype() == DType::F32 {
            None
        } else {
            let rounded = Tensor::zeros(layout.len(), compute.dtype(), compute.device())?;
            weighted_sums_on_device(std::slice::from_ref(&rounded), &[vec![1.0]], std::slice::from_ref(parameters))?;
            Some(rounded)
        };
        Ok(Some(Self { adamw, rounded }))
    }

    /// The parameters that the model computes with.
    pub(super) fn weights<'a>(&'a self, parameters: &'a Tensor) -> &'a Tensor {
        self.rounded.as_ref().unwrap_or(parameters)
    }
}

impl Trainer<'_> {
    /// Some optimiser steps, up to the end of the schedule: several on a device, one on the processor. Returns the last.
    pub(super) fn some_steps(&mut self, batches: &mut Batches, name: &str) -> Result<CurvePoint> {
        match self.queue.take() {
            None => self.step(batches, name),
            Some(queue) => {
                let steps = STEPS.min(self.config.steps.saturating_sub(self.step)).max(1);
                let point = self.queued_steps(&queue, steps, batches, name);
                self.queue = Some(queue);
                point
            }
        }
    }

    /// Queues steps, then reads what they reported.
    pub(super) fn queued_steps(
        &mut self,
        queue: &Queue,
        steps: u64,
        batches: &mut Batches,
        name: &str,
    ) -> Result<CurvePoint> {
        let first = self.step;
        let reports = Tensor::zeros((steps as usize, 2), DType::F64, self.gradient.device())?;
        for index in 0..steps {
            let report = reports.narrow(0, index as usize, 1)?.flatten_all()?;
            self.queue_step(queue, &report, batches)?;
        }
        let reports: Vec<Vec<f64>> = reports.to_vec2()?;
        (first + 1..).zip(&reports).try_for_each(|(step, report)| self.note(step, report, name))?;
        self.curve.last().copied().ok_or_else(|| Error::Usage("no step was taken".into()))
    }

    /// Updates the parameters by the gradient of a batch whose mean loss this was, and waits for it.
    pub(super) fn queued_descent(&mut self, queue: &Queue, loss: f64, name: &str) -> Result<CurvePoint> {
        let report = Tensor::new(&[loss, 0.0], self.gradient.device())?;
        self.queue_update(queue, &report)?;
        self.note(self.step, &report.to_vec1::<f64>()?, name)?;
        self.curve.last().copied().ok_or_else(|| Error::Usage("no step was taken".into()))
    }

    /// Notes what a step reported: loss and norm of the gradient.
    fn note(&mut self, step: u64, report: &[f64], name: &str) -> Result<()> {
        let &[loss, gradient_norm] = report else {
            return Err(Error::Usage("a report of another length".into()));
        };
        if !loss.is_finite() || !gradient_norm.is_finite() {
            let what = if loss.is_finite() { format!("gradient norm {gradient_norm}") } else { format!("loss {loss}") };
            return Err(Error::NotFinite { what, place: format!("step {step} of '{name}'") });
        }
        let (tokens, learning_rate) = (step * self.config.tokens_per_step(), self.config.rate_at(step - 1));
        self.curve.push(CurvePoint { step, tokens, loss, gradient_norm, learning_rate });
        Ok(())
    }

    fn queue_step(&mut self, queue: &Queue, report: &Tensor, batches: &mut Batches) -> Result<()> {
        let TrainConfig { batch_size, sequence_length, .. } = *self.config;
        let loss = report.narrow(0, 0, 1)?;
        fill_zero(self.compute.exec(), &self.gradient)?;
        for batch in self.draw(batches).0 {
            let lengths = vec![sequence_length; batch.inputs.len() / sequence_length];
            let inputs = Sequences { tokens: &batch.inputs, lengths: &lengths };
            let share = lengths.len() as f64 / batch_size as f64;
            let nll = self.model.queue_gradient(inputs, &batch.targets, share as f32, &self.gradient_views)?;
            add_sum(&loss, &nll, share / batch.targets.len() as f64)?;
        }
        self.queue_update(queue, report)
    }

    /// Queues the update by the gradient; `report` has the loss and is given the gradient's norm.
    fn queue_update(&mut self, queue: &Queue, report: &Tensor) -> Result<()> {
        queue.adamw.measure(&self.gradient, report)?;
        let options = AdamW {
            rate: self.config.rate_at(self.step),
            weight_decay: self.config.weight_decay,
            ..self.config.adamw(self.step + 1)
        };
        self.step += 1;
        let moments = [&self.first, &self.second];
        queue.adamw.step(&options, &self.parameters, moments, &self.gradient, queue.rounded.as_ref())
    }
}
