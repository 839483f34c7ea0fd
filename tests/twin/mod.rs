//! Twin: the operators and the transformer once more, plainly, from stock candle operations in f64, so that candle's
//! automatic differentiation gives the gradients to compare with.

use candle_core::{DType, Device::Cpu, Result, Tensor, Var};
use mixpool::kernels::{Gelu, Heads};
use mixpool::model::{Layout, ModelConfig, Sequences};

/// `f(inputs)`, and the gradients of Σ `f(inputs)` · `weight` with respect to each input; all in f64.
pub(crate) fn differentiate(
    inputs: &[&Tensor],
    weight: &Tensor,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<(Tensor, Vec<Tensor>)> {
    let variables = inputs.iter().map(|x| Var::from_tensor(&x.to_dtype(DType::F64)?)).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let y = f(&tensors)?;
    let gradients = (&y * weight.to_dtype(DType::F64)?)?.sum_all()?.backward()?;
    let gradients = tensors.iter().map(|x| gradients.get(x).expect("candle has dropped a gradient").clone()).collect();
    Ok((y, gradients))
}

pub(crate) fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.matmul(&w.t()?)
}

pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let rms = ((x.sqr()?.sum_keepdim(1)? / x.dim(1)? as f64)? + eps)?.sqrt()?;
    x.broadcast_div(&rms)?.broadcast_mul(weight)
}

pub(crate) fn layer_norm(x: &Tensor, gain: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let width = x.dim(1)? as f64;
    let x = x.broadcast_sub(&(x.sum_keepdim(1)? / width)?)?;
    let deviation = ((x.sqr()?.sum_keepdim(1)? / width)? + eps)?.sqrt()?;
    x.broadcast_div(&deviation)?.broadcast_mul(gain)?.broadcast_add(bias)
}

pub(crate) fn gelu(form: Gelu, x: &Tensor) -> Result<Tensor> {
    let inner = match form {
        Gelu::Exact => (x / 2f64.sqrt())?.erf()?,
        Gelu::Tanh => ((x + (x.sqr()? * x)? * 0.044_715)? * (2.0 / std::f64::consts::PI).sqrt())?.tanh()?,
    };
    (inner + 1.0)? * (x * 0.5)?
}

pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    (gate / (gate.neg()?.exp()? + 1.0)?)? * up
}

pub(crate) fn rope(x: &Tensor, dim: usize, theta: f64, lengths: &[usize]) -> Result<Tensor> {
    let ((n, width), half) = (x.dims2()?, dim / 2);
    let angle = |position: usize, i: usize| position as f64 / theta.powf(i as f64 / half as f64);
    let positions = lengths.iter().flat_map(|length| 0..*length);
    let angles: Vec<f64> = positions.flat_map(|position| (0..half).map(move |i| angle(position, i))).collect();
    let angles = Tensor::from_vec(angles, (n, 1, half), &Cpu)?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let x = x.reshape((n, width / dim, dim))?;
    let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 2)?.reshape((n, width))
}

pub(crate) fn attention(heads: Heads, lengths: &[usize], q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let mut start = 0;
    let mut sequences = Vec::new();
    for length in lengths.iter().copied() {
        let part = |x: &Tensor, head: usize| x.narrow(0, start, length)?.narrow(1, head * heads.dim, heads.dim);
        let hidden = (0..length * length).map(|i| if i % length > i / length { f64::NEG_INFINITY } else { 0.0 });
        let mask = Tensor::from_iter(hidden, &Cpu)?.reshape((length, length))?;
        let head = |head: usize| {
            let key = head / (heads.queries / heads.keys);
            let scores = (part(q, head)?.matmul(&part(k, key)?.t()?)? / (heads.dim as f64).sqrt())?;
            let p = (scores + &mask)?.exp()?;
            p.broadcast_div(&p.sum_keepdim(1)?)?.matmul(&part(v, key)?.contiguous()?)
        };
        sequences.push(Tensor::cat(&(0..heads.queries).map(head).collect::<Result<Vec<_>>>()?, 1)?);
        start += length;
    }
    Tensor::cat(&sequences, 0)
}

/// The negative log-likelihood of each row: `[n, 1]`.
pub(crate) fn cross_entropy(x: &Tensor, w: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let logits = linear(x, w)?;
    let chosen = logits.gather(&Tensor::new(targets, &Cpu)?.reshape((targets.len(), 1))?, 1)?;
    logits.exp()?.sum_keepdim(1)?.log()? - chosen
}

pub(crate) fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    table.index_select(&Tensor::new(ids, &Cpu)?, 0)
}

/// The mean loss of a Llama model whose parameters lie in `flat` as `layout` says.
pub(crate) fn loss(
    config: &ModelConfig,
    layout: &Layout,
    flat: &Tensor,
    batch: Sequences<'_>,
    targets: &[u32],
) -> Result<Tensor> {
    let (eps, lengths) = (config.rms_norm_eps, batch.lengths);
    let weight = |name: &str| layout.view(flat, &format!("{name}.weight")).unwrap();
    let rotated = |x: Tensor| rope(&x, config.head_dim, config.rope_theta, lengths);
    let mut x = embedding(&weight("model.embed_tokens"), batch.tokens)?;
    for layer in 0..config.num_hidden_layers {
        let part = |part: &str| weight(&format!("model.layers.{layer}.{part}"));
        let normed = rms_norm(&x, &part("input_layernorm"), eps)?;
        let q = rotated(linear(&normed, &part("self_attn.q_proj"))?)?;
        let k = rotated(linear(&normed, &part("self_attn.k_proj"))?)?;
        let v = linear(&normed, &part("self_attn.v_proj"))?;
        let attended = attention(config.heads(), lengths, &q, &k, &v)?;
        x = (x + linear(&attended, &part("self_attn.o_proj"))?)?;
        let normed = rms_norm(&x, &part("post_attention_layernorm"), eps)?;
        let active = swiglu(&linear(&normed, &part("mlp.gate_proj"))?, &linear(&normed, &part("mlp.up_proj"))?)?;
        x = (x + linear(&active, &part("mlp.down_proj"))?)?;
    }
    let output = if config.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" };
    cross_entropy(&rms_norm(&x, &weight("model.norm"), eps)?, &weight(output), targets)?.mean_all()
}
