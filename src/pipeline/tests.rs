//! The pipeline on plans made by hand.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tempfile::TempDir;

use super::*;
use crate::error::{Fault, Place};
use crate::gguf::Value;
use crate::plan::{Origin, OutputPlan, PlannedTensor};
use crate::quant::Format;
use crate::rows::{ColumnMap, Edit, Part, RowMap};
use crate::source::{InputFile, SourceTensor};

/// Rows that fill whole blocks of every format used here.
const ROW_LEN: u64 = 256;

/// Tensors in one raw file.
struct RawSource {
    tensors: Vec<SourceTensor>,
    files: Vec<InputFile>,
}

impl TensorSource for RawSource {
    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn files(&self) -> &[InputFile] {
        &self.files
    }
}

/// A folder with an input file, and what to write from it.
struct Case {
    dir: TempDir,
    source: RawSource,
    weights: Vec<Vec<f32>>,
}

impl Case {
    /// One f32 tensor per number of rows.
    fn new(rows: &[u64]) -> Case {
        Case::with(rows, |_| {})
    }

    fn with(rows: &[u64], change: impl FnOnce(&mut Vec<Vec<f32>>)) -> Case {
        let mut weights: Vec<Vec<f32>> = rows.iter().enumerate().map(|(t, &n)| paint(t, (n * ROW_LEN) as usize)).collect();
        change(&mut weights);
        let bytes: Vec<u8> = weights.iter().flatten().flat_map(|w| w.to_le_bytes()).collect();
        Case { weights, ..Case::stored(Format::F32, rows, bytes) }
    }

    /// Tensors of so many rows, as `bytes` hold them.
    fn stored(format: Format, rows: &[u64], bytes: Vec<u8>) -> Case {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("input.raw");
        fs::write(&path, bytes).unwrap();
        let mut offset_bytes = 0;
        let mut tensors = Vec::new();
        for (t, &n_rows) in rows.iter().enumerate() {
            let shape = vec![n_rows, ROW_LEN];
            let size_bytes = format.tensor_bytes(&shape).unwrap();
            tensors.push(SourceTensor { name: format!("t{t}"), format, shape, file: 0, offset_bytes, size_bytes });
            offset_bytes += size_bytes;
        }
        let files = vec![InputFile::new(&path, File::open(&path).unwrap()).unwrap()];
        Case { dir, source: RawSource { tensors, files }, weights: Vec::new() }
    }

    /// An output with every tensor in one format.
    fn output(&self, format: Format) -> OutputPlan {
        let tensors = self.source.tensors.iter().enumerate().map(|(t, tensor)| PlannedTensor {
            name: format!("blk.{t}.weight"),
            shape: tensor.shape.clone(),
            format,
            origin: Origin::copy(t, &tensor.shape),
            importance: None,
            reason: None,
        });
        let metadata = vec![("general.architecture".to_owned(), Value::from("llama"))];
        OutputPlan { file_type: format.to_string(), metadata, tensors: tensors.collect() }
    }

    fn plan(&self, formats: &[Format]) -> Plan {
        Plan { outputs: formats.iter().map(|&format| self.output(format)).collect(), warnings: vec![], coverage: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, plan: &Plan, names: &[&str], options: &Options) -> Result<Vec<Written>> {
        self.run_watched(plan, names, options, &|_| {}, &AtomicBool::new(false))
    }

    fn run_watched(
        &self,
        plan: &Plan,
        names: &[&str],
        options: &Options,
        progress: &(dyn Fn(Progress) + Sync),
        stop: &AtomicBool,
    ) -> Result<Vec<Written>> {
        let paths: Vec<PathBuf> = names.iter().map(|name| self.path(name)).collect();
        super::run(plan, &self.source, &paths, options, progress, stop)
    }

    /// Names in the folder besides the input, hidden ones too.
    fn left_behind(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "input.raw").collect();
        names.sort();
        names
    }

