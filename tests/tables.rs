//! Tables: long and wide forms and every format hold the same numbers; tables of olmix and `RegMix` are read and written.

mod world;

use mixpool::search::NumberTable;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use world::World;

/// A CSV as one map from column to cell a row.
fn rows(csv: &str) -> Vec<BTreeMap<String, String>> {
    csv::Reader::from_reader(csv.as_bytes()).deserialize().map(Result::unwrap).collect()
}

fn number(cell: &str) -> f64 {
    cell.parse().unwrap_or_else(|_| panic!("'{cell}' is no number"))
}

#[test]
fn long_and_wide_forms_and_every_format_hold_the_same_numbers() {
    let world = World::trained();
    let long = rows(&world.ok("rank --format csv --out long.json --csv long.csv"));
    let wide = rows(&world.ok("rank --format csv --wide --out wide.jsonl"));
    assert_eq!((long.len(), wide.len()), (14, 7));
    let mut compared = 0;
    for row in &long {
        let found: Vec<_> = wide.iter().filter(|wide| wide["mixture"] == row["mixture"]).collect();
        assert_eq!((found.len(), &found[0]["estimator"]), (1, &row["estimator"]));
        for (metric, value) in
            row.iter().filter(|(name, _)| !["mixture", "estimator", "eval_set"].contains(&name.as_str()))
        {
            assert_eq!(&found[0][&format!("{}.{metric}", row["eval_set"])], value);
            compared += 1;
        }
    }
    assert_eq!(compared, 14 * 8);
    assert_eq!(wide[0].len(), 2 + 3 + 2 * 8);
    for row in &wide {
        let names: Vec<&str> = row["mixture"].split('+').collect();
        for partition in ["code", "math", "wiki"] {
            let expected = if names.contains(&partition) { 1.0 / names.len() as f64 } else { 0.0 };
            assert_eq!(number(&row[&format!("weight.{partition}")]), expected);
        }
    }

    // The same values as JSON, as JSON Lines, and in the files of export.
    let same = |csv: &BTreeMap<String, String>, json: &Value| {
        let object = json.as_object().unwrap();
        assert_eq!(object.keys().collect::<BTreeSet<_>>(), csv.keys().collect::<BTreeSet<_>>());
        for (name, cell) in csv {
            match &object[name] {
                Value::Null => assert_eq!(cell, ""),
                Value::String(text) => assert_eq!(cell, text),
                value => assert_eq!(number(cell), value.as_f64().unwrap(), "{name}"),
            }
        }
    };
    let json: Vec<Value> = serde_json::from_str(&world.read("long.json")).unwrap();
    assert_eq!(json, serde_json::from_str::<Vec<Value>>(&world.ok("rank --format json")).unwrap());
    long.iter().zip(&json).for_each(|(csv, json)| same(csv, json));
    let lines = world.read("wide.jsonl");
    assert_eq!(lines, world.ok("rank --wide --format jsonl"));
    assert_eq!(lines.lines().count(), 7);
    wide.iter().zip(lines.lines()).for_each(|(csv, line)| same(csv, &serde_json::from_str(line).unwrap()));
    world.ok("export ranking --out exported.csv");
    assert_eq!(world.read("exported.csv"), world.read("long.csv"));
    world.ok("export ranking --wide --out exported.csv");
    assert_eq!(rows(&world.read("exported.csv")), wide);
    for command in ["export ranking", "rank", "score wiki", "compare", "select --eval wiki-test"] {
        world.refused(&format!("{command} --out ranking.xlsx"), 2, &["ranking.xlsx", ".csv"]);
    }
}

#[test]
fn every_number_on_the_screen_is_in_the_export() {
    let world = World::trained();
    let shown = world.ok("rank --top 3 --format markdown");
    let exported = rows(&world.ok("rank --top 3 --format csv"));
    let mut lines = shown.lines().map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    let (header, rule) = (lines.next().unwrap(), lines.next().unwrap());
    assert!(rule.iter().all(|cell| ["---", "---:"].contains(cell)));
    let lines: Vec<_> = lines.collect();
    assert_eq!(lines.len(), exported.len());
    for (line, row) in lines.iter().zip(&exported) {
        for (name, cell) in header.iter().zip(line) {
            let exact = &row[*name];
            assert!(exact == cell || (number(exact) - number(cell)).abs() <= 0.5e-4, "{name} {cell} {exact}");
        }
    }
    let scores: Vec<Value> = world
        .ok("score code+wiki --format jsonl --out scores.md")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((scores.len(), &scores[0]["weights"]["wiki"]), (2, &0.5.into()));
    assert!(world.read("scores.md").starts_with("| mixture | eval_set |"));
}

