//! The way into device memory: pieces of page-locked memory, taken in turn, so that the next one is filled while the last is copied.

use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, PinnedHostSlice, result};
use rayon::prelude::*;

use super::kernels::Memory;

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
    pub(super) fn new(context: &Arc<CudaContext>, piece_bytes: usize, n_pieces: usize) -> Result<Staging, DriverError> {
        let piece = |_| {
            // SAFETY: what is read from it has been written to it before.
            // Flags 0: the default of cudarc is write-combined memory, which the host reads a hundred times slower.
            let bytes = unsafe { context.alloc_pinned_with_flags(piece_bytes, 0) }?;
            Ok(Piece { bytes, copied: context.new_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC))? })
        };
        let pieces = (0..n_pieces).map(piece).collect::<Result<_, DriverError>>()?;
        Ok(Staging { context: context.clone(), pieces, next: 0 })
    }

    /// Copies `bytes` to the begin of `to`, in order with the other work of the stream. The bytes are the caller's again at once.
    pub(super) fn send(&mut self, stream: &CudaStream, to: Memory, bytes: &[u8]) -> Result<(), DriverError> {
        assert!(bytes.len() as u64 <= to.len_bytes, "room for what is sent");
        self.context.bind_to_thread()?;
        let mut at = to.at;
        let piece_bytes = self.pieces[0].bytes.len();
        for part in bytes.chunks(piece_bytes) {
            let n_pieces = self.pieces.len();
            let piece = &mut self.pieces[self.next];
            self.next = (self.next + 1) % n_pieces;
            piece.copied.synchronize()?;
            let staged = &mut piece.bytes.as_mut_slice()?[..part.len()];
            let shares = staged.par_chunks_mut(BYTES_PER_THREAD).zip(part.par_chunks(BYTES_PER_THREAD));
            shares.for_each(|(to, from)| to.copy_from_slice(from));
            // SAFETY: the range lies in one block; the piece is not written again before `copied` has happened.
            unsafe { result::memcpy_htod_async(at, staged, stream.cu_stream()) }?;
            piece.copied.record(stream)?;
            at += part.len() as u64;
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
