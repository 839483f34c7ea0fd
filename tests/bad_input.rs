//! Bad input: every failure is one line that names place and remedy, has its exit code, and leaves the pool as it was.

mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use world::{RECIPE, Ran, World, edit, gzip, is_any, jsonl, sentences, text};

/// A tokenizer and an empty pool, whose `init` and `register` can be fed.
fn prepared() -> World {
    let world = World::texts();
    world.ok("tokenizer train general.txt code.txt math.txt --vocab 320 --out tokenizer.json");
    world.ok("init recipe.yaml");
    world
}

/// The recipe with one piece of text exchanged.
fn recipe(from: &str, to: &str) -> String {
    assert!(RECIPE.contains(from), "{from}");
    RECIPE.replacen(from, to, 1)
}

#[test]
fn files_that_cannot_be_read_are_named_with_place_and_remedy() {
    let world = prepared();
    let good = jsonl(&sentences("wiki", 7, 40), "text");
    let zstd = zstd::encode_all(good.as_slice(), 3).unwrap();
    let packed = gzip(&good);
    fs::create_dir(world.path("folder.txt")).unwrap();
    let cases: [(&str, &[u8], &str, &str); 16] = [
        ("empty.txt", b"", "empty.txt", "expected text"),
        ("blank.txt", b" \n\n", "blank.txt", "expected at least one document"),
        ("binary.txt", b"text\0text", "binary.txt", "NUL byte at offset 4"),
        ("latin.txt", b"one\ncaf\xe9\n", "latin.txt:2", "convert the file to UTF-8"),
        (
            "broken.jsonl",
            b"{\"text\": \"one\"}\n{\"text\": two}\n",
            "broken.jsonl:2:11",
            "one whole JSON object a line",
        ),
        ("cut.jsonl", b"{\"text\": \"one\"}\n{\"text\": \"tw", "cut.jsonl:2:12", "one whole JSON object a line"),
        ("array.jsonl", b"[1, 2]\n", "array.jsonl:1", "one object a line"),
        ("missing.jsonl", b"{\"text\": \"one\"}\n{\"body\": \"two\"}\n", "missing.jsonl:2", "'body'; name the field"),
        ("number.jsonl", b"{\"text\": 7}\n", "number.jsonl:1", "got a number; name the field"),
        ("empties.jsonl", b"{\"text\": \"\"}\n{\"text\": \"\"}\n", "empties.jsonl", "holds no text"),
        ("short.jsonl.gz", &packed[..packed.len() / 2], "short.jsonl.gz", "truncated"),
        ("short.jsonl.zst", &zstd[..zstd.len() / 2], "short.jsonl.zst", "truncated"),
        ("plain.jsonl.gz", &good, "plain.jsonl.gz", "drop '.gz' from its name"),
        ("plain.jsonl.zst", &good, "plain.jsonl.zst", "drop '.zst' from its name"),
        ("table.xlsx", b"PK", "table.xlsx", "expected .txt"),
        ("noname", b"text", "noname", "expected .txt"),
    ];
    for (name, bytes, place, problem) in cases {
        world.write(name, bytes);
        world.refused(&format!("register code {name}"), 1, &[place, problem]);
        world.refused(&format!("eval-set held-out code.txt {name}"), 1, &[place, problem]);
        world.refused(&format!("tokenizer train {name} --vocab 300 --out t.json"), 1, &[place, problem]);
        world.write("other.yaml", recipe("general.txt", name));
        world.refused("init other.yaml", 1, &[place, problem]);
    }
    for line in ["register code", "eval-set held-out", "tokenizer train --vocab 300 --out t.json"] {
        world.refused(&format!("{line} absent.txt"), 1, &["cannot open 'absent.txt': No such file"]);
        world.refused(&format!("{line} folder.txt"), 1, &["the folder holds no file but hidden ones; expected text"]);
    }
    assert!(!world.path("t.json").exists());
}

#[test]
fn a_failed_init_leaves_no_pool_behind() {
    let world = World::texts();
    world.ok("tokenizer train general.txt --vocab 300 --out tokenizer.json");
    world.write("general.txt", b"\0");
    world.refused("init recipe.yaml", 1, &["general.txt"]);
    assert!(!world.path("pool").exists());
}

