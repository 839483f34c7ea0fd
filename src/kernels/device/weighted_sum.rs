//! Weighted sums of vectors that lie on the device, for several candidates in one pass over the members.

use super::{Argument, Grid, int, launch, read, suffix, upload, write};
use crate::error::{Error, Result};
use candle_core::{DType, Tensor};

/// Neighbouring values that one thread sums.
const VALUES: usize = 8;
const THREADS: usize = 256;

/// Writes Σ `weights[c][i] · members[i]` over `outs[c]` for every candidate c.
///
/// Sums are carried in f64 in the order of the members and rounded to f32 once, as the CPU's
/// [`weighted_sum`](crate::kernels::weighted_sum), whose bits they have; a bf16 result is that rounded again. Members of
/// weight 0 are not added. Members are read once for up to four candidates.
///
/// # Shapes
/// `outs`: `[n]`, all f32 or all bf16; `members`: `[n]`, f32, bf16 or f16 each; all on one device.
///
/// # Errors
/// [`Error::Mismatch`] when numbers or lengths disagree.
pub fn weighted_sums_on_device(outs: &[Tensor], weights: &[Vec<f64>], members: &[Tensor]) -> Result<()> {
    let Some(first) = outs.first() else { return Ok(()) };
    let n = first.elem_count();
    let fits = weights.len() == outs.len()
        && weights.iter().all(|weights| weights.len() == members.len())
        && outs.iter().chain(members).all(|tensor| tensor.elem_count() == n)
        && outs.iter().all(|out| out.dtype() == first.dtype());
    if !fits || members.is_empty() {
        let differences = format!("{} candidates of {} members, {n} values", outs.len(), members.len());
        return Err(Error::Mismatch { what: "operands of a weighted sum".into(), differences });
    }
    let types = members.iter().map(|member| number_of(member.dtype())).collect::<Result<_>>()?;
    sums_of(outs, weights, addresses(members, read)?, types)
}

/// As [`weighted_sums_on_device`], of members that lie at addresses on the device, with the numbers of their types.
pub(super) fn sums_of(outs: &[Tensor], weights: &[Vec<f64>], members: Vec<i64>, types: Vec<u32>) -> Result<()> {
    let Some(first) = outs.first() else { return Ok(()) };
    let (n, device, k) = (first.elem_count(), first.device(), members.len());
    let (types, members) = (upload(types, device)?, Tensor::new(members, device)?);
    let mut rest = (outs, weights);
    while !rest.0.is_empty() {
        let together = if rest.0.len() >= 4 { 4 } else { rest.0.len().min(2) };
        let (outs, later_outs) = rest.0.split_at(together);
        let (weights, later_weights) = rest.1.split_at(together);
        rest = (later_outs, later_weights);
        let places = Tensor::new(addresses(outs, write)?, device)?;
        let weights = Tensor::new(weights.concat(), device)?;
        launch(
            device,
            &format!("weighted_sum_{together}_{}", suffix(first.dtype())?),
            Grid::over(n.div_ceil(VALUES), THREADS),
            &[read(&places)?, read(&members)?, read(&types)?, read(&weights)?, int(k)?, Argument::Long(n as i64)],
        )?;
    }
    Ok(())
}

/// What the kernel calls a type.
pub(super) fn number_of(dtype: DType) -> Result<u32> {
    match dtype {
        DType::F32 => Ok(0),
        DType::BF16 => Ok(1),
        DType::F16 => Ok(2),
        _ => Err(super::super::unsupported("members of f32, bf16 or f16")),
    }
}

pub(super) fn addresses(tensors: &[Tensor], of: impl Fn(&Tensor) -> Result<Argument>) -> Result<Vec<i64>> {
    let address = |tensor| match of(tensor)? {
        Argument::Address(address) => Ok(address.cast_signed()),
        _ => Err(super::super::unsupported("a tensor with an address")),
    };
    tensors.iter().map(address).collect()
}
