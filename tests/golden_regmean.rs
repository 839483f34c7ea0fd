//! Golden `RegMean`: Gram matrices and merges against `NumPy` on the inputs of linear layers in `transformers`
//! (`scripts/reference/regmean.py`).

mod common;

use common::{assert_within, bits, distance, golden, largest, norm, number, numbers, spread};
use mixpool::eval::{Evaluator, gram_layout};
use mixpool::merge::regression_mean;
use mixpool::model::{Checkpoint, Layout, ModelConfig, linear_layers, write_checkpoint, write_tensors};
use mixpool::text::Batch;
use serde_json::Value;
use tempfile::TempDir;

/// Experts and their Gram matrices.
struct Case {
    golden: Value,
    config: ModelConfig,
    layout: Layout,
    grams: Layout,
    experts: Vec<(Checkpoint, Checkpoint)>,
    _folder: TempDir,
}

impl Case {
    fn new() -> Self {
        let golden = golden("regmean");
        let config = common::config(&golden);
        let layout = Layout::of(&config);
        let grams = gram_layout(&config, &layout).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let count = |key: &str| golden[key].as_u64().unwrap() as usize;
        let (sequences, length, moved) = (count("sequences"), count("length"), number(&golden["move"]) as f32);
        let evaluator = Evaluator::new(&config, &layout, length).unwrap();
        let expert = |k: usize| {
            let mut values = common::weights(&layout);
            for p in layout.parameters() {
                let moved = spread(&format!("expert {k} {}", p.name), p.len(), moved);
                values[p.range()].iter_mut().zip(moved).for_each(|(value, moved)| *value += moved);
            }
            let path = folder.path().join(k.to_string());
            std::fs::create_dir(&path).unwrap();
            write_checkpoint(&path, &config, &layout, &values).unwrap();
            let copy = |out: &mut [f32]| {
                out.copy_from_slice(&values);
                Ok(())
            };
            evaluator.set(copy).unwrap();
            let inputs = common::tokens(10000 * k, sequences * length, config.vocab_size);
            let matrices = evaluator.grams(&Batch { targets: inputs.clone(), inputs }, length).unwrap();
            let file = path.join("grams.safetensors");
            write_tensors(&file, &grams, &matrices).unwrap();
            (Checkpoint::open(&path).unwrap(), Checkpoint::open_file(&file).unwrap())
        };
        let experts = (0..golden["weights"].as_array().unwrap().len()).map(expert).collect();
        Self { golden, config, layout, grams, experts, _folder: folder }
    }

    fn merge(&self, members: &[(f64, usize, usize)], scale: f64) -> Vec<f32> {
        let mut out = vec![0.0; self.layout.len()];
        let members: Vec<_> = members
            .iter()
            .map(|(weight, model, gram)| (*weight, &self.experts[*model].0, &self.experts[*gram].1))
            .collect();
        regression_mean(&mut out, &self.config, &self.layout, &members, scale).unwrap();
        out
    }
}

#[test]
fn gram_matrices_are_those_of_the_layers_inputs() {
    let case = Case::new();
    let values = case.experts[1].1.read(&case.grams).unwrap();
    for names in linear_layers(&case.config) {
        let own = &values[case.grams.parameter(&names[0]).unwrap().range()];
        for name in &names {
            let expected = numbers(&case.golden["grams"][name]);
            // Inputs of later layers have been through some twenty f32 roundings.
            assert_within(1e-6, [distance(&own[..8], &expected) / largest(&expected)], &format!("Gram of {name}"));
        }
    }
}

#[test]
fn merges_are_those_of_numpy() {
    let case = Case::new();
    let weights = numbers(&case.golden["weights"]);
    let members: Vec<_> = weights.iter().enumerate().map(|(k, weight)| (*weight, k, k)).collect();
    let merged = case.merge(&members, number(&case.golden["scale"]));
    let expected = case.golden["merged"].as_object().unwrap();
    assert_eq!(expected.len(), linear_layers(&case.config).concat().len());
    for (name, expected) in expected {
        let got = &merged[case.layout.parameter(name).unwrap().range()];
        let (head, tail) = (numbers(&expected["head"]), numbers(&expected["tail"]));
        let errors = [
            common::relative(norm(got), number(&expected["norm"])),
            distance(&got[..8], &head) / largest(&head),
            distance(&got[got.len() - 8..], &tail) / largest(&tail),
        ];
        assert_within(1e-5, errors, &format!("merge of {name}"));
    }
}

#[test]
fn one_expert_and_equal_experts_come_out_unchanged() {
    let case = Case::new();
    let expert = bits(&case.experts[1].0.read(&case.layout).unwrap());
    for scale in [0.9, 1.0] {
        assert!(bits(&case.merge(&[(1.0, 1, 1)], scale)) == expert, "one expert");
        assert!(bits(&case.merge(&[(0.0, 0, 0), (1.0, 1, 1), (0.0, 2, 2)], scale)) == expert, "a weight of one");
        assert!(bits(&case.merge(&[(0.25, 1, 0), (0.75, 1, 2)], scale)) == expert, "equal experts, other inputs");
    }
}

#[test]
fn diagonal_gram_matrices_weigh_every_column_by_itself() {
    let case = Case::new();
    let merged = case.merge(&[(0.5, 0, 0), (0.5, 2, 2)], 0.0);
    let name = "model.layers.1.mlp.up_proj.weight";
    let parameter = case.layout.parameter(name).unwrap();
    let width = parameter.shape[1];
    let read = |k: usize| {
        let (model, grams) = &case.experts[k];
        let gram = case.grams.parameter("model.layers.1.mlp.gate_proj.weight").unwrap().range();
        (model.read(&case.layout).unwrap()[parameter.range()].to_vec(), grams.read(&case.grams).unwrap()[gram].to_vec())
    };
    let ((a, ga), (b, gb)) = (read(0), read(2));
    let expected: Vec<f64> = (0..parameter.len())
        .map(|i| {
            let diagonal = i % width * (width + 1);
            let (x, y) = (f64::from(ga[diagonal]), f64::from(gb[diagonal]));
            (x * f64::from(a[i]) + y * f64::from(b[i])) / (x + y)
        })
        .collect();
    assert_within(1e-7, [distance(&merged[parameter.range()], &expected)], "columns");
}
