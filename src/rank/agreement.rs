//! Agreement: how closely two scorings of the same candidates match.
//!
//! A scoring gives every candidate one number, and the smallest is best (a perplexity, a loss). Every statistic is
//! `None` where it is undefined: slices of different lengths, too few candidates, a value that is not finite, and for
//! a correlation also a slice whose values are all equal.

use serde::Serialize;

/// The agreement of predicted scores with true ones, one statistic a field.
///
/// # Examples
/// ```
/// use mixpool::rank::agreement::Agreement;
///
/// let agreement = Agreement::between(&[3.1, 2.0, 2.6, 4.0], &[30.0, 20.0, 31.0, 40.0]);
/// assert_eq!(agreement.kendall, Some(2.0 / 3.0)); // one of the six pairs is the wrong way round
/// assert_eq!(agreement.regret, Some(0.0)); // the best prediction is the best candidate
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Agreement {
    /// How many candidates were compared.
    pub n: usize,
    /// Linear correlation of the scores, in [-1, 1]; see [`pearson`].
    pub pearson: Option<f64>,
    /// Linear correlation of the ranks, in [-1, 1]; see [`spearman`].
    pub spearman: Option<f64>,
    /// Kendall's tau-b, in [-1, 1]; see [`kendall_tau_b`].
    pub kendall: Option<f64>,
    /// Fraction of candidate pairs put in the right order, in [0, 1]; see [`decision_accuracy`].
    pub decision_accuracy: Option<f64>,
    /// Fraction of the `top_k` best predictions among the `top_k` best candidates, in [0, 1]; see [`top_k_overlap`].
    pub top_overlap: Option<f64>,
    /// How many candidates `top_overlap` looks at: a quarter of them (halves rounded up), at least one.
    pub top_k: usize,
    /// Score given away by trusting the best prediction, in units of the true score; see [`regret`].
    pub regret: Option<f64>,
}

impl Agreement {
    /// Compares predicted scores with the true scores of the same candidates in the same order.
    pub fn between(predicted: &[f64], truth: &[f64]) -> Self {
        let n = truth.len();
        let top_k = ((n + 2) / 4).max(1);
        let pairs = Pairs::count(predicted, truth);
        Self {
            n,
            pearson: pearson(predicted, truth),
            spearman: spearman(predicted, truth),
            kendall: pairs.as_ref().and_then(Pairs::tau_b),
            decision_accuracy: pairs.as_ref().and_then(Pairs::right_of_decided),
            top_overlap: top_k_overlap(predicted, truth, top_k),
            top_k,
            regret: regret(predicted, truth),
        }
    }
}

/// Ranks from 1 (smallest) to n; equal values share the mean of the ranks they cover. NaN ranks by its sign bit.
///
/// # Examples
/// ```
/// assert_eq!(mixpool::rank::agreement::average_ranks(&[10.0, 30.0, 10.0, 20.0]), [1.5, 4.0, 1.5, 3.0]);
/// ```
pub fn average_ranks(x: &[f64]) -> Vec<f64> {
    let mut ranks = vec![0.0; x.len()];
    let mut ranked = 0;
    for tied in ascending(x).chunk_by(|&a, &b| x[a] == x[b]) {
        let rank = ranked as f64 + (tied.len() + 1) as f64 / 2.0;
        tied.iter().for_each(|&index| ranks[index] = rank);
        ranked += tied.len();
    }
    ranks
}

/// Pearson's linear correlation coefficient, in [-1, 1].
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    if !comparable(x, y) || is_constant(x) || is_constant(y) {
        return None;
    }
    let (x, y) = (centred(x), centred(y));
    let r = dot(&x, &y) / (dot(&x, &x) * dot(&y, &y)).sqrt();
    r.is_finite().then(|| r.clamp(-1.0, 1.0))
}

/// Spearman's rank correlation coefficient, in [-1, 1]: Pearson's over average ranks.
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    if comparable(x, y) { pearson(&average_ranks(x), &average_ranks(y)) } else { None }
}

/// Kendall's tau-b, in [-1, 1]: concordant less discordant pairs, over the geometric mean of the pairs untied in each.
pub fn kendall_tau_b(x: &[f64], y: &[f64]) -> Option<f64> {
    Pairs::count(x, y)?.tau_b()
}

/// The fraction, in [0, 1], of the pairs with different true scores whose order the prediction gets right.
///
/// A pair tied in `predicted` alone counts one half, as a coin toss would; a pair tied in `truth` is skipped.
/// `None` also when no pair is left.
pub fn decision_accuracy(predicted: &[f64], truth: &[f64]) -> Option<f64> {
    Pairs::count(predicted, truth)?.right_of_decided()
}

