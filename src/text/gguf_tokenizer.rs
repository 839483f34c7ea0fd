//! GGUF tokenizer: the vocabulary in the metadata of a GGUF file as the bytes of a `tokenizer.json`.

use crate::error::{Error, Result};
use crate::files;
use crate::gguf::Gguf;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A longer token is refused: looking for the parts of a `SentencePiece` token takes the square of its length.
const MAX_TOKEN: usize = 1024;
/// What stands for a space in `SentencePiece` tokens.
const SPACE: &str = "\u{2581}";

/// `tokenizer.ggml.token_type` of tokens that the text cannot spell, and of those that it can.
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
const UNKNOWN: i128 = 2;

/// How byte-level tokenizers split text before pairs are merged.
#[derive(Clone, Copy)]
enum Split {
    /// GPT-2's pattern.
    Gpt2,
    /// Every digit by itself, then GPT-2's pattern.
    Digits,
    /// The pattern of cl100k, with digits in groups of up to three.
    Cl100k,
    /// The same, and words of the vocabulary are tokens whatever the merges say.
    Llama3,
    /// The same as cl100k with every digit by itself, of text in normal form C.
    Qwen2,
}

/// `tokenizer.ggml.pre`, llama.cpp's name of the pattern.
const SPLITS: [(&str, Split); 15] = [
    ("gpt-2", Split::Gpt2),
    ("gpt2", Split::Gpt2),
    ("olmo", Split::Gpt2),
    ("phi-2", Split::Gpt2),
    ("smollm", Split::Digits),
    ("starcoder", Split::Digits),
    ("refact", Split::Digits),
    ("codeshell", Split::Digits),
    ("dbrx", Split::Cl100k),
    ("smaug-bpe", Split::Cl100k),
    ("llama3", Split::Llama3),
    ("llama-v3", Split::Llama3),
    ("llama-bpe", Split::Llama3),
    ("qwen2", Split::Qwen2),
    ("deepseek-r1-qwen", Split::Qwen2),
];

/// What cl100k and its kin split at; `DIGITS` is replaced.
const CL100K: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const REMEDY: &str = "name the model's own tokenizer.json with 'tokenizer' in the recipe";

/// The `tokenizer.json` of the model in a GGUF file.
///
/// Byte-level BPE (`gpt2`) with a known pattern, and `SentencePiece` BPE with byte fallback (`llama`), are understood.
///
/// # Errors
/// [`Error::Input`] for another kind of tokenizer, an unknown pattern, or lists that are missing or do not fit each other.
pub fn gguf_tokenizer(file: &Gguf) -> Result<Vec<u8>> {
    let kind = file.text("tokenizer.ggml.model")?.unwrap_or("");
    let vocabulary = Vocabulary::read(file)?;
    let value = match kind {
        "gpt2" => byte_level(file, &vocabulary)?,
        "llama" => sentence_piece(file, &vocabulary)?,
        other => {
            let problem = format!("'tokenizer.ggml.model' is {other:?}; gpt2 and llama are understood; {REMEDY}");
            return Err(file.refuse(problem));
        }
    };
    files::to_json(&value)
}

/// The token that begins a document by the metadata: BOS, or EOS where there is none.
///
/// # Errors
/// [`Error::Input`] when the metadata hold something else than an id there.
pub fn gguf_prefix(file: &Gguf) -> Result<Option<u32>> {
    let id = |key: &str| Ok::<_, Error>(file.count(key)?.and_then(|id| u32::try_from(id).ok()));
    Ok(id("tokenizer.ggml.bos_token_id")?.or(id("tokenizer.ggml.eos_token_id")?))
}

/// Tokens in the order of their ids, and of what type they are.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i128>,
    ids: BTreeMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a Gguf) -> Result<Self> {
        let tokens = file.texts("tokenizer.ggml.tokens")?;
        let tokens = tokens.ok_or_else(|| file.refuse(format!("there is no tokenizer in it; {REMEDY}")))?;
        let types = file.integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![1; tokens.len()]);
        if types.len() != tokens.len() {
            return Err(file.refuse(format!("{} tokens, but types of {}; {REMEDY}", tokens.len(), types.len())));
        }
        let mut ids = BTreeMap::new();
        for (id, token) in tokens.iter().enumerate() {
            if token.len() > MAX_TOKEN {
                return Err(
                    file.refuse(format!("token {id} has {} bytes; at most {MAX_TOKEN} are accepted", token.len()))
                );
            }
            if let Some(other) = ids.insert(*token, id) {
                return Err(file.refuse(format!("tokens {other} and {id} are both {token:?}; {REMEDY}")));
            }
        }
        Ok(Self { tokens, types, ids })
    }

    /// Ids by token.
    fn to_json(&self) -> Value {
        Value::Object(self.ids.iter().map(|(token, id)| ((*token).to_owned(), json!(id))).collect::<Map<_, _>>())
    }

    /// Tokens that are found in text before it is split.
    fn added(&self) -> Value {
        let added = self.tokens.iter().zip(&self.types).enumerate();
        let added = added.filter(|(_, (token, kind))| matches!(**kind, CONTROL | USER_DEFINED) && !token.is_empty());
        let entry = |(id, (token, kind)): (usize, (&&str, &i128))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": *kind == CONTROL})
        };
        added.map(entry).collect()
    }

    /// The whole file, but for what kinds of tokenizers have their own ways with.
    fn tokenizer(&self, model: Value, normalizer: Value, pre_tokenizer: Value, decoder: Value) -> Value {
        let mut full = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": self.to_json(),
        });
        if let (Value::Object(full), Value::Object(model)) = (&mut full, model) {
            full.extend(model);
        }
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": self.added(),
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
            "decoder": decoder, "model": full,
        })
    }
}

