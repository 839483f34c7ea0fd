//! Samples: gradients on parts of eval sets, and of single windows, many small passes side by side.

use super::evaluator::Pass;
use super::{EvalSet, Evaluator, Gradient};
use crate::error::{Error, Result};
use crate::kernels::{Exec, rewrite};
use crate::model::{Transformer, Weights};
use crate::rng::Stream;
use crate::text::Window;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

impl EvalSet {
    /// Windows in a random order, until they predict at least `tokens` tokens or there are no more; in document order.
    pub fn sample(&self, tokens: u64, mut stream: Stream) -> Vec<&Window> {
        let windows: Vec<&Window> = self.windows().collect();
        let mut predicted = 0;
        let order = stream.permutation(windows.len()).into_iter();
        let mut chosen: Vec<usize> = order
            .map(|index| index as usize)
            .take_while(|index| {
                let wanted = predicted < tokens;
                predicted += windows[*index].targets.len() as u64;
                wanted
            })
            .collect();
        chosen.sort_unstable();
        chosen.into_iter().map(|index| windows[index]).collect()
    }
}

impl Evaluator {
    /// The mean loss of each of some samples, in nats per predicted token, and its gradient.
    ///
    /// Samples go through the model side by side, each on one thread, so the results do not depend on their number.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a loss or a derivative is NaN or infinite.
    pub fn gradients(&self, samples: &[Vec<&Window>]) -> Result<Vec<Gradient>> {
        let model = self.side_by_side()?;
        let gradient = |(index, windows): (usize, &Vec<&Window>)| {
            let flat = Tensor::zeros(self.layout.len(), DType::F32, &Device::Cpu)?;
            let loss = self.differentiate(&model, windows.iter().copied(), &flat)?;
            let gradient = Gradient { loss, values: flat.to_vec1()? };
            gradient.checked(&format!("sample {} of eval sets", index + 1))
        };
        samples.par_iter().enumerate().map(gradient).collect()
    }

    /// What `see` makes of the gradient of each window's mean loss: of its index, its gradient in the order of the layout,
    /// which it may overwrite.
    ///
    /// Windows go through the model side by side, each on one thread; only as many gradients exist as there are threads.
    ///
    /// # Errors
    /// [`Error::NotFinite`] as [`Evaluator::gradients`], and those of `see`.
    pub fn each_gradient<T: Send>(
        &self,
        windows: &[Window],
        see: impl Fn(usize, &mut [f32]) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let model = self.side_by_side()?;
        let one = |(index, window): (usize, &Window)| {
            let flat = Tensor::zeros(self.layout.len(), DType::F32, &Device::Cpu)?;
            let loss = self.differentiate(&model, std::iter::once(window), &flat)?;
            let place = format!("window {} of document {}", index + 1, window.document + 1);
            let mut seen = None;
            rewrite(&flat, |gradient| {
                if !loss.is_finite() || gradient.iter().any(|value| !value.is_finite()) {
                    return Err(Error::NotFinite { what: format!("loss {loss} or its gradient"), place });
                }
                seen = Some(see(index, gradient)?);
                Ok(())
            })?;
            seen.ok_or_else(|| Error::Usage("a gradient was not looked at".into()))
        };
        windows.par_iter().enumerate().map(one).collect()
    }

    fn side_by_side(&self) -> Result<Transformer> {
        Transformer::new(&self.config, &self.layout, &self.flat, self.length, Exec::Alone)
    }

    /// Adds the gradient of the mean loss of some windows, in one pass; returns the loss.
    fn differentiate<'a>(
        &self,
        model: &Transformer,
        windows: impl Iterator<Item = &'a Window>,
        into: &Tensor,
    ) -> Result<f64> {
        let views = Weights::views(&self.config, &self.layout, into)?;
        let pass = Pass::new(windows);
        model.loss_and_gradient(pass.sequences(), Some(&pass.rows), &pass.targets, 1.0, &views)
    }
}
