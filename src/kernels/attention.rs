//! Attention: causal, grouped-query, over packed sequences of unequal length, and its gradient.
//!
//! Queries are taken in blocks, so that scores above the diagonal are hardly computed and never more than
//! block × length of them are held. The backward pass recomputes the probabilities from the stored log-sum-exp of each
//! row (Dao et al. 2022, arXiv 2205.14135). One task is one sequence; sequences never see each other.

use super::matmul::{Into, Matrix, MatrixMut, matmul};
use super::{Exec, device, for_each, simd, split_mut, tensor, values};
use crate::error::Result;
use candle_core::Tensor;

/// Queries handled together.
const QUERY_BLOCK: usize = 64;

/// The head layout of a grouped-query attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; each serves `queries / keys` query heads.
    pub keys: usize,
    /// Width of one head.
    pub dim: usize,
}

impl Heads {
    fn query_width(self) -> usize {
        self.queries * self.dim
    }

    fn key_width(self) -> usize {
        self.keys * self.dim
    }

    pub(super) fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// `softmax(q kᵀ / sqrt(d) + causal mask) v` and the log-sum-exp of each score row.
///
/// # Shapes
/// `q: [n, queries · d]`, `k, v: [n, keys · d]`, `lengths` sum to n → `[n, queries · d]`, `[n, queries]`.
pub fn attention(
    exec: Exec,
    heads: Heads,
    lengths: &[usize],
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
) -> Result<(Tensor, Tensor)> {
    if let Exec::Device { .. } = exec {
        return device::attention(heads, lengths, q, k, v);
    }
    let n = q.dim(0)?;
    let (q, k, v) = (values(q)?, values(k)?, values(v)?);
    let mut out = vec![0f32; n * heads.query_width()];
    let mut lse = vec![0f32; n * heads.queries];
    let starts = starts(lengths);
    let outs = split_mut(&mut out, lengths.iter().map(|l| l * heads.query_width()));
    let lses = split_mut(&mut lse, lengths.iter().map(|l| l * heads.queries));
    for_each(exec, outs.into_iter().zip(lses).collect(), |i, (out, lse)| {
        let sequence = Sequence::new(heads, starts[i], lengths[i], &q, &k, &v);
        sequence.forward(out, lse);
    });
    Ok((tensor(out, n, heads.query_width())?, tensor(lse, n, heads.queries)?))
}

/// The gradients `(dq, dk, dv)` for the gradient `dout` of the result.
///
/// # Shapes
/// As in [`attention`]; `out` and `lse` are its results.
#[allow(clippy::too_many_arguments)] // the operands of the forward pass and what it returned
pub fn attention_backward(
    exec: Exec,
    heads: Heads,
    lengths: &[usize],
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    if let Exec::Device { .. } = exec {
        return device::attention_backward(heads, lengths, q, k, v, out, lse, dout);
    }
    let n = q.dim(0)?;
    let (q, k, v, out, lse, dout) = (values(q)?, values(k)?, values(v)?, values(out)?, values(lse)?, values(dout)?);
    let (wide, narrow) = (heads.query_width(), heads.key_width());
    let mut dq = vec![0f32; n * wide];
    let mut dk = vec![0f32; n * narrow];
    let mut dv = vec![0f32; n * narrow];
    let starts = starts(lengths);
    let parts = split_mut(&mut dq, lengths.iter().map(|l| l * wide))
        .into_iter()
        .zip(split_mut(&mut dk, lengths.iter().map(|l| l * narrow)))
        .zip(split_mut(&mut dv, lengths.iter().map(|l| l * narrow)))
        .collect();
    for_each(exec, parts, |i, ((dq, dk), dv)| {
        let (start, length) = (starts[i], lengths[i]);
        let sequence = Sequence::new(heads, start, length, &q, &k, &v);
        let rows = start * wide..(start + length) * wide;
        let lse = &lse[start * heads.queries..][..length * heads.queries];
        sequence.backward(&out[rows.clone()], lse, &dout[rows], dq, dk, dv);
    });
    Ok((tensor(dq, n, wide)?, tensor(dk, n, narrow)?, tensor(dv, n, narrow)?))
}

fn starts(lengths: &[usize]) -> Vec<usize> {
    lengths.iter().scan(0, |next, length| Some(std::mem::replace(next, *next + length))).collect()
}

/// The queries, keys and values of one sequence.
struct Sequence<'a> {
    heads: Heads,
    length: usize,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

impl<'a> Sequence<'a> {
    fn new(heads: Heads, start: usize, length: usize, q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Self {
        let (wide, narrow) = (heads.query_width(), heads.key_width());
        let keys = start * narrow..(start + length) * narrow;
        Self { heads, length, q: &q[start * wide..][..length * wide], k: &k[keys.clone()], v: &v[keys] }
    }

    /// The first `rows` rows of one key or value head.
    fn key_rows<'b>(&self, keys: &'b [f32], head: usize, rows: usize) -> Matrix<'b> {
        let group = head / (self.heads.queries / self.heads.keys);
        Matrix::strided(&keys[group * self.heads.dim..], rows, self.heads.dim, self.heads.key_width())
    }

