//! Malformed files: each gives an error that names file, place and rule, or a view that holds; never a panic, a hang, or heap
//! taken by a number that the file only claims.

#[path = "hostile/build.rs"]
mod build;
#[path = "hostile/cases.rs"]
mod cases;
mod common;
#[path = "common/heap.rs"]
mod heap;
#[path = "hostile/mutate.rs"]
mod mutate;
#[path = "hostile/shards.rs"]
mod shards;

use std::path::Path;

use build::*;
use ggforge::error::{Error, Fault, Place, Result, is_harmless};
use ggforge::gguf::{File, Header, Limits, Model, TensorSpec, Value};
use ggforge::source::TensorSource;
use heap::peak_bytes;

/// The heap that a reader may take for a header of so many bytes.
fn heap_bound(header_bytes: u64) -> u64 {
    4 * header_bytes + (1 << 20)
}

/// Parses under the heap bound; `header_bytes` is what the file really has of a header.
#[track_caller]
fn parse(bytes: &[u8], header_bytes: usize) -> Result<File<'_>> {
    let (result, peak) = peak_bytes(|| File::parse("case.gguf", bytes));
    let bound = heap_bound(header_bytes as u64);
    assert!(peak <= bound, "{peak} bytes of heap for a header of {header_bytes}, more than {bound}");
    result
}

/// Looks at everything a view offers, and checks what must hold of every file that was accepted.
fn explore(file: &File<'_>) {
    let mut end = file.header_bytes();
    for tensor in file.tensors() {
        assert!(tensor.offset_bytes >= end, "{} overlaps what lies before it", tensor.name);
        assert!(tensor.offset_bytes.is_multiple_of(file.alignment()), "{} is not aligned", tensor.name);
        end = tensor.offset_bytes + tensor.size_bytes;
        if tensor.size_bytes > 0 {
            assert_eq!(file.tensor_bytes(&tensor).expect("inside the file").len() as u64, tensor.size_bytes);
        }
        assert_eq!(file.tensor(tensor.name).as_ref(), Some(&tensor));
    }
    let metadata: Vec<(String, Value)> = file.metadata().map(|(key, value)| (key.to_owned(), value.into())).collect();
    assert_eq!((metadata.len(), file.tensors().count()), (file.n_entries(), file.n_tensors()));
    for (key, _) in &metadata {
        assert!(file.get(key).is_some(), "{key}");
    }
    let tensors = file.tensors().map(|t| TensorSpec { name: t.name.to_owned(), format: t.format, shape: t.shape }).collect();
    // What the writer takes, it must give back as it was. Scalars and empty tensors it does not take.
    if let Ok(layout) = (Header { metadata: metadata.clone(), tensors }).layout() {
        let mut bytes = layout.header;
        bytes.resize(layout.file_bytes as usize, 0);
        let again = File::parse("again.gguf", &bytes).expect("a file that was just written");
        let metadata_again: Vec<(String, Value)> = again.metadata().map(|(key, value)| (key.to_owned(), value.into())).collect();
        assert_eq!(format!("{metadata:?}"), format!("{metadata_again:?}"));
        assert_eq!(
            file.tensors().map(|t| (t.name.to_owned(), t.format, t.shape)).collect::<Vec<_>>(),
            again.tensors().map(|t| (t.name.to_owned(), t.format, t.shape)).collect::<Vec<_>>()
        );
    }
}

/// A message that a terminal can show and a person can act on.
#[track_caller]
fn assert_message(error: &Error, path: &str) {
    let text = error.to_string();
    assert!(text.starts_with(path) && text.len() > path.len() + 10, "{text:?}");
    assert!(text.chars().all(is_harmless), "{text:?}");
    assert!(text.chars().count() < 1200, "{} characters", text.chars().count());
}

/// A sound file with every value type and several tensors, its last padding included.
fn sound() -> Gg {
    gg().kv("general.architecture", STRING, s("llama"))
        .kv("general.alignment", U32, d(32))
        .kv("u8", U8, [1])
        .kv("i8", I8, [255])
        .kv("u16", U16, [1, 2])
        .kv("i16", I16, [1, 2])
        .kv("i32", I32, d(7))
        .kv("f32", F32, 1.5f32.to_le_bytes())
        .kv("bool", BOOL, [1])
        .kv("u64", U64, q(9))
        .kv("i64", I64, q(u64::MAX))
        .kv("f64", F64, 2.5f64.to_le_bytes())
        .kv("numbers", ARRAY, a(U16, 3, &[1, 0, 2, 0, 3, 0]))
        .kv("flags", ARRAY, a(BOOL, 2, &[0, 1]))
        .kv("strings", ARRAY, a(STRING, 2, &[s("one"), s("")].concat()))
        .kv("empty", ARRAY, a(F32, 0, &[]))
        .ti("token_embd.weight", &[32, 3], ggml::Q8_0, 0)
        .ti("output_norm.weight", &[5], ggml::F32, 128)
        .ti("scalar", &[], ggml::F16, 160)
        .data(
            (0..192u32).map(|i| if (102..128).contains(&i) || i >= 162 || (148..160).contains(&i) { 0 } else { i as u8 }).collect(),
        )
}

