//! One malformed file per rule, with the fault and the byte it must be reported at.

use super::*;

/// Where a fault must be reported.
enum At {
    Byte(u64),
    /// So many bytes into a metadata entry.
    Entry(usize, u64),
    /// So many bytes into a tensor info.
    Info(usize, u64),
}
use At::{Byte, Entry, Info};

#[track_caller]
fn refused(name: &str, gg: Gg, fault: Fault, at: At) {
    let bytes = gg.bytes();
    let expected = match at {
        Byte(at) => at,
        Entry(i, within) => gg.entry_at(i) + within,
        Info(i, within) => gg.info_at(i) + within,
    };
    let error = parse(&bytes, gg.header().len()).map(|file| panic!("{name}: accepted: {file:?}")).unwrap_err();
    assert_message(&error, "case.gguf: byte ");
    match &error {
        Error::Malformed { fault: found, place: Place::Byte(at), .. } if (*found, *at) == (fault, expected) => {}
        _ => panic!("{name}: expected {} at byte {expected}, got: {error}", fault.name()),
    }
}

#[track_caller]
fn accepted(name: &str, gg: &Gg) {
    let bytes = gg.bytes();
    let file = parse(&bytes, gg.header().len()).unwrap_or_else(|e| panic!("{name}: {e}"));
    explore(&file);
}

/// A file with one metadata entry.
fn one_kv(key: impl AsRef<[u8]>, value_type: u32, value: impl AsRef<[u8]>) -> Gg {
    gg().kv(key, value_type, value)
}

/// A file with one tensor and the bytes of data that one may expect to be enough.
fn one_ti(name: impl AsRef<[u8]>, dims: &[u64], ggml_type: u32, offset: u64) -> Gg {
    gg().ti(name, dims, ggml_type, offset).data(vec![0; 1024])
}

