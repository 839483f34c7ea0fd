//! Tokenizer: text to token ids, by the `tokenizers` crate, trained on files or loaded from `tokenizer.json`.

use super::{ReadOptions, read_documents};
use crate::error::{Error, Result};
use crate::files;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Inner};

/// The token that begins and separates documents in tokenizers trained here.
const END_OF_TEXT: &str = "<|endoftext|>";

/// Names under which tokenizers keep the token that begins a document, in order of preference (BOS before EOS).
const PREFIXES: [&str; 7] =
    ["<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>", END_OF_TEXT, "<|end_of_text|>", "</s>"];

/// A tokenizer with the hash of the file it came from.
pub struct Tokenizer {
    inner: Inner,
    hash: String,
    prefix: Option<u32>,
}

impl Tokenizer {
    /// Trains byte-level BPE with `vocabulary` entries, `<|endoftext|>` as entry 0 among them, on the documents of
    /// `paths`, and returns the bytes of its `tokenizer.json`.
    ///
    /// # Errors
    /// Those of [`read_documents`]; [`Error::Usage`] when the vocabulary is below 257 or the text holds too few pairs.
    pub fn train(paths: &[PathBuf], options: &ReadOptions, vocabulary: usize) -> Result<Vec<u8>> {
        if vocabulary < 257 {
            return Err(Error::Usage(format!(
                "a vocabulary of {vocabulary}; byte-level BPE needs at least 257 entries"
            )));
        }
        let mut documents = Vec::new();
        for path in paths {
            read_documents(path, options, &mut |document| {
                documents.push(document.text);
                Ok(())
            })?;
        }
        let mut tokenizer = Inner::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, false, true)));
        tokenizer.with_decoder(Some(ByteLevel::new(false, false, true)));
        let mut trainer = TrainerWrapper::BpeTrainer(
            BpeTrainer::builder()
                .vocab_size(vocabulary)
                .min_frequency(2)
                .show_progress(false)
                .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
                .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                .build(),
        );
        let failed = |error: tokenizers::Error| Error::input("tokenizer training", error.to_string());
        tokenizer.train(&mut trainer, documents.iter().map(String::as_str)).map_err(failed)?;
        let got = tokenizer.get_vocab_size(true);
        if got < vocabulary {
            return Err(Error::Usage(format!(
                "the text yields only {got} entries, {vocabulary} were asked for; pass --vocab {got} or more text"
            )));
        }
        tokenizer.to_string(true).map(String::into_bytes).map_err(failed)
    }

    /// Loads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Input`] when the `tokenizers` crate does not accept it.
    pub fn load(path: &Path) -> Result<Self> {
        Self::from_json(&std::fs::read(path).map_err(Error::io("read", path))?, &path.display().to_string())
    }

    /// The tokenizer whose `tokenizer.json` has these bytes; `place` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Input`] when the `tokenizers` crate does not accept it.
    pub fn from_json(bytes: &[u8], place: &str) -> Result<Self> {
        // A damaged merge list can make the crate panic; that is the file's fault and said so.
        let loaded = guarded("the tokenizers library failed on it", || Inner::from_bytes(bytes))
            .and_then(without_cutting_and_padding)
            .map_err(|error| {
                let problem = format!("not a tokenizer.json that this version of 'tokenizers' can read: {error}");
                Error::input(place, problem)
            })?;
        let prefix = PREFIXES.iter().find_map(|token| loaded.token_to_id(token));
        Ok(Self { inner: loaded, hash: files::hash(bytes), prefix })
    }

    /// BLAKE3 of `tokenizer.json`.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Number of ids, special tokens included; the embedding must have at least as many rows.
    pub fn vocabulary(&self) -> usize {
        let highest = self.inner.get_vocab(true).into_values().max();
        highest.map_or(0, |id| id as usize + 1)
    }

    /// The token that begins every document: BOS, or EOS where there is none.
    pub fn prefix(&self) -> Option<u32> {
        self.prefix
    }

    /// The id of a token, for recipes that name their prefix token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Ids of a text; no special token is added or recognised specially beyond what the tokenizer itself does.
    ///
    /// # Errors
    /// [`Error::Input`] naming `place` when the tokenizer fails or emits an id outside its vocabulary.
    pub fn encode(&self, text: &str, place: &str) -> Result<Vec<u32>> {
        guarded("the tokenizers library failed on this text", || self.inner.encode_fast(text, false))
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| Error::input(place, format!("cannot be tokenised: {error}")))
    }
}

/// A document is all of its tokens and nothing else, whatever the file says of batches.
fn without_cutting_and_padding(mut tokenizer: Inner) -> tokenizers::Result<Inner> {
    tokenizer.with_truncation(None)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// Runs what may panic on hostile input, silently, and turns a panic into a failure with this message.
fn guarded<T>(message: &str, work: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    thread_local!(static GUARDED: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                usual(panic);
            }
        }));
    });
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    outcome.unwrap_or_else(|_| Err(message.into()))
}
