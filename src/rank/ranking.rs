//! Ranking: candidates in order of loss on one eval set, ties explicit.

use crate::eval::Score;

/// A candidate and its score.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// 1 for the best; equal losses share a rank.
    pub rank: usize,
    /// The mixture.
    pub mixture: String,
    /// Its score.
    pub score: Score,
}

/// Candidates on one eval set, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// Name of the eval set.
    pub eval_set: String,
    /// Best first; equal losses in order of the mixtures' names.
    pub entries: Vec<Entry>,
}

impl Ranking {
    /// Orders candidates by loss.
    ///
    /// # Examples
    /// ```
    /// use mixpool::{eval::Score, rank::Ranking};
    /// let score = |nll_sum| Score { nll_sum, n_tokens: 10, n_bytes: 40, n_docs: 1 };
    /// let ranking = Ranking::new("wiki", [("b".into(), score(30.0)), ("a".into(), score(20.0)), ("c".into(), score(30.0))]);
    /// let order: Vec<_> = ranking.entries.iter().map(|e| (e.rank, e.mixture.as_str())).collect();
    /// assert_eq!(order, [(1, "a"), (2, "b"), (2, "c")]);
    /// ```
    pub fn new(eval_set: &str, candidates: impl IntoIterator<Item = (String, Score)>) -> Self {
        let mut entries: Vec<Entry> =
            candidates.into_iter().map(|(mixture, score)| Entry { rank: 0, mixture, score }).collect();
        entries.sort_by(|a, b| a.score.loss().total_cmp(&b.score.loss()).then_with(|| a.mixture.cmp(&b.mixture)));
        for index in 0..entries.len() {
            let tied = index > 0 && entries[index - 1].score.loss() == entries[index].score.loss();
            entries[index].rank = if tied { entries[index - 1].rank } else { index + 1 };
        }
        Self { eval_set: eval_set.to_owned(), entries }
    }
}
