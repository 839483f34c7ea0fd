//! Hostile data: text, compressed text, tables and token arrays from strangers, damaged two thousand times each.

mod hostile;

use hostile::{Outcomes, Random, damaged};
use mixpool::text::{ReadOptions, TokenType, Tokenizer, Vocabulary, read_documents, read_token_documents};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

const MUTATIONS: usize = 2000;

fn fixture(name: &str) -> Vec<u8> {
    fs::read(path(name)).unwrap()
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/formats").join(name)
}

/// Damages a file that is then called `name`, and reads it.
fn damage(name: &str, whole: &[u8], read: impl Fn(&Path) -> mixpool::Result<()>) -> Outcomes {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, whole).unwrap();
    read(&path).unwrap();
    let (mut random, mut outcomes) = (Random(whole.len() as u64), Outcomes::default());
    for mutation in 0..MUTATIONS {
        let mut changed = damaged(whole, &mut random);
        if mutation % 3 == 0 {
            changed = damaged(&changed, &mut random);
        }
        fs::write(&path, &changed).unwrap();
        outcomes.add(&format!("{name}, mutation {mutation}"), changed.len(), || read(&path));
    }
    outcomes
}

fn documents(path: &Path) -> mixpool::Result<()> {
    read_documents(path, &ReadOptions::default(), &mut |_| Ok(()))
}

#[test]
fn damaged_tables_are_refused_or_read() {
    let parquet: &[&str] = if cfg!(feature = "parquet") {
        &["none.parquet", "snappy.parquet", "zstd.parquet", "lz4.parquet"]
    } else {
        &[]
    };
    for name in parquet.iter().chain(&["file.arrow", "stream.arrow", "zstd.feather", "lz4.feather"]) {
        let outcomes = damage(name, &fixture(name), documents);
        assert!(outcomes.refused > MUTATIONS / 8, "{name}: {outcomes:?}");
    }
}

#[test]
fn damaged_token_arrays_are_refused_or_read() {
    let tokenizer = Tokenizer::load(&path("tokenizer.json")).unwrap();
    for (name, token_type) in [("flat-u2.npy", None), ("rows.npy", None), ("memmap.bin", Some(TokenType::U16))] {
        let options = ReadOptions { token_type, ..ReadOptions::default() };
        let vocabulary = Vocabulary::of(&tokenizer, &options).unwrap();
        let read = |path: &Path| read_token_documents(path, &options, &vocabulary, &mut |_| Ok(()));
        let outcomes = damage(name, &fixture(name), read);
        assert!(outcomes.refused > 0 && outcomes.read > 0, "{name}: {outcomes:?}");
    }
}

#[test]
fn damaged_text_is_refused_or_read() {
    let records: String = (0..40).map(|i| format!("{{\"id\": {i}, \"text\": \"caf\u{e9} number {i}\"}}\n")).collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(records.as_bytes()).unwrap();
    let zstd = zstd::encode_all(records.as_bytes(), 3).unwrap();
    for (name, whole) in [
        ("a.jsonl", records.clone().into_bytes()),
        ("a.txt", records.clone().into_bytes()),
        ("a.jsonl.gz", gzip.finish().unwrap()),
        ("a.jsonl.zst", zstd),
    ] {
        let outcomes = damage(name, &whole, documents);
        assert!(outcomes.refused > MUTATIONS / 20, "{name}: {outcomes:?}");
    }
}

/// A file of a few kilobytes that becomes a gigabyte of one document, or of nothing but depth.
#[test]
fn bombs_do_not_fill_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut outcomes = Outcomes::default();
    let block = vec![b'a'; 1 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut zstd = zstd::Encoder::new(Vec::new(), 19).unwrap();
    for _ in 0..1024 {
        gzip.write_all(&block).unwrap();
        zstd.write_all(&block).unwrap();
    }
    let deep = format!("{{\"text\": {}1{}}}\n", "[".repeat(1 << 20), "]".repeat(1 << 20));
    for (name, bytes) in
        [("a.txt.gz", gzip.finish().unwrap()), ("a.jsonl.zst", zstd.finish().unwrap()), ("a.jsonl", deep.into_bytes())]
    {
        let path = folder.path().join(name);
        fs::write(&path, &bytes).unwrap();
        outcomes.add(name, bytes.len(), || documents(&path));
    }
    assert_eq!(outcomes.refused, 3, "{outcomes:?}");
}
