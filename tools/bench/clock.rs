//! Timing that a busy machine disturbs little.

use rustix::time::{ClockId, clock_gettime};

/// A sample lasts at least this long, so that the clock's own cost and grain do not count.
const SAMPLE_SECONDS: f64 = 0.02;

/// Seconds of one call: the median of so many samples, in time of this thread on its core, so that neighbours disturb less.
///
/// For work of the calling thread alone; other threads' time is not counted.
pub fn median_seconds(n_samples: usize, run: &mut dyn FnMut()) -> f64 {
    run();
    let mut samples: Vec<f64> = (0..n_samples).map(|_| sample_seconds(run)).collect();
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn sample_seconds(run: &mut dyn FnMut()) -> f64 {
    let (start, mut n) = (thread_seconds(), 0);
    loop {
        run();
        n += 1;
        let spent = thread_seconds() - start;
        if spent >= SAMPLE_SECONDS {
            return spent / f64::from(n);
        }
    }
}

fn thread_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}
