//! Sharing: several processes work in one pool, by locks and by leases, and none does what another does.

mod world;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};
use world::{RECIPE, Ran, World};

/// Starts the program; `lease` in seconds makes all claims leases.
fn start(world: &World, line: &str, lease: Option<&str>) -> Child {
    let mut command = world.command(line);
    if let Some(lease) = lease {
        command.env("MIXPOOL_LEASE", lease);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn run(world: &World, line: &str, lease: Option<&str>) -> Ran {
    Ran::new(line, &start(world, line, lease).wait_with_output().unwrap())
}

/// Runs a command in several processes at once; all must succeed.
fn together(world: &World, n: usize, line: &str, lease: Option<&str>) -> Vec<Ran> {
    let children: Vec<Child> = (0..n).map(|_| start(world, line, lease)).collect();
    let ran: Vec<Ran> = children.into_iter().map(|child| Ran::new(line, &child.wait_with_output().unwrap())).collect();
    ran.iter().for_each(|ran| assert_eq!(ran.code, Some(0), "{ran:?}"));
    ran
}

/// How often each key was stored, over all logs.
fn stored(world: &World) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for path in world.files("scores") {
        let bytes = fs::read(&path).unwrap();
        let eval = path.file_name().unwrap().to_string_lossy().chars().take(64).collect::<String>();
        let text = String::from_utf8_lossy(&bytes);
        for rest in text.split("\"key\":\"").skip(1) {
            *counts.entry(format!("{eval} {}", &rest[..64])).or_default() += 1;
        }
    }
    counts
}

#[test]
fn several_processes_share_one_training_and_one_ranking() {
    let alone = World::trained();
    let ranking = alone.ok("rank --dirichlet 60 --format csv");
    for lease in [None, Some("20")] {
        let world = World::registered();
        let ran = together(&world, 4, "train --wait --threads 1", lease);
        let told: Vec<&str> = ran.iter().flat_map(|ran| ran.stderr.lines()).collect();
        for what in ["seed model:", "expert 'code' 1/2:", "expert 'code' 2/2:", "expert 'math':", "expert 'wiki':"] {
            let times = told.iter().filter(|line| line.starts_with(what) && line.ends_with(" s")).count();
            assert_eq!(times, 1, "{what} {told:#?}");
        }
        assert_eq!(alone.models(), world.models());
        for ran in together(&world, 4, "rank --dirichlet 60 --format csv --threads 1", lease) {
            assert_eq!(ran.stdout, ranking);
        }
        let counts = stored(&world);
        assert_eq!(counts.len(), 2 * 60);
        assert!(counts.values().all(|count| *count == 1), "{counts:?}");
        assert!(world.files("work").is_empty(), "claims are removed when they are released");
        world.ok("verify --deep");
        assert_eq!(world.ok("rank --dirichlet 60 --format csv"), ranking, "logs of either kind are read");
    }
}

/// A claim's file as a process on another host would have made it, `age` seconds ago.
fn foreign(world: &World, path: &PathBuf, age: u64) {
    fs::write(path, r#"{"host": "elsewhere", "space": "00000000", "pid": 7, "started": 9}"#).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    assert!(path.starts_with(world.path("pool")));
}

#[test]
fn a_lease_of_another_host_is_heeded_until_it_ends() {
    let world = World::trained();
    let expert = world.expert("wiki");
    let claim = world.path("pool/work").join(format!("{}.claim", expert.file_name().unwrap().to_string_lossy()));
    let again = world.path("pool/work").join(format!("{}.1.claim", expert.file_name().unwrap().to_string_lossy()));
    for lease in [None, Some("100")] {
        for path in [&claim, &again] {
            fs::remove_dir_all(&expert).unwrap();
            foreign(&world, path, 60);
            let refused = run(&world, "train --quiet", lease);
            refused.failed(11, &["expert 'wiki'", "(7 on elsewhere)"]);
            foreign(&world, path, 200);
            let ran = run(&world, "train", lease);
            assert_eq!(ran.code, Some(0), "{ran:?}");
            assert!(world.files("work").is_empty(), "{:?}", world.files("work"));
        }
    }
}

#[test]
fn a_dead_process_of_this_host_blocks_nobody_and_a_live_one_is_renewed() {
    let world = World::with_recipe(&RECIPE.replace("tokens: 800", "tokens: 1M"));
    world.ok("train seed");
    for lease in [None, Some("1.2")] {
        let mut child = start(&world, "train code --threads 1", lease);
        let claims =
            || world.files("work").into_iter().filter(|path| world::is_any(path, &["claim"])).collect::<Vec<_>>();
        let is_held = || claims().iter().any(|path| fs::metadata(path).is_ok_and(|claim| claim.len() > 0)); // not just made
        let start_of_wait = Instant::now();
        while !is_held() {
            assert!(start_of_wait.elapsed() < Duration::from_mins(1) && child.try_wait().unwrap().is_none());
            sleep(Duration::from_millis(2));
        }
        let renewed = || fs::metadata(&claims()[0]).unwrap().modified().unwrap();
        let first = renewed();
        run(&world, "train code --quiet", lease).failed(11, &["is being trained by another process", "run this again"]);
        if lease.is_some() {
            sleep(Duration::from_millis(700));
            assert!(renewed() > first, "no heart-beat");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(claims().len(), 1, "it was killed with its claim");
        let mut next = start(&world, "train code --threads 1", lease);
        sleep(Duration::from_millis(300));
        assert!(next.try_wait().unwrap().is_none_or(|status| status.success()), "taken over at once");
        next.kill().unwrap();
        next.wait().unwrap();
        fs::remove_file(&claims()[0]).unwrap();
    }
}

#[test]
fn what_another_process_trains_is_come_back_to() {
    let world = World::registered();
    world.ok("train seed");
    world.ok("train code");
    let claim =
        world.path("pool/work").join(format!("{}.claim", world.expert("code").file_name().unwrap().to_string_lossy()));
    fs::remove_dir_all(world.expert("code")).unwrap();
    foreign(&world, &claim, 1);
    let ran = world.run("train");
    assert_eq!(ran.code, Some(11), "{ran:?}");
    let others = ["expert 'code' 2/2", "expert 'math'", "expert 'wiki'"];
    assert!(
        world.files("objects").len() > 3 && ran.stderr.contains(others[1]) && ran.stderr.contains(others[2]),
        "{ran:?}"
    );
    fs::remove_file(claim).unwrap();
    world.ok("train");
}