    /// The bytes of a planned tensor in a file of the output.
    fn tensor(&self, plan: &Plan, files: &[PlannedFile], output: usize, tensor: usize) -> Vec<u8> {
        let file = files.iter().find(|f| f.output == output && f.tensors.contains(&tensor)).unwrap();
        let at = tensor - file.tensors.start;
        let (offset, size) = (file.layout.offsets_bytes[at] as usize, file.layout.sizes_bytes[at] as usize);
        assert_eq!(plan.outputs[output].tensors[tensor].name, file.header.tensors[at].name);
        let bytes = fs::read(&file.path).unwrap();
        assert_eq!(bytes.len() as u64, file.layout.file_bytes);
        assert_eq!(bytes[..file.layout.header.len()], file.layout.header);
        bytes[offset..offset + size].to_vec()
    }
}

/// Weights like those of a model, from a formula.
fn paint(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| (((i * 7919 + seed * 104_729) % 20_011) as f32 / 10_005.5 - 1.0) * 0.1).collect()
}

fn quantized(format: Format, weights: &[f32]) -> Vec<u8> {
    let mut blocks = vec![0; format.tensor_bytes(&[weights.len() as u64]).unwrap() as usize];
    format.quantize_rows(Level::detect(), weights, ROW_LEN as usize, None, &mut blocks).unwrap();
    blocks
}

fn threads(n: usize) -> Options {
    Options { threads: NonZeroUsize::new(n), ..Options::default() }
}

fn replace() -> Options {
    Options { existing: Existing::Replace, ..Options::default() }
}

#[test]
fn one_reading_writes_every_output_whatever_the_threads_and_the_memory() {
    let case = Case::new(&[3, 2000, 1, 500]);
    let formats = [Format::F32, Format::Q8_0, Format::F16];
    let plan = case.plan(&formats);
    for (n, memory_max_bytes) in [(1, 1 << 30), (2, 1 << 30), (3, 1 << 14), (16, 1 << 18)] {
        let options = Options { memory_max_bytes, ..threads(n) };
        let names = ["a.gguf", "b.gguf", "c.gguf"];
        let read_bytes = AtomicUsize::new(0);
        let progress = |progress| {
            if let Progress::Converted { done_bytes, total_bytes } = progress {
                assert_eq!(total_bytes, case.source.tensors.iter().map(|t| t.size_bytes).sum::<u64>());
                read_bytes.fetch_max(done_bytes as usize, Ordering::Relaxed);
            }
        };
        let written = case.run_watched(&plan, &names, &options, &progress, &AtomicBool::new(false)).unwrap();
        let paths: Vec<PathBuf> = written.iter().map(|w| w.path.clone()).collect();
        let files = files(&plan, &paths, None).unwrap();
        for (output, &format) in formats.iter().enumerate() {
            for (tensor, weights) in case.weights.iter().enumerate() {
                let found = case.tensor(&plan, &files, output, tensor);
                assert!(found == quantized(format, weights), "{format}, tensor {tensor}, {n} threads");
            }
        }
        assert_eq!(read_bytes.into_inner() as u64, fs::metadata(case.path("input.raw")).unwrap().len(), "each weight is read once");
        assert_eq!(case.left_behind(), names);
        names.iter().for_each(|name| fs::remove_file(case.path(name)).unwrap());
    }
}

/// The rows of two heads, interleaved.
fn in_heads() -> Origin {
    let rows = RowMap::RopeHeads { n_head: 2 };
    Origin::Parts(vec![Part { tensor: 0, n_rows: 8, rows, columns: ColumnMap::Same, edit: Edit::Same }])
}

