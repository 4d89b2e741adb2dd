//! The pass: layer by layer, what goes into a step's matrices, then their blocks, each only where held-out text says that it is better.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::aim::Offer;
use super::choice::{Choice, LAMBDAS, Made, Method, loss_is_better};
use super::experts::{Experts, Reached};
use super::factor::Factor;
use super::inputs::{Collector, Inputs};
use super::kept::Kept;
use super::offers::{Aim, Chosen, Offers, refuse_small_budget, take_offers};
use super::overlay::{BlockFile, Overlay};
use super::round::round;
use crate::error::{Error, Result};
use crate::eval::{Progress, Watch, Windows};
use crate::gguf::Model;
use crate::matmul::Engine;
use crate::memory::{copied, filled};
use crate::model::{Backend, Batch, Blocks, Cpu, Matrix, Network, Output, StepMatrix, Sweep, Use};
use crate::names;
use crate::plan::{Origin, Plan};
use crate::quant::Format;
use crate::simd::Level;
use crate::source::TensorSource;

/// Of the windows, one in so many is held out; one at least, and so many at most.
const HELD_OUT_SHARE: usize = 8;
const HELD_OUT_MAX: usize = 8;

/// Rows that a worker rounds at a time as ggml does.
const ROWS_AT_ONCE: usize = 64;

/// Where calibration keeps what it has made.
#[derive(Debug, Clone, Copy)]
pub struct Folders<'f> {
    /// With room for all blocks: they are in a file without a name there until the plan is carried out.
    pub blocks: &'f Path,
    /// Finished matrices, which are taken from there where it has them, and stay.
    pub checkpoint: Option<&'f Path>,
}

/// What comes of calibration.
#[derive(Debug)]
pub struct Calibrated {
    /// The model's tensors and the blocks made of them, which the plan takes now.
    pub source: Overlay,
    /// In the order in which they were made.
    pub choices: Vec<Choice>,
    /// Tensors that are quantized without: nothing was seen of what goes into them.
    pub left_out: Vec<String>,
    /// Experts of mixtures whose tensors were calibrated.
    pub reached: Reached,
    /// The types that were chosen, in the order of the file; empty where none were to be.
    pub chosen: Vec<Chosen>,
}

/// Makes blocks of all matrices that `plan` quantizes, by what goes into them while the model reads `windows`.
///
/// With an `aim` the types of matrices are chosen anew, so that the only output keeps within its bound and held-out text loses least.
///
/// # Errors
/// What running the model can meet; `Usage` for a text of one window, and for a bound that is less than the smallest types take; `Io`;
/// `Interrupted`.
///
/// # Panics
/// When there is an aim and not one output.
pub fn calibrate(
    network: &Network<'_, Cpu>,
    model: &Model,
    plan: &mut Plan,
    windows: &Windows,
    folders: Folders<'_>,
    aim: Option<&Aim>,
    watch: Watch<'_>,
) -> Result<Calibrated> {
    if windows.len() < 2 {
        return Err(Error::usage("calibration takes a text of two chunks at least: one is held out"));
    }
    let n_held_out = (windows.len() / HELD_OUT_SHARE).clamp(1, HELD_OUT_MAX);
    let (mut seen, mut held_out) = (windows.clone(), windows.clone());
    seen.truncate(windows.len() - n_held_out);
    held_out.skip(windows.len() - n_held_out);
    let per_batch = network.backend().batch_limits().n_sequences(network.hparams(), windows.ctx());
    let n_seen = seen.len().div_ceil(per_batch);
    let batches: Vec<_> = seen.batches(per_batch).chain(held_out.batches(per_batch)).collect();
    let of_model: Vec<Batch<'_>> =
        batches.iter().map(|batch| Batch { tokens: &batch.tokens, sequences: &batch.sequences }).collect();
    let mut pass = Pass {
        engine: Engine::new(Level::detect()),
        network,
        sweep: Sweep::new(network, &of_model)?,
        batches: &of_model,
        n_seen,
        wanted: wanted(plan, model),
        ends: None,
        offers: BTreeMap::new(),
        typical_bits: aim.map_or(0.0, |aim| aim.typical_bits(&plan.outputs[0])),
        kept: folders.checkpoint.map(|folder| Kept::open(folder, model, &of_model, n_seen)).transpose()?,
        file: BlockFile::create(folders.blocks)?,
        choices: Vec::new(),
        reached: Reached::default(),
        watch,
    };
    if let Some(aim) = aim {
        assert_eq!(plan.outputs.len(), 1, "types are chosen for one output");
        pass.offer_types(aim, model);
        refuse_small_budget(&plan.outputs[0], &pass.wanted, &pass.offers, aim)?;
    }
    network.backend().install(|| pass.run(model, windows.n_tokens() as u64))?;
    let Pass { file, mut choices, wanted, offers, reached, .. } = pass;
    let chosen = match aim {
        None => Vec::new(),
        Some(aim) => take_offers(plan, offers, aim, held_out.len() * held_out.ctx())?,
    };
    choices.retain(|choice| chosen.iter().all(|chosen| chosen.name != choice.name || chosen.format == choice.format));
    let is_left_out = |(tensor, formats): (&usize, &Vec<Format>)| {
        let name = &model.tensors()[*tensor].name;
        (!formats.is_empty() && choices.iter().all(|choice| choice.name != *name)).then(|| name.clone())
    };
    let left_out = wanted.iter().filter_map(is_left_out).collect();
    Ok(Calibrated { source: file.finish(model, plan)?, choices, left_out, reached, chosen })
}

