//! Attention half of a block: queries, keys and values of what is read, attention, and its output; and the gradient.

use super::Transformer;
use super::tap::Tap;
use super::weights::{Attention, Linear, Norm};
use crate::error::{Error, Result};
use crate::kernels::{
    attention, attention_backward, attention_backward_on_device, columns, columns_on_device, join_fused, rope_both,
    split_fused,
};
use candle_core::Tensor;

/// What the backward pass needs of the forward pass.
pub(super) struct Attended {
    pub(super) read: Tensor,        // what the projections read
    pub(super) output_read: Tensor, // what the output layer reads
    projected_q: Option<Tensor>,    // before its norm, where it has one
    projected_k: Option<Tensor>,
    q: Tensor,   // rotated, where positions rotate; q, k and v may be columns of wider tensors
    k: Tensor,   // as q
    v: Tensor,   // as projected
    lse: Tensor, // log-sum-exp of the attention scores
}

/// Layers whose outputs are queries, keys and values side by side, which kernels on a device take as they lie.
struct Joined<'a> {
    layers: &'a [Linear],
    /// Which of queries, keys and values (0, 1, 2) the columns of every layer's output are.
    parts: &'static [&'static [usize]],
    /// Columns of queries, keys and values.
    widths: [usize; 3],
}

impl Joined<'_> {
    /// Queries, keys and values, given the columns of every layer's output.
    fn three(&self, mut of: impl FnMut(usize, &[usize]) -> Result<Vec<Tensor>>) -> Result<[Tensor; 3]> {
        let mut found = Vec::new();
        for (layer, parts) in self.parts.iter().enumerate() {
            let widths: Vec<usize> = parts.iter().map(|part| self.widths[*part]).collect();
            found.extend(parts.iter().copied().zip(of(layer, &widths)?));
        }
        found.sort_by_key(|(part, _)| *part);
        three(found.into_iter().map(|(_, tensor)| tensor).collect())
    }
}

