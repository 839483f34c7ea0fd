//! Selection: which of many parts to keep, by any oracle that scores sets of them; smaller is better.
//!
//! The two ways of Li et al. 2024 (arXiv 2409.19458): forward steps ([`forward`]), and the mean score of random subsets that
//! hold a part ([`inclusion`]), which for subsets of half the parts is, up to a constant, a Banzhaf value.

use super::{Combinations, binomial};
use crate::error::{Error, Result};
use crate::resample::{interval, rows};
use crate::rng::Stream;
use std::collections::BTreeSet;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2000;

/// One step of [`forward`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The part that joined.
    pub part: usize,
    /// The score of all that had joined then.
    pub score: f64,
}

/// Adds, from nothing, the part that lowers the score most, until none lowers it.
///
/// `score` is asked about every way to go on at once, each a set of parts in ascending order. The first of equal parts is
/// taken.
///
/// # Errors
/// Those of `score`.
///
/// # Examples
/// ```
/// use mixpool::search::forward;
/// let worth = [0.5, -2.0, -1.0];
/// let steps = forward(3, |sets| Ok(sets.iter().map(|set| set.iter().map(|part| worth[*part]).sum()).collect()))?;
/// assert_eq!(steps.iter().map(|step| step.part).collect::<Vec<_>>(), [1, 2]);
/// # Ok::<(), mixpool::Error>(())
/// ```
pub fn forward(parts: usize, mut score: impl FnMut(&[Vec<usize>]) -> Result<Vec<f64>>) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut chosen = BTreeSet::new();
    while chosen.len() < parts {
        let free: Vec<usize> = (0..parts).filter(|part| !chosen.contains(part)).collect();
        let with = |part: &usize| chosen.iter().copied().chain([*part]).collect::<BTreeSet<_>>().into_iter().collect();
        let scores = score(&free.iter().map(with).collect::<Vec<_>>())?;
        let mut tried = free.iter().zip(scores).map(|(part, score)| Step { part: *part, score });
        let Some(first) = tried.next() else { break };
        let best = tried.fold(first, |best, step| if step.score < best.score { step } else { best });
        // A score that is not a number never lowers.
        let lowers = steps.last().is_none_or(|last| best.score < last.score);
        if !lowers {
            break;
        }
        chosen.insert(best.part);
        steps.push(best);
    }
    Ok(steps)
}

/// `count` different random subsets of `size` of the parts, or every one when there are no more.
///
/// # Errors
/// [`Error::Usage`] when the size lies outside 1 to the number of parts, or `count` is 0.
pub fn random_subsets(parts: usize, size: usize, count: usize, seed: u64) -> Result<Vec<Vec<usize>>> {
    if size == 0 || size > parts || count == 0 {
        return Err(Error::Usage(format!("expected at least one subset of 1 to {parts} parts, got {count} of {size}")));
    }
    if binomial(parts, size) <= count as u128 {
        return Ok(Combinations::new(parts, size).collect());
    }
    let mut stream = Stream::new(seed, "search random subsets");
    let (mut seen, mut subsets) = (BTreeSet::new(), Vec::new());
    while subsets.len() < count {
        let mut subset: Vec<usize> = stream.permutation(parts)[..size].iter().map(|part| *part as usize).collect();
        subset.sort_unstable();
        if seen.insert(subset.clone()) {
            subsets.push(subset);
        }
    }
    Ok(subsets)
}

/// What sets that hold a part score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Inclusion {
    /// T, the mean score of the sets that hold it.
    pub mean: f64,
    /// The ends of a bootstrap interval over the sets.
    pub interval: (f64, f64),
}

/// T of every part, with the interval of probability `level` that resampling the sets gives; none for a part in no set.
pub fn inclusion(parts: usize, sets: &[Vec<usize>], scores: &[f64], level: f64) -> Vec<Option<Inclusion>> {
    let means = |chosen: &mut dyn Iterator<Item = usize>| -> Vec<Option<f64>> {
        let mut sums = vec![(0.0, 0usize); parts];
        for index in chosen {
            for part in &sets[index] {
                sums[*part].0 += scores[index];
                sums[*part].1 += 1;
            }
        }
        sums.into_iter().map(|(sum, n)| (n > 0).then(|| sum / n as f64)).collect()
    };
    let mut stream = Stream::new(0, "search inclusion");
    let mut draws = vec![Vec::with_capacity(RESAMPLES); parts];
    for _ in 0..RESAMPLES {
        let resampled = means(&mut rows(&mut stream, sets.len()).into_iter());
        draws.iter_mut().zip(resampled).for_each(|(draws, mean)| draws.extend(mean));
    }
    let with_interval =
        |(mean, draws): (Option<f64>, Vec<f64>)| Some(Inclusion { mean: mean?, interval: interval(draws, level)? });
    means(&mut (0..sets.len())).into_iter().zip(draws).map(with_interval).collect()
}

/// The parts with the lowest scores, a `share` of all of them and at least one, in ascending order; NaN is never kept
/// before a number, and the first of equal parts is.
pub fn keep(scores: &[f64], share: f64) -> Vec<usize> {
    let count = ((share * scores.len() as f64 + 1e-9) as usize).clamp(1, scores.len().max(1));
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    order.truncate(count);
    order.sort_unstable();
    order
}
