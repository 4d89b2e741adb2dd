//! AMX (Xeons since Sapphire Rapids): tiles of bf16, both operands split in two so that 16 bits of each count.
//!
//! ```text
//! x = hi + lo, both bf16, to 2^-16                 tile of x: 16 rows of 32 k         tile of w: 16 pairs of k, 16 columns
//! x w = hi hi + lo hi + hi lo                      | k0 k1 k2 ... k31 |               | k0,k1 of column 0 | of column 1 | ... |
//! ```
//!
//! What is left out, `lo lo`, and what `lo` rounds off are below `2^-16` of `x w` each, so a product errs by less than `3 * 2^-16` of
//! the magnitudes in its sum: [`ERROR`]. Sums are f32, by chunks as elsewhere, so the bits do not depend on threads or number of
//! tokens; but they are not those of the other engines, and what is subnormal counts as 0.
//!
//! The instructions are written as assembly, because the compiler has no stable names for them. A tile in Rust is their emulation in
//! the tests, which run everything here but the instructions themselves on any machine; where the CPU has them, its tiles are compared
//! with the emulation before they are used.

use super::panel::{Panel, pack_lanes};
use super::quad::{EMPTY, Quad, SIDE, STEP, split};
use super::tile::{Strip, put};
use super::{Accumulate, CHUNK, LANES};
use crate::simd::{F32x16, Simd, Sixteen, Task};

/// Error of a product in units of the magnitudes in its sum.
#[cfg(test)]
pub(super) const ERROR: f64 = 3.0 / 65536.0;

/// The product of two [`SIDE`]s.
type Square = [[f32; SIDE]; SIDE];

/// What multiplies tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// The CPU.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Cpu(cpu::Amx),
    /// Plain Rust.
    #[cfg(test)]
    Emulated,
}

impl Unit {
    /// The CPU's, where it has one that this process may use and that multiplies right.
    pub fn detect() -> Option<Unit> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        return cpu::Amx::detect().map(Unit::Cpu);
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        None
    }

    /// `out = x wᵀ` over all steps.
    #[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), allow(unused_variables))] // there is no unit then
    fn multiply(self, x: &[Quad], w: &[Quad], out: &mut Square) {
        assert_eq!(x.len(), w.len());
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Unit::Cpu(amx) => amx.multiply(x, w, out),
            #[cfg(test)]
            Unit::Emulated => emulate(x, w, out),
        }
    }
}

/// Multiplies a chunk that the first-level cache holds `n` times; says how many operations on floats these are.
pub(super) fn operations(unit: Unit, n: usize) -> f64 {
    const N_STEPS: usize = CHUNK / STEP / 2; // 32 KiB of both sides
    let (x, w, mut out) = ([EMPTY; N_STEPS], [EMPTY; N_STEPS], [[0.0; SIDE]; SIDE]);
    for _ in 0..n {
        unit.multiply(std::hint::black_box(&x), &w, &mut out);
        std::hint::black_box(&mut out);
    }
    (2 * SIDE * SIDE * STEP * N_STEPS * n) as f64
}

/// The strip of a product, with the unit's tiles.
pub(super) struct TileStrip<'a, 'o> {
    pub unit: Unit,
    pub strip: Strip<'a, 'o>,
}

