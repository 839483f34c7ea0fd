//! Cursor: little-endian numbers and texts taken one after the other from a file that may end anywhere.

/// A place in a byte string.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Taken<T> = Result<T, String>;

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes already taken.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes in all.
    pub(super) fn length(&self) -> usize {
        self.bytes.len()
    }

    /// The next `count` bytes, which are `what`.
    pub(super) fn take(&mut self, count: u64, what: &str) -> Taken<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let count = usize::try_from(count).ok().filter(|count| *count <= rest.len()).ok_or_else(|| {
            format!("the file ends in {what}: {count} bytes expected at byte {}, {} there", self.at, rest.len())
        })?;
        self.at += count;
        Ok(&rest[..count])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Taken<[u8; N]> {
        let bytes = self.take(N as u64, what)?;
        bytes.first_chunk().copied().ok_or_else(|| format!("the file ends in {what}"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Taken<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Taken<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// The name of something: a text of at most `limit` bytes on one line.
    pub(super) fn name(&mut self, limit: u64, what: &str) -> Taken<&'a str> {
        let name = self.text(limit, what)?;
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(format!("{what} is {name:?}, which is no name"));
        }
        Ok(name)
    }

    /// A text with its length before it, at most `limit` bytes.
    pub(super) fn text(&mut self, limit: u64, what: &str) -> Taken<&'a str> {
        let length = self.u64(what)?;
        if length > limit {
            return Err(format!("{what} has {length} bytes; at most {limit} are accepted"));
        }
        std::str::from_utf8(self.take(length, what)?).map_err(|_| format!("{what} is not UTF-8"))
    }
}
