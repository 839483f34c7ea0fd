//! Inner products of vectors on the device, summed in f64.

use super::{Argument, Grid, empty, int, launch, read, write};
use crate::error::Result;
use candle_core::{DType, Tensor};

const THREADS: usize = 256;
/// Values of one block, at least.
const VALUES: usize = 1 << 13;
/// Blocks of a pair of rows, at most.
const BLOCKS: usize = 256;

/// Rows in a flat f32 tensor.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Rows<'a> {
    /// Where they lie.
    pub(in crate::kernels) values: &'a Tensor,
    /// Where the first begins.
    pub(in crate::kernels) first: usize,
    /// Values between the starts of two of them.
    pub(in crate::kernels) stride: usize,
    /// How many there are.
    pub(in crate::kernels) count: usize,
}

impl Rows<'_> {
    fn address(&self, length: usize) -> Result<Argument> {
        read(&self.values.narrow(0, self.first, (self.count - 1) * self.stride + length)?)
    }
}

/// Adds the inner product of every row of `a` with every row of `b`, `n` values long, to `sums`: `[a · b]` f64.
pub(in crate::kernels) fn add_inner_products(sums: &Tensor, a: Rows<'_>, b: Rows<'_>, n: usize) -> Result<()> {
    let pairs = a.count * b.count;
    if pairs == 0 || n == 0 {
        return Ok(());
    }
    let (device, blocks) = (sums.device(), n.div_ceil(VALUES).min(BLOCKS));
    let partials = empty(pairs * blocks, DType::F64, device)?;
    let arguments = [
        write(&partials)?,
        a.address(n)?,
        Argument::Long(a.stride as i64),
        b.address(n)?,
        Argument::Long(b.stride as i64),
        int(b.count)?,
        Argument::Long(n as i64),
    ];
    launch(device, "inner_products", Grid::new([blocks, pairs, 1], THREADS), &arguments)?;
    let arguments = [write(sums)?, read(&partials)?, int(blocks)?];
    launch(device, "add_inner_products", Grid::new([pairs, 1, 1], THREADS), &arguments)
}