#[test]
fn recipes_are_refused_at_line_and_column() {
    let world = prepared();
    for (text, parts) in [
        (recipe("expert:", "exprt:"), ["other.yaml:9:1: unknown field `exprt`", "did you mean 'expert'?"]),
        (recipe("  learning_rate: 5e-3", "  learning_rat: 5e-3"), ["other.yaml:6:3", "did you mean 'learning_rate'?"]),
        (recipe("batch_size: 4", "batch_size: four"), ["other.yaml:7:15:", "expected a whole number"]),
        (recipe("files: [general.txt]", "files: 7"), ["other.yaml:4:10:", "expected a list such as"]),
        (recipe("  learning_rate: 5e-3\n", ""), ["other.yaml:", "missing field `learning_rate`"]),
        (recipe("tokens: 3k", "tokens: many"), ["other.yaml", "'many' is not a number of tokens such as"]),
        (recipe("learning_rate: 5e-3", "learning_rate: -1"), ["other.yaml: seed", "'learning_rate' is out of range"]),
        (recipe("batch_size: 4", "batch_size: 0"), ["other.yaml: seed", "'batch_size' is out of range"]),
        (recipe("batch_size: 4", "batch_size: 99999999999"), ["other.yaml: seed", "'batch_size' is out of range"]),
        (recipe("tokens: 3k", "tokens: 0"), ["other.yaml", "'0' is not a number of tokens"]),
        (recipe("tokens: 3k", "tokens: -5"), ["other.yaml:5:11:", "expected a number of tokens such as 500000"]),
        (recipe("batch_size: 4", "schedule: cosin"), ["other.yaml:7:13:", "did you mean 'cosine'?"]),
        (recipe("model: pico", "model: {hidden_size: 4}"), ["other.yaml:1:8:", "expected the name of a preset"]),
        (recipe("model: pico", "model: picco"), ["unknown model preset 'picco'", "did you mean 'pico'?"]),
        (recipe("tokenizer: tokenizer.json\n", ""), ["other.yaml", "'tokenizer' is missing"]),
        (recipe("files: [general.txt]", "files: []"), ["other.yaml", "name at least one text file"]),
        (recipe("[general.txt]", "[general.txt"), ["other.yaml:5:9:", "':'"]),
        (String::new(), ["other.yaml:1:1:", "the file ends"]),
        (recipe("tokens: 3k", "tokens: 4k"), ["already a pool with other settings", "--pool"]),
    ] {
        world.write("other.yaml", &text);
        let ran = world.run("init other.yaml");
        assert!(matches!(ran.code, Some(1 | 2)), "{ran:?}");
        world.refused("init other.yaml", ran.code.unwrap(), &parts);
    }
    world.refused("init absent.yaml", 1, &["cannot read 'absent.yaml'"]);
    world.write("binary.yaml", [0xff, 0xfe, 0x00]);
    world.refused("init binary.yaml", 1, &["binary.yaml"]);
}

#[test]
fn a_tokenizer_that_is_none_or_does_not_fit_is_refused() {
    let world = prepared();
    world.write("other.yaml", recipe("tokenizer.json", "other.json"));
    world.refused("init other.yaml", 1, &["cannot read", "other.json"]);
    let good = world.read("tokenizer.json");
    let panics_inside_the_library =
        good.replace("\"continuing_subword_prefix\": null", "\"continuing_subword_prefix\": \"ÄÄÄÄ\"");
    assert_ne!(good, panics_inside_the_library);
    for text in
        ["", "{}", "no JSON", &good[..good.len() / 2], "{\"model\": {\"type\": \"BPE\"}}", &panics_inside_the_library]
    {
        world.write("other.json", text);
        world.refused("init other.yaml", 1, &["other.json: not a tokenizer.json"]);
    }
    world.write("other.json", good.replace("<|endoftext|>", "<|nothing|>"));
    world.refused("init other.yaml", 1, &["other.yaml", "no BOS or EOS", "'prefix_token'"]);
    world.write("other.yaml", recipe("model: pico", "model: pico\nprefix_token: <|bos|>"));
    world.refused("init other.yaml", 1, &["other.yaml", "'<|bos|>', which the tokenizer does not have"]);
    let small = "model: {vocab_size: 319, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: \
                 2, num_key_value_heads: 2, head_dim: 16, rms_norm_eps: 1e-5, rope_theta: 10000.0, \
                 max_position_embeddings: 64, tie_word_embeddings: true}";
    world.write("other.yaml", recipe("model: pico", small));
    world.refused("init other.yaml", 1, &["tokenizer has 320 ids", "raise it to at least 320"]);
    world.write(
        "other.yaml",
        recipe("model: pico", &small.replace("319", "320").replace("head_dim: 16", "head_dim: 15")),
    );
    world.refused("init other.yaml", 1, &["'head_dim' must be even"]);
    world.refused("tokenizer train code.txt --vocab 100 --out t.json", 2, &["at least 257"]);
    world.refused("tokenizer train code-test.txt --vocab 9999 --out t.json", 2, &["pass --vocab"]);
}

