//! Attention, against f64.

use half::f16;

use crate::common::Paint;
use crate::products::Halves;
use crate::shim::{Buffer, NULL, Shim, arguments, shim};

/// Probabilities are rounded to halves: 2^-11 of each, so at most that of the largest value, and a little for sums and exponentials.
const ERROR: f64 = 1.0 / (1 << 10) as f64;

/// Entry, keys that fit in a tile, shared bytes.
const ENTRIES: [(usize, usize); 5] = [(64, 46080), (80, 56320), (96, 66560), (128, 87040), (256, 101_376)];
/// Entries of few queries.
const SPLIT_ENTRIES: [(usize, usize); 5] = [(64, 41472), (96, 58880), (128, 76288), (256, 77312), (512, 84480)];

struct Case {
    head_len: usize,
    n_heads: usize,
    n_kv_heads: usize,
    /// Queries and keys of each sequence.
    sequences: Vec<(usize, usize)>,
    window: usize,
    cap: f32,
}

impl Case {
    fn width(&self) -> usize {
        self.n_heads * self.head_len
    }
}

/// What a case is made of.
struct Attention {
    case: Case,
    n_queries: usize,
    q: Halves,
    k: Halves,
    v: Halves,
    scales: [Vec<f32>; 3],
    spans: Vec<[u32; 4]>,
    scale: f32,
}

fn entry(entries: &[(usize, usize)], head_len: usize) -> (usize, usize) {
    *entries.iter().find(|(entry, _)| *entry >= head_len).expect("an entry for every head")
}

#[test]
fn attention_equals_f64() {
    let Some(shim) = shim() else { return };
    let case = |head_len, n_heads, n_kv_heads, sequences: &[(usize, usize)]| {
        check(shim, Case { head_len, n_heads, n_kv_heads, sequences: sequences.to_vec(), window: 0, cap: 0.0 });
    };
    for (entry, _) in ENTRIES {
        case(entry, 2, 1, &[(1, 1), (7, 7), (33, 40), (129, 129), (1, 129), (65, 200)]);
    }
    for head_len in [8, 16, 40, 72, 88, 112, 192] {
        case(head_len, 4, 2, &[(33, 33), (2, 70)]);
    }
}

/// Windows that begin within a tile, at its edge, and before the first key; scores with a bound near them.
#[test]
fn windows_and_bounds_equal_f64() {
    let Some(shim) = shim() else { return };
    for (window, cap) in [(1, 0.0), (64, 2.0), (70, 0.0), (1000, 0.5), (0, 1.0)] {
        let sequences = vec![(3, 3), (70, 200), (1, 193)];
        check(shim, Case { head_len: 64, n_heads: 4, n_kv_heads: 2, sequences, window, cap });
    }
    check(shim, Case { head_len: 256, n_heads: 1, n_kv_heads: 1, sequences: vec![(40, 120)], window: 33, cap: 3.0 });
}

/// Heads that only the kernel of few queries takes, in one split.
#[test]
fn wide_heads_equal_f64() {
    let Some(shim) = shim() else { return };
    for (head_len, window) in [(512, 0), (264, 0), (320, 40)] {
        let sequences = vec![(1, 1), (23, 23), (5, 90)];
        let attention = Attention::new(Case { head_len, n_heads: 4, n_kv_heads: 2, sequences, window, cap: 0.0 });
        let (width, n_queries) = (4 * head_len, attention.n_queries);
        let out = Buffer::<f32>::unwritten(n_queries * (width + 2));
        attention.launch(shim, Kernel::Split { state: None, n_splits: 1, split_len: 0 }, &out, width + 2);
        attention.check("attn_split in one", &out.to_vec(), width + 2, |_| 0.0);
    }
}

