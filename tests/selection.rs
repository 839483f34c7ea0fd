//! Selection: planted useful and harmful parts are found, and the command's choice is a mixture that can be scored.

mod world;

use mixpool::search::{forward, inclusion, keep, random_subsets};
use std::collections::BTreeSet;
use world::World;

/// What each part adds to the score of a set that holds it: two useful, two useless, two harmful.
const WORTH: [f64; 6] = [-1.0, 0.0, 2.0, -0.5, 1.0, 0.0];

fn score(sets: &[Vec<usize>]) -> Vec<f64> {
    sets.iter().map(|set| set.iter().map(|part| WORTH[*part]).sum()).collect()
}

#[test]
fn forward_takes_what_helps_in_the_order_of_its_worth_and_stops() {
    let mut asked = 0;
    let steps = forward(6, |sets| {
        asked += sets.len();
        Ok(score(sets))
    })
    .unwrap();
    assert_eq!(steps.iter().map(|step| (step.part, step.score)).collect::<Vec<_>>(), [(0, -1.0), (3, -1.5)]);
    assert_eq!(asked, 6 + 5 + 4);
    // A pair that helps together and not alone is what stepwise selection cannot see.
    let together = |sets: &[Vec<usize>]| Ok(sets.iter().map(|set| if set.len() == 2 { -1.0 } else { 0.0 }).collect());
    assert_eq!(forward(2, together).unwrap().len(), 2);
    assert!(forward(3, |sets| Ok(vec![f64::NAN; sets.len()])).unwrap().len() == 1);
    assert_eq!(forward(0, |sets| Ok(score(sets))).unwrap(), []);
}

#[test]
fn random_subsets_differ_have_one_size_and_hold_every_part_as_often() {
    let subsets = random_subsets(12, 6, 400, 7).unwrap();
    assert_eq!(subsets.iter().collect::<BTreeSet<_>>().len(), 400);
    assert!(subsets.iter().all(|subset| subset.len() == 6 && subset.is_sorted()));
    for part in 0..12 {
        let holding = subsets.iter().filter(|subset| subset.contains(&part)).count();
        // 200 expected of 400 draws without replacement from 924; four standard errors are 30.
        assert!((170..=230).contains(&holding), "part {part} is in {holding}");
    }
    assert_eq!(random_subsets(12, 6, 400, 7).unwrap(), subsets);
    assert_ne!(random_subsets(12, 6, 400, 8).unwrap(), subsets);
    assert_eq!(random_subsets(6, 3, 200, 7).unwrap().len(), 20); // all of them
    assert!(random_subsets(3, 0, 5, 0).is_err() && random_subsets(3, 4, 5, 0).is_err());
}

#[test]
fn inclusion_orders_parts_by_what_they_are_worth() {
    let subsets = random_subsets(6, 3, 20, 0).unwrap();
    let found = inclusion(6, &subsets, &score(&subsets), 0.95);
    let total: f64 = WORTH.iter().sum();
    for (part, found) in found.iter().enumerate() {
        let found = found.unwrap();
        // The part itself, and two of the other five on average.
        let expected = WORTH[part] + 2.0 * (total - WORTH[part]) / 5.0;
        assert!((found.mean - expected).abs() < 1e-12, "{} is not {expected}", found.mean);
        assert!(found.interval.0 < found.mean && found.mean < found.interval.1);
    }
    let means: Vec<f64> = found.into_iter().map(|found| found.unwrap().mean).collect();
    assert_eq!(keep(&means, 0.34), [0, 3]);
    assert_eq!(keep(&means, 4.0 / 6.0), [0, 1, 3, 5]);
    assert_eq!(keep(&means, 0.01), [0]);
    assert_eq!(inclusion(3, &[vec![0], vec![0]], &[1.0, 3.0], 0.5)[1], None);
}

#[test]
fn an_interval_narrows_with_the_number_of_subsets() {
    let width = |count| {
        let subsets = random_subsets(14, 7, count, 1).unwrap();
        let scores: Vec<f64> = subsets.iter().map(|set| set.iter().map(|part| (*part as f64).sin()).sum()).collect();
        let interval = inclusion(14, &subsets, &scores, 0.95)[0].unwrap().interval;
        interval.1 - interval.0
    };
    let ratio = width(100) / width(1600);
    assert!((3.0..5.5).contains(&ratio), "{ratio} instead of about 4");
}

#[test]
fn the_command_finds_the_partition_that_is_like_the_eval_set() {
    let world = World::trained();
    for (eval, best) in [("wiki-test", "wiki"), ("code-test", "code")] {
        for how in ["forward", "ensemble --keep 0.4"] {
            let line = format!("select --eval {eval} --how {how} --format json");
            let found: serde_json::Value = serde_json::from_str(&world.ok(&line)).unwrap();
            assert_eq!(found["partitions"][0]["partition"], best, "{found}");
            let mixture = found["mixture"].as_str().unwrap();
            assert!(mixture.contains(best), "{found}");
            world.ok(&format!("score {mixture} --eval {eval}"));
            let before = world.pool();
            world.ok(&line);
            assert_eq!(before, world.pool(), "'{line}' computed again");
        }
    }
    let table = world.ok("select --eval wiki-test --subsets 2");
    assert!(table.lines().last().unwrap().starts_with("mixture  "), "{table}");
    world.refused("select --eval nothing", 2, &["nothing"]);
    world.refused("select --eval wiki-test --keep 1.5", 2, &["--keep"]);
    world.refused("select --eval wiki-test --subsets 0", 2, &["at least one subset"]);
}
