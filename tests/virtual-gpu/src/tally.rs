//! Tally: what was copied and multiplied, counted as it ran.

use crate::product::Product;
use crate::work::{Source, Work};
use std::collections::BTreeMap;

/// Counts by kind of copy and shape of product.
#[derive(Debug, Default)]
pub struct Tally {
    /// Copies, by name.
    pub copies: BTreeMap<&'static str, Copies>,
    /// Matrix products, by shape and type.
    pub products: BTreeMap<String, Products>,
}

/// What was copied.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Copies {
    /// How often.
    pub count: u64,
    /// Bytes in all.
    pub bytes: u64,
}

/// Products of one shape.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Products {
    /// How many.
    pub count: u64,
    /// Multiplications and additions in all.
    pub flops: u64,
    /// Bytes of their operands, each counted once in each product.
    pub bytes: u64,
    /// How many had an operand or a stride that is no multiple of 16 bytes, with which cuBLAS is slow.
    pub unaligned: u64,
}

impl Tally {
    /// Counts a piece of work.
    pub fn count(&mut self, work: &Work) {
        let (name, bytes) = match work {
            Work::Upload { from: Source::Staged(bytes), .. } => ("upload", bytes.len() as u64),
            Work::Upload { from: Source::Pinned { bytes, .. }, .. } => ("upload, pinned", *bytes as u64),
            Work::Download { bytes, .. } => ("download", *bytes),
            Work::Copy { from: (_, bytes), bytes: None, .. } => ("copy", *bytes),
            Work::Copy { from: (_, bytes), bytes: Some(_), .. } => ("copy between devices", *bytes),
            Work::Fill { bytes, .. } => ("fill", *bytes),
            Work::Product(product) => return self.product(product),
            Work::Kernel(_) | Work::Free(_) | Work::Stamp(_) => return,
        };
        let copies = self.copies.entry(name).or_default();
        copies.count += 1;
        copies.bytes += bytes;
    }

    fn product(&mut self, product: &Product) {
        let products = self.products.entry(product.shape()).or_default();
        products.count += 1;
        products.flops += product.flops();
        products.bytes += product.bytes();
        products.unaligned += u64::from(!product.is_aligned());
    }
}
