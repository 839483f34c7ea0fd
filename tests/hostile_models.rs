//! Hostile models: safetensors files, configs, indexes, adapters and tokenizers from strangers.

mod common;
mod hostile;

use hostile::{Outcomes, Random, damaged, damaged_json};
use mixpool::model::{Checkpoint, Layout, LowRankUpdate, ModelConfig, read_config, write_checkpoint, write_tensors};
use mixpool::text::Tokenizer;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const MUTATIONS: usize = 2000;

fn model() -> (TempDir, Layout) {
    let folder = tempfile::tempdir().unwrap();
    let config = ModelConfig::preset("pico").unwrap();
    let layout = Layout::of(&config);
    write_checkpoint(folder.path(), &config, &layout, &common::weights(&layout)).unwrap();
    (folder, layout)
}

/// All that is done with weights before they are part of a pool.
fn read(path: &Path, layout: &Layout) -> mixpool::Result<()> {
    let checkpoint = Checkpoint::open_file(path)?;
    checkpoint.not_finite();
    checkpoint.read(layout).map(drop)
}

#[test]
fn damaged_safetensors_files_are_refused_or_read() {
    let (folder, layout) = model();
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let (mut random, mut outcomes) = (Random(1), Outcomes::default());
    for mutation in 0..MUTATIONS {
        let changed = if mutation % 2 == 0 {
            damaged(&bytes[..(8 + length + 64).min(bytes.len())], &mut random)
        } else {
            let header = damaged_json(&header, &mut random).to_string();
            [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + length..]].concat()
        };
        std::fs::write(&path, &changed).unwrap();
        outcomes.add(&format!("mutation {mutation}"), changed.len(), || read(&path, &layout));
    }
    assert!(outcomes.refused > MUTATIONS / 2, "{outcomes:?}");
}