#[test]
fn rows_1_to_7_magic_and_version() {
    for (name, bytes, hint) in [
        ("reversed", &b"FUGG\x03\0\0\0"[..], "reversed"),
        ("ggml", b"lmgg\0\0\0\0", "convert the original"),
        ("ggjt", b"tjgg\0\0\0\0", "convert the original"),
        ("zip", b"PK\x03\x04\x14\0\0\0", "safetensors"),
        ("pickle", b"\x80\x02}q\0", "safetensors"),
        ("html", b"\n<!DOCTYPE HTML><html>", "/resolve/"),
        ("lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("safetensors", b"\x10\0\0\0\0\0\0\0{\"a\":1}", "folder"),
        ("gzip", b"\x1f\x8b\x08\0", "decompress"),
        ("zeros", &[0; 64], "did not finish"),
        ("text", b"hello", "letters GGUF"),
        ("short text", b"he", "letters GGUF"),
    ] {
        let error = parse(bytes, 0).expect_err(name);
        assert!(matches!(error, Error::Malformed { fault: Fault::NotGguf, place: Place::Byte(0), .. }), "{name}: {error}");
        assert!(error.to_string().contains(hint), "{name}: {error}");
        assert_message(&error, "case.gguf: byte 0");
    }
    let error = parse(b"", 0).expect_err("an empty file");
    assert!(matches!(error, Error::Malformed { fault: Fault::Truncated, place: Place::Byte(0), .. }), "{error}");

    refused("big endian", sound().version(3u32.swap_bytes()), Fault::BigEndian, Byte(4));
    for version in [0, 1, 4, 65536, u32::MAX] {
        refused("version", sound().version(version), Fault::UnsupportedVersion, Byte(4));
    }
    accepted("version 2", &sound().version(2));
    let (v2, v3) = (sound().version(2).bytes(), sound().bytes());
    let [v2, v3] = [&v2, &v3].map(|bytes| parse(bytes, bytes.len()).expect("sound"));
    assert!(v2.metadata().eq(v3.metadata()) && v2.tensors().eq(v3.tensors()));
}

#[test]
fn rows_8_to_11_counts() {
    for n in [u64::MAX, 1 << 56, 1 << 40] {
        refused("tensors", gg().claim_tensors(n), Fault::CountExceedsFile, Byte(8));
        refused("entries", gg().claim_entries(n), Fault::CountExceedsFile, Byte(16));
    }
    let tensor = || one_ti("t", &[4], ggml::F32, 0);
    let entry = || gg().kv("a", U32, d(1)).ti("t", &[4], ggml::F32, 0).data(vec![0; 64]);
    // The second info would begin in the padding: a name of length zero.
    refused("one tensor too many", tensor().claim_tensors(2), Fault::EmptyName, Info(1, 0));
    refused("one tensor too few", tensor().claim_tensors(0), Fault::UnreadHeader, Info(0, 0));
    refused("one of two tensors", tensor().ti("u", &[4], ggml::F32, 32).claim_tensors(1), Fault::UnreadHeader, Info(1, 0));
    refused("one entry too few", one_kv("a", U32, d(1)).claim_entries(0), Fault::UnreadHeader, Entry(0, 0));
    // The entry is read as a tensor info: its type, 4, as the number of dimensions.
    let error = parse(&entry().claim_entries(0).bytes(), 128).expect_err("an entry too few");
    assert!(matches!(error, Error::Malformed { place: Place::Byte(24..), .. }), "{error}");
    let error = parse(&entry().claim_entries(2).bytes(), 128).expect_err("an entry too many");
    assert!(matches!(error, Error::Malformed { place: Place::Byte(24..), .. }), "{error}");
    accepted("nothing at all", &gg());
}

#[test]
fn rows_12_to_17_keys() {
    for len in [u64::MAX, 1 << 30, 6] {
        // Five bytes are left behind the length: more than the smallest entry needs, less than the key claims.
        refused("key length", gg().raw_kv([&q(len)[..], b"abcde"].concat()), Fault::LengthExceedsFile, Entry(0, 0));
    }
    refused("empty key", one_kv("", U8, [1]), Fault::EmptyKey, Entry(0, 0));
    accepted("longest key", &one_kv("k".repeat(65535), U8, [1]));
    refused("key too long", one_kv("k".repeat(65536), U8, [1]), Fault::KeyTooLong, Entry(0, 0));
    for key in [&b"\xff\xfe"[..], b"a\0b", b"a\x1b[2J", b"a\n", "a\u{9b}b".as_bytes()] {
        refused("key not printable", one_kv(key, U8, [1]), Fault::InvalidKey, Entry(0, 0));
    }
    let twice = gg().kv("a", U8, [1]).kv("b", U8, [1]).kv("a", U8, [2]);
    let (first, text) = (twice.entry_at(0), parse(&twice.bytes(), 64).expect_err("twice").to_string());
    assert!(text.ends_with(&format!("byte {first}")), "both places are named: {text}");
    refused("key twice", twice, Fault::DuplicateKey, Entry(2, 0));
    refused("equal up to NUL", gg().kv("a\0b", U8, [1]).kv("a\0c", U8, [1]), Fault::InvalidKey, Entry(0, 0));
}

#[test]
fn rows_18_to_22_values() {
    for value_type in [13, u32::MAX] {
        refused("value type", one_kv("a", value_type, [0; 8]), Fault::UnknownValueType, Entry(0, 9));
    }
    for len in [1 << 63, u64::MAX, 4] {
        refused("string length", one_kv("a", STRING, [&q(len)[..], b"abc"].concat()), Fault::LengthExceedsFile, Entry(0, 13));
    }
    for (name, text) in [("not UTF-8", &b"\xff\xfe\x80"[..]), ("NUL", b"a\0b"), ("escapes", b"\x1b[2J\x1b]0;x\x07\r\n")] {
        let bytes = one_kv("a", STRING, s(text)).bytes();
        let file = parse(&bytes, bytes.len()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(file.get("a").map(Value::from), Some(Value::String(text.to_vec())), "{name}");
    }
    for byte in [2, 255] {
        refused("bool", one_kv("a", BOOL, [byte]), Fault::InvalidBool, Entry(0, 13));
        refused("bool in array", one_kv("a", ARRAY, a(BOOL, 3, &[0, 1, byte])), Fault::InvalidBool, Entry(0, 27));
    }
}

#[test]
fn row_20_documented_limits_can_be_lifted() {
    let bytes = one_kv("a", STRING, s(vec![b'x'; (64 << 20) + 1])).bytes();
    match parse(&bytes, bytes.len()) {
        Err(error @ Error::Limit { limit, found, .. }) => {
            assert_eq!((limit, found), (64 << 20, (64 << 20) + 1));
            assert_message(&error, "case.gguf: byte 37");
        }
        other => panic!("{other:?}"),
    }
    File::parse_within("case.gguf", &bytes, &ggforge::gguf::Limits::NONE).expect("no limit");
    let bytes = one_kv("a", ARRAY, a(U8, (1 << 26) + 1, &vec![0; (1 << 26) + 1])).bytes();
    assert!(matches!(parse(&bytes, bytes.len()), Err(Error::Limit { limit: 0x400_0000, .. })));
}

#[test]
fn row_21_no_text_of_a_file_reaches_the_terminal_unescaped() {
    let evil = "\u{1b}[2J\u{1b}]0;x\u{7}\r\n\u{9b}31m\u{202e}\u{2066}";
    for bytes in [
        one_kv(evil, U8, [1]).bytes(),
        gg().kv("a", U8, [1]).ti(evil, &[33], ggml::Q4_0, 0).bytes(),
        gg().ti(evil, &[4], ggml::F32, 0).ti(evil, &[4], ggml::F32, 32).data(vec![0; 64]).bytes(),
        gg().ti(evil, &[4], 4, 0).data(vec![0; 64]).bytes(),
    ] {
        assert_message(&parse(&bytes, bytes.len()).expect_err("malformed"), "case.gguf: byte ");
        let error = File::parse(format!("{evil}.gguf"), &bytes).expect_err("malformed");
        assert!(error.to_string().chars().all(is_harmless), "{error:?}");
    }
}

#[test]
fn rows_23_to_26_arrays() {
    refused("element type", one_kv("a", ARRAY, a(13, 1, &[0; 8])), Fault::UnknownValueType, Entry(0, 13));
    for (element_type, count) in [(U8, 1 << 63), (U64, (1 << 61) + 1), (U8, 1 << 30), (STRING, 1 << 30), (STRING, 1 << 61)] {
        refused("count", one_kv("a", ARRAY, a(element_type, count, &[0; 8])), Fault::CountExceedsFile, Entry(0, 17));
    }
    let mut nested = a(U8, 1, &[0]);
    for _ in 0..10_000 {
        nested = a(ARRAY, 1, &nested);
    }
    refused("10 000 arrays in arrays", one_kv("a", ARRAY, nested), Fault::NestedArray, Entry(0, 13));
    refused("array in array", one_kv("a", ARRAY, a(ARRAY, 1, &a(U8, 1 << 40, &[]))), Fault::NestedArray, Entry(0, 13));
}

#[test]
fn rows_29_to_32_alignment() {
    let key = "general.alignment";
    for (value_type, value) in
        [(I32, d(32)), (U64, q(32)), (STRING, s("32")), (ARRAY, a(U32, 1, &d(32))), (BOOL, vec![1]), (U16, vec![32, 0])]
    {
        refused("alignment type", one_kv(key, value_type, value), Fault::AlignmentType, Entry(0, 0));
    }
    for alignment in [0, 3, 31, u32::MAX] {
        refused("alignment", one_kv(key, U32, d(alignment)), Fault::AlignmentNotPowerOfTwo, Entry(0, 0));
    }
    for alignment in [1 << 17, 1 << 20, 1 << 31] {
        refused("alignment", one_kv(key, U32, d(alignment)), Fault::AlignmentTooLarge, Entry(0, 0));
    }
    for alignment in [1u32, 8, 64, 1 << 16] {
        let next = 3u64.next_multiple_of(u64::from(alignment));
        let gg = one_kv(key, U32, d(alignment)).ti("t", &[3], ggml::I8, 0).ti("u", &[4], ggml::F32, next);
        accepted("alignment", &gg.data([&[7; 3][..], &vec![0; next as usize - 3], &[1; 16]].concat()).align(alignment as usize));
    }
}

#[test]
fn rows_33_to_38_names_and_dimensions() {
    refused("empty name", one_ti("", &[4], ggml::F32, 0), Fault::EmptyName, Info(0, 0));
    for len in [64, 65535] {
        refused("long name", one_ti("n".repeat(len), &[4], ggml::F32, 0), Fault::NameTooLong, Info(0, 0));
    }
    accepted("longest name", &one_ti("n".repeat(63), &[4], ggml::F32, 0));
    for name in [&b"\xff"[..], b"a\0b"] {
        refused("name", one_ti(name, &[4], ggml::F32, 0), Fault::InvalidName, Info(0, 0));
    }
    accepted("names that look like paths", &one_ti("../../etc/passwd", &[4], ggml::F32, 0));
    let twice = gg().ti("t", &[4], ggml::F32, 0).ti("t", &[4], ggml::F32, 32).data(vec![0; 64]);
    refused("name twice", twice, Fault::DuplicateTensor, Info(1, 0));

    accepted("no dimensions", &one_ti("t", &[], ggml::F32, 0));
    let bytes = one_ti("t", &[], ggml::F32, 0).bytes();
    let file = parse(&bytes, bytes.len()).expect("sound");
    assert_eq!(file.tensor("t").map(|t| (t.shape, t.size_bytes)), Some((vec![], 4)));
    refused("five dimensions", one_ti("t", &[1; 5], ggml::F32, 0), Fault::TooManyDims, Info(0, 9));
    let many = [&s("t")[..], &d(u32::MAX), &[0; 64]].concat();
    refused("2^32 - 1 dimensions", gg().raw_ti(many), Fault::TooManyDims, Info(0, 9));
    accepted("a dimension of zero", &one_ti("t", &[32, 0], ggml::F32, 0));
    accepted("a row of zero", &one_ti("t", &[0], ggml::Q4_K, 0));
}

#[test]
fn rows_39_to_45_sizes() {
    let big = 1u64 << 62;
    refused("zero hides overflow", one_ti("t", &[big, 0, big, big], ggml::F32, 0), Fault::ShapeOverflow, Info(0, 0));
    refused("zero hides overflow", one_ti("t", &[0, big, big], ggml::F32, 0), Fault::ShapeOverflow, Info(0, 0));
    for dim in [u64::MAX, 1 << 63] {
        refused("dimension", one_ti("t", &[dim], ggml::F32, 0), Fault::DimTooLarge, Info(0, 13));
        refused("dimension", one_ti("t", &[1, dim], ggml::F32, 0), Fault::DimTooLarge, Info(0, 21));
    }
    let wraps_to_4 = [4_194_305, 4_194_305, 211_106_198_978_564];
    refused("product wraps", one_ti("t", &wraps_to_4, ggml::F32, 0), Fault::ShapeOverflow, Info(0, 0));
    refused("bytes overflow", one_ti("t", &[1 << 61], ggml::I64, 0), Fault::SizeOverflow, Info(0, 0));
    refused("pad wraps", one_ti("t", &[4, (1 << 30) - 1, (1 << 30) + 1], ggml::F32, 0), Fault::SizeOverflow, Info(0, 0));
    let half = (1u64 << 63) - 64;
    let halves = gg().ti("t", &[half], ggml::I8, 0).ti("u", &[half], ggml::I8, half).data(vec![0; 64]);
    refused("the sum wraps", halves, Fault::SizeOverflow, Info(1, 0));
    for (name, ggml_type, block_len, block_bytes) in
        [("Q4_0", ggml::Q4_0, 32, 18u64), ("Q8_0", ggml::Q8_0, 32, 34), ("Q4_K", ggml::Q4_K, 256, 144)]
    {
        // Weights x block bytes wraps to a few bytes. Counted by blocks it does not wrap, so the data is simply not there.
        let row_len = (u64::MAX / block_bytes / block_len + 1) * block_len;
        refused(name, one_ti("t", &[row_len], ggml_type, 0), Fault::DataPastEof, Info(0, 0));
        refused(name, one_ti("t", &[row_len, 1 << 8], ggml_type, 0), Fault::ShapeOverflow, Info(0, 0));
    }
    // Of the quantized formats only these have more than 8 bits per weight, so that weights fit 63 bits and bytes do not.
    refused("Q8_0", one_ti("t", &[(1 << 63) - 32], ggml::Q8_0, 0), Fault::SizeOverflow, Info(0, 0));
    refused("1 PiB", gg().ti("t", &[1 << 50], ggml::I8, 0).data(vec![]), Fault::DataPastEof, Info(0, 0));
    refused("8 GiB", gg().ti("t", &[1 << 33], ggml::I8, 0).data(vec![]), Fault::DataPastEof, Info(0, 0));
}

#[test]
fn rows_46_and_47_types() {
    for id in [4, 5, 31, 32, 33, 36, 37, 38] {
        refused("removed type", one_ti("t", &[256], id, 0), Fault::RemovedType, Info(0, 21));
    }
    for id in [43, 200, u32::MAX] {
        refused("unknown type", one_ti("t", &[256], id, 0), Fault::UnknownType, Info(0, 21));
    }
    refused("half a block", one_ti("t", &[128], ggml::Q4_K, 0), Fault::RowNotBlockMultiple, Info(0, 0));
    refused("half a block per row", one_ti("t", &[16, 2], ggml::Q4_0, 0), Fault::RowNotBlockMultiple, Info(0, 0));
}

#[test]
fn rows_48_to_51_offsets() {
    let pair = |first, second| gg().ti("t", &[4], ggml::F32, first).ti("u", &[4], ggml::F32, second).data(vec![0; 512]);
    refused("not aligned", one_ti("t", &[4], ggml::F32, 1), Fault::MisalignedOffset, Info(0, 0));
    refused("overlap", pair(0, 0), Fault::OffsetMismatch, Info(1, 0));
    refused("gap", pair(0, 256), Fault::OffsetMismatch, Info(1, 0));
    refused("reversed", pair(32, 0), Fault::OffsetMismatch, Info(0, 0));
    let text = parse(&pair(0, 256).bytes(), 128).expect_err("a gap").to_string();
    assert!(text.contains("256") && text.contains("expected 32"), "{text}");
    for offset in [u64::MAX, u64::MAX - 63, 1 << 40] {
        refused("offset", one_ti("t", &[4], ggml::F32, offset), Fault::DataPastEof, Info(0, 0));
        refused("second offset", pair(0, offset), Fault::DataPastEof, Info(1, 0));
    }
    let two = || gg().ti("t", &[4], ggml::F32, 0).ti("u", &[4], ggml::F32, 32);
    refused("one byte short", two().data(vec![0; 47]), Fault::DataPastEof, Info(1, 0));
    refused("no data", two().data(vec![]), Fault::DataPastEof, Info(0, 0));
    refused("no padding, no data", two(), Fault::DataPastEof, Info(0, 0));
}

#[test]
fn rows_52_and_53_padding_and_junk() {
    let warnings = |gg: Gg| {
        let bytes = gg.bytes();
        let file = parse(&bytes, bytes.len()).expect("harmless");
        explore(&file);
        file.warnings().iter().map(|warning| warning.to_string()).collect::<Vec<_>>()
    };
    let two = || gg().ti("t", &[4], ggml::F32, 0).ti("u", &[4], ggml::F32, 32);
    let data = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut data = [&[1; 16][..], &[0; 16], &[1; 16], &[0; 16]].concat();
        change(&mut data);
        data
    };
    assert_eq!(warnings(two().data(data(&|_| {}))), [""; 0]);
    assert_eq!(warnings(two().data(data(&|d| d.truncate(48)))), [""; 0], "the last padding may be missing");
    let start = two().data(vec![]).bytes().len();
    assert_eq!(
        warnings(two().data(data(&|d| d.extend(b"junk")))),
        [format!("4 bytes follow the last tensor, from byte {}", start + 64)]
    );
    assert_eq!(
        warnings(two().data(data(&|d| (d[20], d[30], d[63]) = (1, 2, 3)))),
        [format!("3 bytes of padding are not zero, the first at byte {}", start + 20)]
    );
    let mut bytes = two().data(data(&|_| {})).bytes();
    bytes[start - 1] = 1;
    assert_eq!(parse(&bytes, bytes.len()).expect("harmless").warnings().len(), 1, "padding behind the header");
}