#[test]
fn a_tokenizer_that_cuts_or_pads_documents_is_not_allowed_to() {
    let world = World::texts();
    world.ok("tokenizer train general.txt code.txt math.txt --vocab 320 --out tokenizer.json");
    world.ok("init recipe.yaml --pool plain");
    let cut =
        "\"truncation\": {\"direction\": \"Right\", \"max_length\": 4, \"strategy\": \"LongestFirst\", \"stride\": 0}";
    edit(&world.path("tokenizer.json"), |bytes| {
        *bytes = String::from_utf8(bytes.clone()).unwrap().replace("\"truncation\": null", cut).into_bytes();
    });
    assert!(world.read("tokenizer.json").contains("LongestFirst"));
    world.ok("init recipe.yaml --pool cut");
    let without_names = |pool: &str| world.ok(&format!("ls --format csv --pool {pool}"));
    assert_eq!(without_names("plain"), without_names("cut"));
}

#[test]
fn names_are_checked_and_bound_once() {
    let world = World::registered();
    for name in ["seed", "all", "a+b", "a=b", "../up", ".hidden", "a b", "", &"x".repeat(65), "größe"] {
        for command in ["register", "eval-set"] {
            let before = world.pool();
            let output = world.command(command).args([name, "general.txt"]).output().unwrap();
            Ran::new(name, &output).failed(2, &["cannot be a name", "use 1 to 64 letters"]);
            assert_eq!(before, world.pool());
        }
    }
    world.write("new.txt", text(&sentences("wiki", 8, 30)));
    world.refused(
        "register code new.txt",
        2,
        &["'code' is already registered with other content", "choose another name"],
    );
    world.refused("register code code.txt --units 3", 2, &["'code' is already registered"]);
    world.refused("eval-set wiki-test new.txt", 2, &["'wiki-test' is already registered"]);
    world.refused("register few new.txt --units 31", 2, &["30 document(s) cannot be cut into 31 units"]);
    world.refused("register few new.txt --units 0", 2, &["cannot be cut into 0 units"]);
}

#[test]
fn mixtures_that_make_no_sense_are_refused() {
    let world = World::trained();
    for (mixture, problem) in [
        ("code=-0.5+wiki=1.5", "not negative"),
        ("code=nan+wiki=1", "finite"),
        ("code=inf", "finite"),
        ("code=0.5+wiki=0.4", "sum to 0.9"),
        ("code+code", "named twice"),
        ("code+poetry", "unknown partition 'poetry' (registered: code, math, wiki)"),
        ("code:3", "has 2 unit(s)"),
        ("code=half", "not a weight"),
        ("+", "unknown partition ''"),
    ] {
        for command in ["score", "train --mixture", "export model --out x"] {
            world.refused(&format!("{command} {mixture}"), 2, &[mixture, problem]);
        }
    }
    world.write("list.txt", "code\n\ncode=2\n");
    world.refused("rank --candidates list.txt", 1, &["list.txt:3", "sum to 2"]);
    world.refused("rank --candidates absent.txt", 1, &["absent.txt"]);
    world.refused("rank --subsets 2..=9", 2, &["1..=3"]);
    world.refused("rank --subsets two", 2, &["--subsets two", "1..=3"]);
    world.refused("rank --grid 0.3", 2, &["0.3"]);
    world.refused("rank --grid 0", 2, &["0"]);
    world.refused("rank --dirichlet 0", 2, &["0"]);
    world.refused("train --mixture code --tokens lots", 2, &["--tokens lots", "500k"]);
    world.refused("validate --mixtures 1", 2, &["at least two"]);
    world.refused("rank --csv no/such/folder.csv --subsets 9", 2, &["1..=3"]);
}

#[test]
fn machines_that_are_not_there_are_refused() {
    let world = World::registered();
    world.refused("ls --threads 0", 2, &["--threads 0", "at least 1"]);
    world.refused("train --device cuda", 2, &["--device cuda"]);
    world.refused("train --device tpu", 2, &["--device tpu", "expected cpu"]);
    world.refused("ls --pool nowhere", 10, &["no pool at 'nowhere'", "mixpool init", "--pool"]);
}