/// The formats that each tensor is quantized to, by its index in the model.
fn wanted(plan: &Plan, model: &Model) -> BTreeMap<usize, Vec<Format>> {
    let mut wanted: BTreeMap<usize, Vec<Format>> = BTreeMap::new();
    for planned in plan.outputs.iter().flat_map(|output| &output.tensors) {
        let Some(tensor) = planned.origin.tensors().next() else { continue };
        let source = &model.tensors()[tensor];
        let is_quantized = planned.format != source.format && planned.format.block_len() > 1 && planned.format.can_quantize();
        let formats = wanted.entry(tensor).or_default();
        if is_quantized && planned.origin == Origin::copy(tensor, &source.shape) && !formats.contains(&planned.format) {
            formats.push(planned.format);
        }
    }
    wanted
}

/// All rows of a tensor of two dimensions.
pub(super) fn whole_matrix(model: &Model, name: &str) -> Option<StepMatrix> {
    let tensor = model.tensors().iter().position(|tensor| tensor.name == name)?;
    let [.., n_rows, n_cols] = model.tensors()[tensor].shape[..] else { return None };
    Some(StepMatrix {
        name: name.to_owned(),
        tensor,
        takes: Use::Result,
        rows: 0..n_rows as usize,
        n_cols: n_cols as usize,
        n_stacked: 1,
    })
}

pub(super) struct Pass<'p, 'a> {
    pub engine: Engine,
    pub network: &'p Network<'a, Cpu>,
    pub sweep: Sweep<'p, 'a, Cpu>,
    pub batches: &'p [Batch<'p>],
    /// Batches that are seen; the others are held out.
    pub n_seen: usize,
    /// The formats that each tensor is quantized to.
    pub wanted: BTreeMap<usize, Vec<Format>>,
    /// What the scores of each held-out batch are made of, where types are to be chosen.
    pub ends: Option<Vec<<Cpu as Backend>::Operand>>,
    /// By tensor, where types are to be chosen.
    pub offers: Offers,
    /// Of a weight, where they are.
    pub typical_bits: f64,
    kept: Option<Kept>,
    file: BlockFile,
    choices: Vec<Choice>,
    pub reached: Reached,
    watch: Watch<'p>,
}

/// What is known of the inputs of some matrices.
pub(super) struct Known {
    engine: Engine,
    /// `[n, n]`; empty where nothing was seen.
    moments: Vec<f32>,
    /// `[n]`
    pub importance: Vec<f32>,
    pub n_cols: usize,
    /// For each damping, once it is needed.
    factors: [OnceCell<Factor>; LAMBDAS.len()],
}

impl Known {
    fn new(engine: Engine, inputs: &Inputs, takes: Use) -> Result<Known> {
        let importance = inputs.importance(takes).unwrap_or_default();
        let moments = inputs.moments(takes)?.unwrap_or_default();
        Ok(Known { engine, moments, n_cols: importance.len(), importance, factors: Default::default() })
    }

    /// `moments`: `[n_cols, n_cols]`, whose diagonal is the importance.
    pub fn of_moments(engine: Engine, moments: Vec<f32>, n_cols: usize) -> Known {
        let importance = moments.iter().step_by(n_cols + 1).copied().collect();
        Known { engine, moments, n_cols, importance, factors: Default::default() }
    }

