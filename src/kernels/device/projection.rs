//! Projections on the device: signs times a vector that lies there, with as many sums as there are columns read back.

use super::{Argument, Grid, empty, int, launch, read, write};
use crate::error::Result;
use candle_core::{DType, Device, Tensor};
use std::ops::Range;

/// Positions of one partial sum.
const TILE: usize = 1 << 15;
/// Columns of one block.
const COLUMNS: usize = 128;

/// A projection of some ranges of vectors on a device.
pub struct PlacedProjection {
    tiles: Tensor, // first and end of each, i64
    partials: Tensor,
    sums: Tensor,
    seed: u64,
    columns: usize,
    scale: f64,
}

impl PlacedProjection {
    pub(in crate::kernels) fn new(
        (seed, columns, scale): (u64, usize, f64),
        ranges: &[Range<usize>],
        device: &Device,
    ) -> Result<Self> {
        let tiles = ranges.iter().flat_map(|range| {
            range.clone().step_by(TILE).flat_map(|first| [first as i64, range.end.min(first + TILE) as i64])
        });
        let tiles = tiles.collect::<Vec<_>>();
        let count = tiles.len() / 2;
        let tiles = Tensor::new(tiles, device)?;
        let partials = empty((count, columns), DType::F64, device)?;
        Ok(Self { tiles, partials, sums: empty(columns, DType::F64, device)?, seed, columns, scale })
    }

    /// Pᵀx of the ranges of a vector, read back: the signs of [`Projection`](crate::kernels::Projection), sums in another order.
    ///
    /// # Shapes
    /// `x: [p]` f32, that reaches to the end of the ranges → `[d]`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn project(&self, x: &Tensor) -> Result<Vec<f64>> {
        let (device, count) = (x.device(), self.partials.dim(0)?);
        let blocks = [count, self.columns.div_ceil(COLUMNS), 1];
        launch(
            device,
            "projection_partials",
            Grid::new(blocks, COLUMNS),
            &[
                write(&self.partials)?,
                read(x)?,
                read(&self.tiles)?,
                int(self.columns)?,
                Argument::Long(self.seed.cast_signed()),
            ],
        )?;
        let arguments =
            [write(&self.sums)?, read(&self.partials)?, int(count)?, int(self.columns)?, Argument::Double(self.scale)];
        launch(device, "projection_sums", Grid::over(self.columns, COLUMNS), &arguments)?;
        Ok(self.sums.to_vec1()?)
    }
}