#[test]
fn documents_may_not_be_both_trained_on_and_held_out() {
    let world = World::registered();
    let all = |stream, count| sentences("code", stream, count);
    let mixed = |first: &[String], second: &[String]| text(&[first, second].concat());
    world.write("leak.txt", mixed(&all(20, 3), &all(2, 5)));
    let remedy = "remove them from one side";
    world.refused(
        "eval-set leak leak.txt",
        1,
        &["'leak' and training data 'code'", "5 document(s)", "document 4", remedy],
    );
    world.write("leak.txt", mixed(&all(20, 3), &sentences("general", 1, 2)));
    world.refused("eval-set leak leak.txt", 1, &["'leak' and training data 'seed'", "2 document(s)", remedy]);
    world.write("leak.txt", mixed(&all(21, 30), &all(5, 1)));
    world.refused("register leak leak.txt", 1, &["'code-test' and training data 'leak'", "1 document(s)", remedy]);
}

#[test]
fn too_little_text_for_one_sequence_is_named() {
    let world = World::registered();
    world.write("tiny.txt", "let me");
    let problem = "fewer than one training sequence takes (33)";
    world.refused("register tiny tiny.txt", 1, &["partition 'tiny', unit 1 of 1", problem, "register more text"]);
}

#[test]
fn training_that_diverges_names_the_step_and_publishes_nothing() {
    let world = World::with_recipe(&recipe("learning_rate: 2e-3", "learning_rate: 1e30"));
    world.ok("train seed");
    let before = world.models();
    world.run("train wiki").failed(1, &["step 2 of 'expert 'wiki''", "not finite", "lower the learning rate"]);
    assert_eq!(before, world.models());
    assert!(world.files("work").iter().all(|path| is_any(path, &["claim"])));
}

