//! What goes into the matrices of a step: the second moments of each kind of input.
//!
//! | matrix | its moments |
//! |---|---|
//! | queries, a network's first | of the step's input `x` |
//! | keys | half of those, half of `x` weighted by `sum (a (1 - a))^2` over all queries and heads, `a` being the attention paid to it |
//! | values | of what attention mixes: `z = sum a_i x_i`, for queries of all heads |
//! | the last | of what it is multiplied with |
//! | those of an expert | of the tokens that reach it ([`experts`](super::experts)) |
//!
//! Values are linear under the weights of attention, so an error `E` of their matrix comes out as `E z`. Where much attention rests on one
//! token (a sink), plain moments would take that token's error for one of many. BoA (Kim et al., arXiv 2406.13474) has the idea in
//! general; here all heads share one matrix.

use std::ops::Range;

use rayon::prelude::*;

use super::experts::Experts;
use super::moments::{Moments, balanced};
use crate::error::Result;
use crate::matmul::{Accumulate, Activations, Engine, Right, Rows};
use crate::memory::{copied, reserve, zero_rows};
use crate::model::{AttentionShape, Backend, Cpu, Observed, Observer, StepMatrix, Use};

/// Mixtures that are taken of each token's heads: with more heads, each token gives those of some of them.
const MIXTURES_PER_TOKEN: usize = 8;

/// The moments of all inputs of one step.
pub(super) struct Inputs {
    engine: Engine,
    input: Option<Moments>,
    keys: Option<Moments>,
    values: Option<Moments>,
    result: Option<Moments>,
}

/// The inputs of a step while a batch goes through it.
pub(super) struct Collector<'a> {
    /// Of the step.
    pub matrices: &'a [StepMatrix],
    pub inputs: &'a mut Inputs,
    /// Where the step is a mixture.
    pub experts: Option<&'a mut Experts>,
    /// Where sequences lie in the batch.
    pub sequences: &'a [Range<usize>],
    /// The step's input, `[n_rows, n_cols]`, once it has been seen.
    pub x: Vec<f32>,
}

impl Inputs {
    pub fn new(engine: Engine) -> Inputs {
        Inputs { engine, input: None, keys: None, values: None, result: None }
    }

    /// The mean square of each column that goes into a matrix: its importance.
    pub fn importance(&self, takes: Use) -> Option<Vec<f32>> {
        let moments = if takes == Use::Result { &self.result } else { &self.input };
        moments.as_ref().map(Moments::diagonal)
    }

    /// The moments that count for a matrix, `[n, n]`; `None` where nothing was seen.
    ///
    /// # Errors
    /// No memory.
    pub fn moments(&self, takes: Use) -> Result<Option<Vec<f32>>> {
        let moments = match takes {
            Use::Input => &self.input,
            Use::Values => &self.values,
            Use::Result => &self.result,
            Use::Keys => {
                let (Some(input), Some(keys)) = (&self.input, &self.keys) else { return Ok(None) };
                return balanced(input, keys).map(Some);
            }
        };
        moments.as_ref().filter(|moments| !moments.is_empty()).map(Moments::mean).transpose()
    }
}

impl Inputs {
    /// Adds what a last matrix is multiplied with: `[_, n_cols]`.
    ///
    /// # Errors
    /// No memory.
    pub fn add_result(&mut self, x: &[f32], n_cols: usize) -> Result<()> {
        add(&mut self.result, self.engine, x, n_cols, (x.len() / n_cols) as f64)
    }
}

