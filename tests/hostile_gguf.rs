//! Hostile GGUF: thousands of damaged files end in one line of refusal, soon, and without memory that they do not have.
#![allow(clippy::print_stdout)] // counts are shown on demand

mod common;
mod hostile;

use common::splitmix;
use hostile::Outcomes;
use mixpool::gguf::Gguf;
use mixpool::model::{Layout, read_gguf, read_gguf_config};
use mixpool::text::{Tokenizer, gguf_prefix, gguf_tokenizer};
use std::path::Path;

/// Everything that `init` does with a file; the first failure.
fn read(path: &Path) -> mixpool::Result<()> {
    let file = Gguf::open(path)?;
    let json = gguf_tokenizer(&file);
    let tokenizer = json.and_then(|json| Tokenizer::from_json(&json, "tokenizer"));
    let tokenizer = tokenizer.and_then(|tokenizer| tokenizer.encode("Hello world, it's 12 o'clock", "text"));
    let prefix = gguf_prefix(&file);
    let config = read_gguf_config(&file)?;
    read_gguf(&file, &config, &Layout::of(&config))?;
    prefix?;
    tokenizer.map(drop)
}

/// Reads a damaged file.
fn try_file(outcomes: &mut Outcomes, folder: &Path, bytes: &[u8], what: &str) {
    let path = folder.join("a.gguf");
    std::fs::write(&path, bytes).unwrap();
    outcomes.add(what, bytes.len(), || read(&path));
}

/// A number in a header: where it lies and how many bytes it has.
struct Field {
    what: String,
    at: usize,
    width: usize,
}

/// Walks a sound header and notes every number in it; of long lists, every fortieth.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    fields: Vec<Field>,
}

impl Walk<'_> {
    fn number(&mut self, width: usize, what: &str) -> usize {
        let bytes = &self.bytes[self.at..self.at + width];
        self.fields.push(Field { what: what.into(), at: self.at, width });
        self.at += width;
        bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    }

    fn text(&mut self, what: &str) {
        let length = self.number(8, &format!("length of {what}"));
        self.at += length;
    }

    fn value(&mut self, kind: usize, what: &str) {
        match kind {
            8 => self.text(what),
            9 => {
                let kind = self.number(4, &format!("element type of {what}"));
                let count = self.number(8, &format!("count of {what}"));
                for index in 0..count {
                    let noted = self.fields.len();
                    self.value(kind, &format!("element {index} of {what}"));
                    if index % 40 > 0 {
                        self.fields.truncate(noted);
                    }
                }
            }
            0 | 1 | 7 => drop(self.number(1, what)),
            2 | 3 => drop(self.number(2, what)),
            4..=6 => drop(self.number(4, what)),
            _ => drop(self.number(8, what)),
        }
    }

    fn header(mut self) -> (Vec<Field>, usize) {
        self.number(4, "magic");
        self.number(4, "version");
        let tensors = self.number(8, "number of tensors");
        for entry in 0..self.number(8, "number of entries") {
            self.text(&format!("key {entry}"));
            let kind = self.number(4, &format!("type of entry {entry}"));
            self.value(kind, &format!("entry {entry}"));
        }
        for tensor in 0..tensors {
            self.text(&format!("name of tensor {tensor}"));
            for dimension in 0..self.number(4, &format!("dimensions of tensor {tensor}")) {
                self.number(8, &format!("dimension {dimension} of tensor {tensor}"));
            }
            self.number(4, &format!("type of tensor {tensor}"));
            self.number(8, &format!("offset of tensor {tensor}"));
        }
        (self.fields, self.at)
    }
}

/// What a hostile hand might write where `number` stood.
fn hostile(number: u64) -> [u64; 12] {
    let small = [0, 1, 9, number.wrapping_sub(1), number.wrapping_add(1), number ^ 32];
    let large = [0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX, u64::MAX / 4 + 2];
    let mut all = [0; 12];
    all[..6].copy_from_slice(&small);
    all[6..].copy_from_slice(&large);
    all
}