    /// The factor with a damping, made when it is first needed.
    pub fn factor(&self, at: usize) -> Result<&Factor> {
        if self.factors[at].get().is_none() {
            let factor = Factor::new(self.engine, copied(&self.moments)?, self.n_cols, LAMBDAS[at])?;
            let _ = self.factors[at].set(factor);
        }
        Ok(self.factors[at].get().expect("made above"))
    }
}

/// What is multiplied with an output matrix, and that.
pub(super) type Scores<'s> = (&'s <Cpu as Backend>::Operand, Output<'s, <Cpu as Backend>::Weight>);

/// What held-out text loses by blocks of a matrix.
type LossOf<'l> = dyn Fn(Format, &[u8]) -> Result<f64> + 'l;

impl Pass<'_, '_> {
    /// The divergence of a batch's scores, added up over its tokens: what was to come does not matter to it.
    pub fn kld(&self, batch: usize, a: Scores<'_>, b: Scores<'_>) -> Result<f64> {
        let divergences = self.network.backend().compare(a, b, &vec![0; self.batches[batch].tokens.len()])?;
        Ok(divergences.iter().map(|divergence| divergence.kld).sum())
    }

    fn run(&mut self, model: &Model, total_tokens: u64) -> Result<()> {
        let n_layers = self.sweep.n_layers();
        for layer in 0..n_layers {
            for step in 0..self.sweep.n_steps(layer) {
                self.step(layer, step)?;
            }
            let done_tokens = total_tokens * (layer as u64 + 1) / (n_layers as u64 + 1);
            (self.watch.progress)(Progress { done_tokens, total_tokens, ppl: None });
        }
        self.head(model)?;
        self.embedding(model)?;
        (self.watch.progress)(Progress { done_tokens: total_tokens, total_tokens, ppl: None });
        Ok(())
    }

    fn step(&mut self, layer: usize, step: usize) -> Result<()> {
        let loaded = self.sweep.load(layer, step)?;
        let matrices = self.sweep.matrices(layer, step);
        let name = format!("layer-{layer}-{step}");
        let mut kept = self.kept(&name, &matrices)?;
        let missing: Vec<Vec<Format>> = matrices.iter().map(|matrix| self.missing(matrix, &kept)).collect();
        let mut inputs = Inputs::new(self.engine);
        let mut experts = Experts::of(self.engine, &matrices)?;
        let mut after = Vec::with_capacity(self.batches.len());
        for (index, batch) in self.batches.iter().enumerate() {
            self.check_stop()?;
            let states = if index < self.n_seen && missing.iter().any(|formats| !formats.is_empty()) {
                let (matrices, inputs, experts) = (&matrices[..], &mut inputs, experts.as_mut());
                let mut collector = Collector { matrices, inputs, experts, sequences: batch.sequences, x: Vec::new() };
                self.sweep.run(&loaded, index, &mut collector)?
            } else {
                self.sweep.run(&loaded, index, &mut ())?
            };
            after.push(states);
        }
        let mut new: Vec<Made> = Vec::new();
        for takes in [Use::Input, Use::Keys, Use::Values, Use::Result] {
            let is_plain = |matrix: &StepMatrix| matrix.takes == takes && matrix.n_stacked == 1;
            let of_use = matrices.iter().zip(&missing).filter(|(matrix, formats)| is_plain(matrix) && !formats.is_empty());
            let mut of_use = of_use.peekable();
            if of_use.peek().is_none() {
                continue;
            }
            let known = Known::new(self.engine, &inputs, takes)?;
            for (matrix, formats) in of_use {
                for &format in formats {
                    self.check_stop()?;
                    let loss = |format, blocks: &[u8]| self.loss((layer, step), matrix, format, blocks, &after);
                    if let Some((blocks, choice)) = self.blocks(matrix, format, &known, &loss)? {
                        new.push(Made { first_row: matrix.rows.start, blocks, choice });
                    }
                }
            }
        }
        if let Some(experts) = experts {
            new.extend(self.experts((layer, step), &loaded, (&matrices, &missing), experts, &after)?);
        }
        self.keep(&name, &matrices, &mut kept, new)?;
        let mut made: BTreeMap<(usize, Format), Vec<Made>> = BTreeMap::new();
        for part in kept {
            let of = matrices.iter().find(|matrix| part.is_of(&matrix.name, matrix.rows.start, part.choice.format));
            let tensor = of.expect("matrices of this step").tensor;
            if self.wanted.get(&tensor).is_some_and(|formats| formats.contains(&part.choice.format)) {
                made.entry((tensor, part.choice.format)).or_default().push(part);
            }
        }
        self.add_offers(layer, step, &matrices, &made)?;
        // A tensor that holds several matrices is made when all of them are.
        for ((tensor, format), mut parts) in made {
            parts.sort_by_key(|part| part.first_row);
            if parts.len() == matrices.iter().filter(|matrix| matrix.tensor == tensor).count() {
                self.file.push(tensor, format, &parts.iter().flat_map(|part| &part.blocks).copied().collect::<Vec<_>>())?;
                self.choices.extend(parts.into_iter().map(|part| part.choice));
            }
        }
        after.into_iter().enumerate().for_each(|(index, states)| self.sweep.advance(index, states));
        Ok(())
    }