impl Task for TileStrip<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let TileStrip { unit, strip } = self;
        let Strip { level, x, w, first, out, accumulate, scratch } = strip;
        if x.n_cols() == 0 && accumulate == Accumulate::Store {
            out.iter_mut().for_each(|row| row.fill(0.0));
        }
        let n_columns = out[0].len();
        let mut square = [[0.0; SIDE]; SIDE];
        for k in (0..x.n_cols()).step_by(CHUNK) {
            let k = k..x.n_cols().min(k + CHUNK);
            let n_steps = k.len().div_ceil(STEP);
            let add = k.start > 0 || accumulate == Accumulate::Add;
            scratch.quads.clear();
            scratch.quads.resize(n_columns.div_ceil(SIDE) * n_steps, EMPTY);
            for at in (0..n_columns).step_by(LANES) {
                let quads = &mut scratch.quads[at / SIDE * n_steps..][..n_steps];
                scratch.panels.resize(scratch.panels.len().max(CHUNK), Sixteen::ZERO);
                let panel = Panel { vectors: &mut scratch.panels[..k.len()], width: 1, at: 0 };
                pack_lanes(simd, level, w, first + at, k.clone(), &mut scratch.runs, panel);
                pack_columns(simd, &scratch.panels[..k.len()], at % SIDE / LANES, quads);
            }
            for (group, rows) in out.chunks_mut(SIDE).enumerate() {
                let x = x.quads(k.start, n_steps, group);
                for at in (0..n_columns).step_by(SIDE) {
                    unit.multiply(x, &scratch.quads[at / SIDE * n_steps..][..n_steps], &mut square);
                    for (row, sums) in rows.iter_mut().zip(&square) {
                        let row = &mut row[at..];
                        let (left, right) = row.split_at_mut(LANES.min(row.len()));
                        put(simd, F32x16::load(simd, &sums.as_chunks().0[0]), left, add);
                        put(simd, F32x16::load(simd, &sums.as_chunks().0[1]), right, add);
                    }
                }
            }
        }
    }
}

/// Sixteen columns, `vectors` of one `k` each, as tile `tile` of every step.
#[inline(always)]
fn pack_columns<S: Simd>(simd: S, vectors: &[Sixteen], tile: usize, quads: &mut [Quad]) {
    let zero = F32x16::splat(simd, 0.0);
    for (vectors, quad) in vectors.chunks(STEP).zip(quads) {
        for (pair, vectors) in vectors.chunks(2).enumerate() {
            let even = split(vectors[0].load(simd));
            let odd = split(if vectors.len() == 2 { vectors[1].load(simd) } else { zero });
            for half in 0..2 {
                (even[half].shr::<16>() | odd[half]).to_float_bits().store(&mut quad[2 * half + tile].0[pair]);
            }
        }
    }
}

/// What the instructions do, one multiply-add after the other. Theirs add two products at a time.
#[cfg_attr(not(any(test, all(target_arch = "x86_64", target_os = "linux"))), allow(dead_code))]
fn emulate(x: &[Quad], w: &[Quad], out: &mut Square) {
    *out = [[0.0; SIDE]; SIDE];
    for (x, w) in x.iter().zip(w) {
        for (x, w) in [(&x[..2], &w[..2]), (&x[2..], &w[..2]), (&x[..2], &w[2..])] {
            for row in 0..SIDE {
                for column in 0..SIDE {
                    let (x, w) = (&x[row / LANES].0[row % LANES], &w[column / LANES].0);
                    for (pair, w) in w.iter().enumerate() {
                        let ([x0, x1], [w0, w1]) = (halves(x[pair]), halves(w[column % LANES]));
                        out[row][column] = x1.mul_add(w1, x0.mul_add(w0, out[row][column]));
                    }
                }
            }
        }
    }
}

