//! Tiny models of every class as Hugging Face folders, from the descriptions in `fixtures/families`: weights by a formula, the rest as
//! transformers saves it. `tools/dev/tiny_models.py` writes the same folders.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::{Map, Value, json};

/// Chunks that are evaluated, and tokens in each.
pub const N_CHUNKS: usize = 12;
/// Tokens of a chunk; each is evaluated from position 0.
pub const N_CTX: usize = 64;

/// What a file of `fixtures/families` says.
pub struct Case {
    /// The file's name without its ending.
    pub name: String,
    /// Its fields, which `tools/dev/tiny_models.py` explains.
    pub json: Value,
}

/// One way in which a model is saved.
pub struct Layout<'a> {
    /// Which: `transformers 4`.
    pub name: &'a str,
    config: &'a Value,
    source: &'a Map<String, Value>,
}

impl Layout<'_> {
    /// True where some tensor's name ends so.
    pub fn has_tensor(&self, end: &str) -> bool {
        self.source.keys().any(|name| name.ends_with(end))
    }
}

/// Every case, by name.
pub fn cases() -> Vec<Case> {
    let mut names: Vec<String> = std::fs::read_dir(super::fixture("families"))
        .expect("a readable folder")
        .filter_map(|entry| Some(entry.expect("a readable entry").file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .collect();
    names.sort();
    names.into_iter().map(|name| Case { json: super::json(&super::fixture(&format!("families/{name}.json"))), name }).collect()
}

impl Case {
    /// The layouts. One that does not list its tensors has those of the layout before it.
    pub fn layouts(&self) -> Vec<Layout<'_>> {
        let mut source = None;
        let layouts = self.json["layouts"].as_object().expect("layouts");
        layouts
            .iter()
            .map(|(name, layout)| {
                source = layout["source"].as_object().or(source);
                Layout { name, config: &layout["config"], source: source.expect("the tensors of the first layout") }
            })
            .collect()
    }

    /// Writes the model's folder, `to/LAYOUT/CASE`: the name of a folder becomes the model's.
    pub fn write(&self, layout: &Layout<'_>, to: &Path) -> PathBuf {
        let folder = to.join(layout.name).join(&self.name);
        self.write_changed(layout, &folder, |_, _| {});
        folder
    }

    /// Writes the model's folder after a change of config.json and of the tensors: names, shapes and weights.
    pub fn write_changed(
        &self,
        layout: &Layout<'_>,
        folder: &Path,
        change: impl FnOnce(&mut Map<String, Value>, &mut Vec<(String, Vec<u64>, Vec<f32>)>),
    ) {
        std::fs::create_dir_all(folder).expect("a temporary folder");
        for entry in std::fs::read_dir(super::fixture("families").join(self.text("tokenizer"))).expect("a tokenizer") {
            let path = entry.expect("a readable entry").path();
            std::fs::copy(&path, folder.join(path.file_name().expect("a name"))).expect("a copy");
        }
        let mut config = layout.config.as_object().expect("an object").clone();
        let tensors = layout.source.iter().map(|(name, described)| self.tensor(name, described));
        let mut tensors: Vec<_> = tensors.map(|(name, shape, weights)| (name.to_owned(), shape, weights)).collect();
        change(&mut config, &mut tensors);
        std::fs::write(folder.join("config.json"), Value::Object(config).to_string()).expect("a temporary file");
        std::fs::write(folder.join("model.safetensors"), safetensors(&tensors, self.text("stored"))).expect("a temporary file");
    }

    /// The tokens of all chunks.
    pub fn tokens(&self) -> Vec<u32> {
        let n_tokens = self.json["n_tokens"].as_u64().expect("a number");
        hashes("tokens", N_CHUNKS * N_CTX).map(|hash| (hash % n_tokens) as u32).collect()
    }

    fn text(&self, field: &str) -> &str {
        self.json[field].as_str().expect("a string")
    }

    /// A tensor with its weights; a fused one has those of its parts, one after the other.
    fn tensor<'a>(&self, name: &'a str, described: &Value) -> (&'a str, Vec<u64>, Vec<f32>) {
        let shape: Vec<u64> = described[0].as_array().expect("a shape").iter().map(|dim| dim.as_u64().expect("a size")).collect();
        let parts: Vec<&str> = match described.get(1) {
            Some(parts) => parts.as_array().expect("parts").iter().map(|part| part.as_str().expect("a name")).collect(),
            None => vec![name],
        };
        let n_weights = shape.iter().product::<u64>() as usize / parts.len();
        let weights = parts.iter().flat_map(|part| self.weights(part, n_weights, shape.len())).collect();
        (name, shape, weights)
    }

    /// `grid` of tools/dev/formula.py.
    fn weights(&self, name: &str, n: usize, n_dims: usize) -> Vec<f32> {
        let renames = self.json["renames"].as_array().expect("renames").iter();
        let name = renames.fold(name.to_owned(), |name, pair| {
            name.replace(pair[0].as_str().expect("a string"), pair[1].as_str().expect("a string"))
        });
        // Bytes, as tools/dev/tiny_models.py makes them.
        match name.rsplit_once('_').map(|(_, end)| end) {
            Some("blocks") => return hashes(&name, n).map(|hash| (hash >> 56) as f32).collect(),
            Some("scales") => return hashes(&name, n).map(|hash| (122 + (hash >> 62)) as f32).collect(),
            _ => {}
        }
        let is_embedding = ["embed_tokens", "wte.", "wpe."].iter().any(|part| name.contains(part));
        let is_norm = name.ends_with("weight") && (name.contains("norm") || name.contains(".ln_"));
        let is_gain = is_norm || ["layer_scalar", "router.scale", "per_expert_scale"].iter().any(|end| name.ends_with(end));
        let step = if n_dims > 1 && !is_embedding { 1.0 / 256.0 } else { 1.0 / 128.0 };
        let offset = if is_gain { self.json["gain"].as_f64().expect("a number") as f32 } else { 0.0 };
        hashes(&name, n).map(|hash| ((hash >> 57) as f32 - 64.0) * step + offset).collect()
    }
}

/// SplitMix64 from a seed that is FNV-1a of the name.
fn hashes(name: &str, n: usize) -> impl Iterator<Item = u64> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |seed: u64, byte| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    (1..=n as u64).map(move |i| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// A safetensors file of weights in one type.
pub fn safetensors(tensors: &[(String, Vec<u64>, Vec<f32>)], dtype: &str) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut data = Vec::new();
    for (name, shape, weights) in tensors {
        let start = data.len();
        let dtype = if name.ends_with("_blocks") || name.ends_with("_scales") { "U8" } else { dtype };
        for w in weights {
            match dtype {
                "F32" => data.extend(w.to_le_bytes()),
                "F16" => data.extend(f16::from_f32(*w).to_le_bytes()),
                "BF16" => data.extend(bf16::from_f32(*w).to_le_bytes()),
                "U8" => data.push(*w as u8),
                other => panic!("{other} is not written here"),
            }
        }
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat()
}
