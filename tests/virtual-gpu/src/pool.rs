//! Pool: how much memory of a device is taken, kept and free, in the driver's own terms.

/// Bytes to which an allocation is rounded.
const GRAIN: u64 = 512;
/// Bytes by which a pool grows.
const CHUNK: u64 = 2 << 20;

/// The accounts of one device's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    total: u64,
    direct: u64, // taken by cuMemAlloc
    used: u64,   // of the pool
    reserved: u64,
    most_used: u64,
    most_reserved: u64,
    /// Bytes kept when the device is waited for.
    pub threshold: u64,
}

impl Pool {
    /// A device of so many bytes, all free.
    pub fn new(total: u64) -> Self {
        Self { total, direct: 0, used: 0, reserved: 0, most_used: 0, most_reserved: 0, threshold: 0 }
    }

    /// Takes memory from the pool; false when there is not so much.
    pub fn take(&mut self, bytes: u64) -> bool {
        let used = self.used.saturating_add(grains(bytes));
        let most = self.total - self.direct;
        if used > most {
            return false;
        }
        self.used = used;
        self.reserved = self.reserved.max(used.next_multiple_of(CHUNK).min(most));
        self.most_used = self.most_used.max(self.used);
        self.most_reserved = self.most_reserved.max(self.reserved);
        true
    }

    /// Takes memory beside the pool, which gives up what it keeps unused; false when there is not so much.
    pub fn take_directly(&mut self, bytes: u64) -> bool {
        let direct = self.direct.saturating_add(grains(bytes));
        if direct > self.total - self.used {
            return false;
        }
        self.direct = direct;
        self.reserved = self.reserved.min(self.total - direct);
        true
    }

    /// Gives back what [`Pool::take`] took.
    pub fn give(&mut self, bytes: u64) {
        self.used -= grains(bytes);
    }

    /// Gives back what [`Pool::take_directly`] took.
    pub fn give_directly(&mut self, bytes: u64) {
        self.direct -= grains(bytes);
    }

    /// Releases what is not used beyond so many bytes.
    pub fn trim(&mut self, keep: u64) {
        self.reserved = self.reserved.min(self.used.next_multiple_of(CHUNK).max(keep)).max(self.used);
    }

    /// Bytes neither taken nor kept.
    pub fn free(&self) -> u64 {
        self.total - self.direct - self.reserved
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// An attribute, by the driver's number; none of those that are not numbers of bytes.
    pub fn attribute(&self, number: i32) -> Option<u64> {
        Some(match number {
            4 => self.threshold,
            5 => self.reserved,
            6 => self.most_reserved,
            7 => self.used,
            8 => self.most_used,
            _ => return None,
        })
    }
}

fn grains(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(GRAIN).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_kept_up_to_the_threshold() {
        let mut pool = Pool::new(64 << 20);
        assert!(pool.take(10 << 20));
        assert_eq!(pool.free(), 54 << 20);
        pool.give(10 << 20);
        assert_eq!((pool.free(), pool.attribute(7)), (54 << 20, Some(0)));
        pool.trim(4 << 20);
        assert_eq!(pool.free(), 60 << 20);
        pool.trim(pool.threshold);
        assert_eq!(pool.free(), 64 << 20);
    }

    #[test]
    fn no_more_is_given_than_there_is() {
        let mut pool = Pool::new(8 << 20);
        assert!(pool.take(8 << 20) && !pool.take(1));
        pool.give(8 << 20);
        assert!(pool.take_directly(5 << 20) && !pool.take(4 << 20) && pool.take(3 << 20));
        assert!(!pool.take_directly(u64::MAX));
        pool.give_directly(5 << 20);
        assert!(pool.take(5 << 20));
    }
}
