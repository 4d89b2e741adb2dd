//! Gated delta nets, token by token: time is linear in tokens, and the state of a head stays in the first-level cache.
//!
//! ```text
//! rows in parallel    x = silu(conv(qkv)), heads of queries and keys brought to length 1; exp(decay), sigmoid(beta)
//! columns in parallel S = S * decay;  S = S + k (beta * (v - k S));  o = q S          one head, sixteen values, all tokens
//! rows in parallel    norm(o) * silu(gate)
//! ```
//!
//! A lane is one column of the values: it and its column of the state depend on no other, so nothing is summed across lanes, and a token's
//! numbers do not depend on how many come with it. Four sums over the keys go on side by side, and are added in a fixed order.

use rayon::prelude::*;

use super::{Cpu, Operand, Pass, Rows};
use super::{exp, norm};
use crate::arch::describe::{Dim, Sharing};
use crate::error::Result;
use crate::memory::zeros;
use crate::model::backend::{DeltaInputs, DeltaShape, Rates, Recurrent, Span};
use crate::simd::{F32x16, Simd, Task};

/// Columns of values that are computed together.
const LANES: usize = 16;
/// Added to the squared length of queries and keys.
const LENGTH_EPS: f64 = 1e-6;

/// Room for the past of a sequence.
pub(super) fn recurrent(cpu: &Cpu, shape: &DeltaShape) -> Result<Recurrent<Rows>> {
    let sizes = shape.sizes;
    let mut last = cpu.new_rows(sizes.n_kernel - 1, sizes.n_channels())?;
    let mut state = cpu.new_rows(n_blocks(shape), sizes.key_dim * LANES)?;
    last.values.fill(0.0);
    state.values.fill(0.0);
    Ok(Recurrent { last, state })
}

/// Blocks of sixteen values: those of a head are filled up.
fn n_blocks(shape: &DeltaShape) -> usize {
    shape.sizes.n_value_heads * shape.sizes.value_dim.div_ceil(LANES)
}

pub(super) fn delta_net(
    cpu: &Cpu,
    inputs: &DeltaInputs<'_, Rows>,
    shape: &DeltaShape,
    pass: &Pass,
    kept: Option<&mut [Recurrent<Rows>]>,
) -> Result<Operand> {
    let (sizes, n_rows) = (shape.sizes, inputs.qkv.n_rows());
    assert_eq!([inputs.qkv.n_cols, inputs.gate.n_cols], [sizes.n_channels(), shape.len(Dim::DeltaValues)], "rows of whole heads");
    assert!(kept.as_ref().is_none_or(|kept| kept.len() == pass.spans.len()), "something is kept of every sequence");
    let x = convolved(cpu, inputs, shape, pass, kept.as_deref())?;
    let rates = rates(cpu, inputs, shape)?;
    let mut of_blocks = cpu.new_rows(n_blocks(shape), n_rows * LANES)?;
    let level = cpu.level();
    let scan = |block: usize, spans: &[Span], out: &mut [f32], state: &mut [f32]| {
        level.run(Scan { block, x: &x, rates: &rates, shape, spans, state, out });
    };
    let (block_len, state_len) = (n_rows * LANES, sizes.key_dim * LANES);
    cpu.pool.install(|| match kept {
        Some(kept) => {
            for (span, kept) in pass.spans.chunks(1).zip(kept) {
                let blocks = of_blocks.values.par_chunks_exact_mut(block_len).enumerate();
                let states = kept.state.values.par_chunks_exact_mut(state_len);
                blocks.zip(states).for_each(|((block, out), state)| scan(block, span, out, state));
                keep_last(&mut kept.last, inputs.qkv, &span[0]);
            }
            Ok(())
        }
        None => {
            let blocks = of_blocks.values.par_chunks_exact_mut(block_len).enumerate();
            blocks.try_for_each_init(Vec::new, |state, (block, out)| {
                if state.is_empty() {
                    *state = zeros(state_len)?;
                }
                scan(block, &pass.spans, out, state);
                Ok(())
            })
        }
    })?;
    gated(cpu, &of_blocks, inputs, shape)
}