/// The two bf16 of 32 bits.
fn halves(bits: f32) -> [f32; 2] {
    [f32::from_bits(bits.to_bits() << 16), f32::from_bits(bits.to_bits() & 0xffff_0000)]
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod cpu {
    //! The instructions.

    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    use std::sync::OnceLock;

    use super::{EMPTY, Quad, SIDE, Square, emulate};

    /// The token of AMX: it exists only where the CPU has it, the system grants it, and it multiplied right.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(in crate::matmul) struct Amx(());

    /// Eight tiles of 16 rows of 64 bytes: the operand of `ldtilecfg`.
    #[repr(C, align(64))]
    struct Shapes {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    static SHAPES: Shapes = {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < 8 {
            (row_bytes[tile], rows[tile]) = (64, 16);
            tile += 1;
        }
        Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    };

    impl Amx {
        pub fn detect() -> Option<Amx> {
            static FOUND: OnceLock<Option<Amx>> = OnceLock::new();
            *FOUND.get_or_init(|| (cpu_has_it() && system_grants_it()).then_some(Amx(())).filter(|amx| amx.is_right()))
        }

        pub(super) fn multiply(self, x: &[Quad], w: &[Quad], out: &mut Square) {
            assert_eq!(x.len(), w.len());
            // SAFETY: an `Amx` exists only where the CPU has the instructions and the system saves their registers. They read as many
            // quads of 4 KiB as both slices have, and write the four quarters of `out`, 16 rows of 64 bytes by 128. The registers are
            // set up and given back here; the compiler uses none of them.
            unsafe {
                asm!(
                    "ldtilecfg [{shapes}]",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "test {n}, {n}",
                    "jz 3f",
                    "2:",
                    // hi hi
                    "tileloadd tmm4, [{x} + {line}*1]",
                    "tileloadd tmm5, [{x} + {line}*1 + 1024]",
                    "tileloadd tmm6, [{w} + {line}*1]",
                    "tileloadd tmm7, [{w} + {line}*1 + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    // lo hi
                    "tileloadd tmm4, [{x} + {line}*1 + 2048]",
                    "tileloadd tmm5, [{x} + {line}*1 + 3072]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    // hi lo
                    "tileloadd tmm4, [{x} + {line}*1]",
                    "tileloadd tmm5, [{x} + {line}*1 + 1024]",
                    "tileloadd tmm6, [{w} + {line}*1 + 2048]",
                    "tileloadd tmm7, [{w} + {line}*1 + 3072]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {x}, 4096",
                    "add {w}, 4096",
                    "dec {n}",
                    "jnz 2b",
                    "3:",
                    "tilestored [{out} + {row}*1], tmm0",
                    "tilestored [{out} + {row}*1 + 64], tmm1",
                    "tilestored [{out} + {row}*1 + 2048], tmm2",
                    "tilestored [{out} + {row}*1 + 2112], tmm3",
                    "tilerelease",
                    shapes = in(reg) &raw const SHAPES,
                    x = inout(reg) x.as_ptr() => _,
                    w = inout(reg) w.as_ptr() => _,
                    n = inout(reg) x.len() => _,
                    out = in(reg) out.as_mut_ptr(),
                    line = in(reg) 64usize,
                    row = in(reg) 4 * SIDE,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }

        /// One product of small integers, which no order of sums rounds.
        fn is_right(self) -> bool {
            let (mut x, mut w) = ([EMPTY; 2], [EMPTY; 2]);
            for (at, tile) in x.iter_mut().chain(&mut w).flatten().enumerate() {
                for (i, bits) in tile.0.as_flattened_mut().iter_mut().enumerate() {
                    let integer = |n: usize| (n * (at + 3) % 11) as f32 - 5.0;
                    *bits = f32::from_bits(integer(i).to_bits() >> 16 | integer(i + 7).to_bits());
                }
            }
            let (mut got, mut expected) = ([[0.0; SIDE]; SIDE], [[1.0; SIDE]; SIDE]);
            self.multiply(&x, &w, &mut got);
            emulate(&x, &w, &mut expected);
            got == expected
        }
    }

    /// The CPU has tiles and products of bf16, and the system saves tiles when it changes threads.
    fn cpu_has_it() -> bool {
        const OSXSAVE: u32 = 1 << 27;
        const BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
        const TILE_STATE: u64 = 1 << 17 | 1 << 18;
        if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 || __cpuid_count(7, 0).edx & BF16_AND_TILE != BF16_AND_TILE {
            return false;
        }
        // SAFETY: OSXSAVE says that the instruction may be used.
        let state = unsafe { _xgetbv(0) };
        state & TILE_STATE == TILE_STATE
    }

    /// Linux gives the large registers only to processes that ask for them, for all of their threads.
    fn system_grants_it() -> bool {
        const ARCH_PRCTL: usize = 158;
        const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
        const XTILEDATA: usize = 18;
        let result: isize;
        // SAFETY: this call reads and writes no memory of ours, and fails where it is not known.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XTILEDATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result == 0
    }
}
