//! What is timed of a block format, by whom, and the proof that all of them give the same answer.

use std::hint::black_box;
use std::rc::Rc;

use ggforge::Error;
use ggforge::quant::Format;
use ggforge::simd::Level;

use super::ggml::Ggml;
use super::paint::Paint;

/// The weights that are quantized.
pub struct Rows {
    /// `[n_rows, row_len]`, row-major.
    pub weights: Vec<f32>,
    /// `[row_len]`.
    pub importance: Vec<f32>,
}

impl Rows {
    /// 1 MiB of f32: more than the first-level cache, less than the second with its blocks, as the row batches of a conversion are.
    pub const N_DEFAULT: usize = 64;
    /// The row length of an 8-billion-parameter model.
    pub const LEN_DEFAULT: usize = 4096;

    /// Gaussian weights as models have them, and log-normal importance.
    pub fn painted(n_rows: usize, row_len: usize) -> Rows {
        Rows {
            weights: Paint::new(1).weights(n_rows * row_len, |p| 0.02 * p.gaussian()),
            importance: Paint::new(2).weights(row_len, |p| p.gaussian().exp()),
        }
    }
}

/// What is done with the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// To blocks, without importance.
    Quantize,
    /// To blocks, with importance.
    Weighted,
    /// From blocks.
    Dequantize,
}

impl Work {
    const ALL: [Work; 3] = [Work::Quantize, Work::Weighted, Work::Dequantize];

    pub fn name(self) -> &'static str {
        match self {
            Work::Quantize => "quantize",
            Work::Weighted => "weighted",
            Work::Dequantize => "dequantize",
        }
    }

    /// True where the format allows it and it is not the same as another.
    fn applies(self, format: Format) -> bool {
        match self {
            Work::Quantize => !format.needs_importance(),
            Work::Weighted => format.uses_importance(),
            Work::Dequantize => format.can_dequantize(),
        }
    }
}

/// One who does the work: `ggml`, or a CPU level.
pub struct Runner<'a> {
    pub name: &'static str,
    pub run: Box<dyn FnMut() + 'a>,
}

/// Every work that applies to the format, each with its runners: ggml first when it is there, then every level, lowest first.
///
/// # Errors
/// When two of them do not give the same bits, so that there is nothing to time.
pub fn checked_runs<'a>(ggml: Option<&'a Ggml>, format: Format, rows: &'a Rows) -> Result<Vec<(Work, Vec<Runner<'a>>)>, Error> {
    let mut runs = Vec::new();
    let mut blocks = Rc::default();
    for work in Work::ALL.into_iter().filter(|work| work.applies(format)) {
        let runners = match work {
            Work::Quantize | Work::Weighted => {
                let importance = (work == Work::Weighted).then_some(&*rows.importance);
                blocks = Rc::new(checked_blocks(ggml, format, rows, importance)?);
                quantizers(ggml, format, rows, importance)
            }
            Work::Dequantize => {
                check_weights(ggml, format, &blocks)?;
                dequantizers(ggml, format, &blocks)
            }
        };
        runs.push((work, runners));
    }
    Ok(runs)
}

fn quantizers<'a>(ggml: Option<&'a Ggml>, format: Format, rows: &'a Rows, importance: Option<&'a [f32]>) -> Vec<Runner<'a>> {
    let Rows { weights, importance: columns } = rows;
    let n_bytes = weights.len() / format.block_len() * format.block_bytes();
    let mut all = Vec::new();
    if let Some(ggml) = ggml {
        let mut blocks = vec![0; n_bytes];
        let run = move || ggml.quantize(format, black_box(weights), columns.len(), importance, &mut blocks);
        all.push(Runner { name: "ggml", run: Box::new(run) });
    }
    for level in Level::available() {
        let mut blocks = vec![0; n_bytes];
        let run = move || {
            let done = format.quantize_rows(level, black_box(weights), columns.len(), importance, &mut blocks);
            done.expect("weights that were quantized before");
        };
        all.push(Runner { name: level.name(), run: Box::new(run) });
    }
    all
}

fn dequantizers<'a>(ggml: Option<&'a Ggml>, format: Format, blocks: &Rc<Vec<u8>>) -> Vec<Runner<'a>> {
    let n_weights = blocks.len() / format.block_bytes() * format.block_len();
    let mut all = Vec::new();
    if let Some(ggml) = ggml.filter(|ggml| ggml.can_dequantize(format)) {
        let (blocks, mut weights) = (blocks.clone(), vec![0.0; n_weights]);
        let run = move || ggml.dequantize(format, black_box(&blocks), &mut weights);
        all.push(Runner { name: "ggml", run: Box::new(run) });
    }
    for level in Level::available() {
        let (blocks, mut weights) = (blocks.clone(), vec![0.0; n_weights]);
        let run = move || format.dequantize(level, black_box(&blocks), &mut weights);
        all.push(Runner { name: level.name(), run: Box::new(run) });
    }
    all
}

/// The blocks of the rows, the same at every level and in ggml.
fn checked_blocks(ggml: Option<&Ggml>, format: Format, rows: &Rows, importance: Option<&[f32]>) -> Result<Vec<u8>, Error> {
    let (weights, row_len) = (&*rows.weights, rows.importance.len());
    let mut expected: Option<Vec<u8>> = None;
    let mut blocks = vec![0; weights.len() / format.block_len() * format.block_bytes()];
    for level in Level::available() {
        let done = format.quantize_rows(level, weights, row_len, importance, &mut blocks);
        done.map_err(|fault| Error::Internal(format!("{format} does not hold {}", fault.value)))?;
        if *expected.get_or_insert_with(|| blocks.clone()) != blocks {
            return Err(levels_differ(format, level));
        }
    }
    if let Some(ggml) = ggml {
        ggml.quantize(format, weights, row_len, importance, &mut blocks);
        if expected.is_some_and(|expected| expected != blocks) {
            return Err(ggml_differs(ggml, format, "blocks"));
        }
    }
    Ok(blocks)
}

/// That the weights of the blocks are the same at every level and in ggml.
fn check_weights(ggml: Option<&Ggml>, format: Format, blocks: &[u8]) -> Result<(), Error> {
    let bits = |weights: &[f32]| -> Vec<u32> { weights.iter().map(|w| w.to_bits()).collect() };
    let mut expected: Option<Vec<u32>> = None;
    let mut weights = vec![0.0; blocks.len() / format.block_bytes() * format.block_len()];
    for level in Level::available() {
        format.dequantize(level, blocks, &mut weights);
        if *expected.get_or_insert_with(|| bits(&weights)) != bits(&weights) {
            return Err(levels_differ(format, level));
        }
    }
    if let Some(ggml) = ggml.filter(|ggml| ggml.can_dequantize(format)) {
        ggml.dequantize(format, blocks, &mut weights);
        if expected.is_some_and(|expected| expected != bits(&weights)) {
            return Err(ggml_differs(ggml, format, "weights"));
        }
    }
    Ok(())
}

fn levels_differ(format: Format, level: Level) -> Error {
    Error::Internal(format!("{format}: {} differs from scalar", level.name()))
}

fn ggml_differs(ggml: &Ggml, format: Format, what: &str) -> Error {
    Error::unsupported(
        format!("the library's ggml {} makes other {what} of {format}", ggml.version()),
        "one built without fused multiply-add makes the same, such as that of npm's @node-llama-cpp/linux-x64",
    )
}
