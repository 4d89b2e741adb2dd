//! Models with the layers of well-known ones and random weights, made here: a few layers, a small vocabulary.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ggforge::gguf::{Header, TensorSpec, Value};
use ggforge::quant::Format;
use ggforge::simd::Level;

use crate::common::Paint;

/// The sizes of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub name: &'static str,
    architecture: &'static str,
    n_embd: usize,
    n_head: usize,
    n_head_kv: usize,
    head_dim: usize,
    n_ff: usize,
    n_vocab: usize,
}

const fn shape(name: &'static str, architecture: &'static str, n_embd: usize, heads: [usize; 3], n_ff: usize) -> Shape {
    let [n_head, n_head_kv, head_dim] = heads;
    Shape { name, architecture, n_embd, n_head, n_head_kv, head_dim, n_ff, n_vocab: 32_000 }
}

/// Real widths. Qwen2 has biases, Qwen3 norms of heads, and Phi-3 its queries, keys and values, gate and up, in one tensor each.
pub const SHAPES: &[Shape] = &[
    shape("Llama-2-7B", "llama", 4096, [32, 32, 128], 11_008),
    shape("Llama-3-8B", "llama", 4096, [32, 8, 128], 14_336),
    shape("Phi-3-mini", "phi3", 3072, [32, 32, 96], 8192),
    shape("Qwen2-7B", "qwen2", 3584, [28, 4, 128], 18_944),
    shape("Qwen3-4B", "qwen3", 2560, [32, 8, 128], 9728),
];

/// Weights that rows are cut out of, at any block.
const POOL_LEN: usize = 1 << 21;

impl Shape {
    /// The same kind of layer, narrow, with heads of the same width.
    pub fn narrow(self) -> Shape {
        let n_head_kv = if self.n_head == self.n_head_kv { 2 } else { 1 };
        // As many as make the input of attn_output whole blocks of 256.
        let n_head = if self.head_dim == 96 { 8 } else { 2 };
        let n_head_kv = if self.head_dim == 96 { 8 } else { n_head_kv };
        Shape { n_embd: 256, n_head, n_head_kv, n_ff: 512, n_vocab: 307, ..self }
    }

    /// Writes a model of `n_layers` layers whose matrices are in `format`, every third of a layer in `other`.
    pub fn write(self, folder: &Path, n_layers: usize, format: Format, other: Format) -> PathBuf {
        let path = folder.join(format!("{}-{format}-{n_layers}.gguf", self.name));
        let header = Header { metadata: self.metadata(n_layers), tensors: self.tensors(n_layers, format, other) };
        let layout = header.layout().expect("a header");
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&path).expect("a writable folder"));
        file.write_all(&layout.header).expect("room");
        // Logits as flat as these differ by some 5e-4 from token to token, whatever the width, and their mean over thousands by 1e-5.
        let deviation = 0.4 / (self.n_embd as f32).sqrt();
        let pools: Vec<(Format, Vec<u8>)> = [format, other].map(|format| (format, pool(format, deviation))).into();
        for (number, (tensor, offset_bytes)) in header.tensors.iter().zip(&layout.offsets_bytes).enumerate() {
            file.seek(SeekFrom::Start(*offset_bytes)).expect("room");
            let mut paint = Paint::new(number as u64 + 1);
            let n_cols = tensor.shape[tensor.shape.len() - 1] as usize;
            if tensor.shape.len() == 1 {
                let middle = if tensor.name.ends_with(".bias") { 0.0 } else { 1.0 };
                paint.weights(n_cols, |p| middle + 0.1 * p.gaussian()).iter().for_each(|x| {
                    file.write_all(&x.to_le_bytes()).expect("room");
                });
                continue;
            }
            let (_, pool) = pools.iter().find(|(format, _)| *format == tensor.format).expect("one of two");
            let row_bytes = tensor.format.row_bytes(n_cols as u64).expect("whole blocks") as usize;
            let n_places = (pool.len() - row_bytes) / tensor.format.block_bytes();
            for _ in 0..tensor.shape[0] {
                let at = (paint.next() >> 20) as usize % n_places * tensor.format.block_bytes();
                file.write_all(&pool[at..][..row_bytes]).expect("room");
            }
        }
        file.into_inner().expect("room").set_len(layout.file_bytes).expect("room");
        path
    }

    fn metadata(self, n_layers: usize) -> Vec<(String, Value)> {
        let key = |key: &str| format!("{}.{key}", self.architecture);
        let count = |name: &str, n: usize| (key(name), Value::U32(n as u32));
        vec![
            ("general.architecture".into(), Value::from(self.architecture)),
            count("block_count", n_layers),
            count("context_length", 4096),
            count("embedding_length", self.n_embd),
            count("feed_forward_length", self.n_ff),
            count("attention.head_count", self.n_head),
            count("attention.head_count_kv", self.n_head_kv),
            count("attention.key_length", self.head_dim),
            count("attention.value_length", self.head_dim),
            (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
        ]
    }

    fn tensors(self, n_layers: usize, format: Format, other: Format) -> Vec<TensorSpec> {
        let matrix = |name: String, format: Format, n_rows: usize, n_cols: usize| TensorSpec {
            name: name + ".weight",
            format,
            shape: vec![n_rows as u64, n_cols as u64],
        };
        let vector = |name: String, len: usize| TensorSpec { name, format: Format::F32, shape: vec![len as u64] };
        let Shape { n_embd, n_ff, n_vocab, .. } = self;
        let [n_q, n_kv] = [self.n_head, self.n_head_kv].map(|n| n * self.head_dim);
        let mut tensors = vec![matrix("token_embd".into(), format, n_vocab, n_embd), vector("output_norm.weight".into(), n_embd)];
        tensors.push(matrix("output".into(), other, n_vocab, n_embd));
        for layer in 0..n_layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            tensors.extend([vector(name("attn_norm.weight"), n_embd), vector(name("ffn_norm.weight"), n_embd)]);
            tensors.extend([matrix(name("attn_output"), format, n_embd, n_q), matrix(name("ffn_down"), other, n_embd, n_ff)]);
            if self.architecture == "phi3" {
                tensors.push(matrix(name("attn_qkv"), format, n_q + 2 * n_kv, n_embd));
                tensors.push(matrix(name("ffn_up"), format, 2 * n_ff, n_embd));
                continue;
            }
            for (part, n_rows, format) in [("attn_q", n_q, format), ("attn_k", n_kv, format), ("attn_v", n_kv, other)] {
                tensors.push(matrix(name(part), format, n_rows, n_embd));
                if self.architecture == "qwen2" {
                    tensors.push(vector(name(part) + ".bias", n_rows));
                }
            }
            tensors.extend(["ffn_gate", "ffn_up"].map(|part| matrix(name(part), format, n_ff, n_embd)));
            if self.architecture == "qwen3" {
                tensors.extend(["attn_q_norm.weight", "attn_k_norm.weight"].map(|part| vector(name(part), self.head_dim)));
            }
        }
        tensors
    }
}

/// Blocks of bell-shaped weights.
fn pool(format: Format, deviation: f32) -> Vec<u8> {
    let weights = Paint::new(u64::from(format.id()) + 17).weights(POOL_LEN, |p| deviation * p.gaussian());
    let mut blocks = vec![0; format.row_bytes(POOL_LEN as u64).expect("whole blocks") as usize];
    format.quantize_rows(Level::detect(), &weights, POOL_LEN, None, &mut blocks).expect("finite weights");
    blocks
}