#[test]
fn damaged_files_are_refused_in_one_line_soon_and_in_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (mut outcomes, mut tried) = (Outcomes::default(), 0);
    for name in ["llama", "llama3", "sentencepiece"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/gguf/{name}.gguf"));
        let whole = std::fs::read(path).unwrap();
        let (fields, header) = Walk { bytes: &whole, at: 0, fields: Vec::new() }.header();
        for Field { what, at, width } in &fields {
            let range = *at..at + width;
            let number = whole[range.clone()].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
            for value in hostile(number) {
                let mut bytes = whole.clone();
                bytes[range.clone()].copy_from_slice(&value.to_le_bytes()[..*width]);
                try_file(&mut outcomes, folder.path(), &bytes, &format!("{name}: {what} is {value}"));
                tried += 1;
            }
        }
        let cuts = (0..300)
            .map(|cut| if cut < 250 { header * cut / 250 } else { header + (whole.len() - header) * (cut - 250) / 50 });
        for length in cuts {
            try_file(&mut outcomes, folder.path(), &whole[..length], &format!("{name}: cut to {length} bytes"));
            tried += 1;
        }
        for number in 0..300 {
            let mut bytes = whole.clone();
            for flip in 0..=number % 4 {
                let draw = splitmix(number, flip);
                bytes[(draw >> 8) as usize % header] ^= 1 << (draw & 7);
            }
            try_file(&mut outcomes, folder.path(), &bytes, &format!("{name}: flips {number}"));
            tried += 1;
        }
    }
    println!("{tried} files: {} refused, {} still models", outcomes.refused, outcomes.read);
    assert!(tried > 2000 && outcomes.refused > tried / 2, "{tried} tried, {} refused", outcomes.refused);
    assert!(outcomes.read > 0, "nothing that leaves a model a model was tried");
}

/// A header of these counts, made by hand, then `rest`.
fn header(tensors: u64, entries: u64, rest: &[u8]) -> Vec<u8> {
    [b"GGUF", &3u32.to_le_bytes()[..], &tensors.to_le_bytes(), &entries.to_le_bytes(), rest].concat()
}

/// A description of a tensor.
fn tensor(name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let shape: Vec<u8> = dimensions.iter().flat_map(|length| length.to_le_bytes()).collect();
    let counts =
        [(name.len() as u64).to_le_bytes().to_vec(), name.into(), (dimensions.len() as u32).to_le_bytes().to_vec()];
    [counts.concat(), shape, kind.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec()].concat()
}

#[test]
fn limits_of_headers_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let two =
        |second: &str, offset: u64| [tensor("a", &[8], 0, 0), tensor(second, &[8], 0, offset), vec![0; 256]].concat();
    let long = "n".repeat(513);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (header(100_001, 0, &[]), "100001 tensors; at most 100000"),
        (header(0, u64::MAX, &[]), "metadata entries; at most 65536"),
        (header(1, 0, &tensor(&long, &[1], 0, 0)), "has 513 bytes; at most 512"),
        (header(1, 0, &tensor("a\nb", &[1], 0, 0)), "which is no name"),
        (header(2, 0, &two("a", 32)), "tensor 'a' is there twice"),
        (header(2, 0, &two("b", 0)), "tensor 'b' overlaps the tensor before it"),
        (header(2, 0, &two("b", 33)), "no multiple of the alignment 32"),
        (header(2, 0, &two("b", 1 << 40)), "but the file has"),
        (header(2, 0, &two("b", u64::MAX - 31)), "but the file has"),
        (header(1, 0, &tensor("a", &[1 << 33, 1 << 33], 0, 0)), "impossible shape"),
        (header(1, 0, &tensor("a", &[4, 0], 0, 0)), "impossible shape"),
        (header(1, 0, &tensor("a", &[33], 2, 0)), "rows of 33; Q4_0 needs multiples of 32"),
        (header(1, 0, &tensor("a", &[1; 5], 0, 0)), "5 dimensions; expected 1 to 4"),
        (header(1, 0, &tensor("a", &[256], 16, 0)), "type 16, which is not read; convert"),
        (header(0, 1, b"\x01\0\0\0\0\0\0\0k\x0d\0\0\0"), "unknown type 13"),
        (header(0, 1, b"\x01\0\0\0\0\0\0\0k\x09\0\0\0\x09\0\0\0\x01\0\0\0\0\0\0\0"), "a list of lists"),
        (header(0, 1, b"\x01\0\0\0\0\0\0\0k\x08\0\0\0\0\0\0\0\0\0\0\x40"), "at most 16777216"),
        (header(0, 2, &b"\x01\0\0\0\0\0\0\0k\x00\0\0\0\x05".repeat(2)), "metadata 'k' is there twice"),
    ];
    for (number, (bytes, expected)) in cases.iter().enumerate() {
        let path = folder.path().join(format!("{number}.gguf"));
        std::fs::write(&path, bytes).unwrap();
        let error = Gguf::open(&path).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(expected), "expected '{expected}': {error}");
    }
}