    /// What is kept of a step.
    fn kept(&self, step: &str, matrices: &[StepMatrix]) -> Result<Vec<Made>> {
        self.kept.as_ref().map_or(Ok(Vec::new()), |kept| kept.read(step, matrices))
    }

    /// Adds what is new of a step to what is kept of it.
    fn keep(&self, step: &str, matrices: &[StepMatrix], made: &mut Vec<Made>, new: Vec<Made>) -> Result<()> {
        let is_news = !new.is_empty();
        made.extend(new);
        self.kept.iter().filter(|_| is_news).try_for_each(|kept| kept.write(step, matrices, made))
    }

    /// The formats of a matrix that are still to be made.
    fn missing(&self, matrix: &StepMatrix, kept: &[Made]) -> Vec<Format> {
        let is_kept = |format: Format| kept.iter().any(|made| made.is_of(&matrix.name, matrix.rows.start, format));
        self.wanted.get(&matrix.tensor).into_iter().flatten().copied().filter(|format| !is_kept(*format)).collect()
    }

    /// How far held-out text is from `after`, the states of all batches after a step, when a matrix of it has these blocks.
    pub fn loss(
        &self,
        (layer, step): (usize, usize),
        matrix: &StepMatrix,
        format: Format,
        blocks: &[u8],
        after: &[<Cpu as Backend>::Rows],
    ) -> Result<f64> {
        let other = self.sweep.load_with(layer, step, &[(matrix, format, blocks)])?;
        let mut sum = 0.0;
        for index in self.n_seen..self.batches.len() {
            self.check_stop()?;
            let states = self.sweep.run(&other, index, &mut ())?;
            sum += relative_error(after[index].values(), states.values(), self.batches[index].tokens.len());
        }
        Ok(sum)
    }

    /// The matrix that makes scores of the vocabulary: what is lost is the divergence.
    fn head(&mut self, model: &Model) -> Result<()> {
        let Some(matrix) = whole_matrix(model, self.network.output_name()) else { return Ok(()) };
        let tensor = matrix.tensor;
        let formats = self.wanted.get(&tensor).cloned().unwrap_or_default();
        if formats.is_empty() {
            return Ok(());
        }
        let matrices = [matrix];
        let mut kept = self.kept("head", &matrices)?;
        let [matrix] = &matrices;
        let missing = self.missing(matrix, &kept);
        let mut inputs = Inputs::new(self.engine);
        for index in (0..self.n_seen).filter(|_| !missing.is_empty()) {
            self.check_stop()?;
            let x = self.sweep.normalised(index)?;
            inputs.add_result(x.values(), matrix.n_cols)?;
        }
        let known = Known::new(self.engine, &inputs, Use::Result)?;
        let mut new = Vec::new();
        for format in missing {
            let loss = |format, blocks: &[u8]| {
                let backend = self.network.backend();
                let before = self.network.output();
                let (n_rows, n_cols) = (matrix.rows.len(), matrix.n_cols);
                let weight = backend.weight(Matrix { format, n_rows, n_cols, blocks: Blocks::Read(blocks.to_vec()) })?;
                let after = Output { weight: &weight, scale: before.scale, softcap: before.softcap };
                let mut sum = 0.0;
                for index in self.n_seen..self.batches.len() {
                    let x = self.sweep.normalised(index)?;
                    sum += self.kld(index, (&x, before), (&x, after))?;
                }
                Ok(sum)
            };
            if let Some((blocks, choice)) = self.blocks(matrix, format, &known, &loss)? {
                new.push(Made { first_row: 0, blocks, choice });
            }
        }
        self.keep("head", &matrices, &mut kept, new)?;
        let (is_offered, is_embedding) = (self.offers.contains_key(&tensor), matrix.name == names::TOKEN_EMBD);
        let mut offers = Vec::new();
        for made in kept.into_iter().filter(|made| formats.contains(&made.choice.format)) {
            let Made { blocks, choice, .. } = made;
            if is_offered {
                let as_table = if is_embedding { self.embedding_loss(matrix, choice.format, &blocks)? } else { 0.0 };
                offers.push(Offer { format: choice.format, bytes: blocks.len() as u64, cost: choice.error + as_table });
            }
            self.file.push(tensor, choice.format, &blocks)?;
            self.choices.push(choice);
        }
        if is_offered {
            self.add(tensor, offers);
        }
        Ok(())
    }

