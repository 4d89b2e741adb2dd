//! What one more token costs: launches and copies of a layer, by the log of the fake driver.

use std::collections::BTreeMap;
use std::path::Path;

use ggforge::cuda::Products;
use ggforge::gguf::Model;
use ggforge::model::{Network, Residency};
use ggforge::quant::Format;

use crate::disguise::disguise;
use crate::random_model::SHAPES;
use crate::{common, gpu};

/// What a child is told: the file that its driver writes.
const LOG: &str = "FAKE_CUDA_LOG";

/// Launches of a layer when one token is added, at most; and nothing is copied for it.
const LAUNCHES_MAX: usize = 11;

/// What the driver was asked for, and how often.
type Calls = BTreeMap<String, usize>;

fn calls(log: &Path) -> Calls {
    let mut calls = Calls::new();
    for line in std::fs::read_to_string(log).unwrap_or_default().lines() {
        *calls.entry(line.to_owned()).or_default() += 1;
    }
    calls
}

#[test]
#[ignore = "a part of another, which starts it in a child"]
fn calls_of_a_token() {
    let Some(log) = std::env::var_os(LOG) else { return };
    let cuda = gpu(Products::Best, 60 << 20).expect("a GPU");
    let scratch = common::scratch();
    for shape in SHAPES {
        for (format, other) in [(Format::Q4_0, Format::Q4_0), (Format::Q4_K, Format::Q6_K)] {
            // What all layers but one ask for is no part of a layer.
            let [one, three] = [1, 3].map(|n_layers| {
                let model = Model::open(shape.narrow().write(scratch.path(), n_layers, format, other)).expect("a model");
                let network = Network::open(&cuda, &model, 64, Residency::Resident).expect("a network");
                let mut cache = network.cache().expect("a cache");
                network.extend(&[5, 7, 11], &mut cache).expect("a prompt");
                std::fs::write(&log, "").expect("a log");
                network.extend(&[13], &mut cache).expect("a token");
                cuda.synchronize().expect("a GPU that works");
                calls(log.as_ref())
            });
            let of_layer: Calls = three.iter().map(|(call, n)| (call.clone(), (n - one.get(call).unwrap_or(&0)) / 2)).collect();
            println!("{}", serde_json::json!({ "shape": shape.name, "formats": format!("{format}, {other}"), "calls": of_layer }));
        }
    }
}

#[test]
fn a_token_takes_few_launches_and_no_copies() {
    let Some(disguise) = disguise() else { return };
    let log = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut child = disguise.child(&["decode::calls_of_a_token"]);
    let output = String::from_utf8(common::succeeds(child.env(LOG, log.path())).stdout).expect("UTF-8");
    let cases: Vec<serde_json::Value> =
        output.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(cases.len(), 2 * SHAPES.len(), "{output}");
    let mut too_many = Vec::new();
    for case in cases {
        let calls = case["calls"].as_object().expect("calls");
        let n_of = |is_launch| {
            let counted = calls.iter().filter(|(call, _)| call.starts_with("launch ") == is_launch);
            counted.map(|(_, n)| n.as_u64().expect("a count") as usize).sum::<usize>()
        };
        let (n_launches, n_copies) = (n_of(true), n_of(false));
        println!("{} {}: {n_launches} launches, {n_copies} copies: {}", case["shape"], case["formats"], case["calls"]);
        if n_launches > LAUNCHES_MAX || n_copies > 0 {
            too_many.push(case);
        }
    }
    assert!(too_many.is_empty(), "{too_many:?}");
}