#[cfg(feature = "parquet")]
#[test]
fn a_parquet_table_has_the_numbers_of_the_csv() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;
    let world = World::trained();
    world.ok("score code wiki"); // so that both read the same stored scores
    world.ok("score code wiki --out scores.parquet");
    let csv = rows(&world.ok("score code wiki --format csv"));
    let reader = SerializedFileReader::new(std::fs::File::open(world.path("scores.parquet")).unwrap()).unwrap();
    let read: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    assert_eq!(read.len(), csv.len());
    for (read, csv) in read.iter().zip(&csv) {
        let mut columns = 0;
        for (name, field) in read.get_column_iter() {
            let cell = &csv[name];
            let is_same = match field {
                Field::Str(text) => text == cell,
                Field::Double(value) => *value == number(cell),
                Field::Long(value) => value.to_string() == *cell,
                Field::Bool(value) => value.to_string() == *cell,
                other => panic!("{name}: {other:?}"),
            };
            assert!(is_same, "{name}: {field:?} {cell}");
            columns += 1;
        }
        assert_eq!(columns, csv.len());
    }
}

#[test]
fn mixtures_and_losses_go_out_to_neighbours_and_come_back() {
    let world = World::trained();
    world.ok("rank --grid 0.25");
    let ranked = rows(&world.ok("rank --grid 0.25 --format csv"));
    for (neighbour, mixtures, losses) in [("olmix", "ratios.csv", "metrics.csv"), ("regmix", "mixture.csv", "loss.csv")]
    {
        world.ok(&format!("export {neighbour} --out {neighbour}"));
        let again = rows(&world.ok(&format!("rank --candidates {neighbour}/{mixtures} --format csv")));
        assert_eq!(again, ranked, "the same mixtures under the same names: {neighbour}");

        let truth = format!("--truth {neighbour}/{mixtures} {neighbour}/{losses}");
        let judged = rows(&world.ok(&format!("compare --format csv {truth}")));
        let line = judged.iter().find(|row| row["eval_set"] == "wiki-test" && row["size"].is_empty()).unwrap();
        assert_eq!((&*line["estimator"], &*line["n"]), ("merged", "15"));
        assert!((number(&line["pearson"]) - 1.0).abs() < 1e-12 && number(&line["mean_offset"]) == 0.0, "{line:?}");
        let judged = rows(
            &world.ok(&format!("compare --format csv {truth} --answers {neighbour}/{mixtures} {neighbour}/{losses}")),
        );
        assert!(judged.iter().any(|row| row["estimator"] == "table" && number(&row["mean_offset"]) == 0.0));
        world.refused(&format!("export {neighbour} --out {neighbour}"), 2, &["exists already"]);
    }
    let header = |name: &str| world.read(name).lines().next().unwrap().to_owned();
    assert_eq!(header("olmix/ratios.csv"), "run,name,index,code,math,wiki");
    assert_eq!(header("olmix/metrics.csv"), "run,name,index,code-test,wiki-test");
    assert_eq!(header("regmix/mixture.csv"), "index,train_code,train_math,train_wiki");
    assert_eq!(header("regmix/loss.csv"), "index,metric/code-test_val_loss,metric/wiki-test_val_loss");
    let one = rows(&world.ok("score --candidates regmix/mixture-3.yaml --format csv"));
    let third = rows(&world.read("olmix/ratios.csv"))[2]["name"].clone();
    assert!(one.iter().all(|row| row["mixture"] == third && row["cached"] == "true"), "{one:?}");
    world.refused("export olmix --estimator ensemble --out no", 2, &["nothing is stored of 'ensemble'"]);
}

