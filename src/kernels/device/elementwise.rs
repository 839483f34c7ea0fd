//! Element by element on the device: `SwiGLU`, GELU, sums, zeros, rounding.

use super::{
    Argument, Grid, all_aligned, empty_like, int, launch, read, read_if, read_rows, typed, widest, write, write_rows,
};
use crate::error::{Error, Result};
use crate::kernels::Gelu;
use candle_core::Tensor;

const THREADS: usize = 256;

/// Launches a kernel whose threads take 16 bytes of each operand where all are aligned, and one value otherwise.
fn launch_wide(kernel: &str, like: &Tensor, period: usize, mut arguments: Vec<Argument>) -> Result<()> {
    let n = like.elem_count();
    let width = widest(like);
    let wide = n.is_multiple_of(width) && period.is_multiple_of(width) && all_aligned(&arguments);
    arguments.push(Argument::Int(i32::from(wide)));
    let threads = if wide { n / width } else { n };
    launch(like.device(), &typed(kernel, like)?, Grid::over(threads, THREADS), &arguments)
}

fn count(tensor: &Tensor) -> Argument {
    Argument::Long(tensor.elem_count() as i64)
}

/// `silu(gate) · up`; gate and up may be columns of one tensor.
pub(in crate::kernels) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let out = empty_like(gate.shape(), gate)?;
    launch_gated("swiglu", gate, &[read_rows(gate)?, read_rows(up)?], &[write(&out)?], &[])?;
    Ok(out)
}

/// The gradients of both factors.
pub(in crate::kernels) fn swiglu_backward(gate: &Tensor, up: &Tensor, dout: &Tensor) -> Result<(Tensor, Tensor)> {
    let (dgate, dup) = (empty_like(gate.shape(), gate)?, empty_like(gate.shape(), gate)?);
    swiglu_backward_on_device(gate, up, dout, &dgate, &dup)?;
    Ok((dgate, dup))
}

/// As [`swiglu_backward`](crate::kernels::swiglu_backward), of kernels, writing the gradients over tensors that lie as their factors do:
/// all four may be columns.
///
/// # Errors
/// [`Error::Mismatch`] when rows of the four lie in different distances.
pub fn swiglu_backward_on_device(
    gate: &Tensor,
    up: &Tensor,
    dout: &Tensor,
    dgate: &Tensor,
    dup: &Tensor,
) -> Result<()> {
    let rows = [write_rows(dgate)?, write_rows(dup)?, read_rows(gate)?, read_rows(up)?];
    launch_gated("swiglu_backward", gate, &rows, &[], &[read(dout)?])
}

/// Launches a kernel of gate and up, given what lies in packed rows and what lies as they do.
fn launch_gated(
    kernel: &str,
    gate: &Tensor,
    rows: &[(Argument, usize)],
    packed_before: &[Argument],
    packed_after: &[Argument],
) -> Result<()> {
    let (n, width) = gate.dims2()?;
    let stride = rows[0].1;
    if rows.iter().any(|(_, other)| *other != stride) {
        let differences =
            format!("rows of {width} values {:?} apart", rows.iter().map(|row| row.1).collect::<Vec<_>>());
        return Err(Error::Mismatch { what: "gate, up and their gradients".into(), differences });
    }
    let addresses = packed_before.iter().chain(rows.iter().map(|(address, _)| address)).chain(packed_after);
    let mut arguments: Vec<Argument> = addresses.copied().collect();
    let per_thread = widest(gate);
    let wide = [width, stride].iter().all(|values| values.is_multiple_of(per_thread)) && all_aligned(&arguments);
    arguments.extend([int(n)?, int(width)?, int(stride)?, Argument::Int(i32::from(wide))]);
    let threads = n * if wide { width / per_thread } else { width };
    u32::try_from(threads).map_err(|_| Error::Usage(format!("{n} rows of {width} are too many for a kernel")))?;
    launch(gate.device(), &typed(kernel, gate)?, Grid::over(threads, THREADS), &arguments)
}

/// GELU, or its gradient for the gradient `dy` of the result.
pub(in crate::kernels) fn gelu(form: Gelu, x: &Tensor, dy: Option<&Tensor>) -> Result<Tensor> {
    let out = empty_like(x.shape(), x)?;
    let form = Argument::Int(i32::from(form == Gelu::Tanh));
    launch_wide("gelu", x, x.elem_count(), vec![write(&out)?, read(x)?, read_if(dy)?, form, count(x)])?;
    Ok(out)
}

/// Adds `x` to `y` in place; a vector is added to every row.
pub(in crate::kernels) fn add(y: &Tensor, x: &Tensor) -> Result<()> {
    let period = x.elem_count();
    if period == 0 {
        return Ok(());
    }
    launch_wide("add", y, period, vec![write(y)?, read(x)?, count(y), Argument::Long(period as i64)])
}

/// Sets every value of an f32 tensor to 0.
pub(in crate::kernels) fn fill_zero(x: &Tensor) -> Result<()> {
    launch(x.device(), "fill_zero", Grid::over(x.elem_count(), THREADS), &[write(x)?, count(x)])
}
