//! What happens between products, and what becomes of logits, against f64.

use half::f16;

use crate::common::Paint;
use crate::shim::{Buffer, NULL, arguments, shim};

/// A half is within this of what it rounds.
const HALF_ERROR: f64 = 1.0 / (1 << 11) as f64;

const ROW_LENS: [usize; 5] = [1, 7, 33, 129, 1100];

/// Rows of every size: ordinary, huge, tiny, zero.
fn rows(n_rows: usize, len: usize, ld: usize, paint: &mut Paint) -> Vec<f32> {
    let mut x = vec![f32::NAN; n_rows * ld];
    for (i, row) in x.chunks_mut(ld).enumerate() {
        let size = [1.0, 1e15, 1e-15, 0.0][i % 4];
        row[..len].fill_with(|| paint.student_t4() * size);
    }
    x
}

/// The halves times the row's power of two are the expected values, rounded; then come zeros.
#[track_caller]
fn check_halves(what: &str, got: &[f16], row_scale: f32, expected: &[f64], relative_error: f64) {
    let largest = expected.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    assert!(row_scale > 0.0 && row_scale.to_bits() & 0x007f_ffff == 0, "{what}: {row_scale} is no power of two");
    for (i, half) in got.iter().enumerate() {
        let expected = expected.get(i).copied().unwrap_or(0.0);
        let value = half.to_f64() * f64::from(row_scale);
        // Far below the largest of the row a half is subnormal.
        let bound = (HALF_ERROR + relative_error) * expected.abs() + largest * 2f64.powi(-34);
        assert!((value - expected).abs() <= bound, "{what}: [{i}] is {value:e}, expected {expected:e}");
    }
}

#[test]
fn norms_equal_f64() {
    let Some(shim) = shim() else { return };
    let mut paint = Paint::new(1);
    for len in ROW_LENS {
        let (n_rows, ld, ld_out, eps) = (5, len + 3, len.next_multiple_of(8) + 8, 1e-5f32);
        let x = rows(n_rows, len, ld, &mut paint);
        let weight = paint.weights(len, Paint::gaussian);
        let (x_on, weight_on) = (Buffer::new(&x), Buffer::new(&weight));
        let (halves, row_scale) = (Buffer::<f16>::unwritten(n_rows * ld_out), Buffer::<f32>::unwritten(n_rows));
        let arguments = arguments![&x_on, ld, &weight_on, eps, len, &halves, ld_out, &row_scale];
        shim.launch("rmsnorm_f16", &[n_rows as u32], 256, 0, &arguments);
        let in_place = Buffer::new(&x);
        shim.launch("rmsnorm_f32", &[n_rows as u32], 256, 0, &arguments![&in_place, ld, &weight_on, eps, len, &in_place, ld]);

        let (halves, row_scale, in_place) = (halves.to_vec(), row_scale.to_vec(), in_place.to_vec());
        for row in 0..n_rows {
            let x = &x[row * ld..][..len];
            let mean = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / len as f64;
            let norm = 1.0 / (mean + f64::from(eps)).sqrt();
            let expected: Vec<f64> = x.iter().zip(&weight).map(|(&x, &w)| f64::from(x) * norm * f64::from(w)).collect();
            let what = format!("rmsnorm_f16 of {len}, row {row}");
            check_halves(&what, &halves[row * ld_out..][..ld_out], row_scale[row], &expected, 1e-6);
            for (i, expected) in expected.iter().enumerate() {
                let got = f64::from(in_place[row * ld + i]);
                let bound = 1e-6 * expected.abs() + 1e-44;
                assert!((got - expected).abs() <= bound, "rmsnorm_f32 of {len}: [{row}, {i}] is {got:e}, expected {expected:e}");
            }
        }
    }
}

