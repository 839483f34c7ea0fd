//! Evaluator: parameters and an eval set to a log-likelihood per document, the same bytes for any number of threads.

use crate::error::{Error, Result};
use crate::kernels::{Compute, Exec, Later, rewrite, weighted_sums_on_device};
use crate::model::{Layout, ModelConfig, Sequences, Transformer};
use crate::text::{TokenFile, Window, rolling_windows};
use candle_core::Tensor;
use rayon::prelude::*;

/// Input ids that go through the model together, at least: short windows share a pass.
pub(super) const PACK: usize = 512;

/// Packs that go through a model together on a device unless it is told otherwise: about 16 Ki ids.
const TOGETHER: usize = 32;

/// Held-out documents, cut into windows and packed for scoring.
pub struct EvalSet {
    packs: Vec<Vec<Window>>,
    n_docs: usize,
    n_tokens: u64,
    n_bytes: u64,
    longest: usize,
}

impl EvalSet {
    /// Cuts every document into rolling windows of `length` predictions after `prefix` (see [`rolling_windows`]).
    ///
    /// Windows are packed in document order into passes of about 512 ids. The packing depends on the eval set alone, so
    /// scores do not depend on how many passes run side by side.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no token to predict.
    pub fn new(name: &str, tokens: &TokenFile, prefix: u32, length: usize) -> Result<Self> {
        let manifest = tokens.manifest();
        if manifest.n_tokens == 0 {
            return Err(Error::input(format!("eval set '{name}'"), "no token to score; every document is empty"));
        }
        let mut packs: Vec<Vec<Window>> = Vec::new();
        let mut room = 0;
        for document in 0..tokens.documents().len() {
            for window in rolling_windows(document, &tokens.document(document), prefix, length) {
                if packs.is_empty() || window.input.len() > room {
                    packs.push(Vec::new());
                    room = PACK.max(length);
                }
                room -= window.input.len();
                packs.last_mut().into_iter().for_each(|pack| pack.push(window.clone()));
            }
        }
        let longest = packs.iter().flatten().map(|window| window.input.len()).max().unwrap_or(0);
        let n_docs = tokens.documents().len();
        Ok(Self { packs, n_docs, n_tokens: manifest.n_tokens, n_bytes: manifest.n_bytes, longest })
    }

    /// Predicted tokens.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// UTF-8 bytes.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// The sums by document of values of every predicted token, in f64, token by token in document order.
    pub fn by_document(&self, values: &[f64]) -> Vec<f64> {
        let mut documents = vec![0.0; self.n_docs];
        let owners = self.windows().flat_map(|window| std::iter::repeat_n(window.document, window.targets.len()));
        owners.zip(values).for_each(|(document, value)| documents[document] += value);
        documents
    }

    /// The windows, in document order.
    pub(super) fn windows(&self) -> impl Iterator<Item = &Window> {
        self.packs.iter().flatten()
    }

    /// The passes through the model in document order, `together` at a time.
    pub(super) fn passes(&self, together: usize) -> impl Iterator<Item = Pass> {
        self.packs.chunks(together).map(|packs| Pass::new(packs.iter().flatten()))
    }
}

/// Windows that go through the model together.
pub(super) struct Pass {
    tokens: Vec<u32>,
    lengths: Vec<usize>,
    /// The positions that predict; windows that reach back read more than they predict.
    pub(super) rows: Vec<usize>,
    pub(super) targets: Vec<u32>,
}

impl Pass {
    pub(super) fn new<'a>(windows: impl Iterator<Item = &'a Window>) -> Self {
        let mut pass = Self { tokens: Vec::new(), lengths: Vec::new(), rows: Vec::new(), targets: Vec::new() };
        for window in windows {
            pass.tokens.extend(&window.input);
            pass.lengths.push(window.input.len());
            pass.rows.extend(pass.tokens.len() - window.targets.len()..pass.tokens.len());
            pass.targets.extend(&window.targets);
        }
        pass
    }

    pub(super) fn sequences(&self) -> Sequences<'_> {
        Sequences { tokens: &self.tokens, lengths: &self.lengths }
    }
}

/// One model whose parameters can be overwritten again and again.
pub struct Evaluator {
    pub(super) config: ModelConfig,
    pub(super) layout: Layout,
    pub(super) length: usize,
    pub(super) flat: Tensor,
    pub(super) compute: Compute,
    pub(super) recomputes: bool,
    together: usize, // packs of a pass on a device
    model: Transformer,
}

