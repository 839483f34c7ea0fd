//! Element by element on the device: `SwiGLU`, GELU, sums, zeros, rounding.

use super::{Argument, Grid, empty_like, launch, read, read_if, typed, write};
use crate::error::Result;
use crate::kernels::Gelu;
use candle_core::Tensor;

const THREADS: usize = 256;

/// Launches a kernel whose threads take 16 bytes of each operand where all are aligned, and one value otherwise.
fn launch_wide(kernel: &str, like: &Tensor, period: usize, mut arguments: Vec<Argument>) -> Result<()> {
    let n = like.elem_count();
    let width = 16 / like.dtype().size_in_bytes();
    let aligned = |argument: &Argument| !matches!(argument, Argument::Address(address) if address % 16 != 0);
    let wide = n.is_multiple_of(width) && period.is_multiple_of(width) && arguments.iter().all(aligned);
    arguments.push(Argument::Int(i32::from(wide)));
    let threads = if wide { n / width } else { n };
    launch(like.device(), &typed(kernel, like)?, Grid::over(threads, THREADS), &arguments)
}

fn count(tensor: &Tensor) -> Argument {
    Argument::Long(tensor.elem_count() as i64)
}

/// `silu(gate) · up`.
pub(in crate::kernels) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let out = empty_like(gate.shape(), gate)?;
    launch_wide("swiglu", &out, out.elem_count(), vec![write(&out)?, read(gate)?, read(up)?, count(gate)])?;
    Ok(out)
}

/// The gradients of both factors.
pub(in crate::kernels) fn swiglu_backward(gate: &Tensor, up: &Tensor, dout: &Tensor) -> Result<(Tensor, Tensor)> {
    let (dgate, dup) = (empty_like(gate.shape(), gate)?, empty_like(gate.shape(), gate)?);
    let arguments = vec![write(&dgate)?, write(&dup)?, read(gate)?, read(up)?, read(dout)?, count(gate)];
    launch_wide("swiglu_backward", gate, gate.elem_count(), arguments)?;
    Ok((dgate, dup))
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