#[test]
fn rows_are_permuted_and_computed_tensors_are_written() {
    let case = Case::new(&[8]);
    let mut plan = case.plan(&[Format::F32]);
    plan.outputs[0].tensors[0].origin = in_heads();
    let computed = PlannedTensor {
        name: "rope_freqs.weight".into(),
        shape: vec![3],
        format: Format::F32,
        origin: Origin::Computed(vec![1.0, -0.5, 8.0]),
        importance: None,
        reason: None,
    };
    plan.outputs[0].tensors.push(computed);
    case.run(&plan, &["a.gguf"], &Options::default()).unwrap();

    let files = files(&plan, &[case.path("a.gguf")], None).unwrap();
    let rows: Vec<f32> = [0, 2, 1, 3, 4, 6, 5, 7].iter().flat_map(|r| &case.weights[0][r * 256..(r + 1) * 256]).copied().collect();
    assert!(case.tensor(&plan, &files, 0, 0) == quantized(Format::F32, &rows));
    assert_eq!(case.tensor(&plan, &files, 0, 1), [1.0f32, -0.5, 8.0].map(f32::to_le_bytes).concat());
}

#[test]
fn shards_hold_consecutive_tensors_under_the_limit() {
    let case = Case::new(&[4, 4, 4, 8, 1]);
    let plan = case.plan(&[Format::F32]);
    let options = Options { split_max_bytes: Some(8192), ..Options::default() };
    let written = case.run(&plan, &["a.gguf"], &options).unwrap();
    let names = ["a-00001-of-00004.gguf", "a-00002-of-00004.gguf", "a-00003-of-00004.gguf", "a-00004-of-00004.gguf"];
    assert_eq!(case.left_behind(), names);
    assert_eq!(written.iter().map(|w| w.path.clone()).collect::<Vec<_>>(), names.map(|name| case.path(name)));

    let files = files(&plan, &[case.path("a.gguf")], options.split_max_bytes).unwrap();
    assert_eq!(files.iter().map(|f| f.tensors.clone()).collect::<Vec<_>>(), [0..2, 2..3, 3..4, 4..5]);
    for (tensor, weights) in case.weights.iter().enumerate() {
        assert!(case.tensor(&plan, &files, 0, tensor) == quantized(Format::F32, weights));
    }
    for (n, file) in files.iter().enumerate() {
        let value = |key: &str| file.header.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
        assert_eq!(value("split.no"), Some(Value::U16(n as u16)));
        assert_eq!(value("split.count"), Some(Value::U16(4)));
        assert_eq!(value("split.tensors.count"), Some(Value::I32(5)));
        assert_eq!(value("general.architecture").is_some(), n == 0);
    }
}

#[test]
fn a_weight_that_cannot_be_stored_is_named_and_nothing_is_left() {
    let faults = [
        (f32::NAN, Format::F32, Fault::NonFinite),
        (f32::INFINITY, Format::Q8_0, Fault::NonFinite),
        (1e38, Format::F16, Fault::ScaleOverflow),
    ];
    for (value, format, expected) in faults {
        // Two bad weights: the first in the file is named, whichever thread finds which.
        let case = Case::with(&[2, 3000], |weights| {
            weights[1][2500 * 256 + 17] = value;
            weights[1][1000 * 256 + 5] = value;
        });
        for n in [1, 3, 16] {
            let error = case.run(&case.plan(&[Format::F32, format]), &["a.gguf", "b.gguf"], &threads(n)).unwrap_err();
            let Error::Malformed { path, place, fault, .. } = &error else { panic!("{error}") };
            assert_eq!((path, *fault), (&case.path("input.raw"), expected), "{error}");
            assert_eq!(*place, Place::Weight { tensor: "t1".into(), row: 1000, column: 5 }, "{error}");
            assert!(case.left_behind().is_empty());
        }
    }
}

