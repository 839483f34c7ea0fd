//! Ranking: candidates in order of what is predicted of them on one eval set, ties explicit.

/// A candidate and its prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// 1 for the best; equal predictions share a rank.
    pub rank: usize,
    /// The mixture.
    pub mixture: String,
    /// What was predicted: nats per token, or a number that only orders.
    pub prediction: f64,
}

/// Candidates on one eval set, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// Name of the eval set.
    pub eval_set: String,
    /// Best first; equal predictions in order of the mixtures' names.
    pub entries: Vec<Entry>,
}

impl Ranking {
    /// Orders candidates by prediction, the smallest first.
    ///
    /// # Examples
    /// ```
    /// use mixpool::rank::Ranking;
    /// let ranking = Ranking::new("wiki", [("b".into(), 3.0), ("a".into(), 2.0), ("c".into(), 3.0)]);
    /// let order: Vec<_> = ranking.entries.iter().map(|e| (e.rank, e.mixture.as_str())).collect();
    /// assert_eq!(order, [(1, "a"), (2, "b"), (2, "c")]);
    /// ```
    pub fn new(eval_set: &str, candidates: impl IntoIterator<Item = (String, f64)>) -> Self {
        let entry = |(mixture, prediction)| Entry { rank: 0, mixture, prediction };
        let mut entries: Vec<Entry> = candidates.into_iter().map(entry).collect();
        entries.sort_by(|a, b| a.prediction.total_cmp(&b.prediction).then_with(|| a.mixture.cmp(&b.mixture)));
        for index in 0..entries.len() {
            let tied = index > 0 && entries[index - 1].prediction == entries[index].prediction;
            entries[index].rank = if tied { entries[index - 1].rank } else { index + 1 };
        }
        Self { eval_set: eval_set.to_owned(), entries }
    }
}
