//! Layout: the order, shape and place of every parameter in one flat vector.

use super::family::Role;
use super::names::Names;
use super::{Family, ModelConfig};
use crate::error::{Error, Result};
use crate::rng::Stream;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// How many differences a refusal lists.
const SHOWN: usize = 5;

/// One named tensor inside the flat vector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// Hugging Face name, e.g. `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Index of the first value in the flat vector.
    pub offset: usize,
}

impl Parameter {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor holds no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the values lie in the flat vector.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// Matrices decay, vectors (gains of norms, biases) do not.
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2
    }
}

/// The parameters of a model as one vector, sorted by name.
///
/// The seed model, every expert, every gradient and every merge share one layout, so a merge is a sum of vectors, a
/// task vector a difference and a first-order estimate a dot product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    parameters: Vec<Parameter>,
}

impl Layout {
    /// Lays out tensors of the given names and shapes, sorted by name, without gaps.
    pub fn from_shapes(shapes: BTreeMap<String, Vec<usize>>) -> Self {
        let mut offset = 0;
        let place = |(name, shape): (String, Vec<usize>)| {
            let parameter = Parameter { name, shape, offset };
            offset += parameter.len();
            parameter
        };
        Self { parameters: shapes.into_iter().map(place).collect() }
    }

    /// The tensors of a model, under the names and in the shapes of Hugging Face's files; none of a family that is not known.
    pub fn of(config: &ModelConfig) -> Self {
        if config.model_type == Family::Other {
            return Self::from_shapes(BTreeMap::new());
        }
        let (names, hidden) = (Names::of(config), config.hidden_size);
        let mut shapes = BTreeMap::new();
        let mut norm = |name: String, width: usize, has_bias: bool| {
            if has_bias {
                shapes.insert(format!("{name}.bias"), vec![width]);
            }
            shapes.insert(format!("{name}.weight"), vec![width]);
        };
        norm(names.norm.to_owned(), hidden, config.has_layer_norms());
        for layer in 0..config.num_hidden_layers {
            for part in [names.attention_norm, names.feed_forward_norm] {
                norm(format!("{}.{layer}.{part}", names.blocks), hidden, config.has_layer_norms());
            }
            for (part, width) in
                config.head_norms().into_iter().flat_map(|widths| names.head_norms.into_iter().zip(widths))
            {
                norm(format!("{}.{layer}.{part}", names.blocks), width, false);
            }
        }
        for layer in 0..config.num_hidden_layers {
            for (part, [outputs, inputs], role) in linear_shapes(config) {
                let weight = names.of_block(layer, part, "weight");
                let shape = if config.stores_inputs_first(&weight) { [inputs, outputs] } else { [outputs, inputs] };
                shapes.insert(weight, shape.to_vec());
                if config.has_bias(role) {
                    shapes.insert(names.of_block(layer, part, "bias"), vec![outputs]);
                }
            }
        }
        let output = (!config.tie_word_embeddings).then_some(names.output);
        for table in [names.embedding].into_iter().chain(output) {
            shapes.insert(format!("{table}.weight"), vec![config.vocab_size, hidden]);
        }
        if let Some(positions) = names.positions {
            shapes.insert(format!("{positions}.weight"), vec![config.max_position_embeddings, hidden]);
        }
        Self::from_shapes(shapes)
    }