impl Evaluator {
    /// A model on the processor with all parameters 0, for windows of at most `length` predictions.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the layout does not fit the config.
    pub fn new(config: &ModelConfig, layout: &Layout, length: usize) -> Result<Self> {
        Self::on(&Compute::cpu(), config, layout, length)
    }

    /// As [`Evaluator::new`], wherever `compute` says.
    ///
    /// # Errors
    /// As [`Evaluator::new`], and those of the device.
    pub fn on(compute: &Compute, config: &ModelConfig, layout: &Layout, length: usize) -> Result<Self> {
        let flat = Tensor::zeros(layout.len(), compute.dtype(), compute.device())?;
        let exec = if compute.is_queued() { compute.exec() } else { Exec::Alone };
        let model = Transformer::new(config, layout, &flat, length, exec)?;
        Ok(Self {
            config: config.clone(),
            layout: layout.clone(),
            length,
            flat,
            compute: compute.clone(),
            recomputes: false,
            together: TOGETHER,
            model,
        })
    }

    /// Lets `write` overwrite the parameters, in the order of the layout.
    pub fn set(&self, write: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
        if !self.compute.is_queued() {
            return rewrite(&self.flat, write);
        }
        let mut values = vec![0f32; self.layout.len()];
        write(&mut values)?;
        let length = values.len();
        self.set_to_sum(&[1.0], &[Tensor::from_vec(values, length, self.compute.device())?])
    }

    /// The parameters where they lie: `[layout length]` in the type the model computes in. Who overwrites them changes the model.
    pub fn parameters(&self) -> &Tensor {
        &self.flat
    }

    /// Ids that go through the model together on a device, about.
    pub fn pass_tokens(&self) -> usize {
        self.together * PACK.max(self.length)
    }

    /// Sets how many that are, at least one pack; false when they are no fewer than before.
    pub fn set_pass_tokens(&mut self, tokens: usize) -> bool {
        let before = std::mem::replace(&mut self.together, (tokens / PACK.max(self.length)).max(1));
        self.together < before
    }

    /// Says whether gradients are taken with activations computed again in the backward pass ([`Transformer::recomputing`]); false
    /// when that is as it was before.
    pub fn set_recomputing(&mut self, recomputes: bool) -> bool {
        std::mem::replace(&mut self.recomputes, recomputes) != recomputes
    }

    /// Overwrites the parameters on a device by Σ `weights[i] · members[i]`, vectors in the order of the layout that lie there.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when lengths disagree.
    pub fn set_to_sum(&self, weights: &[f64], members: &[Tensor]) -> Result<()> {
        weighted_sums_on_device(std::slice::from_ref(&self.flat), &[weights.to_vec()], members)
    }

    /// The negative log-likelihood of every document, in nats: sums in f64, token by token in document order.
    pub fn nll(&self, set: &EvalSet) -> Result<Vec<f64>> {
        Ok(set.by_document(&self.token_nll(set)?))
    }

    /// The negative log-likelihood of every predicted token, in nats and in document order: `[n_tokens]`.
    ///
    /// Passes run side by side on the current rayon pool.
    pub fn token_nll(&self, set: &EvalSet) -> Result<Vec<f64>> {
        debug_assert!(set.longest > 0);
        if self.compute.is_queued() {
            return self.queue_token_nll(set)?.take();
        }
        let passes: Vec<Vec<f64>> = set.packs.par_iter().map(|pack| self.pass(pack)).collect::<Result<_>>()?;
        Ok(passes.concat())
    }

    /// As [`Evaluator::token_nll`], on a device that is not waited for: the parameters may be overwritten meanwhile.
    pub fn queue_token_nll(&self, set: &EvalSet) -> Result<Later> {
        let nll = |pass: Pass| self.model.queue_nll(pass.sequences(), &pass.rows, &pass.targets);
        Later::of(&set.passes(self.together).map(nll).collect::<Result<Vec<_>>>()?)
    }

    fn pass(&self, pack: &[Window]) -> Result<Vec<f64>> {
        let pass = Pass::new(pack.iter());
        self.model.nll(pass.sequences(), &pass.rows, &pass.targets)
    }
}
