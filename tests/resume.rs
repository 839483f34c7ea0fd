//! Resume: stopped, killed or doubled at any moment, the same command ends with the same bytes.

mod world;

use std::collections::BTreeMap;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};
use world::{Ran, World, is_any};

/// Long enough to be interrupted: about a second of training, most of it for the seed.
const LONG: &str = "\
model: pico
tokenizer: tokenizer.json
seed:
  files: [general.txt]
  tokens: 250k
  learning_rate: 5e-3
  batch_size: 4
  sequence_length: 32
expert:
  tokens: 40k
  learning_rate: 2e-3
";
/// A ranking of about half a second.
const RANK: &str = "rank --dirichlet 60 --format csv";

/// What nobody disturbed.
struct Undisturbed {
    models: BTreeMap<String, String>,
    ranking: String,
    training: Duration,
    scoring: Duration,
}

fn undisturbed() -> &'static Undisturbed {
    static UNDISTURBED: OnceLock<Undisturbed> = OnceLock::new();
    UNDISTURBED.get_or_init(|| {
        let world = World::with_recipe(LONG);
        let start = Instant::now();
        world.ok("train");
        let training = start.elapsed();
        let again = Instant::now();
        let ranking = world.ok(RANK);
        let scoring = again.elapsed();
        Undisturbed { models: world.models(), ranking, training, scoring }
    })
}

/// Starts a command and kills it without warning after `delay`; whether it was still at work.
fn kill_after(world: &World, line: &str, delay: Duration) -> bool {
    let mut child = world.start(line);
    sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap().code().is_none()
}

/// Kills a command at evenly spread moments of its usual `duration`, until one comes too late.
fn kill_again_and_again(world: &World, line: &str, duration: Duration) -> usize {
    const TIMES: u32 = 12;
    (1..=TIMES).filter(|time| kill_after(world, line, duration * *time / (TIMES + 1))).count()
}

fn wait_until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_mins(1), "nothing happened");
        sleep(Duration::from_millis(1));
    }
}

/// Starts `train` and returns some steps after it claimed its first model.
fn training(world: &World) -> Child {
    let claims = || world.files("work").into_iter().filter(|path| is_any(path, &["claim"]));
    claims().for_each(|path| std::fs::remove_file(path).unwrap());
    let child = world.start("train");
    wait_until(|| claims().count() > 0);
    sleep(Duration::from_millis(20));
    child
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

fn states(world: &World) -> usize {
    world.files("work").iter().filter(|path| is_any(path, &["state"])).count()
}

fn assert_nothing_temporary(world: &World) {
    let left: Vec<_> =
        world.pool().into_keys().filter(|name| name.contains(".tmp-") || is_any(name, &["state"])).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn training_and_ranking_killed_at_many_moments_end_with_the_same_bytes() {
    let world = World::with_recipe(LONG);
    let killed = kill_again_and_again(&world, "train", undisturbed().training);
    assert!(killed >= 4, "only {killed} kills came in time");
    world.ok("train");
    assert_eq!(undisturbed().models, world.models());
    let killed = kill_again_and_again(&world, RANK, undisturbed().scoring);
    assert!(killed >= 2, "only {killed} kills came in time");
    assert_eq!(undisturbed().ranking, world.ok(RANK));
    assert_nothing_temporary(&world);
    world.ok("verify --deep");
}

#[test]
fn training_asked_to_stop_keeps_its_state_and_goes_on_with_the_same_bytes() {
    let world = World::with_recipe(LONG);
    for (name, code) in [("-TERM", 75), ("-INT", 130), ("-USR1", 75)] {
        let child = training(&world);
        signal(&child, name);
        let ran = Ran::new("train", &child.wait_with_output().unwrap());
        ran.failed(code, &["stopped by SIG", "run the same command again"]);
        assert_eq!(states(&world), 1);
        let mut resumed = training(&world);
        resumed.kill().unwrap();
        assert_eq!(resumed.wait().unwrap().code(), None, "killed without warning after it was resumed");
        assert_eq!(states(&world), 1, "the state outlives the kill");
    }
    world.ok("train");
    assert_eq!(undisturbed().models, world.models());
    assert_nothing_temporary(&world);
}

#[test]
fn ranking_asked_to_stop_keeps_every_finished_score() {
    let world = World::with_recipe(LONG);
    world.ok("train");
    let child = world.start(RANK);
    wait_until(|| world.files("scores").len() == 2);
    signal(&child, "-TERM");
    Ran::new(RANK, &child.wait_with_output().unwrap()).failed(75, &["stopped by SIGTERM"]);
    world.ok("export scores --out scores.csv");
    assert!(world.read("scores.csv").lines().count() > 2, "finished scores were not kept");
    assert_eq!(undisturbed().ranking, world.ok(RANK));
}

#[test]
fn two_trainings_at_once_never_train_one_model_twice() {
    let world = World::with_recipe(LONG);
    let both = [world.start("train"), world.start("train")];
    let ran = both.map(|child| Ran::new("train", &child.wait_with_output().unwrap()));
    let (first, second) = if ran[0].code == Some(0) { (&ran[0], &ran[1]) } else { (&ran[1], &ran[0]) };
    assert_eq!(first.code, Some(0), "{ran:?}");
    if second.code != Some(0) {
        second.failed(11, &["is being trained by another process", "run this again"]);
    }
    assert_eq!(undisturbed().models, world.models());
    world.ok("train");
    assert_nothing_temporary(&world);
}

#[test]
fn two_rankings_at_once_agree() {
    let world = World::with_recipe(LONG);
    world.ok("train");
    let both = [world.start(RANK), world.start(RANK)];
    for child in both {
        let ran = Ran::new(RANK, &child.wait_with_output().unwrap());
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), undisturbed().ranking.as_str()), "{}", ran.stderr);
    }
    world.ok("verify --deep");
    assert_eq!(undisturbed().ranking, world.ok(RANK));
}

#[test]
fn processes_that_open_a_pool_at_once_may_all_sweep_it() {
    let world = World::trained();
    for _ in 0..5 {
        for number in 0..40 {
            std::fs::create_dir_all(world.path(&format!("pool/objects/.tmp-999999999-{number}-dead/inner"))).unwrap();
        }
        let all: Vec<Child> = (0..4).map(|_| world.start("ls")).collect();
        for child in all {
            let ran = Ran::new("ls", &child.wait_with_output().unwrap());
            assert_eq!(ran.code, Some(0), "{ran:?}");
        }
    }
    assert_nothing_temporary(&world);
}
