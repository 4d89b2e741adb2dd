//! What the CPU measures, for a GPU to be compared with: computed, or read where `GGFORGE_REFERENCES` names a folder that has it. So the
//! CPU's work is done before a GPU is lent. `tools/dev/gpu-checks build` fills such a folder.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use ggforge::gguf::Model;
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Cpu, Residency};
use ggforge::simd::Level;
use serde_json::{Value, json};

use crate::measure::{Measured, Text, measure};
use crate::threads;

fn folder() -> Option<PathBuf> {
    std::env::var_os("GGFORGE_REFERENCES").map(PathBuf::from)
}

/// The CPU's figures of a model, `batch` sequences at a time.
pub fn expected(name: &str, model: &Model, text: &Text, batch: usize) -> Measured {
    let key = key(text, batch);
    let stored = folder().map(|folder| folder.join(format!("{}.json", name.replace([' ', '/'], "-"))));
    if let Some(path) = stored.filter(|path| path.exists()) {
        let json = crate::common::json(&path);
        assert_eq!(json["key"], key.as_str(), "{} is of another text: build the packet again", path.display());
        return from_json(&json);
    }
    compute(model, text, batch)
}

fn compute(model: &Model, text: &Text, batch: usize) -> Measured {
    // Not AMX, whose products keep 16 bits: so it does not matter which CPU this is.
    let cpu = Cpu::new(Engine::new(Level::detect()), threads(), Activations::F32).expect("a CPU");
    measure(&cpu, model, Residency::Resident, text, batch)
}

fn key(text: &Text, batch: usize) -> String {
    let mut hasher = DefaultHasher::new();
    (&text.tokens, &text.sequences, batch).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn to_json(measured: &Measured, key: &str) -> Value {
    let Measured { nll, argmax, kld, squares } = measured;
    json!({ "key": key, "nll": nll, "argmax": argmax, "kld": kld, "squares": squares })
}

fn from_json(json: &Value) -> Measured {
    fn numbers<T>(json: &Value, name: &str, number: impl Fn(&Value) -> Option<T>) -> Vec<T> {
        let array = json[name].as_array().expect("an array");
        array.iter().map(|value| number(value).expect("a number")).collect()
    }
    Measured {
        nll: numbers(json, "nll", Value::as_f64),
        argmax: numbers(json, "argmax", |value| value.as_u64().and_then(|n| u32::try_from(n).ok())),
        kld: numbers(json, "kld", Value::as_f64),
        squares: numbers(json, "squares", Value::as_f64),
    }
}

/// Fills the folder.
#[test]
#[ignore = "a part of tools/dev/gpu-checks build"]
fn are_made() {
    let folder = folder().expect("GGFORGE_REFERENCES names a folder");
    std::fs::create_dir_all(&folder).expect("a writable folder");
    let store = |name: &str, model: &Model, text: &Text, batch: usize| {
        let json = to_json(&compute(model, text, batch), &key(text, batch));
        let path = folder.join(format!("{}.json", name.replace([' ', '/'], "-")));
        std::fs::write(path, json.to_string()).expect("a writable folder");
        println!("{name}");
    };
    crate::for_each_converted(|name, model, text, batch| store(name, model, text, batch));
    crate::layers::for_each_shape(|name, model, text, batch| store(name, model, text, batch));
}

#[test]
fn are_read_back_to_the_last_bit() {
    let measured = Measured { nll: vec![1.0 / 3.0, 5e-324, -0.0], argmax: vec![0, 7], kld: vec![0.1], squares: vec![1e300] };
    let json: Value = serde_json::from_str(&to_json(&measured, "key").to_string()).expect("JSON");
    let found = from_json(&json);
    let bits = |measured: &Measured| {
        [&measured.nll, &measured.kld, &measured.squares].map(|v| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    };
    assert_eq!((bits(&found), found.argmax), (bits(&measured), measured.argmax));
}
