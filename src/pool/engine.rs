//! Engine: the device a pool computes on, opened when it is first needed, and the precision of its scores.

use super::Pool;
use crate::error::{Error, Result};
use crate::kernels::{Compute, DeviceChoice, Precision};
use std::sync::{Mutex, PoisonError};

/// Where a pool computes. Training is as precise as its recipe says, scoring as this says.
#[derive(Default)]
pub(super) struct Engine {
    device: DeviceChoice,
    precision: Precision,
    opened: Mutex<Option<Compute>>,
}

impl Engine {
    /// The device in a precision; opened once, whatever the precision.
    fn open(&self, precision: Precision) -> Result<Compute> {
        if self.device.is_cpu() {
            return self.device.open(precision);
        }
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let compute = match &*opened {
            Some(compute) => compute,
            None => opened.insert(self.device.open(precision)?),
        };
        Ok(compute.in_precision(precision))
    }
}

impl Pool {
    /// The pool with another device to compute on (the first, if several are meant), and its scores in a precision.
    ///
    /// The device is opened when something is computed: reading what is stored needs none, whatever its precision.
    #[must_use]
    pub fn computing_on(mut self, device: DeviceChoice, precision: Precision) -> Self {
        self.engine = Engine { device, precision, opened: Mutex::default() };
        self
    }

    /// Where the pool computes.
    pub fn device(&self) -> DeviceChoice {
        self.engine.device
    }

    /// The precision of its scores.
    pub fn precision(&self) -> Precision {
        self.engine.precision
    }

    /// The device as records tell of it; nothing for the processor.
    pub(super) fn device_label(&self) -> String {
        if self.engine.device.is_cpu() { String::new() } else { self.engine.device.kind().into() }
    }

    /// The device that models are scored on.
    ///
    /// # Errors
    /// Those of [`DeviceChoice::open`].
    pub fn scoring_device(&self) -> Result<Compute> {
        self.engine.open(self.engine.precision)
    }

    /// The device that gradients and Gram matrices are taken on, in f32 whatever the precision of scores: what methods make of them are
    /// differences that the rounding of less would drown.
    ///
    /// # Errors
    /// Those of [`DeviceChoice::open`].
    pub(super) fn gradient_device(&self) -> Result<Compute> {
        self.engine.open(Precision::F32)
    }

    /// The device that models are trained on, in the precision of their recipe.
    ///
    /// # Errors
    /// Those of [`DeviceChoice::open`]; [`Error::Usage`] also when the recipe wants a GPU and there is the processor only.
    pub(super) fn training_device(&self, precision: Precision) -> Result<Compute> {
        if self.engine.device.is_cpu() && !precision.is_f32() {
            return Err(Error::Usage(format!(
                "this pool's recipe says 'precision: {precision}', which is trained on a GPU only: --device cuda"
            )));
        }
        self.engine.open(precision)
    }

    /// Refuses work that has no code for GPUs, instead of doing it on the processor unasked.
    ///
    /// # Errors
    /// [`Error::Usage`] when the pool computes elsewhere than on the processor, or wants scores that are not f32.
    pub fn needs_cpu(&self, what: &str) -> Result<()> {
        if self.engine.device.is_cpu() && self.engine.precision.is_f32() {
            return Ok(());
        }
        let asked = if self.engine.device.is_cpu() {
            format!("--precision {}", self.precision())
        } else {
            format!("--device {}", self.device())
        };
        Err(Error::Usage(format!("{what} runs on the CPU in f32 only, so far; leave '{asked}' out for it")))
    }
}
