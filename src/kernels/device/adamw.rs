//! `AdamW` on the device: norm, clipping and update of all parameters, with nothing read back.

use super::{Argument, Grid, int, launch, read, write};
use crate::error::Result;
use crate::kernels::AdamW;
use crate::kernels::adamw::Update;
use candle_core::{DType, Device, Tensor};
use std::ops::Range;

const THREADS: usize = 256;
/// Values of one thread.
const VALUES: usize = 4;
/// Blocks that the sum of squares is divided among; fixed, so that the norm is the same on any GPU.
const BLOCKS: usize = 1024;

/// What updates keep on the device between launches.
pub(crate) struct DeviceAdamW {
    bounds: Tensor,  // where what decays gives way to what does not, and back
    control: Tensor, // what the gradient is multiplied with; whether a step was not finite
    partials: Tensor,
    arrived: Tensor,
    clip: f64,
}

impl DeviceAdamW {
    /// For parameters of which these ranges decay; gradients longer than `clip` are clipped, unless it is 0.
    pub(crate) fn new(decaying: impl Iterator<Item = Range<usize>>, clip: f64, device: &Device) -> Result<Self> {
        let mut bounds: Vec<i64> = vec![0]; // an empty first range decays
        let mut end = 0;
        for range in decaying {
            if range.start == end {
                bounds.pop();
            } else {
                bounds.push(range.start as i64);
            }
            end = range.end;
            bounds.push(end as i64);
        }
        Ok(Self {
            bounds: Tensor::new(bounds, device)?,
            control: Tensor::new(&[1f32, 0.0], device)?,
            partials: Tensor::zeros(BLOCKS, DType::F64, device)?,
            arrived: Tensor::zeros(1, DType::U32, device)?,
            clip,
        })
    }

    /// Writes the gradient's norm into the second value of `report`, `[loss, norm]` f64, and decides on clipping. A loss or norm that is not
    /// finite stops all later updates.
    pub(crate) fn measure(&self, gradient: &Tensor, report: &Tensor) -> Result<()> {
        launch(
            gradient.device(),
            "gradient_norm",
            Grid::new([BLOCKS, 1, 1], THREADS),
            &[
                write(report)?,
                write(&self.control)?,
                write(&self.partials)?,
                write(&self.arrived)?,
                read(gradient)?,
                Argument::Long(gradient.elem_count() as i64),
                Argument::Double(self.clip),
            ],
        )
    }

    /// One step by the gradient that was measured last. `copy` is the parameters in bf16, kept up to date.
    pub(crate) fn step(
        &self,
        options: &AdamW,
        parameters: &Tensor,
        moments: [&Tensor; 2],
        gradient: &Tensor,
        copy: Option<&Tensor>,
    ) -> Result<()> {
        let n = parameters.elem_count();
        let Update { keep, step_size, root, eps, new1, new2, beta2, .. } = Update::new(options);
        let mut arguments = vec![
            write(parameters)?,
            write(moments[0])?,
            write(moments[1])?,
            read(gradient)?,
            copy.map_or(Ok(super::NULL), write)?,
            read(&self.bounds)?,
            int(self.bounds.elem_count())?,
            read(&self.control)?,
            Argument::Long(n as i64),
        ];
        arguments.extend([keep, step_size, root, eps, new1, new2, beta2].map(Argument::Float));
        launch(parameters.device(), "adamw_step", Grid::over(n.div_ceil(VALUES), THREADS), &arguments)
    }
}
