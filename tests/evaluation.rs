//! What is measured is what others measure: perplexities equal an independent float64 pass and, with activations rounded as llama.cpp rounds
//! them, llama-perplexity's; divergences and importance matrices agree with its tools' as far as those are exact; and no figure depends
//! on threads, CPU level or batch.
//!
//! `fixtures/eval/` holds what llama.cpp's tools measured (made by `tools/dev/evaluations.py`).

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ggforge::error::Fault;
use ggforge::eval::collect::{self, OutputLayer};
use ggforge::eval::divergence::{self, Comparison};
use ggforge::eval::perplexity::{self, Perplexity};
use ggforge::eval::{Cut, Progress, Watch, Windows, read_text};
use ggforge::gguf::{File, Model};
use ggforge::imatrix::Imatrix;
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Cpu, Network, Residency};
use ggforge::tokenizer::encode::Tokenizer;

/// Nobody watches.
static NEVER: AtomicBool = AtomicBool::new(false);
const ALONE: Watch<'static> = Watch { progress: &|_| (), stop: &NEVER };

/// Files of one model in several types, made by the program.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn of(model: &Path, types: &[&str], more: &[&str]) -> Files {
        let files = Files { folder: common::scratch() };
        let mut command = common::ggforge();
        command.arg("convert").arg(model).arg("--output").arg(files.folder.path().join("{type}.gguf")).args(more);
        types.iter().for_each(|name| {
            command.args(["--type", name]);
        });
        common::succeeds(&mut command);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.gguf"))
    }

    fn open(&self, name: &str) -> Model {
        Model::open(self.path(name)).expect("a file that was just made")
    }
}

fn forge_3m() -> PathBuf {
    common::fixture("hf/forge-3m")
}

fn prose() -> PathBuf {
    common::fixture("text/prose.txt")
}

fn cpu(activations: Activations) -> Cpu {
    let threads = std::thread::available_parallelism().expect("a number of cores").get();
    Cpu::new(Engine::detect(), threads, activations).expect("threads")
}

fn windows(model: &Model, text: &Path, ctx: usize, windows_max: usize) -> Windows {
    let tokenizer = Tokenizer::from_metadata(&model.shards()[0]).expect("a vocabulary");
    let cut = Cut { ctx, stride: None, windows_max: Some(windows_max) };
    Windows::of_text(text, &read_text(text).expect("a text"), &tokenizer, &cut).expect("long enough")
}

fn network<'a>(cpu: &'a Cpu, model: &'a Model, ctx: usize) -> Network<'a, Cpu> {
    Network::open(cpu, model, ctx, Residency::Streamed).expect("a model that can be run")
}

fn ppl(model: &Model, text: &Path, ctx: usize, windows_max: usize, activations: Activations) -> Perplexity {
    let cpu = cpu(activations);
    perplexity::measure(&network(&cpu, model, ctx), &windows(model, text, ctx, windows_max), ALONE).expect("a perplexity")
}

fn compare(base: &Model, others: &[&Model], text: &Path, ctx: usize, windows_max: usize) -> Comparison {
    compare_on(&cpu(Activations::F32), base, others, text, ctx, windows_max)
}

fn compare_on(cpu: &Cpu, base: &Model, others: &[&Model], text: &Path, ctx: usize, windows_max: usize) -> Comparison {
    let networks: Vec<_> = others.iter().map(|other| network(cpu, other, ctx)).collect();
    let windows = windows(base, text, ctx, windows_max);
    divergence::measure(&network(cpu, base, ctx), &networks, &windows, ALONE).expect("a comparison")
}

/// The reference is exact; what is left is the rounding of an f32 forward pass.
const REFERENCE_TOLERANCE: f64 = 1e-5;

