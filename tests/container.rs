//! What the writer lays out, the reader and PyPI's gguf read back.

mod common;

use std::path::Path;
use std::process::Command;

use ggforge::gguf::{Array, File, Header, Limits, Metadata, TensorSpec, Value, ValueType};
use ggforge::quant::Format;
use serde_json::{Value as Json, json};

/// Bytes of a metadata key at most, from the specification.
const KEY_BYTES_MAX: usize = 65535;

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

/// Whoever asks for a number gets it whatever its width, and nothing where it is none.
#[test]
fn numbers_are_found_at_any_width() {
    let whole = |x: u8| {
        let signed = x.cast_signed();
        let narrow = [Value::U8(x), Value::U16(x.into()), Value::U32(x.into()), Value::U64(x.into())];
        let signed = [Value::I8(signed), Value::I16(signed.into()), Value::I32(signed.into()), Value::I64(signed.into())];
        narrow.into_iter().chain(signed)
    };
    let floats = [Value::F32(-0.5), Value::F64(-0.5)];
    let others = [Value::Bool(true), Value::from("7"), Value::Array(Array::U8(vec![7]))];
    let negative = [Value::I8(-7), Value::I16(-7), Value::I32(-7), Value::I64(-7)];
    let expected = |value: &Value| match value {
        value if floats.contains(value) => (None, Some(-0.5)),
        value if whole(7).any(|seven| seven == *value) => (Some(7), None),
        _ => (None, None),
    };
    let values: Vec<Value> = whole(7).chain(floats.clone()).chain(others).chain(negative).collect();
    let metadata = values.iter().enumerate().map(|(i, value)| (format!("t.{i}"), value.clone())).collect();
    let bytes = encode(&Header { metadata, tensors: vec![] });
    let file = File::parse("numbers.gguf", &bytes).expect("readable");
    for (i, value) in values.iter().enumerate() {
        assert_eq!((value.as_u64(), value.as_f64()), expected(value), "{value:?}");
        let read = file.get(&format!("t.{i}")).expect("an entry");
        assert_eq!((read.as_u64(), read.as_f64()), expected(value), "{value:?} as it is read");
        assert_eq!(read.as_bool(), (*value == Value::Bool(true)).then_some(true), "{value:?}");
        let items = read.as_array().map(|array| (array.len(), array.is_empty(), array.iter().count()));
        assert_eq!(items, matches!(value, Value::Array(_)).then_some((1, false, 1)), "{value:?}");
    }
    for (array, len) in [(Array::I64(vec![]), 0), (Array::String(vec![vec![]; 3]), 3)] {
        assert_eq!((array.len(), array.is_empty()), (len, len == 0));
        let bytes = encode(&Header { metadata: vec![("a".into(), Value::Array(array))], tensors: vec![] });
        let file = File::parse("array.gguf", &bytes).expect("readable");
        let read = file.get("a").and_then(|value| value.as_array()).expect("an array");
        assert_eq!((read.len(), read.is_empty(), read.iter().count()), (len, len == 0, len));
    }
}

/// What a runtime relies on to read from many threads.
#[test]
fn files_are_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    let bytes = encode(&header());
    let file = File::parse("shared.gguf", &bytes).expect("readable");
    shared(&file);
    let first = file.tensors().next().expect("a tensor");
    shared(&first);
    let in_threads = std::thread::scope(|scope| {
        let of_thread = |n: usize| file.tensors().skip(n).step_by(2).map(|tensor| file.rows(&tensor).len()).sum::<usize>();
        [0, 1].map(|n| scope.spawn(move || of_thread(n))).map(|thread| thread.join().expect("no panic"))
    });
    let n_rows: usize = file.tensors().map(|tensor| file.rows(&tensor).len()).sum();
    assert_eq!(in_threads.iter().sum::<usize>(), n_rows);
}

#[test]
fn rows_are_whole_and_none_is_left_out() {
    let bytes = encode(&header());
    let file = File::parse("rows.gguf", &bytes).expect("readable");
    for tensor in file.tensors() {
        let rows: Vec<&[u8]> = file.rows(&tensor).collect();
        let n_rows: u64 = tensor.shape.iter().rev().skip(1).product();
        assert_eq!((rows.len() as u64, tensor.n_weights()), (n_rows, n_rows * tensor.row_len()), "{}", tensor.name);
        assert_eq!(Some(rows.concat().as_slice()), file.tensor_bytes(&tensor), "{}", tensor.name);
    }
}

