//! `Q6_K`: `w = d*sc[j]*q`, q in -32..=31, 16 sub-blocks `j` of 16; 6.5625 bits per weight. Layout: ggml's `block_q6_K`.
//!
//! ```text
//! 0                                       128                              192          208      210
//! | ql: 2 x 64 x (low, high half)         | qh: 2 x 32 x (four pairs)      | sc: 16 x i8 | d: f16 |
//! ```
//!
//! Each half of the super-block is four runs of 32 weights. The low four bits of runs 0 and 1 are the low halves of `ql` bytes 0-31
//! and 32-63, those of runs 2 and 3 the high halves. The upper two bits of run `r` are bits `2r` and `2r+1` of `qh`. `q + 32` is stored.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::LEN;
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::dot::sum;
use crate::quant::lattice::{Assemble, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::search::symmetric::{Fit, search};
use crate::quant::search::{ALL_ZERO, lanes_of_sub_blocks, nearest_int};
use crate::quant::sink::{SUMS, Sink};
use crate::simd::{F32x16, I32x16, Simd, Sixteen};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct Q6_K {
    ql: [[[u8; 16]; 4]; 2],
    qh: [[[u8; 16]; 2]; 2],
    scales: [i8; 16],
    d: Half,
}

impl Block for Q6_K {
    const LEN: usize = LEN;
}

impl Dequantize for Q6_K {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let scales = self.sub_block_scales(simd);
        for half in 0..2 {
            for i in 0..2 {
                let (low, high) = (I32x16::load_u8(simd, &self.ql[half][i]), I32x16::load_u8(simd, &self.ql[half][i + 2]));
                let upper = I32x16::load_u8(simd, &self.qh[half][i]);
                let q = [
                    (low & 15) | (upper.shl::<4>() & 48),
                    (high & 15) | (upper.shl::<2>() & 48),
                    low.shr::<4>() | (upper & 48),
                    high.shr::<4>() | (upper.shr::<2>() & 48),
                ];
                for run in 0..4 {
                    let j = 8 * half + 2 * run + i;
                    to.put(j, F32x16::splat(simd, scales[j]) * (q[run] + -32).to_float());
                }
            }
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd) * (128.0 * 32.0)
    }

    /// Sixteen times sixteen that the quants multiply, and the sums of `x` that the 32 taken off each quant multiplies.
    const FACTORS: usize = 16 + 1;

    /// The same run of both halves is 64 quants, of which each lane has four.
    fn arrange(x: &[f32], factors: &mut [Sixteen]) {
        let (runs, _) = x.as_chunks::<32>();
        for run in 0..4 {
            for lane in 0..16 {
                for byte in 0..4 {
                    factors[4 * run + byte].0[lane] = runs[lane / 8 * 4 + run][lane % 8 * 4 + byte];
                }
            }
        }
        let (sub_blocks, _) = x.as_chunks::<16>();
        factors[16].0 = std::array::from_fn(|j| -32.0 * sum(&sub_blocks[j]));
    }

    /// Sum 3 first gets `d*sc` times the last factors. Then sum `run` gets `d*sc` times four fused products, of quants without sign.
    #[inline(always)]
    fn add_products<S: Simd>(&self, simd: S, factors: &[Sixteen], _at: usize, mut sums: [F32x16<S>; SUMS]) -> [F32x16<S>; SUMS] {
        const SCALES: [[u8; 16]; 4] = scales_of_lanes();
        let scales = self.d.splat(simd) * I32x16::load_i8(simd, zerocopy::transmute_ref!(&self.scales)).to_float();
        let ql: &[[[u8; 32]; 2]; 2] = zerocopy::transmute_ref!(&self.ql);
        let qh: &[[u8; 32]; 2] = zerocopy::transmute_ref!(&self.qh);
        let (low, high) = (I32x16::load_bytes(simd, &ql[0][0], &ql[1][0]), I32x16::load_bytes(simd, &ql[0][1], &ql[1][1]));
        let upper = I32x16::load_bytes(simd, &qh[0], &qh[1]);
        let runs = [
            (low & LOW_FOUR) | (upper.shl::<4>() & UPPER_TWO),
            (high & LOW_FOUR) | (upper.shl::<2>() & UPPER_TWO),
            (low.shr::<4>() & LOW_FOUR) | (upper & UPPER_TWO),
            (high.shr::<4>() & LOW_FOUR) | (upper.shr::<2>() & UPPER_TWO),
        ];
        sums[3] = scales.fma(factors[16].load(simd), sums[3]);
        for run in 0..4 {
            let (mut q, mut products) = (runs[run], F32x16::splat(simd, 0.0));
            for byte in 0..4 {
                products = (q & 255).to_float().fma(factors[4 * run + byte].load(simd), products);
                q = q.shr::<8>();
            }
            sums[run] = scales.lookup(I32x16::load_u8(simd, &SCALES[run])).fma(products, sums[run]);
        }
        sums
    }
}

