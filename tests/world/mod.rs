//! World: a folder with small texts and a recipe, in which tests run the program as a person would.
#![allow(dead_code, unreachable_pub)] // every test binary uses its own part

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// The words of each domain; they share none, so that experts differ.
const WORDS: [(&str, &str); 3] = [
    ("code", "let mut for in if else match return struct enum impl fn use pub self index value option vector string"),
    ("math", "prime sum proof lemma integral group ring field point line circle angle number theorem limit series"),
    ("wiki", "the city river king born year north south church war village music century family history station"),
];

/// A recipe that trains in a blink.
pub const RECIPE: &str = "\
model: pico
tokenizer: tokenizer.json
seed:
  files: [general.txt]
  tokens: 3k
  learning_rate: 5e-3
  batch_size: 4
  sequence_length: 32
expert:
  tokens: 800
  learning_rate: 2e-3
";

/// A recipe that trains in a blink, emulated as well.
pub const BRIEF: &str = "\
model: pico
tokenizer: tokenizer.json
seed:
  files: [general.txt]
  tokens: 512
  learning_rate: 5e-3
  batch_size: 4
  sequence_length: 32
expert:
  tokens: 256
  learning_rate: 2e-3
";

/// `count` short sentences of a domain's words, the same ones for the same `stream`.
pub fn sentences(domain: &str, stream: u64, count: usize) -> Vec<String> {
    let chosen = WORDS.iter().filter(|(name, _)| *name == domain || domain == "general");
    let words: Vec<&str> = chosen.flat_map(|(_, words)| words.split(' ')).collect();
    assert!(!words.is_empty(), "no domain '{domain}'");
    let mut state = stream;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        words[(state >> 33) as usize % words.len()]
    };
    (0..count).map(|_| (0..9).map(|_| next()).collect::<Vec<_>>().join(" ") + ".").collect()
}

/// Documents as a text file.
pub fn text(documents: &[String]) -> Vec<u8> {
    documents.join("\n\u{1e}\n").into_bytes()
}

