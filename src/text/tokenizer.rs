//! Tokenizer: text to token ids, by the `tokenizers` crate, trained on files or loaded from `tokenizer.json`.

use super::guarded::guarded;
use super::sources::expand;
use super::{OnBadRecord, ReadOptions, read_records};
use crate::error::{Error, Result};
use crate::files;
use std::path::{Path, PathBuf};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Inner};

/// The token that begins and separates documents in tokenizers trained here.
const END_OF_TEXT: &str = "<|endoftext|>";

/// Names under which tokenizers keep the token that begins a document, in order of preference (BOS before EOS).
const PREFIXES: [&str; 7] =
    ["<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>", END_OF_TEXT, "<|end_of_text|>", "</s>"];

/// Those of them that only begin a document.
const BEGINNINGS: usize = 4;

/// Names of the token that ends a document.
const ENDS: [&str; 4] = [END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>"];

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
    /// Those of [`read_records`]; [`Error::Usage`] when the vocabulary is below 257 or the text holds too few pairs.
    pub fn train(paths: &[PathBuf], options: &ReadOptions, vocabulary: usize) -> Result<Vec<u8>> {
        if vocabulary < 257 {
            return Err(Error::Usage(format!(
                "a vocabulary of {vocabulary}; byte-level BPE needs at least 257 entries"
            )));
        }
        let mut documents = Vec::new();
        for path in expand(paths)? {
            read_records(&path, options, &mut |record| match record {
                Ok(document) => {
                    documents.push(document.text);
                    Ok(())
                }
                Err(bad) if options.on_bad_record == OnBadRecord::Fail => Err(bad.into()),
                Err(_) => Ok(()), // it is only not learnt from
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
        let loaded = unpanicked("the tokenizers library failed on it", || Inner::from_bytes(bytes))
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

    /// The token that begins a document and does nothing else: BOS.
    pub fn beginning(&self) -> Option<u32> {
        PREFIXES[..BEGINNINGS].iter().find_map(|token| self.id(token))
    }

    /// The token that ends a document: EOS.
    pub fn end(&self) -> Option<u32> {
        ENDS.iter().find_map(|token| self.id(token))
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
        unpanicked("the tokenizers library failed on this text", || self.inner.encode_fast(text, false))
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| Error::input(place, format!("cannot be tokenised: {error}")))
    }

    /// The text that ids stand for, special tokens included.
    ///
    /// # Errors
    /// [`Error::Input`] naming `place` when the tokenizer fails.
    pub fn decode(&self, ids: &[u32], place: &str) -> Result<String> {
        unpanicked("the tokenizers library failed on these ids", || self.inner.decode(ids, false))
            .map_err(|error| Error::input(place, format!("cannot be decoded: {error}")))
    }
}

/// A document is all of its tokens and nothing else, whatever the file says of batches.
fn without_cutting_and_padding(mut tokenizer: Inner) -> tokenizers::Result<Inner> {
    tokenizer.with_truncation(None)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// Runs what may panic on hostile input, and turns a panic into a failure with this message.
fn unpanicked<T>(message: &str, work: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    guarded(work).unwrap_or_else(|| Err(message.into()))
}
