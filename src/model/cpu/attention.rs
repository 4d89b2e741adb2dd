//! Attention in blocks: memory does not grow with the context, and every query's numbers are one fixed chain.
//!
//! A lane is one query: a row and one of the heads that share a key head. Sixteen of them go through the keys together, 64 keys at a
//! time:
//!
//! ```text
//!            16 queries                    16 queries                      16 queries
//!   64 keys  [ s = k . q ]   m = max(m, s)  [ p = exp(s - m) ]   head_dim  [ o = o * exp(m_before - m) + v^T p ]
//! ```
//!
//! `m`, the sum of `p`, and `o` are kept per lane, so nothing is ever summed across lanes. Blocks of keys start at the span's first key
//! whatever the query, so that a query's numbers do not depend on what else is computed with it.

use rayon::prelude::*;

use super::Rows;
use super::exp::{capped, exp};
use crate::model::backend::{AttentionShape, Span};
use crate::simd::{F32x16, Level, Simd, Task};

/// What attention reads.
pub(super) struct Inputs<'a> {
    pub q: &'a Rows,
    pub k: &'a Rows,
    pub v: &'a Rows,
    /// `[n_head]`: scores of a key with a value of 0.
    pub sinks: Option<&'a [f32]>,
    pub shape: &'a AttentionShape,
}

/// Keys that are looked at together: 64 of them and their values fit the first-level cache for heads of up to 64.
const KEYS: usize = 64;

/// The score of a key that has left the window. Not infinite, so that a lane whose first block of keys is all past has a maximum; what
/// such a block adds, the first key within the window multiplies with an exponential of 0.
const PAST: f32 = -1e30;

/// Lanes of one job: enough that keys are fetched for several vectors, few enough that cores share a short sequence evenly.
const LANES_PER_JOB: usize = 64;

/// Queries of consecutive rows that share a key head, and where their results go.
struct Job<'a> {
    span: &'a Span,
    kv_head: usize,
    /// Row within the span.
    first_row: usize,
    /// For each row `[group * head_dim]`.
    out: Vec<&'a mut [f32]>,
}

/// `softmax(q k^T * scale) v` of every span; rows of `out` that no span covers are left as they are.
pub(super) fn attention(level: Level, inputs: &Inputs<'_>, spans: &[Span], out: &mut Rows) {
    let AttentionShape { n_head, n_head_kv, head_dim, .. } = *inputs.shape;
    assert_eq!((inputs.q.n_cols, inputs.k.n_cols), (n_head * head_dim, n_head_kv * head_dim), "rows of whole heads");
    assert!(inputs.sinks.is_none_or(|sinks| sinks.len() == n_head), "a sink for every head");
    let jobs = jobs(inputs.shape, spans, out);
    jobs.into_par_iter().for_each_init(Scratch::default, |scratch, job| level.run(Attend { inputs, job, scratch }));
}

/// Cuts `out` into jobs: spans, then rows, then key heads.
fn jobs<'a>(shape: &AttentionShape, spans: &'a [Span], out: &'a mut Rows) -> Vec<Job<'a>> {
    let group = shape.n_head / shape.n_head_kv;
    let rows_per_job = (LANES_PER_JOB / group).max(1);
    let mut rows: Vec<Option<&mut [f32]>> = out.values.chunks_exact_mut(out.n_cols).map(Some).collect();
    let mut jobs = Vec::new();
    for span in spans {
        assert!(span.q.len() <= span.kv.len(), "a query without a key");
        for first_row in (0..span.q.len()).step_by(rows_per_job) {
            let of_job = &mut rows[span.q.clone()][first_row..];
            let n_rows = rows_per_job.min(of_job.len());
            let mut heads: Vec<Vec<&mut [f32]>> = (0..shape.n_head_kv).map(|_| Vec::with_capacity(n_rows)).collect();
            for row in &mut of_job[..n_rows] {
                let row = row.take().expect("spans that do not overlap");
                heads.iter_mut().zip(row.chunks_exact_mut(group * shape.head_dim)).for_each(|(head, part)| head.push(part));
            }
            jobs.extend(heads.into_iter().enumerate().map(|(kv_head, out)| Job { span, kv_head, first_row, out }));
        }
    }
    jobs
}

