//! Batches: seeded training sequences drawn from the units of a mixture.

use super::TokenFile;
use crate::error::{Error, Result};
use crate::rng::Stream;
use std::ops::Range;

/// One unit of training data and its weight in the mixture.
pub struct Share<'a> {
    /// The token file that holds the unit.
    pub tokens: &'a TokenFile,
    /// The unit's documents.
    pub documents: Range<usize>,
    /// Share of the sequences drawn from this unit; shares sum to 1.
    pub weight: f64,
}

/// Training sequences in a fixed order: a function of the data, the seed and the index alone.
///
/// Each unit is one stream of documents, cut into blocks of `length` predictions; blocks are visited in a random order,
/// a new one in every epoch. Units take turns so that after any number of sequences each has had its share, to within
/// one sequence.
pub struct Batches {
    units: Vec<Unit>,
    length: usize,
    seed: u64,
    next: u64,
}

struct Unit {
    stream: Vec<u32>,
    name: String,
    weight: f64,
    drawn: u64,
    epoch: Option<(u64, Vec<u32>)>,
}

/// Sequences of equal length, one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Input ids: `[sequences · length]`.
    pub inputs: Vec<u32>,
    /// The id that follows each input: `[sequences · length]`.
    pub targets: Vec<u32>,
}

impl Batches {
    /// Sequences of `length` predictions from the given units; documents are separated by `prefix`.
    ///
    /// # Errors
    /// [`Error::Input`] when a unit holds fewer tokens than one sequence.
    pub fn new(shares: &[Share<'_>], prefix: u32, length: usize, seed: u64) -> Result<Self> {
        let units = shares.iter().map(|share| Unit::new(share, prefix, length)).collect::<Result<_>>()?;
        Ok(Self { units, length, seed, next: 0 })
    }

    /// Sequences in one pass over unit `index`.
    pub fn blocks(&self, index: usize) -> usize {
        self.units[index].blocks(self.length)
    }

    /// The next `sequences` sequences.
    pub fn next(&mut self, sequences: usize) -> Batch {
        self.next_with_units(sequences).0
    }

    /// The next `sequences` sequences, and the index of the unit that each is from.
    pub fn next_with_units(&mut self, sequences: usize) -> (Batch, Vec<usize>) {
        let mut batch = Batch { inputs: Vec::new(), targets: Vec::new() };
        let mut units = Vec::with_capacity(sequences);
        for _ in 0..sequences {
            let unit = self.turn();
            units.push(unit);
            self.append(unit, &mut batch);
        }
        (batch, units)
    }

    /// The next sequence of each of these units, whoever's turn it is.
    pub fn next_of(&mut self, units: &[usize]) -> Batch {
        let mut batch = Batch { inputs: Vec::new(), targets: Vec::new() };
        units.iter().for_each(|unit| self.append(*unit, &mut batch));
        batch
    }

    /// Sequences drawn from each unit so far.
    pub fn drawn(&self) -> Vec<u64> {
        self.units.iter().map(|unit| unit.drawn).collect()
    }

    /// Goes on as if so many sequences had been drawn from each unit by [`Batches::next_of`].
    pub fn go_on_from(&mut self, drawn: &[u64]) {
        self.units.iter_mut().zip(drawn).for_each(|(unit, drawn)| unit.drawn = *drawn);
    }

    fn append(&mut self, unit: usize, batch: &mut Batch) {
        let unit = &mut self.units[unit];
        let start = unit.next_block(self.length, self.seed) * self.length;
        batch.inputs.extend_from_slice(&unit.stream[start..start + self.length]);
        batch.targets.extend_from_slice(&unit.stream[start + 1..=start + self.length]);
    }

    /// Goes on as if `sequences` sequences had been drawn.
    pub fn skip(&mut self, sequences: u64) {
        for _ in 0..sequences {
            let unit = self.turn();
            self.units[unit].drawn += 1;
        }
    }

    /// The unit furthest behind its share; the first of them on a tie.
    fn turn(&mut self) -> usize {
        self.next += 1;
        let behind = |unit: &Unit| unit.weight * self.next as f64 - unit.drawn as f64;
        let mut chosen = 0;
        for index in 1..self.units.len() {
            if behind(&self.units[index]) > behind(&self.units[chosen]) {
                chosen = index;
            }
        }
        chosen
    }
}

impl Unit {
    fn new(share: &Share<'_>, prefix: u32, length: usize) -> Result<Self> {
        let stream = share.tokens.stream(share.documents.clone(), prefix);
        let Range { start, end } = share.documents;
        if stream.len() <= length {
            return Err(Error::input(
                format!("documents {start}..{end} of {:?}", share.tokens.manifest().sources),
                format!(
                    "{} tokens, fewer than one training sequence of {length}; register more text or lower \
                     'sequence_length'",
                    stream.len()
                ),
            ));
        }
        let name = format!("{} {start}..{end}", share.tokens.manifest().hash);
        Ok(Self { stream, name, weight: share.weight, drawn: 0, epoch: None })
    }

    fn blocks(&self, length: usize) -> usize {
        (self.stream.len() - 1) / length
    }

    fn next_block(&mut self, length: usize, seed: u64) -> usize {
        let blocks = self.blocks(length) as u64;
        let (epoch, position) = (self.drawn / blocks, self.drawn % blocks);
        self.drawn += 1;
        if self.epoch.as_ref().is_none_or(|(current, _)| *current != epoch) {
            let order = Stream::new(seed, &format!("shuffle {} epoch {epoch}", self.name)).permutation(blocks as usize);
            self.epoch = Some((epoch, order));
        }
        self.epoch.as_ref().map_or(0, |(_, order)| order[position as usize] as usize)
    }
}
