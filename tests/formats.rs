//! Formats: the corpora that pyarrow, `NumPy` and datasets wrote (scripts/reference/formats.py) are read as what they hold, and
//! damaged ones are refused.

mod common;
mod world;

use common::{golden, ids};
use mixpool::error::{Error, Result};
use mixpool::text::{
    BadRecord, Document, ReadOptions, TokenType, Tokenizer, Vocabulary, expand, read_documents, read_records,
    read_token_documents,
};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use world::{RECIPE, World, jsonl};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/formats").join(name)
}

fn expected() -> (Vec<String>, Vec<Vec<u32>>, Value) {
    let golden = golden("formats/expected");
    let texts = golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect();
    (texts, golden["ids"].as_array().unwrap().iter().map(ids).collect(), golden["good"].clone())
}

fn field(name: &str) -> ReadOptions {
    ReadOptions { text_field: name.to_owned(), ..ReadOptions::default() }
}

fn documents(path: &Path, options: &ReadOptions) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    read_documents(path, options, &mut |document| {
        documents.push(document);
        Ok(())
    })?;
    Ok(documents)
}

fn texts(name: &str, options: &ReadOptions) -> Vec<String> {
    documents(&fixture(name), options).unwrap().into_iter().map(|document| document.text).collect()
}

#[track_caller]
fn assert_refused<T>(result: Result<T>, parts: &[&str]) {
    let Err(error) = result else { panic!("expected a refusal with {parts:?}") };
    assert!(matches!(error, Error::Input { .. } | Error::Usage(_)), "{error:?}");
    let message = error.to_string();
    assert!(!message.contains('\n') && parts.iter().all(|part| message.contains(part)), "{message}");
}

#[cfg(feature = "parquet")]
const PARQUET: [&str; 6] =
    ["snappy.parquet", "zstd.parquet", "gzip.parquet", "lz4.parquet", "none.parquet", "large.parquet"];
#[cfg(not(feature = "parquet"))]
const PARQUET: [&str; 0] = [];
const ARROW: [&str; 5] = ["stream.arrow", "file.arrow", "lz4.feather", "zstd.feather", "large.arrow"];

#[test]
fn tables_of_every_kind_hold_the_same_texts() {
    let (expected, ..) = expected();
    for name in PARQUET.iter().chain(&ARROW) {
        assert_eq!(texts(name, &ReadOptions::default()), expected, "{name}");
    }
    let last = &documents(&fixture("file.arrow"), &ReadOptions::default()).unwrap()[23];
    assert!(last.place.ends_with("file.arrow (row 24)"), "{}", last.place);
    assert_eq!(texts("sliced.arrow", &ReadOptions::default()), expected[5..11]);
    for name in PARQUET.first().into_iter().chain(&["stream.arrow", "file.arrow"]) {
        assert_eq!(texts(name, &field("page.body")), expected, "{name}");
    }
}

#[test]
fn flawed_rows_are_told_one_by_one_and_the_rest_is_read() {
    let (expected, _, good) = expected();
    let names = if PARQUET.is_empty() { vec!["flawed.arrow"] } else { vec!["flawed.arrow", "flawed.parquet"] };
    for (name, column) in names.iter().flat_map(|name| ["text", "page.body", "bytes"].map(|column| (*name, column))) {
        let (mut texts, mut bad) = (Vec::new(), Vec::<BadRecord>::new());
        read_records(&fixture(name), &field(column), &mut |record| {
            match record {
                Ok(document) => texts.push(document.text),
                Err(record) => bad.push(record),
            }
            Ok(())
        })
        .unwrap();
        let good: Vec<String> = ids(&good[column]).iter().map(|row| expected[*row as usize].clone()).collect();
        assert_eq!(texts, good, "{name} {column}");
        assert_eq!(bad.len(), 24 - good.len());
        let kinds = |kind: &str| bad.iter().filter(|record| record.kind == kind).count();
        assert_eq!((kinds("null"), kinds("not UTF-8")), (bad.len() - 1, 1), "{name} {column}");
        let broken = bad.iter().find(|record| record.kind == "not UTF-8").unwrap();
        assert_eq!(broken.bytes, b"ab\xff\xfecd");
        assert!(broken.place.ends_with("(row 7)") && broken.reason.contains("byte offset 2"), "{broken:?}");
        let first = documents(&fixture(name), &field(column)).unwrap_err().to_string();
        assert!(first.contains("(row 2): expected text in column"), "{first}");
    }
}

