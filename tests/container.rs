//! What the writer lays out, the reader and PyPI's gguf read back.

use ggforge::gguf::{Array, File, Header, Metadata, TensorSpec, Value};
use ggforge::quant::Format;

/// One metadata entry of every type, with the values that are easy to get wrong.
fn metadata() -> Metadata {
    let strings = ["", "a", "\u{1f980} crab", "line\nbreak"].map(|s| s.as_bytes().to_vec()).to_vec();
    let entries = [
        ("general.architecture", Value::from("llama")),
        ("general.alignment", Value::U32(64)),
        ("t.u8", Value::U8(u8::MAX)),
        ("t.i8", Value::I8(i8::MIN)),
        ("t.u16", Value::U16(u16::MAX)),
        ("t.i16", Value::I16(i16::MIN)),
        ("t.u32", Value::U32(u32::MAX)),
        ("t.i32", Value::I32(i32::MIN)),
        ("t.f32", Value::F32(1e-5)),
        ("t.bool", Value::Bool(true)),
        ("t.u64", Value::U64(u64::MAX)),
        ("t.i64", Value::I64(i64::MIN)),
        ("t.f64", Value::F64(-0.1)),
        ("t.string", Value::from("\u{e4}\u{2028}\u{1b}[31m")),
        ("t.a.u8", Value::Array(Array::U8(vec![0, 255]))),
        ("t.a.i8", Value::Array(Array::I8(vec![-128, 127]))),
        ("t.a.u16", Value::Array(Array::U16(vec![1, 65535]))),
        ("t.a.i16", Value::Array(Array::I16(vec![-1, 32767]))),
        ("t.a.u32", Value::Array(Array::U32(vec![1, u32::MAX]))),
        ("t.a.i32", Value::Array(Array::I32(vec![-1, i32::MAX]))),
        ("t.a.f32", Value::Array(Array::F32(vec![0.5, -1e30]))),
        ("t.a.bool", Value::Array(Array::Bool(vec![true, false, true]))),
        ("t.a.string", Value::Array(Array::String(strings))),
        ("t.a.u64", Value::Array(Array::U64(vec![u64::MAX]))),
        ("t.a.i64", Value::Array(Array::I64(vec![i64::MIN, -1]))),
        ("t.a.f64", Value::Array(Array::F64(vec![1e300]))),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// One tensor of every format, of every number of dimensions.
fn tensors() -> Vec<TensorSpec> {
    let shape = |i: usize, columns: u64| match i % 4 {
        0 => vec![columns],
        1 => vec![3, columns],
        2 => vec![2, 3, columns],
        _ => vec![1, 2, 3, columns],
    };
    let spec = |(i, &format): (usize, &Format)| TensorSpec {
        name: format!("blk.{i}.{format}"),
        format,
        shape: shape(i, 2 * format.block_len() as u64),
    };
    Format::ALL.iter().enumerate().map(spec).collect()
}

fn header() -> Header {
    Header { metadata: metadata(), tensors: tensors() }
}

/// The complete file: byte `i` of tensor `t` is `(7 t + i) mod 251`, so that neighbours that were swapped show.
fn encode(header: &Header) -> Vec<u8> {
    let layout = header.layout().expect("a sound header");
    let mut bytes = layout.header.clone();
    for (t, (&offset, &size)) in layout.offsets_bytes.iter().zip(&layout.sizes_bytes).enumerate() {
        bytes.resize(offset as usize, 0);
        bytes.extend((0..size as usize).map(|i| ((7 * t + i) % 251) as u8));
    }
    bytes.resize(layout.file_bytes as usize, 0);
    bytes
}

#[test]
fn what_is_written_is_read_back() {
    let header = header();
    let bytes = encode(&header);
    let file = File::parse("round-trip.gguf", &bytes).expect("readable");
    assert_eq!((file.version(), file.alignment(), file.warnings()), (3, 64, [].as_slice()));

    let metadata: Metadata = file.metadata().map(|(key, value)| (key.to_owned(), value.into())).collect();
    assert_eq!(metadata, header.metadata);
    for (key, value) in &header.metadata {
        assert_eq!(file.get(key).map(Value::from).as_ref(), Some(value), "{key}");
    }
    let layout = header.layout().expect("a sound header");
    assert_eq!(file.n_tensors(), header.tensors.len());
    for (t, (info, spec)) in file.tensors().zip(&header.tensors).enumerate() {
        assert_eq!((info.name, info.format, &info.shape), (spec.name.as_str(), spec.format, &spec.shape));
        assert_eq!((info.offset_bytes, info.size_bytes), (layout.offsets_bytes[t], layout.sizes_bytes[t]));
        assert_eq!(file.tensor(&spec.name).as_ref(), Some(&info));
        assert_eq!(file.tensor_bytes(&info).expect("in the file")[0], (7 * t % 251) as u8);
    }
    assert_eq!((file.get("t"), file.tensor("blk.0")), (None, None));
}

#[test]
fn a_header_that_no_reader_would_accept_is_refused() {
    let refused = |change: &dyn Fn(&mut Header), expected: &str| {
        let mut header = header();
        change(&mut header);
        let error = header.layout().expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(&|h| h.tensors[1].name = h.tensors[0].name.clone(), "is given twice");
    refused(&|h| h.tensors[0].name = "x".repeat(64), "64 bytes");
    refused(&|h| h.tensors[0].name.clear(), "0 bytes");
    refused(&|h| h.tensors[0].shape = vec![], "0 dimensions");
    refused(&|h| h.tensors[0].shape = vec![1; 5], "5 dimensions");
    refused(&|h| h.tensors[0].shape = vec![4, 0], "no weights");
    refused(&|h| h.tensors[0].shape = vec![1 << 62, 2], "more weights");
    refused(&|h| h.tensors[0].shape = vec![1 << 61], "more bytes");
    refused(&|h| h.tensors[2].shape = vec![33], "33 columns, not a multiple of 32 (Q4_0)");
    refused(&|h| h.metadata.push(("t.u8".into(), Value::U8(1))), "t.u8 is given twice");
    refused(&|h| h.metadata.push((String::new(), Value::U8(1))), "is empty");
    refused(&|h| h.metadata.push(("a\nb".into(), Value::U8(1))), "not printable");
    refused(&|h| h.metadata[1].1 = Value::U32(48), "power of two");
    refused(&|h| h.metadata[1].1 = Value::U64(64), "power of two");
}
