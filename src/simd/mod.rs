//! Which vector instructions this machine has, and sixteen lanes of arithmetic that mean the same with all of them.
//!
//! Knows nothing of formats. Code that should be fast is a `Task`: one safe generic body over `Simd`, compiled once for every
//! [`Level`]. A value of type `F32x16` is sixteen `f32` whatever the machine: one 512-bit register, two of 256 bits, four of
//! 128 bits, or an array. Every operation rounds as IEEE 754 says, lane by lane, and nothing is reordered, or fused but by `fma`, so
//! a body gives the same bits at every level.
//!
//! How `unsafe` stays in this folder: the token types (`Avx2`, `Avx512`, `Neon`) are made only by
//! detection, every lane operation takes the token, and so the token is the proof that the instruction exists.
//!
//! What a body must observe: every function between `Task::run` and the lane operations is `#[inline(always)]` and calls no closure
//! that holds lanes. Otherwise it is compiled without the level's instructions: still right, but many times slower.

mod lanes;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;

pub(crate) use lanes::{F32x16, I32x16, Mask, Simd, Sixteen};
use scalar::Scalar;

use crate::error::{Error, Result};

/// A CPU level that detection found. Opaque: holding one above scalar is the proof that its instructions exist here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon(neon::Neon),
}

impl Level {
    /// The best level of this machine, capped by the environment variable `GGFORGE_SIMD` (`scalar`, `avx2`, `avx512`, `amx`, `neon`): no
    /// level above the named one is used. A name that is no level caps nothing: see [`Level::check_cap`].
    pub fn detect() -> Level {
        let levels = Level::available();
        let best = levels[levels.len() - 1];
        match cap() {
            Some(cap) => levels.into_iter().rfind(|level| level.rank() <= cap).unwrap_or(Level(Kind::Scalar(Scalar))),
            None => best,
        }
    }

    /// Refuses a cap that is the name of no level: whoever set it believes that it caps.
    ///
    /// # Errors
    /// `Usage`, with the names.
    pub fn check_cap() -> Result<()> {
        let Some(value) = std::env::var_os(CAP).filter(|value| !value.is_empty()) else { return Ok(()) };
        let value = value.to_string_lossy();
        match ORDER.iter().any(|name| value.eq_ignore_ascii_case(name)) {
            true => Ok(()),
            false => Err(Error::usage(format!("{CAP} is {value:?}; one of {} is needed", ORDER.join(", ")))),
        }
    }

    /// False when the cap stands below `name`.
    #[cfg_attr(not(feature = "eval"), allow(dead_code))]
    pub(crate) fn cap_allows(name: &str) -> bool {
        cap().is_none_or(|cap| ORDER.iter().position(|&known| known == name).is_some_and(|at| at <= cap))
    }

    /// Every level that this machine has, scalar first, whatever the cap says.
    pub fn available() -> Vec<Level> {
        let mut levels = vec![Level(Kind::Scalar(Scalar))];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(avx2::Avx2::detect().map(|token| Level(Kind::Avx2(token))));
            levels.extend(avx512::Avx512::detect().map(|token| Level(Kind::Avx512(token))));
        }
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        levels.extend(neon::Neon::detect().map(|token| Level(Kind::Neon(token))));
        levels
    }

    /// `scalar`, `avx2`, `avx512` or `neon`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Kind::Neon(_) => "neon",
        }
    }

    fn rank(self) -> usize {
        ORDER.iter().position(|&name| name == self.name()).unwrap_or(0)
    }

    /// Runs the task with this level's instructions.
    pub(crate) fn run<T: Task>(self, task: T) -> T::Output {
        match self.0 {
            Kind::Scalar(simd) => task.run(simd),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(simd) => avx2::run(simd, task),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(simd) => avx512::run(simd, task),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Kind::Neon(simd) => neon::run(simd, task),
        }
    }
}

/// The environment variable that caps levels.
const CAP: &str = "GGFORGE_SIMD";

/// Where in [`ORDER`] the cap stands, if there is one.
fn cap() -> Option<usize> {
    let cap = std::env::var(CAP).ok()?;
    ORDER.iter().position(|name| cap.eq_ignore_ascii_case(name))
}

/// The names that a cap can have, slowest first; what has AMX is no level, but is capped like one. A level of another architecture caps to scalar or to nothing, by its place.
const ORDER: &[&str] = &["scalar", "neon", "avx2", "avx512", "amx"];

/// A computation written once for all levels. Its `run` is `#[inline(always)]`, see the module.
pub(crate) trait Task {
    /// What it computes.
    type Output;
    /// The body.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

#[cfg(test)]
mod tests;