#[test]
fn an_expert_with_nan_is_never_scored() {
    let world = World::trained();
    edit(&world.expert("wiki").join("model.safetensors"), |bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    world.refused("score wiki", 1, &["document 1 of eval set 'code-test' under mixture 'wiki'", "not finite"]);
    world.refused("score code+wiki", 1, &["not finite"]);
    world.ok("score code");
    world.refused("verify --deep", 12, &["model.safetensors", "run 'mixpool train' again"]);
}

/// Damages one file of a trained and scored pool, which the command must report; returns the file for those who mend it.
fn damaged(
    place: impl Fn(&World) -> PathBuf,
    damage: impl Fn(&Path),
    command: &str,
    parts: &[&str],
) -> (World, PathBuf) {
    let world = World::trained();
    world.ok("rank");
    let file = place(&world);
    damage(&file);
    world.refused(command, 12, parts);
    (world, file)
}

fn cut_in_half(path: &Path) {
    edit(path, |bytes| bytes.truncate(bytes.len() / 2));
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

#[test]
fn a_damaged_pool_json_is_mended_by_init() {
    for damage in [cut_in_half as fn(&Path), |path| fs::write(path, "{\"format\": 1}").unwrap()] {
        let parts = ["pool.json' is damaged", "delete it", "init"];
        let (world, file) = damaged(|world| world.path("pool/pool.json"), damage, "ls", &parts);
        world.refused("init recipe.yaml", 12, &parts);
        remove(&file);
        world.ok("init recipe.yaml");
        world.ok("verify --deep");
    }
}

#[test]
fn a_pool_of_another_format_is_refused() {
    let world = World::registered();
    edit(&world.path("pool/pool.json"), |bytes| {
        let mut settings: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        settings["format"] = 99.into();
        settings.as_object_mut().unwrap().remove("checksum");
        *bytes = serde_json::to_vec_pretty(&settings).unwrap();
    });
    for line in ["ls", "train", "init recipe.yaml", "register more general.txt"] {
        world.refused(line, 2, &["pool.json", "format 99", "reads format 1", "use the version of mixpool"]);
    }
}

#[test]
fn damaged_weights_are_mended_by_training_again() {
    let whole = World::trained();
    for damage in [cut_in_half as fn(&Path), remove, |path| fs::write(path, "").unwrap()] {
        let weights = |world: &World| world.expert("wiki").join("model.safetensors");
        let parts = ["model.safetensors' is damaged", "run 'mixpool train' again"];
        let (world, file) = damaged(weights, damage, "score wiki=0.9+code=0.1", &parts);
        world.refused("verify", 12, &parts);
        world.refused("export model wiki --out x", 12, &parts);
        fs::remove_dir_all(file.parent().unwrap()).unwrap();
        world.ok("train");
        assert_eq!(whole.models(), world.models());
        world.ok("verify --deep");
    }
}

#[test]
fn a_damaged_manifest_is_mended_by_training_again() {
    let manifest = |world: &World| world.expert("wiki").join("manifest.json");
    let parts = ["manifest.json' is damaged", "delete it", "train"];
    let (world, file) = damaged(manifest, cut_in_half, "score wiki", &parts);
    remove(&file);
    world.ok("train");
    world.ok("verify --deep");
    assert_eq!(World::trained().models(), world.models());
}

#[test]
fn damaged_tokens_are_mended_by_registering_again() {
    let tokens = |file: &'static str| move |world: &World| world.tokens("partitions/math").join(file);
    for (file, damage) in [
        ("tokens.bin", cut_in_half as fn(&Path)),
        ("tokens.bin", remove),
        ("documents.bin", cut_in_half),
        ("manifest.json", remove),
        ("manifest.json", cut_in_half),
    ] {
        let (world, _) = damaged(tokens(file), damage, "verify", &[file, "is damaged"]);
        world.refused("ls", 12, &[file]);
        world.ok("register math math.txt");
        world.ok("verify --deep");
    }
}

#[test]
fn a_flipped_bit_in_tokens_is_found_and_never_a_crash() {
    let world = World::trained();
    let tokens = world.tokens("evals/code-test").join("tokens.bin");
    edit(&tokens, |bytes| *bytes.last_mut().unwrap() = 0xff); // an id beyond the vocabulary, and only ever a target
    world.refused("verify --deep", 12, &["tokens", "register the data"]);
    world.refused("score code --eval code-test", 1, &["the vocabulary has 320 entries", "verify --deep"]);
    edit(&tokens, |bytes| bytes[1] = 0xff);
    world.refused("score code --eval code-test", 1, &["the vocabulary has 320 entries", "verify --deep"]);
    world.ok("eval-set code-test code-test.txt");
    world.ok("verify --deep");
    world.ok("score code");
}

#[test]
fn a_damaged_binding_is_named() {
    let world = World::trained();
    cut_in_half(&world.path("pool/partitions/wiki.json"));
    world.refused("score code", 12, &["wiki.json' is damaged", "delete it", "register"]);
    remove(&world.path("pool/partitions/wiki.json"));
    world.ok("register wiki wiki.jsonl.gz --text-field content");
    world.ok("score wiki");
}

#[test]
fn a_damaged_training_state_is_named() {
    let world = World::registered();
    world.ok("train seed");
    let id = world.ok("train --mixture code+math --tokens 200").trim().to_owned();
    fs::remove_dir_all(world.path("pool/objects").join(&id)).unwrap();
    world.write(&format!("pool/work/{id}.state"), "mixpool-state-1\nnot really");
    world.refused(
        "train --mixture code+math --tokens 200",
        12,
        &[".state' is damaged", "delete it to train from the start"],
    );
}

#[test]
fn a_damaged_score_is_never_used_and_a_torn_one_is_computed_again() {
    let world = World::trained();
    let whole = world.ok("rank --format csv");
    let logs = world.files("scores");
    let length = fs::metadata(&logs[0]).unwrap().len() as usize;
    for at in [0, 5, 9, 13, 40, length / 2, length - 1] {
        edit(&logs[0], |bytes| bytes[at] ^= 0x20);
        for line in ["score code", "rank", "export scores --out x", "verify"] {
            world.refused(line, 12, &[".log' is damaged", "delete the file to score again"]);
        }
        edit(&logs[0], |bytes| bytes[at] ^= 0x20);
    }
    for left in [length - 1, length - 100, 3] {
        edit(&logs[0], |bytes| bytes.truncate(left));
        assert_eq!(whole, world.ok("rank --format csv"));
        world.ok("verify");
    }
}

/// Runs a command that may write no file longer than `blocks` of 1 KiB: what a full disk looks like.
fn cramped(world: &World, line: &str, blocks: usize) -> Ran {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" {line}");
    let mut shell = Command::new("bash");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_mixpool")]).current_dir(world.path("."));
    Ran::new(line, &shell.output().unwrap())
}

#[test]
fn a_full_disk_is_reported_and_the_same_command_works_once_there_is_room() {
    let world = World::registered();
    let whole = World::trained();
    for (line, blocks) in [("register more general.txt", 1), ("train", 20), ("score all", 0)] {
        // A claim is no more than a lock, and a record cut short is overwritten.
        let kept = || world.pool().into_iter().filter(|(name, _)| !is_any(name, &["claim", "log"])).collect::<Vec<_>>();
        let before = kept();
        cramped(&world, line, blocks).failed(1, &["cannot ", "File too large"]);
        assert_eq!(before, kept(), "'{line}' left something");
        world.ok(line);
        world.ok("verify --deep");
        if line == "train" {
            assert!(whole.models().iter().all(|(name, hash)| world.models().get(name) == Some(hash)));
        }
    }
    assert_eq!(world.ok("score code --format csv").matches(",false,").count(), 2);
}
