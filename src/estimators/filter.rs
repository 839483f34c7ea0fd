//! Filter: the documents of a partition, ordered by how much they should help some eval sets.

use super::{Cost, Question, Spec, less};
use crate::error::{Error, Result};
use crate::rng::Stream;

/// How documents are scored.
#[derive(Clone)]
pub enum Filter {
    /// By their influence (`less` with its options); with several eval sets by the largest.
    Less(Spec),
    /// At random, by a seed: what any other method must beat.
    Random(u64),
}

/// Scores of a partition's documents; larger is better.
pub struct DocumentScores {
    /// `[documents][eval sets]`; none for an empty document, and no eval set at random.
    pub influences: Vec<Option<Vec<f64>>>,
    /// What decides; none for an empty document.
    pub scores: Vec<Option<f64>>,
    /// What it took.
    pub cost: Cost,
}

impl Filter {
    /// Reads `less`, `less:dim=8192`, `random` or `random:seed=3`.
    ///
    /// # Errors
    /// [`Error::Usage`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let seed = text.strip_prefix("random").map(|rest| rest.strip_prefix(":seed=").unwrap_or(rest));
        let refuse = || Error::Usage(format!("'{text}' filters no documents (known: less, random, random:seed=N)"));
        match seed {
            Some("") => Ok(Self::Random(0)),
            Some(seed) => seed.parse().map(Self::Random).map_err(|_| refuse()),
            None if text.split(':').next() == Some("less") => Spec::parse(text).map(Self::Less),
            None => Err(refuse()),
        }
    }

    /// Scores every document of a partition for the eval sets of the question.
    ///
    /// # Errors
    /// Those of the method; [`Error::Usage`] when the partition is unknown.
    pub fn scores(&self, question: &Question<'_>, partition: &str) -> Result<DocumentScores> {
        let (influences, cost) = match self {
            Self::Less(spec) => less::documents(question, &spec.options, partition)?,
            Self::Random(seed) => {
                let partition = question.pool.partition(partition)?;
                let hash = partition.text()?;
                let tokens = question.pool.tokens(hash)?;
                let mut stream = Stream::new(*seed, &format!("filter {hash}"));
                let draw = |n_tokens: u64| {
                    let drawn = stream.uniform();
                    (n_tokens > 0).then(|| vec![drawn])
                };
                (tokens.documents().iter().map(|document| document.n_tokens).map(draw).collect(), Cost::default())
            }
        };
        let largest =
            |of: &Option<Vec<f64>>| of.as_ref().map(|of| of.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        let scores = influences.iter().map(largest).collect();
        Ok(DocumentScores { influences, scores, cost })
    }
}

impl DocumentScores {
    /// The documents with the highest scores, a share of those that are not empty, at least one; in their order. Of equal
    /// ones the first are taken.
    pub fn best(&self, share: f64) -> Vec<usize> {
        let mut order: Vec<(f64, usize)> =
            self.scores.iter().enumerate().filter_map(|(index, score)| Some(((*score)?, index))).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        // A product such as 0.2 · 15 may be a little more than the whole number it stands for.
        let n = (share * order.len() as f64 - 1e-9).ceil().max(1.0) as usize;
        let mut best: Vec<usize> = order.into_iter().take(n).map(|(_, index)| index).collect();
        best.sort_unstable();
        best
    }
}