#[test]
fn norms_with_a_bias_equal_f64() {
    let Some(shim) = shim() else { return };
    let mut paint = Paint::new(6);
    for len in ROW_LENS {
        let (n_rows, ld, ld_out, eps) = (5, len + 3, len.next_multiple_of(8) + 8, 1e-5f32);
        // A mean that is larger than what lies around it.
        let mut x = rows(n_rows, len, ld, &mut paint);
        x[..len].iter_mut().for_each(|x| *x += 30.0);
        let (weight, bias) = (paint.weights(len, Paint::gaussian), paint.weights(len, Paint::gaussian));
        let (x_on, weight_on, bias_on) = (Buffer::new(&x), Buffer::new(&weight), Buffer::new(&bias));
        let (halves, row_scale) = (Buffer::<f16>::unwritten(n_rows * ld_out), Buffer::<f32>::unwritten(n_rows));
        let arguments = arguments![&x_on, ld, &weight_on, &bias_on, eps, len, &halves, ld_out, &row_scale];
        shim.launch("layernorm_f16", &[n_rows as u32], 256, 0, &arguments);
        let (halves, row_scale) = (halves.to_vec(), row_scale.to_vec());
        for row in 0..n_rows {
            let x: Vec<f64> = x[row * ld..][..len].iter().map(|&x| x.into()).collect();
            let mean = x.iter().sum::<f64>() / len as f64;
            let norm = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / len as f64 + f64::from(eps)).sqrt();
            // A row of one value, or of values that are all the same, is its bias, but for what its mean is off.
            let slack = x.iter().fold(0.0f64, |max, x| max.max(x.abs())) * norm * 2f64.powi(-22);
            let of = |i: usize| (x[i] - mean) * norm * f64::from(weight[i]) + f64::from(bias[i]);
            let largest = (0..len).map(of).fold(0.0f64, |max, x| max.max(x.abs()));
            assert!(row_scale[row] > 0.0 && row_scale[row].to_bits() & 0x007f_ffff == 0);
            for (i, half) in halves[row * ld_out..][..ld_out].iter().enumerate() {
                let (expected, weight) = if i < len { (of(i), f64::from(weight[i]).abs()) } else { (0.0, 0.0) };
                let value = half.to_f64() * f64::from(row_scale[row]);
                let bound = HALF_ERROR * expected.abs() + 2e-6 * (largest + weight) + slack * weight;
                assert!((value - expected).abs() <= bound, "layernorm_f16 of {len}: [{row}, {i}] is {value:e}, not {expected:e}");
            }
        }
    }
}

#[test]
fn gelu_equals_f64() {
    let Some(shim) = shim() else { return };
    let mut paint = Paint::new(7);
    for len in ROW_LENS {
        let (n_rows, ld, ld_out) = (6, len + 1, len.next_multiple_of(8));
        let (gate, up) = (rows(n_rows, len, ld, &mut paint), rows(n_rows, len, ld, &mut paint));
        let (gate_on, up_on) = (Buffer::new(&gate), Buffer::new(&up));
        for (by_erf, is_gated) in [(0u32, true), (0, false), (1, true), (1, false)] {
            let (halves, row_scale) = (Buffer::<f16>::unwritten(n_rows * ld_out), Buffer::<f32>::unwritten(n_rows));
            let up_or_null = if is_gated { (&up_on).into() } else { NULL };
            let arguments = arguments![&gate_on, up_or_null, by_erf, ld, len, &halves, ld_out, &row_scale];
            shim.launch("gelu_f16", &[n_rows as u32], 256, 0, &arguments);
            let (halves, row_scale) = (halves.to_vec(), row_scale.to_vec());
            for row in 0..n_rows {
                let gelu = |x: f64| match by_erf {
                    0 => x / (1.0 + (-2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).exp()),
                    _ => 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2),
                };
                let pairs = gate[row * ld..][..len].iter().zip(&up[row * ld..]);
                let expected: Vec<f64> =
                    pairs.map(|(&x, &up)| gelu(x.into()) * if is_gated { f64::from(up) } else { 1.0 }).collect();
                let what = format!("gelu_f16 of {len}, row {row}, by erf {by_erf}, gated {is_gated}");
                check_halves(&what, &halves[row * ld_out..][..ld_out], row_scale[row], &expected, 1e-5);
            }
        }
    }
}

