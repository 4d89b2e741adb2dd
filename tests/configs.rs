//! Real models are planned from config.json and the headers of their weights alone, with the keys and tensors of llama.cpp's converter, or
//! refused with a sentence that names the reason. No weight is there to be read: the files are holes.
//!
//! `fixtures/configs/real.json` holds the tensors of the models and what the converter makes of them (`tools/dev/real_models.py`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use ggforge::Error;
use ggforge::gguf::{Array, Value};
use ggforge::plan::{self, ConvertOptions};
use serde_json::{Map, Value as Json, json};

mod common;

/// Models of classes that convert, in types that do not: what their weights are stored as, and a word of the refusal.
const QUANTIZED: &[(&str, &str, &str)] = &[
    ("aiconfigurator/Qwen--Qwen3-32B-FP8.config.json", "F8_E4M3", "fp8"),
    ("llama-3.1-8b-bnb-int8/config.json", "I8", "bitsandbytes"),
];
/// The model whose tensors those of [`QUANTIZED`] have, where no index lists them.
const QWEN3_32B: &str = "aiconfigurator/Qwen--Qwen3-32B.config.json";
/// Keys of the converter's that are left out on purpose.
const LEFT_OUT: &[(&str, &str, &str)] = &[(
    "aiconfigurator/Qwen--Qwen3-Coder-480B-A35B-Instruct.config.json",
    "qwen3moe.expert_shared_feed_forward_length",
    "it is the width, 0, of a network that the class does not have",
)];

/// Keys that the converter does not have: it says of no model that the bounds of its YaRN are not rounded.
const ADDED: &[&str] = &["gpt-oss.rope.scaling.yarn_truncate"];

/// Python writes `Infinity`, which is not JSON, and which is read here; the class does not convert.
const OF_PYTHON: &str = "aiconfigurator/nvidia--Nemotron-H-56B-Base-8K.config.json";
/// Its class converts (`tests/families.rs`), but what `*` stands for in real.json is alike in all layers, and its layers are not.
const OF_UNEQUAL_LAYERS: &str = "aiconfigurator/google--gemma-4-26B-A4B.config.json";

fn all_configs(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for folder in std::fs::read_dir(root).expect("a readable folder") {
        for entry in std::fs::read_dir(folder.expect("an entry").path()).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
            if name == "config.json" || name.ends_with(".config.json") && !name.contains("Pooling") {
                found.insert(path);
            }
        }
    }
    found
}

/// A name with `*` for the number of its layer and `+` for that of its expert.
fn folded(name: &str) -> String {
    let mut previous = "";
    let parts = name.split('.').map(|part| {
        let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let folded = match previous {
            "layers" | "blk" | "h" | "blocks" if is_number => "*",
            "experts" if is_number => "+",
            _ => part,
        };
        previous = part;
        folded
    });
    parts.collect::<Vec<&str>>().join(".")
}

/// How often tensors of layers and of experts are there.
struct Counts {
    layers: u64,
    experts: u64,
    /// Of each layer that has a state instead of attention, or not, where some do.
    recurrent: Vec<bool>,
}

impl Counts {
    fn of(metadata: &Json) -> Counts {
        let architecture = metadata["general.architecture"].as_str().expect("a name");
        let number = |suffix: &str| metadata[format!("{architecture}.{suffix}")].as_u64().unwrap_or(1);
        let listed = metadata[format!("{architecture}.attention.recurrent_layers")].as_array();
        let recurrent = listed.into_iter().flatten().map(|layer| layer.as_bool().expect("a bool")).collect();
        Counts { layers: number("block_count"), experts: number("expert_count"), recurrent }
    }

    /// Every name that a folded one stands for.
    fn unfolded(&self, name: &str) -> Vec<String> {
        let experts = if name.contains('+') { self.experts } else { 1 };
        let of_kind = |star: &str, wanted: bool| {
            let layers = (0..self.layers).filter(|&layer| self.recurrent[layer as usize] == wanted);
            (star.to_owned(), layers.collect::<Vec<u64>>())
        };
        let (star, layers) = match () {
            () if name.contains("*recurrent") => of_kind("*recurrent", true),
            () if name.contains("*attention") => of_kind("*attention", false),
            // A tower of vision is left out, however deep it is.
            () if name.contains('*') && !name.starts_with("vis") => ("*".to_owned(), (0..self.layers).collect()),
            () => ("*".to_owned(), vec![0]),
        };
        let of = |layer: u64, expert: u64| name.replace(&star, &layer.to_string()).replace('+', &expert.to_string());
        layers.iter().flat_map(|&layer| (0..experts).map(move |expert| (layer, expert))).map(|(l, e)| of(l, e)).collect()
    }
}

fn shape_of(value: &Json) -> Vec<u64> {
    value.as_array().expect("a shape").iter().map(|dim| dim.as_u64().expect("a size")).collect()
}

