//! Layers on their way from the file to the device: nobody waits for what need not be waited for, and a file that shrinks is an error.

use std::fs::OpenOptions;
use std::path::PathBuf;

use ggforge::Error;
use ggforge::cuda::{Cuda, Products};
use ggforge::gguf::Model;
use ggforge::model::{Batch, Network, Observer, Residency};

use crate::disguise::disguise;
use crate::measure::text;
use crate::{common, converted, gpu, model_folder};

/// Tells a child where its driver notes what it is asked for.
const LOG: &str = "FAKE_CUDA_LOG";
const MODEL: &str = "CASE_MODEL";

/// How often the host had waited when a layer was done, or was to look at what the device has.
struct Waits(Vec<usize>);

fn n_waits() -> usize {
    let log = std::fs::read_to_string(std::env::var_os(LOG).expect("set by the parent")).unwrap_or_default();
    log.lines().filter(|line| line.starts_with("wait for") || *line == "copy to the host").count()
}

impl Observer<Cuda> for Waits {
    fn layer_done(&mut self, _: usize, _: usize) -> ggforge::Result<()> {
        self.0.push(n_waits());
        Ok(())
    }
}

fn small_gpu() -> Cuda {
    gpu(Products::Best, 600 << 10).expect("a GPU")
}

#[test]
#[ignore = "a part of others, which start it in a child"]
fn waits_of_a_pass() {
    let model = Model::open(std::env::var_os(MODEL).expect("set by the parent")).expect("a model");
    let text = text(&model, "stories260K");
    let cuda = small_gpu();
    let network = Network::open(&cuda, &model, 127, Residency::Streamed).expect("a network");
    let mut waits = Waits(vec![n_waits()]);
    let batch = Batch { tokens: &text.tokens, sequences: &text.sequences };
    let states = network.evaluate(batch, &mut waits).expect("a pass");
    network.normalised(&states, &[0]).expect("a row");
    cuda.synchronize().expect("a GPU that works");
    waits.0.push(n_waits());
    println!("{}", serde_json::json!(waits.0));
}

/// Neither for the largest of a matrix's weights, nor for a copy: the next layer is on its way while one is computed.
#[test]
fn nobody_waits_between_streamed_layers() {
    let (Some(disguise), Some(folder)) = (disguise(), model_folder("stories260K")) else { return };
    let scratch = common::scratch();
    for file_type in ["Q8_0", "BF16"] {
        let mut child = disguise.child(&["streaming::waits_of_a_pass"]);
        child.env(MODEL, converted(&folder, file_type, scratch.path())).env(LOG, scratch.path().join(file_type));
        let output = String::from_utf8(common::succeeds(&mut child).stdout).expect("UTF-8");
        let line = output.lines().find(|line| line.starts_with('[')).unwrap_or_else(|| panic!("no result: {output}"));
        let waits: Vec<usize> = serde_json::from_str(line).expect("numbers");
        // In the first layer, once, what turns heads is made from the model's angles.
        let [_, first, others @ .., end] = &waits[..] else { panic!("{waits:?}") };
        assert_eq!(others.len(), 4, "layers of the model behind the first");
        assert!(others.iter().all(|n| n == first), "{file_type}: {waits:?} waits before, after each layer, at the end");
        assert!(end > first, "{file_type}: the wait at the end was not noted: {waits:?}");
    }
}

/// Cuts its file short after the first layer.
struct Cut(PathBuf);

impl Observer<Cuda> for Cut {
    fn layer_done(&mut self, done: usize, _: usize) -> ggforge::Result<()> {
        if done == 1 {
            OpenOptions::new().write(true).open(&self.0).and_then(|file| file.set_len(4096)).expect("a file of ours");
        }
        Ok(())
    }
}

#[test]
#[ignore = "a part of others, which start it in a child"]
fn a_model_cut_short() {
    let path = PathBuf::from(std::env::var_os(MODEL).expect("set by the parent"));
    let model = Model::open(&path).expect("a model");
    let text = text(&model, "stories260K");
    let cuda = small_gpu();
    let network = Network::open(&cuda, &model, 127, Residency::Streamed).expect("a network");
    let batch = Batch { tokens: &text.tokens, sequences: &text.sequences };
    let Err(error) = network.evaluate(batch, &mut Cut(path)) else { panic!("weights that are not there") };
    assert!(matches!(error, Error::InputChanged { .. }), "{error:?}");
    drop(network);
    cuda.synchronize().expect("a GPU that works on");
    println!("an error");
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let (Some(disguise), Some(folder)) = (disguise(), model_folder("stories260K")) else { return };
    let scratch = common::scratch();
    for order in ["eager", "lazy"] {
        let mut child = disguise.child(&["streaming::a_model_cut_short"]);
        child.env(MODEL, converted(&folder, "Q8_0", scratch.path())).env("FAKE_CUDA_ORDER", order);
        let output = String::from_utf8(common::succeeds(&mut child).stdout).expect("UTF-8");
        assert!(output.contains("an error"), "{order}: {output}");
        std::fs::remove_file(scratch.path().join("Q8_0.gguf")).expect("the file");
    }
}
