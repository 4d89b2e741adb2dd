//! Pseudo-random weights from a formula, so that fixtures need hold only outputs.

/// A stream of pseudo-random numbers that is the same everywhere (SplitMix64), so that fixtures need hold only outputs.
pub struct Paint(u64);

impl Paint {
    pub fn new(seed: u64) -> Paint {
        Paint(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between 0 and 1, neither included.
    pub fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Bell-shaped, variance 1/3, range +-2; from integers alone, so that any language computes the same bits.
    pub fn bell(&mut self) -> f32 {
        let bits = self.next();
        let sum: i64 = (0..4).map(|i| (bits >> (16 * i) & 0xffff) as i64).sum();
        (sum - 2 * 0xffff) as f32 / 65536.0
    }

    pub fn gaussian(&mut self) -> f32 {
        let (u, v) = (self.uniform(), self.uniform());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }

    /// Student's t with 4 degrees of freedom: the tails of real weights, and heavier.
    pub fn student_t4(&mut self) -> f32 {
        let z = f64::from(self.gaussian());
        let chi2 = -2.0 * (self.uniform() * self.uniform()).ln();
        (z / (chi2 / 4.0).sqrt()) as f32
    }

    pub fn weights(&mut self, n: usize, mut draw: impl FnMut(&mut Paint) -> f32) -> Vec<f32> {
        (0..n).map(|_| draw(self)).collect()
    }
}