#[test]
fn scores_are_scaled_and_bounded() {
    let Some(shim) = shim() else { return };
    let mut paint = Paint::new(8);
    for (len, scale, cap) in [(7usize, 0.25f32, 30.0f32), (1100, 4.0, 1.5), (33, 1.5, 0.0)] {
        let ld = len + 3;
        let x = paint.weights(2 * ld, |p| 20.0 * p.gaussian());
        let on_device = Buffer::new(&x);
        shim.launch("cap_rows_f32", &[2], 256, 0, &arguments![&on_device, ld, len, scale, cap]);
        for (i, (found, x)) in on_device.to_vec().iter().zip(&x).enumerate() {
            let scaled = f64::from(*x) * f64::from(scale);
            let expected = match (i % ld < len, cap == 0.0) {
                (false, _) => f64::from(*x),
                (true, true) => scaled,
                (true, false) => f64::from(cap) * (scaled / f64::from(cap)).tanh(),
            };
            // A hyperbolic tangent near 0 is a difference of two numbers near 1.
            let bound = 1e-6 * expected.abs() + 4e-7 * f64::from(cap);
            assert!((f64::from(*found) - expected).abs() <= bound, "{len}, cap {cap}: [{i}] is {found}, expected {expected}");
        }
    }
}

#[test]
fn rows_become_halves() {
    let Some(shim) = shim() else { return };
    let mut paint = Paint::new(2);
    for len in ROW_LENS {
        let (n_rows, ld, ld_out) = (6, len + 1, len.next_multiple_of(8));
        let (x, up) = (rows(n_rows, len, ld, &mut paint), rows(n_rows, len, ld, &mut paint));
        let (x_on, up_on) = (Buffer::new(&x), Buffer::new(&up));
        let (halves, row_scale) = (Buffer::<f16>::unwritten(n_rows * ld_out), Buffer::<f32>::unwritten(n_rows));
        shim.launch("rows_f16", &[n_rows as u32], 256, 0, &arguments![&x_on, ld, len, &halves, ld_out, &row_scale]);
        let (gated, gated_scale) = (Buffer::<f16>::unwritten(n_rows * ld_out), Buffer::<f32>::unwritten(n_rows));
        let arguments = arguments![&x_on, &up_on, ld, len, &gated, ld_out, &gated_scale];
        shim.launch("swiglu_f16", &[n_rows as u32], 256, 0, &arguments);

        let (halves, row_scale, gated, gated_scale) = (halves.to_vec(), row_scale.to_vec(), gated.to_vec(), gated_scale.to_vec());
        for row in 0..n_rows {
            let expected: Vec<f64> = x[row * ld..][..len].iter().map(|&x| x.into()).collect();
            check_halves(
                &format!("rows_f16 of {len}, row {row}"),
                &halves[row * ld_out..][..ld_out],
                row_scale[row],
                &expected,
                0.0,
            );
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let expected: Vec<f64> = expected.iter().zip(&up[row * ld..]).map(|(&x, &up)| silu(x) * f64::from(up)).collect();
            // An exponential of x is off by some 2^-24 of x.
            let what = format!("swiglu_f16 of {len}, row {row}");
            check_halves(&what, &gated[row * ld_out..][..ld_out], gated_scale[row], &expected, 1e-5);
        }
    }
}

/// Queries, keys or values, on the device.
struct Kind {
    n_heads: usize,
    x: Vec<f32>,
    bias: Option<Vec<f32>>,
    gain: Option<Vec<f32>>,
    rot_len: usize,
    on_device: HeadBuffers,
}

struct HeadBuffers {
    x: Buffer<f32>,
    bias: Buffer<f32>,
    gain: Buffer<f32>,
    out: Buffer<f16>,
    row_scale: Buffer<f32>,
}

impl Kind {
    fn width(&self, head_len: usize) -> usize {
        self.n_heads * head_len
    }

