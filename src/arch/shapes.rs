//! Whether the tensors of a GGUF file have the shapes that its own hyperparameters give them: shards of different models have the same names.

use std::collections::BTreeMap;
use std::path::Path;

use super::describe::Family;
use super::family::FAMILIES;
use super::sizes::Hparams;
use super::tensors::wanted;
use crate::error::{Error, Fault, Place, Result};
use crate::gguf::{Model, ValueRef, keys};
use crate::names::{block_of, in_block};
use crate::source::{SourceTensor, TensorSource, significant_dims};

/// What reads or writes the residual stream, which has one width in every architecture that llama.cpp knows: tensors of blocks, and which of
/// their dimensions, counted from the last, is that width.
const OF_RESIDUAL_STREAM: &[(&str, usize)] = &[
    ("attn_norm.weight", 0),
    ("ffn_norm.weight", 0),
    ("ffn_up.weight", 0),
    ("ffn_gate.weight", 0),
    ("ffn_down.weight", 1),
    ("attn_output.weight", 1),
];

/// Refuses tensors whose shapes contradict the hyperparameters of their file: all tensors of the families described here, of any other what
/// shows the width of its states. What the file does not state is not checked.
///
/// # Errors
/// `ShapeMismatch` by name, in the file that holds the tensor.
pub fn check_shapes(model: &Model) -> Result<()> {
    let architecture = model.architecture()?;
    let family = FAMILIES.iter().find(|family| family.name == architecture);
    match family.and_then(|family| expected(family, model)) {
        Some(expected) => {
            let known = |tensor: &&SourceTensor| expected.contains_key(&tensor.name);
            model.tensors().iter().filter(known).try_for_each(|tensor| check(model, tensor, &expected[&tensor.name]))
        }
        None => check_residual_stream(model, architecture),
    }
}

/// Shapes by name. `None` where the hyperparameters do not give them: such a file cannot be run, but it can be quantized.
fn expected(family: &'static Family, model: &Model) -> Option<BTreeMap<String, Vec<u64>>> {
    let hparams = Hparams::read_as(family, model).ok()?;
    Some(wanted(&hparams).into_iter().map(|wanted| (wanted.name, wanted.shape)).collect())
}

fn check_residual_stream(model: &Model, architecture: &str) -> Result<()> {
    let Some(width) = model.get(&keys::of(architecture, keys::EMBEDDING_LENGTH)).and_then(ValueRef::as_u64) else { return Ok(()) };
    for tensor in model.tensors() {
        let of_block = block_of(&tensor.name).map(|block| block as usize);
        let is_called = |name: &str| of_block.is_some_and(|block| tensor.name == in_block(block, name));
        let dim =
            OF_RESIDUAL_STREAM.iter().find(|(name, _)| is_called(name)).and_then(|(_, dim)| tensor.shape.iter().nth_back(*dim));
        if dim.is_some_and(|dim| *dim != width) {
            return Err(mismatch(model, tensor, &format!("a width of {width}")));
        }
    }
    Ok(())
}

fn check(model: &Model, tensor: &SourceTensor, expected: &[u64]) -> Result<()> {
    match significant_dims(&tensor.shape) == significant_dims(expected) {
        true => Ok(()),
        false => Err(mismatch(model, tensor, &format!("{expected:?}"))),
    }
}

fn mismatch(model: &Model, tensor: &SourceTensor, expected: &str) -> Error {
    let SourceTensor { name, shape, file, .. } = tensor;
    let files = model.files();
    let path = files.get(*file).map_or(Path::new(""), |file| file.path());
    let hint = if files.len() > 1 { ": this file is a shard of another model" } else { "" };
    let detail = format!("shape {shape:?}, but the hyperparameters make it {expected}{hint}");
    Error::malformed(path, Place::Tensor(name.clone()), Fault::ShapeMismatch, detail)
}
