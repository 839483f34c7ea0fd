//! Merge: parameters averaged by a mixture's weights, straight from mapped files into one flat buffer.

mod on_device;
mod regmean;

pub use on_device::{DeviceMerger, write};
pub use regmean::regression_mean;

use crate::error::Result;
use crate::kernels::{Floats, Members, add_low_rank, weighted_sums};
use crate::model::{Checkpoint, Layout};

/// Writes Σ `weight · parameters` over `out`, tensor by tensor in the order of `layout`.
///
/// Weights stay f64 and sums are carried in f64, in the order of `members`; each value is rounded to f32 once. No
/// parameter is held twice and nothing is written to disk, whatever the number of members.
///
/// Adapters of one model are Σ wᵢ(θ₀ + sᵢBᵢAᵢ): θ₀ is read once with the sum of their weights, and all low-rank products are
/// added to the rounded sum by one product in f32.
///
/// # Errors
/// [`crate::Error::Mismatch`] when a member's tensor names or shapes differ from the layout's.
pub fn average(out: &mut [f32], layout: &Layout, members: &[(f64, &Checkpoint)]) -> Result<()> {
    for (_, member) in members {
        member.check(layout)?;
    }
    let any_update = members.iter().any(|(_, member)| member.update().is_some());
    let mut rest = &mut *out;
    let mut tensors = Vec::with_capacity(layout.parameters().len());
    for parameter in layout.parameters() {
        let (tensor, later) = rest.split_at_mut(parameter.range().len());
        rest = later;
        let sources = members.iter().filter_map(|(weight, member)| Some((*weight, member.stored(&parameter.name)?)));
        tensors.push((tensor, if any_update { once_each(sources) } else { sources.collect() }));
    }
    weighted_sums(tensors);
    if any_update {
        add_updates(out, layout, members);
    }
    Ok(())
}

/// Sources in the order of their first mention, each with the sum of its weights.
fn once_each<'a>(sources: impl Iterator<Item = (f64, Floats<'a>)>) -> Members<'a> {
    let mut members: Members<'_> = Vec::new();
    for (weight, values) in sources {
        match members.iter_mut().find(|(_, known)| known.is_same(&values)) {
            Some((sum, _)) => *sum += weight,
            None => members.push((weight, values)),
        }
    }
    members
}

/// Adds the members' low-rank updates, tensor by tensor.
fn add_updates(out: &mut [f32], layout: &Layout, members: &[(f64, &Checkpoint)]) {
    for parameter in layout.parameters() {
        let factors = |(weight, member): &(f64, &Checkpoint)| {
            let factors = member.update()?.factors(&parameter.name)?;
            (*weight != 0.0).then_some((*weight, factors))
        };
        let updates: Vec<_> = members.iter().filter_map(factors).collect();
        add_low_rank(&mut out[parameter.range()], &updates);
    }
}