    fn new(n_tokens: usize, n_heads: usize, head_len: usize, rot_len: usize, size: f64, paint: &mut Paint) -> Kind {
        let width = n_heads * head_len;
        let mut random = |len, size: f64| paint.weights(len, |p| size as f32 * p.gaussian());
        let (x, bias) = (random(n_tokens * (width + 5), size), random(width, size));
        let gain = random(head_len, 1.0);
        let on_device = HeadBuffers {
            x: Buffer::new(&x),
            bias: Buffer::new(&bias),
            gain: Buffer::new(&gain),
            out: Buffer::unwritten(n_tokens * (width + 8)),
            row_scale: Buffer::unwritten(n_tokens),
        };
        Kind { n_heads, x, bias: Some(bias), gain: Some(gain), rot_len, on_device }
    }

    /// The heads of a token with bias and norm, which have not been turned.
    fn normalised(&self, token: usize, head_len: usize, eps: f64) -> Vec<f64> {
        let width = self.width(head_len);
        let x = self.x[token * (width + 5)..][..width].iter().enumerate();
        let mut x: Vec<f64> = x.map(|(i, x)| f64::from(*x) + self.bias.as_ref().map_or(0.0, |bias| bias[i].into())).collect();
        if let Some(gain) = &self.gain {
            for head in x.chunks_mut(head_len) {
                let norm = 1.0 / (head.iter().map(|x| x * x).sum::<f64>() / head_len as f64 + eps).sqrt();
                head.iter_mut().zip(gain).for_each(|(x, gain)| *x *= norm * f64::from(*gain));
            }
        }
        x
    }
}

#[test]
fn heads_equal_f64() {
    let Some(shim) = shim() else { return };
    let mut paint = Paint::new(3);
    let (n_tokens, n_positions, eps) = (7, 40, 1e-6f32);
    for (head_len, rot_len) in [(8, 8), (64, 64), (80, 32), (128, 0), (320, 64)] {
        // Far beyond what halves hold, and far below.
        let size = if head_len == 64 { 1e9 } else { 1e-9 };
        let angle = |position: usize, pair: usize| position as f64 * 10000f64.powf(-2.0 * pair as f64 / rot_len as f64);
        let cos_sin: Vec<f32> = (0..n_positions)
            .flat_map(|position| (0..rot_len / 2).map(move |pair| angle(position, pair)))
            .flat_map(|angle| [angle.cos() as f32, angle.sin() as f32])
            .collect();
        let positions: Vec<i32> = (0..n_tokens as i32).map(|i| (i * 11) % n_positions as i32).collect();
        for (neox, n_kinds) in [(0u32, 1), (1, 3)] {
            let mut kinds = [3, 2, 1].map(|n_heads| Kind::new(n_tokens, n_heads, head_len, rot_len, size, &mut paint));
            (kinds[0].gain, kinds[1].bias, kinds[2].rot_len) = (None, None, 0);
            let (angles_on, positions_on) = (Buffer::new(&cos_sin), Buffer::new(&positions));
            let mut arguments = Vec::new();
            for kind in &kinds {
                let HeadBuffers { x, bias, gain, out, row_scale } = &kind.on_device;
                let width = kind.width(head_len);
                let bias = if kind.bias.is_some() { bias.into() } else { NULL };
                let gain = if kind.gain.is_some() { gain.into() } else { NULL };
                arguments.extend(arguments![x, bias, gain, out, row_scale, width + 5, width + 8, kind.n_heads, kind.rot_len]);
            }
            arguments.extend(arguments![head_len, eps, &angles_on, &positions_on, neox]);
            shim.launch("heads_f16", &[n_tokens as u32, n_kinds as u32], 256, 0, &arguments);
            for kind in &kinds[..n_kinds] {
                check_heads(kind, head_len, eps.into(), neox, &positions, angle);
            }
        }
    }
}

