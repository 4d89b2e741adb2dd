//! The angles of rotary positions, as the GPU wants them.

use zerocopy::IntoBytes;

use super::{Cuda, Rows};
use crate::cuda::kernels::Memory;
use crate::error::Result;
use crate::model::Backend;

impl Cuda {
    /// Cosine and sine of each pair side by side, from a table that has all cosines of a position first. Made once for each table.
    pub(super) fn angles(&self, table: &Rows) -> Result<Memory> {
        if let Some(block) = table.angles.get() {
            return Ok(block.memory());
        }
        let values = self.download(table)?;
        let n_pairs = table.n_cols / 2;
        let pairs = values.chunks_exact(2 * n_pairs.max(1)).flat_map(|row| {
            let (cosines, sines) = row.split_at(n_pairs);
            cosines.iter().zip(sines).flat_map(|(cosine, sine)| [*cosine, *sine])
        });
        let block = self.sent(pairs.collect::<Vec<f32>>().as_bytes(), "angles")?;
        Ok(table.angles.get_or_init(|| block).memory())
    }
}
