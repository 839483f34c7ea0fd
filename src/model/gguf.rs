//! GGUF model: the config and the parameters of a GGUF file, brought into the names and the order of `transformers`.
//!
//! llama.cpp turns pairs of neighbouring elements of a head, `transformers` pairs half a head apart. Its converter therefore
//! interleaves the rows of queries and keys of the `llama` architecture (and of no other read here); they are put back.

use super::family::{Activation, Family, RopeScaling};
use super::names::Names;
use super::{Layout, ModelConfig};
use crate::error::Result;
use crate::gguf::{Gguf, TensorInfo, Value};
use rayon::prelude::*;
use std::collections::BTreeMap;

const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";
/// By what rotary frequencies are divided, one number for each; Llama 3.1's converter writes it.
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// How far those may be from what Llama 3's formula gives; they are in single precision.
const SAME_FACTOR: f64 = 1e-4;

/// Architectures read.
const ARCHITECTURES: [(&str, Family); 4] =
    [("llama", Family::Llama), ("qwen2", Family::Qwen2), ("qwen3", Family::Qwen3), ("olmo2", Family::Olmo2)];

/// Options that make another model of the same tensors, where they are not 0.
const UNSUPPORTED: [&str; 10] = [
    "expert_count",
    "attention.sliding_window",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
];

/// The linear layers and norms of heads of a block, in llama.cpp's words and in those of `transformers`.
const LAYERS: [(&str, &str); 9] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The shape of the model in a GGUF file.
///
/// # Errors
/// [`Error::Input`](crate::error::Error::Input) when it is of an architecture, or has an option, that the transformer does not have, when the metadata
/// are incomplete, or when they contradict the tensors.
pub fn read_gguf_config(file: &Gguf) -> Result<ModelConfig> {
    let name = file.text("general.architecture")?.unwrap_or("");
    let known = ARCHITECTURES.iter().find(|(known, _)| *known == name);
    let (_, family) = known.ok_or_else(|| {
        let names = ARCHITECTURES.map(|(name, _)| name).join(", ");
        file.refuse(format!("'general.architecture' is {name:?}, which mixpool cannot run; it runs {names}"))
    })?;
    let said = Said { file, architecture: name };
    said.refuse_unsupported()?;
    let (heads, hidden) = (said.count("attention.head_count")?, said.count("embedding_length")?);
    let head_dim = match said.optional("attention.key_length")? {
        Some(width) => width,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    said.expect("attention.value_length", head_dim)?;
    said.expect("rope.dimension_count", head_dim)?;
    let tensors = file.tensors();
    let has = |name: &str| tensors.contains_key(name);
    let mut config = ModelConfig {
        model_type: *family,
        vocab_size: tensors.get(EMBEDDING).map_or(0, |embedding| embedding.shape()[0]),
        hidden_size: hidden,
        intermediate_size: said.count("feed_forward_length")?,
        num_hidden_layers: said.count("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: said.optional("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        rms_norm_eps: said.real("attention.layer_norm_rms_epsilon")?.ok_or_else(|| {
            file.refuse(format!("'{name}.attention.layer_norm_rms_epsilon' is missing from the metadata"))
        })?,
        rope_theta: said.real("rope.freq_base")?.unwrap_or(10_000.0),
        max_position_embeddings: said.count("context_length")?,
        tie_word_embeddings: !has(OUTPUT),
        rope_scaling: None,
        attention_bias: *family != Family::Qwen2 && has("blk.0.attn_q.bias"),
        mlp_bias: has("blk.0.ffn_up.bias"),
        sliding_window: None,
        hidden_act: Activation::Silu,
        use_parallel_residual: false,
        partial_rotary_factor: None,
    };
    check_size(file, &config)?;
    config.rope_scaling = said.linear_scaling()?;
    if has(ROPE_FACTORS) {
        config.rope_scaling = llama3_scaling(file, &config)?;
    }
    config.check(&file.path().display().to_string())?;
    Ok(config)
}

/// What the metadata say of the architecture.
struct Said<'a> {
    file: &'a Gguf,
    architecture: &'a str,
}

impl Said<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn optional(&self, key: &str) -> Result<Option<usize>> {
        self.file.count(&self.key(key))
    }

    fn count(&self, key: &str) -> Result<usize> {
        let missing = || self.file.refuse(format!("'{}' is missing from the metadata", self.key(key)));
        self.optional(key)?.ok_or_else(missing)
    }

    fn real(&self, key: &str) -> Result<Option<f64>> {
        self.file.real(&self.key(key))
    }

    /// Refuses another value than `expected`, where there is one.
    fn expect(&self, key: &str, expected: usize) -> Result<()> {
        match self.optional(key)? {
            Some(found) if found != expected => Err(self.file.refuse(format!(
                "'{}' is {found}, which is not supported; expected the width of a head, {expected}",
                self.key(key)
            ))),
            _ => Ok(()),
        }
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let is_set = |key: &&str| match self.file.metadata().get(&self.key(key)) {
            None | Some(Value::Integer(0) | Value::Flag(false)) => false,
            Some(Value::Real(number)) => *number != 0.0,
            Some(_) => true,
        };
        match UNSUPPORTED.iter().find(|key| is_set(key)) {
            Some(key) => Err(self.file.refuse(format!("'{}' is set, which is not supported", self.key(key)))),
            None => Ok(()),
        }
    }

    /// Scaling of all frequencies alike, said in one of two ways.
    fn linear_scaling(&self) -> Result<Option<RopeScaling>> {
        let kind = self.file.text(&self.key("rope.scaling.type"))?;
        let factor = match kind {
            Some("none") => None,
            Some("linear") => self.real("rope.scaling.factor")?,
            None => self.real("rope.scale_linear")?,
            Some(other) => {
                let key = self.key("rope.scaling.type");
                return Err(self
                    .file
                    .refuse(format!("'{key}' is {other:?}, which is not supported; expected none or linear")));
            }
        };
        Ok(factor.filter(|factor| *factor != 1.0).map(|factor| RopeScaling::Linear { factor }))
    }
}

