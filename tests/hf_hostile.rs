//! Malformed Hugging Face folders: each gives an error that names file, place and rule, never a panic, a hang, or heap taken by a
//! number that the file only claims. Nothing outside the folder is opened.

mod common;
#[path = "hf_hostile/folders.rs"]
mod folders;
#[path = "hf_hostile/headers.rs"]
mod headers;
#[path = "common/heap.rs"]
mod heap;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ggforge::arch;
use ggforge::error::{Error, Fault, Place, Result};
use ggforge::hf::{Config, Folder, safetensors};
use ggforge::source::TensorSource;
use heap::peak_bytes;
use tempfile::TempDir;

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 10}"#;

#[track_caller]
fn fault<T: std::fmt::Debug>(result: Result<T>) -> Fault {
    match result {
        Err(Error::Malformed { fault, .. }) => fault,
        other => panic!("expected a fault, found {other:?}"),
    }
}

/// One entry of a safetensors header: F32 `[n]`.
fn entry(name: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"F32","shape":[{}],"data_offsets":[{begin},{end}]}}"#, (end.wrapping_sub(begin)) / 4)
}

/// A safetensors file with this header and so many bytes of data.
fn file(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    bytes
}

/// Parses a header under the heap bound.
#[track_caller]
fn parse(header: &str, data_bytes: u64) -> Result<Vec<safetensors::Entry>> {
    parse_bytes(header.as_bytes(), data_bytes)
}

#[track_caller]
fn parse_bytes(header: &[u8], data_bytes: u64) -> Result<Vec<safetensors::Entry>> {
    let (result, peak) = peak_bytes(|| safetensors::parse(Path::new("case.safetensors"), header, data_bytes));
    let bound = 4 * header.len() as u64 + (1 << 20);
    assert!(peak <= bound, "{peak} bytes of heap for a header of {}", header.len());
    result
}

/// A model folder with config.json and these files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = common::scratch();
    fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// Opens a folder; whatever is in it, that takes no time and little heap.
#[track_caller]
fn open(dir: &TempDir) -> Result<Folder> {
    let before = common::cpu_time();
    let (result, peak) = peak_bytes(|| Folder::open(dir.path()));
    let took = common::cpu_time() - before;
    assert!(took < Duration::from_secs(5), "opening took {took:?}");
    assert!(peak <= 2 << 20, "{peak} bytes of heap for a small folder");
    result
}

#[track_caller]
fn open_one(bytes: &[u8]) -> Fault {
    fault(open(&folder(&[("model.safetensors", bytes)])))
}

fn index(entries: &[(&str, &str)]) -> String {
    let map: Vec<String> = entries.iter().map(|(tensor, shard)| format!("{}:{}", quoted(tensor), quoted(shard))).collect();
    format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{{{}}}}}"#, map.join(","))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

const INDEX: &str = "model.safetensors.index.json";

/// A folder of two shards, `a` in the first and `b` in the second, with this index.
fn two_shards(index: &str) -> TempDir {
    folder(&[
        ("one.safetensors", &file(&format!("{{{}}}", entry("a", 0, 4)), 4)),
        ("two.safetensors", &file(&format!("{{{}}}", entry("b", 0, 4)), 4)),
        (INDEX, index.as_bytes()),
    ])
}

#[track_caller]
fn open_index(text: &str) -> Result<Folder> {
    open(&two_shards(text))
}

/// A generator of pseudo-random numbers (xorshift64*), so that every run tries the same mutations.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((u128::from(self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)) * n as u128) >> 64) as usize
    }
}
