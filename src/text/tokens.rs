//! Token file: the token ids of a list of documents on disk, mapped, with lengths in tokens and bytes.
//!
//! A folder holds `tokens.bin` (ids, little-endian, 2 bytes each when the vocabulary has at most 65,536 entries, else
//! 4), `documents.bin` (32 bytes per document) and `manifest.json`. Its name is the hash of what it holds.

use super::bad_records::BadRecords;
use super::sources::expand;
use super::token_writer::TokenWriter;
use super::{BadRecordCounts, ReadOptions, Reading, Tokenizer};
use crate::error::{Error, Result};
use crate::files::{self, StagedFile, Staging};
use crate::progress::Observer;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};

const TOKENS: &str = "tokens.bin";
const DOCUMENTS: &str = "documents.bin";
const MANIFEST: &str = "manifest.json";

/// What a token folder says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenManifest {
    /// Hash of tokenizer, ids and document table: the folder's name.
    pub hash: String,
    /// Hash of the `tokenizer.json` that made the ids.
    pub tokenizer: String,
    /// Bytes per id: 2 or 4.
    pub id_bytes: usize,
    /// Token ids in all.
    pub n_tokens: u64,
    /// UTF-8 bytes of text in all.
    pub n_bytes: u64,
    /// Documents.
    pub n_docs: u64,
    /// The files the text came from, as given.
    pub sources: Vec<PathBuf>,
    /// How the files were read.
    #[serde(flatten)]
    pub reading: Reading,
}

/// One document of a token file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentEntry {
    /// Token ids.
    pub n_tokens: u64,
    /// UTF-8 bytes of text.
    pub n_bytes: u64,
    /// The first 16 bytes of the BLAKE3 hash of the text.
    pub text_hash: [u8; 16],
}

impl DocumentEntry {
    const BYTES: usize = 32;

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.n_tokens.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.n_bytes.to_le_bytes());
        bytes[16..].copy_from_slice(&self.text_hash);
        bytes
    }

    fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let number = |range: Range<usize>| bytes[range].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
        let mut text_hash = [0; 16];
        text_hash.copy_from_slice(&bytes[16..]);
        Self { n_tokens: number(0..8), n_bytes: number(8..16), text_hash }
    }
}

/// A token folder that is complete but not visible yet: dropped, it leaves nothing behind.
pub struct StagedTokens {
    manifest: TokenManifest,
    staging: Staging,
    store: PathBuf,
    bad_records: Option<BadRecordCounts>,
    quarantine: Option<StagedFile>,
}

impl StagedTokens {
    /// Tokenises the documents of `paths`, which [`expand`] reads, into a token folder that will lie under `store`.
    ///
    /// The same text and tokenizer give the same folder, whether it arrives as text or as the tokenizer's ids.
    ///
    /// # Errors
    /// Those of [`expand`], [`super::read_records`], [`super::read_token_documents`] and [`Tokenizer::encode`]; a bad record unless `options`
    /// suffer it; [`Error::Mismatch`] when an id reaches beyond `vocabulary`.
    pub fn of(
        store: &Path,
        paths: &[PathBuf],
        options: &ReadOptions,
        tokenizer: &Tokenizer,
        vocabulary: usize,
        observer: &dyn Observer,
    ) -> Result<Self> {
        files::create_folder(store)?;
        let staging = Staging::new(&store.join("tokens"))?;
        let mut writer = TokenWriter::create(&staging.file(TOKENS), tokenizer, vocabulary)?;
        let mut bad = BadRecords::new(options.on_bad_record, store);
        let paths = expand(paths)?;
        for path in &paths {
            writer.add_file(path, options, &mut bad, observer)?;
        }
        let (manifest, entries) = writer.close(&paths, Reading::of(options))?;
        staging.write(DOCUMENTS, &entries)?;
        staging.write(MANIFEST, &files::to_sealed_json(&manifest)?)?;
        let (bad_records, quarantine) = bad.close();
        Ok(Self { manifest, staging, store: store.to_path_buf(), bad_records, quarantine })
    }

