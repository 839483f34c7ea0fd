//! Search: counts, sums, order, determinism and limits of the candidate generators, and candidates files.

use std::collections::BTreeSet;
use std::path::PathBuf;

use mixpool::error::Error;
use mixpool::search::{Weights, count_subsets, dirichlet, grid, read_candidates, subsets};

fn partitions(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("p{index:02}")).collect()
}

/// Candidates as comparable text, exact to the last bit.
fn written(candidates: &[Weights]) -> Vec<String> {
    candidates.iter().map(|weights| format!("{weights:?}")).collect()
}

fn usage(result: mixpool::error::Result<Vec<Weights>>) -> String {
    match result {
        Err(Error::Usage(message)) => message,
        other => panic!("expected a usage error, got {other:?}"),
    }
}

/// The binomial coefficient by Pascal's rule.
fn pascal(n: usize, k: usize) -> u128 {
    if k == 0 || k == n { 1 } else { pascal(n - 1, k - 1) + pascal(n - 1, k) }
}

#[test]
fn subsets_are_as_many_as_binomials_say_and_all_different() {
    for n in 1..=9 {
        for smallest in 1..=n {
            for largest in smallest..=n {
                let candidates = subsets(&partitions(n), smallest..=largest).unwrap();
                let expected: u128 = (smallest..=largest).map(|size| pascal(n, size)).sum();
                assert_eq!(candidates.len() as u128, expected);
                assert_eq!(count_subsets(n, smallest..=largest), expected);
                assert_eq!(written(&candidates).into_iter().collect::<BTreeSet<_>>().len(), candidates.len());
            }
        }
    }
}

#[test]
fn subsets_come_by_size_then_in_order_with_equal_weights() {
    let candidates = subsets(&partitions(4), 1..=4).unwrap();
    let keys: Vec<(usize, Vec<&String>)> = candidates.iter().map(|c| (c.len(), c.keys().collect())).collect();
    assert!(keys.is_sorted());
    assert!(candidates.iter().all(|c| c.values().all(|weight| *weight == 1.0 / c.len() as f64)));
}

#[test]
fn impossible_sizes_are_refused_with_the_possible_ones() {
    #[expect(clippy::reversed_empty_ranges, reason = "an inverted range is the case under test")]
    for sizes in [0..=2, 3..=2, 2..=5] {
        let message = usage(subsets(&partitions(4), sizes.clone()));
        assert!(message.contains("1..=4") && message.contains(&format!("{sizes:?}")), "{message}");
        assert!(message.contains("--subsets A..=B"), "{message}");
    }
    usage(subsets(&[], 1..=1));
}

#[test]
fn too_many_subsets_are_refused_before_any_is_made() {
    let message = usage(subsets(&partitions(20), 1..=20));
    assert!(message.contains("1048575") && message.contains("--subsets A..=B"), "{message}");
    usage(subsets(&partitions(500), 1..=500));
    assert_eq!(count_subsets(500, 0..=500), u128::MAX);
    assert_eq!(count_subsets(100, 0..=usize::MAX), 1 << 100);
}

/// The numerators k of weights k / `parts`, zeros restored.
fn numerators(candidate: &Weights, names: &[String], parts: usize) -> Vec<usize> {
    let numerator = |name| {
        let weight = candidate.get(name).copied().unwrap_or(0.0);
        let k = (weight * parts as f64).round();
        assert_eq!(weight, k / parts as f64, "a weight is the quotient of its numerator");
        k as usize
    };
    names.iter().map(numerator).collect()
}

#[test]
fn grid_points_are_the_whole_lattice_and_sum_to_one_as_rationals() {
    for (count, parts) in [(1, 7), (2, 1), (2, 10), (3, 3), (3, 10), (4, 6), (5, 4)] {
        let names = partitions(count);
        let candidates = grid(&names, 1.0 / parts as f64).unwrap();
        assert_eq!(candidates.len() as u128, pascal(parts + count - 1, count - 1));
        let points: Vec<_> = candidates.iter().map(|c| numerators(c, &names, parts)).collect();
        assert!(points.is_sorted_by(|a, b| a < b), "in order, none twice");
        assert!(points.iter().all(|point| point.iter().sum::<usize>() == parts));
        assert!(candidates.iter().all(|c| c.values().all(|weight| *weight > 0.0)));
    }
}

#[test]
fn grids_that_do_not_divide_one_or_grow_too_large_are_refused() {
    for step in [0.3, 0.0, -0.5, 2.0, 1.5, 0.11, f64::NAN, f64::INFINITY, 1e-320] {
        let message = usage(grid(&partitions(2), step));
        assert!(message.contains(&step.to_string()) && message.contains("0.25"), "{message}");
    }
    assert!(usage(grid(&partitions(8), 0.01)).contains("26075972546"));
    assert!(usage(grid(&partitions(2), 1e-8)).contains("100000001"));
    usage(grid(&[], 0.5));
}