#[test]
fn columns_that_are_not_there_or_hold_no_text_are_refused() {
    let mut cases = vec![
        ("file.arrow", "txt", &["expected a column 'txt'", "'id'", "'text'", "--text-field"][..]),
        ("file.arrow", "id", &["of type string", "another type"]),
        ("file.arrow", "page", &["another type"]),
        ("file.arrow", "page.txt", &["'page.txt'", "'lang', 'body'"]),
        ("file.arrow", "tags", &["another type"]),
        ("file.arrow", "label", &["dictionary-encoded"]),
        ("file.arrow", "id.text", &["another type"]),
        ("stream.arrow", "view", &["another type"]),
    ];
    if !PARQUET.is_empty() {
        cases.extend([
            ("snappy.parquet", "txt", &["expected a column 'txt'", "'id'", "'page.body'", "--text-field"][..]),
            ("snappy.parquet", "id", &["another type"]),
            ("listed.parquet", "text.list.element", &["one string a row"]),
            ("brotli.parquet", "text", &["corrupt", "brotli"]),
        ]);
    }
    for (name, column, parts) in cases {
        assert_refused(documents(&fixture(name), &field(column)), parts);
    }
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_build_without_parquet_says_so() {
    assert_refused(documents(&fixture("snappy.parquet"), &ReadOptions::default()), &["cargo feature 'parquet'"]);
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&fixture("tokenizer.json")).unwrap()
}

fn stated(token_type: Option<TokenType>) -> ReadOptions {
    ReadOptions { token_type, ..ReadOptions::default() }
}

fn token_documents(path: &Path, options: &ReadOptions) -> Result<Vec<Vec<u32>>> {
    let mut found = Vec::new();
    let vocabulary = Vocabulary::of(&tokenizer(), options)?;
    read_token_documents(path, options, &vocabulary, &mut |document| {
        found.push(document.ids);
        Ok(())
    })?;
    Ok(found)
}

#[test]
fn token_arrays_of_every_type_hold_the_same_ids() {
    let (_, expected, _) = expected();
    for kind in ["u2", "u4", "u8", "i2", "i4", "i8"] {
        assert_eq!(token_documents(&fixture(&format!("flat-{kind}.npy")), &stated(None)).unwrap(), expected, "{kind}");
    }
    assert_eq!(token_documents(&fixture("rows.npy"), &stated(None)).unwrap(), expected);
    assert_eq!(token_documents(&fixture("memmap.bin"), &stated(Some(TokenType::U16))).unwrap(), expected);
    assert_eq!(token_documents(&fixture("headerless.npy"), &stated(Some(TokenType::U32))).unwrap(), expected);
}