/// The fraction, in [0, 1], of the `k` best predictions that are among the `k` truly best candidates.
///
/// The smallest score is best, and of equal ones the first. `None` also when `k` is 0 or more than the candidates.
pub fn top_k_overlap(predicted: &[f64], truth: &[f64], k: usize) -> Option<f64> {
    if !same_finite_candidates(predicted, truth) || k == 0 || k > truth.len() {
        return None;
    }
    let mut is_best = vec![false; truth.len()];
    ascending(truth)[..k].iter().for_each(|&index| is_best[index] = true);
    let shared = ascending(predicted)[..k].iter().filter(|&&index| is_best[index]).count();
    Some(shared as f64 / k as f64)
}

/// How much worse (at least 0, in units of the true score) the best prediction is in truth than the best candidate.
///
/// The smallest score is best, and of equal predictions the first.
pub fn regret(predicted: &[f64], truth: &[f64]) -> Option<f64> {
    if !same_finite_candidates(predicted, truth) {
        return None;
    }
    let chosen = *ascending(predicted).first()?;
    let best = *ascending(truth).first()?;
    Some(truth[chosen] - truth[best])
}

/// The pairs of candidates by how two scorings order them; pairs tied in both are in no count.
struct Pairs {
    concordant: u64,
    discordant: u64,
    tied_in_x_only: u64,
    tied_in_y_only: u64,
}

impl Pairs {
    /// Counts in O(n log n) as Knight (1966) does: sorted by x, the pairs a merge sort by y exchanges are discordant.
    fn count(x: &[f64], y: &[f64]) -> Option<Self> {
        if !comparable(x, y) {
            return None;
        }
        let mut points: Vec<(f64, f64)> = x.iter().copied().zip(y.iter().copied()).collect();
        points.sort_unstable_by(|a, b| ordering(a.0, b.0).then_with(|| ordering(a.1, b.1)));
        let tied_in_x = pairs_within(&points, |a, b| a.0 == b.0);
        let tied_in_both = pairs_within(&points, |a, b| a == b);

        let mut y: Vec<f64> = points.into_iter().map(|point| point.1).collect();
        let discordant = sort_counting_exchanges(&mut y, &mut vec![0.0; x.len()]);
        let tied_in_y = pairs_within(&y, |a, b| a == b);

        let tied = tied_in_x + tied_in_y - tied_in_both;
        Some(Self {
            concordant: pairs_of(x.len()) - tied - discordant,
            discordant,
            tied_in_x_only: tied_in_x - tied_in_both,
            tied_in_y_only: tied_in_y - tied_in_both,
        })
    }

    /// See [`kendall_tau_b`].
    fn tau_b(&self) -> Option<f64> {
        let ordered = self.concordant + self.discordant;
        let untied_in_x = (ordered + self.tied_in_y_only) as f64;
        let untied_in_y = (ordered + self.tied_in_x_only) as f64;
        let excess = self.concordant as f64 - self.discordant as f64;
        (untied_in_x > 0.0 && untied_in_y > 0.0).then(|| excess / (untied_in_x * untied_in_y).sqrt())
    }

    /// See [`decision_accuracy`].
    fn right_of_decided(&self) -> Option<f64> {
        let decided = self.concordant + self.discordant + self.tied_in_x_only;
        let right = self.concordant as f64 + self.tied_in_x_only as f64 / 2.0;
        (decided > 0).then(|| right / decided as f64)
    }
}

/// Sorts ascending and returns how many pairs stood the wrong way round; `buffer` is as long as `values`.
fn sort_counting_exchanges(values: &mut [f64], buffer: &mut [f64]) -> u64 {
    let middle = values.len() / 2;
    if middle == 0 {
        return 0;
    }
    let mut exchanges = sort_counting_exchanges(&mut values[..middle], &mut buffer[..middle])
        + sort_counting_exchanges(&mut values[middle..], &mut buffer[middle..]);
    let (mut left, mut right) = (0, middle);
    for slot in buffer.iter_mut() {
        if left < middle && (right == values.len() || values[left] <= values[right]) {
            *slot = values[left];
            left += 1;
        } else {
            *slot = values[right];
            right += 1;
            exchanges += (middle - left) as u64;
        }
    }
    values.copy_from_slice(buffer);
    exchanges
}

/// How many pairs lie within the runs of equal neighbours.
fn pairs_within<T>(sorted: &[T], equal: impl FnMut(&T, &T) -> bool) -> u64 {
    sorted.chunk_by(equal).map(|run| pairs_of(run.len())).sum()
}

fn pairs_of(n: usize) -> u64 {
    let n = n as u64;
    n * n.saturating_sub(1) / 2
}

/// The indices of `x` from its smallest value to its largest, equal values in order of index.
fn ascending(x: &[f64]) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..x.len()).collect();
    indices.sort_by(|&a, &b| ordering(x[a], x[b]));
    indices
}

/// A total order in which -0 equals +0 (adding +0 turns the one into the other).
fn ordering(a: f64, b: f64) -> std::cmp::Ordering {
    (a + 0.0).total_cmp(&(b + 0.0))
}

fn comparable(x: &[f64], y: &[f64]) -> bool {
    x.len() >= 2 && same_finite_candidates(x, y)
}