#[test]
fn a_scale_that_is_not_finite_is_refused_even_where_blocks_are_only_copied() {
    // Where each half-precision scale of a block lies.
    let scales: &[(Format, &[usize])] = &[
        (Format::F16, &[0]),
        (Format::Q4_0, &[0]),
        (Format::Q4_1, &[0, 2]),
        (Format::Q5_0, &[0]),
        (Format::Q5_1, &[0, 2]),
        (Format::Q8_0, &[0]),
        (Format::Q4_K, &[0, 2]),
        (Format::Q5_K, &[0, 2]),
        (Format::Q6_K, &[208]),
    ];
    for &(format, offsets) in scales {
        let sound = quantized(format, &paint(1, 6 * 256));
        let n_blocks = sound.len() / format.block_bytes();
        for (&offset, block) in offsets.iter().flat_map(|offset| [0, n_blocks / 2, n_blocks - 1].map(|block| (offset, block))) {
            for bits in [0x7c00u16, 0xfc00, 0x7e00] {
                let mut bytes = sound.clone();
                let at = block * format.block_bytes() + offset;
                bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
                let case = Case::stored(format, &[6], bytes);
                let error = case.run(&case.plan(&[format]), &["a.gguf"], &Options::default()).unwrap_err();
                let Error::Malformed { place: Place::Weight { row, column, .. }, fault, .. } = &error else { panic!("{error}") };
                assert_eq!(*fault, Fault::NonFinite, "{error}");
                assert_eq!((row * ROW_LEN + column) as usize / format.block_len(), block, "{format}: {error}");
                assert!(case.left_behind().is_empty());
            }
        }
        let case = Case::stored(format, &[6], sound.clone());
        let plan = case.plan(&[format]);
        case.run(&plan, &["a.gguf"], &Options::default()).unwrap();
        let files = files(&plan, &[case.path("a.gguf")], None).unwrap();
        assert!(case.tensor(&plan, &files, 0, 0) == sound, "{format} is copied byte for byte");
    }
}

#[test]
fn a_fault_in_a_permuted_row_is_named_as_in_the_input() {
    let case = Case::with(&[8], |weights| weights[0][2 * 256 + 9] = f32::NEG_INFINITY);
    let mut plan = case.plan(&[Format::Q8_0]);
    plan.outputs[0].tensors[0].origin = in_heads();
    let error = case.run(&plan, &["a.gguf"], &Options::default()).unwrap_err();
    assert!(error.to_string().contains("t0: row 2, column 9: -inf"), "{error}");
}

#[test]
fn names_that_would_destroy_something_are_refused() {
    let case = Case::new(&[4]);
    let plan = case.plan(&[Format::F32]);
    let refused = |name: &str, options: &Options, why: &str| {
        let error = case.run(&plan, &[name], options).unwrap_err();
        assert!(matches!(&error, Error::Usage(what) if what.contains(why)), "{name}: {error}");
    };
    fs::write(case.path("old.gguf"), "old").unwrap();
    fs::hard_link(case.path("input.raw"), case.path("hard.gguf")).unwrap();
    symlink("input.raw", case.path("soft.gguf")).unwrap();
    symlink("old.gguf", case.path("link.gguf")).unwrap();
    symlink("nowhere", case.path("dangling.gguf")).unwrap();
    fs::create_dir(case.path("dir.gguf")).unwrap();
    let before = case.left_behind();

    refused("old.gguf", &Options::default(), "exists already; --force replaces it");
    for name in ["input.raw", "hard.gguf", "soft.gguf", "../input.raw/../input.raw"] {
        if !name.contains('/') {
            refused(name, &replace(), "is an input");
        }
    }
    refused("old.gguf", &Options { protected: vec![case.path("old.gguf")], ..replace() }, "is an input");
    refused("link.gguf", &replace(), "symbolic link");
    refused("dangling.gguf", &replace(), "symbolic link");
    refused("dir.gguf", &replace(), "not a regular file");
    let twice = case.run(&case.plan(&[Format::F32, Format::F16]), &["a.gguf", "a.gguf"], &replace()).unwrap_err();
    assert!(twice.to_string().contains("two outputs"), "{twice}");
    assert_eq!(case.left_behind(), before);
    assert_eq!(fs::read(case.path("old.gguf")).unwrap(), b"old");

    case.run(&plan, &["old.gguf"], &replace()).unwrap();
    assert_eq!(case.left_behind(), before);
    assert!(fs::read(case.path("old.gguf")).unwrap().starts_with(b"GGUF"));
}