/// Refuses sizes that the tensors of the file do not have, before anything is made of such a size.
fn check_size(file: &Gguf, config: &ModelConfig) -> Result<()> {
    let (hidden, head_dim) = (config.hidden_size, config.head_dim);
    let rows = |heads: usize| heads.saturating_mul(head_dim);
    let expected = [
        (EMBEDDING, config.vocab_size),
        ("blk.0.attn_q.weight", rows(config.num_attention_heads)),
        ("blk.0.attn_k.weight", rows(config.num_key_value_heads)),
        ("blk.0.ffn_up.weight", config.intermediate_size),
    ];
    for (name, rows) in expected {
        let found = file.tensors().get(name).map(TensorInfo::shape);
        let found = found.ok_or_else(|| file.refuse(format!("tensor '{name}' is missing")))?;
        if found != [rows, hidden] {
            let problem = format!("tensor '{name}' is {found:?}, expected [{rows}, {hidden}] by the metadata");
            return Err(file.refuse(problem));
        }
    }
    let (blocks, tensors) = (config.num_hidden_layers, file.tensors().len());
    if blocks > tensors {
        return Err(file.refuse(format!("'block_count' is {blocks}, but there are {tensors} tensors")));
    }
    Ok(())
}

/// Recognises Llama 3's scaling by the factors it leads to; other factors are not supported.
fn llama3_scaling(file: &Gguf, config: &ModelConfig) -> Result<Option<RopeScaling>> {
    let found = file.values(ROPE_FACTORS)?;
    let factor = f64::from(found.iter().copied().fold(1.0, f32::max));
    if found.iter().all(|factor| *factor == 1.0) {
        return Ok(None);
    }
    let scaling = RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let scaled = ModelConfig { rope_scaling: Some(scaling.clone()), ..config.clone() }.rope_frequencies();
    let plain = ModelConfig { rope_scaling: None, ..config.clone() }.rope_frequencies();
    let expected: Vec<f64> = plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect();
    let same = |(found, expected): (&f32, &f64)| (f64::from(*found) / expected - 1.0).abs() < SAME_FACTOR;
    if found.len() != expected.len() || !found.iter().zip(&expected).all(same) {
        return Err(file.refuse(format!(
            "tensor '{ROPE_FACTORS}' is not what Llama 3 divides frequencies by; use the model's Hugging Face folder"
        )));
    }
    Ok(Some(scaling))
}

