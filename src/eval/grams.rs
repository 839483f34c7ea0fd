//! Gram matrices: the mean products of every two inputs of each linear layer, over tokens that a model reads.

use super::Evaluator;
use crate::error::Result;
use crate::kernels::add_gram;
use crate::model::{Layout, ModelConfig, Sequences, linear_layers};
use crate::text::Batch;

/// Ids that go through the model together.
const PACK: usize = 512;
/// As many on a device, from which the products of each pass are read back.
const DEVICE_PACK: usize = 2048;

/// Ids of a pass on a device, of sequences of `length` ids.
pub fn gram_pass(length: usize) -> usize {
    DEVICE_PACK.max(length)
}

/// The Gram matrices of a model as one vector: for the linear layers that read one input, one matrix `[in, in]`, under the
/// name of the first of their weights.
///
/// # Errors
/// [`crate::Error::Mismatch`] when the layout does not fit the config.
pub fn gram_layout(config: &ModelConfig, layout: &Layout) -> Result<Layout> {
    let shape = |names: Vec<String>| {
        let shape = &layout.parameter(&names[0])?.shape;
        let width = if config.stores_inputs_first(&names[0]) { shape[0] } else { shape[1] };
        Ok((names[0].clone(), vec![width, width]))
    };
    Ok(Layout::from_shapes(linear_layers(config).into_iter().map(shape).collect::<Result<_>>()?))
}

impl Evaluator {
    /// The mean of x xᵀ over all positions of `batch`, sequences of `length` ids, for every x that a linear layer reads; in
    /// the order of [`gram_layout`].
    ///
    /// Products are added up in f64 and rounded once. The result does not depend on the number of threads.
    pub fn grams(&self, batch: &Batch, length: usize) -> Result<Vec<f32>> {
        let Self { config, layout, compute, .. } = self;
        let (model, exec) = (self.transformer(length, compute.exec())?, compute.exec());
        let pack = if compute.is_queued() { gram_pass(length) } else { PACK };
        let gram_layout = gram_layout(config, layout)?;
        let layers = linear_layers(config);
        let places = layers.iter().map(|names| Ok(gram_layout.parameter(&names[0])?.range()));
        let places = places.collect::<Result<Vec<_>>>()?;
        let mut sums = vec![0f64; gram_layout.len()];
        for tokens in batch.inputs.chunks((pack / length).max(1) * length) {
            let lengths = vec![length; tokens.len() / length];
            model.linear_inputs(Sequences { tokens, lengths: &lengths }, |input, x| {
                add_gram(exec, x, &mut sums[places[input].clone()])
            })?;
        }
        Ok(sums.into_iter().map(|sum| (sum / batch.inputs.len() as f64) as f32).collect())
    }
}