#[test]
fn a_name_taken_meanwhile_is_respected_and_the_others_are_withdrawn() {
    let case = Case::new(&[4]);
    let plan = case.plan(&[Format::F32, Format::F16]);
    let take = |progress| {
        if progress == Progress::Syncing {
            fs::write(case.path("a.gguf"), "theirs").unwrap();
        }
    };
    let error = case.run_watched(&plan, &["a.gguf", "b.gguf"], &Options::default(), &take, &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error}");
    assert_eq!(case.left_behind(), ["a.gguf"]);
    assert_eq!(fs::read(case.path("a.gguf")).unwrap(), b"theirs");
}

#[test]
fn a_stop_leaves_nothing() {
    let case = Case::new(&[4000]);
    let stop = AtomicBool::new(false);
    let stop_at = |when: fn(Progress) -> bool| {
        stop.store(false, Ordering::Relaxed);
        let progress = |progress| {
            if when(progress) {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let error = case.run_watched(&case.plan(&[Format::F32]), &["a.gguf"], &threads(2), &progress, &stop).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
        assert!(case.left_behind().is_empty());
    };
    stop_at(|progress| matches!(progress, Progress::Converted { .. }));
    stop_at(|progress| progress == Progress::Syncing);
}

#[test]
fn an_input_that_changes_gives_no_output() {
    let touch = |path: &Path| OpenOptions::new().append(true).open(path).unwrap().write_all(b"x").unwrap();
    let cut = |path: &Path| OpenOptions::new().write(true).open(path).unwrap().set_len(1000).unwrap();
    for change in [touch, cut] {
        let case = Case::new(&[4000]);
        let changed = AtomicBool::new(false);
        let progress = |_| {
            if !changed.swap(true, Ordering::Relaxed) {
                change(&case.path("input.raw"));
            }
        };
        let plan = case.plan(&[Format::F32]);
        let error = case.run_watched(&plan, &["a.gguf"], &threads(1), &progress, &AtomicBool::new(false)).unwrap_err();
        assert!(matches!(error, Error::InputChanged { .. }), "{error}");
        assert!(case.left_behind().is_empty());
    }
}

/// Turns one bit of every file in `dir` that this process has open and that has no name.
fn turn_a_bit(dir: &Path, offset_bytes: u64) {
    let mut n_turned = 0;
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let is_output = |name: &str| name.starts_with('#') || name.contains(".tmp.");
        if target.parent() != Some(dir) || !target.file_name().is_some_and(|name| is_output(&name.to_string_lossy())) {
            continue;
        }
        let file = OpenOptions::new().read(true).write(true).open(entry.path()).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset_bytes).unwrap();
        file.write_all_at(&[byte[0] ^ 4], offset_bytes).unwrap();
        n_turned += 1;
    }
    assert_eq!(n_turned, 1);
}

#[test]
fn a_bit_that_turns_before_the_output_has_its_name_is_found_where_all_is_read_back() {
    let case = Case::new(&[3, 700, 5]);
    let plan = case.plan(&[Format::Q8_0]);
    let options = Options { read_back: ReadBack::Everything, ..replace() };
    case.run(&plan, &["sound"], &options).unwrap();
    let layout = files(&plan, &[case.path("bad")], None).unwrap().remove(0).layout;
    let dir = fs::canonicalize(case.dir.path()).unwrap();
    let last = layout.offsets_bytes[2] + layout.sizes_bytes[2] - 1;
    for (offset, owner) in [(5, "header"), (layout.offsets_bytes[1] + 100_000, "blk.1.weight"), (last, "blk.2.weight")] {
        let watch = |progress| {
            if progress == Progress::ReadingBack {
                turn_a_bit(&dir, offset);
            }
        };
        let error = case.run_watched(&plan, &["bad"], &options, &watch, &AtomicBool::new(false)).unwrap_err();
        let Error::Io { source, op: "read back", .. } = &error else { panic!("{error}") };
        assert!(source.to_string().starts_with(owner), "{source}");
        assert_eq!(case.left_behind(), ["sound"]);
    }
}