/// Splits, merged: a group of heads that fills a tile, more than one, and none; and queries that see no key of a split.
#[test]
fn splits_equal_f64_and_both_ways_to_merge_them_have_the_same_bits() {
    let Some(shim) = shim() else { return };
    let case = |head_len, n_heads, n_kv_heads, sequence| Case {
        head_len,
        n_heads,
        n_kv_heads,
        sequences: vec![sequence],
        window: 0,
        cap: 0.0,
    };
    let cases = [
        case(64, 2, 2, (1, 300)),
        case(128, 8, 2, (1, 257)),
        Case { cap: 2.0, ..case(128, 20, 1, (1, 64)) },
        case(96, 4, 1, (7, 130)),
        case(80, 2, 1, (3, 65)),
        case(256, 4, 2, (2, 200)),
        case(512, 4, 1, (2, 140)),
        Case { window: 70, ..case(64, 4, 2, (2, 400)) },
    ];
    for case in cases {
        // Splits as short as can be: the number of them is what matters.
        let split_len = 64;
        let Case { head_len, n_heads, .. } = case;
        let attention = Attention::new(case);
        let (width, n_rows) = (n_heads * head_len, attention.n_queries);
        let n_splits = attention.case.sequences[0].1.div_ceil(split_len);
        let parts = Buffer::<f32>::unwritten(n_splits * n_rows * width);
        let state = Buffer::<f32>::unwritten(n_splits * n_rows * n_heads * 2);
        attention.launch(shim, Kernel::Split { state: Some(&state), n_splits, split_len }, &parts, width);

        let merged = Buffer::<f32>::unwritten(n_rows * width);
        let arguments = arguments![&parts, &state, n_splits, n_rows, n_heads, head_len, &merged];
        shim.launch("attn_merge_f32", &[n_rows as u32, n_heads as u32], 128, 0, &arguments);
        let (halves, row_scale) = (Buffer::<f16>::unwritten(n_rows * (width + 8)), Buffer::<f32>::unwritten(n_rows));
        let arguments = arguments![&merged, width, width, &halves, width + 8, &row_scale];
        shim.launch("rows_f16", &[n_rows as u32], 256, 0, &arguments);
        let (at_once, scale_at_once) = (Buffer::<f16>::unwritten(n_rows * (width + 8)), Buffer::<f32>::unwritten(n_rows));
        let arguments = arguments![&parts, &state, n_splits, n_rows, n_heads, head_len, &at_once, width + 8, &scale_at_once];
        shim.launch("attn_merge_f16", &[n_rows as u32], 512, 0, &arguments);

        let what = format!("{n_splits} splits");
        attention.check(&what, &merged.to_vec(), width, |_| 0.0);
        let (halves, row_scale) = (halves.to_vec(), row_scale.to_vec());
        assert!(halves == at_once.to_vec() && row_scale == scale_at_once.to_vec(), "{what}: other bits");
        let values = halves.chunks(width + 8).zip(row_scale).flat_map(|(row, scale)| {
            assert!(row[width..].iter().all(|half| half.to_bits() == 0), "{what}: columns past the heads");
            row[..width].iter().map(|half| half.to_f32() * scale).collect::<Vec<_>>()
        });
        attention.check(&what, &values.collect::<Vec<_>>(), width, |expected| expected.abs() / 2048.0 + 1e-6);
    }
}

fn check(shim: &Shim, case: Case) {
    let attention = Attention::new(case);
    let ld_out = attention.case.width() + 2;
    let out = Buffer::<f32>::unwritten(attention.n_queries * ld_out);
    attention.launch(shim, Kernel::Tiles, &out, ld_out);
    attention.check("attn", &out.to_vec(), ld_out, |_| 0.0);
}

#[derive(Clone, Copy)]
enum Kernel<'a> {
    Tiles,
    Split { state: Option<&'a Buffer<f32>>, n_splits: usize, split_len: usize },
}

impl Attention {
    fn new(case: Case) -> Attention {
        let Case { head_len, n_heads, n_kv_heads, ref sequences, .. } = case;
        let mut paint = Paint::new(head_len as u64);
        let (n_queries, n_keys) = sequences.iter().fold((0, 0), |(q, kv), &(q_len, kv_len)| (q + q_len, kv + kv_len + 3));
        let (q_width, kv_width) = (n_heads * head_len, n_kv_heads * head_len);
        let q = Halves::random(n_queries, q_width, q_width + 8, &mut paint);
        // Between the sequences' keys lie rows that belong to nobody.
        let mut rows = || Halves::random(n_keys, kv_width, kv_width + 16, &mut paint);
        let (mut k, mut v) = (rows(), rows());
        let mut spans: Vec<[u32; 4]> = Vec::new();
        let (mut q_first, mut kv_first) = (0, 0);
        for &(q_len, kv_len) in sequences {
            spans.push([q_first, q_len, kv_first, kv_len].map(|n| n as u32));
            for rows in [&mut k, &mut v] {
                rows.values[(kv_first + kv_len) * rows.ld..(kv_first + kv_len + 3) * rows.ld].fill(f16::NAN);
            }
            (q_first, kv_first) = (q_first + q_len, kv_first + kv_len + 3);
        }
        // Values as large and as small as no half is; queries and keys as large as exponents bear.
        let powers = |n: usize, from: i32, to: i32| -> Vec<f32> {
            (0..n).map(|i| 2f32.powi(from + (i * 5) as i32 % (to - from + 1))).collect()
        };
        let scales = [powers(n_queries, -1, 1), powers(n_keys, -2, 1), powers(n_keys, -9, 24)];
        let scale = 1.5 / (head_len as f32).sqrt();
        Attention { case, n_queries, q, k, v, scales, spans, scale }
    }

