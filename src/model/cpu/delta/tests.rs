//! The delta net against its formulas in f64, and against itself in other pieces.

use super::*;
use crate::arch::DeltaHparams;
use crate::matmul::Engine;
use crate::model::Activations;
use crate::model::backend::{Backend, Places};

/// What one token more is computed from, and the numbers of a model.
struct Case {
    shape: DeltaShape,
    n_rows: usize,
    qkv: Vec<f32>,
    gate: Vec<f32>,
    /// `[n_rows, n_value_heads]`.
    alpha: Vec<f32>,
    beta: Vec<f32>,
    conv: Vec<f32>,
    dt: Vec<f32>,
    a: Vec<f32>,
    norm: Vec<f32>,
}

fn wave(n: usize, step: f64, size: f64) -> Vec<f32> {
    (0..n).map(|i| (((i as f64 * step).sin() + (i as f64 * step * 3.7).cos()) * size) as f32).collect()
}

impl Case {
    fn new(sizes: DeltaHparams, sharing: Sharing, n_rows: usize) -> Case {
        let shape = DeltaShape { sizes, sharing, norm_eps: 1e-5 };
        let (n_channels, n_heads) = (sizes.n_channels(), sizes.n_value_heads);
        Case {
            shape,
            n_rows,
            qkv: wave(n_rows * n_channels, 0.713, 1.5),
            gate: wave(n_rows * n_heads * sizes.value_dim, 0.311, 1.0),
            alpha: wave(n_rows * n_heads, 0.177, 2.0),
            beta: wave(n_rows * n_heads, 0.219, 2.0),
            conv: wave(n_channels * sizes.n_kernel, 0.533, 0.6),
            dt: wave(n_heads, 0.9, 0.5),
            a: wave(n_heads, 1.1, 0.4).iter().map(|x| -x.exp()).collect(),
            norm: wave(sizes.value_dim, 0.41, 0.7),
        }
    }

    /// The operation on some rows, with the past of those before.
    fn run(&self, cpu: &Cpu, rows: std::ops::Range<usize>, kept: Option<&mut [Recurrent<Rows>]>) -> Vec<f32> {
        let n_values = self.gate.len() / self.n_rows;
        let n_heads = self.shape.sizes.n_value_heads;
        let part = |x: &[f32], n_cols: usize| cpu.upload(&x[rows.start * n_cols..rows.end * n_cols], n_cols).unwrap();
        let whole = |x: &[f32]| cpu.upload(x, x.len()).unwrap();
        let (qkv, gate) = (part(&self.qkv, self.qkv.len() / self.n_rows), part(&self.gate, n_values));
        let rates = match self.shape.sharing {
            Sharing::Tiled => Rates::Apart { alpha: part(&self.alpha, n_heads), beta: part(&self.beta, n_heads) },
            Sharing::Grouped => {
                let n = self.shape.sizes.heads_per_key();
                let groups = self.beta.chunks(n).zip(self.alpha.chunks(n));
                Rates::ByKeyHead(part(&groups.flat_map(|(beta, alpha)| [beta, alpha].concat()).collect::<Vec<_>>(), 2 * n_heads))
            }
        };
        let [conv, dt, a, norm] = [&self.conv, &self.dt, &self.a, &self.norm].map(|x| whole(x));
        let inputs = DeltaInputs { qkv: &qkv, gate: &gate, rates: &rates, conv: &conv, dt: &dt, a: &a, norm: &norm };
        let n_kv = if kept.is_some() { rows.end } else { rows.len() };
        let spans = [Span { q: 0..rows.len(), kv: 0..n_kv }];
        let (positions, kept_from) = (vec![0; rows.len()], kept.as_ref().map(|_| rows.start));
        let pass = cpu.begin(&Places { positions: &positions, spans: &spans, kept_from, kept_step: 1 }).unwrap();
        cpu.delta_net(&inputs, &self.shape, &pass, kept).unwrap().values().to_vec()
    }

