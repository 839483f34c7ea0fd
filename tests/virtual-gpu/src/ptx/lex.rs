//! Tokens of PTX: words, numbers and signs with the line each stands on.

/// A token and its line, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    pub(super) line: usize,
}

/// Cuts a text into tokens. Comments and space are dropped; a quoted string is one token.
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    while at < bytes.len() {
        let rest = &text[at..];
        let length = match bytes[at] {
            b'/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            b'"' => rest[1..].find('"').map_or(rest.len(), |end| end + 2),
            byte if byte.is_ascii_whitespace() => 1,
            _ => word(rest).max(rest.chars().next().map_or(1, char::len_utf8)),
        };
        let piece = &rest[..length];
        if !bytes[at].is_ascii_whitespace() && !piece.starts_with("//") && !piece.starts_with("/*") {
            found.push(Token { text: piece, line });
        }
        line += piece.bytes().filter(|byte| *byte == b'\n').count();
        at += length;
    }
    found
}

/// Length of the word at the start of a text: an opcode with its modifiers, a name, a number. `L2::128B` is one word.
fn word(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut length = 0;
    while length < bytes.len() {
        match bytes[length] {
            byte if byte.is_ascii_alphanumeric() || b"_$.%".contains(&byte) => length += 1,
            b':' if length > 0 && text[length..].starts_with("::") => length += 2,
            _ => break,
        }
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_after_a_comment() {
        let text =
            "// one\n@!%p1 ld.global.L2::128B.v2.f32 {%f1,_}, [%rd1+-4]; /* two\n */ $L_1:\n.pragma \"no;unroll\";";
        let words: Vec<_> = tokens(text).iter().map(|token| token.text).collect();
        let expected =
            "@ ! %p1 ld.global.L2::128B.v2.f32 { %f1 , _ } , [ %rd1 + - 4 ] ; $L_1 : .pragma \"no;unroll\" ;";
        assert_eq!(words, expected.split(' ').collect::<Vec<_>>());
        assert_eq!(tokens(text).last().unwrap().line, 4);
    }
}