    fn launch(&self, shim: &Shim, kernel: Kernel, out: &Buffer<f32>, ld_out: usize) {
        let Case { head_len, n_heads, n_kv_heads, ref sequences, window, cap } = self.case;
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|rows| Buffer::new(&rows.values));
        let [q_scale, k_scale, v_scale] = self.scales.each_ref().map(|scales| Buffer::new(scales));
        let (spans, scale) = (Buffer::new(&self.spans), self.scale);
        let mut arguments = Vec::from(arguments![
            &q, &k, &v, &q_scale, &k_scale, &v_scale, out, &spans, n_heads, n_kv_heads, head_len, self.q.ld, self.k.ld, ld_out,
            scale, window, cap
        ]);
        let longest = sequences.iter().map(|&(q_len, _)| q_len).max().expect("a sequence");
        let (name, shared_bytes, grid) = match kernel {
            Kernel::Tiles => {
                let (entry, shared_bytes) = entry(&ENTRIES, head_len);
                (format!("attn_{entry}"), shared_bytes, [longest.div_ceil(64), n_heads, sequences.len()])
            }
            Kernel::Split { state, n_splits, split_len } => {
                let (entry, shared_bytes) = entry(&SPLIT_ENTRIES, head_len);
                let state = state.map_or(NULL, |state| state.into());
                arguments.extend([state].into_iter().chain(arguments![n_splits, split_len, self.n_queries]));
                let n_tiles = (longest * n_heads / n_kv_heads).div_ceil(16);
                (format!("attn_split_{entry}"), shared_bytes, [n_tiles * n_splits, n_kv_heads, sequences.len()])
            }
        };
        shim.launch(&name, &grid.map(|n| n as u32), 128, shared_bytes, &arguments);
    }

    /// Compares all results, `slack` being what is allowed beside the error of attention itself.
    #[track_caller]
    fn check(&self, what: &str, out: &[f32], ld_out: usize, slack: impl Fn(f64) -> f64) {
        let Case { head_len, n_heads, n_kv_heads, ref sequences, window, cap } = self.case;
        let Attention { q, k, v, scales: [q_scale, k_scale, v_scale], .. } = self;
        for (span, &(q_len, kv_len)) in self.spans.iter().zip(sequences) {
            let (q_first, kv_first) = (span[0] as usize, span[2] as usize);
            for (query, head) in (0..q_len).flat_map(|query| (0..n_heads).map(move |head| (query, head))) {
                let (from, kv_from) = (head * head_len, head / (n_heads / n_kv_heads) * head_len);
                let n_seen = kv_len - q_len + query + 1;
                let n_past = if window == 0 { 0 } else { n_seen.saturating_sub(window) };
                let score = |key: usize| -> f64 {
                    let dot =
                        (0..head_len).map(|i| q.get(q_first + query, from + i) * k.get(kv_first + key, kv_from + i)).sum::<f64>();
                    let score = dot * f64::from(self.scale * q_scale[q_first + query] * k_scale[kv_first + key]);
                    if cap == 0.0 { score } else { f64::from(cap) * (score / f64::from(cap)).tanh() }
                };
                let scores: Vec<f64> = (n_past..n_seen).map(score).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for i in 0..head_len {
                    let value = |at: usize| {
                        let key = kv_first + n_past + at;
                        v.get(key, kv_from + i) * f64::from(v_scale[key])
                    };
                    let expected = (0..weights.len()).map(|at| weights[at] * value(at)).sum::<f64>() / sum;
                    let magnitude = (0..weights.len()).map(|at| weights[at] * value(at).abs()).sum::<f64>() / sum;
                    let bound = ERROR * magnitude + 1e-6 + slack(magnitude);
                    let got = f64::from(out[(q_first + query) * ld_out + from + i]);
                    assert!(
                        (got - expected).abs() <= bound,
                        "{what}: heads of {head_len}, window {window}, cap {cap}, {q_len} queries, {kv_len} keys: query {query} head {head} [{i}] is {got}, expected {expected}"
                    );
                }
            }
        }
    }
}
