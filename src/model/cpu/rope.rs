//! Rotary positions, applied.

use crate::model::backend::RopeShape;
use crate::model::families::RopeLayout;

/// Turns the pairs of every head in `row` by the angles of one position: `angles` is `[n_rot]`, cosines first, then sines.
pub(super) fn rotate(row: &mut [f32], shape: &RopeShape, angles: &[f32]) {
    let (cosines, sines) = angles.split_at(shape.n_rot / 2);
    for head in row.chunks_exact_mut(shape.heads.head_dim) {
        let rotated = &mut head[..shape.n_rot];
        match shape.layout {
            RopeLayout::Neighbours => {
                let (pairs, _) = rotated.as_chunks_mut::<2>();
                for (([a, b], cos), sin) in pairs.iter_mut().zip(cosines).zip(sines) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
            RopeLayout::Halves => {
                let (first, second) = rotated.split_at_mut(shape.n_rot / 2);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}