/// A safetensors file of which only the header is written.
fn write_hole(path: &Path, tensors: &[(String, Vec<u64>)], dtype: &str) {
    let width = if dtype == "BF16" { 2 } else { 1 };
    let (mut header, mut offset) = (Map::new(), 0);
    for (name, shape) in tensors {
        let end = offset + width * shape.iter().product::<u64>();
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let text = Json::Object(header).to_string();
    let mut file = File::create(path).expect("a temporary file");
    file.write_all(&(text.len() as u64).to_le_bytes()).expect("room");
    file.write_all(text.as_bytes()).expect("room");
    file.set_len(8 + text.len() as u64 + offset).expect("a file with a hole");
}

/// A folder with the model's config.json, a small tokenizer, and the weights' headers, in the files that its index names.
fn write_folder(config: &Path, to: &Path, source: &Json, counts: &Counts, dtype: &str) {
    std::fs::create_dir_all(to).expect("a temporary folder");
    std::fs::copy(config, to.join("config.json")).expect("a copy");
    // Gemma 3's embedding is cut to the tokens of a tokenizer.json, not to those of a tokenizer.model.
    let is_gemma = source.as_object().is_some_and(|names| names.contains_key("language_model.model.norm.weight"));
    let tokenizer = common::fixture(if is_gemma { "families/spm" } else { "families/bpe" });
    for entry in std::fs::read_dir(tokenizer).expect("a tokenizer") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("a copy");
    }
    let index = config.with_file_name("model.safetensors.index.json");
    let shape = |name: &str| source.get(folded(name)).map_or_else(|| vec![32], shape_of);
    let mut files: BTreeMap<String, Vec<(String, Vec<u64>)>> = BTreeMap::new();
    if config.ends_with("config.json") && index.exists() {
        for (name, file) in common::json(&index)["weight_map"].as_object().expect("a map") {
            files.entry(file.as_str().expect("a name").to_owned()).or_default().push((name.clone(), shape(name)));
        }
        std::fs::copy(index, to.join("model.safetensors.index.json")).expect("a copy");
    } else {
        let names = source.as_object().expect("names").iter();
        let tensors =
            names.flat_map(|(folded, shape)| counts.unfolded(folded).into_iter().map(move |name| (name, shape_of(shape))));
        files.insert("model.safetensors".to_owned(), tensors.collect());
    }
    files.iter().for_each(|(file, tensors)| write_hole(&to.join(file), tensors, dtype));
}

/// A value as Python's JSON has it, and numbers as f32 has them.
fn plain(value: &Value) -> Json {
    match value {
        Value::U32(n) => json!(f64::from(*n)),
        Value::I32(n) => json!(f64::from(*n)),
        Value::F32(x) => json!(f64::from(*x)),
        Value::Bool(b) => json!(b),
        Value::String(text) => json!(String::from_utf8_lossy(text)),
        Value::Array(Array::I32(items)) => json!(items.iter().map(|&n| f64::from(n)).collect::<Vec<f64>>()),
        Value::Array(Array::Bool(items)) => json!(items),
        other => panic!("{other:?} is not among the keys of these models"),
    }
}

fn rounded(value: &Json) -> Json {
    match value {
        Json::Number(n) => json!(f64::from(n.as_f64().expect("a number") as f32)),
        Json::Array(items) => items.iter().map(rounded).collect(),
        other => other.clone(),
    }
}

/// What is wrong with the plan of a model.
fn check_plan(name: &str, config: &Path, expected: &Json, scratch: &Path) -> Vec<String> {
    let counts = Counts::of(&expected["metadata"]);
    write_folder(config, scratch, &expected["source"], &counts, "BF16");
    let plan = match plan::open_folder(scratch).and_then(|folder| plan::convert(&folder, &ConvertOptions::default())) {
        Ok(plan) => plan,
        Err(error) => return vec![error.to_string()],
    };
    let output = &plan.outputs[0];
    let mut faults = Vec::new();
    let architecture = expected["metadata"]["general.architecture"].as_str().expect("a name");
    let ours: BTreeMap<&str, Json> = output
        .metadata
        .iter()
        .filter(|(key, _)| key == "general.architecture" || key.starts_with(&format!("{architecture}.")))
        .map(|(key, value)| (key.as_str(), plain(value)))
        .collect();
    let theirs: BTreeMap<&str, Json> =
        expected["metadata"].as_object().expect("keys").iter().map(|(key, value)| (key.as_str(), rounded(value))).collect();
    for key in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
        let is_left_out = LEFT_OUT.iter().any(|(model, left_out, _)| *model == name && left_out == key);
        let is_right = match theirs.get(key) {
            None => ADDED.contains(key),
            Some(_) if is_left_out => !ours.contains_key(key),
            expected => ours.get(key) == expected,
        };
        if !is_right {
            faults.push(format!("{key} is {:?} instead of {:?}", ours.get(key), theirs.get(key)));
        }
    }
    let found: BTreeMap<&str, Vec<u64>> =
        output.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.iter().rev().copied().collect())).collect();
    let wanted: BTreeMap<String, Vec<u64>> = expected["tensors"]
        .as_object()
        .expect("tensors")
        .iter()
        .flat_map(|(name, shape)| counts.unfolded(name).into_iter().map(move |name| (name, shape_of(shape))))
        .collect();
    for (name, shape) in &wanted {
        if found.get(name.as_str()) != Some(shape) {
            faults.push(format!("{name} is {:?} instead of {shape:?}", found.get(name.as_str())));
        }
    }
    faults.extend(found.keys().filter(|name| !wanted.contains_key(**name)).map(|name| format!("{name} is not the converter's")));
    faults.truncate(8);
    faults
}

