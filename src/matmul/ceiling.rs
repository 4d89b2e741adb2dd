//! What this machine could do at best: fused multiply-adds in registers, and reading memory. Speeds of products are told beside these.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::{Engine, LANES, amx};
use crate::simd::{F32x16, Simd, Task};

/// Runs of a measurement at least: the best counts, because everything else on the machine can only slow it down.
const RUNS: usize = 5;

/// How long runs are repeated: threads that have just woken may share a core until the system has spread them, which halves a pool's rate.
const SETTLING: Duration = Duration::from_millis(250);

/// Floating-point operations per second of the calling thread: two for each multiply-add of each lane; with AMX, for each of the three
/// that a product of its halves takes together.
pub fn flops(engine: Engine) -> f64 {
    best(|| run(engine))
}

fn run(engine: Engine) -> f64 {
    match engine.amx {
        Some(unit) => amx::operations(unit, SQUARES),
        None => engine.run(Fma { steps: FMA_STEPS }),
    }
}

/// [`flops`] of all threads of the current rayon pool together, at the same time.
pub fn flops_of_pool(engine: Engine) -> f64 {
    let n_workers = rayon::current_num_threads() as f64;
    n_workers * best(|| rayon::broadcast(|_| run(engine)).into_iter().fold(0.0, |sum, n| sum + n) / n_workers)
}

/// Bytes per second that all threads of the current rayon pool read together from `n_bytes` of memory. For the speed of memory and not
/// of a cache, that is several times the largest cache: 256 MiB is for most machines.
pub fn bytes_read(engine: Engine, n_bytes: usize) -> f64 {
    let data = vec![1.0f32; n_bytes / 4];
    let piece = data.len().div_ceil(rayon::current_num_threads()).next_multiple_of(4 * LANES).max(1);
    best(|| {
        let sum: f32 = data.par_chunks(piece).map(|data| engine.run(Sum { data })).sum();
        black_box(sum);
        4.0 * data.len() as f64
    })
}

/// The best rate of many runs, each of which says how much it did.
fn best(mut run: impl FnMut() -> f64) -> f64 {
    let begin = Instant::now();
    let (mut best, mut n_runs) = (0.0f64, 0);
    while n_runs < RUNS || begin.elapsed() < SETTLING {
        let start = Instant::now();
        let done = run();
        best = best.max(done / start.elapsed().as_secs_f64().max(1e-9));
        n_runs += 1;
    }
    best
}

/// About a millisecond at a vector level.
const FMA_STEPS: usize = 1 << 17;

/// The same of AMX.
const SQUARES: usize = 1 << 10;

/// Multiply-adds that wait for nothing but registers; says how many operations they were.
struct Fma {
    steps: usize,
}

impl Task for Fma {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        if S::REGISTERS >= 32 { fma::<S, 16>(simd, self.steps) } else { fma::<S, 6>(simd, self.steps) }
    }
}

/// `N` chains side by side hide what one of them waits.
#[inline(always)]
fn fma<S: Simd, const N: usize>(simd: S, steps: usize) -> f64 {
    let (x, w) = (F32x16::splat(simd, black_box(0.5)), F32x16::splat(simd, black_box(1.0)));
    let mut sums = [x; N];
    // The scalar level has sixteen times as much to do in a step, and a call for each where the CPU is not known to have the instruction.
    let steps = if S::REGISTERS < 8 { steps / 64 } else { steps };
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = sum.fma(x, w);
        }
    }
    for sum in sums {
        black_box(sum.to_array());
    }
    (2 * LANES * N * steps) as f64
}

/// Adds up what it reads.
struct Sum<'a> {
    data: &'a [f32],
}

impl Task for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut sums = [F32x16::splat(simd, 0.0); 4];
        for vectors in self.data.as_chunks::<LANES>().0.as_chunks::<4>().0 {
            for i in 0..4 {
                sums[i] = sums[i] + F32x16::load(simd, &vectors[i]);
            }
        }
        (sums[0] + sums[1] + sums[2] + sums[3]).reduce_max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No machine that runs these tests is slower, none faster. They are not compared with each other: others may be busy meanwhile.
    #[test]
    fn rates_are_those_of_a_computer() {
        for engine in Engine::available() {
            let one = flops(engine);
            assert!((1e6..1e12).contains(&one), "{}: {one:e} operations per second", engine.name());
            let all = flops_of_pool(engine);
            assert!((1e6..1e15).contains(&all), "{}: {all:e} of all threads", engine.name());
            let read = bytes_read(engine, 8 << 20);
            assert!((1e7..1e13).contains(&read), "{}: {read:e} bytes per second", engine.name());
        }
    }
}