/// BPE over bytes written as letters.
fn byte_level(file: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Value> {
    let pre = file.text("tokenizer.ggml.pre")?.unwrap_or("");
    let split = SPLITS.iter().find(|(known, _)| *known == pre);
    let (_, split) = split.ok_or_else(|| {
        let known = SPLITS.map(|(name, _)| name).join(", ");
        file.refuse(format!("'tokenizer.ggml.pre' is {pre:?}, which is not known ({known} are); {REMEDY}"))
    })?;
    let merges = file.texts("tokenizer.ggml.merges")?;
    let merges = merges.ok_or_else(|| file.refuse(format!("'tokenizer.ggml.merges' is missing; {REMEDY}")))?;
    let merges = merges.into_iter().enumerate().map(|(number, merge)| pair(file, number, merge));
    let merges = merges.collect::<Result<Vec<_>>>()?;
    let bytes = |pattern: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": pattern});
    let after = |first: Value, pattern: bool| json!({"type": "Sequence", "pretokenizers": [first, bytes(pattern)]});
    let at = |digits: &str| {
        let pattern = json!({"Regex": CL100K.replace("DIGITS", digits)});
        json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
    };
    let pre_tokenizer = match split {
        Split::Gpt2 => bytes(true),
        Split::Digits => after(json!({"type": "Digits", "individual_digits": true}), true),
        Split::Cl100k | Split::Llama3 => after(at(r"\p{N}{1,3}"), false),
        Split::Qwen2 => after(at(r"\p{N}"), false),
    };
    let normalizer = if matches!(split, Split::Qwen2) { json!({"type": "NFC"}) } else { Value::Null };
    let model = json!({"merges": merges, "ignore_merges": matches!(split, Split::Llama3)});
    Ok(vocabulary.tokenizer(model, normalizer, pre_tokenizer, bytes(true)))
}

/// The two tokens of a merge.
fn pair<'a>(file: &Gguf, number: usize, merge: &'a str) -> Result<(&'a str, &'a str)> {
    let parts = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
    parts.ok_or_else(|| file.refuse(format!("merge {number}, {merge:?}, is not two tokens; {REMEDY}")))
}

/// `SentencePiece` BPE: no list of merges, but a score for every token that two others make.
fn sentence_piece(file: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Value> {
    let scores = file.reals("tokenizer.ggml.scores")?.filter(|scores| scores.len() == vocabulary.tokens.len());
    let scores = scores.ok_or_else(|| file.refuse(format!("a score for every token was expected; {REMEDY}")))?;
    let unknown = vocabulary.types.iter().position(|kind| *kind == UNKNOWN).map(|id| vocabulary.tokens[id]);
    let prefix = file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let model = json!({
        "merges": merges_by_score(vocabulary, &scores), "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
    });
    let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
    Ok(vocabulary.tokenizer(model, normalizer, Value::Null, json!({"type": "Sequence", "decoders": decoders})))
}

/// Every way to make a token of two others; the token of the highest score comes first, as `SentencePiece` merges. Equal
/// scores follow the ids of the parts: with that, Llama 2's list is that of its own `tokenizer.json`.
fn merges_by_score<'a>(vocabulary: &Vocabulary<'a>, scores: &[f64]) -> Vec<(&'a str, &'a str)> {
    let is_text = |id: usize| !matches!(vocabulary.types[id], CONTROL | USER_DEFINED | UNKNOWN);
    let part = |token: &str| vocabulary.ids.get(token).copied().filter(|id| is_text(*id));
    let mut merges = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate().filter(|(id, _)| is_text(*id)) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(first), Some(second)) = (part(left), part(right)) {
                merges.push((scores[id], first, second, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    merges.into_iter().map(|(.., left, right)| (left, right)).collect()
}
