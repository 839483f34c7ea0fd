//! Device memory: what training and scoring take of a GPU's, and how much at a time fits.
//!
//! Estimates, from what the model keeps between its forward and its backward pass; they leave a reserve, and who runs out of memory
//! all the same goes on with less at a time.

use super::Pool;
use super::needs::{human, refuse_device};
use crate::error::Result;
use crate::kernels::{Compute, DeviceMemory, Precision};
use crate::model::ModelConfig;
use crate::train::TrainConfig;

/// Parameters, two moments and the gradient, in f32.
const TRAINED: u64 = 16;
/// Parameters and gradient, in f32.
const DIFFERENTIATED: u64 = 8;
/// Where nobody tells how much there is.
const UNLIMITED: DeviceMemory = DeviceMemory { free: 1 << 40, total: 1 << 40 };
/// Logits that are held at once, in f32 and in the type of the activations, and what a product works in.
const HEAD: u64 = 416 << 20;
/// Tokens that are scored in one pass, at most: more gains nothing.
const PASS: u64 = 32 << 10;
/// Tokens of the smallest pass.
const SMALLEST_PASS: u64 = 512;

/// How training goes through a model so that a device has room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passage {
    /// Sequences at a time.
    pub(super) micro_batch: usize,
    /// Whether activations are computed again in the backward pass instead of kept.
    pub(super) recomputes: bool,
}

impl Passage {
    /// The next that takes less memory, if there is one: half as many sequences, then one whose activations are computed again.
    pub(super) fn smaller(self) -> Option<Self> {
        match self.micro_batch {
            2.. => Some(Self { micro_batch: self.micro_batch.div_ceil(2), ..self }),
            _ => (!self.recomputes).then_some(Self { recomputes: true, ..self }),
        }
    }
}

/// How a device's memory is divided beside a model that is scored or differentiated.
pub(super) struct Room {
    /// Tokens of a pass of scoring.
    pub(super) pass_tokens: usize,
    /// Bytes for members of merges.
    pub(super) members: u64,
    /// Whether gradients are taken with activations computed again.
    pub(super) recomputes: bool,
}

impl Pool {
    /// How to train: with the recipe's micro-batch, or the largest half, quarter, ... of it that fits the device; where a single sequence
    /// does not, with the largest that fits when activations are computed again. The result is the same up to the order of
    /// additions. `beside` are bytes a parameter that training takes beside the usual.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) when a single sequence at a time does not fit.
    pub(super) fn fitting_passage(&self, compute: &Compute, train: &TrainConfig, beside: u64) -> Result<Passage> {
        let wanted = Passage { micro_batch: train.micro_batch_size.min(train.batch_size), recomputes: false };
        let Some(memory) = compute.memory()? else { return Ok(wanted) };
        let model = self.layout.len() as u64;
        let rounded = if train.precision == Precision::Bf16 { 2 } else { 0 };
        let fixed = model.saturating_mul(TRAINED + rounded + beside).saturating_add(head(memory));
        let needs = |passage: Passage| {
            let token = kept(&self.settings.model, train.precision, passage.recomputes);
            let tokens = train.sequence_length.saturating_mul(passage.micro_batch) as u64;
            fixed.saturating_add(token.saturating_mul(tokens))
        };
        let room = memory.free.saturating_sub(reserve(memory));
        let halves = |first: Passage| {
            let smaller = move |passage: &Passage| passage.smaller().filter(|next| next.recomputes == first.recomputes);
            std::iter::successors(Some(first), smaller)
        };
        let mut all = halves(wanted).chain(halves(Passage { recomputes: true, ..wanted }));
        if let Some(passage) = all.find(|passage| needs(*passage) <= room) {
            return Ok(passage);
        }
        let smallest = Passage { micro_batch: 1, recomputes: true };
        let advice = format!("a model with {} less would fit; or use --device cpu", human(needs(smallest) - room));
        refuse_device("training one sequence at a time", needs(smallest), room, &compute.name(), &advice)?;
        Ok(smallest)
    }

