//! `IQ1_M`: `w = d*(2*sc[j] + 1) * (g +- 1/8)`, g in {-1, 0, 1}, 16 sub-blocks `j` of 16; 1.75 bits per weight. Layout: ggml's
//! `block_iq1_m`.
//!
//! ```text
//! 0                       32                                                      48                                   56
//! | points: 32 x 8 bits   | qh: 32 x 4 bits: 3 upper bits of the point, 1 bit -   | 4 x u16: 4 x 3 bits sc, 4 bits d   |
//! ```
//!
//! A point is one of IQ1_S's 2048, and gives the values of 8 weights. The last bit is set where 1/8 is subtracted. The half `d` is cut
//! into four, its lowest bits first.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::iq1::{DOWN, Found, Sorted, Split, SubBlocks, UP, Values, settle};
use super::{LEN, batches, grids, iq1_s, scales_of_super_block, shifted, sums_of_squares, sums_of_super_blocks};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::search::{Lanes, lanes_of_sub_blocks};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct IQ1_M {
    points: [[u8; 2]; 16],
    qh: [u8; 16],
    scales_and_d: [[u8; 2]; 4],
}

impl Block for IQ1_M {
    const LEN: usize = super::LEN;
}

impl IQ1_M {
    #[inline(always)]
    fn d(&self) -> Half {
        let [a, b, c, d] = self.scales_and_d.map(|bytes| bytes[1] >> 4);
        Half([a | b << 4, c | d << 4])
    }

    #[inline(always)]
    fn set_d(&mut self, d: Half) {
        let [low, high] = d.0;
        for (bytes, bits) in self.scales_and_d.iter_mut().zip([low << 4, low & 0xf0, high << 4, high & 0xf0]) {
            bytes[1] |= bits;
        }
    }
}

impl Dequantize for IQ1_M {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = self.d().to_f32(simd);
        for j in 0..16 {
            let sc = u16::from_le_bytes(self.scales_and_d[j / 4]) >> (3 * (j % 4)) & 7;
            let scale = F32x16::splat(simd, d * f32::from(2 * sc + 1));
            let upper = usize::from(self.qh[j]);
            let low = self.points[j].map(usize::from);
            let points = [iq1_s::POINTS[low[0] | (upper & 7) << 8], iq1_s::POINTS[low[1] | (upper & 0x70) << 4]];
            to.put(j, shifted(simd, scale, points, [upper & 8 != 0, upper & 0x80 != 0]));
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d().magnitude(simd) * (15.0 * 1.125)
    }
}

/// Sub-blocks whose largest magnitude is below this count as all zero.
const ALL_ZERO: f32 = 1e-7;

impl Quantize for IQ1_M {
    const USES_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [IQ1_M]) {
        for ((weights, importance), blocks) in batches(weights, importance).zip(blocks.chunks_mut(16)) {
            let squares = sums_of_squares(simd, weights);
            // What each weight adds to `sum w*q*x` and to `sum w*q*q` of its super-block, and its scale without them.
            let mut products = [[0.0; 16 * LEN]; 2];
            let mut rough = [None; 16];
            for (i, block) in blocks.iter_mut().enumerate() {
                let own = LEN * i..LEN * (i + 1);
                let sigma2 = F32x16::splat(simd, 2.0 * squares[i] / 256.0);
                let w: [F32x16<S>; 16] = match importance {
                    Some(importance) => Lanes::<S, 16>::weighted(simd, &weights[own.clone()], &importance[own.clone()], sigma2).w,
                    None => squared(lanes_of_sub_blocks(simd, &weights[own.clone()])),
                };
                let sub_blocks = SubBlocks::new(simd, &weights[own.clone()], w);
                let sorted = sub_blocks.sorted(simd);
                let skip = sub_blocks.all_below(simd, ALL_ZERO);
                let found = settle(simd, &sub_blocks, &sorted, split(simd, &sorted), skip);
                let scales = scales_of_super_block(&found.scales, 7);
                *block = pack(&found, scales.map(|(_, sc)| sc));
                if let Some((d, sc)) = scales {
                    rough[i] = Some(d);
                    let [xq, qq] = &mut products;
                    multiply(simd, &sub_blocks, &found, &sc, [&mut xq[own.clone()], &mut qq[own]]);
                }
            }
            let [xq, qq] = [sums_of_super_blocks(simd, &products[0]), sums_of_super_blocks(simd, &products[1])];
            for (i, block) in blocks.iter_mut().enumerate() {
                if let Some(rough) = rough[i] {
                    let d = if qq[i] > 0.0 && !rough.is_nan() { xq[i] / qq[i] } else { rough };
                    // ggml's scale is a little larger than the fit.
                    block.set_d(Half::new(simd, d * 1.1125));
                }
            }
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d().is_finite()
    }
}

/// How much weights count without importance.
#[inline(always)]
fn squared<S: Simd>(mut x: [F32x16<S>; 16]) -> [F32x16<S>; 16] {
    for i in 0..16 {
        x[i] = x[i] * x[i];
    }
    x
}