    /// A token folder that will lie under `store` and holds some documents of another, in the order given.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn select(store: &Path, source: &TokenFile, documents: &[usize]) -> Result<Self> {
        files::create_folder(store)?;
        let staging = Staging::new(&store.join("tokens"))?;
        let TokenManifest { id_bytes, tokenizer, sources, reading, .. } = source.manifest.clone();
        let mut file = files::Writer::create(&staging.file(TOKENS))?;
        let mut ids = blake3::Hasher::new();
        for document in documents {
            let bytes = source.bytes(*document);
            ids.update(bytes);
            file.write(bytes)?;
        }
        file.close()?;
        let entries: Vec<DocumentEntry> = documents.iter().map(|document| source.documents[*document]).collect();
        let table: Vec<u8> = entries.iter().flat_map(|entry| entry.to_bytes()).collect();
        let manifest = TokenManifest {
            hash: content_hash(&tokenizer, id_bytes, &ids.finalize(), &table),
            tokenizer,
            id_bytes,
            n_tokens: entries.iter().map(|entry| entry.n_tokens).sum(),
            n_bytes: entries.iter().map(|entry| entry.n_bytes).sum(),
            n_docs: entries.len() as u64,
            sources,
            reading,
        };
        staging.write(DOCUMENTS, &table)?;
        staging.write(MANIFEST, &files::to_sealed_json(&manifest)?)?;
        Ok(Self { manifest, staging, store: store.to_path_buf(), bad_records: None, quarantine: None })
    }

    /// The manifest.
    pub fn manifest(&self) -> &TokenManifest {
        &self.manifest
    }

    /// How many records were left out; none when all were good.
    pub fn bad_records(&self) -> Option<&BadRecordCounts> {
        self.bad_records.as_ref()
    }

    /// The file of records in quarantine, to be published by whoever knows its name; none when there is none.
    pub fn take_quarantine(&mut self) -> Option<StagedFile> {
        self.quarantine.take()
    }

    /// The tokens, before others see them.
    pub fn open(&self) -> Result<TokenFile> {
        TokenFile::open(&self.staging.file("."))
    }

    /// Makes the folder visible. One that is there already is kept if it is whole and replaced if it is damaged.
    pub fn publish(self) -> Result<TokenManifest> {
        let folder = self.store.join(&self.manifest.hash);
        if folder.exists() && TokenFile::open(&folder).and_then(|tokens| tokens.verify(&folder)).is_err() {
            files::remove_folder(&folder)?;
        }
        self.staging.publish(&folder)?;
        Ok(self.manifest)
    }
}

pub(super) fn content_hash(tokenizer: &str, id_bytes: usize, ids: &blake3::Hash, table: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("mixpool token file v1");
    hasher.update(tokenizer.as_bytes()).update(&[id_bytes as u8]).update(ids.as_bytes()).update(table);
    hasher.finalize().to_hex().to_string()
}

pub(super) fn text_hash(text: &str) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
    short
}

/// A token folder, mapped.
pub struct TokenFile {
    manifest: TokenManifest,
    ids: Option<files::Mapped>, // none when every document is empty
    documents: Vec<DocumentEntry>,
    starts: Vec<u64>, // first token of each document, and the end
}

