//! The device's memory as it is taken from the driver: in one piece where it is known what will be needed, else piece by piece as it is
//! asked for, and never more than the limit.

use cudarc::driver::{DriverError, result};

use super::ranges::{ALIGNMENT, Ranges, padded};

/// What is taken at once where nobody has said how much will be needed; more where a lot is in use already.
const PIECE_BYTES: u64 = 256 << 20;

/// Memory from the driver, and which of it is free. Places are those of [`Ranges`], addresses the device's.
pub(super) struct Arenas<E> {
    pub ranges: Ranges<E>,
    /// Each with the place where it begins, in order.
    pieces: Vec<(u64, u64)>,
    limit_bytes: u64,
    is_reserved: bool,
}

impl<E: Clone> Arenas<E> {
    /// No memory yet.
    pub(super) fn new(limit_bytes: u64) -> Arenas<E> {
        let limit_bytes = limit_bytes / ALIGNMENT * ALIGNMENT;
        Arenas { ranges: Ranges::new(), pieces: Vec::new(), limit_bytes, is_reserved: false }
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// The address of a place that was given out.
    pub(super) fn address(&self, at: u64) -> u64 {
        let piece = self.pieces.partition_point(|(begin, _)| *begin <= at) - 1;
        let (begin, address) = self.pieces[piece];
        address + (at - begin)
    }

    /// The longest piece that can be had: of what has been reserved where that is so.
    pub(super) fn longest(&self) -> u64 {
        let longest = self.ranges.longest();
        if self.is_reserved { longest } else { longest.max(self.limit_bytes - self.ranges.len()) }
    }

    /// Takes `len_bytes` at once, or, where memory is in pieces, what can be had of them down to `len_bytes_min`. The context is the
    /// calling thread's.
    pub(super) fn reserve(&mut self, len_bytes: u64, len_bytes_min: u64) -> Result<(), DriverError> {
        let missing = |len: u64| padded(len).unwrap_or(u64::MAX).min(self.limit_bytes).saturating_sub(self.ranges.len());
        let (mut len, len_min) = (missing(len_bytes), missing(len_bytes_min));
        self.is_reserved = true;
        while len > 0 {
            match self.add(len) {
                Err(_) if len > len_min => len = (len - len / 8).max(len_min) / ALIGNMENT * ALIGNMENT,
                done => return done,
            }
        }
        Ok(())
    }

    /// Makes room for `len` bytes in one piece; tells whether the limit allows that. The context is the calling thread's.
    pub(super) fn grow(&mut self, len: u64) -> Result<bool, DriverError> {
        let rest = self.limit_bytes - self.ranges.len();
        if len > rest {
            return Ok(false);
        }
        let usual = len.max(PIECE_BYTES).max(self.ranges.len() / 4 / ALIGNMENT * ALIGNMENT).min(rest);
        // No remainder that is too short for anything.
        let usual = if rest - usual < PIECE_BYTES { rest } else { usual };
        match self.add(usual) {
            Err(_) if usual > len => self.add(len)?,
            done => done?,
        }
        Ok(true)
    }

    fn add(&mut self, len: u64) -> Result<(), DriverError> {
        // SAFETY: plain memory, freed in `free` and nowhere else.
        let address = unsafe { result::malloc_sync(len as usize) }?;
        self.pieces.push((self.ranges.grow(len), address));
        Ok(())
    }

    /// Gives all memory back to the driver.
    ///
    /// # Safety
    /// Nothing uses it any more.
    pub(super) unsafe fn free(&mut self) {
        for (_, address) in self.pieces.drain(..) {
            // A failure has nobody left to act on it, and the process's end frees everything anyway.
            // SAFETY: from `malloc_sync`, and the caller's promise.
            let _ = unsafe { result::free_sync(address) };
        }
    }
}
