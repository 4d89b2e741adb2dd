//! The way into device memory: pieces of page-locked memory, taken in turn, so that the next one is filled while the last is copied. Who
//! sends may fill them itself, by several threads: a weight is read from its file to where the copy engine takes it.

use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, PinnedHostSlice, result};
use rayon::prelude::*;

use super::kernels::Memory;
use super::probe::lost;
use crate::error::Result;

/// Page-locked pieces.
pub(super) struct Staging {
    context: Arc<CudaContext>,
    pieces: Vec<Piece>,
    next: usize,
}

struct Piece {
    bytes: PinnedHostSlice<u8>,
    /// The last copy from it is done.
    copied: CudaEvent,
}

/// Bytes that one thread moves: one core alone does not keep up with the bus.
const BYTES_PER_THREAD: usize = 1 << 20;

impl Staging {
    pub(super) fn new(
        context: &Arc<CudaContext>,
        piece_bytes: usize,
        n_pieces: usize,
    ) -> std::result::Result<Staging, DriverError> {
        let piece = |_| {
            // SAFETY: what is read from it has been written to it before.
            // Flags 0: the default of cudarc is write-combined memory, which the host reads a hundred times slower.
            let bytes = unsafe { context.alloc_pinned_with_flags(piece_bytes, 0) }?;
            Ok(Piece { bytes, copied: context.new_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC))? })
        };
        let pieces = (0..n_pieces).map(piece).collect::<std::result::Result<_, DriverError>>()?;
        Ok(Staging { context: context.clone(), pieces, next: 0 })
    }

    /// Copies `bytes` to the begin of `to`, in order with the other work of the stream. The bytes are the caller's again at once.
    pub(super) fn send(&mut self, stream: &CudaStream, to: Memory, bytes: &[u8]) -> Result<()> {
        self.send_made(stream, to, bytes.len(), 1, |part, at| {
            part.copy_from_slice(&bytes[at..][..part.len()]);
            Ok(())
        })
    }

    /// The same for `len_bytes` that `make` writes straight into page-locked memory. It gets parts of whole units of `unit_bytes`, of which
    /// the last may be shorter, and where they begin; several threads call it.
    pub(super) fn send_made(
        &mut self,
        stream: &CudaStream,
        to: Memory,
        len_bytes: usize,
        unit_bytes: usize,
        make: impl Fn(&mut [u8], usize) -> Result<()> + Sync,
    ) -> Result<()> {
        assert!(len_bytes as u64 <= to.len_bytes, "room for what is sent");
        self.context.bind_to_thread().map_err(lost)?;
        let piece_bytes = self.pieces[0].bytes.len();
        let share = piece_bytes.min(BYTES_PER_THREAD) / unit_bytes * unit_bytes;
        assert!(share > 0, "a unit of {unit_bytes} bytes");
        let piece_bytes = piece_bytes / share * share;
        for at in (0..len_bytes).step_by(piece_bytes) {
            let n_pieces = self.pieces.len();
            let piece = &mut self.pieces[self.next];
            self.next = (self.next + 1) % n_pieces;
            piece.copied.synchronize().map_err(lost)?;
            let staged = &mut piece.bytes.as_mut_slice().map_err(lost)?[..piece_bytes.min(len_bytes - at)];
            if staged.len() <= share {
                make(staged, at)?;
            } else {
                let shares = staged.par_chunks_mut(share).enumerate();
                shares.try_for_each(|(index, part)| make(part, at + index * share))?;
            }
            // SAFETY: the range lies in one block; the piece is not written again before `copied` has happened.
            unsafe { result::memcpy_htod_async(to.at + at as u64, staged, stream.cu_stream()) }.map_err(lost)?;
            piece.copied.record(stream).map_err(lost)?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The memory must outlive the copies from it.
        for piece in &self.pieces {
            let _ = piece.copied.synchronize();
        }
    }
}