    /// The tensors in the order of the vector.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Length of the vector.
    pub fn len(&self) -> usize {
        self.parameters.last().map_or(0, |last| last.range().end)
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tensor that holds the value at `index` of the vector.
    pub fn owner(&self, index: usize) -> Option<&Parameter> {
        self.parameters.iter().find(|parameter| parameter.range().contains(&index))
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when there is none.
    pub fn parameter(&self, name: &str) -> Result<&Parameter> {
        self.parameters.iter().find(|parameter| parameter.name == name).ok_or_else(|| Error::Mismatch {
            what: "model parameters".into(),
            differences: format!("tensor '{name}' is missing"),
        })
    }

    /// A view of one tensor inside a flat one: same storage, nothing copied.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when there is no tensor of that name.
    pub fn view(&self, flat: &Tensor, name: &str) -> Result<Tensor> {
        let parameter = self.parameter(name)?;
        Ok(flat.narrow(0, parameter.offset, parameter.len())?.reshape(parameter.shape.as_slice())?)
    }

    /// As [`Layout::view`], of several matrices as one, `[Σ out, in]`, where they lie next to each other in this order and read inputs of
    /// one width; nothing elsewhere.
    ///
    /// # Errors
    /// As [`Layout::view`].
    pub fn joined_view(&self, flat: &Tensor, names: &[String]) -> Result<Option<Tensor>> {
        let parts = names.iter().map(|name| self.parameter(name)).collect::<Result<Vec<_>>>()?;
        let adjoin =
            |pair: &[&Parameter]| pair[0].range().end == pair[1].offset && pair[0].shape[1..] == pair[1].shape[1..];
        let (Some(first), true) = (parts.first(), parts.windows(2).all(adjoin)) else { return Ok(None) };
        let &[_, inputs] = first.shape.as_slice() else { return Ok(None) };
        let outputs: usize = parts.iter().map(|part| part.shape[0]).sum();
        Ok(Some(flat.narrow(0, first.offset, outputs * inputs)?.reshape((outputs, inputs))?))
    }

    /// Fresh parameters: gains of norms 1, biases 0, matrices normal with deviation 0.02, those that write into the residual
    /// stream divided by √(2 · layers).
    ///
    /// Each tensor draws from its own stream, so adding a layer does not reshuffle the others.
    pub fn initial_values(&self, config: &ModelConfig, seed: u64) -> Vec<f32> {
        let names = Names::of(config);
        let mut values = Vec::with_capacity(self.len());
        for parameter in &self.parameters {
            if !parameter.decays() {
                let is_bias = parameter.name.rsplit('.').next() == Some("bias");
                let value = if is_bias { 0.0 } else { 1.0 };
                values.extend(std::iter::repeat_n(value, parameter.len()));
                continue;
            }
            let depth =
                if names.is_residual(&parameter.name) { (2.0 * config.num_hidden_layers as f64).sqrt() } else { 1.0 };
            let mut stream = Stream::new(seed, &format!("init {}", parameter.name));
            values.extend((0..parameter.len()).map(|_| (stream.normal() * 0.02 / depth) as f32));
        }
        values
    }

    /// The differences between this layout (expected) and another, worded for a person; empty when they agree.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let index = |layout: &Self| -> BTreeMap<String, Vec<usize>> {
            layout.parameters.iter().map(|p| (p.name.clone(), p.shape.clone())).collect()
        };
        let (expected, got) = (index(self), index(other));
        let missing_or_different = expected.iter().filter_map(|(name, shape)| match got.get(name) {
            None => Some(format!("tensor '{name}' is missing")),
            Some(found) if found != shape => Some(format!("tensor '{name}' is {found:?}, expected {shape:?}")),
            Some(_) => None,
        });
        let unexpected = got.keys().filter(|name| !expected.contains_key(*name));
        missing_or_different.chain(unexpected.map(|name| format!("tensor '{name}' is not expected"))).collect()
    }

    /// Refuses the tensors of the file called `place` when they are not those of this layout.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first differences, expected then got.
    pub(super) fn check_against(&self, other: &Self, place: &str) -> Result<()> {
        let differences = self.differences(other);
        if differences.is_empty() {
            return Ok(());
        }
        let mut shown = differences.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
        if differences.len() > SHOWN {
            shown.push_str(&format!("; and {} more", differences.len() - SHOWN));
        }
        Err(Error::Mismatch { what: format!("'{place}' does not fit the pool's model"), differences: shown })
    }
}

/// The linear layers of one block in the order of a forward pass: name, `[out, in]` and what they are for.
fn linear_shapes(config: &ModelConfig) -> Vec<(&'static str, [usize; 2], Role)> {
    let (names, hidden, inner) = (Names::of(config), config.hidden_size, config.intermediate_size);
    let [queries, keys] = [config.num_attention_heads, config.num_key_value_heads].map(|heads| heads * config.head_dim);
    let apart = [queries, keys, keys];
    let widths = if config.turns().is_some() { vec![apart.iter().sum()] } else { apart.to_vec() };
    let projections =
        names.projections.iter().zip(widths).map(|(name, width)| (*name, [width, hidden], Role::Projection));
    let entry = names.entry.iter().map(|name| (*name, [inner, hidden], Role::FeedForward));
    projections
        .chain([(names.attention_output, [hidden, queries], Role::AttentionOutput)])
        .chain(entry)
        .chain([(names.down, [hidden, inner], Role::FeedForward)])
        .collect()
}

/// The linear layers of a model: the names of the weights that read one input stand together, in the order of a forward
/// pass. Embeddings are no linear layer, nor is an output matrix tied to them.
pub fn linear_layers(config: &ModelConfig) -> Vec<Vec<String>> {
    let names = Names::of(config);
    let block = |layer: usize| {
        let shared = [names.projections, &[names.attention_output], names.entry, &[names.down]];
        shared.map(|parts| parts.iter().map(|part| names.of_block(layer, part, "weight")).collect())
    };
    let output = (!config.tie_word_embeddings).then(|| vec![format!("{}.weight", names.output)]);
    (0..config.num_hidden_layers).flat_map(block).chain(output).collect()
}
