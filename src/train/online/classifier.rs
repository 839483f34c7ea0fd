//! Classifier: which domain a piece of the target looks like, for importance sampling.
//!
//! Importance sampling trains on domains as often as the target's text belongs to them. Where domains are clusters of
//! embeddings, a text belongs to the nearest centre; ours are named sets of text, so a sequence belongs to the domain under
//! whose unigram distribution (add-one smoothing) it is likeliest. As with clusters, each sequence counts for one domain.

/// The share of `target`'s sequences of at most `length` tokens that belong to each domain; shares sum to 1.
///
/// A sequence belongs to the domain of the largest Σ ln p(token); the first of them on a tie. A unigram model has one
/// probability for each of `vocabulary` ids.
///
/// # Panics
/// When an id reaches beyond the vocabulary.
///
/// # Examples
/// ```
/// use mixpool::train::classify;
/// let (code, prose) = ([1, 1, 2, 1].as_slice(), [3, 4, 3, 4].as_slice());
/// assert_eq!(classify(&[code, prose], &[3, 4, 3, 3, 1, 1, 4, 3], 2, 5), [0.25, 0.75]);
/// ```
pub fn classify(domains: &[&[u32]], target: &[u32], length: usize, vocabulary: usize) -> Vec<f64> {
    let models: Vec<Vec<f64>> = domains.iter().map(|tokens| log_unigram(tokens, vocabulary)).collect();
    let mut counts = vec![0u64; domains.len()];
    for sequence in target.chunks(length.max(1)) {
        let score = |model: &Vec<f64>| sequence.iter().map(|id| model[*id as usize]).sum::<f64>();
        let scores: Vec<f64> = models.iter().map(score).collect();
        let best = (1..scores.len()).fold(0, |best, index| if scores[index] > scores[best] { index } else { best });
        counts[best] += 1;
    }
    let total: u64 = counts.iter().sum();
    counts.iter().map(|count| *count as f64 / total.max(1) as f64).collect()
}

/// ln p of every id, each counted once more than it occurs.
fn log_unigram(tokens: &[u32], vocabulary: usize) -> Vec<f64> {
    let mut counts = vec![1u64; vocabulary];
    tokens.iter().for_each(|id| counts[*id as usize] += 1);
    let total = (tokens.len() + vocabulary) as f64;
    counts.iter().map(|count| (*count as f64 / total).ln()).collect()
}