/// The refusal of a folder that cannot be converted, or what is wrong instead.
fn refusal(folder: &Path) -> Result<String, String> {
    match plan::open_folder(folder).and_then(|folder| plan::convert(&folder, &ConvertOptions::default())) {
        Err(error @ Error::Unsupported { .. }) => Ok(error.to_string()),
        Err(other) => Err(other.to_string()),
        Ok(_) => Err("it is planned".to_owned()),
    }
}

#[test]
fn every_config_is_planned_as_the_converter_does_or_refused_with_the_reason() {
    let Some(root) = common::shared("configs") else { return };
    let scratch = common::scratch();
    let real = common::json(&common::fixture("configs/real.json"));
    let (mut faults, mut n_planned, mut n_refused) = (Vec::new(), 0, 0);
    for path in all_configs(&root) {
        let name = path.strip_prefix(&root).expect("below the root").to_str().expect("UTF-8").to_owned();
        let folder = scratch.path().join(name.replace(['/', '.'], "-"));
        if name == OF_PYTHON {
            n_refused += 1;
            write_folder(&path, &folder, &json!({}), &Counts::of(&real[QWEN3_32B]["metadata"]), "BF16");
            let text = plan::open_folder(&folder).expect_err("a class that no family covers").to_string();
            assert!(text.contains("NemotronHForCausalLM") && text.contains("not supported"), "{text}");
            continue;
        }
        let config = common::json(&path);
        let class = config["architectures"][0].as_str().expect("a class");
        if name == OF_UNEQUAL_LAYERS {
            std::fs::create_dir(&folder).expect("a temporary folder");
            std::fs::copy(&path, folder.join("config.json")).expect("a copy");
            let text = plan::open_folder(&folder).and_then(|folder| plan::convert(&folder, &ConvertOptions::default()));
            let text = text.expect_err("no weights").to_string();
            assert!(text.contains("model.safetensors: no such file"), "{text}");
            continue;
        }
        let quantized = QUANTIZED.iter().find(|(quantized, ..)| *quantized == name);
        if let Some(expected) = real.get(&name) {
            n_planned += 1;
            faults.extend(check_plan(&name, &path, expected, &folder).into_iter().map(|fault| format!("{name}: {fault}")));
            continue;
        }
        n_refused += 1;
        let word = match quantized {
            Some((_, dtype, word)) => {
                write_folder(&path, &folder, &real[QWEN3_32B]["source"], &Counts::of(&real[QWEN3_32B]["metadata"]), dtype);
                *word
            }
            // The class is refused before weights are looked for.
            None => {
                std::fs::create_dir(&folder).expect("a temporary folder");
                std::fs::copy(&path, folder.join("config.json")).expect("a copy");
                class
            }
        };
        match refusal(&folder) {
            Ok(text) if text.contains(word) => {}
            Ok(text) => faults.push(format!("{name}: {word} is not in {text:?}")),
            Err(other) => faults.push(format!("{name}: {other}")),
        }
    }
    println!("{n_planned} planned, {n_refused} refused");
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    assert!(real.as_object().expect("models").keys().all(|name| root.join(name).exists()), "a model without its config.json");
}

/// The program says so too, and writes nothing.
#[test]
fn a_dry_run_reads_no_weights() {
    let Some(root) = common::shared("configs") else { return };
    let scratch = common::scratch();
    let name = "aiconfigurator/meta-llama--Meta-Llama-3.1-405B.config.json";
    let real = common::json(&common::fixture("configs/real.json"));
    let folder = scratch.path().join("Llama-3.1-405B");
    write_folder(&root.join(name), &folder, &real[name]["source"], &Counts::of(&real[name]["metadata"]), "BF16");
    let mut command = common::ggforge();
    command
        .arg("convert")
        .arg(&folder)
        .args(["--type", "Q4_K_M", "--dry-run", "--json", "--output"])
        .arg(scratch.path().join("a.gguf"));
    let output = common::succeeds(&mut command);
    let report: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    // Nine in each of 126 layers, the embedding, the last gain, the head, and Llama 3.1's factors.
    assert_eq!(report["outputs"][0]["tensors"], json!(9 * 126 + 4), "{report}");
    assert_eq!(report["outputs"][0]["weights"], json!(405_853_388_800_u64 + 64), "{report}");
    assert!(!scratch.path().join("a.gguf").exists());
}