    /// The blocks by which held-out text loses least, and what was chosen; `None` where the weights cannot be held, which is told when
    /// the plan is carried out.
    fn blocks(&self, matrix: &StepMatrix, format: Format, known: &Known, loss: &LossOf<'_>) -> Result<Option<(Vec<u8>, Choice)>> {
        let weights = self.sweep.weights(matrix)?;
        let Some(row_bytes) = format.row_bytes(matrix.n_cols as u64) else { return Ok(None) };
        let size_bytes = matrix.rows.len() * row_bytes as usize;
        if !weights.iter().all(|w| w.is_finite()) {
            return Ok(None);
        }
        let mut best: Vec<u8> = filled(size_bytes, 0)?;
        if !self.plain(format, &weights, matrix.n_cols, &known.importance, &mut best) {
            return Ok(None);
        }
        let plain_error = loss(format, &best)?;
        let mut choice = Choice { name: matrix.name.clone(), format, method: Method::Importance, error: plain_error, plain_error };
        if known.moments.is_empty() || format.lattice().is_none() {
            return Ok(Some((best, choice)));
        }
        let mut blocks: Vec<u8> = filled(size_bytes, 0)?;
        for (at, lambda) in LAMBDAS.into_iter().enumerate() {
            self.check_stop()?;
            if !round(self.engine, format, known.factor(at)?, &weights, &mut blocks) {
                continue;
            }
            let error = loss(format, &blocks)?;
            if loss_is_better(error, choice.error) {
                choice = Choice { method: Method::Calibrated { lambda }, error, ..choice };
                best = blocks;
                break;
            }
        }
        Ok(Some((best, choice)))
    }

    /// As ggml rounds with importance; false where a weight cannot be held.
    pub fn plain(&self, format: Format, weights: &[f32], n_cols: usize, importance: &[f32], blocks: &mut [u8]) -> bool {
        let is_known = importance.len() == n_cols && importance.iter().any(|&value| value > 0.0);
        let flat = vec![1.0; n_cols];
        let importance = if is_known { importance } else { &flat };
        self.as_ggml(format, weights, n_cols, format.uses_importance().then_some(importance), blocks)
    }

    /// As ggml rounds; false where a weight cannot be held.
    pub fn as_ggml(&self, format: Format, weights: &[f32], n_cols: usize, importance: Option<&[f32]>, blocks: &mut [u8]) -> bool {
        let row_bytes = format.row_bytes(n_cols as u64).expect("rows of whole blocks") as usize;
        let rows = weights.par_chunks(ROWS_AT_ONCE * n_cols).zip(blocks.par_chunks_mut(ROWS_AT_ONCE * row_bytes));
        let level = self.engine.level();
        rows.map(|(weights, blocks)| format.quantize_rows(level, weights, n_cols, importance, blocks).is_ok())
            .reduce(|| true, |a, b| a & b)
    }

    pub fn check_stop(&self) -> Result<()> {
        if self.watch.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// The squared error of each token's state over the square of the state, added up: what comes next normalises states, so a token counts
/// as much as any other however large its state is.
fn relative_error(exact: &[f32], other: &[f32], n_tokens: usize) -> f64 {
    let n_cols = exact.len() / n_tokens.max(1);
    let square = |x: f64| x * x;
    let of_token = |(exact, other): (&[f32], &[f32])| {
        let error: f64 = exact.iter().zip(other).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
        let size: f64 = exact.iter().map(|a| square(f64::from(*a))).sum();
        let relative = if size > 0.0 { error / size } else { error };
        match (relative.is_finite(), size.is_finite()) {
            (true, _) => relative,
            (false, true) => f64::INFINITY,
            // The weights themselves make nothing of this token.
            (false, false) => 0.0,
        }
    };
    exact.chunks_exact(n_cols).zip(other.chunks_exact(n_cols)).map(of_token).sum()
}
