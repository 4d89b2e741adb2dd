//! Writes a small GGUF file: `cargo run --no-default-features --example write -- OUTPUT`.
//!
//! Every size and offset is known before the first byte is written: the header says where each tensor lands.

use std::io::Write;

use ggforge::gguf::{Header, TensorSpec, Value};
use ggforge::quant::Format;
use ggforge::simd::Level;

const N_ROWS: usize = 4;
const ROW_LEN: usize = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let output = std::env::args_os().nth(1).ok_or("usage: write OUTPUT")?;
    let weights: Vec<f32> = (0..N_ROWS * ROW_LEN).map(|i| (i as f32 / 40.0).sin()).collect();

    // The same weights in every format that holds weights, and integers, whose meaning is the reader's business.
    let for_weights = |format: &Format| format.can_quantize() && !format.is_for_activations();
    let formats: Vec<Format> = Format::ALL.iter().copied().filter(for_weights).chain([Format::I8]).collect();
    // How much each column matters: all the same. The formats of one and two bits cannot do without.
    let importance = [1.0; ROW_LEN];
    let spec = |format: &Format| {
        let shape = vec![N_ROWS as u64, ROW_LEN as u64];
        TensorSpec { name: format!("wave.{format}"), format: *format, shape }
    };
    let header = Header {
        metadata: vec![
            ("general.architecture".to_owned(), Value::from("example")),
            ("example.row_count".to_owned(), Value::U32(N_ROWS as u32)),
        ],
        tensors: formats.iter().map(spec).collect(),
    };
    let layout = header.layout()?;

    let mut file = layout.header.clone();
    for (i, format) in formats.iter().enumerate() {
        file.resize(layout.offsets_bytes[i] as usize, 0);
        let mut blocks: Vec<u8> = (0..layout.sizes_bytes[i]).map(|byte| byte as u8).collect();
        if format.can_quantize() {
            let made = format.quantize_rows(Level::detect(), &weights, ROW_LEN, Some(&importance), &mut blocks);
            made.map_err(|fault| format!("{format}: {fault:?}"))?;
        }
        file.extend(blocks);
    }
    file.resize(layout.file_bytes as usize, 0);
    std::fs::File::create_new(&output)?.write_all(&file)?;
    Ok(())
}