#[test]
fn perplexities_equal_those_of_a_float64_pass() {
    let Some(references) = common::shared("models/reference_ppl.json") else { return };
    let data = references.parent().and_then(Path::parent).expect("models/ is in a folder");
    let mut checked = 0;
    for name in ["stories260K", "tinystories-656K"] {
        let folder = data.join("models").join(name);
        let files = Files::of(&folder, &["F32"], &[]);
        let model = files.open("F32");
        for reference in common::json(&references).as_array().expect("a list").iter().filter(|reference| reference["model"] == name)
        {
            let windows = reference_windows(reference, &folder, &data.join("text"));
            let cpu = cpu(Activations::F32);
            let measured = perplexity::measure(&network(&cpu, &model, windows.ctx()), &windows, ALONE).expect("a perplexity");
            assert_eq!(measured.nlls.len() as u64, reference["scored_tokens"].as_u64().expect("tokens"));
            for (field, ours) in [("nll", measured.nll.value), ("ppl", measured.ppl.value), ("ppl_stderr", measured.ppl.error)] {
                let theirs = reference[field].as_f64().expect("a figure");
                let off = (ours / theirs - 1.0).abs();
                assert!(off < REFERENCE_TOLERANCE, "{name}: {field} is {ours}, the reference {theirs}: off by {off:e}");
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 4);
}

/// The text in the tokens of Hugging Face's library, as the reference has it: the GGUF file of tinystories-656K holds another tokenizer.
fn reference_windows(reference: &serde_json::Value, folder: &Path, texts: &Path) -> Windows {
    let number = |field: &str| reference[field].as_u64().expect("a number");
    let path = texts.join(reference["text"].as_str().expect("a name"));
    let text = std::fs::read_to_string(&path).expect("a text");
    let tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).expect("a tokenizer");
    let tokens = tokenizer.encode(text, true).expect("tokens").get_ids().to_vec();
    assert_eq!(tokens.len() as u64, number("tokens"), "{}", path.display());
    let cut = Cut { ctx: number("n_ctx") as usize, stride: None, windows_max: Some(number("chunks") as usize) };
    Windows::of_tokens(&path, tokens.clone(), tokens.first().copied(), &cut).expect("long enough")
}

/// Chunks of wiki.test.raw that are measured here; the fixture has 20.
const CHUNKS: usize = 4;

/// How far a perplexity may be from llama-perplexity's where activations are rounded alike. Both round every activation to 8 bits, but sums in
/// another order make some fall to the other side, and what follows with them. With a divergence of 3e-4 between two such roundings, the
/// mean over 1020 tokens is uncertain by sqrt(2 * 3e-4 / 1020) = 8e-4; this is 2.5 times that.
const Q8_TOLERANCE: f64 = 2e-3;

/// The same for divergences, of which the rounding is a part.
const Q8_KLD_TOLERANCE: f64 = 0.05;

#[test]
fn activations_rounded_as_in_llama_cpp_give_its_figures() {
    let Some(model) = common::shared("models/forge-23m") else { return };
    let text = common::shared("text/wikitext-2-raw/wiki.test.raw").expect("beside the models");
    let types = ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "IQ4_XS", "Q2_K"];
    let files = Files::of(&model, &types, &[]);
    let models = types.map(|name| files.open(name));
    let others: Vec<&Model> = models.iter().collect();
    let rounded = compare_on(&cpu(Activations::Q8), &models[0], &others, &text, 512, CHUNKS);
    let golden = common::json(&common::fixture("eval/forge-23m.json"));
    for (name, ours) in types.iter().zip(&rounded.files) {
        let theirs = &golden["files"][name];
        let ppl = theirs["running_ppl"][CHUNKS - 1].as_f64().expect("a perplexity");
        let off = (ours.ppl.value / ppl - 1.0).abs();
        assert!(off < Q8_TOLERANCE, "{name}: perplexity {}, llama-perplexity says {ppl}: off by {off:e}", ours.ppl.value);
        let kld = theirs["running_mean"][CHUNKS - 1].as_f64().expect("a divergence");
        let off = (ours.kld.value - kld).abs();
        // It prints five decimals, and its file of 16-bit logits adds a few millionths.
        assert!(off < 2e-5 + kld * Q8_KLD_TOLERANCE, "{name}: KLD {}, llama-perplexity says {kld}", ours.kld.value);
    }
}

#[test]
fn overlapping_windows_are_those_of_llama_perplexity() {
    // llama-perplexity -m forge-3m-F32.gguf -f prose.txt -c 512 -b 512 --ppl-stride 256, which makes windows of 768 tokens, ends with
    // [22]85.0406.
    let (chunks, ppl) = (22, 85.0406);
    let files = Files::of(&forge_3m(), &["F32"], &[]);
    let model = files.open("F32");
    let tokenizer = Tokenizer::from_metadata(&model.shards()[0]).expect("a vocabulary");
    let cut = Cut { ctx: 768, stride: Some(256), windows_max: None };
    let windows = Windows::of_text("prose", &read_text(prose()).expect("a text"), &tokenizer, &cut).expect("long enough");
    let cpu = cpu(Activations::F32);
    let ours = perplexity::measure(&network(&cpu, &model, 768), &windows, ALONE).expect("a perplexity").ppl.value;
    assert_eq!(windows.len(), chunks);
    assert!((ours / ppl - 1.0).abs() < 5e-5, "perplexity {ours}, llama-perplexity says {ppl}");
}