fn check_heads(kind: &Kind, head_len: usize, eps: f64, neox: u32, positions: &[i32], angle: impl Fn(usize, usize) -> f64) {
    let (width, rot_len) = (kind.width(head_len), kind.rot_len);
    let (out, row_scale) = (kind.on_device.out.to_vec(), kind.on_device.row_scale.to_vec());
    for (token, position) in positions.iter().enumerate() {
        let x = kind.normalised(token, head_len, eps);
        let largest = x.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        for i in 0..width {
            let at = i % head_len;
            let expected = if at >= rot_len {
                x[i]
            } else {
                let (pair, is_first, apart) = match neox {
                    0 => (at / 2, at.is_multiple_of(2), 1),
                    _ => (at % (rot_len / 2), at < rot_len / 2, rot_len / 2),
                };
                let (sin, cos) = angle(*position as usize, pair).sin_cos();
                if is_first { x[i] * cos - x[i + apart] * sin } else { x[i] * cos + x[i - apart] * sin }
            };
            let got = out[token * (width + 8) + i].to_f64() * f64::from(row_scale[token]);
            assert!(
                (got - expected).abs() <= HALF_ERROR * expected.abs() + 1e-6 * largest,
                "heads of {head_len}, {rot_len} turned, neox {neox}: token {token} [{i}] is {got}, expected {expected}"
            );
        }
    }
}

#[test]
fn rows_are_added_where_they_belong() {
    let Some(shim) = shim() else { return };
    let mut paint = Paint::new(5);
    for len in ROW_LENS {
        let (ld_x, ld_to) = (len + 3, len + 5);
        let (x, to) = (rows(3, len, ld_x, &mut paint), paint.weights(6 * ld_to, Paint::gaussian));
        let (places, factors) = ([4i32, 0, 5], [0.5f32, -1.25, 0.0]);
        let to_on = Buffer::new(&to);
        let buffers = (Buffer::new(&x), Buffer::new(&places), Buffer::new(&factors));
        let arguments = arguments![&buffers.0, ld_x as u32, &buffers.1, &buffers.2, len as u32, &to_on, ld_to as u32];
        shim.launch("add_rows_f32", &[3], 256, 0, &arguments);
        let mut expected = to;
        for (i, (place, factor)) in places.iter().zip(factors).enumerate() {
            let row = &mut expected[*place as usize * ld_to..][..len];
            row.iter_mut().zip(&x[i * ld_x..]).for_each(|(to, x)| *to += factor * x);
        }
        assert_eq!(to_on.to_vec(), expected, "rows of {len}");
    }
}

#[test]
fn sums_of_rows_and_columns() {
    let Some(shim) = shim() else { return };
    let mut paint = Paint::new(4);
    for len in [1usize, 7, 1000, 5003] {
        let (x, y) = (paint.weights(len, Paint::student_t4), paint.weights(len, Paint::gaussian));
        let (x_on, y_on) = (Buffer::new(&x), Buffer::new(&y));
        shim.launch("add_rows_f32", &[1], 256, 0, &arguments![&y_on, 0u32, NULL, NULL, len, &x_on, len]);
        assert!(x_on.to_vec().iter().zip(x.iter().zip(&y)).all(|(sum, (x, y))| *sum == x + y), "add_rows_f32 of {len}");
    }
    for (n_rows, n_cols, n_chunks) in [(1, 1, 1), (33, 300, 4), (7, 129, 3)] {
        let a: Vec<f16> = (0..n_rows * n_cols).map(|_| f16::from_f32(paint.gaussian())).collect();
        let row_scale: Vec<f32> = (0..n_rows).map(|i| 2f32.powi(i % 5)).collect();
        let (a_on, scale_on) = (Buffer::new(&a), Buffer::new(&row_scale));
        let partial = Buffer::<f64>::unwritten(n_chunks * n_cols as usize);
        let sums = Buffer::new(&vec![0.5f64; n_cols as usize]);
        let n_blocks = (n_cols as u32).div_ceil(256);
        let arguments = arguments![&a_on, n_cols as u32, &scale_on, n_rows as u32, n_cols as u32, &partial];
        shim.launch("sum_squares", &[n_blocks, n_chunks as u32], 256, 0, &arguments);
        shim.launch("fold_columns", &[n_blocks], 256, 0, &arguments![&partial, n_chunks, n_cols as u32, &sums]);
        for (column, got) in sums.to_vec().into_iter().enumerate() {
            let value = |row: i32| a[(row * n_cols) as usize + column].to_f64() * f64::from(row_scale[row as usize]);
            let expected = 0.5 + (0..n_rows).map(|row| value(row).powi(2)).sum::<f64>();
            assert!((got - expected).abs() <= 1e-14 * expected, "sum_squares: column {column} is {got}, expected {expected}");
        }
    }
}

