//! The exponential, sixteen at a time, from fused multiplications and additions alone.
//!
//! `exp(x) = 2^n * exp(r)` with `n = round(x / ln 2)` and `r = x - n ln 2`, where `ln 2` is split so that `n` times its upper part is
//! exact, and `exp(r)` is a polynomial of degree 7 fitted to `|r| <= ln(2) / 2`. Within 1.1 units in the last place of the true value,
//! subnormal results included; and the same bits at every level and on every machine, which no system's own function promises.

use crate::model::backend::{Clamped, Gelu};
use crate::simd::{F32x16, I32x16, Level, Simd, Task};

/// `1.5 * 2^23`: adding it rounds to an integer, which the low bits of the sum then hold.
const ROUND: f32 = 12_582_912.0;

/// Nine leading bits of `ln 2`, so that products with integers of up to 15 bits are exact; and the rest.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `exp` of every lane. Infinity and 0 where f32 ends; NaN stays NaN.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: F32x16<S>) -> F32x16<S> {
    let number = |value: f32| F32x16::splat(simd, value);
    // In this order of operands NaN passes.
    let x = number(89.0).min(number(-104.0).max(x));
    let rounded = x.fma(number(std::f32::consts::LOG2_E), number(ROUND));
    let n = rounded - number(ROUND);
    let r = n.fma(number(-LN_2_LOW), n.fma(number(-LN_2_HIGH), x));
    let mut p = number(1.984_127e-4);
    for coefficient in [1.388_889e-3, 8.333_334e-3, 4.166_666_8e-2, 1.666_666_7e-1, 0.5] {
        p = p.fma(r, number(coefficient));
    }
    let p = p.fma(r * r, r) + number(1.0);
    // Half of the exponent at a time: 2^128 and 2^-150 are beyond what one factor can be.
    let n = rounded.to_bits() + (-(ROUND.to_bits() as i32));
    let half = (n + 512).shr::<1>() + (-256);
    p * power_of_two(half) * power_of_two(n - half)
}

/// `2^n` for `-126 <= n <= 127`.
#[inline(always)]
fn power_of_two<S: Simd>(n: I32x16<S>) -> F32x16<S> {
    (n + 127).shl::<23>().to_float_bits()
}

/// `cap * tanh(x / cap)` of every lane, where `tanh(y) = 1 - 2 / (1 + exp(2 y))`.
#[inline(always)]
pub(super) fn capped<S: Simd>(simd: S, x: F32x16<S>, cap: f32) -> F32x16<S> {
    let number = |value: f32| F32x16::splat(simd, value);
    let e = exp(simd, x / number(cap) * number(2.0));
    number(cap) - number(cap) * (number(2.0) / (number(1.0) + e))
}

/// `gate` becomes `gate / (1 + exp(-gate)) * up`.
pub(super) fn swiglu(level: Level, gate: &mut [f32], up: &[f32]) {
    level.run(Gated { curve: Curve::Silu, gate, up });
}

/// `gate` becomes `g / (1 + exp(-alpha * g)) * (u + 1)` of itself and `up`, both bounded.
pub(super) fn clamped_swiglu(level: Level, form: Clamped, gate: &mut [f32], up: &[f32]) {
    level.run(Gated { curve: Curve::Clamped(form), gate, up });
}

/// `gate` becomes `up / (1 + exp(-gate))`.
pub(super) fn sigmoid_gated(level: Level, gate: &mut [f32], up: &[f32]) {
    level.run(Gated { curve: Curve::Sigmoid, gate, up });
}

/// `gate` becomes `gelu(gate) * up`.
pub(super) fn geglu(level: Level, form: Gelu, gate: &mut [f32], up: &[f32]) {
    level.run(Gated { curve: Curve::Gelu(form), gate, up });
}

/// Every `x` becomes `cap * tanh(x * scale / cap)`, without a cap `x * scale`.
pub(super) fn scale_and_cap(level: Level, values: &mut [f32], scale: f32, cap: Option<f32>) {
    level.run(ScaleAndCap { values, scale, cap });
}

struct ScaleAndCap<'a> {
    values: &'a mut [f32],
    scale: f32,
    cap: Option<f32>,
}

