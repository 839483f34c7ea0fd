//! Score: a summed negative log-likelihood with its token, byte and document counts, and the units read from it.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How well a model predicts an eval set. Everything else is derived from these sums.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Score {
    /// Σ −ln p over all predicted tokens, in nats.
    pub nll_sum: f64,
    /// Predicted tokens.
    pub n_tokens: u64,
    /// UTF-8 bytes of the documents.
    pub n_bytes: u64,
    /// Documents, those without a token included.
    pub n_docs: u64,
}

impl Score {
    /// Adds up per-document sums, in their order.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a document's sum is NaN or infinite: such a model is never ranked.
    pub fn from_documents(nll: &[f64], n_tokens: u64, n_bytes: u64, name: &str) -> Result<Self> {
        if let Some(index) = nll.iter().position(|nll| !nll.is_finite()) {
            let what = format!("log-likelihood {}", -nll[index]);
            return Err(Error::NotFinite { what, place: format!("document {} of {name}", index + 1) });
        }
        Ok(Self { nll_sum: nll.iter().sum(), n_tokens, n_bytes, n_docs: nll.len() as u64 })
    }

    /// Nats per predicted token.
    pub fn loss(&self) -> f64 {
        self.nll_sum / self.n_tokens as f64
    }

    /// e to the loss: perplexity per token of this tokenizer.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Bits per byte of text; comparable between tokenizers.
    pub fn bits_per_byte(&self) -> f64 {
        self.nll_sum / (self.n_bytes as f64 * std::f64::consts::LN_2)
    }
}
