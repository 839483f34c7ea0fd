//! Attention half of a block: queries, keys and values of what is read, attention, and its output; and the gradient.

use super::Transformer;
use super::tap::Tap;
use super::weights::{Attention, Norm};
use crate::error::{Error, Result};
use crate::kernels::{attention, attention_backward, join_fused, rope_both, split_fused};
use candle_core::Tensor;

/// What the backward pass needs of the forward pass.
pub(super) struct Attended {
    pub(super) read: Tensor,        // what the projections read
    pub(super) output_read: Tensor, // what the output layer reads
    projected_q: Option<Tensor>,    // before its norm, where it has one
    projected_k: Option<Tensor>,
    q: Tensor,   // rotated, where positions rotate
    k: Tensor,   // as q
    v: Tensor,   // as projected
    lse: Tensor, // log-sum-exp of the attention scores
}

impl Transformer {
    /// What the half adds to the residual stream, of what it reads of it: `[tokens, hidden]` both.
    pub(super) fn attend(&self, w: &Attention, lengths: &[usize], read: Tensor) -> Result<(Tensor, Attended)> {
        let exec = self.exec;
        let projected = w.projections.iter().map(|w| self.linear(&read, w)).collect::<Result<Vec<_>>>()?;
        let [q, k, v] = match self.config.turns() {
            Some(turns) => split_fused(exec, turns, &projected[0])?,
            None => three(projected)?,
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