/// Queries, keys and values: the convolution, what bends it, queries and keys of length 1.
fn convolved(
    cpu: &Cpu,
    inputs: &DeltaInputs<'_, Rows>,
    shape: &DeltaShape,
    pass: &Pass,
    kept: Option<&[Recurrent<Rows>]>,
) -> Result<Rows> {
    let (sizes, qkv, level) = (shape.sizes, inputs.qkv, cpu.level());
    let (n_kernel, n_channels) = (sizes.n_kernel, sizes.n_channels());
    // The weights of all channels for one token after the other.
    let mut taps = zeros(n_kernel * n_channels)?;
    for (channel, weights) in inputs.conv.values.chunks_exact(n_kernel).enumerate() {
        weights.iter().enumerate().for_each(|(tap, weight)| taps[tap * n_channels + channel] = *weight);
    }
    let ones = vec![1.0; n_channels];
    let spans = spans_of_rows(&pass.spans, qkv.n_rows());
    let n_queries = shape.len(Dim::DeltaKeys);
    let query_scale = 1.0 / (sizes.key_dim as f64).sqrt();
    cpu.fill_rows(qkv.n_rows(), n_channels, |row, out| {
        out.fill(0.0);
        let Some(index) = spans[row] else { return };
        let (span, kept) = (&pass.spans[index], kept.map(|kept| &kept[index].last));
        let last = kept.filter(|_| !begins(span));
        for (tap, weights) in taps.chunks_exact(n_channels).enumerate() {
            // Counted from the oldest token that the first one of the sequence sees.
            let at = row - span.q.start + tap;
            let token = match at.checked_sub(n_kernel - 1) {
                Some(token) => Some(qkv.row(span.q.start + token)),
                None => last.map(|last| last.row(at)),
            };
            if let Some(token) = token {
                level.run(AddProducts { x: token, weights, out });
            }
        }
        exp::swiglu(level, out, &ones);
        let (queries, rest) = out.split_at_mut(n_queries);
        queries.chunks_exact_mut(sizes.key_dim).for_each(|head| norm::unit_length(level, head, LENGTH_EPS, query_scale));
        rest[..n_queries].chunks_exact_mut(sizes.key_dim).for_each(|head| norm::unit_length(level, head, LENGTH_EPS, 1.0));
    })
}

/// For each row its sequence.
fn spans_of_rows(spans: &[Span], n_rows: usize) -> Vec<Option<usize>> {
    let mut found = vec![None; n_rows];
    spans.iter().enumerate().for_each(|(index, span)| found[span.q.clone()].fill(Some(index)));
    found
}

/// True where nothing of a sequence is known: one that is continued has keys that are none of these rows.
fn begins(span: &Span) -> bool {
    span.kv.len() == span.q.len()
}

/// `out += x * weights`.
struct AddProducts<'a> {
    x: &'a [f32],
    weights: &'a [f32],
    out: &'a mut [f32],
}

impl Task for AddProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for ((out, x), weight) in self.out.iter_mut().zip(self.x).zip(self.weights) {
            *out += x * weight;
        }
    }
}

/// The last tokens of what came before and now.
fn keep_last(last: &mut Rows, qkv: &Rows, span: &Span) {
    let (n_last, n_cols) = (last.n_rows(), qkv.n_cols);
    if begins(span) {
        last.values.fill(0.0);
    }
    let n_new = span.q.len().min(n_last);
    last.values.copy_within(n_new * n_cols.., 0);
    let new = &qkv.values[(span.q.end - n_new) * n_cols..span.q.end * n_cols];
    last.values[(n_last - n_new) * n_cols..].copy_from_slice(new);
}

/// Of every row, for each value head: what its state is multiplied with, and how much of the difference is learned. `[n_rows, 2 n_heads]`.
fn rates(cpu: &Cpu, inputs: &DeltaInputs<'_, Rows>, shape: &DeltaShape) -> Result<Rows> {
    let n_heads = shape.sizes.n_value_heads;
    let per_key = shape.sizes.heads_per_key();
    cpu.fill_rows(inputs.qkv.n_rows(), 2 * n_heads, |row, out| {
        let (decays, betas) = out.split_at_mut(n_heads);
        for head in 0..n_heads {
            let (alpha, beta) = match inputs.rates {
                Rates::Apart { alpha, beta } => (alpha.row(row)[head], beta.row(row)[head]),
                Rates::ByKeyHead(both) => {
                    let group = &both.row(row)[head / per_key * 2 * per_key..][..2 * per_key];
                    (group[per_key + head % per_key], group[head % per_key])
                }
            };
            let alpha = f64::from(alpha) + f64::from(inputs.dt.values[head]);
            // Beyond this, the logarithm of 1 + e^x is x in f64 too.
            let softplus = if alpha > 40.0 { alpha } else { libm::log1p(libm::exp(alpha)) };
            decays[head] = libm::exp(f64::from(inputs.a.values[head]) * softplus) as f32;
            betas[head] = (1.0 / (1.0 + libm::exp(-f64::from(beta)))) as f32;
        }
    })
}