#[test]
fn dirichlet_draws_repeat_for_a_seed_and_differ_between_seeds() {
    let names = partitions(3);
    let draw = |n, seed| written(&dirichlet(&names, n, seed, 0.7).unwrap());
    assert_eq!(draw(50, 1), draw(50, 1));
    assert_eq!(draw(50, 1)[..20], draw(20, 1), "fewer draws are the first of more");
    assert_ne!(draw(50, 1), draw(50, 2));
}

#[test]
fn dirichlet_moments_are_those_of_the_distribution() {
    let draws = 40_000;
    for (count, concentration) in [(2, 0.05), (3, 0.5), (3, 1.0), (4, 8.0), (2, 500.0)] {
        let candidates = dirichlet(&partitions(count), draws, 3, concentration).unwrap();
        let first: Vec<f64> = candidates.iter().map(|c| c.get("p00").copied().unwrap_or(0.0)).collect();
        let (k, n) = (count as f64, draws as f64);
        let mean = first.iter().sum::<f64>() / n;
        let variance = first.iter().map(|weight| (weight - mean).powi(2)).sum::<f64>() / n;
        let expected_variance = (1.0 / k) * (1.0 - 1.0 / k) / (k * concentration + 1.0);
        assert!((mean - 1.0 / k).abs() < 5.0 * (expected_variance / n).sqrt(), "mean {mean}");
        assert!((variance / expected_variance - 1.0).abs() < 0.05, "variance {variance}, not {expected_variance}");
    }
}

#[test]
fn dirichlet_weights_are_positive_and_sum_to_exactly_one_in_any_order() {
    for concentration in [1e-6, 0.01, 1.0, 100.0, 1e6] {
        for candidate in dirichlet(&partitions(9), 500, 11, concentration).unwrap() {
            assert!(candidate.values().all(|weight| *weight > 0.0 && *weight <= 1.0));
            assert_eq!(candidate.values().sum::<f64>(), 1.0);
            assert_eq!(candidate.values().rev().sum::<f64>(), 1.0);
        }
    }
}

#[test]
fn impossible_dirichlet_requests_are_refused() {
    for concentration in [0.0, -1.0, 1e7, f64::NAN, f64::INFINITY] {
        assert!(usage(dirichlet(&partitions(2), 1, 0, concentration)).contains(&concentration.to_string()));
    }
    assert!(usage(dirichlet(&partitions(2), 1_000_001, 0, 1.0)).contains("1000001"));
    usage(dirichlet(&[], 1, 0, 1.0));
}

/// Writes a candidates file and reads it.
fn read(content: impl AsRef<[u8]>) -> Result<Vec<(usize, String)>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("candidates");
    std::fs::write(&path, content).unwrap();
    read_candidates(&path).map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
}

fn numbered(candidates: &[(usize, &str)]) -> Vec<(usize, String)> {
    candidates.iter().map(|(line, mixture)| (*line, mixture.to_string())).collect()
}

#[test]
fn plain_candidates_keep_their_line_numbers() {
    let expected = numbered(&[(2, "code"), (4, "code=0.5,wiki=0.5")]);
    for text in ["# one\ncode\n\n  code=0.5,wiki=0.5", "\u{feff}#\r\n code\r\n \t\r\ncode=0.5,wiki=0.5\r\n"] {
        assert_eq!(read(text), Ok(expected.clone()));
    }
}

#[test]
fn csv_candidates_come_from_the_column_mixture() {
    let text = "# from a run\n\nid, mixture ,loss\n1,code,2.5\n# no\n\n2,\"code=0.5,wiki=0.5\",\n";
    let expected = numbered(&[(4, "code"), (7, "code=0.5,wiki=0.5")]);
    assert_eq!(read(text), Ok(expected.clone()));
    assert_eq!(read(text.replace('\n', "\r\n")), Ok(expected));
    assert_eq!(read("mixture\ncode\n"), Ok(numbered(&[(2, "code")])));
    assert_eq!(read("\"a,b\",mixture\nx,code\n"), Ok(numbered(&[(2, "code")])));
}

#[test]
fn unusable_candidates_files_say_what_is_wrong_and_where() {
    for (content, problem) in [
        (&b""[..], "FILE: holds no candidate"),
        (b"# nothing\n\n", "FILE: holds no candidate"),
        (b"mixture,loss\n", "FILE: holds no candidate"),
        (b"code\nw\xffki\n", "FILE: is not UTF-8 text (byte offset 6)"),
        (b"#\nmixture\ncode=0.5,wiki=0.5\n", "FILE:3: expected 1 fields as in the header, got 2; quote"),
        (b"id,mixture\n1,code\n2,\n", "FILE:3: the column 'mixture' is empty"),
        (b"id,mixture\n\"1\n2\",code\n", "FILE:2: the quoted field spans lines"),
    ] {
        let error = read(content).unwrap_err();
        assert!(error.starts_with(problem), "expected '{problem}', got '{error}'");
    }
    let missing = read_candidates(&PathBuf::from("/nowhere/candidates.csv")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read '/nowhere/candidates.csv': "), "{missing}");
}