#[test]
fn rows_are_joined_by_name_and_never_by_order() {
    let world = World::trained();
    world.ok("rank");
    world.write("w.csv", "index,train_code,train_math,train_wiki\n1,1,0,0\n2,0,0,1\n7,0,1,0\n9,0.5,0.501,0");
    let shuffled = "index,metric/wiki-test_val_loss,metric/other_val_loss\n7,3,1\n9,2.5,1\n2,1,1\n1,2,1\n";
    world.write("l.csv", shuffled);
    let ran = world.run("compare --truth w.csv l.csv --format csv");
    assert!(
        ran.stderr.contains("1 of 2 columns are no eval set") && ran.stderr.contains("weights of 1 of 4"),
        "{ran:?}"
    );
    let merged: BTreeMap<String, f64> = rows(&world.ok("rank --eval wiki-test --format csv"))
        .into_iter()
        .map(|row| (row["mixture"].clone(), number(&row["loss"])))
        .collect();
    let truth = [("code", 2.0), ("wiki", 1.0), ("math", 3.0)];
    let offset = truth.iter().map(|(name, loss)| merged[*name] - loss).sum::<f64>() / 3.0;
    let judged = rows(&ran.stdout);
    // 0.5 and 0.501 divided by their sum are no mixture that was ranked.
    assert_eq!(judged[0]["n"], "3");
    assert!((number(&judged[0]["mean_offset"]) - offset).abs() < 1e-12);

    let refused = |mixtures: &str, losses: &str, parts: &[&str]| {
        world.write("w.csv", mixtures);
        world.write("l.csv", losses);
        world.refused("compare --truth w.csv l.csv", 1, parts);
    };
    let good = "index,train_code,train_wiki\n1,0.5,0.5\n2,1,0\n";
    refused(&good.replace("train_wiki", "train_wikki"), shuffled, &["w.csv:2", "'wikki'", "did you mean 'wiki'?"]);
    refused(&good.replace("1,0\n", "1,0.006\n"), shuffled, &["w.csv:3", "sum to 1.006"]);
    refused(&good.replace("0.5,0.5", "1.5,-0.5"), shuffled, &["w.csv:2", "'wiki'"]);
    refused(&good.replace("0.5,0.5", "0.5,x"), shuffled, &["w.csv:2", "'train_wiki'", "'x'"]);
    refused(&good.replace("\n2,", "\n1,"), shuffled, &["line 3", "index '1' is given twice"]);
    refused(&good.replace("2,1,0", "2,1"), shuffled, &["w.csv:3", "expected 3 cells"]);
    refused(good, "index,wiki-tst\n1,2\n", &["no column is an eval set", "did you mean 'wiki-test'?"]);
    refused(good, "index,wiki-test\n5,2\n", &["no index of one table is in the other"]);
    refused(good, "loss,wiki-test\n5,2\n", &["expected a column 'run'"]);
    refused("a,b\n1,2\n", shuffled, &["no table of mixtures"]);
}

fn regmix(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/regmix").join(name)
}

#[test]
fn the_tables_of_regmix_are_read_as_they_were_published() {
    let weights = NumberTable::mixtures(&regmix("train_mixture_1m.csv")).unwrap().unwrap();
    let losses = NumberTable::read(&regmix("train_pile_loss_1m.csv")).unwrap();
    assert_eq!((weights.rows.len(), weights.columns.len(), losses.columns.len()), (512, 17, 13));
    assert_eq!((&*weights.columns[0], &*losses.columns[0]), ("the_pile_arxiv", "the_pile_arxiv"));
    let raw: Vec<BTreeMap<String, f64>> =
        csv::Reader::from_path(regmix("train_mixture_1m.csv")).unwrap().deserialize().map(Result::unwrap).collect();
    let sum = |row: &BTreeMap<String, f64>| {
        row.iter().filter(|(name, _)| *name != "index").map(|(_, weight)| weight).sum::<f64>()
    };
    assert_eq!(weights.renormalised, raw.iter().filter(|row| (sum(row) - 1.0).abs() > 1e-6).count());
    assert!(weights.renormalised > 0);
    for (row, raw) in weights.rows.iter().zip(&raw) {
        let got: f64 = row.values.iter().flatten().sum();
        assert!((got - 1.0).abs() < 1e-6);
        let name = format!("train_{}", weights.columns[3]);
        assert!((row.values[3].unwrap() - raw[&name] / sum(raw)).abs() < 1e-6);
    }
    let raw: Vec<BTreeMap<String, f64>> =
        csv::Reader::from_path(regmix("train_pile_loss_1m.csv")).unwrap().deserialize().map(Result::unwrap).collect();
    for (row, found) in weights.rows.iter().zip(weights.join(&losses, "tables").unwrap()) {
        let raw = raw.iter().find(|raw| raw["index"] == number(&row.names["index"])).unwrap();
        assert_eq!(found.unwrap().values[5].unwrap(), raw["metric/the_pile_github_val_loss"]);
    }
}
