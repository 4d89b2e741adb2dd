//! Worker threads: pools of a fixed size. Knows nothing of what they do.

use std::io;

use rayon::{ThreadPool, ThreadPoolBuilder};
use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Result};

/// A pool of `n_threads` workers, or of as many as there is address space for.
///
/// # Errors
/// `Io` where the system grants fewer.
pub(crate) fn pool(n_threads: usize) -> Result<ThreadPool> {
    let n_threads = n_threads.min(stacks_max()).max(1);
    let pool = ThreadPoolBuilder::new().num_threads(n_threads).thread_name(|n| format!("ggforge-{n}")).build();
    pool.map_err(|e| Error::io("worker thread", "start", io::Error::other(e.to_string())))
}

/// As many stacks as fit into a quarter of the address space allowed: a thread that starts where nothing is left aborts the process.
pub(crate) fn stacks_max() -> usize {
    const STACK_BYTES: u64 = 2 << 20;
    let allowed_bytes = getrlimit(Resource::As).current.unwrap_or(u64::MAX);
    usize::try_from(allowed_bytes / 4 / STACK_BYTES).unwrap_or(usize::MAX)
}