    /// Rows `first..last` of one query head.
    fn query_rows<'b>(&self, queries: &'b [f32], head: usize, first: usize, last: usize) -> Matrix<'b> {
        let width = self.heads.query_width();
        Matrix::strided(&queries[first * width + head * self.heads.dim..], last - first, self.heads.dim, width)
    }

    /// Query blocks of all heads: `(head, first row, end row)`.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let length = self.length;
        (0..self.heads.queries).flat_map(move |head| {
            (0..length).step_by(QUERY_BLOCK).map(move |first| (head, first, (first + QUERY_BLOCK).min(length)))
        })
    }

    fn forward(&self, out: &mut [f32], lse: &mut [f32]) {
        let Heads { queries, dim, .. } = self.heads;
        let mut scores = vec![0f32; QUERY_BLOCK * self.length];
        for (head, first, last) in self.blocks() {
            let scores = &mut scores[..(last - first) * last];
            self.scores(head, first, last, scores);
            simd::vectorised(
                #[inline(always)]
                || {
                    for (row, scores) in scores.chunks_exact_mut(last).enumerate() {
                        lse[(first + row) * queries + head] = softmax(scores, first + row + 1, self.heads.scale());
                    }
                },
            );
            let width = self.heads.query_width();
            let out = &mut out[first * width + head * dim..];
            let probabilities = Matrix::new(scores, last - first, last);
            let out = MatrixMut::strided(out, last - first, dim, width);
            matmul(Exec::Alone, Into::Overwrite, out, probabilities, self.key_rows(self.v, head, last));
        }
    }

    /// Unscaled scores of rows `first..last` against keys `0..last`.
    fn scores(&self, head: usize, first: usize, last: usize, scores: &mut [f32]) {
        let q = self.query_rows(self.q, head, first, last);
        let k = self.key_rows(self.k, head, last).t();
        matmul(Exec::Alone, Into::Overwrite, MatrixMut::new(scores, last - first, last), q, k);
    }

    fn backward(&self, out: &[f32], lse: &[f32], dout: &[f32], dq: &mut [f32], dk: &mut [f32], dv: &mut [f32]) {
        let Heads { queries, keys, dim } = self.heads;
        let (wide, narrow, scale) = (self.heads.query_width(), self.heads.key_width(), self.heads.scale());
        let mut p = vec![0f32; QUERY_BLOCK * self.length];
        let mut dp = vec![0f32; QUERY_BLOCK * self.length];
        for (head, first, last) in self.blocks() {
            let rows = last - first;
            let (p, dp) = (&mut p[..rows * last], &mut dp[..rows * last]);
            self.scores(head, first, last, p);
            let dout_rows = self.query_rows(dout, head, first, last);
            let v = self.key_rows(self.v, head, last).t();
            matmul(Exec::Alone, Into::Overwrite, MatrixMut::new(dp, rows, last), dout_rows, v);
            simd::vectorised(
                #[inline(always)]
                || {
                    for (row, (p, dp)) in p.chunks_exact_mut(last).zip(dp.chunks_exact_mut(last)).enumerate() {
                        let at = (first + row) * wide + head * dim;
                        let mean = simd::dot(&out[at..at + dim], &dout[at..at + dim]);
                        let shift = lse[(first + row) * queries + head];
                        softmax_backward(p, dp, first + row + 1, shift, mean, scale);
                    }
                },
            );
            let key = head / (queries / keys) * dim;
            let (p, ds) = (Matrix::new(p, rows, last), Matrix::new(dp, rows, last));
            let dv = MatrixMut::strided(&mut dv[key..], last, dim, narrow);
            matmul(Exec::Alone, Into::Accumulate, dv, p.t(), dout_rows);
            let dk = MatrixMut::strided(&mut dk[key..], last, dim, narrow);
            matmul(Exec::Alone, Into::Accumulate, dk, ds.t(), self.query_rows(self.q, head, first, last));
            let dq = MatrixMut::strided(&mut dq[first * wide + head * dim..], rows, dim, wide);
            matmul(Exec::Alone, Into::Overwrite, dq, ds, self.key_rows(self.k, head, last));
        }
    }
}

/// Scales and normalises the first `visible` scores in place, clears the others, and returns the log-sum-exp.
#[inline(always)]
fn softmax(scores: &mut [f32], visible: usize, scale: f32) -> f32 {
    let (seen, hidden) = scores.split_at_mut(visible);
    hidden.fill(0.0);
    seen.iter_mut().for_each(|score| *score *= scale);
    let max = simd::max(seen);
    let sum = simd::exp_sum(seen, max);
    let inverse = 1.0 / sum;
    seen.iter_mut().for_each(|score| *score *= inverse);
    max + sum.ln()
}

/// Turns scores into probabilities (in `p`) and the gradient of the probabilities into that of the raw scores (in `dp`).
#[inline(always)]
fn softmax_backward(p: &mut [f32], dp: &mut [f32], visible: usize, lse: f32, mean: f32, scale: f32) {
    p[visible..].fill(0.0);
    dp[visible..].fill(0.0);
    for (p, dp) in p[..visible].iter_mut().zip(&mut dp[..visible]) {
        *p = simd::exp(*p * scale - lse);
        *dp = *p * (*dp - mean) * scale;
    }
}
