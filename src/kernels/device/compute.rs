//! Compute: where a model computes and in which precision.

use crate::error::{Error, Result};
use crate::kernels::Exec;
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

/// In what precision a GPU computes. Parameters, moments and gradients are f32 whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision throughout: within 1e-5 nats of the CPU.
    #[default]
    F32,
    /// Single precision whose matrix products round their operands to TF32 (10 bits of fraction).
    Tf32,
    /// Weights and activations in bf16 (7 bits of fraction), sums in f32.
    Bf16,
}

/// Where a model computes and in which precision.
#[derive(Debug, Clone)]
pub struct Compute {
    device: Device,
    exec: Exec,
    dtype: DType,
}

impl Compute {
    /// The processor, in f32.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, exec: Exec::Split, dtype: DType::F32 }
    }

    /// The GPU of this number.
    ///
    /// # Errors
    /// [`Error::Usage`] when this program was built without CUDA, [`Error::Tensor`] when there is no such GPU.
    pub fn cuda(ordinal: usize, precision: Precision) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return Ok(Self { device: super::cuda::open(ordinal)?, ..Self::on_device(precision) });
        #[cfg(not(feature = "cuda"))]
        {
            let _ = (ordinal, precision);
            Err(Error::Usage("this program was built without CUDA: cargo build --release --features cuda".into()))
        }
    }

    /// The GPU's kernels emulated on the processor: slow, for tests.
    ///
    /// # Errors
    /// [`Error::Usage`] when this program was built without the emulation.
    pub fn emulated(precision: Precision) -> Result<Self> {
        if cfg!(feature = "cuda-emulation") {
            return Ok(Self::on_device(precision));
        }
        Err(Error::Usage("this program was built without the emulation: --features cuda-emulation".into()))
    }

    fn on_device(precision: Precision) -> Self {
        let (dtype, tf32) = match precision {
            Precision::F32 => (DType::F32, false),
            Precision::Tf32 => (DType::F32, true),
            Precision::Bf16 => (DType::BF16, false),
        };
        Self { device: Device::Cpu, exec: Exec::Device { tf32 }, dtype }
    }

    /// The same device, in another precision; the processor knows f32 alone.
    #[must_use]
    pub fn in_precision(&self, precision: Precision) -> Self {
        if !self.is_queued() {
            return self.clone();
        }
        Self { device: self.device.clone(), ..Self::on_device(precision) }
    }

    /// Where tensors lie.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How operators run.
    pub fn exec(&self) -> Exec {
        self.exec
    }

    /// The type of weights and activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether operators are kernels in the queue of a device, whose results come later.
    pub fn is_queued(&self) -> bool {
        matches!(self.exec, Exec::Device { .. })
    }
}
