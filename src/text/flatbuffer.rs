//! Flatbuffer: tables of that format read field by field, every offset checked against the bytes there are.
//!
//! Only what Arrow's metadata needs: scalars, strings, tables, and vectors of tables or of pairs of numbers.

/// A table: a place in the bytes, and its list of fields.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    bytes: &'a [u8],
    place: usize,
    fields: usize,
    fields_end: usize,
}

fn unsigned<const N: usize>(bytes: &[u8], place: usize) -> Option<u64> {
    let slice = bytes.get(place..place.checked_add(N)?)?;
    Some(slice.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

impl<'a> Table<'a> {
    /// The table that the bytes begin with a reference to.
    pub(super) fn root(bytes: &'a [u8]) -> Option<Self> {
        Self::at(bytes, 0)
    }

    /// The table that is referred to at `place`.
    fn at(bytes: &'a [u8], place: usize) -> Option<Self> {
        let place = place.checked_add(unsigned::<4>(bytes, place)? as usize)?;
        let distance = i64::from(unsigned::<4>(bytes, place)? as u32 as i32);
        let fields = usize::try_from((place as i64).checked_sub(distance)?).ok()?;
        let fields_end = fields.checked_add(unsigned::<2>(bytes, fields)? as usize)?;
        Some(Self { bytes, place, fields, fields_end })
    }

    /// Where field `index` lies; none when it is absent.
    fn field(&self, index: usize) -> Option<usize> {
        let entry = self.fields + 4 + 2 * index;
        if entry + 2 > self.fields_end {
            return None;
        }
        match unsigned::<2>(self.bytes, entry)? as usize {
            0 => None,
            offset => self.place.checked_add(offset),
        }
    }

    /// A number of `N` bytes; 0 when it is absent, as for every number of Arrow's metadata that is read here.
    pub(super) fn number<const N: usize>(&self, index: usize) -> Option<u64> {
        self.field(index).map_or(Some(0), |place| unsigned::<N>(self.bytes, place))
    }

    /// Whether a field is there.
    pub(super) fn has(&self, index: usize) -> bool {
        self.field(index).is_some()
    }

    /// A table.
    pub(super) fn table(&self, index: usize) -> Option<Self> {
        Self::at(self.bytes, self.field(index)?)
    }

    /// A string.
    pub(super) fn text(&self, index: usize) -> Option<&'a str> {
        let (start, length) = self.vector(index, 1)?;
        std::str::from_utf8(&self.bytes[start..start + length]).ok()
    }

    /// A vector of tables; empty when it is absent, none when it is damaged.
    pub(super) fn tables(&self, index: usize) -> Option<Vec<Self>> {
        if !self.has(index) {
            return Some(Vec::new());
        }
        let (start, length) = self.vector(index, 4)?;
        (0..length).map(|entry| Self::at(self.bytes, start + 4 * entry)).collect()
    }

    /// A vector of pairs of 64-bit numbers.
    pub(super) fn pairs(&self, index: usize) -> Option<Vec<(u64, u64)>> {
        let (start, length) = self.vector(index, 16)?;
        let pair = |place| Some((unsigned::<8>(self.bytes, place)?, unsigned::<8>(self.bytes, place + 8)?));
        (0..length).map(|entry| pair(start + 16 * entry)).collect()
    }

    /// A vector of 64-bit numbers; empty when it is absent.
    pub(super) fn numbers(&self, index: usize) -> Option<Vec<u64>> {
        if !self.has(index) {
            return Some(Vec::new());
        }
        let (start, length) = self.vector(index, 8)?;
        (0..length).map(|entry| unsigned::<8>(self.bytes, start + 8 * entry)).collect()
    }

    /// Where a vector's entries of `width` bytes begin, and how many there are; all of them lie within the bytes.
    fn vector(&self, index: usize, width: usize) -> Option<(usize, usize)> {
        let place = self.field(index)?;
        let start = place.checked_add(unsigned::<4>(self.bytes, place)? as usize)?;
        let length = unsigned::<4>(self.bytes, start)? as usize;
        let first = start + 4;
        let end = length.checked_mul(width)?.checked_add(first)?;
        (end <= self.bytes.len()).then_some((first, length))
    }
}
