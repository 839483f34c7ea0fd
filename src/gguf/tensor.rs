//! Tensor info: name, shape, type and place of a tensor in a GGUF file, and its values as f32.

use super::cursor::Cursor;
use crate::error::Result;
use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

/// More tensors than this are refused.
const MAX_TENSORS: u64 = 100_000;
/// A longer name is refused.
const MAX_NAME: u64 = 512;
/// llama.cpp's own limit.
const MAX_DIMENSIONS: u32 = 4;

/// Types read: number in the file, name, type in `candle`.
const TYPES: [(u32, &str, GgmlDType); 13] = [
    (0, "F32", GgmlDType::F32),
    (1, "F16", GgmlDType::F16),
    (30, "BF16", GgmlDType::BF16),
    (2, "Q4_0", GgmlDType::Q4_0),
    (3, "Q4_1", GgmlDType::Q4_1),
    (6, "Q5_0", GgmlDType::Q5_0),
    (7, "Q5_1", GgmlDType::Q5_1),
    (8, "Q8_0", GgmlDType::Q8_0),
    (10, "Q2_K", GgmlDType::Q2K),
    (11, "Q3_K", GgmlDType::Q3K),
    (12, "Q4_K", GgmlDType::Q4K),
    (13, "Q5_K", GgmlDType::Q5K),
    (14, "Q6_K", GgmlDType::Q6K),
];

/// Shape, type and place of a tensor.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    shape: Vec<usize>,
    dtype: GgmlDType,
    bytes: Range<usize>,
}

impl TensorInfo {
    /// The shape, outermost dimension first; the file holds it the other way round.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values; `candle` asks for aligned bytes, which places in the file were checked to be.
    pub(super) fn values(&self, file: &[u8]) -> Result<Vec<f32>> {
        let bytes = Cow::Borrowed(&file[self.bytes.clone()]);
        let storage = QStorage::from_data(bytes, &Device::Cpu, self.dtype)?;
        Ok(QTensor::new(storage, self.len())?.dequantize(&Device::Cpu)?.to_vec1()?)
    }
}

/// Reads the description of `count` tensors, and checks that all lie in the file, apart from each other.
pub(super) fn read(
    cursor: &mut Cursor<'_>,
    count: u64,
    alignment: u64,
) -> std::result::Result<BTreeMap<String, TensorInfo>, String> {
    if count > MAX_TENSORS {
        return Err(format!("{count} tensors; at most {MAX_TENSORS} are accepted"));
    }
    let mut found = Vec::new();
    for number in 0..count {
        let name = cursor.name(MAX_NAME, &format!("the name of tensor {number}"))?;
        let (shape, dtype, size) = describe(cursor, name)?;
        let offset = cursor.u64(&format!("tensor '{name}'"))?;
        if !offset.is_multiple_of(alignment) {
            return Err(format!("tensor '{name}' lies at {offset}, which is no multiple of the alignment {alignment}"));
        }
        found.push((offset, size, name, shape, dtype));
    }
    let data = (cursor.at() as u64).next_multiple_of(alignment);
    found.sort_by_key(|(offset, ..)| *offset);
    let mut tensors = BTreeMap::new();
    let mut free = 0;
    for (offset, size, name, shape, dtype) in found {
        let end = offset.checked_add(size).filter(|end| end.saturating_add(data) <= cursor.length() as u64);
        let end = end.ok_or_else(|| {
            let length = cursor.length();
            format!("tensor '{name}' has {size} bytes from {offset} after byte {data}, but the file has {length} bytes")
        })?;
        if offset < free {
            return Err(format!("tensor '{name}' overlaps the tensor before it"));
        }
        free = end;
        let bytes = (data + offset) as usize..(data + end) as usize;
        if tensors.insert(name.to_owned(), TensorInfo { shape, dtype, bytes }).is_some() {
            return Err(format!("tensor '{name}' is there twice"));
        }
    }
    Ok(tensors)
}

/// Shape, type and size in bytes of the tensor called `name`.
fn describe(cursor: &mut Cursor<'_>, name: &str) -> std::result::Result<(Vec<usize>, GgmlDType, u64), String> {
    let what = format!("tensor '{name}'");
    let dimensions = cursor.u32(&what)?;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(format!("{what} has {dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}"));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(cursor.u64(&what)?);
    }
    let code = cursor.u32(&what)?;
    let known = TYPES.iter().find(|(known, ..)| *known == code);
    let (_, type_name, dtype) = known.ok_or_else(|| {
        let names = TYPES.map(|(_, name, _)| name).join(", ");
        format!("{what} is of type {code}, which is not read; convert the model to one of {names}")
    })?;
    let (per_block, block) = (dtype.block_size() as u64, dtype.type_size() as u64);
    let values = shape.iter().try_fold(1u64, |product, length| product.checked_mul(*length));
    let values = values.filter(|values| *values > 0 && *values <= isize::MAX as u64 / 8);
    let values = values.ok_or_else(|| format!("{what} has the impossible shape {shape:?}"))?;
    if !shape[0].is_multiple_of(per_block) {
        return Err(format!("{what} has rows of {}; {type_name} needs multiples of {per_block}", shape[0]));
    }
    let shape = shape.into_iter().rev().map(|length| length as usize).collect();
    Ok((shape, *dtype, values / per_block * block))
}