#[test]
fn a_panic_in_a_worker_is_an_error_and_leaves_nothing() {
    let case = Case::new(&[4000]);
    let panic_in = AtomicUsize::new(3);
    let watch = |progress| {
        let is_work = matches!(progress, Progress::Converted { .. });
        assert!(!is_work || panic_in.fetch_sub(1, Ordering::Relaxed) != 0, "a planned panic");
    };
    let plan = case.plan(&[Format::F32]);
    let error = case.run_watched(&plan, &["a.gguf"], &threads(3), &watch, &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(&error, Error::Internal(what) if what.contains("a planned panic")), "{error}");
    assert!(case.left_behind().is_empty());
}

#[test]
fn a_row_beyond_the_memory_bound_is_refused() {
    let case = Case::new(&[4]);
    let options = Options { memory_max_bytes: 1000, ..Options::default() };
    let error = case.run(&case.plan(&[Format::F32]), &["a.gguf"], &options).unwrap_err();
    assert!(error.to_string().contains("--max-memory"), "{error}");
    assert!(case.left_behind().is_empty());
}

#[test]
fn a_file_that_could_not_be_written_is_refused_before_there_is_anything_to_write() {
    let case = Case::new(&[1]);
    check_target(&case.path("new.html"), Existing::Refuse, &[]).unwrap();
    assert!(case.left_behind().is_empty());
    let error = check_target(&case.path("missing/new.html"), Existing::Refuse, &[]).unwrap_err();
    assert!(matches!(error, Error::Io { op: "open the directory", .. }), "{error}");
    fs::write(case.path("old.html"), "old").unwrap();
    let error = check_target(&case.path("old.html"), Existing::Refuse, &[]).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error}");
    check_target(&case.path("old.html"), Existing::Replace, &[]).unwrap();
    assert_eq!(fs::read(case.path("old.html")).unwrap(), b"old");
}

#[test]
fn an_output_that_cannot_be_created_is_an_error_before_any_work() {
    let case = Case::new(&[4]);
    let plan = case.plan(&[Format::F32]);
    let too_long = format!("{}.gguf", "n".repeat(300));
    for name in ["missing/a.gguf", &too_long] {
        let error = case.run(&plan, &[name], &Options::default()).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{name}: {error}");
    }
    let error = case.run(&plan, &[".."], &Options::default()).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error}");
}

#[test]
fn an_older_split_set_is_never_read_together_with_new_shards() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a-00001-of-00003.gguf", "a-00002-of-00003.gguf", "a-00003-of-00003.gguf"];
    let paths = names.map(|name| dir.path().join(name));
    for path in &paths {
        fs::write(path, "old").unwrap();
    }
    let sinks: Vec<Sink> = paths.iter().map(|path| Sink::create(path, 3).unwrap()).collect();
    for sink in &sinks {
        sink.write_at(b"new", 0).unwrap();
    }
    // The second name cannot be given: the run ends where a kill might end it.
    fs::remove_file(&paths[1]).unwrap();
    fs::create_dir(&paths[1]).unwrap();
    fs::write(paths[1].join("x"), "").unwrap();
    publish(sinks, &[0], Existing::Replace).unwrap_err();
    assert_eq!(fs::read(&paths[2]).unwrap(), b"new");
    assert!(!paths[0].exists(), "the old first shard would make a set of old and new ones");
}

#[test]
fn the_first_of_several_shards_is_told_from_a_whole_file() {
    let case = Case::new(&[4, 4, 4]);
    let plan = case.plan(&[Format::F32, Format::F16]);
    let paths = ["a.gguf", "b.gguf"].map(|name| case.dir.path().join(name));
    let whole = files(&plan, &paths, None).unwrap();
    assert!(first_shards(&whole).is_empty());
    // 4 KiB a tensor in F32, 2 in F16.
    let split = files(&plan, &paths, Some(4 << 10)).unwrap();
    assert_eq!(split.iter().map(|file| file.output).collect::<Vec<_>>(), [0, 0, 0, 1, 1]);
    assert_eq!(first_shards(&split), [0, 3]);
}
