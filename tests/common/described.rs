//! Metadata and tensors of a file as `tools/dev/reference.py` describes them.

use ggforge::gguf::{Array, Value};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

/// A value; an array by the hash of its bytes in the file.
pub fn described(value: &Value) -> Json {
    match value {
        Value::U8(v) => json!({"type": "UINT8", "value": v}),
        Value::I8(v) => json!({"type": "INT8", "value": v}),
        Value::U16(v) => json!({"type": "UINT16", "value": v}),
        Value::I16(v) => json!({"type": "INT16", "value": v}),
        Value::U32(v) => json!({"type": "UINT32", "value": v}),
        Value::I32(v) => json!({"type": "INT32", "value": v}),
        Value::U64(v) => json!({"type": "UINT64", "value": v}),
        Value::I64(v) => json!({"type": "INT64", "value": v}),
        Value::F32(v) => json!({"type": "FLOAT32", "value": f64::from(*v)}),
        Value::F64(v) => json!({"type": "FLOAT64", "value": v}),
        Value::Bool(v) => json!({"type": "BOOL", "value": v}),
        Value::String(v) => json!({"type": "STRING", "value": String::from_utf8_lossy(v)}),
        Value::Array(array) => {
            let (element, content) = array_bytes(array);
            json!({"type": format!("[{element}]"), "count": array.len(), "sha256": sha256(&content)})
        }
    }
}

fn array_bytes(array: &Array) -> (&'static str, Vec<u8>) {
    match array {
        Array::U8(v) => ("UINT8", v.clone()),
        Array::I8(v) => ("INT8", v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Array::U16(v) => ("UINT16", v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Array::I16(v) => ("INT16", v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Array::U32(v) => ("UINT32", v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Array::I32(v) => ("INT32", v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Array::U64(v) => ("UINT64", v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Array::I64(v) => ("INT64", v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Array::F32(v) => ("FLOAT32", v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Array::F64(v) => ("FLOAT64", v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Array::Bool(v) => ("BOOL", v.iter().map(|&x| x.into()).collect()),
        Array::String(v) => {
            ("STRING", v.iter().flat_map(|x| [&(x.len() as u64).to_le_bytes()[..], x.as_slice()].concat()).collect())
        }
    }
}

/// The SHA-256 of some bytes, in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
