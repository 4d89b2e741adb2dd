//! Reads any GGUF file: `cargo run --no-default-features --example read -- FILE [TENSOR]`.
//!
//! Without a tensor's name it lists the file; with one it prints the tensor's rows as weights, whatever format they are stored in.

use ggforge::gguf::File;
use ggforge::simd::Level;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: read FILE [TENSOR]")?;
    let file = File::open(path)?;
    match arguments.next() {
        None => list(&file),
        Some(name) => print_rows(&file, &name)?,
    }
    Ok(())
}

fn list(file: &File) {
    for (key, value) in file.metadata() {
        match (value.as_str(), value.as_array()) {
            (Some(text), _) => println!("{key}: {text:?}"),
            (_, Some(array)) => println!("{key}: {} x {}", array.len(), array.element_type()),
            _ => println!("{key}: {value:?}"),
        }
    }
    for tensor in file.tensors() {
        println!("{:?}: {} {:?}, {} bytes", tensor.name, tensor.format, tensor.shape, tensor.size_bytes);
    }
}

fn print_rows(file: &File, name: &str) -> Result<(), Box<dyn std::error::Error>> {
    let tensor = file.tensor(name).ok_or("no tensor of that name")?;
    // Integers, and formats for activations, are carried but not read.
    if !tensor.format.can_dequantize() {
        return Err(format!("weights in {} cannot be read", tensor.format).into());
    }
    let level = Level::detect();
    let mut weights = vec![0.0; tensor.row_len() as usize];
    for (row, blocks) in file.rows(&tensor).enumerate() {
        tensor.format.dequantize(level, blocks, &mut weights);
        println!("{row}: {weights:.3?}");
    }
    Ok(())
}
