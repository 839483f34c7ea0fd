//! Merge: parameters averaged by a mixture's weights, straight from mapped files into one flat buffer.

mod regmean;

pub use regmean::regression_mean;

use crate::error::Result;
use crate::kernels::weighted_sums;
use crate::model::{Checkpoint, Layout};

/// Writes Σ `weight · parameters` over `out`, tensor by tensor in the order of `layout`.
///
/// Weights stay f64 and sums are carried in f64, in the order of `members`; each value is rounded to f32 once. No
/// parameter is held twice and nothing is written to disk, whatever the number of members.
///
/// # Errors
/// [`crate::Error::Mismatch`] when a member's tensor names or shapes differ from the layout's.
pub fn average(out: &mut [f32], layout: &Layout, members: &[(f64, &Checkpoint)]) -> Result<()> {
    for (_, member) in members {
        member.check(layout)?;
    }
    let mut rest = out;
    let mut tensors = Vec::with_capacity(layout.parameters().len());
    for parameter in layout.parameters() {
        let (tensor, later) = rest.split_at_mut(parameter.range().len());
        rest = later;
        let sources = members.iter().filter_map(|(weight, member)| Some((*weight, member.tensor(&parameter.name)?)));
        tensors.push((tensor, sources.collect()));
    }
    weighted_sums(tensors);
    Ok(())
}