/// As `kernels/nll.cu` lays it out.
#[derive(Clone, Copy)]
#[repr(C)]
struct NllRow {
    nll: f64,
    top_logit: f32,
    top: i32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct KldRow {
    nll_base: f64,
    nll_test: f64,
    kld: f64,
    top_base: i32,
    top_test: i32,
}

/// The logarithm of the sum of exponentials, and the first of the largest.
fn log_sum(logits: &[f32]) -> (f64, usize) {
    let top = (0..logits.len()).fold(0, |top, i| if logits[i] > logits[top] { i } else { top });
    let max = f64::from(logits[top]);
    (max + logits.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln(), top)
}

#[test]
fn likelihoods_and_divergences_equal_f64() {
    let Some(shim) = shim() else { return };
    let mut paint = Paint::new(5);
    for n_cols in [1, 7, 33, 129, 1000, 5003] {
        let (n_rows, ld) = (6, n_cols + 3);
        let mut base = vec![f32::NAN; n_rows * ld];
        let mut test = base.clone();
        for row in 0..n_rows {
            // Rows of sharp and flat distributions, close and far apart; the last has ties, and columns that cannot be.
            let (size, apart) = ([1.0, 8.0, 30.0][row % 3], [1e-3, 1.0][row % 2]);
            for i in row * ld..row * ld + n_cols {
                base[i] = paint.gaussian() * size;
                test[i] = base[i] + paint.gaussian() * apart;
                if row == 5 {
                    (base[i], test[i]) = if i % 3 == 0 { (7.0, 7.0) } else { (f32::NEG_INFINITY, f32::NEG_INFINITY) };
                }
            }
            if row == 5 {
                (base[row * ld], test[row * ld]) = (7.0, 7.0);
            }
        }
        let targets: Vec<i32> = (0..n_rows).map(|row| if row == 5 { 0 } else { ((row * 37) % n_cols) as i32 }).collect();
        let (base_on, test_on, targets_on) = (Buffer::new(&base), Buffer::new(&test), Buffer::new(&targets));
        let (nll, kld) = (Buffer::<NllRow>::unwritten(n_rows), Buffer::<KldRow>::unwritten(n_rows));
        shim.launch("nll_rows", &[n_rows as u32], 256, 0, &arguments![&base_on, ld, n_cols, &targets_on, &nll]);
        shim.launch("kld_rows", &[n_rows as u32], 256, 0, &arguments![&base_on, ld, &test_on, ld, n_cols, &targets_on, &kld]);
        for (row, (nll, kld)) in nll.to_vec().into_iter().zip(kld.to_vec()).enumerate() {
            let (p, q) = (&base[row * ld..][..n_cols], &test[row * ld..][..n_cols]);
            let ((lse_p, top_p), (lse_q, top_q)) = (log_sum(p), log_sum(q));
            let target = targets[row] as usize;
            let divergence: f64 = p
                .iter()
                .zip(q)
                .filter(|(p, _)| p.is_finite())
                .map(|(&p, &q)| (f64::from(p) - lse_p).exp() * ((f64::from(p) - lse_p) - (f64::from(q) - lse_q)))
                .sum();
            let what = format!("{n_cols} logits, row {row}");
            let close = |name: &str, got: f64, expected: f64, bound: f64| {
                assert!((got - expected).abs() <= bound, "{what}: {name} is {got:e}, expected {expected:e}");
            };
            close("nll", nll.nll, lse_p - f64::from(p[target]), 5e-7);
            close("nll_base", kld.nll_base, lse_p - f64::from(p[target]), 5e-7);
            close("nll_test", kld.nll_test, lse_q - f64::from(q[target]), 5e-7);
            close("kld", kld.kld, divergence, 5e-7);
            assert_eq!((nll.top as usize, nll.top_logit), (top_p, p[top_p]), "{what}");
            assert_eq!((kld.top_base as usize, kld.top_test as usize), (top_p, top_q), "{what}");
        }
    }
}
