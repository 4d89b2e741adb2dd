//! Memory that is used again: a pass needs the same few sizes for every layer, and fresh pages from the system cost as much as a norm.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::matmul::{Activations, Engine, Rows};
use crate::memory::{out_of_memory, zeros};

/// Buffers that are not in use.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<f32>>>>);

/// Floats that go back to their [`Buffers`] when they are dropped.
#[derive(Debug)]
pub(super) struct Buffer {
    floats: Vec<f32>,
    home: Buffers,
}

impl Buffers {
    /// `n_rows * n_cols` floats of any value.
    ///
    /// # Errors
    /// When there is no memory left.
    pub fn take(&self, n_rows: usize, n_cols: usize) -> Result<Buffer> {
        let len = n_rows.checked_mul(n_cols).ok_or_else(out_of_memory)?;
        let floats = match self.best_fit(len) {
            Some(mut floats) => {
                // It fits.
                floats.resize(len, 0.0);
                floats
            }
            None => zeros(len)?,
        };
        Ok(Buffer { floats, home: self.clone() })
    }

    /// The smallest buffer that `len` floats fit into, unless most of it would lie idle.
    fn best_fit(&self, len: usize) -> Option<Vec<f32>> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buffer: &Vec<f32>| buffer.capacity() >= len && buffer.capacity() / 2 <= len;
        let (index, _) = idle.iter().enumerate().filter(|(_, buffer)| fits(buffer)).min_by_key(|(_, buffer)| buffer.capacity())?;
        Some(idle.swap_remove(index))
    }
}

/// Buffers that are kept for later at most; a pass has about ten at a time.
const IDLE_MAX: usize = 16;

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut idle = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() == IDLE_MAX {
            idle.remove(0);
        }
        idle.push(std::mem::take(&mut self.floats));
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.floats
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.floats
    }
}

/// Packed operands that are not in use.
#[derive(Debug, Clone, Default)]
pub(super) struct Packs(Arc<Mutex<Vec<Activations>>>);

/// A packed operand that goes back to its [`Packs`] when it is dropped.
#[derive(Debug)]
pub(super) struct Packed {
    activations: Activations,
    home: Packs,
}

impl Packs {
    /// `x`, packed on the current rayon pool.
    ///
    /// # Errors
    /// When there is no memory left.
    pub fn pack(&self, engine: Engine, x: Rows) -> Result<Packed> {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut activations = idle.unwrap_or_default();
        activations.try_reserve(engine, x).map_err(|_| out_of_memory())?;
        activations.repack(engine, x);
        Ok(Packed { activations, home: self.clone() })
    }
}

/// Packed operands that are kept for later at most; a pass has one at a time, a comparison two.
const PACKED_MAX: usize = 2;

impl Drop for Packed {
    fn drop(&mut self) {
        let mut idle = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < PACKED_MAX {
            idle.push(std::mem::take(&mut self.activations));
        }
    }
}

impl Deref for Packed {
    type Target = Activations;

    fn deref(&self) -> &Activations {
        &self.activations
    }
}
