//! Npy: the header of a `NumPy` array file, versions 1 to 3, as `NumPy`'s format description defines it.

use super::TokenType;
use std::io::Read;

/// What a `NumPy` file begins with.
pub(super) const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// The longest header accepted.
const MAX_HEADER: usize = 1 << 16;

/// An array of integers of one or two dimensions, in C order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub token_type: TokenType,
    /// Columns of an array of two dimensions.
    pub columns: Option<u64>,
    /// Entries in all.
    pub entries: u64,
    /// Bytes before the first entry.
    pub bytes: u64,
}

/// Reads the header behind the magic bytes.
///
/// # Errors
/// What is wrong with it: got, expected, remedy.
pub(super) fn read_header(reader: &mut impl Read) -> Result<Header, String> {
    let cut = |_| "ends within its NumPy header; copy it again".to_owned();
    let mut version = [0; 2];
    reader.read_exact(&mut version).map_err(cut)?;
    let width = match version[0] {
        1 => 2,
        2 | 3 => 4,
        other => return Err(format!("has version {other} of NumPy's format; expected 1 to 3")),
    };
    let mut length = [0; 4];
    reader.read_exact(&mut length[..width]).map_err(cut)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_HEADER {
        return Err(format!("has a NumPy header of {length} bytes; expected at most {MAX_HEADER}"));
    }
    let mut text = vec![0; length];
    reader.read_exact(&mut text).map_err(cut)?;
    let bytes = (MAGIC.len() + 2 + width + length) as u64;
    parse(&String::from_utf8_lossy(&text), bytes)
}

/// Reads `{'descr': '<u2', 'fortran_order': False, 'shape': (3, 4), }`.
fn parse(text: &str, bytes: u64) -> Result<Header, String> {
    let value = |key: &str| {
        let (_, rest) = text.split_once(&format!("'{key}':"))?;
        Some(rest.trim_start())
    };
    let descr = value("descr").and_then(|rest| rest.strip_prefix('\'')?.split('\'').next());
    let descr = descr.ok_or("holds records, not numbers; expected an array of integers")?;
    let token_type = match descr.split_at_checked(1) {
        Some((">", _)) if !descr.ends_with('1') => {
            return Err(format!("holds big-endian numbers ('{descr}'); write them with astype('<{}')", &descr[1..]));
        }
        Some(("<" | "|" | "=" | ">", kind)) => TokenType::of_numpy(kind),
        _ => None,
    };
    let token_type =
        token_type.ok_or(format!("holds numbers of type '{descr}'; expected integers such as '<u2' or '<i4'"))?;
    let shape = value("shape").and_then(|rest| rest.strip_prefix('(')?.split(')').next());
    let sizes = shape.and_then(|shape| {
        let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
        sizes.map(|size| size.parse::<u64>().ok()).collect::<Option<Vec<_>>>()
    });
    let sizes = sizes.ok_or("has a NumPy header without a shape; write it again")?;
    let columns = match sizes[..] {
        [_] => None,
        [_, columns] => Some(columns),
        _ => return Err(format!("has {} dimensions; expected 1, or 2 with a document a row", sizes.len())),
    };
    if columns.is_some() && value("fortran_order").is_none_or(|order| !order.starts_with("False")) {
        return Err("is stored column by column; write it with numpy.ascontiguousarray".into());
    }
    let entries = sizes.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
    let entries = entries.ok_or("has a shape of more numbers than a file can hold")?;
    Ok(Header { token_type, columns, entries, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_integers_are_read_and_others_told_what_is_wrong() {
        let header = |descr: &str, order: &str, shape: &str| {
            parse(&format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"), 128)
        };
        let expected = Header { token_type: TokenType::U16, columns: Some(4), entries: 12, bytes: 128 };
        assert_eq!(header("'<u2'", "False", "(3, 4)"), Ok(expected));
        assert_eq!(header("'|u1'", "True", "(7,)").unwrap().columns, None);
        for (descr, order, shape, problem) in [
            ("'>u2'", "False", "(3,)", "big-endian"),
            ("'<f4'", "False", "(3,)", "type '<f4'"),
            ("'|O'", "False", "(3,)", "type '|O'"),
            ("[('a', '<u2')]", "False", "(3,)", "records"),
            ("'<u2'", "True", "(3, 4)", "column by column"),
            ("'<u2'", "False", "(3, 4, 5)", "3 dimensions"),
            ("'<u2'", "False", "()", "0 dimensions"),
            ("'<u2'", "False", "(-3,)", "without a shape"),
            ("'<u2'", "False", "(9999999999, 9999999999)", "more numbers"),
        ] {
            let got = header(descr, order, shape).unwrap_err();
            assert!(got.contains(problem), "{got}");
        }
    }
}