fn same_finite_candidates(x: &[f64], y: &[f64]) -> bool {
    x.len() == y.len() && x.iter().chain(y).all(|value| value.is_finite())
}

fn is_constant(x: &[f64]) -> bool {
    x.iter().all(|value| *value == x[0])
}

/// Deviations from the mean as fractions of the largest one, so that no square overflows or vanishes.
///
/// The mean is taken off twice: the second time removes the rounding error of the first, which a large common offset
/// would otherwise leave in every deviation.
fn centred(x: &[f64]) -> Vec<f64> {
    let first_mean = mean(x);
    let largest = x.iter().map(|value| (value - first_mean).abs()).fold(0.0, f64::max);
    let fractions: Vec<f64> = x.iter().map(|value| (value - first_mean) / largest).collect();
    let second_mean = mean(&fractions);
    fractions.iter().map(|value| value - second_mean).collect()
}

fn mean(x: &[f64]) -> f64 {
    compensated_sum(x.iter().copied()) / x.len() as f64
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    compensated_sum(x.iter().zip(y).map(|(x, y)| x * y))
}

/// Neumaier's sum: the part each addition rounds away is added up on the side.
fn compensated_sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0_f64, 0.0);
    for value in values {
        let next = sum + value;
        let (large, small) = if sum.abs() >= value.abs() { (sum, value) } else { (value, sum) };
        lost += (large - next) + small;
        sum = next;
    }
    sum + lost
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: Option<f64>, expected: f64) -> bool {
        got.is_some_and(|got| (got - expected).abs() <= 1e-12)
    }

    #[test]
    fn zero_ties_with_minus_zero() {
        assert_eq!(average_ranks(&[0.0, -0.0, 1.0]), [1.5, 1.5, 3.0]);
        assert_eq!(decision_accuracy(&[0.0, -0.0], &[1.0, 2.0]), Some(0.5));
        assert_eq!(top_k_overlap(&[0.0, -0.0], &[1.0, 2.0], 1), Some(1.0));
    }

    #[test]
    fn pearson_keeps_its_precision_under_offsets_and_extreme_scales() {
        let x = [1.0, 2.0, 4.0, 3.0];
        let y = [1.0, 3.0, 2.0, 5.0];
        let expected = 2.5 / (5.0_f64 * 8.75).sqrt();
        assert!(close(pearson(&x, &y), expected));
        for scale in [1e-320, 1e-200, 1e200, 1e307] {
            let scaled = x.map(|value| value * scale);
            // A subnormal holds so few bits that the scaled values are themselves inexact.
            let tolerance = if scale < 1e-300 { 1e-3 } else { 1e-12 };
            assert!((pearson(&scaled, &y).unwrap() - expected).abs() <= tolerance, "scale {scale}");
        }
        let offset = x.map(|value| value + (1_u64 << 50) as f64);
        assert!(close(pearson(&offset, &y), expected));
    }

    #[test]
    fn statistics_are_none_where_undefined() {
        let (constant, varied) = ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]);
        for correlation in [pearson, spearman, kendall_tau_b] {
            assert_eq!(correlation(&constant, &varied), None);
            assert_eq!(correlation(&varied, &constant), None);
        }
        assert_eq!(decision_accuracy(&constant, &varied), Some(0.5));
        assert_eq!(decision_accuracy(&varied, &constant), None);
        for statistic in [pearson, spearman, kendall_tau_b, decision_accuracy, regret] {
            assert_eq!(statistic(&[], &[]), None);
            assert_eq!(statistic(&varied, &varied[..2]), None);
            assert_eq!(statistic(&[1.0, f64::NAN, 3.0], &varied), None);
            assert_eq!(statistic(&varied, &[1.0, f64::INFINITY, 3.0]), None);
        }
        assert_eq!([0, 4].map(|k| top_k_overlap(&varied, &varied, k)), [None, None]);
    }

    #[test]
    fn one_candidate_has_an_overlap_and_a_regret_but_no_correlation() {
        let agreement = Agreement::between(&[1.0], &[2.0]);
        assert_eq!((agreement.top_overlap, agreement.regret), (Some(1.0), Some(0.0)));
        assert_eq!((agreement.pearson, agreement.spearman, agreement.kendall), (None, None, None));
        assert_eq!(agreement.decision_accuracy, None);
    }

    #[test]
    fn ties_in_a_choice_go_to_the_first_candidate() {
        assert_eq!(regret(&[1.0, 1.0, 2.0], &[9.0, 7.0, 8.0]), Some(2.0));
        assert_eq!(top_k_overlap(&[1.0, 1.0, 2.0], &[9.0, 7.0, 8.0], 2), Some(0.5));
    }

    #[test]
    fn top_k_is_a_quarter_rounded_and_at_least_one() {
        let top_k = |n: usize| Agreement::between(&vec![0.0; n], &vec![0.0; n]).top_k;
        assert_eq!([0, 1, 4, 5, 6, 9, 10, 100].map(top_k), [1, 1, 1, 1, 2, 2, 3, 25]);
    }
}
