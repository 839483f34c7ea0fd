//! Filter: documents of a target's domain that hide in a partition are found, and kept as a partition that says why.

mod world;

use serde_json::Value;
use std::collections::BTreeMap;
use world::{World, sentences, text};

/// A pool whose partition `web` has twelve documents on code among 108 about mathematics; the numbers of the twelve.
fn planted() -> (World, Vec<usize>) {
    let world = World::registered();
    let (code, math) = (sentences("code", 77, 12), sentences("math", 78, 108));
    let place = |document: usize| document % 10 == 3; // every tenth
    let (mut code, mut math) = (code.into_iter(), math.into_iter());
    let documents: Vec<String> =
        (0..120).map(|document| if place(document) { code.next() } else { math.next() }.unwrap()).collect();
    world.write("web.txt", text(&documents));
    world.ok("register web web.txt");
    (world, (0..120).filter(|document| place(*document)).map(|document| document + 1).collect())
}

fn kept(world: &World, csv: &str) -> Vec<usize> {
    let text = world.read(csv);
    let mut lines = text.lines();
    assert_eq!(lines.next().unwrap(), "document,eval_set,n_tokens,influence,score,kept");
    let fields = lines.map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
    fields.filter(|fields| fields[5] == "true").map(|fields| fields[0].parse().unwrap()).collect()
}

#[test]
fn documents_like_the_target_are_found() {
    let (world, planted) = planted();
    for (name, method) in [("exact", "less"), ("projected", "less:dim=1024")] {
        let line = format!("filter web --target code-test --keep 0.1 --as {name} --method {method} --csv {name}.csv");
        assert_eq!(world.ok(&line), format!("{name}\n"));
        let found = kept(&world, &format!("{name}.csv"));
        let right = found.iter().filter(|document| planted.contains(document)).count();
        assert_eq!(found.len(), 12);
        assert!(right >= 11, "{method}: {right} of 12, {found:?}");
        let binding: BTreeMap<String, Value> =
            serde_json::from_str(&world.read(&format!("pool/partitions/{name}.json"))).unwrap();
        let filtered = &binding["filtered"];
        assert_eq!(filtered["source"], "web");
        assert_eq!(filtered["method"], method);
        assert_eq!(filtered["targets"], serde_json::json!(["code-test"]));
        assert_eq!(filtered["keep"], "0.1");
        let first = world.read(&format!("{name}.csv"));
        world.ok(&line);
        assert_eq!(world.read(&format!("{name}.csv")), first, "the same scores again");
    }
    world.ok("train exact");
    world.ok("verify --deep");
}

#[test]
fn filtered_documents_are_those_of_the_source() {
    let (world, _) = planted();
    world.ok("filter web --target code-test wiki-test --keep 1 --as whole --method random:seed=3");
    let tokens = |name: &str| {
        let binding: Value = serde_json::from_str(&world.read(&format!("pool/partitions/{name}.json"))).unwrap();
        binding["tokens"].as_str().unwrap().to_owned()
    };
    assert_eq!(tokens("whole"), tokens("web"), "all documents in their order are the same token file");
    world.ok("filter web --target code-test --keep 0.5 --as half --method random:seed=3 --csv half.csv");
    world.ok("filter web --target code-test --keep 0.5 --as other --method random:seed=4 --csv other.csv");
    assert_eq!(kept(&world, "half.csv").len(), 60);
    assert_ne!(kept(&world, "half.csv"), kept(&world, "other.csv"));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (world, _) = planted();
    world.ok("filter web --target code-test --keep 0.5 --as half --method random");
    world.refused("filter wob --target code-test --as x", 2, &["wob", "web"]);
    world.refused("filter web --target code-tst --as x", 2, &["code-tst"]);
    world.refused("filter web --target code-test --keep 0 --as x", 2, &["--keep 0"]);
    world.refused("filter web --target code-test --keep 1.5 --as x", 2, &["--keep 1.5"]);
    world.refused("filter web --target code-test --as x --method merged", 2, &["merged", "less"]);
    world.refused("filter web --target code-test --as x --method random:seed=a", 2, &["random:seed=a"]);
    world.refused("filter web --target code-test --keep 0.25 --as half --method random", 2, &["half", "already"]);
    world.refused("filter web --target code-test --keep 0.001 --as x --method random", 1, &["'x'", "tokens"]);
}