impl Transformer {
    /// The layers of an attention as a device takes them, where it can; the processor's bits are those of its separate products.
    fn joined_attention<'a>(&self, w: &'a Attention) -> Option<Joined<'a>> {
        let heads = self.config.heads();
        let [queries, keys] = [heads.queries, heads.keys].map(|count| count * heads.dim);
        let widths = [queries, keys, keys];
        if !self.is_on_device() {
            return None;
        }
        match (&w.joined, self.config.turns()) {
            (Some(layers), _) => Some(Joined { layers, parts: &[&[0, 2], &[1]], widths }),
            (None, Some(turns)) if turns.count == 1 => {
                Some(Joined { layers: &w.projections, parts: &[&[0, 1, 2]], widths })
            }
            _ => None,
        }
    }

    /// What the half adds to the residual stream, of what it reads of it: `[tokens, hidden]` both.
    pub(super) fn attend(&self, w: &Attention, lengths: &[usize], read: Tensor) -> Result<(Tensor, Attended)> {
        let exec = self.exec;
        let joined = self.joined_attention(w);
        let layers = joined.as_ref().map_or(w.projections.as_slice(), |joined| joined.layers);
        let projected = layers.iter().map(|w| self.linear(&read, w)).collect::<Result<Vec<_>>>()?;
        let [q, k, v] = match (joined, self.config.turns()) {
            (Some(joined), _) => joined.three(|layer, widths| columns(&projected[layer], widths))?,
            (None, Some(turns)) => split_fused(exec, turns, &projected[0])?,
            (None, None) => three(projected)?,
        };
        let (projected_q, q) = self.head_norm(q, w.q_norm.as_ref())?;
        let (projected_k, k) = self.head_norm(k, w.k_norm.as_ref())?;
        if let Some(table) = &self.rope {
            rope_both(exec, &q, &k, table, lengths, false)?;
        }
        let (attended, lse) = attention(exec, self.config.heads(), lengths, &q, &k, &v)?;
        let out = self.linear(&attended, &w.output)?;
        Ok((out, Attended { read, output_read: attended, projected_q, projected_k, q, k, v, lse }))
    }

    /// Takes the gradient of what the half adds, adds those of its weights to `into`, returns that of what it reads.
    pub(super) fn attend_backward(
        &self,
        w: &Attention,
        into: &Attention,
        lengths: &[usize],
        a: &Attended,
        dout: &Tensor,
        tap: &mut Tap<'_, '_>,
    ) -> Result<Tensor> {
        let exec = self.exec;
        let dattended = tap.linear(&a.output_read, &w.output, dout, None, &into.output)?;
        if let (Some(joined), Some(into)) = (self.joined_attention(w), self.joined_attention(into)) {
            let dprojected = self.joined_backward(&joined, lengths, a, &dattended)?;
            return tap.linears(&a.read, joined.layers, &dprojected, into.layers);
        }
        let (dq, dk, dv) = attention_backward(
            exec,
            self.config.heads(),
            lengths,
            &a.q,
            &a.k,
            &a.v,
            &a.output_read,
            &a.lse,
            &dattended,
        )?;
        if let Some(table) = &self.rope {
            rope_both(exec, &dq, &dk, table, lengths, true)?;
        }
        let dq = head_norm_backward(a.projected_q.as_ref(), w.q_norm.as_ref(), dq, into.q_norm.as_ref(), tap)?;
        let dk = head_norm_backward(a.projected_k.as_ref(), w.k_norm.as_ref(), dk, into.k_norm.as_ref(), tap)?;
        let dprojected = match self.config.turns() {
            Some(turns) => vec![join_fused(exec, turns, [&dq, &dk, &dv])?],
            None => vec![dq, dk, dv],
        };
        tap.linears(&a.read, &w.projections, &dprojected, &into.projections)
    }

    /// The gradients of the outputs of joined layers.
    fn joined_backward(
        &self,
        joined: &Joined<'_>,
        lengths: &[usize],
        a: &Attended,
        dattended: &Tensor,
    ) -> Result<Vec<Tensor>> {
        let mut wholes = Vec::new();
        let [dq, dk, dv] = joined.three(|_, widths| {
            let (whole, parts) = columns_on_device(&a.q, a.q.dim(0)?, widths)?;
            wholes.push(whole);
            Ok(parts)
        })?;
        let (values, gradients) = ([&a.q, &a.k, &a.v], [&dq, &dk, &dv]);
        let heads = self.config.heads();
        attention_backward_on_device(heads, lengths, values, &a.output_read, &a.lse, dattended, gradients)?;
        if let Some(table) = &self.rope {
            rope_both(self.exec, &dq, &dk, table, lengths, true)?;
        }
        Ok(wholes)
    }

    /// Queries or keys, normed in rows as long as the gain (a head or all of them) where there is one; with them, what was
    /// normed.
    fn head_norm(&self, projected: Tensor, norm: Option<&Norm>) -> Result<(Option<Tensor>, Tensor)> {
        let Some(norm) = norm else { return Ok((None, projected)) };
        let rows = projected.reshape(((), norm.gain.dim(0)?))?;
        let normed = self.norm(&rows, norm)?.reshape(projected.shape())?;
        Ok((Some(rows), normed))
    }
}

/// The gradient of queries or keys before their norm, if they have one.
fn head_norm_backward(
    rows: Option<&Tensor>,
    norm: Option<&Norm>,
    dnormed: Tensor,
    into: Option<&Norm>,
    tap: &mut Tap<'_, '_>,
) -> Result<Tensor> {
    let (Some(rows), Some(norm), Some(into)) = (rows, norm, into) else { return Ok(dnormed) };
    let drows = tap.norm(rows, norm, &dnormed.reshape(rows.shape())?, None, into)?;
    Ok(drows.reshape(dnormed.shape())?)
}

fn three(projected: Vec<Tensor>) -> Result<[Tensor; 3]> {
    projected.try_into().map_err(|projected: Vec<Tensor>| Error::Mismatch {
        what: "projections of an attention".into(),
        differences: format!("expected 3, got {}", projected.len()),
    })
}
