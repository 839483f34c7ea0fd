//! Architecture: imports point down, modules introduce themselves, and only the command line prints.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules by layer, from the bottom up; a module may import from lower layers and from itself.
const LAYERS: [&[&str]; 11] = [
    &["error"],
    &["files", "rng", "progress", "mixture"],
    &["resample", "gguf"],
    &["kernels"],
    &["text", "model"],
    &["train", "merge", "eval"],
    &["pool", "search"],
    &["estimators"],
    &["rank"],
    &["report"],
    &["cli"],
];
/// Files may be this long; one that wants more is two modules.
const MAX_LINES: usize = 400;
/// `files/map.rs` maps files, and says in a signal handler which of them was cut short under its readers.
const UNSAFE: [&str; 7] = [
    "src/allocator.rs",
    "src/files/map.rs",
    "src/kernels/device/cuda.rs",
    "src/kernels/device/driver.rs",
    "src/kernels/device/emulated.rs",
    "src/kernels/matmul.rs",
    "src/kernels/weighted_sum/avx512.rs",
];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() { walk(&entry, found) } else { found.push(entry) }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    walk(&root.join("src"), &mut found);
    found.sort();
    let relative = |path: PathBuf| (path.strip_prefix(root).unwrap().to_path_buf(), fs::read_to_string(&path).unwrap());
    found.into_iter().map(relative).collect()
}

fn module(path: &Path) -> String {
    path.iter().nth(1).unwrap().to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

#[test]
fn every_module_has_a_layer() {
    for (path, _) in sources() {
        let module = module(&path);
        assert!(
            matches!(module.as_str(), "lib" | "main" | "allocator") || layer(&module).is_some(),
            "{module} has no layer"
        );
    }
}

#[test]
fn imports_point_down() {
    for (path, text) in sources() {
        let own = module(&path);
        let Some(own_layer) = layer(&own) else { continue };
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for import in line.split("crate::").skip(1) {
                let target: String = import.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                if target == own || target.is_empty() {
                    continue;
                }
                // `crate::Error` and `crate::Result` are re-exports of the lowest layer.
                let lower = layer(&target).is_some_and(|layer| layer < own_layer);
                assert!(lower, "{}:{}: {own} may not import {target}", path.display(), number + 1);
            }
        }
    }
}

#[test]
fn every_file_opens_with_one_sentence() {
    for (path, text) in sources() {
        let first = text.lines().next().unwrap_or_default();
        let sentence = first.strip_prefix("//! ").unwrap_or_else(|| panic!("{} has no module doc", path.display()));
        assert!(sentence.len() <= 120, "{}: the first line is too long", path.display());
    }
}

#[test]
fn files_stay_short() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines, at most {MAX_LINES} are allowed", path.display());
    }
}

#[test]
fn only_the_command_line_prints() {
    for (path, text) in sources().into_iter().filter(|(path, _)| !path.starts_with("src/cli")) {
        for macro_name in ["println!", "eprintln!", "print!(", "eprint!(", "dbg!"] {
            let printing = text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(macro_name));
            assert!(!printing, "{} uses {macro_name}", path.display());
        }
    }
}

#[test]
fn unsafe_code_stays_where_it_is_explained() {
    for (path, text) in sources() {
        let uses = text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains("unsafe {"));
        assert_eq!(uses, UNSAFE.iter().any(|allowed| path == Path::new(allowed)), "{}", path.display());
    }
}