#[test]
fn token_arrays_of_a_wrong_type_are_never_taken_for_right() {
    for (name, token_type, parts) in [
        ("memmap.bin", None, &["without a NumPy header", "--token-dtype"][..]),
        ("headerless.npy", None, &["without a NumPy header"]),
        ("memmap.bin", Some(TokenType::U32), &["outside the tokenizer's 290 ids", "--token-dtype"]),
        ("memmap.bin", Some(TokenType::U64), &["not a multiple of the 8 bytes"]),
        ("headerless.npy", Some(TokenType::U16), &["every second id is 0"]),
        ("flat-u2.npy", Some(TokenType::U32), &["U16 by its NumPy header"]),
        ("big-endian.npy", None, &["big-endian", "astype"]),
        ("floats.npy", None, &["'<f4'"]),
        ("columns.npy", None, &["column by column"]),
    ] {
        assert_refused(token_documents(&fixture(name), &stated(token_type)), parts);
    }
    let named = ReadOptions { end_token: Some("<eos>".into()), ..stated(None) };
    assert_refused(token_documents(&fixture("flat-u2.npy"), &named), &["does not have this token"]);
    let short = ReadOptions { max_document_bytes: 40, ..stated(None) };
    assert_refused(token_documents(&fixture("flat-u2.npy"), &short), &["document 1 is longer than 10 ids"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.npy");
    fs::write(&path, &fs::read(fixture("flat-u4.npy")).unwrap()[..1000]).unwrap();
    assert_refused(token_documents(&path, &stated(None)), &["its NumPy header says otherwise"]);
    assert_refused(documents(&fixture("rows.npy"), &ReadOptions::default()), &["holds token ids where text is needed"]);
}

/// The names of the files that a path in a folder stands for.
fn expanded(folder: &Path, paths: &[&str]) -> Result<Vec<String>> {
    let paths: Vec<PathBuf> = paths.iter().map(|path| folder.join(path)).collect();
    let name = |path: PathBuf| path.strip_prefix(folder).unwrap().display().to_string();
    Ok(expand(&paths)?.into_iter().map(name).collect())
}

#[test]
fn folders_and_patterns_stand_for_their_files_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for name in [
        "a/2.txt",
        "a/10.txt",
        "a/b/1.txt.gz",
        "a/.hidden.txt",
        "a/.git/x.txt",
        "c/x.txt",
        "c/y.jsonl",
        "d/.x",
        "e/LICENSE",
        "f[1].txt",
    ] {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), "x").unwrap();
    }
    let files = |paths: &[&str]| expanded(root, paths);
    assert_eq!(files(&["a"]).unwrap(), ["a/10.txt", "a/2.txt", "a/b/1.txt.gz"]);
    assert_eq!(files(&["a/*.txt"]).unwrap(), ["a/10.txt", "a/2.txt"]);
    assert_eq!(files(&["a/**/*.gz", "a/?.txt"]).unwrap(), ["a/b/1.txt.gz", "a/2.txt"]);
    assert_eq!(files(&["f[1].txt"]).unwrap(), ["f[1].txt"], "a file of that name is that file");
    assert_refused(files(&["a/*.md"]), &["a/*.md", "no file matches"]);
    assert_refused(files(&["a/***"]), &["is no pattern"]);
    assert_refused(files(&["c"]), &["c/y.jsonl", "another format than", "c/x.txt"]);
    assert_refused(files(&["d"]), &["no file but hidden ones"]);
    assert_refused(files(&["e"]), &["LICENSE", "no known format"]);
    assert_refused(files(&["a/2.txt", "a/../a/?.txt"]), &["named twice"]);
    assert!(matches!(files(&["missing.txt"]), Err(Error::Io { action: "open", .. })));
}

#[test]
fn a_saved_data_set_is_its_shards_in_the_order_of_its_state() {
    let (expected, ..) = expected();
    let read = |path: &Path| {
        let files = expand(&[path.to_path_buf()])?;
        let read: Result<Vec<Vec<Document>>> =
            files.iter().map(|file| documents(file, &ReadOptions::default())).collect();
        Ok(read?.concat().into_iter().map(|document| document.text).collect::<Vec<_>>())
    };
    assert_eq!(read(&fixture("saved")).unwrap(), expected);
    let splits = fixture("splits");
    assert_refused(read(&splits), &["several data sets", "splits/train'", "splits/test'"]);
    assert_eq!(read(&splits.join("train")).unwrap(), expected[..2]);

    let folder = tempfile::tempdir().unwrap();
    for index in 0..3 {
        let name = format!("data-0000{index}-of-00003.arrow");
        fs::copy(fixture("saved").join(&name), folder.path().join(&name)).unwrap();
    }
    let state = |files: &[&str]| {
        let files: Vec<Value> = files.iter().map(|file| serde_json::json!({ "filename": file })).collect();
        fs::write(folder.path().join("state.json"), serde_json::json!({ "_data_files": files }).to_string()).unwrap();
        read(folder.path())
    };
    let turned = state(&["data-00002-of-00003.arrow", "data-00000-of-00003.arrow"]).unwrap();
    assert_eq!(turned, [&expected[16..], &expected[..8]].concat());
    assert_refused(state(&["../data-00000-of-00003.arrow"]), &["not a plain file name"]);
    assert_refused(state(&["missing.arrow"]), &["which is not there"]);
    assert_refused(state(&["state.json"]), &["not an .arrow file"]);
    assert_refused(state(&[]), &["names no shard"]);
}