/// Working memory of one worker, a row of sixteen lanes each.
#[derive(Default)]
struct Scratch {
    /// `[head_dim]`: the queries, turned round.
    q: Vec<[f32; 16]>,
    /// `[KEYS]`: scores, then weights.
    s: Vec<[f32; 16]>,
    /// `[head_dim]`: the weighted sum of values.
    o: Vec<[f32; 16]>,
}

/// One job, with the instructions of a level.
struct Attend<'a, 'b> {
    inputs: &'b Inputs<'b>,
    job: Job<'a>,
    scratch: &'b mut Scratch,
}

impl Task for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Attend { inputs, mut job, scratch } = self;
        let group = inputs.shape.n_head / inputs.shape.n_head_kv;
        let n_queries = job.out.len() * group;
        for first in (0..n_queries).step_by(16) {
            let queries = Queries { first, n: (n_queries - first).min(16), group };
            attend(simd, inputs, &mut job, queries, scratch);
        }
    }
}

/// Up to sixteen queries of a job: query `i` is head `i % group` of row `i / group`.
#[derive(Clone, Copy)]
struct Queries {
    first: usize,
    n: usize,
    group: usize,
}

impl Queries {
    /// Row within the job, and head within the group; lanes without a query repeat the last.
    #[inline(always)]
    fn at(self, lane: usize) -> (usize, usize) {
        let query = self.first + lane.min(self.n - 1);
        (query / self.group, query % self.group)
    }
}

#[inline(always)]
fn attend<S: Simd>(simd: S, inputs: &Inputs<'_>, job: &mut Job<'_>, queries: Queries, scratch: &mut Scratch) {
    let AttentionShape { head_dim, scale, window, softcap, .. } = *inputs.shape;
    let Span { q: q_rows, kv: kv_rows } = job.span;
    scratch.q.resize(head_dim, [0.0; 16]);
    scratch.o.resize(head_dim, [0.0; 16]);
    scratch.s.resize(KEYS, [0.0; 16]);

    // A lane sees the keys from `n_past` to `n_seen`.
    let mut n_seen = [0usize; 16];
    let mut sinks = [f32::NEG_INFINITY; 16];
    for lane in 0..16 {
        let (row, head) = queries.at(lane);
        let row = job.first_row + row;
        if let Some(of_heads) = inputs.sinks {
            sinks[lane] = of_heads[job.kv_head * queries.group + head];
        }
        n_seen[lane] = kv_rows.len() - q_rows.len() + row + 1;
        let heads = inputs.q.row(q_rows.start + row);
        let query = &heads[(job.kv_head * queries.group + head) * head_dim..][..head_dim];
        scratch.q.iter_mut().zip(query).for_each(|(q, x)| q[lane] = *x);
    }
    let (n_seen_min, n_seen_max) = (n_seen[0], n_seen[15]);
    let n_past = n_seen.map(|n| window.map_or(0, |window| n.saturating_sub(window)));
    let (n_past_min, n_past_max) = (n_past[0], n_past[15]);
    let past = F32x16::load(simd, &n_past.map(|n| n as f32));
    let limit = F32x16::load(simd, &n_seen.map(|n| n as f32));

    let zero = F32x16::splat(simd, 0.0);
    // A sink is a key that has been seen before all others: its exponential is 1.
    let mut max = F32x16::load(simd, &sinks);
    let mut sum = if inputs.sinks.is_some() { F32x16::splat(simd, 1.0) } else { zero };
    scratch.o.fill([0.0; 16]);
    for first in (n_past_min - n_past_min % KEYS..n_seen_max).step_by(KEYS) {
        let n = KEYS.min(n_seen_max - first);
        let rows = Block { start: kv_rows.start + first, n, column: job.kv_head * head_dim, head_dim };
        scores(simd, &scratch.q, inputs.k, rows, &mut scratch.s);
        let before = max;
        for (key, s) in scratch.s[..n].iter_mut().enumerate() {
            let mut score = F32x16::load(simd, s) * F32x16::splat(simd, scale);
            if let Some(cap) = softcap {
                score = capped(simd, score, cap);
            }
            if first + key < n_past_max {
                let is_past = F32x16::splat(simd, (first + key) as f32).lt(past);
                score = is_past.select(F32x16::splat(simd, PAST), score);
            }
            if first + key >= n_seen_min {
                let is_seen = F32x16::splat(simd, (first + key) as f32).lt(limit);
                score = is_seen.select(score, F32x16::splat(simd, f32::NEG_INFINITY));
            }
            score.store(s);
            max = score.max(max);
        }
        let shrink = exp(simd, before - max);
        sum = sum * shrink;
        for s in &mut scratch.s[..n] {
            let p = exp(simd, F32x16::load(simd, s) - max);
            p.store(s);
            sum = sum + p;
        }
        add_values(simd, &scratch.s, inputs.v, rows, shrink, &mut scratch.o);
    }
    for o in &mut scratch.o {
        (F32x16::load(simd, o) / sum).store(o);
    }
    for lane in 0..queries.n {
        let (row, head) = queries.at(lane);
        let out = &mut job.out[row][head * head_dim..][..head_dim];
        out.iter_mut().zip(&scratch.o).for_each(|(out, o)| *out = o[lane]);
    }
}

