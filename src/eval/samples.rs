//! Samples: gradients on parts of eval sets, and of single windows, many small passes side by side.

use super::evaluator::Pass;
use super::{EvalSet, Evaluator, Gradient};
use crate::error::{Error, Result};
use crate::kernels::{Exec, rewrite};
use crate::model::{Transformer, Weights};
use crate::rng::Stream;
use crate::text::Window;
use candle_core::{DType, Tensor};
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
    /// Samples go through the model side by side, each on one thread, so the results do not depend on their number; on a device one
    /// after the other.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a loss or a derivative is NaN or infinite.
    pub fn gradients(&self, samples: &[Vec<&Window>]) -> Result<Vec<Gradient>> {
        let model = self.side_by_side()?;
        let gradient = |(index, windows): (usize, &Vec<&Window>)| {
            let (loss, flat) = self.differentiate(&model, windows.iter().copied())?;
            let gradient = Gradient { loss, values: flat.to_vec1()? };
            gradient.checked(&format!("sample {} of eval sets", index + 1))
        };
        self.each(samples, gradient)
    }

    /// What `see` makes of the gradient of each window's mean loss: of its index, its gradient in the order of the layout,
    /// which it may overwrite.
    ///
    /// Windows go through the model side by side, each on one thread, and only as many gradients exist as there are threads; on a device
    /// one after the other.
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
            let (loss, flat) = self.differentiate(&model, std::iter::once(window))?;
            let place = format!("window {} of document {}", index + 1, window.document + 1);
            let mut seen = None;
            let look = |gradient: &mut [f32]| {
                if !loss.is_finite() || gradient.iter().any(|value| !value.is_finite()) {
                    return Err(Error::NotFinite { what: format!("loss {loss} or its gradient"), place });
                }
                seen = Some(see(index, gradient)?);
                Ok(())
            };
            if self.compute.is_queued() { look(&mut flat.to_vec1::<f32>()?) } else { rewrite(&flat, look) }?;
            seen.ok_or_else(|| Error::Usage("a gradient was not looked at".into()))
        };
        self.each(windows, one)
    }

    fn side_by_side(&self) -> Result<Transformer> {
        self.transformer(self.length, if self.compute.is_queued() { self.compute.exec() } else { Exec::Alone })
    }

    /// What `run` makes of every item and its index, in parallel on the processor.
    fn each<I: Sync, T: Send>(&self, items: &[I], run: impl Fn((usize, &I)) -> Result<T> + Sync) -> Result<Vec<T>> {
        if self.compute.is_queued() {
            return items.iter().enumerate().map(run).collect();
        }
        items.par_iter().enumerate().map(&run).collect()
    }

    /// The mean loss of some windows and its gradient, in one pass.
    fn differentiate<'a>(
        &self,
        model: &Transformer,
        windows: impl Iterator<Item = &'a Window>,
    ) -> Result<(f64, Tensor)> {
        let gradient = Tensor::zeros(self.layout.len(), DType::F32, self.compute.device())?;
        let views = Weights::views(&self.config, &self.layout, &gradient)?;
        let pass = Pass::new(windows);
        let loss = model.loss_and_gradient(pass.sequences(), Some(&pass.rows), &pass.targets, 1.0, &views)?;
        Ok((loss, gradient))
    }
}
