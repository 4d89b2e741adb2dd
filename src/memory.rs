//! Memory whose size a file or an argument decides: where there is none it is an error, not an abort. Knows nothing of what it is for.

use std::hint::black_box;

use crate::error::{Error, Result};

/// `len` zeros. The system hands out such pages when they are first touched, so that of the keys and values for a context of a million
/// tokens only those take memory that are ever computed.
///
/// # Errors
/// `Io` where there is no memory.
pub(crate) fn zeros(len: usize) -> Result<Vec<f32>> {
    // `vec!` aborts where there is no memory. Kept from the optimizer, which would leave out an allocation that nobody uses.
    let mut room = Vec::<f32>::new();
    reserve(&mut room, len)?;
    drop(black_box(room));
    Ok(vec![0.0; len])
}

/// `n_rows` rows of `n_cols` zeros.
///
/// # Errors
/// As [`zeros`].
pub(crate) fn zero_rows(n_rows: usize, n_cols: usize) -> Result<Vec<f32>> {
    zeros(n_rows.checked_mul(n_cols).ok_or_else(out_of_memory)?)
}

/// `len` times the same.
///
/// # Errors
/// `Io` where there is no memory.
pub(crate) fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>> {
    let mut items = Vec::new();
    reserve(&mut items, len)?;
    items.resize(len, value);
    Ok(items)
}

/// A copy.
///
/// # Errors
/// `Io` where there is no memory.
pub(crate) fn copied(values: &[f32]) -> Result<Vec<f32>> {
    let mut copy = Vec::new();
    reserve(&mut copy, values.len())?;
    copy.extend_from_slice(values);
    Ok(copy)
}

/// Makes room for `len` items in all.
///
/// # Errors
/// `Io` where there is no memory.
pub(crate) fn reserve<T>(items: &mut Vec<T>, len: usize) -> Result<()> {
    items.try_reserve_exact(len.saturating_sub(items.len())).map_err(|_| out_of_memory())
}

pub(crate) fn out_of_memory() -> Error {
    Error::io("working memory", "allocate", std::io::ErrorKind::OutOfMemory.into())
}
