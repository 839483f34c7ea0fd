//! On device: averages written straight into models on a device, of members that stay there while there is room.

use super::average;
use crate::error::{Error, Result};
use crate::kernels::{Compute, Floats, Source, StreamedSums};
use crate::model::{Checkpoint, FloatType, Layout};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Bytes that pass to a device at a time: enough to hide what a copy costs to begin.
const PIECE: usize = 64 << 20;

/// Merges on a device. What was merged once stays there as it is stored (bf16 as bf16), until the room is used up; the others are
/// brought over again for every merge, which copies and sums at the same time.
pub struct DeviceMerger {
    device: Device,
    room: u64,
    kept: BTreeMap<PathBuf, Tensor>,
    sums: StreamedSums,
}

impl DeviceMerger {
    /// On a device, with at most so many bytes for members, buffers included.
    pub fn new(compute: &Compute, room: u64) -> Self {
        let piece = PIECE.min(usize::try_from(room / 4).unwrap_or(PIECE)).max(1 << 16);
        let sums = StreamedSums::new(compute.device(), piece);
        Self { device: compute.device().clone(), room: room.saturating_sub(sums.bytes()), kept: BTreeMap::new(), sums }
    }

    /// Members that are kept on the device.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Whether all of these are kept, or will be once they are merged.
    pub fn keeps(&self, members: &[&Checkpoint]) -> bool {
        let new = members.iter().filter(|member| !self.kept.contains_key(member.path()));
        let bytes = |member: &&Checkpoint| (member.layout().len() * kept_type(member).size_in_bytes()) as u64;
        members.iter().all(|member| member.update().is_none()) && new.map(bytes).sum::<u64>() <= self.room
    }

    /// Gives the memory of the kept members back.
    pub fn forget(&mut self) {
        self.kept.clear();
        self.room = 0;
    }

    /// Writes Σ `weights[c][i] · members[i]` over `outs[c]` for every candidate c, in the order of `layout`.
    ///
    /// Sums are carried in f64 in the order of `members` and rounded to f32 once, so that an f32 model has the bits of
    /// [`average`]; a bf16 model is that rounded again. Every member is read once for all candidates. Merges with adapters
    /// among them are made on the processor and brought over.
    ///
    /// # Shapes
    /// `outs`: `[layout length]`, all f32 or all bf16.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] when a member does not fit the layout.
    pub fn average(
        &mut self,
        outs: &[Tensor],
        layout: &Layout,
        weights: &[Vec<f64>],
        members: &[&Checkpoint],
    ) -> Result<()> {
        members.iter().try_for_each(|member| member.check(layout))?;
        if members.iter().any(|member| member.update().is_some()) {
            for (out, weights) in outs.iter().zip(weights) {
                let weighted: Vec<_> = weights.iter().copied().zip(members.iter().copied()).collect();
                let mut values = vec![0f32; layout.len()];
                average(&mut values, layout, &weighted)?;
                write(out, values)?;
            }
            return Ok(());
        }
        if members.len() > 1 {
            // a model of its own, as a really trained one, is not asked for again
            members.iter().try_for_each(|member| self.keep(layout, member))?;
        }
        let sources = members.iter().map(|member| match self.kept.get(member.path()) {
            Some(tensor) => Source::Device(tensor),
            None => Source::Host(parts(layout, member)),
        });
        let sources: Vec<Source<'_>> = sources.collect();
        self.sums.sum(outs, weights, &sources)
    }

    /// Brings a member to the device, to stay there, if there is room. Copying is a sum of one.
    fn keep(&mut self, layout: &Layout, member: &Checkpoint) -> Result<()> {
        let dtype = kept_type(member);
        let bytes = (layout.len() * dtype.size_in_bytes()) as u64;
        if self.kept.contains_key(member.path()) || bytes > self.room {
            return Ok(());
        }
        let whole = match Tensor::zeros(layout.len(), dtype, &self.device).map_err(Error::from) {
            Ok(whole) => whole,
            Err(error) if error.is_out_of_memory() => {
                self.room = 0; // others took it; members pass by from now on
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.sums.sum(std::slice::from_ref(&whole), &[vec![1.0]], &[Source::Host(parts(layout, member))])?;
        self.room -= bytes;
        self.kept.insert(member.path().to_path_buf(), whole);
        Ok(())
    }
}

/// Writes parameters from the host over those of a model on a device, rounded to their type.
///
/// # Errors
/// [`crate::Error::Tensor`] when their lengths differ.
pub fn write(out: &Tensor, values: Vec<f32>) -> Result<()> {
    let length = values.len();
    let values = Tensor::from_vec(values, length, &Device::Cpu)?.to_dtype(out.dtype())?.to_device(out.device())?;
    Ok(out.slice_set(&values, 0, 0)?)
}

/// The type that a member is kept in: its own, but f16 widened, as sums are not written in that.
fn kept_type(member: &Checkpoint) -> DType {
    if member.dtype() == Some(FloatType::Bfloat16) { DType::BF16 } else { DType::F32 }
}

/// The values of a checkpoint as they lie in its file, in the order of the layout.
fn parts<'a>(layout: &Layout, member: &'a Checkpoint) -> Vec<Floats<'a>> {
    layout.parameters().iter().filter_map(|parameter| member.stored(&parameter.name)).collect()
}
