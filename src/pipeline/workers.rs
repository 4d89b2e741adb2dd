//! Threads that take pieces from one queue until it is empty.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::ThreadPool;

use crate::error::{Error, Result};
use crate::memory::out_of_memory;
use crate::threads;

use super::piece::{Bench, Buffers};
use super::work::Piece;

/// Carries out every piece, calling `advanced` with the bytes of source used up so far.
///
/// The pieces are taken in order whatever the number of threads, and a worker finishes what it has taken, so the fault that is
/// reported is always the first of the queue.
///
/// # Errors
/// The first fault; `Interrupted` when `stop` was set; `Internal` when a worker panicked.
pub(super) fn run(
    bench: &Bench,
    pieces: &[Piece],
    threads: usize,
    stop: &AtomicBool,
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<()> {
    let (pool, buffers) = staff(bench, pieces, threads)?;
    let next = AtomicUsize::new(0);
    let done_bytes = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let first_fault: Mutex<Option<(usize, Error)>> = Mutex::new(None);

    let work = |worker: usize| {
        let mut buffers = buffers[worker].lock().unwrap_or_else(PoisonError::into_inner);
        while !stop.load(Ordering::Relaxed) && !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(&piece) = pieces.get(index) else { break };
            match bench.convert(piece, &mut buffers) {
                Ok(bytes) => advanced(done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes),
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    let mut first = first_fault.lock().unwrap_or_else(PoisonError::into_inner);
                    if first.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
                        *first = Some((index, error));
                    }
                }
            }
        }
    };
    // The panic of one worker lets the others finish their piece, then arrives here.
    let panicked = catch_unwind(AssertUnwindSafe(|| match &pool {
        None => work(0),
        Some(pool) => drop(pool.broadcast(|context| {
            let guard = StopOnPanic(&failed);
            work(context.index());
            std::mem::forget(guard);
        })),
    }));
    if let Err(payload) = panicked {
        return Err(Error::Internal(format!("a worker panicked: {}", message(payload.as_ref()))));
    }
    match first_fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None if stop.load(Ordering::Relaxed) => Err(Error::Interrupted),
        None => Ok(()),
    }
}

/// Tells the other workers to stop when the one that holds it unwinds.
struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Up to `n_threads` workers with their buffers; fewer where the system grants fewer, since the result is the same. No pool for a single
/// one: that is the calling thread, which is there even where the system grants none.
fn staff(bench: &Bench, pieces: &[Piece], n_threads: usize) -> Result<(Option<ThreadPool>, Vec<Mutex<Buffers>>)> {
    let mut workers = n_threads.min(pieces.len()).min(threads::stacks_max()).max(1);
    let mut memory_is_short = false;
    loop {
        let allocated = (0..workers).map_while(|_| Buffers::for_largest(pieces, bench.jobs));
        let mut buffers: Vec<_> = allocated.map(Mutex::new).collect();
        if buffers.is_empty() {
            return Err(out_of_memory());
        }
        if buffers.len() < workers {
            // Memory is short, and the stacks need some too.
            workers = buffers.len().div_ceil(2);
            buffers.truncate(workers);
        }
        if workers == 1 {
            return Ok((None, buffers));
        }
        match threads::workers(workers) {
            // What only just fits leaves nothing for anything else.
            Ok(_) if memory_is_short => memory_is_short = false,
            Ok(pool) => return Ok((Some(pool), buffers)),
            Err(_) => memory_is_short = true,
        }
        workers /= 2;
    }
}

fn message(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
