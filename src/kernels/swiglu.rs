//! `SwiGLU`: silu(gate) · up, element by element, and its gradient.

use super::{Exec, device, for_blocks, for_each, simd, tensor, values};
use crate::error::Result;
use candle_core::Tensor;

const BLOCK: usize = 1 << 13;

/// `silu(gate) · up` with silu(x) = x / (1 + e⁻ˣ) (Shazeer 2020, arXiv 2002.05202).
///
/// # Shapes
/// `gate, up: [n, f]` → `[n, f]`.
pub fn swiglu(exec: Exec, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if let Exec::Device { .. } = exec {
        return device::swiglu(gate, up);
    }
    let (n, width) = gate.dims2()?;
    let (gate, up) = (values(gate)?, values(up)?);
    let mut out = vec![0f32; n * width];
    for_blocks(exec, &mut out, BLOCK, |block, out| {
        let (gate, up) = (&gate[block * BLOCK..], &up[block * BLOCK..]);
        simd::vectorised(
            #[inline(always)]
            || {
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = gate * simd::sigmoid(*gate) * up;
                }
            },
        );
    });
    tensor(out, n, width)
}

/// The gradients `(dgate, dup)` for the gradient `dout` of the result.
///
/// # Shapes
/// All `[n, f]`.
pub fn swiglu_backward(exec: Exec, gate: &Tensor, up: &Tensor, dout: &Tensor) -> Result<(Tensor, Tensor)> {
    if let Exec::Device { .. } = exec {
        return device::swiglu_backward(gate, up, dout);
    }
    let (n, width) = gate.dims2()?;
    let (gate, up, dout) = (values(gate)?, values(up)?, values(dout)?);
    let (mut dgate, mut dup) = (vec![0f32; n * width], vec![0f32; n * width]);
    let blocks = dgate.chunks_mut(BLOCK).zip(dup.chunks_mut(BLOCK)).collect();
    for_each(exec, blocks, |block, (dgate, dup)| {
        let (gate, up, dout) = (&gate[block * BLOCK..], &up[block * BLOCK..], &dout[block * BLOCK..]);
        simd::vectorised(
            #[inline(always)]
            || {
                for ((((dgate, dup), gate), up), dout) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dout) {
                    let s = simd::sigmoid(*gate);
                    *dgate = dout * up * s * (gate * (1.0 - s) + 1.0);
                    *dup = dout * gate * s;
                }
            },
        );
    });
    Ok((tensor(dgate, n, width)?, tensor(dup, n, width)?))
}
