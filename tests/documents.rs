//! Documents: what is read from every format and compression, and what an unusable file is told.

use std::io::Write;
use std::path::Path;

use mixpool::error::{Error, Result};
use mixpool::text::{Document, ReadOptions, read_documents};
use proptest::prelude::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Writes a file of this name and reads it, with its folder's path cut out of all places and messages.
fn read_with(name: &str, bytes: &[u8], options: &ReadOptions) -> (Vec<Document>, std::result::Result<(), String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let shorten = |text: String| text.replace(&format!("{}/", folder.path().display()), "");
    let mut documents = Vec::new();
    let result = read_documents(&path, options, &mut |document| {
        documents.push(Document { place: shorten(document.place), ..document });
        Ok(())
    });
    if let Err(error) = &result {
        assert!(matches!(error, Error::Input { .. }), "{error:?}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    (documents, result.map_err(|error| shorten(error.to_string())))
}

fn read(name: &str, bytes: impl AsRef<[u8]>) -> std::result::Result<Vec<Document>, String> {
    let (documents, result) = read_with(name, bytes.as_ref(), &ReadOptions::default());
    result.map(|()| documents)
}

fn texts(name: &str, bytes: impl AsRef<[u8]>) -> Vec<String> {
    read(name, bytes).unwrap().into_iter().map(|document| document.text).collect()
}

fn places(name: &str, bytes: impl AsRef<[u8]>) -> Vec<String> {
    read(name, bytes).unwrap().into_iter().map(|document| document.place).collect()
}

#[track_caller]
fn assert_refused(name: &str, bytes: impl AsRef<[u8]>, message: &str) {
    let error = read(name, bytes).unwrap_err();
    assert!(error.starts_with(message), "\nexpected {message}\ngot      {error}");
}

#[test]
fn a_text_file_is_one_document_to_its_last_byte() {
    for text in ["one", "one\n", "\r\none\r\n\r\n", "a\u{1e}b\n \u{1e}\n\u{1e}\u{1e}\n", "\u{1e}x", "naïve 🦀\n"] {
        assert_eq!(texts("a.txt", text), [text]);
        assert_eq!(texts("a.md.gz", gzip(text.as_bytes())), [text]);
        assert_eq!(texts("A.TEXT.ZST", zstd(text.as_bytes())), [text]);
        assert_eq!(places("a.txt", text), ["a.txt"]);
    }
}

#[test]
fn separator_lines_part_documents_and_belong_to_none() {
    for (text, expected) in [
        ("a\n\u{1e}\nb", &["a", "b"][..]),
        ("a\n\n\u{1e}\n\nb\n", &["a\n", "\nb\n"]),
        ("a\r\n\u{1e}\r\nb\r\n", &["a", "b\r\n"]),
        ("\u{1e}\na\n\u{1e}\n\u{1e}\nb\n\u{1e}", &["", "a", "", "b", ""]),
        ("a\n\u{1e}\n \n\u{1e}\n", &["a", " ", ""]),
    ] {
        assert_eq!(texts("a.txt", text), expected, "{text:?}");
    }
    let expected = ["a.txt (document 1)", "a.txt (document 2)", "a.txt (document 3)"];
    assert_eq!(places("a.txt", "a\n\u{1e}\nb\n\u{1e}\nc\n"), expected);
}

#[test]
fn json_lines_give_one_document_each_with_its_line() {
    let text = "{\"text\":\"one\"}\n\n  \r\n{\"id\":1,\"text\":\"t\\u0000w\\no\"}\r\n{\"text\":\"\"}\n{\"text\":\" \"}";
    let expected = [("one", "a:1"), ("t\0w\no", "a:4"), ("", "a:5"), (" ", "a:6")];
    for suffix in ["jsonl", "ndjson", "json"] {
        let name = format!("a.{suffix}");
        let found = read(&name, text).unwrap();
        let found: Vec<_> = found.iter().map(|d| (d.text.as_str(), d.place.replace(&name, "a"))).collect();
        assert_eq!(found, expected.map(|(text, place)| (text, place.to_string())));
    }
}

#[test]
fn members_and_frames_are_read_on_past_the_first() {
    let parts: [&[u8]; 4] = [b"{\"text\":\"o", b"ne\"}\n", b"", b"{\"text\":\"two\"}\n"];
    assert_eq!(texts("a.jsonl.gz", parts.map(gzip).concat()), ["one", "two"]);
    let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    assert_eq!(texts("a.jsonl.zst", [skippable, parts.map(zstd).concat()].concat()), ["one", "two"]);
}

#[test]
fn a_byte_order_mark_is_skipped_at_the_start_only() {
    assert_eq!(texts("a.txt", "\u{feff}a\n\u{feff}b"), ["a\n\u{feff}b"]);
    assert_eq!(texts("a.jsonl", "\u{feff}{\"text\":\"\u{feff}a\"}\n"), ["\u{feff}a"]);
    assert_eq!(texts("a.txt.gz", [gzip(b"\xef"), gzip(b"\xbb\xbfa")].concat()), ["a"]);
}

#[test]
fn a_dotted_text_field_walks_into_objects() {
    let options = ReadOptions { text_field: "page.body".to_string(), ..ReadOptions::default() };
    let read = |record: &str| {
        let (documents, result) = read_with("a.jsonl", record.as_bytes(), &options);
        result.map(|()| documents[0].text.clone())
    };
    assert_eq!(read(r#"{"page": {"body": "deep", "text": "x"}}"#), Ok("deep".to_string()));
    for (record, problem) in [
        (r#"{"text": "x"}"#, "expected a field 'page.body', got the fields 'text'; name"),
        (r#"{"page": {"b": 1, "a": 2}}"#, "expected a field 'page.body', got the fields 'page.a', 'page.b'; name"),
        (r#"{"page": {}}"#, "expected a field 'page.body', got an object without fields"),
        (r#"{"page": "x"}"#, "expected an object in field 'page' of 'page.body', got a string; see --text-field"),
        (r#"{"page": {"body": null}}"#, "expected a string in field 'page.body', got null; name"),
    ] {
        let error = read(record).unwrap_err();
        assert!(error.starts_with(&format!("a.jsonl:1: {problem}")), "{error}");
    }
}

#[test]
fn records_without_usable_text_are_refused_by_line() {
    let good = "{\"text\":\"one\"}\n\n";
    for (record, problem) in [
        ("[1]", "a.jsonl:3: expected a JSON object, got an array; write one object a line"),
        ("\"x\"", "a.jsonl:3: expected a JSON object, got a string"),
        ("{\"text\": 3}", "a.jsonl:3: expected a string in field 'text', got a number; name"),
        ("{\"text\": [\"x\"]}", "a.jsonl:3: expected a string in field 'text', got an array"),
        ("{\"text\": true}", "a.jsonl:3: expected a string in field 'text', got a boolean"),
        ("{\"te\\nxt\": \"\"}", "a.jsonl:3: expected a field 'text', got the fields 'te\\nxt'; name"),
    ] {
        assert_refused("a.jsonl", format!("{good}{record}\n{good}"), problem);
    }
    let many: Vec<String> = (0..11).map(|index| format!("\"f{index:02}\":0")).collect();
    let named = (0..8).map(|index| format!("'f{index:02}'")).collect::<Vec<_>>().join(", ");
    let problem = format!("a.jsonl:1: expected a field 'text', got the fields {named} and 3 more; name the field");
    assert_refused("a.jsonl", format!("{{{}}}", many.join(",")), &problem);
}

#[test]
fn broken_json_is_located_by_line_and_character() {
    let good = "{\"text\":\"one\"}\r\n";
    for (line, problem) in [
        ("{\"text\": oops}", "a.jsonl:2:10: expected value; expected one whole JSON object a line"),
        ("{\"é€🦀\": oops}", "a.jsonl:2:9: expected value; "),
        ("{\"é€🦀\" ?}", "a.jsonl:2:8: expected `:`; "),
        ("{\"text\": \"a\"} {}", "a.jsonl:2:15: trailing characters; "),
        ("{\"text\": \"one", "a.jsonl:2:13: EOF while parsing a string; "),
        ("{\"text\": \"\\ud800\"}", "a.jsonl:2:17: unexpected end of hex escape; "),
        ("{\"text\": \"\\udc00 \"}", "a.jsonl:2:16: lone leading surrogate in hex escape; "),
    ] {
        assert_refused("a.jsonl", format!("{good}{line}\r\n{good}"), problem);
    }
    assert_refused(
        "a.json",
        "{\n  \"text\": \"one\"\n}\n",
        "a.json:1:1: EOF while parsing an object; expected one whole",
    );
    assert_refused("a.json", "[{\"text\": \"one\"}]\n", "a.json:1: expected a JSON object, got an array; write one");
}

#[test]
fn text_that_is_not_utf8_is_located_in_the_decompressed_text() {
    for (bytes, problem) in [
        (&b"\xef\xbb\xbfab\nc\xffd"[..], "2: is not UTF-8 (byte offset 7 of the text)"),
        (b"abc\xe2\x82\nd", "1: is not UTF-8 (byte offset 3 of the text)"),
    ] {
        assert_refused("a.txt", bytes, &format!("a.txt:{problem}"));
        assert_refused("a.jsonl.gz", gzip(&[b"{\"text\":\"\"}\n", bytes].concat()), "a.jsonl.gz:");
        assert_refused("a.txt.zst", zstd(bytes), &format!("a.txt.zst:{problem}"));
    }
    let nul = "looks binary (NUL byte at offset 5); expected UTF-8 text";
    assert_refused("a.txt", b"ab\nc\xff\0d", &format!("a.txt: {nul}"));
    assert_refused("a.jsonl.gz", gzip(b"\n\n\n\n\n\0"), &format!("a.jsonl.gz: {nul}"));
}

#[test]
fn files_without_any_text_are_refused() {
    for name in ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.zst"] {
        assert_refused(name, "", &format!("{name}: is empty (0 bytes)"));
    }
    for (name, bytes) in [
        ("a.txt", b" \n\t\n\x1e\n\n".to_vec()),
        ("a.txt", b"\xef\xbb\xbf".to_vec()),
        ("a.jsonl", b"\n\n".to_vec()),
        ("a.jsonl", b"{\"text\":\"\"}\n{\"text\":\" \\n\"}\n".to_vec()),
        ("a.txt.gz", gzip(b"")),
        ("a.jsonl.zst", zstd(b"")),
    ] {
        assert_refused(name, bytes, &format!("{name}: holds no text"));
    }
}

#[test]
fn files_of_other_kinds_are_refused() {
    for name in ["a", "a.gz", "a.csv", "a.txt.bz2", "a.zst.txt2", "txt"] {
        assert_refused(name, "x", &format!("{name}: has a name of no known format; expected .txt, .text, .md, .jsonl"));
    }
    assert_refused("a.txt.gz", "plain", "a.txt.gz: does not look like gzip");
    assert_refused("a.txt.gz", zstd(b"x"), "a.txt.gz: does not look like gzip");
    assert_refused("a.txt.zst", "plain", "a.txt.zst: does not look like zstd");

    let folder = tempfile::tempdir().unwrap();
    let read = |path: &Path| read_documents(path, &ReadOptions::default(), &mut |_| Ok(()));
    std::fs::create_dir(folder.path().join("d.txt")).unwrap();
    let error = read(&folder.path().join("d.txt")).unwrap_err().to_string();
    assert!(error.contains("d.txt: is a folder"), "{error}");
    let missing = read(&folder.path().join("missing.txt")).unwrap_err();
    assert!(matches!(missing, Error::Io { action: "open", .. }), "{missing:?}");
}

#[test]
fn truncated_files_are_recognised_wherever_they_end() {
    let records: String = (0..40).map(|index| format!("{{\"text\":\"record {index}\"}}\n")).collect();
    let (first, second) = records.as_bytes().split_at(300);
    for (name, compress, magic) in [("a.jsonl.gz", gzip as fn(&[u8]) -> Vec<u8>, 2), ("a.jsonl.zst", zstd, 4)] {
        let whole = [compress(first), compress(second)].concat();
        assert_eq!(texts(name, &whole).len(), 40);
        let boundary = compress(first).len();
        for end in (magic..whole.len()).filter(|end| *end != boundary) {
            assert_refused(name, &whole[..end], &format!("{name}: is truncated (the compressed stream ends early)"));
        }
    }
}

#[test]
fn corrupt_files_are_recognised() {
    let text = "some text that compresses, some text that compresses\n".repeat(20);
    for (name, mut bytes) in [("a.txt.gz", gzip(text.as_bytes())), ("a.txt.zst", zstd(text.as_bytes()))] {
        assert_refused(name, [&bytes[..], b"garbage beyond"].concat(), &format!("{name}: is corrupt ("));
        // Both formats keep a checksum of the text near their end.
        let last = bytes.len() - if name.ends_with("gz") { 8 } else { 4 };
        bytes[last] ^= 1;
        assert_refused(name, bytes, &format!("{name}: is corrupt ("));
    }
}

#[test]
fn zstd_windows_beyond_the_limit_are_not_called_corrupt() {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(28).unwrap();
    encoder.write_all(b"text").unwrap();
    assert_refused("a.txt.zst", encoder.finish().unwrap(), "a.txt.zst: needs a zstd window above 128 MiB");
}

#[test]
fn documents_beyond_the_limit_are_refused() {
    let options = ReadOptions { max_document_bytes: 20, ..ReadOptions::default() };
    let read = |name, text: &str| read_with(name, text.as_bytes(), &options).1;
    assert_eq!(read("a.txt", &format!("{}\n\u{1e}\n{}", "x\n".repeat(9), "y".repeat(20))), Ok(()));
    assert_eq!(read("a.jsonl", "{\"text\": \"123456\"}\n\n{\"text\": \"1234567\"}"), Ok(()));
    let problem = "the document is longer than 20 bytes; split it into smaller documents";
    assert_eq!(read("a.txt", &"x".repeat(21)), Err(format!("a.txt:1: {problem}")));
    assert_eq!(read("a.txt", &"x\n".repeat(11)), Err(format!("a.txt:11: {problem}")));
    assert_eq!(
        read("a.jsonl", &format!("\n{{\"text\": \"{}\"}}", "x".repeat(9))),
        Err(format!("a.jsonl:2: {problem}"))
    );
}

#[test]
fn documents_before_a_fault_are_handed_on_and_a_refusal_stops_at_once() {
    let (documents, result) = read_with("a.jsonl", b"{\"text\":\"one\"}\noops\n", &ReadOptions::default());
    assert_eq!((documents.len(), result.is_err()), (1, true));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    std::fs::write(&path, "a\n\u{1e}\nb\n").unwrap();
    let mut seen = 0;
    let result: Result<()> = read_documents(&path, &ReadOptions::default(), &mut |_| {
        seen += 1;
        Err(Error::Usage("enough".to_string()))
    });
    assert!(matches!(result, Err(Error::Usage(_))));
    assert_eq!(seen, 1);
}

/// Any text, rich in what the formats treat specially.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<char>().prop_map(String::from),
        "[a-z ]{1,8}",
        prop::sample::select(vec!["\n", "\r\n", "\u{1e}", "\n\u{1e}", "\\", "\"", "\u{feff}", "\0"])
            .prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

/// Text that a .txt file can hold as one of several documents.
fn text_for_txt() -> impl Strategy<Value = String> {
    any_text().prop_map(|text| text.replace('\0', "")).prop_filter("a separator or a line end would be lost", |text| {
        let has_separator = text.split('\n').any(|line| line.strip_suffix('\r').unwrap_or(line) == "\u{1e}");
        !has_separator && !text.ends_with('\r') && !text.starts_with('\u{feff}')
    })
}

/// Reads `plain` back from a file without compression and from one with each.
fn assert_round_trips(name: &str, plain: &str, documents: &[String]) {
    let middle = plain.floor_char_boundary(plain.len() / 2);
    let (head, tail) = plain.as_bytes().split_at(middle);
    for (suffix, bytes) in [
        ("", plain.as_bytes().to_vec()),
        (".gz", [gzip(head), gzip(tail)].concat()),
        (".zst", [zstd(head), zstd(tail)].concat()),
    ] {
        let (found, result) = read_with(&format!("{name}{suffix}"), &bytes, &ReadOptions::default());
        let has_text = documents.iter().any(|document| !document.trim().is_empty());
        assert_eq!(result.is_ok(), has_text, "{result:?}");
        if !bytes.is_empty() {
            assert_eq!(found.into_iter().map(|document| document.text).collect::<Vec<_>>(), documents);
        }
    }
}

proptest! {
    #[test]
    fn text_files_read_back_identical(documents in prop::collection::vec(text_for_txt(), 1..6)) {
        assert_round_trips("a.txt", &documents.join("\n\u{1e}\n"), &documents);
    }

    #[test]
    fn json_lines_read_back_identical(documents in prop::collection::vec(any_text(), 1..6)) {
        let lines = documents.iter().map(|text| serde_json::json!({ "text": text }).to_string());
        assert_round_trips("a.jsonl", &lines.collect::<Vec<_>>().join("\n"), &documents);
    }
}