/// Sixteen columns of one head, over all tokens.
struct Scan<'a> {
    /// Which.
    block: usize,
    x: &'a Rows,
    rates: &'a Rows,
    shape: &'a DeltaShape,
    spans: &'a [Span],
    /// `[key_dim]` times sixteen columns. Cleared where a sequence begins here.
    state: &'a mut [f32],
    /// `[n_rows]` times sixteen columns.
    out: &'a mut [f32],
}

impl Task for Scan<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let sizes = self.shape.sizes;
        let blocks_per_head = sizes.value_dim.div_ceil(LANES);
        let (head, first) = (self.block / blocks_per_head, self.block % blocks_per_head * LANES);
        let key_head = match self.shape.sharing {
            Sharing::Grouped => head / sizes.heads_per_key(),
            Sharing::Tiled => head % sizes.n_key_heads,
        };
        let n_keys = self.shape.len(Dim::DeltaKeys);
        let n_values = LANES.min(sizes.value_dim - first);
        let (state, _) = self.state.as_chunks_mut::<LANES>();
        let (out, _) = self.out.as_chunks_mut::<LANES>();
        for span in self.spans {
            if begins(span) {
                state.fill([0.0; LANES]);
            }
            for row in span.q.clone() {
                let (x, rates) = (self.x.row(row), self.rates.row(row));
                let query = &x[key_head * sizes.key_dim..][..sizes.key_dim];
                let key = &x[n_keys + key_head * sizes.key_dim..][..sizes.key_dim];
                let mut value = [0.0; LANES];
                value[..n_values].copy_from_slice(&x[2 * n_keys + head * sizes.value_dim + first..][..n_values]);
                let value = F32x16::load(simd, &value);
                let rates = [rates[head], rates[sizes.n_value_heads + head]];
                token(simd, state, (query, key, value), rates).store(&mut out[row]);
            }
        }
    }
}

/// Sums over the keys that go on side by side.
const SUMS: usize = 4;

/// One token: what the state says of the key is corrected, and of the query returned.
#[inline(always)]
fn token<S: Simd>(
    simd: S,
    state: &mut [[f32; LANES]],
    (query, key, value): (&[f32], &[f32], F32x16<S>),
    [decay, beta]: [f32; 2],
) -> F32x16<S> {
    let zero = F32x16::splat(simd, 0.0);
    let decay = F32x16::splat(simd, decay);
    let mut said = [zero; SUMS];
    for (state, key) in state.chunks_mut(SUMS).zip(key.chunks(SUMS)) {
        for i in 0..state.len() {
            let kept = F32x16::load(simd, &state[i]) * decay;
            kept.store(&mut state[i]);
            said[i] = kept.fma(F32x16::splat(simd, key[i]), said[i]);
        }
    }
    let correction = (value - ((said[0] + said[1]) + (said[2] + said[3]))) * F32x16::splat(simd, beta);
    let mut sums = [zero; SUMS];
    for ((state, key), query) in state.chunks_mut(SUMS).zip(key.chunks(SUMS)).zip(query.chunks(SUMS)) {
        for i in 0..state.len() {
            let corrected = F32x16::splat(simd, key[i]).fma(correction, F32x16::load(simd, &state[i]));
            corrected.store(&mut state[i]);
            sums[i] = corrected.fma(F32x16::splat(simd, query[i]), sums[i]);
        }
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

/// Every head's result, normalised and gated, in rows again.
fn gated(cpu: &Cpu, of_blocks: &Rows, inputs: &DeltaInputs<'_, Rows>, shape: &DeltaShape) -> Result<Operand> {
    let (value_dim, level) = (shape.sizes.value_dim, cpu.level());
    let blocks_per_head = value_dim.div_ceil(LANES);
    let rows = cpu.fill_rows(inputs.qkv.n_rows(), inputs.gate.n_cols, |row, out| {
        out.copy_from_slice(inputs.gate.row(row));
        let mut result = vec![0.0; value_dim];
        for (head, out) in out.chunks_exact_mut(value_dim).enumerate() {
            for (block, result) in result.chunks_mut(LANES).enumerate() {
                let lanes = &of_blocks.row(head * blocks_per_head + block)[row * LANES..];
                result.copy_from_slice(&lanes[..result.len()]);
            }
            norm::rms_norm(level, &mut result, Some(&inputs.norm.values), shape.norm_eps);
            exp::swiglu(level, out, &result);
        }
    })?;
    Ok(rows.into())
}

#[cfg(test)]
mod tests;