/// Documents as JSON lines with the text in `field`.
pub fn jsonl(documents: &[String], field: &str) -> Vec<u8> {
    documents.iter().map(|text| format!("{}\n", serde_json::json!({ field: text }))).collect::<String>().into_bytes()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A folder with texts, recipe and (at first no) pool.
pub struct World {
    folder: TempDir,
}

impl World {
    /// Texts of three domains, a general text for the seed, held-out texts, and a recipe; no tokenizer yet.
    pub fn texts() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        world.write("general.txt", text(&sentences("general", 1, 200)));
        world.write("code.txt", text(&sentences("code", 2, 120)));
        world.write("math.txt", text(&sentences("math", 3, 120)));
        world.write("wiki.jsonl.gz", gzip(&jsonl(&sentences("wiki", 4, 120), "content")));
        world.write("code-test.txt", text(&sentences("code", 5, 16)));
        world.write("wiki-test.jsonl", jsonl(&sentences("wiki", 6, 16), "text"));
        world.write("recipe.yaml", RECIPE);
        world
    }

    /// As [`World::texts`], with tokenizer, and a pool of three partitions (`code` of two units) and two eval sets.
    pub fn registered() -> Self {
        Self::with_recipe(RECIPE)
    }

    /// As [`World::registered`], by another recipe.
    pub fn with_recipe(recipe: &str) -> Self {
        let world = Self::texts();
        world.write("recipe.yaml", recipe);
        world.ok("tokenizer train general.txt code.txt math.txt --vocab 320 --out tokenizer.json");
        world.ok("init recipe.yaml");
        world.ok("register code code.txt --units 2");
        world.ok("register math math.txt");
        world.ok("register wiki wiki.jsonl.gz --text-field content");
        world.ok("eval-set code-test code-test.txt");
        world.ok("eval-set wiki-test wiki-test.jsonl");
        world
    }

    /// As [`World::registered`], with every expert trained.
    pub fn trained() -> Self {
        let world = Self::registered();
        world.ok("train");
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The program with arguments, as typed in the folder.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mixpool"));
        command.args(line.split_whitespace()).current_dir(self.folder.path()).env_remove("MIXPOOL_POOL");
        command
    }

    pub fn run(&self, line: &str) -> Ran {
        Ran::new(line, &self.command(line).output().unwrap())
    }

    /// Runs what must succeed; returns its stdout.
    pub fn ok(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.stdout
    }

    /// Runs what must fail with this exit code in one line that holds every one of `parts`, and leave the pool as it was.
    pub fn refused(&self, line: &str, code: i32, parts: &[&str]) {
        let before = self.pool();
        let ran = self.run(line);
        ran.failed(code, parts);
        let after = self.pool();
        let differing: Vec<_> = before.iter().filter(|(name, hash)| after.get(*name) != Some(hash)).collect();
        let new: Vec<_> = after.keys().filter(|name| !before.contains_key(*name)).collect();
        assert!(differing.is_empty() && new.is_empty(), "'{line}' changed {differing:?} and made {new:?}");
    }

    /// Starts the program and does not wait for it.
    pub fn start(&self, line: &str) -> Child {
        self.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Every file and folder of the pool, with the hash of its content.
    pub fn pool(&self) -> BTreeMap<String, String> {
        listing(&self.path("pool"))
    }

    /// The files below a folder of the pool, by their paths in it.
    pub fn files(&self, folder: &str) -> Vec<PathBuf> {
        let folder = self.path("pool").join(folder);
        listing(&folder).into_keys().map(|name| folder.join(name)).filter(|path| path.is_file()).collect()
    }

    /// The folder of a partition's first expert.
    pub fn expert(&self, partition: &str) -> PathBuf {
        let shown: serde_json::Value =
            serde_json::from_str(&self.ok(&format!("show {partition} --format json"))).unwrap();
        let id = shown[0]["object"].as_str().expect("an expert").to_owned();
        let objects = fs::read_dir(self.path("pool/objects")).unwrap().map(|entry| entry.unwrap().path());
        objects.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with(&id)).unwrap()
    }

    /// The folder of the tokens that a partition or eval set is bound to.
    pub fn tokens(&self, binding: &str) -> PathBuf {
        let binding: serde_json::Value = serde_json::from_str(&self.read(&format!("pool/{binding}.json"))).unwrap();
        self.path("pool/tokens").join(binding["tokens"].as_str().unwrap())
    }

    /// What training made: each object's name with the hashes of its weights and its loss curve.
    pub fn models(&self) -> BTreeMap<String, String> {
        let mut objects = listing(&self.path("pool/objects"));
        objects.retain(|name, _| name.ends_with("model.safetensors") || name.ends_with("curve.csv"));
        objects
    }
}

/// Every file and folder below `root`, by relative path, with the hash of its content.
pub fn listing(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, String>) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_dir() {
                found.insert(format!("{name}/"), String::new());
                walk(root, &path, found);
            } else {
                found.insert(name, blake3::hash(&fs::read(&path).unwrap()).to_hex().to_string());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

/// Whether a file's name ends in one of these kinds.
pub fn is_any(path: impl AsRef<Path>, kinds: &[&str]) -> bool {
    path.as_ref().extension().is_some_and(|extension| kinds.iter().any(|kind| extension == *kind))
}

/// Changes a file in place.
pub fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// How a run ended and what it said.
#[derive(Debug)]
pub struct Ran {
    pub line: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn new(line: &str, output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Self { line: line.to_owned(), code: output.status.code(), stdout, stderr }
    }

    /// It failed with this code, wrote no data, and said why in one line that holds every one of `parts`.
    pub fn failed(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let complaints: Vec<&str> = self.stderr.lines().filter(|line| !is_progress(line)).collect();
        assert_eq!(complaints.len(), 1, "expected one line: {self:?}");
        assert!(complaints[0].starts_with("mixpool: ") && self.stderr.ends_with('\n'), "{self:?}");
        for part in parts {
            assert!(complaints[0].contains(part), "expected '{part}': {self:?}");
        }
    }
}

/// "seed model: 3072 tokens in 0.1 s": a piece of work that was finished before the failure.
fn is_progress(line: &str) -> bool {
    line.ends_with(" s") && line.contains(" in ") && !line.starts_with("mixpool: ")
}
