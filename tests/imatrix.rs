//! Importance matrix files: what llama.cpp writes is read, merged and written again to the byte, and hostile files are refused.

mod common;
#[path = "common/heap.rs"]
mod heap;

use std::path::PathBuf;

use common::Paint;
use ggforge::error::{Error, Fault, Place};
use ggforge::gguf::{Array, File, Header, TensorSpec, Value};
use ggforge::imatrix::{CHUNK_SIZE_DEFAULT, Entry, EntryFault, IMPORTANCE_MAX, Imatrix, Importance, Unit, Wanted};
use ggforge::quant::Format;
use sha2::{Digest, Sha256};

fn fixture(name: &str) -> PathBuf {
    common::fixture("imatrix").join(name)
}

fn bytes_of(name: &str) -> Vec<u8> {
    let path = fixture(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn open(name: &str) -> Imatrix {
    Imatrix::open(fixture(name)).expect("a sound file")
}

fn gguf(imatrix: &Imatrix) -> Vec<u8> {
    let mut bytes = Vec::new();
    imatrix.write_gguf(&mut bytes).expect("a matrix that can be written");
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn matrix(name: &str, n_columns: usize) -> Wanted<'_> {
    Wanted { name, n_experts: 1, n_columns }
}

/// A matrix with a tensor of four experts of two columns: counts 10, 0, 5 and 1, the last one's sums all zero.
fn experts() -> Imatrix {
    let mut imatrix = Imatrix::new(CHUNK_SIZE_DEFAULT);
    let entry = Entry::new(vec![20.0, 5.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0], vec![10, 0, 5, 1]).expect("a sound entry");
    imatrix.entries.insert("blk.0.ffn_down_exps.weight".to_owned(), entry);
    imatrix
}

const EXPERTS: Wanted<'_> = Wanted { name: "blk.0.ffn_down_exps.weight", n_experts: 4, n_columns: 2 };

#[test]
fn a_gguf_file_of_llama_imatrix_is_read() {
    let imatrix = open("forge-3m.gguf");
    assert_eq!(imatrix.entries.len(), 28);
    assert_eq!((imatrix.chunk_count, imatrix.chunk_size, imatrix.unit), (64, 512, Unit::Tokens));
    assert_eq!(imatrix.datasets, ["calibration.txt"]);

    // llama-quantize divides each sum by the count in f32.
    let bytes = bytes_of("forge-3m.gguf");
    let file = File::parse("forge-3m.gguf", &bytes).expect("a GGUF file");
    let f32s = |name: &str| {
        let info = file.tensor(name).expect("a tensor of the fixture");
        let bytes = file.tensor_bytes(&info).expect("in the file");
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect::<Vec<f32>>()
    };
    for name in imatrix.entries.keys() {
        let (sums, count) = (f32s(&format!("{name}.in_sum2")), f32s(&format!("{name}.counts"))[0]);
        let importance = imatrix.importance(matrix(name, sums.len())).expect("a fitting entry").expect("an entry");
        let expected: Vec<u32> = sums.iter().map(|sum| (sum / count).to_bits()).collect();
        let got: Vec<u32> = importance.expert(0).iter().map(|value| value.to_bits()).collect();
        assert_eq!(got, expected, "{name}");
        assert!(importance.without_data().is_empty(), "{name}");
    }
}

#[test]
fn a_dat_file_of_llama_imatrix_is_read() {
    let imatrix = open("forge-3m.dat");
    assert_eq!(imatrix.entries.len(), 28);
    assert_eq!((imatrix.chunk_count, imatrix.chunk_size, imatrix.unit), (75, 0, Unit::Chunks));
    assert_eq!(imatrix.datasets, ["calibration.txt"]);

    // The file was made from both GGUF files together, so it says the same up to two roundings.
    let mut merged = open("forge-3m.gguf");
    merged.add(open("forge-3m-more.gguf")).expect("matrices of one model");
    for (name, entry) in &merged.entries {
        let wanted = matrix(name, entry.sums().len());
        let from = |imatrix: &Imatrix| imatrix.importance(wanted).expect("a fitting entry").expect("an entry");
        for (a, b) in from(&merged).expert(0).iter().zip(from(&imatrix).expert(0)) {
            assert!((a - b).abs() <= 2e-7 * a, "{name}: {a} and {b}");
        }
    }
}

#[test]
fn what_was_read_is_written_to_the_byte() {
    for name in ["forge-3m.gguf", "forge-3m-more.gguf"] {
        assert_eq!(gguf(&open(name)), bytes_of(name), "{name}");
    }
    assert_eq!(open("forge-3m.dat").to_dat().expect("fits the format"), bytes_of("forge-3m.dat"));

    let experts = experts();
    let again = Imatrix::parse("experts.gguf", &gguf(&experts)).expect("our own file");
    assert_eq!(again.entries, experts.entries);
    let again = Imatrix::parse("experts.dat", &experts.to_dat().expect("fits the format")).expect("our own file");
    let again = again.importance(EXPERTS).expect("a fitting entry").expect("an entry");
    // A .dat file keeps the mean of an expert that nothing reached as 1, and one that is zero as zero.
    assert_eq!([0, 1, 2, 3].map(|expert| again.expert(expert)), [[2.0, 0.5], [1.0, 1.0], [0.0, 0.2], [1.0, 1.0]]);
    assert_eq!(again.without_data(), [3]);
}

/// What llama-imatrix writes for `-c CHUNK_SIZE --in-file A,B`, of the fixtures.
#[test]
fn merged_files_equal_those_of_llama_imatrix() {
    let cases: &[(u32, &[&str], &str)] = &[
        (512, &["forge-3m.gguf", "forge-3m-more.gguf"], "85054a67c366b7401bc67146262046ad6fb5f5842352740817cdb06e3becd710"),
        (300, &["forge-3m.gguf", "forge-3m-more.gguf"], "78caef05c83062c646a73cf6873da7f58304de7c02f4ad203d8cb0e3f4eee34a"),
        (512, &["forge-3m.dat"], "01eec47e417fd80e87d1f3e0602948ed2cf3b3bc5040cef587ad625bd4f4491f"),
        (512, &["forge-3m.dat", "forge-3m-more.gguf"], "892444e38fdb0356e65aff26e84f57bcb0b7e09bcc06c7c0ee40831a151ac343"),
        (300, &["forge-3m.dat", "forge-3m-more.gguf"], "0846c1acb68fe8164351a661e53dd0664de88a105a7dc61634cddade16c2270f"),
    ];
    let merge = |chunk_size: u32, names: &[&str]| {
        let mut merged = Imatrix::new(chunk_size.try_into().expect("not zero"));
        names.iter().for_each(|name| merged.add(open(name)).expect("matrices of one model"));
        merged
    };
    for (chunk_size, names, expected) in cases {
        assert_eq!(sha256(&gguf(&merge(*chunk_size, names))), *expected, "{names:?} in chunks of {chunk_size}");
    }
    let both = merge(512, &["forge-3m.gguf", "forge-3m-more.gguf"]);
    assert_eq!(both.to_dat().expect("fits the format"), bytes_of("forge-3m.dat"));
    let one = merge(300, &["forge-3m.gguf"]).to_dat().expect("fits the format");
    assert_eq!(sha256(&one), "ca697d0039212098d7a769f8d1976e495989cff1cb7e11296428a7138ee18db6");
    // A .dat file that is written as GGUF goes through the same arithmetic.
    assert_eq!(sha256(&gguf(&open("forge-3m.dat"))), cases[2].2);
}

#[test]
fn matrices_of_different_models_are_not_merged() {
    let mut merged = open("forge-3m.gguf");
    let mut other = Imatrix::new(CHUNK_SIZE_DEFAULT);
    let entry = Entry::new(vec![1.0; 128], vec![1]).expect("a sound entry");
    other.entries.insert("blk.0.attn_k.weight".to_owned(), entry);
    let error = merged.add(other).expect_err("another width");
    assert!(matches!(error, Error::Malformed { fault: Fault::ImatrixLength, .. }), "{error}");
    assert!(error.to_string().contains("blk.0.attn_k.weight: 128 values here, 256 in the files before"), "{error}");
}

#[test]
fn one_count_for_all_experts_merges_with_one_each() {
    let name = EXPERTS.name;
    let shared = Entry::new(vec![1.0; 8], vec![3]).expect("a sound entry");
    for shared_first in [true, false] {
        let mut one = Imatrix::new(CHUNK_SIZE_DEFAULT);
        one.entries.insert(name.to_owned(), shared.clone());
        let mut merged = Imatrix::new(CHUNK_SIZE_DEFAULT);
        let parts = if shared_first { [one, experts()] } else { [experts(), one] };
        parts.into_iter().for_each(|part| merged.add(part).expect("the same shape"));
        let entry = &merged.entries[name];
        assert_eq!(entry.counts(), [13, 3, 8, 4]);
        assert_eq!(entry.sums(), [21.0, 6.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0]);
    }
}

#[test]
fn experts_without_data_count_all_columns_alike_and_are_named() {
    let imatrix = experts();
    let importance = imatrix.importance(EXPERTS).expect("a fitting entry").expect("an entry");
    assert_eq!(importance.n_experts(), 4);
    assert_eq!([0, 1, 2, 3].map(|expert| importance.expert(expert)), [[2.0, 0.5], [1.0, 1.0], [0.0, 0.2], [1.0, 1.0]]);
    assert_eq!(importance.without_data(), [1, 3]);

    let wanted = [EXPERTS, matrix("blk.0.attn_q.weight", 2)];
    let coverage = imatrix.coverage(&wanted).expect("fitting entries");
    assert_eq!(coverage.summary(), "importance for 1 of 2 tensors, 2 of 4 experts in them; none for blk.0.attn_q.weight");
    assert_eq!(coverage.without_entry, ["blk.0.attn_q.weight"]);
    assert_eq!(
        coverage.warnings(),
        ["blk.0.ffn_down_exps.weight: no calibration token reached experts 1, 3 of 4; all their columns count the same"]
    );
    assert_eq!(imatrix.importance(wanted[1]).expect("no entry is no error"), None);
    assert_eq!(Importance::flat(2, 3).expert(1), [1.0; 3]);
}

#[test]
fn an_entry_without_any_data_is_noted() {
    let name = "blk.1.ffn_up.weight";
    for (sums, counts) in [(vec![0.0, 0.0], vec![7]), (vec![4.0, 2.0], vec![0])] {
        let mut imatrix = experts();
        imatrix.entries.insert(name.to_owned(), Entry::new(sums, counts).expect("a sound entry"));
        let importance = imatrix.importance(matrix(name, 2)).expect("a fitting entry").expect("an entry");
        assert_eq!(importance.expert(0), [1.0, 1.0]);
        let coverage = imatrix.coverage(&[matrix(name, 2)]).expect("fitting entries");
        assert_eq!(
            coverage.warnings(),
            ["blk.1.ffn_up.weight: its entry in the importance matrix holds no data; all its columns count the same"]
        );
        assert_eq!(coverage.summary(), "importance for 1 of 1 tensors; unused: blk.0.ffn_down_exps.weight");
        assert_eq!(coverage.unused, [EXPERTS.name]);
    }
}

#[test]
fn an_entry_of_another_length_is_an_error() {
    let imatrix = open("forge-3m.gguf");
    for wanted in [matrix("blk.0.attn_k.weight", 128), Wanted { n_experts: 4, ..matrix("blk.0.attn_k.weight", 256) }] {
        for error in [imatrix.importance(wanted).map(|_| ()), imatrix.coverage(&[wanted]).map(|_| ())] {
            let error = error.expect_err("256 values");
            let Error::Malformed { path, place, fault: Fault::ImatrixLength, .. } = &error else { panic!("{error}") };
            assert_eq!((path, place), (&fixture("forge-3m.gguf"), &Place::Tensor("blk.0.attn_k.weight".into())));
        }
    }
    let huge = Wanted { n_experts: usize::MAX, ..matrix("blk.0.attn_k.weight", 256) };
    assert!(imatrix.importance(huge).is_err());
    assert!(imatrix.importance(Wanted { n_experts: 0, ..huge }).is_err());
}

#[test]
fn filters_keep_what_llama_quantize_keeps() {
    let kept = |include: &[&str], exclude: &[&str]| {
        let own = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<String>>();
        let mut imatrix = open("forge-3m.gguf");
        imatrix.filter(&own(include), &own(exclude)).map(|()| imatrix.entries.into_keys().collect::<Vec<String>>())
    };
    assert_eq!(kept(&[], &[]).expect("no filter").len(), 28);
    assert_eq!(kept(&["attn_q", "blk.3.ffn_up.w"], &[]).expect("one filter").len(), 5);
    assert_eq!(kept(&[], &["ffn", "attn_q"]).expect("one filter").len(), 12);
    assert_eq!(kept(&["nothing"], &[]).expect("one filter").len(), 0);
    assert!(matches!(kept(&["a"], &["b"]), Err(Error::Usage(_))));
}

#[test]
fn statistics_describe_an_entry() {
    let statistics = experts().entries[EXPERTS.name].statistics();
    assert_eq!((statistics.count_min, statistics.count_max, statistics.n_zero), (0, 10, 3));
    assert_eq!((statistics.min, statistics.max), (0.0, 2.0));
    assert!((statistics.mean - 2.7 / 6.0).abs() < 1e-7, "{}", statistics.mean);
    assert_eq!(Entry::new(vec![0.0, 1.0, 2.0], vec![1]).expect("a sound entry").statistics().n_zero, 1);
}

#[test]
fn impossible_entries_cannot_be_made() {
    assert_eq!(Entry::new(vec![], vec![1]), Err(EntryFault::Shape { n_sums: 0, n_counts: 1 }));
    assert_eq!(Entry::new(vec![1.0], vec![]), Err(EntryFault::Shape { n_sums: 1, n_counts: 0 }));
    assert_eq!(Entry::new(vec![1.0; 3], vec![1; 2]), Err(EntryFault::Shape { n_sums: 3, n_counts: 2 }));
    assert_eq!(Entry::new(vec![1.0], vec![u64::MAX]), Err(EntryFault::Count { matrix: 0, count: u64::MAX }));
    for value in [-1.0, f32::NEG_INFINITY, f32::INFINITY] {
        let sums = vec![0.0, 0.0, 0.0, value];
        assert_eq!(Entry::new(sums, vec![1, 1]), Err(EntryFault::Sum { matrix: 1, column: 1, value }));
    }
    assert!(matches!(Entry::new(vec![f32::NAN], vec![1]), Err(EntryFault::Sum { .. })));
}

#[test]
fn importances_beyond_what_sums_can_hold_are_refused_by_their_place() {
    let name = EXPERTS.name;
    let check = |sums: Vec<f32>| {
        let mut imatrix = open("forge-3m.gguf");
        imatrix.entries.insert(name.to_owned(), Entry::new(sums, vec![1; 4]).expect("a sound entry"));
        imatrix.importance(EXPERTS).expect("a fitting entry").expect("an entry").check_bound(name)
    };
    check(vec![1.0, IMPORTANCE_MAX, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]).expect("the largest that is possible");
    let error = check(vec![1.0, 1.0, 1.0, 1.0, 1.0, 3e38, 1.0, 1.0]).expect_err("sums that overflow");
    let Error::Malformed { path, place, fault: Fault::ImatrixValue, .. } = &error else { panic!("{error}") };
    assert_eq!(path, &fixture("forge-3m.gguf"));
    assert_eq!(place, &Place::Weight { tensor: name.to_owned(), row: 2, column: 1 });
}

#[test]
fn a_matrix_of_another_model_is_noted() {
    let coverage = experts().coverage(&[matrix("blk.0.attn_q.weight", 2)]).expect("no entry is no error");
    let [warning] = &coverage.warnings()[..] else { panic!("{:?}", coverage.warnings()) };
    assert!(coverage.matches_nothing() && warning.contains("matches no tensor") && warning.contains("blk.0.attn_q"), "{warning}");
    // Where nothing is to be quantized, nothing is missing.
    assert!(!experts().coverage(&[]).expect("no entry is no error").matches_nothing());
    assert!(!experts().coverage(&[EXPERTS]).expect("a fitting entry").matches_nothing());
}

/// As many values as several reads take, and a name as long as names can be.
#[test]
fn long_entries_are_read_whole() {
    let sums: Vec<f32> = (0..50_000).map(|i| i as f32).collect();
    let mut imatrix = Imatrix::new(CHUNK_SIZE_DEFAULT);
    let name = "n".repeat(63);
    imatrix.entries.insert(name.clone(), Entry::new(sums.clone(), vec![512]).expect("a sound entry"));
    imatrix.entries.insert("without data".to_owned(), Entry::new(vec![1.0], vec![0]).expect("a sound entry"));
    let dat = parse(&imatrix.to_dat().expect("a small matrix")).expect("a sound file");
    assert_eq!(dat.entries.keys().collect::<Vec<_>>(), [&name], "what holds no data is left out");
    assert!(dat.entries[&name].sums().iter().zip(&sums).all(|(found, sum)| *found == sum / 512.0));
    assert_eq!(imatrix.importance(matrix(&name, 50_000)).expect("a fitting entry").expect("an entry").n_columns(), 50_000);
    // In GGUF files ".in_sum2" stands behind a name.
    let entry = imatrix.entries.remove(&name).expect("still there");
    imatrix.entries.insert(name[..55].to_owned(), entry);
    assert_eq!(parse(&gguf(&imatrix)).expect("a sound file").entries, imatrix.entries);
}

/// Pieces of a `.dat` file.
fn dat(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn i32s<const N: usize>(numbers: [i32; N]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn f32s<const N: usize>(numbers: [f32; N]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// Two entries, chunk count, data set.
fn small_dat() -> Vec<u8> {
    dat(&[
        &i32s([2, 1]),
        b"a",
        &i32s([3, 2]),
        &f32s([0.5, 1.5]),
        &i32s([5]),
        b"bcdef",
        &i32s([1, 3]),
        &f32s([0.0, 1.0, 2.0]),
        &i32s([4, 3]),
        b"set",
    ])
}

/// A GGUF matrix of one entry of two experts of three columns, with changes.
fn small_gguf(change: impl FnOnce(&mut Header, &mut Vec<Vec<f32>>)) -> Vec<u8> {
    let metadata = [
        ("general.type", Value::from("imatrix")),
        ("imatrix.datasets", Value::Array(Array::String(vec![b"set".to_vec()]))),
        ("imatrix.chunk_count", Value::U32(4)),
        ("imatrix.chunk_size", Value::U32(2)),
    ];
    let tensor = |name: &str, shape: &[u64]| TensorSpec { name: name.to_owned(), format: Format::F32, shape: shape.to_vec() };
    let mut header = Header {
        metadata: metadata.map(|(key, value)| (key.to_owned(), value)).to_vec(),
        tensors: vec![tensor("a.in_sum2", &[2, 3]), tensor("a.counts", &[2, 1])],
    };
    let mut data = vec![vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0], vec![7.0, 1.0]];
    change(&mut header, &mut data);
    let layout = header.layout().expect("a header that can be written");
    let mut bytes = layout.header;
    for (values, offset) in data.iter().zip(layout.offsets_bytes) {
        bytes.resize(offset as usize, 0);
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    bytes.resize(layout.file_bytes as usize, 0);
    bytes
}

/// Parses hostile bytes: no panic, and no more heap than the file's own size and a little.
fn parse(bytes: &[u8]) -> Result<Imatrix, Error> {
    let (result, peak) = heap::peak_bytes(|| Imatrix::parse("hostile", bytes));
    assert!(peak <= 4 * bytes.len() as u64 + 16 * 1024, "{peak} bytes of heap for a file of {} bytes", bytes.len());
    result
}

#[track_caller]
fn refused(bytes: &[u8], fault: Fault, text: &str) {
    match parse(bytes) {
        Ok(imatrix) => panic!("accepted: {imatrix:?}"),
        Err(error) => {
            let message = error.to_string();
            assert!(matches!(error, Error::Malformed { fault: found, .. } if found == fault), "{message}, expected {fault:?}");
            assert!(message.contains(text), "{message} does not say {text}");
        }
    }
}

#[test]
fn hostile_dat_files_are_refused() {
    assert!(parse(&small_dat()).is_ok());
    refused(b"", Fault::Truncated, "0 bytes");
    refused(b"\0\0", Fault::Truncated, "2 bytes");
    refused(&i32s([0]), Fault::ImatrixInvalid, "0 entries");
    refused(&dat(&[&i32s([-1]), &[0; 100]]), Fault::ImatrixInvalid, "-1 entries");
    refused(&dat(&[&i32s([i32::MAX]), &[0; 100]]), Fault::CountExceedsFile, "2147483647 entries, and at most 5");
    refused(b"Once upon a time, there was a little girl.", Fault::CountExceedsFile, "not a GGUF file");

    let one = i32s([1]);
    let entry = |name_len: i32, rest: &[u8]| dat(&[&one, &i32s([name_len]), rest, &[0; 32]]);
    refused(&entry(-1, b"a"), Fault::ImatrixInvalid, "-1 bytes");
    refused(&entry(0, b""), Fault::EmptyName, "empty");
    refused(&entry(1 << 30, b"a"), Fault::LengthExceedsFile, "1073741824 bytes");
    refused(&dat(&[&one, &i32s([64]), &[b'x'; 64], &i32s([1, 1]), &f32s([1.0])]), Fault::NameTooLong, "64 bytes");
    refused(&entry(2, b"\xff\xfe"), Fault::InvalidName, "not UTF-8");
    refused(&entry(3, b"a\0b"), Fault::InvalidName, "NUL");

    let values = |n_chunks: i32, n_values: i32, rest: &[u8]| dat(&[&one, &i32s([1]), b"a", &i32s([n_chunks, n_values]), rest]);
    refused(&values(-1, 1, &f32s([1.0])), Fault::ImatrixValue, "a: computed on -1 chunks");
    refused(&values(1, -1, &[0; 32]), Fault::ImatrixInvalid, "a: -1 values");
    refused(&values(1, 0, &[0; 32]), Fault::ImatrixInvalid, "a: 0 values");
    refused(
        &values(1, 1 << 30, &[0; 32]),
        Fault::LengthExceedsFile,
        "1073741824 values of a: 4294967296 bytes are needed, 32 are left",
    );
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0] {
        refused(&values(1, 2, &f32s([1.0, bad])), Fault::ImatrixValue, "a: row 0, column 1");
    }
    let twice = [&i32s([1]), b"a".as_slice(), &i32s([1, 1]), &f32s([1.0])].concat();
    refused(&dat(&[&i32s([2]), &twice, &twice]), Fault::DuplicateTensor, "a second entry for a");

    let tail = |rest: &[u8]| dat(&[&one, &twice, rest]);
    refused(&tail(&i32s([-1])), Fault::ImatrixValue, "-1 chunks");
    refused(&tail(&i32s([1, -1])), Fault::ImatrixInvalid, "-1 bytes");
    refused(&tail(&i32s([1, 1 << 30])), Fault::LengthExceedsFile, "1073741824 bytes");
    refused(&tail(&dat(&[&i32s([1, 1]), b"ab"])), Fault::ImatrixInvalid, "1 bytes follow the end");
}

#[test]
fn a_dat_file_without_chunks_is_taken_as_it_is() {
    // As llama-quantize does: no division by the zero that older versions wrote.
    let bytes = dat(&[&i32s([1, 1]), b"a", &i32s([0, 2]), &f32s([0.5, 1.5])]);
    let imatrix = parse(&bytes).expect("a sound file");
    let importance = imatrix.importance(matrix("a", 2)).expect("a fitting entry").expect("an entry");
    assert_eq!(importance.expert(0), [0.5, 1.5]);
    assert_eq!((imatrix.chunk_count, imatrix.datasets.len()), (0, 0));
}

#[test]
fn hostile_gguf_files_are_refused() {
    let sound = parse(&small_gguf(|_, _| {})).expect("a sound file");
    assert_eq!((sound.chunk_count, sound.chunk_size, sound.datasets.as_slice()), (4, 2, ["set".to_owned()].as_slice()));

    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0] {
        refused(&small_gguf(|_, data| data[0][4] = bad), Fault::ImatrixValue, "a: row 1, column 1");
        refused(&small_gguf(|_, data| data[1][1] = bad), Fault::ImatrixValue, "a.counts: a count is");
    }
    refused(&small_gguf(|_, data| data[1][0] = 1e30), Fault::ImatrixValue, "a.counts");
    refused(&small_gguf(|h, _| h.tensors[1].name = "b.counts".into()), Fault::ImatrixInvalid, "a.counts is not");
    refused(&small_gguf(|h, _| h.tensors[0].name = "b.in_sum".into()), Fault::ImatrixInvalid, "a.in_sum2 is not");
    refused(&small_gguf(|h, _| h.tensors[0].format = Format::I32), Fault::ImatrixInvalid, "stored as I32");
    refused(&small_gguf(|h, data| (h.tensors[1].shape, data[1]) = (vec![4], vec![1.0; 4])), Fault::ImatrixInvalid, "6 sums");
    refused(&small_gguf(|h, _| h.metadata[1].1 = Value::from("set")), Fault::ValueType, "imatrix.datasets");
    refused(&small_gguf(|h, _| h.metadata[2].1 = Value::I32(4)), Fault::ValueType, "imatrix.chunk_count");
    refused(&small_gguf(|h, _| h.metadata[3].1 = Value::from("2")), Fault::ValueType, "imatrix.chunk_size");
    let model = small_gguf(|h, _| {
        (h.tensors[0].name, h.tensors[1].name) = ("a.weight".into(), "b.weight".into());
        h.metadata.remove(0);
    });
    refused(&model, Fault::ImatrixInvalid, "a GGUF file of type model, not an importance matrix");

    // Harmless: no metadata at all, statistics that nobody knows yet, fractions where counts should be.
    assert!(parse(&small_gguf(|h, _| h.metadata.clear())).is_ok());
    let rounded = parse(&small_gguf(|_, data| data[1] = vec![6.5, 0.4])).expect("a sound file");
    assert_eq!(rounded.entries["a"].counts(), [7, 0]);
    let more = |h: &mut Header, data: &mut Vec<Vec<f32>>| {
        h.tensors.push(TensorSpec { name: "a.in_sum".into(), format: Format::F32, shape: vec![1] });
        data.push(vec![f32::NAN]);
    };
    assert!(parse(&small_gguf(more)).is_ok());
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = small_dat();
    let (name_and_tail, chunk_count) = (4 + 3, 4);
    for len in 0..bytes.len() {
        // The number of chunks and the data set are optional, each with what follows.
        let optional = [bytes.len() - name_and_tail, bytes.len() - name_and_tail - chunk_count].contains(&len);
        assert_eq!(parse(&bytes[..len]).is_ok(), optional, "cut at {len} of {}", bytes.len());
    }
    let bytes = small_gguf(|_, _| {});
    let last_data = bytes.len() - 32 + 2 * size_of::<f32>();
    for len in 0..last_data {
        assert!(parse(&bytes[..len]).is_err(), "cut at {len} of {}", bytes.len());
    }
}

#[test]
fn mutations_never_panic() {
    let mut paint = Paint::new(70);
    let mut random = move |below: usize| paint.next() as usize % below;
    for original in [small_dat(), small_gguf(|_, _| {})] {
        let mut n_refused = 0;
        for _ in 0..20_000 {
            let mut bytes = original.clone();
            for _ in 0..1 + random(3) {
                let at = random(bytes.len());
                bytes[at] = [0, 1, 0x7f, 0x80, 0xff, random(256) as u8][random(6)];
            }
            bytes.truncate(bytes.len() - random(2) * random(bytes.len()));
            match parse(&bytes) {
                Ok(imatrix) => {
                    for (name, entry) in &imatrix.entries {
                        entry.statistics();
                        imatrix.importance(matrix(name, entry.sums().len())).expect("its own length");
                    }
                    let mut merged = Imatrix::new(CHUNK_SIZE_DEFAULT);
                    let _ = merged.add(imatrix.clone()).and_then(|()| merged.to_dat().map(drop));
                    let _ = imatrix.write_gguf(&mut std::io::sink());
                }
                Err(Error::Malformed { .. } | Error::Limit { .. }) => n_refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(n_refused > 5_000, "{n_refused} of 20000 mutations were refused");
    }
}

#[test]
fn reading_takes_little_more_heap_than_the_values() {
    for name in ["forge-3m.gguf", "forge-3m.dat"] {
        let (imatrix, peak) = heap::peak_bytes(|| open(name));
        let values_bytes: usize = imatrix.entries.values().map(|entry| size_of_val(entry.sums())).sum();
        assert!(peak <= values_bytes as u64 + 16 * 1024, "{name}: {peak} bytes of heap for {values_bytes} bytes of values");
    }
}

#[test]
fn an_input_that_is_no_file_is_refused() {
    let folder = Imatrix::open(env!("CARGO_MANIFEST_DIR")).expect_err("a folder");
    assert!(matches!(folder, Error::Malformed { fault: Fault::NotRegularFile, .. }), "{folder}");
    assert!(matches!(Imatrix::open(fixture("absent.gguf")), Err(Error::Io { .. })));
}

#[test]
fn the_program_merges_and_shows_matrices() {
    let scratch = common::scratch();
    let merged = scratch.path().join("merged.gguf");
    let merge = || {
        let mut command = common::ggforge();
        command.args(["imatrix", "merge"]).arg(fixture("forge-3m.dat")).arg(fixture("forge-3m-more.gguf"));
        command
    };
    let output = common::succeeds(merge().args(["--chunk-size", "512", "--output"]).arg(&merged));
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(
        said.ends_with("28 entries from 87 chunks of 512 tokens, counted in tokens; calibration.txt, calibration.txt\n"),
        "{said}"
    );
    let bytes = std::fs::read(&merged).expect("the output");
    assert_eq!(sha256(&bytes), "892444e38fdb0356e65aff26e84f57bcb0b7e09bcc06c7c0ee40831a151ac343");

    // Without --force nothing is replaced, and an input never is.
    for (output, code) in [(&merged, 2), (&fixture("forge-3m.dat"), 2)] {
        let refused = merge().arg("--output").arg(output).output().expect("a program that starts");
        assert_eq!(refused.status.code(), Some(code), "{}", String::from_utf8_lossy(&refused.stderr));
    }
    let old = scratch.path().join("older.dat");
    common::succeeds(merge().arg("--output").arg(&old));
    assert_eq!(Imatrix::open(&old).expect("our own file").unit, Unit::Chunks);

    let shown = common::succeeds(common::ggforge().args(["imatrix", "show", "--json"]).arg(&merged));
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    let again = common::succeeds(merge().args(["--chunk-size", "512", "--force", "--json", "--output"]).arg(&merged));
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&again.stdout).expect("JSON"), shown);
    assert_eq!((&shown["chunk_count"], &shown["chunk_size"]), (&87.into(), &512.into()));
    let first = &shown["entries"][0];
    assert_eq!((&first["tensor"], &first["values"], &first["zero"]), (&"blk.0.attn_k.weight".into(), &256.into(), &0.into()));
    let text = common::succeeds(common::ggforge().args(["imatrix", "show"]).arg(&merged));
    assert_eq!(String::from_utf8(text.stdout).expect("text").lines().count(), 2 + 1 + 28);
}