impl Observer<Cpu> for Collector<'_> {
    fn operand(&mut self, observed: Observed<'_>, x: &<Cpu as Backend>::Operand) -> Result<()> {
        let is_observed = |matrix: &&StepMatrix| observed.names.contains(&matrix.name.as_str());
        // What scores experts is not among them.
        let Some(matrix) = self.matrices.iter().find(is_observed) else { return Ok(()) };
        let (values, n_cols) = (x.values(), matrix.n_cols);
        if matrix.n_stacked > 1 {
            let experts = self.experts.as_mut().expect("only a mixture stacks matrices");
            return experts.add(observed.matrix.0, matrix.takes, values, n_cols);
        }
        let is_input = matrix.takes != Use::Result;
        let moments = if is_input { &mut self.inputs.input } else { &mut self.inputs.result };
        add(moments, self.inputs.engine, values, n_cols, observed.n_rows as f64)?;
        if is_input {
            self.x = copied(values)?;
        }
        Ok(())
    }

    fn heads(
        &mut self,
        q: &<Cpu as Backend>::Rows,
        k: &<Cpu as Backend>::Rows,
        sinks: Option<&<Cpu as Backend>::Rows>,
        shape: &AttentionShape,
    ) -> Result<()> {
        let n_rows = q.values().len() / (shape.n_head * shape.head_dim);
        let n_cols = self.x.len() / n_rows;
        for sequence in self.sequences {
            let rows = |width: usize| sequence.start * width..sequence.end * width;
            let attention = Attention {
                engine: self.inputs.engine,
                shape,
                sinks: sinks.map(<Cpu as Backend>::Rows::values),
                q: &q.values()[rows(shape.n_head * shape.head_dim)],
                k: &k.values()[rows(shape.n_head_kv * shape.head_dim)],
                x: &self.x[rows(n_cols)],
                n_cols,
            };
            let (mixtures, weights) = attention.mix()?;
            let n_mixtures = (mixtures.len() / n_cols) as f64;
            add(&mut self.inputs.values, self.inputs.engine, &mixtures, n_cols, n_mixtures)?;
            let mut weighted = copied(attention.x)?;
            weighted.par_chunks_exact_mut(n_cols).zip(&weights).for_each(|(x, weight)| {
                let root = weight.sqrt() as f32;
                x.iter_mut().for_each(|x| *x *= root);
            });
            add(&mut self.inputs.keys, self.inputs.engine, &weighted, n_cols, weights.iter().sum())?;
        }
        Ok(())
    }
}

fn add(moments: &mut Option<Moments>, engine: Engine, x: &[f32], n_cols: usize, weight: f64) -> Result<()> {
    if moments.is_none() {
        *moments = Some(Moments::new(n_cols)?);
    }
    moments.as_mut().expect("made above").add(engine, x, weight)
}

/// The attention of one sequence.
struct Attention<'a> {
    engine: Engine,
    shape: &'a AttentionShape,
    /// `[n_head]`: scores that take their share and mix nothing.
    sinks: Option<&'a [f32]>,
    /// `[n, n_head * head_dim]`.
    q: &'a [f32],
    /// `[n, n_head_kv * head_dim]`.
    k: &'a [f32],
    /// `[n, n_cols]`.
    x: &'a [f32],
    n_cols: usize,
}

