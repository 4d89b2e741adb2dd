//! Attention, against f64.

use crate::common::Paint;
use crate::products::Halves;
use crate::shim::{Buffer, Shim, arguments, shim};

/// Probabilities are rounded to halves: 2^-11 of each, so at most that of the largest value, and a little for sums and exponentials.
const ERROR: f64 = 1.0 / (1 << 10) as f64;

/// Entry, keys that fit in a tile, shared bytes.
const ENTRIES: [(usize, usize); 5] = [(64, 46080), (80, 56320), (96, 66560), (128, 87040), (256, 101_376)];

struct Case {
    entry: usize,
    shared_bytes: usize,
    head_len: usize,
    n_heads: usize,
    n_kv_heads: usize,
    /// Queries and keys of each sequence.
    sequences: Vec<(usize, usize)>,
}

#[test]
fn attention_equals_f64() {
    let Some(shim) = shim() else { return };
    for (entry, shared_bytes) in ENTRIES {
        let sequences = vec![(1, 1), (7, 7), (33, 40), (129, 129), (1, 129), (65, 200)];
        check(shim, &Case { entry, shared_bytes, head_len: entry, n_heads: 2, n_kv_heads: 1, sequences });
    }
    for head_len in [8, 16, 40, 72, 88, 112, 192] {
        let (entry, shared_bytes) = *ENTRIES.iter().find(|(entry, _)| *entry >= head_len).expect("an entry for every head");
        check(shim, &Case { entry, shared_bytes, head_len, n_heads: 4, n_kv_heads: 2, sequences: vec![(33, 33), (2, 70)] });
    }
}

fn check(shim: &Shim, case: &Case) {
    let &Case { entry, shared_bytes, head_len, n_heads, n_kv_heads, ref sequences } = case;
    let mut paint = Paint::new(head_len as u64);
    let (n_queries, n_keys) = sequences.iter().fold((0, 0), |(q, kv), &(q_len, kv_len)| (q + q_len, kv + kv_len + 3));
    let (q_width, kv_width) = (n_heads * head_len, n_kv_heads * head_len);
    let q = Halves::random(n_queries, q_width, q_width + 8, &mut paint);
    // Between the sequences' keys lie rows that belong to nobody.
    let (mut k, mut v) =
        (Halves::random(n_keys, kv_width, kv_width + 16, &mut paint), Halves::random(n_keys, kv_width, kv_width + 16, &mut paint));
    let mut spans: Vec<[u32; 4]> = Vec::new();
    let (mut q_first, mut kv_first) = (0, 0);
    for &(q_len, kv_len) in sequences {
        spans.push([q_first, q_len, kv_first, kv_len].map(|n| n as u32));
        for rows in [&mut k, &mut v] {
            rows.values[(kv_first + kv_len) * rows.ld..(kv_first + kv_len + 3) * rows.ld].fill(half::f16::NAN);
        }
        (q_first, kv_first) = (q_first + q_len, kv_first + kv_len + 3);
    }
    // Values as large and as small as no half is; queries and keys as large as exponents bear.
    let powers =
        |n: usize, from: i32, to: i32| -> Vec<f32> { (0..n).map(|i| 2f32.powi(from + (i * 5) as i32 % (to - from + 1))).collect() };
    let (q_scale, k_scale, v_scale) = (powers(n_queries, -1, 1), powers(n_keys, -2, 1), powers(n_keys, -9, 24));
    let (scale, ld_out) = (1.5 / (head_len as f32).sqrt(), q_width + 2);
    let out = Buffer::<f32>::unwritten(n_queries * ld_out);
    let longest = sequences.iter().map(|&(q_len, _)| q_len).max().expect("a sequence");
    let grid = [longest.div_ceil(64) as u32, n_heads as u32, sequences.len() as u32];
    let (q_on, k_on, v_on, spans_on) =
        (Buffer::new(&q.values), Buffer::new(&k.values), Buffer::new(&v.values), Buffer::new(&spans));
    let (q_scale_on, k_scale_on, v_scale_on) = (Buffer::new(&q_scale), Buffer::new(&k_scale), Buffer::new(&v_scale));
    let scales = [&q_scale_on, &k_scale_on, &v_scale_on];
    let arguments = arguments![
        &q_on, &k_on, &v_on, scales[0], scales[1], scales[2], &out, &spans_on, n_heads, n_kv_heads, head_len, q.ld, k.ld, ld_out,
        scale
    ];
    shim.launch(&format!("attn_{entry}"), &grid, 128, shared_bytes, &arguments);

    let out = out.to_vec();
    for (span, &(q_len, kv_len)) in spans.iter().zip(sequences) {
        let (q_first, kv_first) = (span[0] as usize, span[2] as usize);
        for (query, head) in (0..q_len).flat_map(|query| (0..n_heads).map(move |head| (query, head))) {
            let (from, kv_from) = (head * head_len, head / (n_heads / n_kv_heads) * head_len);
            let n_seen = kv_len - q_len + query + 1;
            let score = |key: usize| -> f64 {
                (0..head_len).map(|i| q.get(q_first + query, from + i) * k.get(kv_first + key, kv_from + i)).sum::<f64>()
                    * f64::from(scale * q_scale[q_first + query] * k_scale[kv_first + key])
            };
            let scores: Vec<f64> = (0..n_seen).map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for i in 0..head_len {
                let value = |key: usize| v.get(kv_first + key, kv_from + i) * f64::from(v_scale[kv_first + key]);
                let expected = (0..n_seen).map(|key| weights[key] * value(key)).sum::<f64>() / sum;
                let bound = ERROR * (0..n_seen).map(|key| weights[key] * value(key).abs()).sum::<f64>() / sum + 1e-6;
                let got = f64::from(out[(q_first + query) * ld_out + from + i]);
                assert!(
                    (got - expected).abs() <= bound,
                    "attn_{entry} heads of {head_len}, {q_len} queries, {kv_len} keys: query {query} head {head} [{i}] is {got}, expected {expected}"
                );
            }
        }
    }
}
