//! Description: what stands beside the weights of a model for `transformers`, with what the model it comes from said.

use super::config_file::{CONFIG, read_object};
use super::family::Family;
use super::{FloatType, Layout, ModelConfig};
use crate::error::{Error, Result};
use crate::files;
use serde_json::{Map, Value, json};
use std::path::Path;

/// File name of the settings of text generation inside a model folder.
const GENERATION: &str = "generation_config.json";
/// Fields of an imported `config.json` that change no number of a model and are written back: ids of special tokens, and what
/// matters to other programs or to training there. All else is left out: a field of unknown meaning could make
/// `transformers` build another model than the one that was trained and scored here.
const CARRIED: [&str; 21] = [
    "attention_dropout",
    "attn_pdrop",
    "bos_token_id",
    "classifier_dropout",
    "decoder_start_token_id",
    "embd_pdrop",
    "eos_token_id",
    "hidden_dropout",
    "initializer_range",
    "max_window_layers",
    "pad_token_id",
    "resid_pdrop",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "unk_token_id",
    "use_cache",
];

/// Writes `config.json` into `folder`, flushed to the disk. With the folder that the model comes from, its harmless fields are
/// written back and its `generation_config.json` is copied; of a family that is not known, `config.json` is copied whole.
///
/// # Errors
/// [`Error::Input`] when a file of `from` is no JSON object; [`Error::Usage`] when the family is not known and there is no
/// `from`.
pub fn write_description(folder: &Path, config: &ModelConfig, dtype: FloatType, from: Option<&Path>) -> Result<()> {
    let source = from.map(|from| read_object(&from.join(CONFIG))).transpose()?;
    let described = match (config.model_type, &source) {
        (Family::Other, Some((text, _))) => text.clone().into_bytes(),
        (Family::Other, None) => {
            return Err(Error::Usage("a model of a family that is not known has no config of its own to write".into()));
        }
        (_, source) => files::to_json(&transformers_config(config, dtype, source.as_ref().map(|(_, fields)| fields)))?,
    };
    files::write_durably(&folder.join(CONFIG), &described)?;
    let generation = from.map(|from| from.join(GENERATION)).filter(|path| path.exists());
    generation.map_or(Ok(()), |path| files::write_durably(&folder.join(GENERATION), read_object(&path)?.0.as_bytes()))
}

/// Writes a model that comes from nowhere else: [`write_description`], and `model.safetensors` (f32, sorted by name).
///
/// The bytes depend on the arguments alone. `values` lie in the order of `layout`.
pub fn write_checkpoint(folder: &Path, config: &ModelConfig, layout: &Layout, values: &[f32]) -> Result<()> {
    write_description(folder, config, FloatType::Float32, None)?;
    super::write_tensors(&folder.join(super::checkpoint::WEIGHTS), layout, values)
}

/// The `config.json` from which `transformers` builds the same model.
fn transformers_config(config: &ModelConfig, dtype: FloatType, source: Option<&Map<String, Value>>) -> Value {
    let family = config.model_type;
    let (model_type, class) = family.names();
    let mut fields = Map::new();
    let mut add = |more: Value| {
        if let Value::Object(more) = more {
            fields.extend(more);
        }
    };
    add(json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rope_scaling": null,
        "torch_dtype": dtype.name(),
        "use_cache": true,
    }));
    // What the family has and the config does not say because it is the usual case. Ids of tokens are the tokenizer's matter;
    // they are written where `transformers` would otherwise assume some.
    let no_ids = json!({"bos_token_id": null, "eos_token_id": null, "pad_token_id": null});
    match family {
        Family::Llama => add(json!({"attention_bias": false, "mlp_bias": false})),
        Family::Mistral => add(json!({"sliding_window": null})),
        Family::Qwen2 => add(json!({"use_sliding_window": false})),
        Family::Qwen3 => add(json!({"attention_bias": false, "use_sliding_window": false})),
        Family::Olmo2 => {
            add(json!({"attention_bias": false}));
            add(no_ids);
        }
        Family::Gpt2 => add(no_ids),
        Family::GptNeox => {
            add(json!({"attention_bias": false, "use_parallel_residual": false, "partial_rotary_factor": 1.0}));
            add(no_ids);
        }
        Family::Other => {}
    }
    add(serde_json::to_value(config).unwrap_or_default());
    for (theirs, ours) in family.spellings() {
        if let Some(value) = fields.remove(*ours) {
            fields.insert((*theirs).into(), value);
        }
    }
    let unused: &[&str] = match family {
        Family::Gpt2 => &["rope_theta", "rope_scaling", "head_dim", "num_key_value_heads", "attention_dropout"],
        Family::GptNeox => &["head_dim", "num_key_value_heads"],
        _ => &[],
    };
    unused.iter().for_each(|key| drop(fields.remove(*key)));
    for (key, value) in source.into_iter().flatten().filter(|(key, _)| CARRIED.contains(&key.as_str())) {
        fields.insert(key.clone(), value.clone());
    }
    Value::Object(fields)
}
