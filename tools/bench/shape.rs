//! Models of a known shape with random weights, to measure speed and memory with.

use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use ggforge::gguf::{Header, TensorSpec, Value};
use ggforge::quant::Format;
use ggforge::simd::Level;
use ggforge::{Error, Result};

use super::paint::Paint;
use crate::Session;
use crate::terminal::Steps;

/// Sizes of a Llama.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    name: &'static str,
    n_layer: usize,
    n_embd: usize,
    n_ff: usize,
    n_head: usize,
    n_head_kv: usize,
    n_vocab: usize,
}

const SHAPES: &[Shape] = &[
    // Llama 2 7B: 6.7 billion parameters.
    Shape { name: "7b", n_layer: 32, n_embd: 4096, n_ff: 11_008, n_head: 32, n_head_kv: 32, n_vocab: 32_000 },
    Shape { name: "tiny", n_layer: 2, n_embd: 256, n_ff: 512, n_head: 4, n_head_kv: 2, n_vocab: 500 },
];

/// Rows of random weights from which every row of a matrix is taken.
const N_PATTERNS: usize = 256;

impl Shape {
    /// # Errors
    /// The names that there are.
    pub fn parse(name: &str) -> Result<Shape, String> {
        let names = || SHAPES.iter().map(|shape| shape.name).collect::<Vec<_>>().join(", ");
        SHAPES.iter().find(|shape| shape.name == name).copied().ok_or_else(|| format!("there are {}", names()))
    }

    /// Writes the model in Q4_0, its norms and embedding scale such that numbers stay finite.
    pub fn write(self, folder: &Path, session: &Session) -> Result<PathBuf> {
        let path = path_of(folder, self.name);
        let header = Header { metadata: self.metadata(), tensors: self.tensors() };
        let layout = header.layout()?;
        let steps = Steps::new(session, "writing", 1);
        steps.begin("random weights");
        let failed = |op| move |e| Error::io(path_of(folder, self.name), op, e);
        let mut file = BufWriter::new(File::create(&path).map_err(failed("create"))?);
        file.write_all(&layout.header).map_err(failed("write"))?;
        for (tensor, offset_bytes) in header.tensors.iter().zip(&layout.offsets_bytes) {
            file.seek(std::io::SeekFrom::Start(*offset_bytes)).map_err(failed("write"))?;
            let n_cols = tensor.shape[tensor.shape.len() - 1] as usize;
            let n_rows = tensor.shape[..tensor.shape.len() - 1].iter().product::<u64>() as usize;
            let rows = patterns(tensor.format, n_cols);
            let row_bytes = rows.len() / N_PATTERNS;
            for row in 0..n_rows {
                // Neighbouring rows differ, and matrices do not repeat each other row by row.
                let at = (row * 31 + *offset_bytes as usize / 4096) % N_PATTERNS;
                file.write_all(&rows[at * row_bytes..][..row_bytes]).map_err(failed("write"))?;
            }
        }
        file.seek(std::io::SeekFrom::End(0)).map_err(failed("write"))?;
        let file = file.into_inner().map_err(|e| Error::io(&path, "write", e.into_error()))?;
        file.set_len(layout.file_bytes).map_err(failed("write"))?;
        Ok(path)
    }

    fn metadata(self) -> Vec<(String, Value)> {
        let count = |key: &str, n: usize| (format!("llama.{key}"), Value::U32(n as u32));
        vec![
            ("general.architecture".into(), Value::from("llama")),
            count("block_count", self.n_layer),
            count("context_length", 4096),
            count("embedding_length", self.n_embd),
            count("feed_forward_length", self.n_ff),
            count("attention.head_count", self.n_head),
            count("attention.head_count_kv", self.n_head_kv),
            ("llama.attention.layer_norm_rms_epsilon".into(), Value::F32(1e-5)),
        ]
    }

    fn tensors(self) -> Vec<TensorSpec> {
        let n_kv = self.n_embd / self.n_head * self.n_head_kv;
        let matrix = |name: String, n_rows: usize, n_cols: usize| TensorSpec {
            name,
            format: Format::Q4_0,
            shape: vec![n_rows as u64, n_cols as u64],
        };
        let norm = |name: String| TensorSpec { name, format: Format::F32, shape: vec![self.n_embd as u64] };
        let mut tensors = vec![matrix("token_embd.weight".into(), self.n_vocab, self.n_embd)];
        for layer in 0..self.n_layer {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            tensors.push(norm(name("attn_norm")));
            tensors.push(matrix(name("attn_q"), self.n_embd, self.n_embd));
            tensors.push(matrix(name("attn_k"), n_kv, self.n_embd));
            tensors.push(matrix(name("attn_v"), n_kv, self.n_embd));
            tensors.push(matrix(name("attn_output"), self.n_embd, self.n_embd));
            tensors.push(norm(name("ffn_norm")));
            tensors.push(matrix(name("ffn_gate"), self.n_ff, self.n_embd));
            tensors.push(matrix(name("ffn_up"), self.n_ff, self.n_embd));
            tensors.push(matrix(name("ffn_down"), self.n_embd, self.n_ff));
        }
        tensors.push(norm("output_norm.weight".into()));
        tensors.push(matrix("output.weight".into(), self.n_vocab, self.n_embd));
        tensors
    }
}

fn path_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("random-{name}-Q4_0.gguf"))
}

/// Rows in blocks: Gaussian weights, as models have them, or for norms ones.
fn patterns(format: Format, n_cols: usize) -> Vec<u8> {
    let mut weights = vec![1.0; N_PATTERNS * n_cols];
    if format != Format::F32 {
        weights = Paint::new(n_cols as u64).weights(N_PATTERNS * n_cols, |p| 0.02 * p.gaussian());
    }
    let row_bytes = format.row_bytes(n_cols as u64).expect("whole blocks") as usize;
    let mut rows = vec![0; N_PATTERNS * row_bytes];
    format.quantize_rows(Level::detect(), &weights, n_cols, None, &mut rows).expect("finite weights");
    rows
}
