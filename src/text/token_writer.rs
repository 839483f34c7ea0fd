//! Token writer: encodes documents, or decodes those that arrive as ids, and writes the files of a token folder.

use super::bad_records::BadRecords;
use super::documents::{Format, format_of};
use super::tokens::{content_hash, text_hash};
use super::{Document, DocumentEntry, ReadOptions, Reading, TokenDocument, TokenManifest, Tokenizer, Vocabulary};
use super::{read_records, read_token_documents};
use crate::error::{Error, Result};
use crate::files;
use crate::progress::Observer;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Text tokenised in parallel at a time, in bytes.
const BATCH: usize = 4 << 20;
/// Ids decoded in parallel at a time.
const ID_BATCH: usize = 1 << 20;

/// Encodes documents in batches and appends their ids to `tokens.bin`.
pub(super) struct TokenWriter<'a> {
    tokenizer: &'a Tokenizer,
    vocabulary: usize,
    file: files::Writer,
    ids: blake3::Hasher,
    entries: Vec<DocumentEntry>,
}

impl<'a> TokenWriter<'a> {
    pub(super) fn create(path: &Path, tokenizer: &'a Tokenizer, vocabulary: usize) -> Result<Self> {
        let file = files::Writer::create(path)?;
        Ok(Self { tokenizer, vocabulary, file, ids: blake3::Hasher::new(), entries: Vec::new() })
    }

    fn id_bytes(&self) -> usize {
        if self.vocabulary <= 1 << 16 { 2 } else { 4 }
    }

    /// Adds the documents of a file of text or of token ids.
    pub(super) fn add_file(
        &mut self,
        path: &Path,
        options: &ReadOptions,
        bad: &mut BadRecords<'_>,
        observer: &dyn Observer,
    ) -> Result<()> {
        match format_of(path)?.0 {
            Format::Tokens => self.add_token_file(path, options, observer),
            _ => self.add_text_file(path, options, bad, observer),
        }
    }

    fn add_text_file(
        &mut self,
        path: &Path,
        options: &ReadOptions,
        bad: &mut BadRecords<'_>,
        observer: &dyn Observer,
    ) -> Result<()> {
        let mut pending: Vec<Document> = Vec::new();
        let mut size = 0;
        read_records(path, options, &mut |record| {
            let document = match record {
                Ok(document) => document,
                Err(record) => return bad.take(record),
            };
            size += document.text.len();
            pending.push(document);
            if size >= BATCH {
                size = 0;
                observer.check()?;
                self.add(&std::mem::take(&mut pending))?;
            }
            Ok(())
        })?;
        self.add(&pending)
    }

    fn add(&mut self, documents: &[Document]) -> Result<()> {
        let encoded: Vec<Result<Vec<u32>>> =
            documents.par_iter().map(|document| self.tokenizer.encode(&document.text, &document.place)).collect();
        documents.iter().zip(encoded).try_for_each(|(document, ids)| self.push(&document.text, &ids?, &document.place))
    }

    fn add_token_file(&mut self, path: &Path, options: &ReadOptions, observer: &dyn Observer) -> Result<()> {
        let vocabulary = Vocabulary::of(self.tokenizer, options)?;
        let mut pending: Vec<TokenDocument> = Vec::new();
        let mut size = 0;
        read_token_documents(path, options, &vocabulary, &mut |document| {
            size += document.ids.len();
            pending.push(document);
            if size >= ID_BATCH {
                size = 0;
                observer.check()?;
                self.add_ids(&std::mem::take(&mut pending))?;
            }
            Ok(())
        })?;
        self.add_ids(&pending)
    }

    /// Adds documents whose text, and with it their bytes, is what their ids stand for.
    fn add_ids(&mut self, documents: &[TokenDocument]) -> Result<()> {
        let decoded: Vec<Result<String>> =
            documents.par_iter().map(|document| self.tokenizer.decode(&document.ids, &document.place)).collect();
        documents.iter().zip(decoded).try_for_each(|(document, text)| self.push(&text?, &document.ids, &document.place))
    }

    fn push(&mut self, text: &str, ids: &[u32], place: &str) -> Result<()> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocabulary) {
            return Err(Error::Mismatch {
                what: format!("{place}: tokenizer against model"),
                differences: format!(
                    "the tokenizer emits id {id}, but the model's vocabulary has {} entries; use the model's own \
                     tokenizer or a larger 'vocab_size'",
                    self.vocabulary
                ),
            });
        }
        let width = self.id_bytes();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes().into_iter().take(width)).collect();
        self.ids.update(&bytes);
        self.file.write(&bytes)?;
        self.entries.push(DocumentEntry {
            n_tokens: ids.len() as u64,
            n_bytes: text.len() as u64,
            text_hash: text_hash(text),
        });
        Ok(())
    }

    pub(super) fn close(self, sources: &[PathBuf], reading: Reading) -> Result<(TokenManifest, Vec<u8>)> {
        let table: Vec<u8> = self.entries.iter().flat_map(|entry| entry.to_bytes()).collect();
        let id_bytes = self.id_bytes();
        self.file.close()?;
        let manifest = TokenManifest {
            hash: content_hash(self.tokenizer.hash(), id_bytes, &self.ids.finalize(), &table),
            tokenizer: self.tokenizer.hash().to_owned(),
            id_bytes,
            n_tokens: self.entries.iter().map(|entry| entry.n_tokens).sum(),
            n_bytes: self.entries.iter().map(|entry| entry.n_bytes).sum(),
            n_docs: self.entries.len() as u64,
            sources: sources.to_vec(),
            reading,
        };
        Ok((manifest, table))
    }
}
