//! Float type: the numbers that tensors of a file are made of.

use crate::error::{Error, Result, closest};
use crate::kernels::Floats;
use half::{bf16, f16};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

/// A type of floating-point number, by its name in `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatType {
    /// IEEE single precision.
    Float32,
    /// The upper half of IEEE single precision.
    Bfloat16,
    /// IEEE half precision.
    Float16,
}

impl FloatType {
    /// The type that safetensors files call `dtype`, if it is one of these.
    pub(super) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::Float32),
            Dtype::BF16 => Some(Self::Bfloat16),
            Dtype::F16 => Some(Self::Float16),
            _ => None,
        }
    }

    /// The type of some values.
    pub(super) fn of_values(values: &Floats<'_>) -> Self {
        match values {
            Floats::F32(_) => Self::Float32,
            Floats::BF16(_) => Self::Bfloat16,
            Floats::F16(_) => Self::Float16,
        }
    }

    /// Reads `f32`, `bf16`, `f16` and their long names.
    ///
    /// # Errors
    /// [`Error::Usage`] for another name, with the closest known one.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "f32" | "float32" => Ok(Self::Float32),
            "bf16" | "bfloat16" => Ok(Self::Bfloat16),
            "f16" | "float16" => Ok(Self::Float16),
            _ => {
                let hint = closest(text, ["f32", "bf16", "f16"]).map(|known| format!("; did you mean '{known}'?"));
                let hint = hint.unwrap_or_default();
                Err(Error::Usage(format!("'{text}' is no type of number; expected f32, bf16 or f16{hint}")))
            }
        }
    }

    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
        }
    }

    /// The name in headers of safetensors files.
    pub(super) fn safetensors_name(self) -> &'static str {
        match self {
            Self::Float32 => "F32",
            Self::Bfloat16 => "BF16",
            Self::Float16 => "F16",
        }
    }

    /// Bytes of a number.
    pub(super) fn size(self) -> usize {
        if self == Self::Float32 { 4 } else { 2 }
    }

    /// Appends numbers in little-endian order, each rounded to the nearest, ties to even.
    pub(super) fn append(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::Float32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::Bfloat16 => bytes.extend(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes())),
            Self::Float16 => bytes.extend(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes())),
        }
    }

    /// Whether a finite number stays finite.
    pub(super) fn holds(self, value: f32) -> bool {
        match self {
            Self::Float32 => value.is_finite(),
            Self::Bfloat16 => bf16::from_f32(value).is_finite(),
            Self::Float16 => f16::from_f32(value).is_finite(),
        }
    }
}