/// The best split of the sorted weights, each half of a sub-block shifted up or down.
#[inline(always)]
fn split<S: Simd>(simd: S, sorted: &Sorted<S, 16>) -> Split<S> {
    let (zero, eight) = (F32x16::splat(simd, 0.0), F32x16::splat(simd, 8.0));
    // For each half the sums over its weights among the first sorted ones.
    let (mut x, mut w) = ([[zero; 17]; 2], [[zero; 17]; 2]);
    for i in 0..16 {
        let (own_w, own_wx) = (sorted.w[i], sorted.w[i] * sorted.x[i]);
        let is_first = sorted.index[i].lt(eight);
        for h in 0..2 {
            let (with_x, with_w) = (x[h][i] + own_wx, w[h][i] + own_w);
            x[h][i + 1] = if h == 0 { is_first.select(with_x, x[h][i]) } else { is_first.select(x[h][i], with_x) };
            w[h][i + 1] = if h == 0 { is_first.select(with_w, w[h][i]) } else { is_first.select(w[h][i], with_w) };
        }
    }
    // Levels are 1 apart, so a sum over all three parts is that with the highest level everywhere, less what the boundaries take away.
    let mut whole_xq = [[zero; 2]; 2];
    let (mut low_qq, mut mid_qq) = ([[[zero; 17]; 2]; 2], [[[zero; 17]; 2]; 2]);
    for h in 0..2 {
        for (down, values) in [UP, DOWN].into_iter().enumerate() {
            let highest = F32x16::splat(simd, values[2]);
            let step_low = F32x16::splat(simd, values[0] * values[0] - values[1] * values[1]);
            let step_mid = F32x16::splat(simd, values[1] * values[1] - values[2] * values[2]);
            whole_xq[h][down] = x[h][16] * highest;
            let whole_qq = w[h][16] * highest * highest;
            for i in 0..17 {
                low_qq[h][down][i] = whole_qq + w[h][i] * step_low;
                mid_qq[h][down][i] = w[h][i] * step_mid;
            }
        }
    }
    let mut best = Split::new(simd, x[0][16] + x[1][16] + w[0][16] + w[1][16]);
    let mut sums = [(zero, zero); 4];
    for first in 0..17 {
        for second in first..17 {
            let (mut xq, mut qq) = ([[zero; 2]; 2], [[zero; 2]; 2]);
            for h in 0..2 {
                let taken = x[h][first] + x[h][second];
                for down in 0..2 {
                    xq[h][down] = whole_xq[h][down] - taken;
                    qq[h][down] = low_qq[h][down][first] + mid_qq[h][down][second];
                }
            }
            let mut any = zero.lt(zero);
            for k in 0..4 {
                sums[k] = (xq[0][k / 2] + xq[1][k % 2], qq[0][k / 2] + qq[1][k % 2]);
                any = any | best.is_worse_than(simd, sums[k].0, sums[k].1);
            }
            if any.bits() != 0 {
                for k in 0..4 {
                    best.keep_if_better(simd, sums[k].0, sums[k].1, [first, second], [0b00, 0b10, 0b01, 0b11][k]);
                }
            }
        }
    }
    best
}

/// All but `d`; without `sc` where all scales are zero.
#[inline(always)]
fn pack(found: &Found, sc: Option<[u8; 16]>) -> IQ1_M {
    let mut block = IQ1_M { points: [[0; 2]; 16], qh: [0; 16], scales_and_d: [[0; 2]; 4] };
    for j in 0..16 {
        let [first, second, ..] = found.points[j];
        block.points[j] = [first as u8, second as u8];
        block.qh[j] = (first >> 8) as u8 | ((second >> 8) as u8) << 4;
    }
    let Some(sc) = sc else { return block };
    for j in 0..16 {
        block.qh[j] |= (found.down[j] & 1) << 3 | (found.down[j] & 2) << 6;
    }
    for (bytes, sc) in block.scales_and_d.iter_mut().zip(sc.as_chunks::<4>().0) {
        let bits = (0..4).fold(0, |bits, i| bits | u16::from(sc[i]) << (3 * i));
        *bytes = bits.to_le_bytes();
    }
    block
}

/// `w*q*x` and `w*q*q` of the weights of a super-block.
#[inline(always)]
fn multiply<S: Simd>(simd: S, blocks: &SubBlocks<S, 16>, found: &Found, sc: &[u8; 16], products: [&mut [f32]; 2]) {
    let multiple = (I32x16::load_u8(simd, sc).shl::<1>() + 1).to_float();
    let down = I32x16::load_u8(simd, &found.down);
    let zero = F32x16::splat(simd, 0.0);
    let mut lanes = [[zero; 16]; 2];
    for k in 0..2 {
        let mut codes = [0; 32];
        for lane in 0..16 {
            codes[2 * lane..][..2].copy_from_slice(&grids::IQ1_S[usize::from(found.points[lane][k])].to_le_bytes());
        }
        let levels = I32x16::load_u16(simd, &codes);
        let mut values = Values::new(simd, levels, down.has(1 << k));
        for i in 8 * k..8 * k + 8 {
            let q = values.next() * multiple;
            let wq = blocks.w[i] * q;
            lanes[0][i] = wq * blocks.x[i];
            lanes[1][i] = wq * q;
        }
    }
    for (lanes, products) in lanes.into_iter().zip(products) {
        for (row, to) in F32x16::transpose(lanes).into_iter().zip(products.as_chunks_mut::<16>().0) {
            row.store(to);
        }
    }
}