impl Task for ScaleAndCap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let of = |x: &[f32; 16]| {
            let x = F32x16::load(simd, x) * F32x16::splat(simd, self.scale);
            self.cap.map_or(x, |cap| capped(simd, x, cap))
        };
        let (chunks, rest) = self.values.as_chunks_mut::<16>();
        for chunk in chunks {
            of(chunk).store(chunk);
        }
        // The last ones are filled up with zeros.
        let mut last = [0.0; 16];
        last[..rest.len()].copy_from_slice(rest);
        of(&last).store(&mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

#[derive(Clone, Copy)]
enum Curve {
    Silu,
    Sigmoid,
    Gelu(Gelu),
    Clamped(Clamped),
}

/// Sixteen at a time; the last ones are filled up with zeros.
struct Gated<'a> {
    curve: Curve,
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Task for Gated<'_> {
    type Output = ();

    // No closure for the curve: it would be compiled without the level's instructions.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Gated { curve, gate, up } = self;
        let (gates, gates_rest) = gate.as_chunks_mut::<16>();
        let (ups, ups_rest) = up.as_chunks::<16>();
        for (gate, up) in gates.iter_mut().zip(ups) {
            gated_lanes(simd, curve, gate, up);
        }
        let (mut gate, mut up) = ([0.0; 16], [0.0; 16]);
        gate[..gates_rest.len()].copy_from_slice(gates_rest);
        up[..ups_rest.len()].copy_from_slice(ups_rest);
        gated_lanes(simd, curve, &mut gate, &up);
        gates_rest.copy_from_slice(&gate[..gates_rest.len()]);
    }
}

#[inline(always)]
fn gated_lanes<S: Simd>(simd: S, curve: Curve, gate: &mut [f32; 16], up: &[f32; 16]) {
    match curve {
        Curve::Silu => swiglu_lanes(simd, gate, up),
        Curve::Sigmoid => {
            let e = exp(simd, -F32x16::load(simd, gate));
            (F32x16::load(simd, up) / (F32x16::splat(simd, 1.0) + e)).store(gate);
        }
        Curve::Gelu(form) => geglu_lanes(simd, form, gate, up),
        Curve::Clamped(form) => clamped_lanes(simd, form, gate, up),
    }
}

#[inline(always)]
fn geglu_lanes<S: Simd>(simd: S, form: Gelu, gate: &mut [f32; 16], up: &[f32; 16]) {
    let g = F32x16::load(simd, gate);
    let gelu = match form {
        Gelu::Tanh => gelu_tanh(simd, g),
        Gelu::Erf => gelu_erf(simd, g),
    };
    (gelu * F32x16::load(simd, up)).store(gate);
}

/// `(1 + tanh(y)) / 2 = 1 / (1 + exp(-2 y))`.
#[inline(always)]
fn gelu_tanh<S: Simd>(simd: S, g: F32x16<S>) -> F32x16<S> {
    /// `2 * sqrt(2 / pi)`, and 0.044715 times that.
    const LINEAR: f32 = 1.595_769_2;
    const CUBIC: f32 = 0.071_354_82;
    let number = |value: f32| F32x16::splat(simd, value);
    let twice = g * (g * g).fma(number(CUBIC), number(LINEAR));
    g / (number(1.0) + exp(simd, -twice))
}

/// `g * erfc(-g / sqrt(2)) / 2`, with `erfc(z) = t * exp(-z^2 + p(t))` and `t = 1 / (1 + z / 2)` for `z >= 0`: the approximation of Press
/// et al., Numerical Recipes, whose relative error is 1.2e-7.
#[inline(always)]
fn gelu_erf<S: Simd>(simd: S, g: F32x16<S>) -> F32x16<S> {
    const COEFFICIENTS: [f32; 9] = [
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ];
    let number = |value: f32| F32x16::splat(simd, value);
    let z = g.max(-g) * number(std::f32::consts::FRAC_1_SQRT_2);
    let t = number(1.0) / z.fma(number(0.5), number(1.0));
    let mut p = number(0.170_872_77);
    for coefficient in COEFFICIENTS {
        p = p.fma(t, number(coefficient));
    }
    let half_erfc = number(0.5) * t * exp(simd, (-z).fma(z, p));
    let phi = g.lt(number(0.0)).select(half_erfc, number(1.0) - half_erfc);
    g * phi
}

#[inline(always)]
fn swiglu_lanes<S: Simd>(simd: S, gate: &mut [f32; 16], up: &[f32; 16]) {
    let g = F32x16::load(simd, gate);
    let silu = g / (F32x16::splat(simd, 1.0) + exp(simd, -g));
    (silu * F32x16::load(simd, up)).store(gate);
}

