//! A family is one file and one line: this one is made up here, and converts, runs and is listed like those of `src/arch/family`.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use ggforge::arch::describe::*;
use ggforge::arch::family::parts::*;
use ggforge::arch::numbers::*;
use ggforge::arch::{self, FAMILIES, Found, Hparams};
use ggforge::gguf::{Model, keys};
use ggforge::hf::Folder;
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Cpu, Network, Residency};
use ggforge::pipeline;
use ggforge::plan::{self, ConvertOptions, recipe};
use serde_json::json;

mod common;
use common::checkpoint;

/// The file: a Llama whose layers bear other names and whose networks are bent by GELU.
static FROB: Family = Family {
    name: "frob",
    models: "Frobnicator 1",
    classes: &[class("FrobForCausalLM", OF_FROB)],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE],
    keys: &[USUAL, &[keys::VOCAB_SIZE]],
    fixed: &[("frobnicate", 1.0)],
    vocab: Vocab::Stated,
    spaces: Spaces::Stated,
    embedding: embedding(Scale::One),
    source_layers: "model.blocks",
    layers: Layers::All(&Layer {
        steps: &[
            step(
                ATTN_NORM,
                Body::Attention(attention(qkv(Need::Never), Positions::Rope(RopeLayout::Halves), attn_output(Need::Never))),
            ),
            step(FFN_NORM, Body::Network(gated(Activation::GeluTanh, Need::Never))),
        ],
    }),
    attention_width: AttentionWidth::KeyDim,
    output_norm: OUTPUT_NORM,
    output: OUTPUT,
    drafts: None,
    ignored_ends: &[],
    left_out: &[],
};

const OF_FROB: &[(&str, Assumed)] = &[("rms_norm_eps", Assumed::Is(1e-6))];

/// The line.
fn families() -> impl Iterator<Item = &'static Family> {
    FAMILIES.iter().chain([&FROB])
}

fn write(folder: &Path) {
    let cases = checkpoint::cases();
    let case = cases.iter().find(|case| case.name == "llama").expect("the fixture");
    case.write_changed(&case.layouts()[0], folder, |config, tensors| {
        config.insert("architectures".into(), json!(["FrobForCausalLM"]));
        config.insert("hidden_act".into(), json!("gelu_new"));
        tensors.iter_mut().for_each(|tensor| tensor.0 = tensor.0.replace("model.layers.", "model.blocks."));
    });
}

#[test]
fn a_family_of_one_file_converts_and_runs() {
    let scratch = common::scratch();
    let (source, path) = (scratch.path().join("frob"), scratch.path().join("frob.gguf"));
    write(&source);
    let folder = Folder::open(&source).unwrap();
    assert!(plan::convert(&folder, &ConvertOptions::default()).is_err(), "without the line, nobody knows the class");
    let found = families().find_map(|family| Found::within(family, "FrobForCausalLM")).expect("the line");
    let options = ConvertOptions { presets: vec![recipe::preset("F32").unwrap()], ..ConvertOptions::default() };
    let plan = plan::convert_as(found, &folder, &options).unwrap();
    pipeline::run(&plan, &folder, std::slice::from_ref(&path), &pipeline::Options::default(), &|_| {}, &AtomicBool::new(false))
        .unwrap();

    let model = Model::open(&path).unwrap();
    assert_eq!(model.architecture().unwrap(), "frob");
    assert!(Hparams::read(&model).is_err(), "without the line, nobody knows the architecture");
    let hparams = Hparams::read_as(&FROB, &model).unwrap();
    assert_eq!(hparams, *found.read(folder.config()).unwrap().hparams(), "both directions read the same");
    let cpu = Cpu::new(Engine::detect(), 1, Activations::F32).unwrap();
    let network = Network::open_as(&cpu, &model, hparams, 16, Residency::Resident).unwrap();
    let states = network
        .evaluate(ggforge::model::Batch { tokens: &[1, 2, 3, 4], sequences: &[std::ops::Range { start: 0, end: 4 }] }, &mut ())
        .unwrap();
    let logits = ggforge::model::Backend::logits(&cpu, &network.normalised(&states, &[3]).unwrap(), network.output()).unwrap();
    assert!(logits.iter().all(|x| x.is_finite()) && logits.iter().any(|x| *x != logits[0]), "scores that say something");
}

#[test]
fn it_is_listed_where_all_are() {
    let table = arch::table(families(), |_| "CPU");
    assert!(table.ends_with("| `frob` | Frobnicator 1 | `FrobForCausalLM` | CPU |\n"), "{table}");
    assert!(arch::list(families()).contains("  frob       Frobnicator 1\n"));
}

#[test]
fn its_own_fields_are_checked() {
    let scratch = common::scratch();
    let source = scratch.path().join("frob");
    write(&source);
    let text = std::fs::read_to_string(source.join("config.json")).unwrap().replacen('{', "{\"frobnicate\": false,", 1);
    std::fs::write(source.join("config.json"), text).unwrap();
    let folder = Folder::open(&source).unwrap();
    let error = Found::within(&FROB, "FrobForCausalLM").unwrap().read(folder.config()).err().unwrap().to_string();
    assert!(error.contains("frobnicate"), "{error}");
}
