//! Places: where each sequence of a batch begins, on the device, uploaded once for all layers and steps that share it.

use super::upload;
use crate::error::Result;
use candle_core::{Device, Tensor};
use std::cell::RefCell;

/// Batches remembered by each thread.
const REMEMBERED: usize = 16;

/// What kernels know of the sequences of a batch.
#[derive(Clone)]
pub(super) struct Places {
    /// The position of every token in its sequence: `[n]`.
    pub(super) positions: Tensor,
    /// Tiles of 16 rows of one sequence: the first row, and where its sequence starts and ends.
    pub(super) tiles16: Tensor,
    /// As `tiles16`, of 64 rows.
    pub(super) tiles64: Tensor,
}

struct Remembered {
    lengths: Vec<usize>,
    places: Places,
}

thread_local! {
    static REMEMBER: RefCell<Vec<Remembered>> = const { RefCell::new(Vec::new()) };
}

/// The places of sequences of these lengths.
pub(super) fn places(lengths: &[usize], device: &Device) -> Result<Places> {
    REMEMBER.with_borrow_mut(|all| {
        let same = |known: &Remembered| known.lengths == lengths && known.places.positions.device().same_device(device);
        if let Some(index) = all.iter().position(same) {
            let known = all.remove(index); // the last used is the last forgotten
            let places = known.places.clone();
            all.push(known);
            return Ok(places);
        }
        let places = Places::new(lengths, device)?;
        if all.len() == REMEMBERED {
            all.remove(0);
        }
        all.push(Remembered { lengths: lengths.to_vec(), places: places.clone() });
        Ok(places)
    })
}

impl Places {
    fn new(lengths: &[usize], device: &Device) -> Result<Self> {
        let mut values: Vec<u32> = lengths.iter().flat_map(|length| 0..*length as u32).collect();
        let n = values.len();
        let counts = [16, 64].map(|side| {
            let before = values.len();
            let mut start = 0;
            for length in lengths {
                let end = start + length;
                values.extend((start..end).step_by(side).flat_map(|first| [first, start, end].map(|row| row as u32)));
                start = end;
            }
            (before, values.len() - before)
        });
        let all = upload(values, device)?;
        let tiles = |(from, length): (usize, usize)| all.narrow(0, from, length)?.reshape((length / 3, 3));
        Ok(Self { positions: all.narrow(0, 0, n)?, tiles16: tiles(counts[0])?, tiles64: tiles(counts[1])? })
    }
}
