//! Later: values that a device is still working out, and marks in its queue, neither waited for until somebody asks.

use super::Compute;
#[cfg(feature = "cuda")]
use super::driver::{Event, ReadBack};
use crate::error::Result;
use candle_core::Tensor;
use std::time::Instant;

/// Values on their way to the processor. They leave the device as soon as what was queued before is done, whatever is queued after.
pub struct Later(Vec<Part>);

enum Part {
    There(Vec<f64>),
    #[cfg(feature = "cuda")]
    Coming(ReadBack),
}

impl Later {
    /// The values of some vectors of f64, one after the other.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::error::Error::Tensor) when the device fails.
    pub fn of(vectors: &[Tensor]) -> Result<Self> {
        let part = |vector: &Tensor| {
            #[cfg(feature = "cuda")]
            if vector.device().is_cuda() {
                return Ok(Part::Coming(ReadBack::of(vector)?));
            }
            Ok(Part::There(vector.to_vec1()?))
        };
        vectors.iter().map(part).collect::<Result<_>>().map(Self)
    }

    /// Waits for them.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::error::Error::Tensor) when the device failed at what they come from.
    pub fn take(self) -> Result<Vec<f64>> {
        let mut all = Vec::new();
        for part in self.0 {
            match part {
                Part::There(values) => all.extend(values),
                #[cfg(feature = "cuda")]
                Part::Coming(values) => values.add_to(&mut all)?,
            }
        }
        Ok(all)
    }
}

/// A place in the queue of a device; on the processor, a moment.
pub struct Mark {
    moment: Instant,
    #[cfg(feature = "cuda")]
    event: Option<Event>,
}

impl Compute {
    /// The end of the queue as it is now.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::error::Error::Tensor) when the device fails.
    pub fn mark(&self) -> Result<Mark> {
        Ok(Mark {
            moment: Instant::now(),
            #[cfg(feature = "cuda")]
            event: match self.device() {
                candle_core::Device::Cuda(device) => Some(Event::record(device)?),
                _ => None,
            },
        })
    }
}

impl Mark {
    /// The seconds that the device took from an earlier mark to this one; waits until it is there.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::error::Error::Tensor) when the device failed before.
    pub fn seconds_since(&self, earlier: &Self) -> Result<f64> {
        #[cfg(feature = "cuda")]
        if let (Some(event), Some(earlier)) = (&self.event, &earlier.event) {
            return event.seconds_since(earlier);
        }
        Ok(self.moment.duration_since(earlier.moment).as_secs_f64())
    }
}