impl Attention<'_> {
    /// What the heads' queries mix, `[_, n_cols]`, and how much each token's key matters.
    fn mix(&self) -> Result<(Vec<f32>, Vec<f64>)> {
        let AttentionShape { n_head, n_head_kv, head_dim, .. } = *self.shape;
        let n = self.x.len() / self.n_cols;
        let stride = n_head.div_ceil(MIXTURES_PER_TOKEN);
        let mut mixtures = Vec::new();
        let mut key_weights = vec![0.0; n];
        for head in 0..n_head {
            let (q_width, k_width) = (n_head * head_dim, n_head_kv * head_dim);
            let of_q = Rows::strided(&self.q[head * head_dim..], n, head_dim, q_width);
            let of_k = Rows::strided(&self.k[head / (n_head / n_head_kv) * head_dim..], n, head_dim, k_width);
            let mut weights = zero_rows(n, n)?;
            let left = Activations::pack(self.engine, of_q);
            self.engine.multiply(&left, Right::Rows(of_k), &mut weights, Accumulate::Store);
            weights.par_chunks_exact_mut(n).enumerate().for_each(|(row, weights)| self.softmax(head, row, weights));
            for row in weights.chunks_exact(n) {
                for (weight, &a) in key_weights.iter_mut().zip(row) {
                    let slope = f64::from(a) * (1.0 - f64::from(a));
                    *weight += slope * slope;
                }
            }
            let chosen: Vec<f32> = weights.chunks_exact(n).skip(head % stride).step_by(stride).flatten().copied().collect();
            let n_chosen = chosen.len() / n;
            let first = mixtures.len();
            reserve(&mut mixtures, first + n_chosen * self.n_cols)?;
            mixtures.resize(first + n_chosen * self.n_cols, 0.0);
            let left = Activations::pack(self.engine, Rows::new(&chosen, n));
            self.engine.multiply(&left, Right::Columns(Rows::new(self.x, self.n_cols)), &mut mixtures[first..], Accumulate::Store);
        }
        Ok((mixtures, key_weights))
    }

    /// Scores of query `row` of a head become the attention it pays.
    fn softmax(&self, head: usize, row: usize, scores: &mut [f32]) {
        let first = self.shape.window.map_or(0, |window| (row + 1).saturating_sub(window));
        let (seen, later) = scores.split_at_mut(row + 1);
        later.fill(0.0);
        let (past, seen) = seen.split_at_mut(first);
        past.fill(0.0);
        let sink = self.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head]);
        let mut most = sink;
        for score in seen.iter_mut() {
            *score *= self.shape.scale;
            if let Some(cap) = self.shape.softcap {
                *score = cap * libm::tanhf(*score / cap);
            }
            most = most.max(*score);
        }
        let mut sum = libm::expf(sink - most);
        for score in seen.iter_mut() {
            *score = libm::expf(*score - most);
            sum += *score;
        }
        seen.iter_mut().for_each(|score| *score /= sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::{Factor, round};
    use crate::quant::Format;
    use crate::simd::Level;

    /// Against the formula in f64, with grouped heads and a window.
    #[test]
    fn mixtures_and_key_weights_are_those_of_attention() {
        let (n, n_cols, head_dim, n_head) = (20, 24, 8, 4);
        let wave = |seed: f32, len: usize| -> Vec<f32> { (0..len).map(|i| (i as f32 * seed).sin()).collect() };
        let (q, k, x) = (wave(0.37, n * n_head * head_dim), wave(0.91, n * 2 * head_dim), wave(0.53, n * n_cols));
        let shape = AttentionShape { n_head, n_head_kv: 2, head_dim, scale: 0.7, window: Some(9), softcap: None };
        let sinks: Vec<f32> = (0..n_head).map(|head| 3.0 - 2.0 * head as f32).collect();
        for sinks in [None, Some(&sinks[..])] {
            check_mixtures(&Attention { engine: Engine::new(Level::detect()), shape: &shape, sinks, q: &q, k: &k, x: &x, n_cols });
        }
    }

    fn check_mixtures(attention: &Attention<'_>) {
        let Attention { shape, sinks, q, k, x, n_cols, .. } = *attention;
        let (n, n_head, head_dim) = (x.len() / n_cols, shape.n_head, shape.head_dim);
        let (mixtures, key_weights) = attention.mix().expect("memory");
        assert_eq!(mixtures.len(), n_head * n * n_cols);
        let mut expected_weights = vec![0.0; n];
        for head in 0..n_head {
            for row in 0..n {
                let score = |key: usize| -> f64 {
                    let q = &q[(row * n_head + head) * head_dim..][..head_dim];
                    let k = &k[(key * 2 + head / 2) * head_dim..][..head_dim];
                    q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * 0.7
                };
                let seen = (row + 1usize).saturating_sub(9)..row + 1;
                let sink = sinks.map_or(0.0, |sinks| f64::from(sinks[head]).exp());
                let sum: f64 = seen.clone().map(|key| score(key).exp()).sum::<f64>() + sink;
                for column in 0..n_cols {
                    let mixed: f64 = seen.clone().map(|key| score(key).exp() / sum * f64::from(x[key * n_cols + column])).sum();
                    let found = f64::from(mixtures[(head * n + row) * n_cols + column]);
                    assert!((found - mixed).abs() < 1e-5, "head {head}, row {row}, column {column}: {found} for {mixed}");
                }
                for key in seen {
                    let a = score(key).exp() / sum;
                    expected_weights[key] += (a * (1.0 - a)).powi(2);
                }
            }
        }
        for (found, expected) in key_weights.iter().zip(&expected_weights) {
            assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
        }
    }

    /// What comes out of attention is wrong by `E z`: the mean square of that over queries of sequences that were not seen.
    fn error_of_values(weights: &[f32], blocks: &[u8], mixtures: &[f32], n_cols: usize) -> f64 {
        let mut values = vec![0.0; weights.len()];
        Format::Q4_0.dequantize(Level::detect(), blocks, &mut values);
        let of_row = |(w, q): (&[f32], &[f32])| -> f64 {
            let along =
                |z: &[f32]| -> f64 { z.iter().zip(w.iter().zip(q)).map(|(z, (w, q))| f64::from(*z) * f64::from(w - q)).sum() };
            mixtures.chunks_exact(n_cols).map(|z| along(z).powi(2)).sum()
        };
        weights.chunks_exact(n_cols).zip(values.chunks_exact(n_cols)).map(of_row).sum()
    }

    /// A sink: queries pay most of their attention to the first token, whose input lies where those of others are small and follow from
    /// the rest. Plain moments take that token for one of many and put errors where they count for no other, so next to nothing is gained;
    /// the moments of what attention mixes know better.
    #[test]
    fn values_under_a_sink_are_better_by_what_attention_mixes() {
        const CAUSES: usize = 8;
        let (n, n_cols, n_large, head_dim, n_head) = (256, 64, 48, 8, 2);
        let mut state = 9u32;
        let mut noise = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let sink: Vec<f32> = (0..n_cols).map(|column| if column < n_large { 0.0 } else { 2.0 * noise() }).collect();
        let mixing: Vec<f32> = (0..CAUSES * n_large).map(|_| noise()).collect();
        let following: Vec<f32> = (0..n_large * (n_cols - n_large)).map(|_| 0.3 * noise()).collect();
        let shape = AttentionShape { n_head, n_head_kv: n_head, head_dim, scale: 1.0, window: None, softcap: None };
        let engine = Engine::new(Level::detect());
        let mut inputs = [Moments::new(n_cols).expect("memory"), Moments::new(n_cols).expect("memory")];
        let mut held_out = Vec::new();
        for sequence in 0..10 {
            let mut x = sink.clone();
            for _ in 1..n {
                let causes: Vec<f32> = (0..CAUSES).map(|_| 2.0 * noise()).collect();
                let mut token = Vec::with_capacity(n_cols);
                for column in 0..n_large {
                    let caused: f32 = (0..CAUSES).map(|cause| causes[cause] * mixing[cause * n_large + column]).sum();
                    token.push(caused + 0.6 * noise());
                }
                for column in 0..n_cols - n_large {
                    let follows: f32 = (0..n_large).map(|i| token[i] * following[i * (n_cols - n_large) + column]).sum();
                    token.push(follows + 0.1 * noise());
                }
                x.extend(token);
            }
            let q: Vec<f32> = (0..n * n_head * head_dim).map(|_| 1.0 + noise()).collect();
            let k: Vec<f32> = (0..n * n_head * head_dim).map(|i| if i < n_head * head_dim { 0.8 } else { 0.3 * noise() }).collect();
            let attention = Attention { engine, shape: &shape, sinks: None, q: &q, k: &k, x: &x, n_cols };
            let (mixtures, _) = attention.mix().expect("memory");
            if sequence < 6 {
                inputs[0].add(engine, &x, n as f64).expect("memory");
                inputs[1].add(engine, &mixtures, (mixtures.len() / n_cols) as f64).expect("memory");
            } else {
                held_out.extend(mixtures);
            }
        }
        let weights: Vec<f32> = (0..48 * n_cols).map(|_| noise()).collect();
        let row_bytes = Format::Q4_0.row_bytes(n_cols as u64).expect("whole blocks") as usize;
        let mut plain = vec![0; 48 * row_bytes];
        let importance = inputs[0].diagonal();
        Format::Q4_0.quantize_rows(engine.level(), &weights, n_cols, Some(&importance), &mut plain).expect("finite weights");
        let [by_inputs, by_mixtures] = [0, 1].map(|at| {
            let factor = Factor::new(engine, inputs[at].mean().expect("memory"), n_cols, 0.05).expect("memory");
            let mut blocks = vec![0; 48 * row_bytes];
            assert!(round(engine, Format::Q4_0, &factor, &weights, &mut blocks));
            error_of_values(&weights, &blocks, &held_out, n_cols)
        });
        let by_importance = error_of_values(&weights, &plain, &held_out, n_cols);
        println!(
            "values under a sink: by inputs {:.3}, by mixtures {:.3} of ggml's",
            by_inputs / by_importance,
            by_mixtures / by_importance
        );
        assert!(by_inputs > 0.6 * by_importance, "{by_inputs} by inputs, {by_importance} by importance: not a sink");
        assert!(by_mixtures < 0.1 * by_importance, "{by_mixtures} by mixtures, {by_importance} by importance");
    }
}
