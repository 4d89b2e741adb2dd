//! Reads, writes and makes GGUF files, the model files of llama.cpp, in every tensor format that ggml has.
//!
//! Two crates in one:
//! - With `default-features = false` it is small: the container ([`gguf`]) and the formats ([`quant`]), for programs that read models
//!   or write them, with four direct dependencies.
//! - The feature `convert` adds what turns a Hugging Face model folder, or another GGUF file, into quantized GGUF files, and `eval`
//!   what runs a model to measure what that cost: what the program `ggforge` (feature `cli`, the default) does from a command line.
//!
//! # Reading
//!
//! ```
//! use ggforge::gguf::File;
//! use ggforge::simd::Level;
//!
//! # fn main() -> ggforge::Result<()> {
//! # use ggforge::gguf::{Header, TensorSpec, Value};
//! # let path = std::env::temp_dir().join(format!("ggforge-reading-{}.gguf", std::process::id()));
//! # let shape = vec![4, 256];
//! # let tensors = vec![TensorSpec { name: "token_embd.weight".into(), format: ggforge::quant::Format::Q4_K, shape }];
//! # let metadata = vec![("general.architecture".into(), Value::from("llama"))];
//! # let layout = Header { metadata, tensors }.layout()?;
//! # let mut bytes = layout.header;
//! # bytes.resize(layout.file_bytes as usize, 0);
//! # std::fs::write(&path, bytes).expect("a temporary file");
//! let file = File::open(&path)?;
//! println!("a model of {:?}", file.get("general.architecture").and_then(|value| value.as_str()));
//!
//! let level = Level::detect(); // the vector instructions of this machine
//! for tensor in file.tensors() {
//!     println!("{}: {} {:?}", tensor.name, tensor.format, tensor.shape);
//!     if !tensor.format.can_dequantize() {
//!         continue; // integers
//!     }
//!     let mut weights = vec![0.0f32; tensor.row_len() as usize];
//!     for row in file.rows(&tensor) {
//!         tensor.format.dequantize(level, row, &mut weights);
//!         assert!(weights.iter().all(|w| w.is_finite()));
//!     }
//! }
//! # assert_eq!(file.tensors().map(|tensor| file.rows(&tensor).len()).sum::<usize>(), 4);
//! # std::fs::remove_file(path).expect("our own file");
//! # Ok(())
//! # }
//! ```
//!
//! - Every file is treated as hostile. Opening checks all that the header claims against what the file holds, in one pass without
//!   reading weights; a broken file is an [`Error`] that says where and why. Nothing a file holds makes this crate panic, hang, or
//!   allocate more than a few times the file's size.
//! - Weights are not copied: the file is mapped. The header is, so names and values are views that no change of the file can harm.
//!   [`gguf::File`] is `Send` and `Sync`, so rows can be dequantized on any number of threads. [`gguf::File::parse`] reads a file that
//!   is in memory, [`gguf::Model`] one that is split.
//! - A row, or any run of whole blocks, dequantizes into a buffer of yours. The weights are those of ggml to the last bit, whatever the
//!   CPU: AVX-512, AVX2, NEON, or none of them.
//!
//! # Writing
//!
//! Every offset is known before the first byte is written, so tensors can be written in any order.
//!
//! ```
//! use ggforge::gguf::{Header, TensorSpec, Value};
//! use ggforge::quant::Format;
//! use ggforge::simd::Level;
//!
//! # fn main() -> ggforge::Result<()> {
//! let row: Vec<f32> = (0..256).map(|i| (i as f32 / 40.0).sin()).collect();
//! let header = Header {
//!     metadata: vec![("general.architecture".into(), Value::from("llama"))],
//!     tensors: vec![TensorSpec { name: "output_norm.weight".into(), format: Format::Q8_0, shape: vec![256] }],
//! };
//! let layout = header.layout()?;
//! let mut file = vec![0; layout.file_bytes as usize];
//! file[..layout.header.len()].copy_from_slice(&layout.header);
//! let blocks = &mut file[layout.offsets_bytes[0] as usize..][..layout.sizes_bytes[0] as usize];
//! Format::Q8_0.quantize_rows(Level::detect(), &row, 256, None, blocks).expect("finite weights");
//!
//! let read = ggforge::gguf::File::parse("in memory", &file)?;
//! assert_eq!(read.tensor("output_norm.weight").map(|tensor| tensor.shape), Some(vec![256]));
//! # Ok(())
//! # }
//! ```
//!
//! `examples/read.rs` and `examples/write.rs` are both as programs.
//!
//! # Layers
//!
//! Each module imports only from those before it in this list:
#![cfg_attr(
    feature = "convert",
    doc = "[`error`] < [`simd`], [`report`], [`names`] < [`quant`] < [`source`] < [`gguf`], [`hf`], [`rows`] < [`tokenizer`], [`arch`],"
)]
#![cfg_attr(all(feature = "convert", not(feature = "eval")), doc = "[`imatrix`] < [`plan`] < [`pipeline`].")]
#![cfg_attr(feature = "eval", doc = "[`imatrix`] < [`plan`] < [`pipeline`], [`matmul`] < [`model`] < [`eval`] < [`calibrate`].")]
#![cfg_attr(feature = "cuda", doc = "Above [`model`] stands [`cuda`].")]
#![cfg_attr(not(feature = "convert"), doc = "[`error`] < [`simd`] < [`quant`] < [`source`] < [`gguf`].")]

pub mod error;
pub mod gguf;
pub mod quant;
pub mod simd;
pub mod source;

#[cfg(feature = "convert")]
pub mod arch;
#[cfg(feature = "eval")]
pub mod calibrate;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "eval")]
pub mod eval;
#[cfg(feature = "convert")]
pub mod hf;
#[cfg(feature = "convert")]
pub mod imatrix;
#[cfg(feature = "eval")]
pub mod matmul;
#[cfg(feature = "convert")]
#[cfg_attr(not(feature = "eval"), allow(dead_code))]
mod memory;
#[cfg(feature = "eval")]
pub mod model;
#[cfg(feature = "convert")]
pub mod names;
#[cfg(feature = "convert")]
pub mod pipeline;
#[cfg(feature = "convert")]
pub mod plan;
#[cfg(feature = "convert")]
pub mod report;
#[cfg(feature = "convert")]
pub mod rows;
#[cfg(feature = "convert")]
mod threads;
#[cfg(feature = "convert")]
pub mod tokenizer;

pub use error::{Error, Result};
