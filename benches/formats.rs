//! How fast each format is quantized and read at each CPU level, beside ggml's own function on the same rows in the same process.
//!
//! `cargo bench --bench formats [FILTER]`: criterion's view of what `ggforge bench formats` prints as a table. Throughput is bytes of
//! f32, one thread; what is timed was compared with ggml's answer before.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tools/bench/runs.rs"]
mod runs;

use std::time::Duration;

use common::{ggml, paint};
use criterion::{Criterion, Throughput};
use ggforge::quant::Format;
use runs::{Rows, checked_runs};

fn main() {
    let ggml = ggml::load();
    let rows = Rows::painted(Rows::N_DEFAULT, Rows::LEN_DEFAULT);
    let mut criterion = Criterion::default().configure_from_args().warm_up_time(Duration::from_millis(300));
    criterion = criterion.measurement_time(Duration::from_secs(1)).sample_size(20);
    for &format in Format::ALL.iter().filter(|format| format.can_quantize()) {
        for (work, runners) in checked_runs(ggml.as_ref(), format, &rows).expect("equal answers") {
            let mut group = criterion.benchmark_group(format!("{}/{format}", work.name()));
            group.throughput(Throughput::Bytes(4 * rows.weights.len() as u64));
            for mut runner in runners {
                group.bench_function(runner.name, |bencher| bencher.iter(&mut runner.run));
            }
            group.finish();
        }
    }
    criterion.final_summary();
}
