//! Worker threads: pools of a fixed size. Knows nothing of what they do.

use std::io;

use rayon::{ThreadPool, ThreadPoolBuilder};
use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Result};

/// Workers, or where the system grants no thread (`ulimit -u`), whoever asks for work to be done.
#[cfg(feature = "eval")]
pub(crate) enum Pool {
    Workers(ThreadPool),
    Caller,
}

#[cfg(feature = "eval")]
thread_local! {
    /// The pool whose one thread is this thread; `None` for a thread of another pool. It lives as long as the process does.
    static OWN: Option<ThreadPool> = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().ok();
}

#[cfg(feature = "eval")]
impl Pool {
    /// Does `work`, whose parallel parts the pool's threads share.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self {
            Pool::Workers(pool) => pool.install(work),
            Pool::Caller => OWN.with(|own| match own {
                Some(own) => own.install(work),
                // The pool that this thread belongs to shares them.
                None => work(),
            }),
        }
    }
}

/// A pool of `n_threads` workers, or of as many as the system grants.
#[cfg(feature = "eval")]
pub(crate) fn pool(n_threads: usize) -> Pool {
    let mut n_threads = n_threads;
    while n_threads > 0 {
        match workers(n_threads) {
            Ok(pool) => return Pool::Workers(pool),
            Err(_) => n_threads /= 2,
        }
    }
    Pool::Caller
}

/// `n_threads` workers, or as many as there is address space for.
///
/// # Errors
/// `Io` where the system grants fewer.
pub(crate) fn workers(n_threads: usize) -> Result<ThreadPool> {
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
