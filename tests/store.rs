//! Store: what kills, full disks and flipped bits left behind in earlier versions, one test each.

mod world;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use world::{World, edit};

/// Every kind of file that a pool holds: bindings, tokens, objects, scores, fitted values, answers, settings.
fn used() -> World {
    let world = World::trained();
    for line in ["rank", "rank --estimator ensemble --subsets 2", "rank --estimator regmean --subsets 2"] {
        world.ok(line);
    }
    world
}

/// The repair that `verify --deep` prints, which must name the file or its folder.
fn repair_of(world: &World, file: &Path) -> String {
    let ran = world.run("verify --deep");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(12), ""), "{}: {ran:?}", file.display());
    let name = |path: &Path| path.strip_prefix(world.path(".")).unwrap_or(path).display().to_string();
    let (file_name, folder) = (name(file), name(file.parent().unwrap()));
    assert!(ran.stderr.contains(&file_name) || ran.stderr.contains(&folder), "{file_name}: {ran:?}");
    let (_, repair) = ran.stderr.trim_end().split_once("repair: ").unwrap_or_else(|| panic!("no repair: {ran:?}"));
    repair.to_owned()
}

/// Runs a printed repair as a person would, who knows the recipe.
fn mend(world: &World, repair: &str) {
    let line = repair
        .replace("RECIPE.yaml", "recipe.yaml")
        .replace("mixpool ", &format!("'{}' ", env!("CARGO_BIN_EXE_mixpool")));
    let output = Command::new("bash").args(["-c", &line]).current_dir(world.path(".")).output().unwrap();
    assert!(output.status.success(), "{repair}: {output:?}");
}

#[test]
fn a_flipped_bit_in_any_file_is_found_and_mended_by_the_command_that_is_printed() {
    let world = used();
    let files: Vec<_> = world.files("").into_iter().filter(|path| fs::metadata(path).unwrap().len() > 0).collect();
    assert!(files.len() > 40, "{files:?}");
    let mut mended = std::collections::BTreeSet::new();
    for (index, file) in files.iter().enumerate() {
        let Ok(whole) = fs::read(file) else { continue }; // removed by the repair of another
        let at = index * 7919 % whole.len();
        edit(file, |bytes| bytes[at] ^= 1 << (index % 7));
        let repair = repair_of(&world, file);
        let kind = (file.file_name().unwrap().to_owned(), file.parent().unwrap().parent().unwrap().to_owned());
        if mended.insert(kind) {
            mend(&world, &repair);
            world.ok("verify --deep");
        } else {
            fs::write(file, whole).unwrap();
        }
    }
    world.ok("verify --deep");
    world.ok("rank");
}

#[test]
fn all_damages_are_named_a_line_each() {
    let world = World::trained();
    for name in ["code", "wiki"] {
        fs::remove_file(world.expert(name).join("curve.csv")).unwrap();
    }
    let ran = world.run("verify --deep");
    assert_eq!(ran.code, Some(12), "{ran:?}");
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{ran:?}");
    assert!(lines.iter().all(|line| line.contains("curve.csv' is damaged: it is missing; repair: rm -r ")), "{ran:?}");
}

#[test]
fn a_pool_without_checksums_opens_and_is_whole() {
    let world = used();
    let ranking = world.ok("rank");
    for file in world.files("").iter().filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
        edit(file, |bytes| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            if let Some(at) = text.rfind(",\n  \"checksum\": ") {
                *bytes = format!("{}\n}}\n", &text[..at]).into_bytes();
            }
        });
    }
    world.ok("verify --deep");
    assert_eq!(ranking, world.ok("rank"));
}

#[test]
fn an_export_that_was_killed_may_be_run_again() {
    let world = World::trained();
    world.ok("export model code+wiki --out merged");
    world.ok("export model code+wiki --out merged"); // killed when all was written but the last flush
    world.refused("export model code+math --out merged", 2, &["'merged' exists already", "--out"]);
    edit(&world.path("merged/config.json"), |bytes| bytes.push(b' '));
    world.refused("export model code+wiki --out merged", 2, &["'merged' exists already"]);
    for name in [".tmp-999999999-0-other", ".tmp-999999999-0-again", ".tmp-999999999-0-other.csv", ".tmp-1-0-again"] {
        fs::create_dir(world.path(name)).unwrap();
    }
    world.write(".tmp-999999999-0-scores.csv", "half");
    world.ok("export model code+wiki --out again");
    world.ok("export scores --out scores.csv");
    let left = |name: &str| world.path(name).exists();
    assert!(!left(".tmp-999999999-0-again") && !left(".tmp-999999999-0-scores.csv"), "the dead one's are swept");
    assert!(left(".tmp-999999999-0-other") && left(".tmp-999999999-0-other.csv") && left(".tmp-1-0-again"));
}

#[test]
fn the_state_of_a_training_that_is_finished_is_dropped() {
    let world = World::trained();
    let id = world.expert("wiki").file_name().unwrap().to_string_lossy().into_owned();
    world.write(&format!("pool/work/{id}.state"), "left by a process that was killed when its object was published");
    world.ok("train");
    assert!(!world.path("pool/work").join(format!("{id}.state")).exists());
}

#[test]
fn a_complaint_that_cannot_be_written_is_no_crash() {
    let world = World::texts();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = world.command("ls").stderr(Stdio::from(full)).status().unwrap();
    assert_eq!(status.code(), Some(10));
}

#[test]
fn of_two_that_publish_one_new_name_the_first_wins() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("name.json");
    assert!(mixpool::files::publish_new(&path, b"first").unwrap());
    assert!(!mixpool::files::publish_new(&path, b"second").unwrap());
    assert_eq!(fs::read(&path).unwrap(), b"first");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary name is left");
}
