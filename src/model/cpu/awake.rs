//! Threads that wait for the next operation without falling asleep.

use std::sync::atomic::{AtomicBool, Ordering};
use std::{hint, thread};

use rayon::Yield;

use crate::threads::Pool;

/// Looks for work this often before another program may have the core.
const LOOKS: usize = 64;

/// Does `work` on a thread of the pool, while its other threads stay awake for what `work` gives them to do. Waking a thread takes about as
/// long as the operations of one token.
pub(super) fn run<T: Send>(pool: &Pool, work: impl FnOnce() -> T + Send) -> T {
    let pool = match pool {
        Pool::Workers(pool) => pool,
        Pool::Caller => return pool.install(work),
    };
    let done = &AtomicBool::new(false);
    pool.scope(|scope| {
        let own = rayon::current_thread_index();
        scope.spawn_broadcast(move |_, thread| {
            if Some(thread.index()) != own {
                help_until(done);
            }
        });
        let _done = SetOnDrop(done);
        work()
    })
}

fn help_until(done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        let found = (0..LOOKS).any(|_| {
            hint::spin_loop();
            rayon::yield_now() == Some(Yield::Executed)
        });
        if !found {
            thread::yield_now();
        }
    }
}

/// Also ends the wait when `work` panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
