//! Every kind of layer, with random weights, against the CPU; and models that are larger than the memory they may use.

use ggforge::cuda::Products;
use ggforge::gguf::Model;
use ggforge::model::Residency;
use ggforge::quant::Format;

use crate::checked::Checked;
use crate::common::{self, Paint};
use crate::disguise::{is_small, is_tiny};
use crate::measure::{Text, bits, check_agreement, measure};
use crate::random_model::SHAPES;
use crate::{gpu, references};

/// Memory for a model of two layers in F16, and the activations of its text.
const MEMORY_BYTES: u64 = 6 << 30;
const MEMORY_BYTES_SMALL: u64 = 60 << 20;

/// The cap of a run that must give the same bits as one without, and layers of Llama-2-7B that are more than it in F16.
const CAP_BYTES: u64 = 6 << 30;
const CAP_LAYERS: usize = 18;
/// The same in small.
const CAP_BYTES_SMALL: u64 = 2304 << 10;

/// Random tokens in sequences of different lengths.
fn text(n_vocab: usize) -> Text {
    let lens: &[usize] = if is_small() { &[31, 9, 24] } else { &[512, 300, 212, 512, 512] };
    let mut paint = Paint::new(3);
    let tokens = (0..lens.iter().sum()).map(|_| (paint.next() >> 20) as u32 % n_vocab as u32).collect();
    let ends: Vec<usize> = lens
        .iter()
        .scan(0, |end, len| {
            Some({
                *end += len;
                *end
            })
        })
        .collect();
    Text { tokens, sequences: lens.iter().zip(ends).map(|(len, end)| end - len..end).collect() }
}

/// Models of two layers in two mixes of formats, their text, and how many sequences are computed together.
pub fn for_each_shape(mut run: impl FnMut(&str, &Model, &Text, usize)) {
    for (number, shape) in SHAPES.iter().enumerate() {
        for (turn, (format, other)) in [(Format::F16, Format::F16), (Format::Q4_K, Format::Q6_K)].into_iter().enumerate() {
            if is_small() && (number + turn).is_multiple_of(2) || is_tiny() && number > 0 {
                continue; // for the time it takes
            }
            let scratch = common::scratch();
            let small = if is_small() { shape.narrow() } else { *shape };
            let model = Model::open(small.write(scratch.path(), 2, format, other)).expect("a model");
            let text = text(if is_small() { 307 } else { 32_000 });
            run(&format!("{} {format}", shape.name), &model, &text, text.sequences.len());
        }
    }
}

#[test]
fn every_layer_shape_agrees_with_the_cpu() {
    let memory_bytes = if is_small() { MEMORY_BYTES_SMALL } else { MEMORY_BYTES };
    let Some(cuda) = gpu(Products::Best, memory_bytes) else { return };
    let mut checked = Checked::new();
    for_each_shape(|name, model, text, batch| {
        checked.run(name, || {
            let expected = references::expected(name, model, text, batch);
            let found = measure(&cuda, model, Residency::Resident, text, batch);
            let note = check_agreement(&found, &expected);
            // In small others look at that.
            let is_same = is_small() || bits(&measure(&cuda, model, Residency::Streamed, text, 2)) == bits(&found);
            assert!(is_same, "other bits when layers are streamed");
            note
        });
    });
    checked.end();
}

/// A run whose memory is capped below the model's size: layers go through it one after the other.
#[test]
fn a_model_larger_than_the_memory_has_the_same_bits() {
    let (shape, n_layers, memory_bytes, cap_bytes) = if is_small() {
        (SHAPES[0].narrow(), 2, MEMORY_BYTES_SMALL, CAP_BYTES_SMALL)
    } else {
        (SHAPES[0], CAP_LAYERS, 2 * CAP_BYTES, CAP_BYTES)
    };
    let Some(cuda) = gpu(Products::Best, memory_bytes) else { return };
    let scratch = common::scratch();
    let path = shape.write(scratch.path(), n_layers, Format::F16, Format::F16);
    let model_bytes = path.metadata().expect("a file").len();
    let model = Model::open(path).expect("a model");
    let text = text(if is_small() { 307 } else { 32_000 });
    assert!(model_bytes > cap_bytes, "{model_bytes} bytes are no more than {cap_bytes}");
    let whole = bits(&measure(&cuda, &model, Residency::Resident, &text, 5));
    assert!(whole == bits(&measure(&cuda, &model, Residency::Resident, &text, 5)), "other bits the second time");
    drop(cuda);
    let capped = gpu(Products::Best, cap_bytes).expect("the same GPU");
    for n_sequences in [5, 2] {
        let measured = measure(&capped, &model, Residency::Streamed, &text, n_sequences);
        assert!(capped.memory_bytes_peak() <= cap_bytes);
        println!("a model of {model_bytes} bytes, {n_sequences} sequences at a time: peak {} bytes", capped.memory_bytes_peak());
        assert!(bits(&measured) == whole, "other bits within {cap_bytes} bytes, {n_sequences} sequences at a time");
    }
}
