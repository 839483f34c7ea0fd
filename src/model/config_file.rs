//! Config file: `config.json` of a Hugging Face folder, read with each family's defaults and written for `transformers`.

use super::family::Family;
use super::{FloatType, ModelConfig};
use crate::error::{Error, Result};
use crate::files;
use serde_json::{Map, Value, json};
use std::path::Path;

/// File name of the config inside a model folder.
pub(super) const CONFIG: &str = "config.json";

/// Reads `config.json` of a model folder.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::Input`] when it describes a family, or an option of one, that the
/// transformer does not have.
pub fn read_config(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join(CONFIG);
    let place = path.display().to_string();
    let value: Value =
        serde_json::from_str(&files::read_text(&path)?).map_err(|error| Error::input(&place, error.to_string()))?;
    let family = Family::named(value["model_type"].as_str().unwrap_or("(none)"), &place)?;
    let Value::Object(mut fields) = value else {
        return Err(Error::input(&place, "expected a JSON object"));
    };
    fields.retain(|key, value| !value.is_null() || key == "sliding_window"); // Mistral tells null from nothing
    refuse_unsupported(&fields, &place)?;
    rope(&mut fields, &place)?;
    complete(&mut fields, family);
    let config: ModelConfig =
        serde_json::from_value(Value::Object(fields)).map_err(|error| Error::input(&place, error.to_string()))?;
    config.check(&place)?;
    Ok(config)
}

/// Refuses options that would make another model of the same tensors.
fn refuse_unsupported(fields: &Map<String, Value>, place: &str) -> Result<()> {
    let layers = fields.get("layer_types").and_then(Value::as_array);
    let slides = layers.is_some_and(|layers| layers.iter().any(|layer| layer != "full_attention"));
    if slides || fields.get("use_sliding_window") == Some(&json!(true)) {
        let problem = "layers with a sliding window are not supported; expected 'full_attention' in all layers";
        return Err(Error::input(place, problem));
    }
    if let Some(activation) = fields.get("hidden_act").filter(|value| **value != "silu") {
        return Err(Error::input(
            place,
            format!("'hidden_act' is {activation}, which is not supported; expected \"silu\""),
        ));
    }
    if fields.contains_key("quantization_config") {
        let problem = "'quantization_config' is set; expected a model in f32, bf16 or f16: convert it first";
        return Err(Error::input(place, problem));
    }
    Ok(())
}

/// Brings what a config says about rotary positions into one form: `rope_theta`, and `rope_scaling` with a `rope_type`.
fn rope(fields: &mut Map<String, Value>, place: &str) -> Result<()> {
    // `transformers` 5 keeps base and scaling together in `rope_parameters`.
    let parameters = fields.remove("rope_parameters").unwrap_or_default();
    let mut scaling = fields.remove("rope_scaling").unwrap_or(parameters.clone());
    let theta = parameters.get("rope_theta").filter(|theta| !theta.is_null());
    fields.entry("rope_theta").or_insert(theta.cloned().unwrap_or(json!(10_000.0)));
    let part = [fields.get("partial_rotary_factor"), parameters.get("partial_rotary_factor")];
    if let Some(part) = part.into_iter().flatten().find(|part| part.as_f64() != Some(1.0)) {
        let problem = format!("'partial_rotary_factor' is {part}, which is not supported; expected 1");
        return Err(Error::input(place, problem));
    }
    let kind = ["rope_type", "type"].iter().find_map(|key| scaling[*key].as_str()).unwrap_or("default").to_owned();
    match (kind.as_str(), &mut scaling) {
        ("default", _) => {}
        ("linear" | "llama3", Value::Object(scaling)) => {
            scaling.insert("rope_type".into(), json!(kind));
            fields.insert("rope_scaling".into(), json!(scaling));
        }
        (other, _) => {
            let problem =
                format!("'rope_scaling' of type '{other}' is not supported; expected default, linear or llama3");
            return Err(Error::input(place, problem));
        }
    }
    Ok(())
}

/// Fills in what `transformers` assumes of a family, and drops what the family ignores.
fn complete(fields: &mut Map<String, Value>, family: Family) {
    let number = |key: &str| fields.get(key).and_then(Value::as_u64);
    let heads = number("num_attention_heads");
    let head_dim = match (family, number("hidden_size"), heads) {
        (Family::Qwen3, ..) => Some(128),
        (_, Some(hidden), Some(heads)) => hidden.checked_div(heads),
        _ => None,
    };
    let keys = match family {
        Family::Llama | Family::Olmo2 => heads,
        Family::Mistral => Some(8),
        Family::Qwen2 | Family::Qwen3 => Some(32),
    };
    let window = (family == Family::Mistral).then_some(4096);
    for (key, value) in [("head_dim", head_dim), ("num_key_value_heads", keys), ("sliding_window", window)] {
        if let Some(value) = value {
            fields.entry(key).or_insert(json!(value));
        }
    }
    fields.entry("tie_word_embeddings").or_insert(json!(false));
    let ignored: &[&str] = match family {
        Family::Llama => &["sliding_window"],
        Family::Mistral => &["attention_bias", "mlp_bias"],
        Family::Qwen2 => &["attention_bias", "mlp_bias", "sliding_window"],
        Family::Qwen3 | Family::Olmo2 => &["mlp_bias", "sliding_window"],
    };
    ignored.iter().for_each(|key| drop(fields.remove(*key)));
}

/// The `config.json` from which `transformers` builds the same model.
pub(super) fn transformers_config(config: &ModelConfig, dtype: FloatType) -> Value {
    let (model_type, class) = config.model_type.names();
    let mut value = json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rope_scaling": null,
        "torch_dtype": dtype.name(),
        "use_cache": true,
    });
    // What the family has and the config does not say because it is the usual case; token ids are the tokenizer's matter.
    let usual = match config.model_type {
        Family::Llama => json!({"attention_bias": false, "mlp_bias": false}),
        Family::Mistral => json!({"sliding_window": null}),
        Family::Qwen2 => json!({"use_sliding_window": false}),
        Family::Qwen3 => json!({"attention_bias": false, "use_sliding_window": false}),
        Family::Olmo2 => {
            json!({"attention_bias": false, "bos_token_id": null, "eos_token_id": null, "pad_token_id": null})
        }
    };
    for fields in [usual, serde_json::to_value(config).unwrap_or_default()] {
        if let (Value::Object(value), Value::Object(fields)) = (&mut value, fields) {
            value.extend(fields);
        }
    }
    value
}