#[test]
fn a_header_that_lies_is_refused_by_name() {
    let (folder, layout) = model();
    let path = folder.path().join("model.safetensors");
    let refusal = |header: &str, data: &[u8]| {
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
        std::fs::write(&path, bytes).unwrap();
        read(&path, &layout).unwrap_err().to_string()
    };
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let twice = refusal(&format!(r#"{{"w":{entry},"w":{entry}}}"#), &[0; 4]);
    assert!(twice.contains("'w' is declared twice"), "{twice}");
    let escape = refusal(&format!(r#"{{"w\u001b[31m":{entry}}}"#), &[0; 4]);
    assert!(escape.contains("is no name of a tensor") && !escape.contains('\u{1b}'), "{escape}");
    let long = refusal(&format!(r#"{{"{}":{entry}}}"#, "w".repeat(600)), &[0; 4]);
    assert!(long.contains("at most 512 bytes"), "{long}");
    let deep = refusal(&format!(r#"{{"w":{}1{}}}"#, "[".repeat(5000), "]".repeat(5000)), &[]);
    assert!(deep.contains("recursion limit"), "{deep}");
    let many: Vec<String> =
        (0..100_001).map(|i| format!(r#""{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    let many = refusal(&format!("{{{}}}", many.join(",")), &[]);
    assert!(many.contains("100001 tensors; at most 100000"), "{many}");
    let flat = refusal(r#"{"w":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#, &[0; 4]);
    assert!(flat.contains("9 dimensions"), "{flat}");
    let whole = refusal(r#"{"w":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]);
    assert!(whole.contains("expected F32, BF16 or F16"), "{whole}");
    for pickled in [&b"PK\x03\x04 archive of torch"[..], b"\x80\x02}q\x00.and more than eight bytes"] {
        std::fs::write(&path, pickled).unwrap();
        let error = read(&path, &layout).unwrap_err().to_string();
        assert!(error.contains("pickled weights can run code"), "{error}");
    }
    std::fs::write(&path, (1u64 << 40).to_le_bytes()).unwrap();
    let error = read(&path, &layout).unwrap_err().to_string();
    assert!(error.contains("a header of 1099511627776 bytes; at most"), "{error}");
}

#[test]
fn damaged_configs_are_refused_or_describe_a_model_that_can_be_laid_out() {
    let (folder, _) = model();
    let path = folder.path().join("config.json");
    let bytes = std::fs::read(&path).unwrap();
    let config: Value = serde_json::from_slice(&bytes).unwrap();
    let (mut random, mut outcomes) = (Random(2), Outcomes::default());
    for mutation in 0..MUTATIONS {
        let changed = match mutation % 3 {
            0 => damaged(&bytes, &mut random),
            _ => damaged_json(&config, &mut random).to_string().into_bytes(),
        };
        std::fs::write(&path, &changed).unwrap();
        outcomes.add(&format!("mutation {mutation}"), changed.len(), || {
            read_config(folder.path()).map(|config| Layout::of(&config).len())
        });
    }
    assert!(outcomes.refused > MUTATIONS / 8 && outcomes.read > 0, "{outcomes:?}");
}

#[test]
fn damaged_indexes_are_refused_or_read() {
    let (folder, layout) = model();
    let names: Vec<&str> = layout.parameters().iter().map(|p| p.name.as_str()).collect();
    std::fs::rename(folder.path().join("model.safetensors"), folder.path().join("a.safetensors")).unwrap();
    let map: serde_json::Map<String, Value> =
        names.iter().map(|name| ((*name).to_owned(), "a.safetensors".into())).collect();
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    let path = folder.path().join("model.safetensors.index.json");
    let (mut random, mut outcomes) = (Random(3), Outcomes::default());
    for mutation in 0..MUTATIONS {
        let changed = match mutation % 3 {
            0 => damaged(index.to_string().as_bytes(), &mut random),
            _ => damaged_json(&index, &mut random).to_string().into_bytes(),
        };
        std::fs::write(&path, &changed).unwrap();
        outcomes.add(&format!("mutation {mutation}"), changed.len(), || Checkpoint::open(folder.path())?.read(&layout));
    }
    assert!(outcomes.refused > MUTATIONS / 2 && outcomes.read > 0, "{outcomes:?}");
}

#[test]
fn damaged_adapters_are_refused_or_read() {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peft/plain");
    let layout = Layout::of(&common::config(&common::golden("model_tied")));
    let folder = tempfile::tempdir().unwrap();
    let [config, weights] = ["adapter_config.json", "adapter_model.safetensors"];
    let original = [config, weights].map(|name| std::fs::read(golden.join(name)).unwrap());
    let said: Value = serde_json::from_slice(&original[0]).unwrap();
    let (mut random, mut outcomes) = (Random(4), Outcomes::default());
    for mutation in 0..MUTATIONS {
        let mut files = original.clone();
        match mutation % 3 {
            0 => files[0] = damaged_json(&said, &mut random).to_string().into_bytes(),
            1 => files[0] = damaged(&files[0], &mut random),
            _ => files[1] = damaged(&files[1], &mut random),
        }
        for (name, bytes) in [config, weights].iter().zip(&files) {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        outcomes.add(&format!("mutation {mutation}"), files.concat().len(), || {
            let update = LowRankUpdate::open(folder.path(), &layout, true)?;
            let names: Vec<String> = update.names().map(str::to_owned).collect();
            names.iter().for_each(|name| drop(update.factors(name)));
            Ok(())
        });
    }
    assert!(outcomes.refused > MUTATIONS / 4 && outcomes.read > 0, "{outcomes:?}");
}

#[test]
fn damaged_tokenizers_are_refused_or_encode() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "the quick brown fox jumps over the lazy dog, again and again, 1234 times. ".repeat(30))
        .unwrap();
    let json = Tokenizer::train(&[text], &mixpool::text::ReadOptions::default(), 270).unwrap();
    let value: Value = serde_json::from_slice(&json).unwrap();
    let path = folder.path().join("tokenizer.json");
    let (mut random, mut outcomes) = (Random(5), Outcomes::default());
    for mutation in 0..MUTATIONS {
        let changed = match mutation % 2 {
            0 => damaged(&json, &mut random),
            _ => damaged_json(&value, &mut random).to_string().into_bytes(),
        };
        std::fs::write(&path, &changed).unwrap();
        outcomes.add(&format!("mutation {mutation}"), changed.len(), || {
            Tokenizer::load(&path)?.encode("the quick fox, 12 times\u{1f98a}", "text")
        });
    }
    assert!(outcomes.refused > MUTATIONS / 8 && outcomes.read > 0, "{outcomes:?}");
}

#[test]
fn pipes_and_folders_are_no_weights() {
    let (folder, layout) = model();
    let path = folder.path().join("model.safetensors");
    std::fs::remove_file(&path).unwrap();
    let target = folder.path().join("copy");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let error = mixpool::files::copy(&path, &target).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(mixpool::files::copy(&path, &target).is_err());
    std::fs::remove_dir(&path).unwrap();
    // Data at an odd offset is read as it lies.
    write_tensors(&path, &layout, &common::weights(&layout)).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header = [&bytes[8..8 + length], b" "].concat();
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_slice(), &bytes[8 + length..]].concat())
        .unwrap();
    assert_eq!(Checkpoint::open_file(&path).unwrap().read(&layout).unwrap(), common::weights(&layout));
}