/// A file of this content, under this name, read in full: whatever it holds, it must not be a panic.
fn survives(folder: &Path, name: &str, bytes: &[u8]) -> Result<Vec<Document>> {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    documents(&path, &ReadOptions::default())
}

#[test]
fn cut_and_changed_tables_are_errors_and_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let (expected, ..) = expected();
    let mut state = 7u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for name in PARQUET.iter().take(4).chain(&ARROW) {
        let whole = fs::read(fixture(name)).unwrap();
        let extension = name.rsplit('.').next().unwrap();
        let file = format!("x.{extension}");
        for end in (0..whole.len()).step_by(whole.len() / 100) {
            // What is left may be whole batches, but never other texts.
            if let Ok(read) = survives(folder.path(), &file, &whole[..end]) {
                assert!(read.iter().zip(&expected).all(|(read, text)| read.text == *text), "{name} {end}");
            }
        }
        for _ in 0..300 {
            let mut bytes = whole.clone();
            for _ in 0..=next() % 3 {
                let place = next() % bytes.len();
                bytes[place] = [0, 0xff, 0x7f, 0x80, next() as u8][next() % 5];
            }
            if let Err(error) = survives(folder.path(), &file, &bytes) {
                assert!(matches!(error, Error::Input { .. }) && !error.to_string().contains('\n'), "{name}: {error:?}");
            }
        }
    }
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_footers_are_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let read = |bytes: &[u8]| survives(folder.path(), "x.parquet", bytes);
    assert_refused(read(b""), &["corrupt", "does not end as Parquet"]);
    assert_refused(read(b"PAR1\xff\xff\xff\xffPAR1"), &["footer of more than 16 MiB"]);
    assert_refused(read(b"PAR1\x00\xff\x00\x00PAR1"), &["footer is longer than the file"]);
    assert_refused(read(b"PAR1\x04\x00\x00\x00PARE"), &["encrypted"]);
    // A list that claims 2^31 - 1 entries, in a footer of seven bytes.
    assert_refused(read(b"PAR1\x29\xfc\xff\xff\xff\xff\x07\x07\x00\x00\x00PAR1"), &["corrupt"]);
}