/// Tensors without weights claim rows of any length and number; neither costs memory or a panic.
#[test]
fn a_tensor_without_weights_has_no_rows() {
    let mut bytes = encode(&Header {
        metadata: vec![],
        tensors: vec![TensorSpec { name: "t".into(), format: Format::F32, shape: vec![2, 3] }],
    });
    // magic, version, two counts; length and "t"; number of dimensions; then the fastest dimension and the next.
    let dims = 24 + 8 + 1 + 4;
    for (columns, rows) in [(0, 1 << 60), (1 << 60, 0), (0, 0), (0, 1)] {
        bytes[dims..][..8].copy_from_slice(&u64::to_le_bytes(columns));
        bytes[dims + 8..][..8].copy_from_slice(&u64::to_le_bytes(rows));
        let file = File::parse("empty.gguf", &bytes).expect("readable");
        let tensor = file.tensor("t").expect("one tensor");
        assert_eq!(tensor.shape, [rows, columns]);
        assert_eq!((tensor.n_weights(), tensor.row_len(), file.rows(&tensor).len()), (0, 0, 0), "{rows} x {columns}");
    }
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
    refused(&|h| h.metadata.push(("k".repeat(KEY_BYTES_MAX + 1), Value::U8(1))), "too long");
    let limits = Limits::default();
    let (string_bytes, array_len) = (limits.string_bytes as usize, limits.array_len as usize);
    refused(&|h| h.metadata.push(("s".into(), Value::String(vec![b'a'; string_bytes + 1]))), "a string of 67108865 bytes");
    let long = || Value::Array(Array::String(vec![vec![], vec![b'a'; string_bytes + 1]]));
    refused(&|h| h.metadata.push(("s".into(), long())), "a string of 67108865 bytes");
    refused(&|h| h.metadata.push(("a".into(), Value::Array(Array::U8(vec![0; array_len + 1])))), "an array of 67108865 items");
    refused(&|h| h.metadata[1].1 = Value::U32(48), "power of two");
    refused(&|h| h.metadata[1].1 = Value::U64(64), "power of two");

    // The longest of each are taken, and read again.
    let longest = [
        ("k".repeat(KEY_BYTES_MAX), Value::U8(1)),
        ("s".into(), Value::String(vec![b'a'; string_bytes])),
        ("a".into(), Value::Array(Array::U8(vec![0; array_len]))),
    ];
    let layout = Header { metadata: longest.into(), tensors: vec![] }.layout().expect("within the limits");
    let file = File::parse("longest.gguf", &layout.header).expect("readable");
    assert_eq!(file.metadata().map(|(key, _)| key.len()).collect::<Vec<_>>(), [KEY_BYTES_MAX, 1, 1]);
}

/// Runs a script of `tests/container/` on a file, with the Python that has PyPI's gguf.
fn python(script: &str, path: &Path) -> Option<Vec<u8>> {
    const PYTHON: &str = "venv/bin/python";
    let python = common::peers(PYTHON)?.join(PYTHON);
    let script = common::root().join("tests/container").join(script);
    Some(common::succeeds(Command::new(python).arg(script).arg(path)).stdout)
}

/// A value as Python's JSON writes it.
fn as_json(value: &Value) -> Json {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    match value {
        Value::U8(x) => json!(x),
        Value::I8(x) => json!(x),
        Value::U16(x) => json!(x),
        Value::I16(x) => json!(x),
        Value::U32(x) => json!(x),
        Value::I32(x) => json!(x),
        Value::F32(x) => json!(f64::from(*x)),
        Value::Bool(x) => json!(x),
        Value::String(bytes) => json!(text(bytes)),
        Value::U64(x) => json!(x),
        Value::I64(x) => json!(x),
        Value::F64(x) => json!(x),
        Value::Array(Array::U8(items)) => json!(items),
        Value::Array(Array::I8(items)) => json!(items),
        Value::Array(Array::U16(items)) => json!(items),
        Value::Array(Array::I16(items)) => json!(items),
        Value::Array(Array::U32(items)) => json!(items),
        Value::Array(Array::I32(items)) => json!(items),
        Value::Array(Array::F32(items)) => json!(items.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()),
        Value::Array(Array::Bool(items)) => json!(items),
        Value::Array(Array::String(items)) => json!(items.iter().map(|item| text(item)).collect::<Vec<_>>()),
        Value::Array(Array::U64(items)) => json!(items),
        Value::Array(Array::I64(items)) => json!(items),
        Value::Array(Array::F64(items)) => json!(items),
    }
}

/// What gguf calls a type.
fn python_name(value_type: ValueType) -> String {
    let name = value_type.name().to_uppercase();
    match name.as_bytes() {
        [b'U', bits @ ..] if bits[0].is_ascii_digit() => name.replace('U', "UINT"),
        [b'I', bits @ ..] if bits[0].is_ascii_digit() => name.replace('I', "INT"),
        [b'F', ..] => name.replace('F', "FLOAT"),
        _ => name,
    }
}