#[test]
fn a_file_compared_with_itself_or_with_the_same_weights_is_at_0() {
    // The model's weights are BF16, so F32 and BF16 files hold the same numbers.
    let files = Files::of(&forge_3m(), &["F32", "BF16", "Q4_0"], &[]);
    let [f32, bf16, q4_0] = ["F32", "BF16", "Q4_0"].map(|name| files.open(name));
    let comparison = compare(&f32, &[&f32, &bf16, &q4_0], &prose(), 512, 3);
    for same in &comparison.files[..2] {
        assert_eq!((same.kld.value, same.kld.error, same.quantiles.max), (0.0, 0.0, 0.0));
        assert_eq!((same.ln_ppl_ratio.value, same.ln_ppl_ratio.error, same.mean_dp.value, same.rms_dp.value), (0.0, 0.0, 0.0, 0.0));
        assert_eq!((same.same_top.value, same.ppl), (1.0, comparison.ppl_base));
    }
    let quantized = &comparison.files[2];
    assert!(quantized.kld.value > 1e-3 && quantized.same_top.value < 1.0, "{:?}", quantized.kld);
    let quantiles = &quantized.quantiles;
    let ascending = [quantiles.median, quantiles.p90, quantiles.p95, quantiles.p99, quantiles.p99_9, quantiles.max];
    assert!(ascending.is_sorted() && ascending[0] > 0.0, "{ascending:?}");
    let q4_0_alone = ppl(&q4_0, &prose(), 512, 3, Activations::F32);
    assert_eq!(quantized.ppl, q4_0_alone.ppl, "a comparison measures the perplexity that perplexity measures");
}

#[test]
fn every_token_scores_the_same_for_any_threads_level_and_batch() {
    let files = Files::of(&forge_3m(), &["Q4_K_M"], &[]);
    let model = files.open("Q4_K_M");
    let windows = windows(&model, &prose(), 96, 5);
    let measure = |engine, threads| {
        let cpu = Cpu::new(engine, threads, Activations::F32).expect("threads");
        perplexity::measure(&network(&cpu, &model, 96), &windows, ALONE).expect("a perplexity").nlls
    };
    let expected = measure(Engine::detect(), 1);
    for threads in [2, 4, 16] {
        assert_eq!(measure(Engine::detect(), threads), expected, "{threads} threads");
    }
    for engine in Engine::available() {
        assert_eq!(measure(engine, 3), expected, "{}", engine.name());
    }
    let last_alone = {
        let mut last = windows.clone();
        last.skip(4);
        let cpu = cpu(Activations::F32);
        perplexity::measure(&network(&cpu, &model, 96), &last, ALONE).expect("a perplexity").nlls
    };
    assert_eq!(last_alone, expected[expected.len() - last_alone.len()..], "a window by itself");
}

/// llama-imatrix runs the model with keys and values rounded to halves and adds up in f32; the figure asked for is 1 %.
const IMATRIX_TOLERANCE: f64 = 1e-3;

#[test]
fn sums_of_squares_equal_those_of_llama_imatrix() {
    let Some(calibration) = common::shared("text/calibration.txt") else { return };
    let files = Files::of(&forge_3m(), &["F32"], &[]);
    let model = files.open("F32");
    let ours = collected(&model, &windows(&model, &calibration, 512, 64), OutputLayer::Omit);
    let theirs = Imatrix::open(common::fixture("imatrix/forge-3m.gguf")).expect("a fixture");
    assert_eq!((ours.chunk_count, ours.chunk_size, &ours.datasets), (theirs.chunk_count, theirs.chunk_size, &theirs.datasets));
    assert!(ours.entries.keys().eq(theirs.entries.keys()));
    for (name, entry) in &ours.entries {
        let other = &theirs.entries[name];
        assert_eq!(entry.counts(), other.counts(), "{name}");
        let off = entry.sums().iter().zip(other.sums()).map(|(a, b)| (f64::from(*a) / f64::from(*b) - 1.0).abs());
        let mean = off.sum::<f64>() / entry.sums().len() as f64;
        assert!(mean < IMATRIX_TOLERANCE, "{name}: off by {mean:e} on average");
    }
    quantizing_with_either_is_as_good(&ours);
}