#[test]
fn every_cut_of_a_sound_file_is_noticed() {
    let bytes = sound().bytes();
    let complete = bytes.len() - 30; // the last tensor has 2 bytes, the rest is padding
    for len in 0..bytes.len() {
        let cut = &bytes[..len];
        let result = parse(cut, len);
        if len >= complete {
            assert_eq!(result.expect("complete but for padding").warnings(), []);
            continue;
        }
        let error = result.expect_err("a cut file");
        assert_message(&error, "case.gguf");
        let Error::Malformed { place: Place::Byte(at), fault, .. } = error else { panic!("cut at {len}: {error}") };
        let faults = [Fault::Truncated, Fault::LengthExceedsFile, Fault::CountExceedsFile, Fault::DataPastEof];
        assert!(faults.contains(&fault) && at <= len as u64, "cut at {len}: {error}");
    }
}

#[test]
fn big_but_honest_headers_stay_within_the_bounds() {
    let n = 200_000u64;
    let entries = |n: u64| (0..n).fold(gg(), |gg, i| gg.kv(format!("k{i:06}"), U8, [1]));
    let empty_tensors = |n: u64| (0..n).fold(gg(), |gg, i| gg.ti(format!("t{i:06}"), &[0], ggml::F32, 0)).data(vec![]);
    let strings = vec![0u8; 8 * 2_000_000];
    let cases = [
        ("200 000 entries", entries(n).bytes()),
        ("200 000 empty tensors", empty_tensors(n).bytes()),
        ("2 million empty strings", gg().kv("a", ARRAY, a(STRING, 2_000_000, &strings)).bytes()),
        // Just past a power of two a growing list wastes most.
        ("entries past a power of two", entries((1 << 17) + 1).bytes()),
        ("tensors past a power of two", empty_tensors((1 << 17) + 1).bytes()),
    ];
    for (name, bytes) in &cases {
        let start = std::time::Instant::now();
        let file = parse(bytes, bytes.len()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let seconds = start.elapsed().as_secs_f64();
        println!("{name}: {} MB in {:.0} ms", bytes.len() >> 20, 1e3 * seconds);
        assert!(seconds < 2.0, "{name}: {seconds} s");
        assert!(file.n_entries() + file.n_tensors() > 0);
    }
}

#[test]
fn a_model_of_many_tiny_tensors_stays_within_the_heap_bound() {
    let folder = common::scratch();
    let path = folder.path().join("many.gguf");
    // Names of three bytes are the shortest of which there are 200 000, so the header is as small as it can be.
    let names: Vec<[u8; 3]> = (0..200_000u32).map(|i| [i, i >> 6, i >> 12].map(|digit| 0x21 + (digit & 63) as u8)).collect();
    for (dims, padded_bytes) in [(&[][..], 32), (&[0], 0), (&[0, 1, 1, 1], 0)] {
        let add = |gg: Gg, (name, i): (&[u8; 3], u64)| gg.ti(name, dims, ggml::F32, i * padded_bytes);
        let gg = names.iter().zip(0..).fold(gg(), add).data(vec![0; names.len() * padded_bytes as usize]);
        std::fs::write(&path, gg.bytes()).expect("a writable folder");
        let (model, peak) = peak_bytes(|| Model::open(&path));
        assert_eq!(model.expect("a sound file").tensors().len(), names.len());
        let header_bytes = gg.header().len() as u64;
        println!("{} tensors: {:.2} x the header", names.len(), peak as f64 / header_bytes as f64);
        assert!(peak <= heap_bound(header_bytes), "{peak} bytes of heap for a header of {header_bytes}");
    }
}

#[test]
fn a_large_file_that_claims_much_costs_little() {
    // 64 MiB of zeros behind a header that claims as much as fits: whatever is reserved by claim would show here.
    let mut bytes = gg().claim_entries((64 << 20) / 13).bytes();
    bytes.resize(24 + (64 << 20), 0);
    parse(&bytes, 24).expect_err("keys are empty");
    let mut bytes = gg().claim_tensors((64 << 20) / 24).bytes();
    bytes.resize(24 + (64 << 20), 0);
    parse(&bytes, 24).expect_err("names are empty");
    let mut bytes = gg().kv("a", ARRAY, a(U64, (64 << 20) / 8, &[])).claim_entries(2).bytes();
    let header_bytes = bytes.len();
    bytes.resize(header_bytes + (64 << 20), 0);
    parse(&bytes, header_bytes).expect_err("the second entry is missing");
}

#[test]
fn a_limit_is_the_most_that_is_read() {
    let folder = common::scratch();
    let path = folder.path().join("m.gguf");
    let model = gg().kv("a", STRING, s([b'x'; 300 << 10])).kv("b", ARRAY, a(U8, 3, &[1, 2, 3]));
    let model = model.ti("t", &[4], ggml::F32, 0).ti("u", &[4], ggml::F32, 32).data(vec![0; 64]);
    std::fs::write(&path, model.bytes()).expect("a writable folder");
    let exact =
        Limits { string_bytes: 300 << 10, array_len: 3, n_entries: 2, n_tensors: 2, header_bytes: model.header().len() as u64 };
    let found = Model::open_within(&path, &exact).expect("as much as is allowed");
    assert_eq!(found.get("b").and_then(|value| value.as_array()).map(|array| array.iter().size_hint()), Some((3, Some(3))));
    for fewer in [
        Limits { string_bytes: (300 << 10) - 1, ..exact },
        Limits { array_len: 2, ..exact },
        Limits { n_entries: 1, ..exact },
        Limits { n_tensors: 1, ..exact },
        // More than is read at first.
        Limits { header_bytes: 270 << 10, ..exact },
    ] {
        let error = Model::open_within(&path, &fewer).expect_err("more than is allowed");
        assert!(matches!(error, Error::Limit { .. }), "{fewer:?}: {error}");
    }
}

#[test]
fn whole_numbers_are_read_whatever_their_width() {
    let value = |value_type, bytes: &[u8]| {
        let bytes = gg().kv("n", value_type, bytes).bytes();
        let file = File::parse("n.gguf", &bytes).expect("a sound file");
        file.get("n").and_then(|value| value.as_u64())
    };
    for (unsigned, signed, n_bytes) in [(U8, I8, 1), (U16, I16, 2), (U32, I32, 4), (U64, I64, 8)] {
        for value_type in [unsigned, signed] {
            assert_eq!(value(value_type, &7u64.to_le_bytes()[..n_bytes]), Some(7), "{value_type}");
        }
        assert_eq!(value(signed, &[0xff; 8][..n_bytes]), None, "{signed}: -1");
        assert_eq!(value(unsigned, &[0xff; 8][..n_bytes]), Some(u64::MAX >> (64 - 8 * n_bytes)), "{unsigned}");
    }
    assert_eq!((value(F32, &7f32.to_le_bytes()), value(BOOL, &[1])), (None, None));
}

#[test]
fn every_sound_file_of_the_shared_data_is_read() {
    let Some(folder) = common::shared("gguf") else { return };
    let vocab = folder.with_file_name("vocab");
    let folders = [folder.clone(), folder.join("ferrox"), vocab];
    let mut n_read = 0;
    for entry in folders.iter().flat_map(|folder| std::fs::read_dir(folder).expect("a folder")) {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let (file, peak) = peak_bytes(|| File::open(&path));
        let file = file.unwrap_or_else(|e| panic!("{e}"));
        assert!(peak <= heap_bound(file.header_bytes()), "{}: {peak} bytes of heap", path.display());
        explore(&file);
        // The one split set there has u32 split keys, which llama.cpp refuses as well.
        match (path.to_string_lossy().contains("-of-00003"), Model::open(&path)) {
            (false, Ok(model)) => assert_eq!(model.tensors().len(), file.n_tensors()),
            (true, Err(Error::Malformed { fault: Fault::SplitKeyType, .. })) => {
                Model::open_alone(&path, &Limits::default()).unwrap_or_else(|e| panic!("{e}"));
            }
            (_, other) => panic!("{}: {other:?}", path.display()),
        }
        n_read += 1;
    }
    assert!(n_read >= 18, "only {n_read} files");
}

#[test]
fn the_malformed_files_of_the_shared_data_are_refused() {
    let Some(folder) = common::shared("malformed") else { return };
    let fault = |name: &str| match File::open(folder.join(name)) {
        Err(Error::Malformed { fault, .. }) => Some(fault),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    };
    assert_eq!(fault("ollama-6-byte.gguf"), Some(Fault::Truncated));
    assert_eq!(fault("weight-inspect-tiny-truncated.gguf"), Some(Fault::DataPastEof));
    assert_eq!(fault("llama2-tokenizer-nbsp-corrupted.json"), Some(Fault::NotGguf));
    assert_eq!(fault("gguf-fuzz-lab/valid.gguf"), None);
}

#[test]
fn what_is_not_a_regular_file_is_refused_before_it_is_opened() {
    let folder = common::scratch();
    for path in [folder.path(), Path::new("/dev/zero")] {
        match Model::open(path) {
            Err(Error::Malformed { fault: Fault::NotRegularFile, place: Place::File, .. }) => {}
            other => panic!("{}: {other:?}", path.display()),
        }
    }
    assert!(matches!(Model::open(folder.path().join("absent.gguf")), Err(Error::Io { op: "open", .. })));
}