#[test]
fn the_gguf_package_reads_what_is_written() {
    let folder = common::scratch();
    let path = folder.path().join("written.gguf");
    let mut header = header();
    std::fs::write(&path, encode(&Header { tensors: vec![], ..header.clone() })).expect("a writable folder");
    let Some(output) = python("read.py", &path) else { return };
    let known: Json = serde_json::from_slice(&output).expect("JSON");
    // gguf 0.19 does not know the newest format yet, and gives Q8_1, which files never hold, the 40 bytes it had in 2023.
    header.tensors.retain(|tensor| tensor.format != Format::Q8_1 && known["types"].get(tensor.format.name()).is_some());
    assert!(header.tensors.len() >= 30, "gguf knows only {}", header.tensors.len());
    let bytes = encode(&header);
    std::fs::write(&path, &bytes).expect("a writable folder");
    let seen: Json = serde_json::from_slice(&python("read.py", &path).expect("as before")).expect("JSON");

    let types = |value: &Value| match value {
        Value::Array(array) => json!(["ARRAY", python_name(array.element_type())]),
        other => json!([python_name(other.value_type())]),
    };
    let fields: Vec<Json> = header.metadata.iter().map(|(key, value)| json!([key, types(value), as_json(value)])).collect();
    assert_eq!(seen["fields"], json!(fields));
    let layout = header.layout().expect("a sound header");
    assert_eq!(seen["tensors"].as_array().map(Vec::len), Some(header.tensors.len()));
    for (i, spec) in header.tensors.iter().enumerate() {
        let (offset, size) = (layout.offsets_bytes[i], layout.sizes_bytes[i]);
        let hex: String = bytes[offset as usize..(offset + size) as usize].iter().map(|byte| format!("{byte:02x}")).collect();
        let dims: Vec<u64> = spec.shape.iter().rev().copied().collect();
        let expected = json!({
            "name": spec.name, "type": spec.format.name(), "dims": dims, "offset": offset, "bytes": hex,
        });
        assert_eq!(seen["tensors"][i], expected);
        assert_eq!(
            known["types"][spec.format.name()],
            json!([spec.format.block_len(), spec.format.block_bytes()]),
            "{}: weights and bytes per block",
            spec.format
        );
    }
}

#[test]
fn a_file_of_the_gguf_package_is_written_again_byte_for_byte() {
    let folder = common::scratch();
    let path = folder.path().join("python.gguf");
    if python("write.py", &path).is_none() {
        return;
    }
    let bytes = std::fs::read(&path).expect("a file");
    let file = File::parse(&path, &bytes).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((file.n_entries(), file.n_tensors(), file.warnings()), (18, 9, [].as_slice()));
    let metadata = file.metadata().map(|(key, value)| (key.to_owned(), value.into())).collect();
    let tensors = file.tensors().map(|t| TensorSpec { name: t.name.to_owned(), format: t.format, shape: t.shape }).collect();
    let layout = Header { metadata, tensors }.layout().expect("a sound header");
    let mut again = layout.header;
    for (offset, tensor) in layout.offsets_bytes.iter().zip(file.tensors()) {
        again.resize(*offset as usize, 0);
        again.extend(file.tensor_bytes(&tensor).expect("in the file"));
    }
    again.resize(layout.file_bytes as usize, 0);
    assert!(again == bytes, "the files differ, first at byte {:?}", again.iter().zip(&bytes).position(|(a, b)| a != b));
    assert_eq!(file.tensor("f32.4").map(|t| t.shape), Some(vec![1, 2, 3, 4]));
}

#[test]
fn a_file_cut_after_opening_keeps_its_header() {
    let folder = common::scratch();
    let path = folder.path().join("cut.gguf");
    let text = "x".repeat(3 << 20);
    let metadata: Metadata = vec![("general.architecture".into(), "llama".into()), ("long".into(), text.as_str().into())];
    let tensors = (0..9).map(|i| TensorSpec { name: format!("t.{i}"), format: Format::Q8_0, shape: vec![3, 32] }).collect();
    let layout = Header { metadata, tensors }.layout().expect("a layout");
    let mut bytes = layout.header;
    bytes.resize(layout.file_bytes as usize, 0);
    std::fs::write(&path, &bytes).expect("a writable folder");

    let file = File::open(&path).expect("a sound file");
    std::fs::OpenOptions::new().write(true).open(&path).expect("a file").set_len(0).expect("a cut");
    assert_eq!(file.get("long").and_then(|value| value.as_str()), Some(text.as_str()));
    assert_eq!((file.metadata().count(), file.tensors().count(), file.size_bytes()), (2, 9, bytes.len() as u64));
    assert_eq!(file.tensor("t.8").map(|tensor| tensor.shape), Some(vec![3, 32]));
}
