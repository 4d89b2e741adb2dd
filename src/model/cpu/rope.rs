//! Rotary positions, applied.

use super::Rows;
use crate::arch::describe::RopeLayout;
use crate::model::backend::Rotation;

/// Turns the pairs of every head in `row` by the angles of its position.
pub(super) fn rotate(row: &mut [f32], head_dim: usize, rotation: &Rotation<'_, Rows>, position: u32) {
    let (cosines, sines) = rotation.table.row(position as usize).split_at(rotation.n_rot / 2);
    for head in row.chunks_exact_mut(head_dim) {
        let rotated = &mut head[..rotation.n_rot];
        match rotation.layout {
            RopeLayout::Neighbours => {
                let (pairs, _) = rotated.as_chunks_mut::<2>();
                for (([a, b], cos), sin) in pairs.iter_mut().zip(cosines).zip(sines) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
            RopeLayout::Halves => {
                let (first, second) = rotated.split_at_mut(rotation.n_rot / 2);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}
