//! Config file: `config.json` of a Hugging Face folder, read with each family's defaults.

use super::ModelConfig;
use super::family::Family;
use crate::error::{Error, Result};
use crate::files;
use serde_json::{Map, Value, json};
use std::path::Path;

/// File name of the config inside a model folder.
pub(super) const CONFIG: &str = "config.json";
/// A description larger than this is refused unread; those in use have a few kilobytes.
const MAX_BYTES: u64 = 4 << 20;

/// Reads `config.json` of a model folder; of a family that is not known, nothing but the vocabulary.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::Input`] when it describes an option of a known family that the transformer
/// does not have.
pub fn read_config(folder: &Path) -> Result<ModelConfig> {
    let path = folder.join(CONFIG);
    config_of(read_object(&path)?.1, &path.display().to_string())
}

/// The model that the fields of a `config.json` describe, in the spelling of its family.
///
/// # Errors
/// [`Error::Input`] naming `place`, as [`read_config`].
pub fn config_of(mut fields: Map<String, Value>, place: &str) -> Result<ModelConfig> {
    let family = Family::named(fields.get("model_type").and_then(Value::as_str).unwrap_or_default());
    if family == Family::Other {
        let vocabulary = fields.get("vocab_size").and_then(Value::as_u64).unwrap_or(0);
        return Ok(ModelConfig::unknown(usize::try_from(vocabulary).unwrap_or(usize::MAX)));
    }
    fields.retain(|key, value| !value.is_null() || key == "sliding_window"); // Mistral tells null from nothing
    for (theirs, ours) in family.spellings() {
        if let Some(value) = fields.remove(*theirs) {
            fields.insert((*ours).into(), value);
        }
    }
    refuse_unsupported(&fields, family, place)?;
    rope(&mut fields, family, place)?;
    complete(&mut fields, family);
    let config: ModelConfig =
        serde_json::from_value(Value::Object(fields)).map_err(|error| Error::input(place, spelled(&error, family)))?;
    config.check(place)?;
    Ok(config)
}

/// A file that holds a JSON object: its bytes, and what they say.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::Input`] when it is too large or no object.
pub(super) fn read_object(path: &Path) -> Result<(String, Map<String, Value>)> {
    let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    if size > MAX_BYTES {
        return Err(Error::input(path.display(), format!("{size} bytes; at most {MAX_BYTES} are accepted")));
    }
    let text = files::read_text(path)?;
    let object = serde_json::from_str(&text).map_err(|error| Error::input(path.display(), error.to_string()))?;
    Ok((text, object))
}

/// An error about one of our fields in the spelling of the family.
fn spelled(error: &serde_json::Error, family: Family) -> String {
    let spell =
        |message: String, (theirs, ours): &(&str, &str)| message.replace(&format!("`{ours}`"), &format!("`{theirs}`"));
    family.spellings().iter().fold(error.to_string(), spell)
}

/// Refuses options that would make another model of the same tensors.
fn refuse_unsupported(fields: &Map<String, Value>, family: Family, place: &str) -> Result<()> {
    let layers = fields.get("layer_types").and_then(Value::as_array);
    let slides = layers.is_some_and(|layers| layers.iter().any(|layer| layer != "full_attention"));
    if slides || fields.get("use_sliding_window") == Some(&json!(true)) {
        let problem = "layers with a sliding window are not supported; expected 'full_attention' in all layers";
        return Err(Error::input(place, problem));
    }
    let (name, known): (_, &[&str]) = match family {
        Family::Gpt2 => ("activation_function", &["gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh"]),
        Family::GptNeox => ("hidden_act", &["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"]),
        _ => ("hidden_act", &["silu"]),
    };
    if let Some(activation) = fields.get("hidden_act").filter(|value| !known.iter().any(|known| *value == known)) {
        let known = known.iter().map(|known| format!("\"{known}\"")).collect::<Vec<_>>().join(", ");
        return Err(Error::input(place, format!("'{name}' is {activation}, which is not supported; expected {known}")));
    }
    if fields.contains_key("quantization_config") {
        let problem = "'quantization_config' is set; expected a model in f32, bf16 or f16: convert it first";
        return Err(Error::input(place, problem));
    }
    // Of GPT-2: other scales of the attention's scores, and a second attention.
    for (option, expected) in
        [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)]
    {
        if let Some(value) = fields.get(option).filter(|value| **value != expected) {
            let problem = format!("'{option}' is {value}, which is not supported; expected {expected}");
            return Err(Error::input(place, problem));
        }
    }
    Ok(())
}