/// Rows of keys or values, and the columns of one head in them.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    n: usize,
    column: usize,
    head_dim: usize,
}

impl Block {
    #[inline(always)]
    fn head(self, rows: &Rows, row: usize) -> &[f32] {
        &rows.values[(self.start + row) * rows.n_cols + self.column..][..self.head_dim]
    }
}

/// `s[key] = k[key] . q`, eight keys at a time.
#[inline(always)]
fn scores<S: Simd>(simd: S, q: &[[f32; 16]], keys: &Rows, block: Block, s: &mut [[f32; 16]]) {
    let whole = block.n - block.n % 8;
    for key in (0..whole).step_by(8) {
        some_scores::<S, 8>(simd, q, keys, block, key, s);
    }
    for key in whole..block.n {
        some_scores::<S, 1>(simd, q, keys, block, key, s);
    }
}

#[inline(always)]
fn some_scores<S: Simd, const N: usize>(simd: S, q: &[[f32; 16]], keys: &Rows, block: Block, key: usize, s: &mut [[f32; 16]]) {
    let q = &q[..block.head_dim];
    let mut heads = [&[][..]; N];
    for i in 0..N {
        heads[i] = block.head(keys, key + i);
    }
    let mut sums = [F32x16::splat(simd, 0.0); N];
    for d in 0..q.len() {
        let q = F32x16::load(simd, &q[d]);
        for i in 0..N {
            sums[i] = q.fma(F32x16::splat(simd, heads[i][d]), sums[i]);
        }
    }
    for i in 0..N {
        sums[i].store(&mut s[key + i]);
    }
}

/// `o = o * shrink + v^T p`, eight columns at a time.
#[inline(always)]
fn add_values<S: Simd>(simd: S, p: &[[f32; 16]], values: &Rows, block: Block, shrink: F32x16<S>, o: &mut [[f32; 16]]) {
    let whole = block.head_dim - block.head_dim % 8;
    for column in (0..whole).step_by(8) {
        add_some_values::<S, 8>(simd, p, values, block, column, shrink, o);
    }
    for column in whole..block.head_dim {
        add_some_values::<S, 1>(simd, p, values, block, column, shrink, o);
    }
}

