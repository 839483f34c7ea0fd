//! Golden windows: how documents are cut and what they score, against lm-evaluation-harness's own functions
//! (`scripts/reference/rolling_windows.py`, `scripts/reference/rolling_score.py`).

mod common;

use common::{assert_within, golden, ids, number, relative};
use mixpool::eval::{EvalSet, Evaluator};
use mixpool::model::Layout;
use mixpool::text::rolling_windows;

#[test]
fn windows_are_those_of_the_harness() {
    let golden = golden("rolling_windows");
    let prefix = golden["prefix_token"].as_u64().unwrap() as u32;
    for case in golden["cases"].as_array().unwrap() {
        let (length, window) = (case["length"].as_u64().unwrap() as u32, case["window"].as_u64().unwrap() as usize);
        let document: Vec<u32> = (1..=length).collect();
        let windows = rolling_windows(7, &document, prefix, window);
        // The ids count up from the prefix 0, so the first id and the two lengths say all of a window.
        let summary: Vec<Vec<u32>> =
            windows.iter().map(|w| vec![w.input[0], w.input.len() as u32, w.targets.len() as u32]).collect();
        let expected: Vec<Vec<u32>> = case["windows"].as_array().unwrap().iter().map(ids).collect();
        assert_eq!(summary, expected, "window {window}, length {length}");
        for w in windows {
            let (first, end) = (w.input[0], w.input[0] + w.input.len() as u32);
            assert_eq!(w.document, 7);
            assert_eq!(w.input, (first..end).collect::<Vec<_>>());
            assert_eq!(w.targets, (end + 1 - w.targets.len() as u32..=end).collect::<Vec<_>>());
        }
    }
}

#[test]
fn an_empty_document_has_no_window() {
    assert!(rolling_windows(0, &[], 0, 7).is_empty());
}

#[test]
fn every_document_scores_as_in_the_harness() {
    let golden = golden("rolling_score");
    let documents = golden["documents"].as_array().unwrap();
    let window = golden["window"].as_u64().unwrap() as usize;
    let folder = tempfile::tempdir().unwrap();
    let tokens = common::token_file(folder.path(), &documents.iter().map(|d| ids(&d["tokens"])).collect::<Vec<_>>());
    let set = EvalSet::new("golden", &tokens, golden["prefix_token"].as_u64().unwrap() as u32, window).unwrap();
    assert_eq!(set.n_tokens(), golden["total_tokens"].as_u64().unwrap());

    let config = common::config(&golden);
    let layout = Layout::of(&config);
    let evaluator = Evaluator::new(&config, &layout, window).unwrap();
    let weights = common::weights(&layout);
    let copy = |parameters: &mut [f32]| {
        parameters.copy_from_slice(&weights);
        Ok(())
    };
    evaluator.set(copy).unwrap();
    let nll = evaluator.nll(&set).unwrap();
    assert_eq!(nll.len(), documents.len());
    let errors = nll.iter().zip(documents).map(|(got, document)| relative(*got, number(&document["nll"])));
    // An f32 forward pass: 1e-7 or so in a token's loss, less in a sum of many.
    assert_within(3e-7, errors, "score of a document");
    let total: f64 = nll.iter().sum();
    assert_within(1e-7, [relative(total, number(&golden["total_nll"]))], "score of all documents");
}