    /// How the scoring device's memory is divided; none where nobody tells how much there is, as on the processor.
    ///
    /// The size of a pass follows from what the device has in all, not from what happens to be free: products of other sizes may
    /// have other last bits.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) when the model does not fit.
    pub(super) fn scoring_room(&self, compute: &Compute) -> Result<Option<Room>> {
        if !compute.is_queued() {
            return Ok(None);
        }
        let memory = compute.memory()?.unwrap_or(UNLIMITED);
        let config = &self.settings.model;
        let token = passing(config, self.precision());
        let pass_tokens = (memory.total / 8 / token.max(1)).clamp(SMALLEST_PASS, PASS) / SMALLEST_PASS * SMALLEST_PASS;
        let model = self.layout.len() as u64 * compute.dtype().size_in_bytes() as u64;
        let room = memory.free.saturating_sub(reserve(memory));
        let needed = model + head(memory) + token * SMALLEST_PASS;
        if needed > room {
            let advice =
                format!("{} more are needed; end what else runs there, or use --device cpu", human(needed - room));
            refuse_device("scoring", needed, room, &compute.name(), &advice)?;
        }
        let members = room.saturating_sub(model + head(memory) + token * pass_tokens) / 2; // the rest is for training in between
        Ok(Some(Room { pass_tokens: pass_tokens as usize, members, recomputes: false }))
    }

    /// As [`Pool::scoring_room`], for gradients of passes of `tokens` ids through a model in f32.
    ///
    /// # Errors
    /// [`Error::Usage`](crate::Error::Usage) when model, gradient and activations do not fit.
    pub(super) fn differentiating_room(&self, compute: &Compute, tokens: usize) -> Result<Option<Room>> {
        if !compute.is_queued() {
            return Ok(None);
        }
        let memory = compute.memory()?.unwrap_or(UNLIMITED);
        let fixed = (self.layout.len() as u64).saturating_mul(DIFFERENTIATED).saturating_add(head(memory));
        let needs = |recomputes: bool| {
            let token = kept(&self.settings.model, Precision::F32, recomputes);
            fixed.saturating_add(token.saturating_mul(tokens as u64))
        };
        let room = memory.free.saturating_sub(reserve(memory));
        let recomputes = needs(false) > room;
        let needed = needs(recomputes);
        if needed > room {
            let advice =
                format!("{} more are needed; end what else runs there, or use --device cpu", human(needed - room));
            refuse_device("taking a gradient", needed, room, &compute.name(), &advice)?;
        }
        Ok(Some(Room { pass_tokens: SMALLEST_PASS as usize, members: room.saturating_sub(needed), recomputes }))
    }
}

/// What is left to others and to errors of the estimate.
fn reserve(memory: DeviceMemory) -> u64 {
    (memory.total / 16).min(1 << 30)
}

/// What the logits take; no more than a quarter of a small (emulated) device.
fn head(memory: DeviceMemory) -> u64 {
    HEAD.min(memory.total / 4)
}

/// Bytes of activations that a token leaves between the forward and the backward pass, and those of one layer's work beside them.
/// Where they are computed again, every layer leaves its input only, and one layer's exist beside its work.
fn kept(config: &ModelConfig, precision: Precision, recomputes: bool) -> u64 {
    let layer = layer(config) * width(precision) + 4 * config.num_attention_heads as u64;
    let layers = config.num_hidden_layers as u64;
    if recomputes { layers * config.hidden_size as u64 * width(precision) + 3 * layer } else { layer * (layers + 2) }
}

/// Bytes of activations that exist at once of a token that only goes forward.
fn passing(config: &ModelConfig, precision: Precision) -> u64 {
    2 * layer(config) * width(precision)
}

/// Values of a token that a layer holds: the stream and what its halves read of it, queries, keys, values, what they make, and the
/// three inner vectors of a gated feed-forward layer.
fn layer(config: &ModelConfig) -> u64 {
    let heads = |heads: usize| heads * config.head_dim;
    let values = 4 * config.hidden_size
        + 2 * heads(config.num_attention_heads)
        + 2 * heads(config.num_key_value_heads)
        + 3 * config.intermediate_size;
    values as u64
}

fn width(precision: Precision) -> u64 {
    if precision == Precision::Bf16 { 2 } else { 4 }
}
