//! Safetensors headers: lengths, JSON, duplicates, offsets, shapes, names; and every verdict beside the safetensors crate's.

use super::*;

#[test]
fn header_lengths_are_checked_against_the_file() {
    for n in 0..8 {
        assert_eq!(open_one(&vec![0; n]), Fault::HeaderTooSmall, "{n} bytes");
    }
    let with_length = |n: u64| [&n.to_le_bytes()[..], b"{}"].concat();
    assert_eq!(open_one(&with_length(0)), Fault::HeaderTooSmall);
    assert_eq!(open_one(&with_length(3)), Fault::HeaderLength);
    assert_eq!(open_one(&with_length(100_000_000)), Fault::HeaderLength);
    assert_eq!(open_one(&with_length(100_000_001)), Fault::HeaderTooLarge);
    assert_eq!(open_one(&with_length(u64::MAX)), Fault::HeaderTooLarge);
    assert_eq!(open_one(&with_length(1 << 63)), Fault::HeaderTooLarge);
    assert!(open(&folder(&[("model.safetensors", &with_length(2))])).is_ok());
}

#[test]
fn every_cut_of_a_file_is_an_error() {
    let whole = file(&format!("{{{},{}}}", entry("a", 0, 8), entry("b", 8, 20)), 20);
    let dir = folder(&[("model.safetensors", &whole)]);
    assert_eq!(open(&dir).unwrap().tensors().len(), 2);
    for cut in 0..whole.len() {
        fs::write(dir.path().join("model.safetensors"), &whole[..cut]).unwrap();
        assert!(matches!(open(&dir), Err(Error::Malformed { .. })), "cut at {cut}");
    }
}

#[test]
fn a_header_starts_with_a_brace_and_ends_with_one_or_spaces() {
    for start in [" {}", "\n{}", "\u{feff}{}", "[]", "1", "null", ""] {
        assert_eq!(fault(parse(start, 0)), Fault::HeaderStart, "{start:?}");
    }
    for header in ["{} x", "{}\n", "{}\t", "{}{}", "{", "{\"a", "{\"a\":}", "{\"__metadata__\":{}} \0"] {
        assert_eq!(fault(parse(header, 0)), Fault::Json, "{header:?}");
    }
    assert_eq!(fault(parse_bytes(b"{\"a\xff\":1}", 0)), Fault::Json);
    assert!(parse("{}      ", 0).is_ok());
    assert!(parse("{ \n }", 0).is_ok());
}

#[test]
fn depth_is_bounded() {
    for open in ["[", "{\"a\":"] {
        let deep = open.repeat(100_000);
        assert_eq!(fault(parse(&format!("{{\"a\":{deep}"), 0)), Fault::JsonDepth);
        assert_eq!(fault(Config::parse("config.json", deep.as_bytes())), Fault::JsonDepth);
        assert_eq!(fault(open_index(&format!("{{\"weight_map\":{deep}"))), Fault::JsonDepth);
    }
}