fn collected(model: &Model, windows: &Windows, output: OutputLayer) -> Imatrix {
    let cpu = cpu(Activations::F32);
    let name = windows.path().file_name().expect("a file").to_str().expect("UTF-8").to_owned();
    collect::measure(&network(&cpu, model, windows.ctx()), windows, output, &name, ALONE).expect("an importance matrix")
}

fn quantizing_with_either_is_as_good(ours: &Imatrix) {
    let scratch = common::scratch();
    let path = scratch.path().join("ours.gguf");
    let mut bytes = Vec::new();
    ours.write_gguf(&mut bytes).expect("a matrix that can be written");
    std::fs::write(&path, bytes).expect("a file");
    let theirs = common::fixture("imatrix/forge-3m.gguf");
    let base = Files::of(&forge_3m(), &["BF16"], &[]);
    let types = ["IQ2_XS", "Q4_K_M"];
    let [with_ours, with_theirs] =
        [&path, &theirs].map(|path| Files::of(&forge_3m(), &types, &["--imatrix", path.to_str().expect("UTF-8")]));
    for name in types {
        let comparison = compare(&base.open("BF16"), &[&with_ours.open(name), &with_theirs.open(name)], &prose(), 512, 4);
        let [a, b] = [&comparison.files[0], &comparison.files[1]].map(|file| file.kld.value);
        assert!((a / b - 1.0).abs() < 0.03, "{name}: KLD {a} with ours, {b} with llama-imatrix's");
    }
}

/// Hours of a long text do not pass before a model that computes no numbers is refused.
#[test]
fn an_importance_matrix_of_no_numbers_is_refused_at_once() {
    let files = Files::of(&forge_3m(), &["F32"], &[]);
    let path = files.path("F32");
    let mut bytes = std::fs::read(&path).expect("the model");
    let file = File::parse(&path, &bytes).expect("a sound model");
    let tensor = file.tensor("blk.0.ffn_up.weight").expect("a tensor of the model");
    let weight = file.tensor_bytes(&tensor).expect("data inside the file").as_ptr() as usize - bytes.as_ptr() as usize;
    bytes[weight..weight + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).expect("a file");

    let (model, cpu) = (files.open("F32"), cpu(Activations::F32));
    let windows = windows(&model, &prose(), 64, 64);
    let most = AtomicU64::new(0);
    let note = |progress: Progress| {
        most.fetch_max(progress.done_tokens, Ordering::Relaxed);
    };
    let watch = Watch { progress: &note, stop: &NEVER };
    let network = network(&cpu, &model, windows.ctx());
    let refused = collect::measure(&network, &windows, OutputLayer::Omit, "prose.txt", watch).expect_err("NaN");
    assert!(refused.to_string().contains("blk.0.ffn_down.weight") && refused.fault() == Some(Fault::NonFinite), "{refused}");
    assert_eq!(most.into_inner(), 0, "it went on after the first layer");
}

#[test]
fn an_importance_matrix_can_be_made_in_parts() {
    let files = Files::of(&forge_3m(), &["Q8_0"], &[]);
    let model = files.open("Q8_0");
    let (whole, first) = (windows(&model, &prose(), 128, 7), windows(&model, &prose(), 128, 3));
    let mut rest = whole.clone();
    rest.skip(first.len());
    let mut parts = collected(&model, &first, OutputLayer::Collect);
    parts.add(collected(&model, &rest, OutputLayer::Collect)).expect("parts of one matrix");
    let whole = collected(&model, &whole, OutputLayer::Collect);
    assert_eq!((parts.chunk_count, whole.chunk_count), (7, 7));
    assert!(whole.entries.contains_key("token_embd.weight"), "the output matrix of this model is its embedding");
    for (name, entry) in &whole.entries {
        assert_eq!(entry.counts(), parts.entries[name].counts());
        let off = entry.sums().iter().zip(parts.entries[name].sums()).map(|(a, b)| (a / b - 1.0).abs());
        assert!(off.fold(0.0, f32::max) < 4.0 * f32::EPSILON, "{name}");
    }
}