/// In these orders of operands NaN passes.
#[inline(always)]
fn clamped_lanes<S: Simd>(simd: S, form: Clamped, gate: &mut [f32; 16], up: &[f32; 16]) {
    let number = |value: f32| F32x16::splat(simd, value);
    let g = number(form.limit).min(F32x16::load(simd, gate));
    let u = number(form.limit).min(number(-form.limit).max(F32x16::load(simd, up)));
    let glu = g / (number(1.0) + exp(simd, -(g * number(form.alpha))));
    (glu * (u + number(1.0))).store(gate);
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a mut [f32; 16]);

    impl Task for Exp<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            exp(simd, F32x16::load(simd, self.0)).store(self.0);
        }
    }

    /// Units in the last place between `found` and the true value.
    fn error_ulp(found: f32, truth: f64) -> f64 {
        let exponent = libm::ilogb(truth).max(-126);
        (f64::from(found) - truth).abs() / libm::scalbn(1.0, exponent - 23)
    }

    #[test]
    fn exp_is_close_to_the_true_value_and_equal_at_every_level() {
        let mut worst = (0.0, 0.0);
        for start in (0..4_000_000u32).step_by(16) {
            // From -104 to 88.7, in steps that hit no pattern.
            let x: [f32; 16] = std::array::from_fn(|i| -104.0 + 192.7 * ((start + i as u32) as f32 / 4e6));
            let mut first: Option<[f32; 16]> = None;
            for level in Level::available() {
                let mut y = x;
                level.run(Exp(&mut y));
                assert_eq!(first.get_or_insert(y).map(f32::to_bits), y.map(f32::to_bits), "{} at {x:?}", level.name());
            }
            for (x, y) in x.iter().zip(first.expect("scalar is always there")) {
                let error = error_ulp(y, libm::exp(f64::from(*x)));
                worst = if error > worst.1 { (*x, error) } else { worst };
            }
        }
        assert!(worst.1 < 1.1, "exp({}) is off by {} units", worst.0, worst.1);
        println!("exp: at most {} units in the last place, at {}", worst.1, worst.0);
    }

    #[test]
    fn exp_ends_as_it_should() {
        let inputs = [f32::NEG_INFINITY, -1e30, -110.0, -0.0, 0.0, 88.73, 1e30, f32::INFINITY, f32::NAN];
        for level in Level::available() {
            let mut y = [0.0; 16];
            y[..inputs.len()].copy_from_slice(&inputs);
            level.run(Exp(&mut y));
            assert_eq!(y[..8], [0.0, 0.0, 0.0, 1.0, 1.0, f32::INFINITY, f32::INFINITY, f32::INFINITY]);
            assert!(y[8].is_nan());
        }
    }

    /// `x * Phi(x)`, in f64.
    fn gelu(form: Gelu, x: f64) -> f64 {
        match form {
            Gelu::Tanh => 0.5 * x * (1.0 + libm::tanh((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x))),
            Gelu::Erf => 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2),
        }
    }

    #[test]
    fn geglu_is_its_formula_for_every_length() {
        for (len, form) in [1, 15, 16, 17, 64, 172].into_iter().flat_map(|len| [(len, Gelu::Tanh), (len, Gelu::Erf)]) {
            let gate: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin() * 6.0).collect();
            let up: Vec<f32> = (0..len).map(|i| (i as f32 * 0.11).cos()).collect();
            for level in Level::available() {
                let mut found = gate.clone();
                geglu(level, form, &mut found, &up);
                for i in 0..len {
                    let truth = gelu(form, gate[i].into()) * f64::from(up[i]);
                    // An exponent of up to 40 in f32 errs by its last bit.
                    assert!((f64::from(found[i]) - truth).abs() <= 4e-6 * truth.abs() + 1e-12, "{} of {len}", level.name());
                }
            }
        }
        for (g, expected) in [(1e30, 1e30), (-1e30, 0.0), (0.0, 0.0)] {
            for form in [Gelu::Tanh, Gelu::Erf] {
                let mut found = [g];
                geglu(Level::detect(), form, &mut found, &[1.0]);
                assert_eq!(found[0], expected);
            }
        }
    }

    #[test]
    fn clamped_swiglu_is_its_formula_for_every_length() {
        let form = Clamped { alpha: 1.702, limit: 7.0 };
        for len in [1, 15, 16, 17, 64, 172] {
            let gate: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin() * 20.0).collect();
            let up: Vec<f32> = (0..len).map(|i| (i as f32 * 0.11).cos() * 9.0).collect();
            for level in Level::available() {
                let mut found = gate.clone();
                clamped_swiglu(level, form, &mut found, &up);
                for i in 0..len {
                    let (g, u) = (f64::from(gate[i]).min(7.0), f64::from(up[i]).clamp(-7.0, 7.0));
                    let truth = g / (1.0 + libm::exp(-g * f64::from(form.alpha))) * (u + 1.0);
                    assert!((f64::from(found[i]) - truth).abs() <= 4e-6 * truth.abs() + 1e-12, "{} of {len}", level.name());
                }
            }
        }
        for (gate, up) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
            let mut found = [gate];
            clamped_swiglu(Level::detect(), form, &mut found, &[up]);
            assert!(found[0].is_nan());
        }
    }

    #[test]
    fn swiglu_is_its_formula_for_every_length() {
        for len in [1, 15, 16, 17, 64, 172] {
            let gate: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin() * 20.0).collect();
            let up: Vec<f32> = (0..len).map(|i| (i as f32 * 0.11).cos()).collect();
            for level in Level::available() {
                let mut found = gate.clone();
                swiglu(level, &mut found, &up);
                for i in 0..len {
                    let g = f64::from(gate[i]);
                    let truth = g / (1.0 + libm::exp(-g)) * f64::from(up[i]);
                    assert!((f64::from(found[i]) - truth).abs() <= 4e-7 * truth.abs() + 1e-30, "{} of {len}", level.name());
                }
            }
        }
    }
}