#[test]
fn metadata_may_be_null() {
    let header = format!(r#"{{"__metadata__":null,{}}}"#, entry("a", 0, 4));
    assert_eq!(parse(&header, 4).unwrap().len(), 1);
    for bad in ["1", "\"x\"", "[]", "true", r#"{"format":null}"#] {
        assert_eq!(fault(parse(&format!(r#"{{"__metadata__":{bad}}}"#), 0)), Fault::Json, "{bad}");
    }
}

#[test]
fn nothing_is_there_twice() {
    let same = format!("{{{},{}}}", entry("a", 0, 4), entry("a", 0, 4));
    let other_type =
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#;
    let escaped = format!("{{{},{}}}", entry("a", 0, 4), entry("\\u0061", 4, 8));
    for header in [
        same.as_str(),
        other_type,
        &escaped,
        r#"{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"data_offsets":[0,4]}}"#,
        r#"{"__metadata__":{},"__metadata__":{}}"#,
        r#"{"__metadata__":{"format":"pt","format":"np"}}"#,
    ] {
        assert_eq!(fault(parse(header, 4)), Fault::DuplicateKey, "{header}");
    }
}

#[test]
fn offsets_are_two_ordered_unsigned_integers() {
    for offsets in [
        "[-1,3]",
        "[0.0,4.0]",
        "[0,4e0]",
        "[0,18446744073709551616]",
        "[0,4,8]",
        "[4]",
        "[]",
        "[4,0]",
        "4",
        "null",
        "\"0,4\"",
        "[\"0\",4]",
    ] {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":{offsets}}}}}"#);
        assert_eq!(fault(parse(&header, 4)), Fault::OffsetInvalid, "{offsets}");
    }
}

#[test]
fn tensors_cover_the_data_from_end_to_end() {
    let two = |a: (u64, u64), b: (u64, u64)| format!("{{{},{}}}", entry("a", a.0, a.1), entry("b", b.0, b.1));
    assert!(parse(&two((0, 4), (4, 8)), 8).is_ok());
    assert!(parse(&two((4, 8), (0, 4)), 8).is_ok(), "the header's order does not matter");
    assert_eq!(fault(parse(&two((0, 8), (4, 8)), 8)), Fault::OffsetMismatch, "overlap");
    assert_eq!(fault(parse(&two((0, 4), (0, 4)), 4)), Fault::OffsetMismatch, "the same bytes twice");
    assert_eq!(fault(parse(&two((0, 4), (8, 12)), 12)), Fault::NotCovered, "hole");
    assert_eq!(fault(parse(&two((4, 8), (8, 12)), 12)), Fault::NotCovered, "hole at the start");
    assert_eq!(fault(parse(&two((0, 4), (4, 8)), 9)), Fault::NotCovered, "trailing bytes");
    assert_eq!(fault(parse("{}", 1)), Fault::NotCovered);
    assert_eq!(fault(parse(&two((0, 4), (4, 8)), 7)), Fault::DataPastEof, "one byte short");
    let huge = format!("{{{}}}", entry("a", 0, u64::MAX - 3));
    assert_eq!(fault(parse(&huge, 8)), Fault::ShapeOverflow, "the size in bits overflows");
}

#[test]
fn a_sparse_file_of_a_terabyte_is_not_covered() {
    let dir = folder(&[("model.safetensors", &file(&format!("{{{}}}", entry("a", 0, 4)), 4))]);
    fs::OpenOptions::new().write(true).open(dir.path().join("model.safetensors")).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(fault(open(&dir)), Fault::NotCovered);
}

#[test]
fn shapes_fit_their_bytes() {
    let header =
        |dtype: &str, shape: &str, end: u64| format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#);
    for (dtype, shape, end, expected) in [
        ("F32", "[2]", 4, Fault::SizeMismatch),
        ("F64", "[1]", 4, Fault::SizeMismatch),
        ("BF16", "[1,1]", 4, Fault::SizeMismatch),
        ("F32", "[4294967296,4294967296]", 4, Fault::ShapeOverflow),
        ("F32", "[4611686018427387904]", 4, Fault::ShapeOverflow),
        // A zero must not hide that the rest overflows.
        ("F32", "[0,4294967296,4294967296]", 0, Fault::ShapeOverflow),
        ("F4", "[3]", 2, Fault::SubByte),
        ("F6_E2M3", "[3]", 2, Fault::SubByte),
        ("F32", "[1,1,1,1,1,1,1,1,1]", 4, Fault::TooManyDims),
        ("F32", "[-1]", 4, Fault::Json),
        ("F32", "[1.0]", 4, Fault::Json),
        ("F32", "1", 4, Fault::Json),
        ("F32", "[[1]]", 4, Fault::Json),
    ] {
        assert_eq!(fault(parse(&header(dtype, shape, end), end)), expected, "{dtype} {shape}");
    }
    let long = format!("[{}1]", "1,".repeat(99_999));
    assert_eq!(fault(parse(&header("F32", &long, 4), 4)), Fault::TooManyDims);
    for (dtype, shape, end) in
        [("F32", "[]", 4), ("F32", "[0]", 0), ("F32", "[3,0,2]", 0), ("F4", "[2]", 1), ("F32", "[1,1,1,1,1,1,1,1]", 4)]
    {
        assert!(parse(&header(dtype, shape, end), end).is_ok(), "{dtype} {shape}");
    }
    let sharing = format!("{{{},{},{}}}", entry("a", 0, 4), entry("b", 4, 4), entry("c", 4, 8));
    assert_eq!(parse(&sharing, 8).unwrap().len(), 3, "an empty tensor shares its offset with the next");
}

#[test]
fn fields_are_complete_and_of_their_type() {
    for (header, expected) in [
        (r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, Fault::UnknownDtype),
        (r#"{"a":{"dtype":"f32","shape":[1],"data_offsets":[0,4]}}"#, Fault::UnknownDtype),
        (r#"{"a":{"dtype":4,"shape":[1],"data_offsets":[0,4]}}"#, Fault::UnknownDtype),
        (r#"{"a":{"shape":[1],"data_offsets":[0,4]}}"#, Fault::Json),
        (r#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#, Fault::Json),
        (r#"{"a":{"dtype":"F32","shape":[1]}}"#, Fault::Json),
        (r#"{"a":[]}"#, Fault::Json),
        (r#"{"a":null}"#, Fault::Json),
        (r#"{"__metadata__":{"a":1}}"#, Fault::Json),
        (r#"{"__metadata__":{"a":{}}}"#, Fault::Json),
        (r#"{"__metadata__":[]}"#, Fault::Json),
    ] {
        assert_eq!(fault(parse(header, 4)), expected, "{header}");
    }
    assert!(parse(r#"{"a":{"dtype":"F32","extra":[{}],"shape":[1],"data_offsets":[0,4]}}"#, 4).is_ok());
}

#[test]
fn names_are_text_and_never_a_path() {
    for name in ["", "a\\u0000b", "\\u001b[2J", "/etc/x", "../../etc/x", "a/../b", "a\\\\..\\\\b"] {
        assert_eq!(fault(parse(&format!("{{{}}}", entry(name, 0, 4)), 4)), Fault::InvalidName, "{name:?}");
    }
    assert_eq!(fault(parse(&format!("{{{}}}", entry("\\ud800", 0, 4)), 4)), Fault::Json, "a lone surrogate is no JSON string");
    assert!(parse(&format!("{{{}}}", entry("params/layer.0/ä", 0, 4)), 4).is_ok());
}

#[test]
fn a_header_at_the_limit_keeps_the_heap_bound() {
    let mut header = String::with_capacity(99_000_000);
    header.push('{');
    let n = 1_000_000;
    for i in 0..n {
        let (begin, end) = (i * 4, i * 4 + 4);
        header +=
            &format!("\"model.layers.{i:012}.weight\":{{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[{begin},{end}]}},");
    }
    let header = format!("{}}}", header.trim_end_matches(','));
    assert!((90_000_000..safetensors::HEADER_BYTES_MAX as usize).contains(&header.len()), "{}", header.len());
    let before = common::cpu_time();
    assert_eq!(parse(&header, n * 4).unwrap().len() as u64, n);
    let took = common::cpu_time() - before;
    println!("{} bytes of header, {n} tensors: {took:?}", header.len());
    // 0.55 s on one quiet core; the bound is there to notice a quadratic step, which would take minutes.
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn the_smallest_entries_keep_the_heap_bound() {
    for (n, name_len) in [(65_537, 4), (100_000, 5), (200_000, 40)] {
        let entries: Vec<String> =
            (0..n).map(|i| format!(r#""{i:0name_len$}":{{"dtype":"U8","shape":[],"data_offsets":[{i},{}]}}"#, i + 1)).collect();
        assert_eq!(parse(&format!("{{{}}}", entries.join(",")), n).unwrap().len() as u64, n);
        let flat: Vec<String> = (0..n)
            .map(|i| format!(r#""{i:0name_len$}":{{"dtype":"U8","shape":[1,1,1,1,1,1,1,1],"data_offsets":[{i},{}]}}"#, i + 1))
            .collect();
        assert_eq!(parse(&format!("{{{}}}", flat.join(",")), n).unwrap().len() as u64, n);
    }
    let metadata: Vec<String> = (0..100_000).map(|i| format!("\"{i}\":\"\"")).collect();
    assert_eq!(fault(parse(&format!("{{\"__metadata__\":{{{}}}}}", metadata.join(",")), 0)), Fault::HeaderTooLarge);
}

#[test]
fn a_folder_of_small_entries_keeps_the_heap_bound() {
    let n = 60_000;
    let entries: Vec<String> =
        (0..n).map(|i| format!(r#""{i}":{{"dtype":"I8","shape":[],"data_offsets":[{i},{}]}}"#, i + 1)).collect();
    let header = format!("{{{}}}", entries.join(","));
    let listed: Vec<String> = (0..n).map(|i| format!(r#""{i}":"a.safetensors""#)).collect();
    let index = format!(r#"{{"weight_map":{{{}}}}}"#, listed.join(","));
    let dir = folder(&[("a.safetensors", &file(&header, n)), (INDEX, index.as_bytes())]);
    let (result, peak) = peak_bytes(|| Folder::open(dir.path()));
    assert_eq!(result.unwrap().tensors().len(), n);
    let bound = 4 * (header.len() + index.len()) as u64 + (1 << 20);
    assert!(peak <= bound, "{peak} bytes of heap, bound {bound}");
}

// Every verdict beside the safetensors crate's.

#[test]
fn mutated_headers_get_the_verdict_of_the_safetensors_crate_or_a_stricter_one() {
    let seeds = [
        format!("{{{},{}}}", entry("a", 0, 8), entry("b", 8, 20)),
        format!(r#"{{"__metadata__":{{"format":"pt"}},{},{}}}  "#, entry("a", 0, 0), entry("b", 0, 20)),
        r#"{"x":{"dtype":"BF16","shape":[2,5],"data_offsets":[0,20]}}"#.to_owned(),
    ];
    const PIECES: &[&str] =
        &["{", "}", "[", "]", "\"", ",", ":", "0", "1", "8", "20", "-1", " ", "\n", "F4", "F64", "a", "\\u0061", "null", "1e1"];
    let mut random = Random(1);
    let (mut n_accepted, mut n_stricter) = (0, 0);
    for round in 0..200_000 {
        let mut header = seeds[round % seeds.len()].clone().into_bytes();
        for _ in 0..1 + random.below(3) {
            let at = random.below(header.len());
            match random.below(3) {
                0 => drop(header.remove(at)),
                1 => drop(header.splice(at..at, PIECES[random.below(PIECES.len())].bytes())),
                _ => drop(header.splice(at..=at, PIECES[random.below(PIECES.len())].bytes())),
            }
            if header.is_empty() {
                break;
            }
        }
        let ours = parse_bytes(&header, 20);
        let theirs = ::safetensors::SafeTensors::deserialize(&file_of(&header)).is_ok();
        let shown = String::from_utf8_lossy(&header);
        match ours {
            Ok(_) => {
                assert!(theirs, "accepted here only: {shown}");
                n_accepted += 1;
            }
            Err(Error::Malformed { fault, .. }) if theirs => {
                let stricter = [Fault::DuplicateKey, Fault::HeaderStart, Fault::InvalidName, Fault::TooManyDims, Fault::Json];
                assert!(stricter.contains(&fault), "{fault:?}, accepted by the crate: {shown}");
                n_stricter += 1;
            }
            Err(Error::Malformed { .. }) => {}
            Err(other) => panic!("{shown}: {other}"),
        }
    }
    println!("200000 headers: {n_accepted} accepted by both, {n_stricter} by the crate only");
    assert!(n_accepted > 1000);
}

fn file_of(header: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, &[0; 20]].concat()
}
