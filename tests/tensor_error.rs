//! `ggforge error` and `eval::tensor_error`: the figures are those of numpy, equal weights have no error, what cannot be compared is
//! refused by name, and nothing depends on threads or CPU level.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;

use common::{Paint, fixture, ggforge, scratch, succeeds};
use ggforge::error::{Error, Fault, Place};
use ggforge::eval::tensor_error::{self, FileError, Options, Watch, Weights};
use ggforge::gguf::{Header, Model, TensorSpec, Value};
use ggforge::imatrix::{CHUNK_SIZE_DEFAULT, Entry, Imatrix};
use ggforge::quant::Format;
use ggforge::simd::Level;
use serde_json::Value as Json;

/// What the sums of two programs may differ by: each adds up to a million terms in an order of its own.
const SUM_TOLERANCE: f64 = 1e-11;

/// A tensor for a file of our own.
struct Given {
    name: &'static str,
    format: Format,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

fn f32s(name: &'static str, shape: &[u64], weights: &[f32]) -> Given {
    let bytes = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
    Given { name, format: Format::F32, shape: shape.to_vec(), bytes }
}

/// Writes a GGUF file with these tensors.
fn write(path: &Path, given: &[Given]) -> PathBuf {
    let spec = |given: &Given| TensorSpec { name: given.name.into(), format: given.format, shape: given.shape.clone() };
    let metadata = vec![("general.architecture".into(), Value::from("llama"))];
    let layout = Header { metadata, tensors: given.iter().map(spec).collect() }.layout().expect("a sound header");
    let mut bytes = layout.header;
    bytes.resize(layout.file_bytes as usize, 0);
    for (given, offset) in given.iter().zip(&layout.offsets_bytes) {
        bytes[*offset as usize..][..given.bytes.len()].copy_from_slice(&given.bytes);
    }
    std::fs::write(path, bytes).expect("a writable folder");
    path.to_owned()
}

fn measure(base: &Path, file: &Path, options: &Options<'_>) -> Result<FileError, Error> {
    let (base, file) = (Model::open(base)?, Model::open(file)?);
    let watch = Watch { progress: &|_, _| {}, stop: &AtomicBool::new(false) };
    let mut found = tensor_error::measure(&Weights::of_gguf(&base)?, &[Weights::of_gguf(&file)?], options, watch)?;
    Ok(found.remove(0))
}

/// Measures two files that hold `base` and `other`.
fn compare(base: &[Given], other: &[Given], options: &Options<'_>) -> Result<FileError, Error> {
    let dir = scratch();
    measure(&write(&dir.path().join("base.gguf"), base), &write(&dir.path().join("other.gguf"), other), options)
}

fn convert(dir: &Path, file_type: &str) -> PathBuf {
    let path = dir.join(format!("forge-3m-{file_type}.gguf"));
    let mut command = ggforge();
    command.arg("convert").arg(fixture("hf/forge-3m")).args(["--type", file_type, "--quiet", "--output"]).arg(&path);
    succeeds(command.arg("--imatrix").arg(fixture("imatrix/forge-3m.gguf")));
    path
}

fn error_command(base: &Path, file: &Path) -> Command {
    let mut command = ggforge();
    command.arg("error").arg(base).arg(file);
    command
}

fn parsed(output: &Output) -> Json {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn close(got: &Json, expected: &Json, what: &str) {
    let (got, expected) = (got.as_f64().expect(what), expected.as_f64().expect(what));
    assert!((got - expected).abs() <= SUM_TOLERANCE * expected.abs(), "{what}: {got}, numpy says {expected}");
}

#[test]
fn the_figures_are_those_of_numpy() {
    const PYTHON: &str = "venv/bin/python";
    let Some(python) = common::peers(PYTHON).map(|peers| peers.join(PYTHON)) else { return };
    let dir = scratch();
    let (base, imatrix) = (convert(dir.path(), "F32"), fixture("imatrix/forge-3m.gguf"));
    for file_type in ["Q8_0", "Q4_K_M", "Q2_K", "IQ2_XXS", "MXFP4_MOE"] {
        let file = convert(dir.path(), file_type);
        let script = common::root().join("tests/tensor_error/figures.py");
        let numpy = parsed(&succeeds(Command::new(&python).arg(script).args([&base, &file, &imatrix])));
        let ours = parsed(&succeeds(error_command(&base, &file).arg("--json").arg("--imatrix").arg(&imatrix)));
        let tensors = ours["files"][0]["tensors"].as_array().expect("a list");
        assert_eq!(tensors.len(), numpy.as_object().expect("an object").len());
        for tensor in tensors {
            let name = tensor["name"].as_str().expect("a name");
            let (expected, what) = (&numpy[name], |figure: &str| format!("{file_type}: {name}: {figure}"));
            for figure in ["relative_mse", "cosine", "alpha", "max_error"] {
                close(&tensor[figure], &expected[figure], &what(figure));
            }
            assert_eq!(tensor["weighted"].is_null(), expected["weighted"].is_null(), "{name}");
            for figure in ["relative_mse", "cosine", "alpha"].iter().filter(|_| !expected["weighted"].is_null()) {
                close(&tensor["weighted"][figure], &expected["weighted"][figure], &what(figure));
            }
            if let Some(worst) = tensor["worst_rows"].get(0) {
                assert_eq!(worst["row"], expected["worst_row"], "{}", what("worst row"));
                close(&worst["relative_mse"], &expected["worst_row_relative_mse"], &what("worst row"));
            }
        }
    }
}

#[test]
fn a_file_against_itself_has_no_error() {
    let dir = scratch();
    let file = convert(dir.path(), "Q4_K_M");
    let found = measure(&file, &file, &Options::default()).expect("a sound file");
    for tensor in &found.tensors {
        assert_eq!((tensor.sums.ee, tensor.sums.max_error, tensor.sums.alpha()), (0.0, 0.0, 1.0), "{}", tensor.name);
        assert!(tensor.worst_rows.is_empty());
    }
    let json = parsed(&succeeds(error_command(&file, &file).arg("--json")));
    let total = &json["files"][0]["total"];
    assert_eq!((&total["relative_mse"], &total["sqnr_db"], &total["cosine"]), (&0.0.into(), &Json::Null, &1.0.into()));
    let text = String::from_utf8(succeeds(&mut error_command(&file, &file)).stdout).expect("UTF-8");
    assert!(text.contains("inf") && text.contains("no weight differs"), "{text}");
}

#[test]
fn a_model_folder_is_as_good_a_base_as_its_conversion() {
    let dir = scratch();
    let (f32, q4) = (convert(dir.path(), "F32"), convert(dir.path(), "Q4_0"));
    let json = |base: &Path, file: &Path| parsed(&succeeds(error_command(base, file).arg("--json")))["files"][0].clone();
    let folder = fixture("hf/forge-3m");
    assert_eq!(json(&folder, &f32)["total"]["relative_mse"], 0.0);
    // The q and k rows of the folder lie in another order.
    let (mut from_folder, mut from_file) = (json(&folder, &q4), json(&f32, &q4));
    for files in [&mut from_folder, &mut from_file] {
        files["tensors"].as_array_mut().expect("a list").iter_mut().for_each(|tensor| tensor["base_type"] = Json::Null);
    }
    assert_eq!(from_folder, from_file);
}

#[test]
fn threads_and_cpu_levels_change_nothing() {
    let dir = scratch();
    let (base, file) = (convert(dir.path(), "BF16"), convert(dir.path(), "Q3_K_M"));
    let imatrix = Imatrix::open(fixture("imatrix/forge-3m.gguf")).expect("the fixture");
    let with = |level, threads: usize| {
        let options = Options { level, threads: threads.try_into().ok(), imatrix: Some(&imatrix), ..Options::default() };
        measure(&base, &file, &options).expect("sound files")
    };
    let expected = with(Level::available()[0], 1);
    for level in Level::available() {
        for threads in [1, 2, 16] {
            assert_eq!(with(level, threads), expected, "{level:?}, {threads} threads");
        }
    }
}

/// The definition, one weight after the other.
fn sums_of(w: &[f32], q: &[f32]) -> [f64; 5] {
    let mut sums = [0.0f64; 5];
    for (w, q) in w.iter().zip(q).map(|(w, q)| (f64::from(*w), f64::from(*q))) {
        let e = w - q;
        for (sum, term) in sums.iter_mut().zip([w * w, q * q, w * q, e * e]) {
            *sum += term;
        }
        sums[4] = sums[4].max(e.abs());
    }
    sums
}

#[test]
fn rows_of_any_length_are_counted_once() {
    // Rows of one, rows cut into pieces, many rows in many pieces, stacked matrices, a scalar's worth of weights.
    let shapes: &[&[u64]] = &[&[1], &[7], &[600_000], &[3, 300_000], &[70_000, 9], &[9_000, 1], &[4, 50, 31], &[1, 1, 5]];
    for (seed, shape) in shapes.iter().enumerate() {
        let n = shape.iter().product::<u64>() as usize;
        let mut paint = Paint::new(seed as u64);
        let w = paint.weights(n, Paint::bell);
        let q: Vec<f32> = w.iter().map(|w| w * 0.9 + paint.bell() * 0.01).collect();
        let found = compare(&[f32s("x", shape, &w)], &[f32s("x", shape, &q)], &Options::default()).expect("sound files");
        let [tensor] = &found.tensors[..] else { panic!("one tensor") };
        let sums = tensor.sums;
        for (got, expected) in [sums.ww, sums.qq, sums.wq, sums.ee, sums.max_error].into_iter().zip(sums_of(&w, &q)) {
            assert!((got - expected).abs() <= SUM_TOLERANCE * expected, "{shape:?}: {got}, not {expected}");
        }
        assert!((1.05..1.2).contains(&sums.alpha()) || n < 10, "{shape:?}: {}", sums.alpha());
        let row_len = *shape.last().expect("dimensions") as usize;
        let row_mse = |row: usize| {
            let columns = row * row_len..(row + 1) * row_len;
            let [ww, _, _, ee, _] = sums_of(&w[columns.clone()], &q[columns]);
            ee / ww
        };
        let worst = (0..n / row_len).map(row_mse).fold(0.0, f64::max);
        assert!((tensor.worst_rows[0].relative_mse / worst - 1.0).abs() < SUM_TOLERANCE, "{shape:?}");
        assert_eq!(tensor.worst_rows.len(), (n / row_len).min(10), "{shape:?}");
        assert!(tensor.worst_rows.is_sorted_by(|a, b| a.relative_mse >= b.relative_mse), "{shape:?}");
    }
}

#[test]
fn a_row_that_lost_its_zeros_is_the_worst() {
    let w = [0.0, 0.0, 1.0, 1.0];
    let found =
        compare(&[f32s("x", &[2, 2], &w)], &[f32s("x", &[2, 2], &[0.0, 0.5, 1.0, 0.0])], &Options::default()).expect("sound");
    let rows: Vec<(u64, f64)> = found.tensors[0].worst_rows.iter().map(|row| (row.row, row.relative_mse)).collect();
    assert_eq!(rows, [(0, f64::INFINITY), (1, 0.5)]);
    assert_eq!(found.total().sums.relative_mse(), 1.25 / 2.0);
}

#[test]
fn experts_are_weighted_by_their_own_columns_or_not_at_all() {
    // Three experts of one row of two columns: nothing is known of the second.
    let mut imatrix = Imatrix::new(CHUNK_SIZE_DEFAULT);
    let entry = Entry::new(vec![4.0, 1.0, 0.0, 0.0, 0.0, 9.0], vec![1, 0, 3]).expect("a sound entry");
    imatrix.entries.insert("x".to_owned(), entry);
    let options = Options { imatrix: Some(&imatrix), ..Options::default() };
    let (w, q) = ([1.0, 1.0, 8.0, 8.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
    let found = compare(&[f32s("x", &[3, 1, 2], &w)], &[f32s("x", &[3, 1, 2], &q)], &options).expect("sound files");
    let weighted = found.tensors[0].weighted.expect("weighted sums");
    // Column weights 4, 1 for the first, 0, 3 for the third.
    assert_eq!((weighted.ww, weighted.qq, weighted.wq, weighted.ee), (4.0 + 1.0 + 3.0, 1.0, 1.0, 4.0 + 3.0));
    assert_eq!(found.total().weighted, Some(weighted));

    imatrix.entries.insert("x".to_owned(), Entry::new(vec![0.0; 6], vec![0]).expect("a sound entry"));
    let options = Options { imatrix: Some(&imatrix), ..Options::default() };
    let found = compare(&[f32s("x", &[3, 1, 2], &w)], &[f32s("x", &[3, 1, 2], &q)], &options).expect("sound files");
    assert_eq!(found.tensors[0].weighted, None);
}

#[track_caller]
fn assert_malformed(outcome: Result<FileError, Error>, place: &Place, fault: Fault, file: &str) {
    match outcome {
        Err(Error::Malformed { path, place: found, fault: kind, .. }) => {
            assert_eq!((&found, kind), (place, fault));
            assert!(path.ends_with(file), "{} is blamed", path.display());
        }
        other => panic!("{fault:?} was expected, not {other:?}"),
    }
}

#[test]
fn what_cannot_be_compared_is_refused_by_name() {
    let options = Options::default();
    let x = || f32s("x", &[2, 3], &[1.0; 6]);
    let y = || f32s("y", &[3], &[1.0; 3]);
    let tensor = |name: &str| Place::Tensor(name.to_owned());
    assert_malformed(compare(&[x(), y()], &[x()], &options), &tensor("y"), Fault::MissingTensor, "other.gguf");
    assert_malformed(compare(&[x()], &[y(), x()], &options), &tensor("y"), Fault::MissingTensor, "base.gguf");
    let turned = f32s("x", &[3, 2], &[1.0; 6]);
    assert_malformed(compare(&[x()], &[turned], &options), &tensor("x"), Fault::ShapeMismatch, "other.gguf");
    assert_malformed(compare(&[], &[x()], &options), &Place::File, Fault::NoTensors, "base.gguf");

    let mut weights = [1.0; 6];
    weights[4] = f32::NAN;
    let place = Place::Weight { tensor: "x".to_owned(), row: 1, column: 1 };
    let bad = || f32s("x", &[2, 3], &weights);
    assert_malformed(compare(&[x()], &[bad()], &options), &place, Fault::NonFinite, "other.gguf");
    assert_malformed(compare(&[bad()], &[x()], &options), &place, Fault::NonFinite, "base.gguf");
    // An infinite scale.
    let q8 = |scale: u16| Given {
        name: "x",
        format: Format::Q8_0,
        shape: vec![32],
        bytes: scale.to_le_bytes().into_iter().chain([1; 32]).collect(),
    };
    let place = Place::Weight { tensor: "x".to_owned(), row: 0, column: 0 };
    assert_malformed(compare(&[q8(0x3c00)], &[q8(0x7c00)], &options), &place, Fault::NonFinite, "other.gguf");

    let integers = || Given { name: "ids", format: Format::I32, shape: vec![2], bytes: vec![0; 8] };
    let refused = compare(&[x(), integers()], &[x(), integers()], &options).expect_err("integers are no weights");
    assert!(matches!(&refused, Error::Unsupported { .. }) && refused.to_string().contains("--skip ids"), "{refused}");
    let skipping = Options { skip: vec!["ids".to_owned()], ..Options::default() };
    assert_eq!(compare(&[x(), integers()], &[x(), integers()], &skipping).expect("one tensor").tensors.len(), 1);
    let nothing = Options { only: vec!["z".to_owned()], ..Options::default() };
    assert!(matches!(compare(&[x()], &[x()], &nothing), Err(Error::Usage(_))));

    let mut imatrix = Imatrix::new(CHUNK_SIZE_DEFAULT);
    imatrix.entries.insert("x".to_owned(), Entry::new(vec![1.0; 5], vec![1]).expect("a sound entry"));
    let other_model = Options { imatrix: Some(&imatrix), ..Options::default() };
    let outcome = compare(&[x()], &[x()], &other_model);
    assert!(matches!(outcome, Err(Error::Malformed { fault: Fault::ImatrixLength, .. })), "{outcome:?}");
}

#[test]
fn the_first_fault_is_the_one_reported_whatever_the_threads() {
    let n = 4_000_000;
    let good = vec![1.0; n];
    let mut bad = good.clone();
    [700_001, 700_002, 3_999_999].into_iter().for_each(|at| bad[at] = f32::INFINITY);
    let place = Place::Weight { tensor: "x".to_owned(), row: 700, column: 1 };
    let dir = scratch();
    let shape = [n as u64 / 1000, 1000];
    let base = write(&dir.path().join("base.gguf"), &[f32s("x", &shape, &good)]);
    let other = write(&dir.path().join("other.gguf"), &[f32s("x", &shape, &bad)]);
    for threads in [1, 3, 8] {
        let options = Options { threads: usize::try_into(threads).ok(), ..Options::default() };
        assert_malformed(measure(&base, &other, &options), &place, Fault::NonFinite, "other.gguf");
    }
}

#[test]
fn a_measurement_can_be_watched_and_stopped() {
    let dir = scratch();
    let path = write(&dir.path().join("x.gguf"), &[f32s("x", &[1000, 1000], &vec![1.0; 1_000_000])]);
    let model = Model::open(path).expect("a sound file");
    let weights = || Weights::of_gguf(&model).expect("weights");
    let seen = std::sync::Mutex::new(Vec::new());
    let progress = |done, total| seen.lock().expect("no panic").push((done, total));
    let watch = Watch { progress: &progress, stop: &AtomicBool::new(false) };
    tensor_error::measure(&weights(), &[weights()], &Options::default(), watch).expect("sound files");
    assert_eq!(seen.lock().expect("no panic").iter().max(), Some(&(8_000_000, 8_000_000)));

    let watch = Watch { progress: &|_, _| {}, stop: &AtomicBool::new(true) };
    let stopped = tensor_error::measure(&weights(), &[weights()], &Options::default(), watch);
    assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
}

#[test]
fn the_page_is_written_whole_or_not_at_all() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name);
    let base = write(&path("base.gguf"), &[f32s("blk.0.ffn_up.<script>alert(1)</script>", &[2, 2], &[1.0; 4])]);
    let file = write(&path("<b>&.gguf"), &[f32s("blk.0.ffn_up.<script>alert(1)</script>", &[2, 2], &[0.9; 4])]);
    let page = path("page.html");
    let with_page = |file: &Path| {
        let mut command = error_command(&base, file);
        command.arg("--report").arg(&page);
        command
    };
    succeeds(&mut with_page(&file));
    let html = std::fs::read_to_string(&page).expect("a page");
    assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>"));
    assert!(!html.contains("<script") && html.contains("&lt;script&gt;alert(1)"), "{html}");
    assert!(html.contains("20.0") && html.contains("&lt;b&gt;&amp;"), "{html}");

    let code = |command: &mut Command| command.output().expect("a program that starts").status.code();
    assert_eq!(code(&mut with_page(&file)), Some(2), "an older page was replaced unasked");
    assert_eq!(code(error_command(&base, &file).args(["--sort", "weighted"])), Some(2), "there is nothing to sort by");
    assert_eq!(code(with_page(&file).arg("--force")), Some(0));
    assert_eq!(code(error_command(&base, &file).arg("--force").arg("--report").arg(&base)), Some(2), "an input would be replaced");

    std::fs::remove_file(&page).expect("our own file");
    let broken = write(&path("broken.gguf"), &[f32s("blk.0.ffn_up.<script>alert(1)</script>", &[2, 2], &[f32::NAN; 4])]);
    assert_eq!(code(&mut with_page(&broken)), Some(3));
    let mut names: Vec<_> = dir.path().read_dir().expect("our folder").map(|entry| entry.expect("an entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["<b>&.gguf", "base.gguf", "broken.gguf"]);
}

/// The time of a report grows with the number of tensors and not with its square, which would be minutes here instead of a second or two.
#[test]
fn a_report_of_50_000_tensors_takes_seconds() {
    const CPU_SECONDS: u32 = 20;
    let dir = scratch();
    let names: Vec<&'static str> = (0..50_000).map(|i| &*format!("blk.{i}.ffn_up.weight").leak()).collect();
    let given = |weight: f32| names.iter().map(|name| f32s(name, &[2], &[weight, 1.0])).collect::<Vec<_>>();
    let base = write(&dir.path().join("base.gguf"), &given(1.0));
    let file = write(&dir.path().join("file.gguf"), &given(0.5));
    let page = dir.path().join("page.html");
    let command = error_command(&base, &file);
    let mut limited = Command::new("sh");
    limited
        .args(["-c", &format!("ulimit -t {CPU_SECONDS}; exec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(command.get_args());
    let output = succeeds(limited.args(["--json", "--report"]).arg(&page));
    assert_eq!(parsed(&output)["files"][0]["tensors"].as_array().map(Vec::len), Some(names.len()));
    let html = std::fs::read_to_string(&page).expect("a page");
    assert!(html.ends_with("</html>") && html.matches("<tr>").count() > names.len());
}

#[test]
fn tables_are_sorted_as_asked() {
    let dir = scratch();
    let (base, file) = (convert(dir.path(), "F32"), convert(dir.path(), "Q4_K_M"));
    let column = |sort: &str, field: &str| -> Vec<f64> {
        let json = parsed(&succeeds(error_command(&base, &file).args(["--json", "--sort", sort])));
        json["files"][0]["tensors"].as_array().expect("a list").iter().map(|t| t[field].as_f64().expect("a number")).collect()
    };
    assert!(column("mse", "relative_mse").is_sorted_by(|a, b| a >= b));
    assert!(column("max", "max_error").is_sorted_by(|a, b| a >= b));
    assert!(column("cosine", "cosine").is_sorted());
    assert!(column("alpha", "alpha").is_sorted_by(|a, b| (a - 1.0).abs() >= (b - 1.0).abs()));
    assert!(column("size", "size_bytes").is_sorted_by(|a, b| a >= b));
}