    /// The formulas of [`crate::arch::describe::DeltaNet`].
    fn truth(&self) -> Vec<f64> {
        let DeltaHparams { n_kernel, n_key_heads, n_value_heads, key_dim, value_dim } = self.shape.sizes;
        let (n_channels, n_keys) = (self.shape.sizes.n_channels(), n_key_heads * key_dim);
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let mut states = vec![vec![0.0; key_dim * value_dim]; n_value_heads];
        let mut out = Vec::new();
        for row in 0..self.n_rows {
            let channel = |c: usize| {
                let seen = (0..n_kernel).filter_map(|tap| Some(((row + tap).checked_sub(n_kernel - 1)?, tap)));
                silu(
                    seen.map(|(at, tap)| f64::from(self.qkv[at * n_channels + c]) * f64::from(self.conv[c * n_kernel + tap])).sum(),
                )
            };
            let x: Vec<f64> = (0..n_channels).map(channel).collect();
            for (head, state) in states.iter_mut().enumerate() {
                let key_head = match self.shape.sharing {
                    Sharing::Grouped => head / (n_value_heads / n_key_heads),
                    Sharing::Tiled => head % n_key_heads,
                };
                let unit = |x: &[f64]| {
                    let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
                    x.iter().map(|x| x / length).collect::<Vec<_>>()
                };
                let q = unit(&x[key_head * key_dim..][..key_dim]);
                let k = unit(&x[n_keys + key_head * key_dim..][..key_dim]);
                let v = &x[2 * n_keys + head * value_dim..][..value_dim];
                let at = row * n_value_heads + head;
                let softplus = (f64::from(self.alpha[at]) + f64::from(self.dt[head])).exp().ln_1p();
                let (decay, beta) = ((f64::from(self.a[head]) * softplus).exp(), 1.0 / (1.0 + (-f64::from(self.beta[at])).exp()));
                state.iter_mut().for_each(|s| *s *= decay);
                let mut result = vec![0.0; value_dim];
                for column in 0..value_dim {
                    let said: f64 = (0..key_dim).map(|i| k[i] * state[i * value_dim + column]).sum();
                    let correction = beta * (v[column] - said);
                    (0..key_dim).for_each(|i| state[i * value_dim + column] += k[i] * correction);
                    let read: f64 = (0..key_dim).map(|i| q[i] * state[i * value_dim + column]).sum();
                    result[column] = read / (key_dim as f64).sqrt();
                }
                let mean = result.iter().map(|x| x * x).sum::<f64>() / value_dim as f64;
                let gates = &self.gate[at * value_dim..][..value_dim];
                let scale = 1.0 / (mean + f64::from(self.shape.norm_eps)).sqrt();
                out.extend((0..value_dim).map(|i| result[i] * scale * f64::from(self.norm[i]) * silu(f64::from(gates[i]))));
            }
        }
        out
    }
}

fn cases() -> Vec<Case> {
    let sizes = |n_kernel, n_key_heads, n_value_heads, key_dim, value_dim| DeltaHparams {
        n_kernel,
        n_key_heads,
        n_value_heads,
        key_dim,
        value_dim,
    };
    vec![
        Case::new(sizes(4, 2, 6, 16, 16), Sharing::Tiled, 70),
        Case::new(sizes(4, 2, 6, 16, 32), Sharing::Grouped, 70),
        Case::new(sizes(2, 1, 1, 7, 5), Sharing::Tiled, 9),
        Case::new(sizes(3, 3, 3, 10, 40), Sharing::Grouped, 33),
    ]
}

#[test]
fn a_delta_net_is_its_definition_at_every_level() {
    for case in cases() {
        let truth = case.truth();
        let mut first: Option<Vec<u32>> = None;
        for (engine, n_threads) in Engine::available().into_iter().flat_map(|engine| [(engine, 1), (engine, 3)]) {
            let cpu = Cpu::new(engine, n_threads, Activations::F32).unwrap();
            let found = case.run(&cpu, 0..case.n_rows, None);
            for (at, (found, truth)) in found.iter().zip(&truth).enumerate() {
                let error = (f64::from(*found) - truth).abs();
                assert!(error < 2e-5 * (1.0 + truth.abs()), "{:?}, element {at}: {found}, {truth}", case.shape);
            }
            let bits: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
            assert_eq!(*first.get_or_insert(bits.clone()), bits, "{}", engine.level().name());
        }
    }
}

#[test]
fn pieces_of_a_sequence_give_the_bits_of_the_whole() {
    for case in cases() {
        let cpu = Cpu::new(Engine::detect(), 2, Activations::F32).unwrap();
        let whole = case.run(&cpu, 0..case.n_rows, None);
        for piece in [1, 2, 5, case.n_rows] {
            let mut kept = [cpu.recurrent(&case.shape).unwrap()];
            let starts = (0..case.n_rows).step_by(piece);
            let pieces = starts.flat_map(|start| case.run(&cpu, start..(start + piece).min(case.n_rows), Some(&mut kept)));
            assert_eq!(pieces.collect::<Vec<_>>(), whole, "{:?} in pieces of {piece}", case.shape);
        }
    }
}