#[inline(always)]
fn add_some_values<S: Simd, const N: usize>(
    simd: S,
    p: &[[f32; 16]],
    values: &Rows,
    block: Block,
    column: usize,
    shrink: F32x16<S>,
    o: &mut [[f32; 16]],
) {
    let mut sums = [F32x16::splat(simd, 0.0); N];
    for i in 0..N {
        sums[i] = F32x16::load(simd, &o[column + i]) * shrink;
    }
    for (key, p) in p[..block.n].iter().enumerate() {
        let p = F32x16::load(simd, p);
        let v: &[f32; N] = block.head(values, key)[column..].first_chunk().expect("columns of the head");
        for i in 0..N {
            sums[i] = p.fma(F32x16::splat(simd, v[i]), sums[i]);
        }
    }
    for i in 0..N {
        sums[i].store(&mut o[column + i]);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::matmul::Engine;
    use crate::model::backend::{Backend, Places};
    use crate::model::{Activations, Cpu};

    fn wave(n: usize, step: f64) -> Vec<f32> {
        (0..n).map(|i| ((i as f64 * step).sin() * 2.0) as f32).collect()
    }

    /// Attention by its definition, in f64: the result for one query.
    fn expected(q: &[f32], keys: &[&[f32]], values: &[&[f32]], sink: Option<f32>, shape: &AttentionShape) -> Vec<f64> {
        let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * f64::from(shape.scale);
        let bounded = |score: f64| shape.softcap.map_or(score, |cap| f64::from(cap) * libm::tanh(score / f64::from(cap)));
        let scores: Vec<f64> = keys.iter().map(|k| bounded(dot(k))).collect();
        let sink = sink.map(f64::from);
        let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| libm::exp(s - max)).collect();
        let sum: f64 = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| libm::exp(sink - max));
        (0..q.len()).map(|d| weights.iter().zip(values).map(|(w, v)| w / sum * f64::from(v[d])).sum()).collect()
    }

    /// Groups and widths that fill no vector, spans of one and of many blocks, a cache longer than its queries, thousands of keys, and a
    /// window that leaves most of them out.
    #[test]
    fn attention_is_its_definition() {
        const SPANS: [(Range<usize>, Range<usize>); 4] = [(0..70, 0..70), (70..71, 70..71), (71..75, 80..240), (75..78, 240..2400)];
        let spans = SPANS.map(|(q, kv)| Span { q, kv });
        for (n_head, n_head_kv, head_dim, window, softcap, has_sinks) in [
            (3, 1, 20, None, None, false),
            (4, 4, 8, None, Some(1.5), false),
            (8, 2, 64, None, None, false),
            (20, 1, 6, None, Some(50.0), false),
            (4, 2, 8, Some(90), None, false),
            (20, 4, 8, None, None, true),
            (4, 2, 8, Some(90), None, true),
        ] {
            // From one that takes nearly all to one that takes nothing.
            let sinks: Option<Vec<f32>> = has_sinks.then(|| (0..n_head).map(|head| 30.0 - 17.0 * head as f32).collect());
            let shape = AttentionShape { n_head, n_head_kv, head_dim, scale: 0.4, window, softcap };
            let (q, kv) = (n_head * head_dim, n_head_kv * head_dim);
            let (xq, xk, xv) = (wave(78 * q, 0.713), wave(2400 * kv, 0.311), wave(2400 * kv, 0.177));
            for engine in Engine::available() {
                let cpu = Cpu::new(engine, 2, Activations::F32).unwrap();
                let rows = [cpu.upload(&xq, q).unwrap(), cpu.upload(&xk, kv).unwrap(), cpu.upload(&xv, kv).unwrap()];
                let pass = cpu.begin(&Places { positions: &[0; 78], spans: &spans, kept_from: None, kept_step: 1 }).unwrap();
                let uploaded = sinks.as_ref().map(|sinks| cpu.upload(sinks, n_head).unwrap());
                let out = cpu.attention(&rows[0], [&rows[1], &rows[2]], uploaded.as_ref(), &shape, &pass).unwrap();
                for span in &spans {
                    for (row, head) in span.q.clone().flat_map(|row| (0..n_head).map(move |head| (row, head))) {
                        let n_seen = span.kv.len() - (span.q.end - row) + 1;
                        let n_past = window.map_or(0, |window| n_seen.saturating_sub(window));
                        let column = head / (n_head / n_head_kv) * head_dim;
                        let seen = |x| heads(x, kv, column, head_dim)[span.kv.start..][n_past..n_seen].to_vec();
                        let query = &xq[row * q + head * head_dim..][..head_dim];
                        let sink = sinks.as_ref().map(|sinks| sinks[head]);
                        let truth = expected(query, &seen(&xk), &seen(&xv), sink, &shape);
                        let found = &out.rows.row(row)[head * head_dim..][..head_dim];
                        for (found, truth) in found.iter().zip(truth) {
                            assert!(
                                (f64::from(*found) - truth).abs() < 1e-5,
                                "{shape:?}, row {row}, head {head}: {found}, {truth}"
                            );
                        }
                    }
                }
            }
        }
    }

    fn heads(x: &[f32], n_cols: usize, column: usize, head_dim: usize) -> Vec<&[f32]> {
        x.chunks_exact(n_cols).map(|row| &row[column..][..head_dim]).collect()
    }
}