impl TokenFile {
    /// Opens a token folder and checks its sizes against its manifest.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read, [`Error::Damaged`] when sizes and manifest disagree.
    pub fn open(folder: &Path) -> Result<Self> {
        let manifest: TokenManifest = files::read_json(&folder.join(MANIFEST))?;
        let path = folder.join(DOCUMENTS);
        let table = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let (entries, rest) = table.as_chunks::<{ DocumentEntry::BYTES }>();
        let documents: Vec<_> = entries.iter().map(DocumentEntry::from_bytes).collect();
        let total: u64 = documents.iter().map(|document| document.n_tokens).sum();
        if !rest.is_empty() || documents.len() as u64 != manifest.n_docs || total != manifest.n_tokens {
            return Err(Error::damaged(
                path,
                "its size does not fit the manifest; register the data (or, for the seed, init) again",
            ));
        }
        let path = folder.join(TOKENS);
        let ids = if manifest.n_tokens == 0 { None } else { Some(files::map(&path)?) };
        let expected = manifest.n_tokens * manifest.id_bytes as u64;
        let length = ids.as_ref().map_or(0, |ids| ids.len() as u64);
        if length != expected || !matches!(manifest.id_bytes, 2 | 4) {
            let problem =
                format!("{length} bytes, expected {expected}; register the data (or, for the seed, init) again");
            return Err(Error::damaged(path, problem));
        }
        let mut next = 0;
        let ends = documents.iter().map(|document| {
            next += document.n_tokens;
            next
        });
        let starts = std::iter::once(0).chain(ends).collect();
        Ok(Self { manifest, ids, documents, starts })
    }

    /// Reads every byte and compares with the manifest's hash.
    ///
    /// # Errors
    /// [`Error::Damaged`] when they differ.
    pub fn verify(&self, folder: &Path) -> Result<()> {
        let table: Vec<u8> = self.documents.iter().flat_map(|entry| entry.to_bytes()).collect();
        let mut ids = blake3::Hasher::new();
        files::hash_on(&mut ids, self.ids.as_deref().unwrap_or_default());
        let ids = ids.finalize();
        if content_hash(&self.manifest.tokenizer, self.manifest.id_bytes, &ids, &table) == self.manifest.hash {
            return Ok(());
        }
        Err(Error::damaged(
            folder,
            "its bytes do not match its manifest; register the data (or, for the seed, init) again",
        ))
    }

    /// The manifest.
    pub fn manifest(&self) -> &TokenManifest {
        &self.manifest
    }

    /// The documents, in order.
    pub fn documents(&self) -> &[DocumentEntry] {
        &self.documents
    }

    /// The ids of document `index`.
    pub fn document(&self, index: usize) -> Vec<u32> {
        let ids = self.bytes(index).chunks_exact(self.manifest.id_bytes);
        ids.map(|id| id.iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte))).collect()
    }

    /// The ids of document `index` as they are stored.
    fn bytes(&self, index: usize) -> &[u8] {
        let width = self.manifest.id_bytes;
        let ids = self.ids.as_deref().unwrap_or_default();
        &ids[self.starts[index] as usize * width..self.starts[index + 1] as usize * width]
    }

    /// The documents `range` as one stream for training: each preceded by `prefix`.
    pub fn stream(&self, range: Range<usize>, prefix: u32) -> Vec<u32> {
        let mut stream = Vec::new();
        for index in range {
            stream.push(prefix);
            stream.extend(self.document(index));
        }
        stream
    }

    /// Length of [`TokenFile::stream`], without reading a token: every document counts one more for its prefix.
    pub fn stream_length(&self, range: Range<usize>) -> u64 {
        self.documents[range].iter().map(|document| document.n_tokens + 1).sum()
    }

    /// Cuts the documents into `units` consecutive runs of about equal token counts, each of at least one document.
    ///
    /// # Errors
    /// [`Error::Usage`] when there are fewer documents than units.
    pub fn split(&self, units: usize) -> Result<Vec<Range<usize>>> {
        let n = self.documents.len();
        if units == 0 || units > n {
            return Err(Error::Usage(format!("{n} document(s) cannot be cut into {units} units")));
        }
        let total = self.manifest.n_tokens;
        let mut first = 0;
        let ranges = (1..=units).map(|unit| {
            let target = (u128::from(total) * unit as u128 / units as u128) as u64;
            let nearest = self.starts.partition_point(|start| *start < target);
            // Whichever document boundary lies nearer, leaving at least one document to each unit still to come.
            let nearer = nearest > 0 && target - self.starts[nearest - 1] < self.starts[nearest] - target;
            let end = if unit == units { n } else { nearest - usize::from(nearer) };
            let end = end.clamp(first + 1, n - (units - unit));
            std::mem::replace(&mut first, end)..end
        });
        Ok(ranges.collect())
    }
}
