//! Device choice: which devices work may run on, as `--device` says it, and what each has of memory.

use super::{Compute, Precision};
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Devices that work may run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The processor.
    #[default]
    Cpu,
    /// The GPU of this number, or all there are.
    Cuda(Option<usize>),
    /// As many GPUs, emulated on the processor: for tests.
    Emulated(usize),
}

/// What a device has of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes that can still be allocated, those included that this process keeps for itself.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Bytes that an emulated GPU has; without it, no limit is told.
const EMULATED_MEMORY: &str = "MIXPOOL_EMULATED_MEMORY";

impl DeviceChoice {
    /// Whether it is the processor, on its own code and not on emulated kernels.
    pub fn is_cpu(self) -> bool {
        self == Self::Cpu
    }

    /// What scores and logs call it, without a number: which of several equal GPUs computed changes nothing.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda(_) => "cuda",
            Self::Emulated(_) => "emulated",
        }
    }

    /// One choice for each device that is meant, in order.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is none: this program was built without, there is no driver, or no such number.
    pub fn each(self) -> Result<Vec<Self>> {
        match self {
            Self::Cpu => Ok(vec![self]),
            Self::Cuda(number) => {
                let count = gpus(self)?;
                match number {
                    Some(number) if number >= count => Err(Error::Usage(format!(
                        "'--device {self}': this machine has {}; use --device cuda or leave it out",
                        if count == 1 {
                            "one GPU, cuda:0".into()
                        } else {
                            format!("{count} GPUs, cuda:0 to cuda:{}", count - 1)
                        }
                    ))),
                    Some(_) => Ok(vec![self]),
                    None => Ok((0..count).map(|number| Self::Cuda(Some(number))).collect()),
                }
            }
            Self::Emulated(count) => {
                Compute::emulated(Precision::F32)?;
                Ok(vec![Self::Emulated(1); count])
            }
        }
    }

    /// Opens it, the first of several. The processor computes in f32 only.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is no such device, when its driver is too old for this program's kernels, or when the
    /// processor is asked for another precision.
    pub fn open(self, precision: Precision) -> Result<Compute> {
        match self {
            Self::Cpu if precision == Precision::F32 => Ok(Compute::cpu()),
            Self::Cpu => Err(Error::Usage(format!(
                "the CPU computes in f32 only, and {precision} is asked for; use a GPU with --device cuda, or --precision f32"
            ))),
            Self::Cuda(_) => {
                let first = self.each()?[0];
                let compute = Compute::cuda(first.number(), precision)?;
                #[cfg(feature = "cuda")]
                if let candle_core::Device::Cuda(device) = compute.device() {
                    super::driver::check(device)?;
                }
                Ok(compute)
            }
            Self::Emulated(_) => Compute::emulated(precision),
        }
    }

    fn number(self) -> usize {
        match self {
            Self::Cuda(Some(number)) => number,
            _ => 0,
        }
    }
}

/// How many GPUs there are; at least one.
fn gpus(asked: DeviceChoice) -> Result<usize> {
    #[cfg(feature = "cuda")]
    return super::driver::count(asked);
    #[cfg(not(feature = "cuda"))]
    Err(Error::Usage(format!(
        "'--device {asked}': this mixpool was built without CUDA; build it with 'cargo build --release --features cuda' (needs a \
         CUDA toolkit), or use --device cpu"
    )))
}

impl Compute {
    /// What is free on the device; none where nobody says.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the driver does not answer.
    pub fn memory(&self) -> Result<Option<DeviceMemory>> {
        match self.device() {
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(device) => super::driver::memory(device).map(Some),
            _ if !self.is_queued() => Ok(None),
            _ => {
                let bytes = std::env::var(EMULATED_MEMORY).ok().and_then(|text| text.parse().ok());
                Ok(bytes.map(|bytes| DeviceMemory { free: bytes, total: bytes }))
            }
        }
    }

    /// What the device is called by those who made it.
    pub fn name(&self) -> String {
        match self.device() {
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(device) => super::driver::name(device),
            _ if self.is_queued() => "emulated GPU".into(),
            _ => "CPU".into(),
        }
    }

    /// Waits until everything in the device's queue is done.
    ///
    /// # Errors
    /// [`Error::Tensor`] when something of it failed.
    pub fn wait(&self) -> Result<()> {
        Ok(self.device().synchronize()?)
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cuda(Some(number)) => write!(f, "cuda:{number}"),
            Self::Emulated(count) if *count > 1 => write!(f, "emulated:{count}"),
            _ => f.write_str(self.kind()),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |prefix: &str| text.strip_prefix(prefix).and_then(|number| number.parse::<usize>().ok());
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(None)),
            "emulated" => Ok(Self::Emulated(1)),
            _ => number("cuda:")
                .map(|number| Self::Cuda(Some(number)))
                .or_else(|| number("emulated:").filter(|count| *count > 0).map(Self::Emulated))
                .ok_or_else(|| Error::Usage(format!("'--device {text}': expected cpu, cuda or cuda:N"))),
        }
    }
}

impl Precision {
    /// Its name on the command line, in recipes and in what is hashed.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Tf32, Self::Bf16];

    /// Whether results are those of the processor up to the order of additions.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written_alike() {
        for (text, device) in [
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(None)),
            ("cuda:11", DeviceChoice::Cuda(Some(11))),
            ("emulated", DeviceChoice::Emulated(1)),
            ("emulated:2", DeviceChoice::Emulated(2)),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), device);
            assert_eq!(device.to_string(), text);
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "emulated:0", "CPU"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_cuda_no_gpu_is_looked_for() {
        let said = DeviceChoice::Cuda(Some(3)).open(Precision::Bf16).unwrap_err().to_string();
        assert!(said.contains("--features cuda") && said.contains("--device cpu"), "{said}");
    }
}