/// Brings what a config says about rotary positions into one form: `rope_theta`, `partial_rotary_factor`, and
/// `rope_scaling` with a `rope_type`.
fn rope(fields: &mut Map<String, Value>, family: Family, place: &str) -> Result<()> {
    // `transformers` 5 keeps base, part and scaling together in `rope_parameters`.
    let parameters = fields.remove("rope_parameters").unwrap_or_default();
    let mut scaling = fields.remove("rope_scaling").unwrap_or(parameters.clone());
    if family == Family::Gpt2 {
        fields.insert("rope_theta".into(), json!(10_000.0)); // has no rotary positions
        return Ok(());
    }
    let of_parameters = |key: &str| parameters.get(key).filter(|value| !value.is_null()).cloned();
    let own = fields.remove("rope_theta");
    let theta = if family == Family::GptNeox {
        of_parameters("rope_theta").or(own)
    } else {
        own.or(of_parameters("rope_theta"))
    };
    fields.insert("rope_theta".into(), theta.unwrap_or(json!(10_000.0)));
    let own = fields.remove("partial_rotary_factor");
    if family == Family::GptNeox {
        let part = of_parameters("partial_rotary_factor").or(own).unwrap_or(json!(0.25));
        if part.as_f64() != Some(1.0) {
            fields.insert("partial_rotary_factor".into(), part);
        }
    } else {
        let mut parts = [own, of_parameters("partial_rotary_factor")].into_iter().flatten();
        if let Some(part) = parts.find(|part| part.as_f64() != Some(1.0)) {
            let problem = format!("'partial_rotary_factor' is {part}, which is not supported; expected 1");
            return Err(Error::input(place, problem));
        }
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
    let ignored: &[&str] = match family {
        Family::Llama => &["sliding_window", "use_parallel_residual"],
        Family::Mistral => &["attention_bias", "mlp_bias", "use_parallel_residual"],
        Family::Qwen2 => &["attention_bias", "mlp_bias", "sliding_window", "use_parallel_residual"],
        Family::Qwen3 | Family::Olmo2 => &["mlp_bias", "sliding_window", "use_parallel_residual"],
        Family::Gpt2 => &[
            "attention_bias",
            "mlp_bias",
            "sliding_window",
            "use_parallel_residual",
            "partial_rotary_factor",
            "head_dim",
            "num_key_value_heads",
        ],
        Family::GptNeox => &["mlp_bias", "sliding_window", "head_dim", "num_key_value_heads"],
        Family::Other => &[],
    };
    ignored.iter().for_each(|key| drop(fields.remove(*key)));
    let number = |key: &str| fields.get(key).and_then(Value::as_u64);
    let (hidden, heads) = (number("hidden_size"), number("num_attention_heads"));
    let head_dim = match (family, hidden, heads) {
        (Family::Qwen3, ..) => Some(128),
        (_, Some(hidden), Some(heads)) => hidden.checked_div(heads),
        _ => None,
    };
    let keys = match family {
        Family::Mistral => Some(8),
        Family::Qwen2 | Family::Qwen3 => Some(32),
        _ => heads,
    };
    let window = (family == Family::Mistral).then_some(4096);
    let mut defaults = vec![
        ("head_dim", json!(head_dim)),
        ("num_key_value_heads", json!(keys)),
        ("sliding_window", json!(window)),
        ("tie_word_embeddings", json!(family == Family::Gpt2)),
    ];
    match family {
        Family::Gpt2 => defaults.extend([
            ("intermediate_size", json!(hidden.and_then(|hidden| hidden.checked_mul(4)))),
            ("hidden_act", json!("gelu_new")),
            ("rms_norm_eps", json!(1e-5)),
        ]),
        Family::GptNeox => defaults.extend([
            ("attention_bias", json!(true)),
            ("use_parallel_residual", json!(true)),
            ("hidden_act", json!("gelu")),
            ("rms_norm_eps", json!(1e-5)),
        ]),
        _ => {}
    }
    for (key, value) in defaults.into_iter().filter(|(_, value)| !value.is_null()) {
        fields.entry(key).or_insert(value);
    }
}
