//! How long text takes to become tokens, with the vocabularies beside the project: `cargo bench --bench tokenize [FILTER]`.
//!
//! The text is the test set of wikitext-2, 1.29 MB; reading the vocabulary is not counted. `tools/dev/tokenize_time.cpp` times
//! llama.cpp's `llama_tokenize` on the same file.

#[path = "../tests/common/mod.rs"]
mod common;

use std::fs;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use ggforge::gguf::File;
use ggforge::tokenizer::encode::{Ends, Specials, Tokenizer};

fn main() {
    let (Some(vocabularies), Some(text)) = (common::shared("vocab"), common::shared("text/wikitext-2-raw/wiki.test.raw")) else {
        return;
    };
    let text = fs::read_to_string(text).expect("a text");
    let mut criterion = Criterion::default().configure_from_args().warm_up_time(Duration::from_millis(300));
    criterion = criterion.measurement_time(Duration::from_secs(2)).sample_size(20);
    let mut group = criterion.benchmark_group("tokenize");
    group.throughput(Throughput::Bytes(text.len() as u64));
    for name in ["llama-bpe", "gpt-2", "phi-3", "llama-spm", "qwen2", "falcon", "deepseek-llm", "gemma-4", "bert-bge"] {
        let file = File::open(vocabularies.join(format!("ggml-vocab-{name}.gguf"))).expect("a vocabulary");
        let tokenizer = Tokenizer::from_metadata(&file).expect("a tokenizer");
        group.bench_function(name, |bencher| bencher.iter(|| tokenizer.encode(&text, Specials::Literal, Ends::Omit)));
    }
    group.finish();
    criterion.final_summary();
}
