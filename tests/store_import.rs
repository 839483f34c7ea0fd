//! Import: two pools made from equal recipes become one, and pools of earlier versions open.

mod world;

use std::fs;
use world::{World, edit, listing};

/// Two pools of one recipe: `pool` with code and math, `other` with math, wiki and a code of its own.
fn two() -> World {
    let world = World::texts();
    world.ok("tokenizer train general.txt code.txt math.txt --vocab 320 --out tokenizer.json");
    for line in
        ["init recipe.yaml", "register code code.txt", "register math math.txt", "eval-set code-test code-test.txt"]
    {
        world.ok(line);
    }
    for line in [
        "init recipe.yaml",
        "register math math.txt",
        "register wiki wiki.jsonl.gz --text-field content",
        "eval-set wiki-test wiki-test.jsonl",
        "eval-set code-test code-test.txt",
    ] {
        world.ok(&format!("--pool other {line}"));
    }
    for pool in ["pool", "other"] {
        world.ok(&format!("--pool {pool} train"));
        world.ok(&format!("--pool {pool} rank"));
    }
    world
}

#[test]
fn another_pool_is_brought_in_once() {
    let world = two();
    let theirs = listing(&world.path("other"));
    world.ok("import other");
    assert_eq!(listing(&world.path("other")), theirs, "the other pool is only read");
    world.ok("verify --deep");
    let before = world.pool();
    world.ok("pool import other");
    assert_eq!(world.pool(), before, "an import again changes nothing");
    for (name, hash) in theirs
        .iter()
        .filter(|(name, _)| ["tokens/", "objects/", "partitions/", "evals/"].iter().any(|kind| name.starts_with(kind)))
    {
        let ours = before.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert!(ours == hash || name.ends_with("manifest.json"), "{name} differs");
    }
    let ran = world.run("rank --eval code-test");
    assert!(!ran.stderr.contains("7 mixtures in"), "the scores of math and of wiki on code-test are there: {ran:?}");
    world.ok("rank");
}

#[test]
fn names_that_mean_different_things_are_listed_at_once() {
    let world = two();
    world.write("more.txt", world::text(&world::sentences("code", 77, 30)));
    world.ok("--pool other register code more.txt");
    world.write("their.txt", "held out elsewhere");
    world.ok("--pool other eval-set held their.txt");
    world.write("held.txt", "something else");
    world.ok("eval-set held held.txt");
    world.refused("import other", 2, &["partition 'code'", "eval set 'held'", "--rename-prefix"]);
    world.ok("import other --rename-prefix their-");
    world.ok("import other --rename-prefix their-");
    let listed = world.ok("ls --format csv");
    for name in ["their-code", "their-held", "wiki-test"] {
        assert!(listed.contains(name), "{name}: {listed}");
    }
    assert!(!listed.contains("their-wiki") && !listed.contains("their-math"), "{listed}");
    world.ok("verify --deep");
}

#[test]
fn damage_and_other_settings_are_refused() {
    let world = two();
    let files: Vec<_> =
        listing(&world.path("other/tokens")).into_keys().filter(|name| name.ends_with("tokens.bin")).collect();
    let known = world.path("pool/tokens");
    let new = files.iter().find(|name| !known.join(name).exists()).unwrap();
    edit(&world.path("other/tokens").join(new), |bytes| bytes[3] ^= 1);
    let ran = world.run("import other --quiet");
    ran.failed(12, &["other/tokens", "verify --deep"]);
    assert!(!world.path("pool/partitions/wiki.json").exists(), "nothing is bound");
    world.write("third.yaml", world::RECIPE.replace("2e-3", "1e-3"));
    world.ok("--pool third init third.yaml");
    world.refused("import third", 1, &["expert"]);
}

/// Copies a folder.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let to = to.join(entry.file_name().unwrap());
        if entry.is_dir() {
            copy(&entry, &to);
        } else {
            fs::copy(&entry, &to).unwrap();
        }
    }
}

#[test]
fn pools_of_every_released_format_open_and_give_what_they_gave() {
    let pools = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pools");
    let mut opened = 0;
    for version in fs::read_dir(&pools).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let world = World::texts();
        copy(&version.join("pool"), &world.path("pool"));
        for folder in ["work", "scores", "objects", "tokens", "partitions", "evals"] {
            fs::create_dir_all(world.path("pool").join(folder)).unwrap(); // git keeps no empty folders
        }
        world.ok("verify --deep");
        let ranking = fs::read_to_string(version.join("ranking.csv")).unwrap();
        let before = world.pool();
        assert_eq!(world.ok("rank --format csv"), ranking, "{}", version.display());
        let names = |pool: &std::collections::BTreeMap<String, String>| pool.keys().cloned().collect::<Vec<_>>();
        let mut after = names(&world.pool());
        after.retain(|name| before.contains_key(name) || !name.starts_with("estimates"));
        assert_eq!(after, names(&before), "its scores are found, and nothing is trained or scored again");
        for (name, hash) in
            before.iter().filter(|(name, _)| name.starts_with("scores/") || name.starts_with("objects/"))
        {
            assert_eq!(world.pool().get(name), Some(hash), "{name} changed");
        }
        // Scored again from the stored weights and tokens; the last digits may differ between processors.
        fs::remove_dir_all(world.path("pool/scores")).unwrap();
        fs::create_dir(world.path("pool/scores")).unwrap();
        let again = world.ok("rank --format csv");
        for (old, new) in ranking.lines().zip(again.lines()) {
            for (old, new) in old.split(',').zip(new.split(',')) {
                match (old.parse::<f64>(), new.parse::<f64>()) {
                    (Ok(old), Ok(new)) => assert!((old - new).abs() <= 1e-5 * old.abs(), "{old} {new}"),
                    _ => assert_eq!(old, new),
                }
            }
        }
        opened += 1;
    }
    assert!(opened >= 1);
}

#[test]
fn another_format_is_refused() {
    let world = World::registered();
    edit(&world.path("pool/pool.json"), |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let body = text[..text.rfind(",\n  \"checksum\"").unwrap()].replace("\"format\": 1", "\"format\": 2");
        *bytes = format!("{body}\n}}\n").into_bytes();
    });
    for line in ["ls", "rank", "verify", "gc", "train", "import pool"] {
        world.refused(line, 2, &["has pool format 2, this mixpool reads format 1"]);
    }
}

#[test]
fn a_team_can_share_what_is_made() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::texts();
    world.ok("tokenizer train general.txt code.txt math.txt --vocab 320 --out tokenizer.json");
    let folder = world.path("team");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o2775)).unwrap();
    let program = env!("CARGO_BIN_EXE_mixpool");
    let lines = [
        "init recipe.yaml",
        "register code code.txt",
        "eval-set code-test code-test.txt",
        "train",
        "rank",
        "rank --estimator ensemble",
    ];
    for line in lines {
        let script = format!("umask 002; exec '{program}' --pool team/pool {line}");
        let output =
            std::process::Command::new("bash").args(["-c", &script]).current_dir(world.path(".")).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    }
    for name in listing(&folder).into_keys() {
        let mode = fs::metadata(folder.join(&name)).unwrap().permissions().mode() & 0o7777;
        let expected = if name.ends_with('/') { 0o2775 } else { 0o664 };
        assert_eq!(mode, expected, "{name}: {mode:o}");
    }
}