/// The parameters of the model in a GGUF file as f32, in the order of `layout`, which is that of `config`.
///
/// # Errors
/// [`Error::Mismatch`](crate::error::Error::Mismatch) when the tensors are not those of the layout, [`Error::Input`](crate::error::Error::Input) when a value is not finite.
pub fn read_gguf(file: &Gguf, config: &ModelConfig, layout: &Layout) -> Result<Vec<f32>> {
    let names: BTreeMap<String, &str> =
        layout.parameters().iter().map(|parameter| (gguf_name(config, &parameter.name), &*parameter.name)).collect();
    let shapes = file.tensors().iter().filter(|(name, _)| *name != ROPE_FACTORS).map(|(name, tensor)| {
        let name = names.get(name).map_or(name.as_str(), |name| *name);
        (name.to_owned(), tensor.shape().to_vec())
    });
    layout.check_against(&Layout::from_shapes(shapes.collect()), &file.path().display().to_string())?;
    let mut values = vec![0f32; layout.len()];
    let mut rest = values.as_mut_slice();
    let mut parts = Vec::new();
    for parameter in layout.parameters() {
        let (part, others) = std::mem::take(&mut rest).split_at_mut(parameter.len());
        parts.push((parameter, part));
        rest = others;
    }
    parts.into_par_iter().try_for_each(|(parameter, part)| -> Result<()> {
        let found = file.values(&gguf_name(config, &parameter.name))?;
        let width = parameter.shape.get(1).copied().unwrap_or(1);
        match interleaved_heads(config, &parameter.name) {
            Some(heads) => separate_pairs(&found, heads, width, part),
            None => part.copy_from_slice(&found),
        }
        Ok(())
    })?;
    Ok(values)
}

/// The heads of a parameter whose rows the converter interleaved.
fn interleaved_heads(config: &ModelConfig, name: &str) -> Option<usize> {
    match name.rsplit('.').nth(1)? {
        "q_proj" if config.model_type == Family::Llama => Some(config.num_attention_heads),
        "k_proj" if config.model_type == Family::Llama => Some(config.num_key_value_heads),
        _ => None,
    }
}

/// Rows 2i and 2i + 1 of every head become its rows i and i + half.
fn separate_pairs(values: &[f32], heads: usize, width: usize, out: &mut [f32]) {
    let head = values.len() / heads;
    let half = head / width / 2;
    for (values, out) in values.chunks(head).zip(out.chunks_mut(head)) {
        for (row, values) in values.chunks(width).enumerate() {
            let to = (row % 2 * half + row / 2) * width;
            out[to..to + width].copy_from_slice(values);
        }
    }
}

/// llama.cpp's name of the parameter that `transformers` calls `name`.
fn gguf_name(config: &ModelConfig, name: &str) -> String {
    let block = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let Some((number, (layer, kind))) = block.and_then(|(number, rest)| Some((number, rest.rsplit_once('.')?))) else {
        return match name {
            "model.embed_tokens.weight" => EMBEDDING.into(),
            "lm_head.weight" => OUTPUT.into(),
            "model.norm.weight" => "output_norm.weight".into(),
            other => other.to_owned(),
        };
    };
    let norms =
        if config.norms_come_after() { ["post_attention_norm", "post_ffw_norm"] } else { ["attn_norm", "ffn_norm"] };
    let theirs = Names::of(config);
    let norms = norms.into_iter().zip([theirs.attention_norm, theirs.feed_forward_norm]);
    let found = LAYERS.into_iter().chain(norms).find(|(_, theirs)| *theirs == layer);
    format!("blk.{number}.{}.{kind}", found.map_or(layer, |(ours, _)| ours))
}
