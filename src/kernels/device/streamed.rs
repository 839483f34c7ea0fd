//! Streamed sums: weighted sums on a device of members that do not all fit there, brought over in pieces.
//!
//! Two buffers take turns: while kernels sum the pieces in one, the next are copied into the other (pinned memory and a queue of
//! their own on a GPU; plain memory in the emulation, where nothing runs beside anything).

use super::weighted_sum::{addresses, number_of, sums_of};
use super::{read, unavailable};
use crate::error::{Error, Result};
use crate::kernels::Floats;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

/// Values of one piece are a multiple of this, so that every piece begins at 16 bytes.
const STEP: usize = 64;
/// Bytes that one thread copies at a time.
const PORTION: usize = 1 << 20;

/// Where a member lies.
pub enum Source<'a> {
    /// On the device, whole: f32, bf16 or f16.
    Device(&'a Tensor),
    /// In the host's memory, in parts that follow one another; those at the same place of any two members are of one length.
    Host(Vec<Floats<'a>>),
}

/// Sums of members from the host, with the buffers they pass through.
pub struct StreamedSums {
    device: Device,
    bytes: usize,
    buffers: Option<Buffers>,
    next: usize,
}

struct Buffers {
    slots: [Tensor; 2],
    #[cfg(feature = "cuda")]
    copier: Option<super::driver::Copier>,
}

impl StreamedSums {
    /// Sums through two buffers of so many bytes each, which are made when they are first needed.
    pub fn new(device: &Device, bytes: usize) -> Self {
        Self { device: device.clone(), bytes: bytes.next_multiple_of(4), buffers: None, next: 0 }
    }

    /// Bytes on the device that the buffers take.
    pub fn bytes(&self) -> u64 {
        2 * self.bytes as u64
    }

    /// Writes Σ `weights[c][i] · members[i]` over `outs[c]` for every candidate c; the bits are those of
    /// [`weighted_sums_on_device`](crate::kernels::weighted_sums_on_device). Each member is brought over once for all candidates; one
    /// whose weights are all 0 is not.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when numbers or lengths disagree, [`Error::Usage`] when the buffers hold no 64 values of each member.
    pub fn sum(&mut self, outs: &[Tensor], weights: &[Vec<f64>], members: &[Source<'_>]) -> Result<()> {
        let Some(n) = outs.first().map(Tensor::elem_count) else { return Ok(()) };
        let lengths = |member: &Source<'_>| match member {
            Source::Device(tensor) => tensor.elem_count(),
            Source::Host(parts) => parts.iter().map(Floats::len).sum(),
        };
        let fits = weights.len() == outs.len()
            && weights.iter().all(|weights| weights.len() == members.len())
            && members.iter().all(|member| lengths(member) == n)
            && outs.iter().all(|out| out.elem_count() == n && out.dtype() == outs[0].dtype());
        if !fits || members.is_empty() {
            let differences = format!("{} candidates of {} members, {n} values", outs.len(), members.len());
            return Err(Error::Mismatch { what: "operands of a weighted sum".into(), differences });
        }
        let used: Vec<usize> =
            (0..members.len()).filter(|i| weights.iter().any(|weights| weights[*i] != 0.0)).collect();
        let used = if used.is_empty() { vec![0] } else { used };
        let weights: Vec<Vec<f64>> =
            weights.iter().map(|weights| used.iter().map(|index| weights[*index]).collect()).collect();
        let members: Vec<&Source<'_>> = used.iter().map(|index| &members[*index]).collect();
        let mut start = 0;
        for end in ends_of_runs(&members, n) {
            let types = members.iter().map(|member| type_at(member, start)).collect::<Result<Vec<_>>>()?;
            let width: usize = members.iter().zip(&types).map(|(member, dtype)| host_width(member, *dtype)).sum();
            let fitting = |values: usize| values / STEP * STEP;
            let length = self.bytes.checked_div(width).map_or(end - start, fitting);
            if length == 0 {
                return Err(Error::Usage(format!(
                    "{} members do not pass through {} bytes",
                    members.len(),
                    self.bytes
                )));
            }
            while start < end {
                let length = length.min(end - start);
                self.piece(outs, &weights, &members, &types, start, length)?;
                start += length;
            }
        }
        Ok(())
    }

    /// Sums `length` values from `start` on, in which every member has one type.
    fn piece(
        &mut self,
        outs: &[Tensor],
        weights: &[Vec<f64>],
        members: &[&Source<'_>],
        types: &[DType],
        start: usize,
        length: usize,
    ) -> Result<()> {
        let mut offset = 0;
        let mut places = Vec::with_capacity(members.len()); // of members from the host: where in the buffer
        for (member, dtype) in members.iter().zip(types) {
            let bytes = length * host_width(member, *dtype);
            places.push(offset..offset + bytes);
            offset += bytes.next_multiple_of(STEP);
        }
        let offset = offset.min(self.bytes); // the last member needs no room after it
        let slot = self.next;
        self.next = 1 - slot;
        let base = self.send(slot, offset, |buffer| {
            let mut rest = buffer;
            let mut at = 0;
            let mut copies = Vec::new();
            for (member, place) in members.iter().zip(&places) {
                let Source::Host(parts) = member else { continue };
                let (target, later) = rest[place.start - at..].split_at_mut(place.len());
                (rest, at) = (later, place.end);
                copies.extend(portions(target, parts, start, length));
            }
            copies.into_par_iter().for_each(|(to, from)| to.copy_from_slice(from));
        })?;
        let mut held = Vec::with_capacity(members.len());
        for (member, place) in members.iter().zip(&places) {
            held.push(match member {
                Source::Device(tensor) => addresses(&[tensor.narrow(0, start, length)?], read)?[0],
                Source::Host(_) => base + place.start as i64,
            });
        }
        let outs = outs.iter().map(|out| Ok(out.narrow(0, start, length)?)).collect::<Result<Vec<_>>>()?;
        let types = types.iter().map(|dtype| number_of(*dtype)).collect::<Result<_>>()?;
        sums_of(&outs, weights, held, types)?;
        #[cfg(feature = "cuda")]
        if let Some(copier) = self.buffers.as_mut().and_then(|buffers| buffers.copier.as_mut()) {
            copier.release(slot)?;
        }
        Ok(())
    }

    /// Brings `length` bytes that `fill` writes to a buffer on the device; returns its address there.
    fn send(&mut self, slot: usize, length: usize, fill: impl FnOnce(&mut [u8])) -> Result<i64> {
        if self.buffers.is_none() {
            self.buffers = Some(Buffers::new(&self.device, self.bytes)?);
        }
        let Some(buffers) = &mut self.buffers else { return Err(unavailable("a buffer")) };
        let tensor = &buffers.slots[slot];
        #[cfg(feature = "cuda")]
        if let Some(copier) = &mut buffers.copier {
            let address = addresses(std::slice::from_ref(tensor), read)?[0];
            if length > 0 {
                copier.send(slot, length, address.cast_unsigned(), fill)?;
            }
            return Ok(address);
        }
        let mut bytes = vec![0u8; length.next_multiple_of(4)];
        fill(&mut bytes[..length]);
        let words: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        if !words.is_empty() {
            let count = words.len();
            tensor.slice_set(&Tensor::from_vec(words, count, &self.device)?, 0, 0)?;
        }
        Ok(addresses(std::slice::from_ref(tensor), read)?[0])
    }
}

impl Buffers {
    fn new(device: &Device, bytes: usize) -> Result<Self> {
        let slot = || Ok::<_, Error>(Tensor::zeros(bytes / 4, DType::U32, device)?);
        Ok(Self {
            slots: [slot()?, slot()?],
            #[cfg(feature = "cuda")]
            copier: match device {
                Device::Cuda(device) => Some(super::driver::Copier::new(device, bytes)?),
                _ => None,
            },
        })
    }
}

/// Bytes of each of a member's values in the buffer.
fn host_width(member: &Source<'_>, dtype: DType) -> usize {
    if matches!(member, Source::Host(_)) { dtype.size_in_bytes() } else { 0 }
}

fn dtype_of(part: &Floats<'_>) -> DType {
    match part {
        Floats::F32(_) => DType::F32,
        Floats::BF16(_) => DType::BF16,
        Floats::F16(_) => DType::F16,
    }
}

/// The type of the value at an index.
fn type_at(member: &Source<'_>, index: usize) -> Result<DType> {
    match member {
        Source::Device(tensor) => Ok(tensor.dtype()),
        Source::Host(parts) => {
            let mut end = 0;
            let part = parts.iter().find(|part| {
                end += part.len();
                end > index
            });
            part.map(dtype_of).ok_or_else(|| super::super::unsupported("members as long as the sum"))
        }
    }
}

/// Where runs of values end in which no member changes its type.
fn ends_of_runs(members: &[&Source<'_>], n: usize) -> Vec<usize> {
    let mut ends = vec![n];
    for member in members {
        let Source::Host(parts) = member else { continue };
        let mut end = 0;
        for pair in parts.windows(2) {
            end += pair[0].len();
            if dtype_of(&pair[0]) != dtype_of(&pair[1]) {
                ends.push(end);
            }
        }
    }
    ends.sort_unstable();
    ends.dedup();
    ends
}

/// The copies that bring `length` values from `start` on into `target`.
fn portions<'t, 'f>(
    mut target: &'t mut [u8],
    parts: &[Floats<'f>],
    start: usize,
    length: usize,
) -> Vec<(&'t mut [u8], &'f [u8])> {
    let mut copies = Vec::new();
    let mut begin = 0; // of the part
    for part in parts {
        let (from, to) = (start.max(begin), (start + length).min(begin + part.len()));
        if from < to {
            let width = dtype_of(part).size_in_bytes();
            let bytes = &bytes_of(*part)[(from - begin) * width..(to - begin) * width];
            let (here, later) = std::mem::take(&mut target).split_at_mut(bytes.len());
            target = later;
            copies.extend(here.chunks_mut(PORTION).zip(bytes.chunks(PORTION)));
        }
        begin += part.len();
    }
    copies
}

fn bytes_of(part: Floats<'_>) -> &[u8] {
    match part {
        Floats::F32(bytes) | Floats::BF16(bytes) | Floats::F16(bytes) => bytes,
    }
}