#[test]
fn a_flawed_document_of_a_text_file_is_left_out_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    fs::write(&path, b"one\n\x1e\nt\xffo\nstill two\n\x1e\nthree\n\x1e\n0123456789\n0123456789\n\x1e\nfive").unwrap();
    let options = ReadOptions { max_document_bytes: 15, ..ReadOptions::default() };
    let (mut texts, mut bad) = (Vec::new(), Vec::new());
    read_records(&path, &options, &mut |record| {
        match record {
            Ok(document) => texts.push(document.text),
            Err(record) => bad.push((record.kind, record.bytes)),
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(texts, ["one", "three", "five"]);
    assert_eq!(bad, [("not UTF-8", b"t\xffo\n".to_vec()), ("too long", b"0123456789\n".to_vec())]);
}

/// A pool whose tokenizer is that of the fixtures.
fn pool_of_fixtures() -> World {
    let world = World::texts();
    fs::copy(fixture("tokenizer.json"), world.path("tokenizer.json")).unwrap();
    world.ok("init recipe.yaml");
    world
}

#[test]
fn text_tables_and_token_ids_make_the_same_partition() {
    let world = pool_of_fixtures();
    let (texts, ..) = expected();
    world.write("docs.jsonl", jsonl(&texts, "text"));
    world.ok("register text docs.jsonl");
    let hash = |name: &str| world.tokens(&format!("partitions/{name}"));
    for (name, file, options) in [
        ("memmap", "memmap.bin", "--token-dtype u16"),
        ("headerless", "headerless.npy", "--token-dtype u32 --end-token <|endoftext|>"),
        ("flat", "flat-i4.npy", ""),
        ("rows", "rows.npy", ""),
        ("saved", "saved", ""),
        ("nested", "file.arrow", "--text-field page.body"),
        ("parquet", "snappy.parquet", ""),
    ] {
        if name != "parquet" || !PARQUET.is_empty() {
            world.ok(&format!("register {name} {} {options}", fixture(file).display()));
            assert_eq!(hash(name), hash("text"), "{name}");
        }
    }
    let binding = world.read("pool/partitions/memmap.json");
    assert!(!binding.contains("bad_records"), "{binding}");
    let rows = fixture("rows.npy");
    world.refused(&format!("eval-set held {}", rows.display()), 1, &["24 document(s) are in both"]);
    world.refused(
        &format!("tokenizer train {} --vocab 300 --out t.json", rows.display()),
        1,
        &["where text is needed"],
    );
}

#[test]
fn bad_records_stop_a_registration_or_are_counted_and_kept() {
    let world = pool_of_fixtures();
    let (texts, ..) = expected();
    let good = jsonl(&texts, "text");
    let bad = [b"{\"text\": oops}\n{\"txt\": 1}\n{\"text\": \"a\xffb\"}\n\0\n".as_slice(), &good].concat();
    world.write("good.jsonl", &good);
    world.write("bad.jsonl", &bad);
    world.refused("register x bad.jsonl", 1, &["bad.jsonl:1:10: expected value"]);
    world.refused("register x good.jsonl bad.jsonl --on-bad-record fail", 1, &["bad.jsonl:1:10"]);
    let counts = "(1 binary, 1 no text field, 1 not JSON, 1 not UTF-8)";
    let ran = world.run("register skipped bad.jsonl --on-bad-record skip");
    assert!(ran.stderr.contains(&format!("4 bad record(s) skipped {counts}")), "{ran:?}");
    world.ok("register clean good.jsonl");
    assert_eq!(world.tokens("partitions/skipped"), world.tokens("partitions/clean"));
    assert!(!world.path("pool/quarantine").exists());

    let ran = world.run("register kept bad.jsonl --on-bad-record quarantine");
    assert!(ran.stderr.contains(&format!("4 bad record(s) quarantined {counts}")), "{ran:?}");
    let kept: Vec<Value> = world
        .read("pool/quarantine/partitions-kept.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let column = |name: &str| kept.iter().map(|bad| bad[name].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(column("kind"), ["not JSON", "no text field", "not UTF-8", "binary"]);
    assert_eq!(column("place"), ["bad.jsonl:1:10", "bad.jsonl:2", "bad.jsonl:3", "bad.jsonl"]);
    assert_eq!(column("bytes")[2], "7b2274657874223a202261ff62227d0a"); // {"text": "a\xffb"}\n
    let binding: Value = serde_json::from_str(&world.read("pool/partitions/kept.json")).unwrap();
    assert_eq!(binding["bad_records"]["policy"], "quarantine");
    assert_eq!(binding["bad_records"]["kinds"]["not JSON"], 1);

    let before = world.pool();
    world.ok("register kept bad.jsonl --on-bad-record quarantine");
    world.ok("register kept good.jsonl");
    assert_eq!(world.pool(), before, "the same documents are the same partition");

    world.write("held.jsonl", [b"[]\n".as_slice(), &jsonl(&["held out".into()], "text")].concat());
    world.ok("eval-set held held.jsonl --on-bad-record quarantine");
    assert_eq!(world.read("pool/quarantine/evals-held.jsonl").lines().count(), 1);
}

#[test]
fn a_seed_reads_folders_and_suffers_bad_records_too() {
    let world = pool_of_fixtures();
    fs::create_dir(world.path("corpus")).unwrap();
    let (texts, ..) = expected();
    world.write("corpus/a.jsonl", jsonl(&texts, "text"));
    world.write("corpus/b.jsonl", [b"oops\n".as_slice(), &jsonl(&texts[..2], "text")].concat());
    world.write("other.yaml", RECIPE.replace("[general.txt]", "[corpus]\n  on_bad_record: quarantine"));
    let ran = world.run("--pool other init other.yaml");
    assert!(ran.stderr.contains("seed: 1 bad record(s) quarantined (1 not JSON)"), "{ran:?}");
    assert_eq!(world.read("other/quarantine/seed.jsonl").lines().count(), 1);
    world.write("none.yaml", RECIPE.replace("general.txt", "'*.none'"));
    world.refused("--pool none init none.yaml", 1, &["*.none", "no file matches"]);
}