/// Of every byte.
const LOW_FOUR: i32 = 0x0f0f_0f0f;
const UPPER_TWO: i32 = 0x3030_3030;

/// For each of the runs: of which sub-blocks its lanes are.
const fn scales_of_lanes() -> [[u8; 16]; 4] {
    let mut of_lanes = [[0; 16]; 4];
    let mut at = 0;
    while at < 64 {
        let (run, lane) = (at / 16, at % 16);
        of_lanes[run][lane] = (lane / 8 * 8 + run * 2 + lane % 8 / 4) as u8;
        at += 1;
    }
    of_lanes
}

impl Quantize for Q6_K {
    const USES_IMPORTANCE: bool = true;

    /// A weight counts as much as its importance, or its square.
    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [Q6_K]) {
        for (at, (block, weights)) in blocks.iter_mut().zip(weights.as_chunks::<256>().0).enumerate() {
            let x: [F32x16<S>; 16] = lanes_of_sub_blocks(simd, weights);
            let mut w = x;
            match importance {
                Some(columns) => w = lanes_of_sub_blocks(simd, &columns[LEN * at..][..LEN]),
                None => {
                    for w in &mut w {
                        *w = *w * *w;
                    }
                }
            }
            *block = quantize_super_block(simd, weights, &search(simd, &x, &w, 32));
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

impl Q6_K {
    /// `d*sc[j]`.
    #[inline(always)]
    fn sub_block_scales<S: Simd>(&self, simd: S) -> [f32; 16] {
        (self.d.splat(simd) * I32x16::load_i8(simd, zerocopy::transmute_ref!(&self.scales)).to_float()).to_array()
    }
}

#[inline(always)]
fn quantize_super_block<S: Simd>(simd: S, weights: &[f32; 256], fit: &Fit<S>) -> Q6_K {
    let (found, inverse) = (fit.scale.to_array(), fit.inverse.to_array());
    let mut max = 0.0f32;
    for scale in found {
        if scale.abs() > max.abs() {
            max = scale;
        }
    }
    let mut block = Q6_K { ql: [[[0; 16]; 4]; 2], qh: [[[0; 16]; 2]; 2], scales: [0; 16], d: Half::new(simd, 0.0) };
    if found.iter().any(|scale| scale.is_nan()) {
        // The sums of the search overflowed; ggml would write zeros.
        block.d = Half::NAN;
        return block;
    }
    if max.abs() < ALL_ZERO {
        return block;
    }
    let per_scale = -128.0 / max;
    block.d = Half::new(simd, 1.0 / per_scale);
    let d = block.d.to_f32(simd);
    let (chunks, _) = weights.as_chunks::<16>();
    let mut quants = [I32x16::splat(simd, 0); 16];
    for j in 0..16 {
        block.scales[j] = nearest_int(per_scale * found[j]).min(127) as i8;
        let x = F32x16::load(simd, &chunks[j]);
        let scale = d * f32::from(block.scales[j]);
        // ggml leaves the quants of the search where the scale rounds to zero, and zeros where the search found nothing.
        if scale != 0.0 {
            quants[j] = stored(x / F32x16::splat(simd, scale));
        } else if inverse[j] != 0.0 {
            quants[j] = stored(x * F32x16::splat(simd, inverse[j]));
        }
    }
    pack(&quants, &mut block);
    block
}

/// Rounded, clamped, and without sign as it is stored.
#[inline(always)]
fn stored<S: Simd>(q: F32x16<S>) -> I32x16<S> {
    q.nearest_int_in(-32, 31).truncate() + 32
}

#[inline(always)]
fn pack<S: Simd>(quants: &[I32x16<S>; 16], block: &mut Q6_K) {
    for half in 0..2 {
        for i in 0..2 {
            let [q0, q1, q2, q3] = [0, 1, 2, 3].map(|run| quants[8 * half + 2 * run + i]);
            block.ql[half][i] = ((q0 & 15) | (q2 & 15).shl::<4>()).to_u8();
            block.ql[half][i + 2] = ((q1 & 15) | (q3 & 15).shl::<4>()).to_u8();
            let upper = q0.shr::<4>() | (q1.shr::<4>()).shl::<2>() | (q2.shr::<4>()).shl::<4>() | (q3.shr::<4>()).shl::<6>();
            block.qh[half][i] = upper.to_u8();
        }
    }
}

impl Assemble for Q6_K {
    const LATTICE: Lattice = Lattice {
        block_len: LEN,
        sub_block_len: 16,
        levels: Levels::Integers(-32, 31),
        scales: SubScales::Integers(-128, 127),
        mins: Mins::None,
    };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> Q6_K {
        let scales = parts.scales.map(|sc| sc as i8);
        let mut block = Q6_K { ql: [[[0; 16]; 4]; 2], qh: [[[0; 16]; 2]; 2], scales, d: Half::new(simd, parts.d) };
        let mut quants = [I32x16::splat(simd, 0); 16];
        for j in 0..16 {
            quants[j] = parts.sixteen(simd, j) + 32;
        }
        pack(&quants, &mut block);
        block
    }
}
