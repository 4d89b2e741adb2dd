//! Products against f64, and the same bits from every level, thread count and number of tokens.

use super::*;

/// A chain of `len` fused multiply-adds errs by less than `(CHUNK + n_chunks) * 2^-24` of the sum of magnitudes; `Add` is one more. The
/// sums of one token are shorter: `len / 64`, and six to add them up.
fn bound(len: usize, magnitudes: f64) -> f64 {
    (CHUNK.min(len) + len / CHUNK + 2) as f64 * magnitudes * (-24f64).exp2()
}

/// Some floats around 0 of about the magnitude of activations, from a formula.
fn floats(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next() + next() * next()).collect()
}

/// The engines that compute every element as one chain, scalar first.
fn chains() -> Vec<Engine> {
    Level::available().into_iter().map(Engine::new).collect()
}

/// The engine that multiplies tiles in plain Rust, and the CPU's where it has one.
fn tiles() -> Vec<Engine> {
    let cpu = Engine::available().into_iter().filter(|engine| engine.name() == "amx");
    [Engine::new(Level::detect()).with_amx(amx::Unit::Emulated)].into_iter().chain(cpu).collect()
}

fn pool(n_threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().expect("a pool")
}

/// Finite weights of any format: quantized ones, or where that needs importance or is not possible, those of some bytes.
fn blocks(format: Format, n_rows: usize, n_cols: usize) -> Vec<u8> {
    let mut bytes = vec![0; n_rows * format.row_bytes(n_cols as u64).expect("whole blocks") as usize];
    let weights = floats(7, n_rows * n_cols);
    if format.can_quantize() {
        let importance = vec![1.0; n_cols];
        for (row, bytes) in weights.chunks(n_cols).zip(bytes.chunks_mut((n_cols / format.block_len()) * format.block_bytes())) {
            let importance = format.needs_importance().then_some(&importance[..]);
            format.quantize_rows(Engine::detect().level(), row, n_cols, importance, bytes).expect("finite weights");
        }
    } else {
        assert_eq!(format, Format::F64, "a format to make blocks of");
        bytes.chunks_exact_mut(8).zip(weights).for_each(|(to, w)| to.copy_from_slice(&f64::from(w).to_le_bytes()));
    }
    bytes
}

/// `x wᵀ` in f64, and the sums of magnitudes that its error is measured in.
fn reference(x: &[f32], w: &[f32], len: usize) -> Vec<(f64, f64)> {
    let dot = |x: &[f32], w: &[f32]| {
        x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).fold((0.0, 0.0), |(sum, abs), p| (sum + p, abs + p.abs()))
    };
    x.chunks(len).flat_map(|x| w.chunks(len).map(move |w| dot(x, w))).collect()
}

#[track_caller]
fn assert_close(got: &[f32], expected: &[(f64, f64)], len: usize, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (&got, &(sum, magnitudes))) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - sum).abs();
        assert!(error <= bound(len, magnitudes), "{what}: element {i} is {got}, not {sum}: off by {error:e}");
    }
}

fn bits(of: &[f32]) -> Vec<u32> {
    of.iter().map(|v| v.to_bits()).collect()
}

/// Every format that has weights, at every level: near f64, and the same bits as scalar.
#[test]
fn every_format_is_near_f64_and_the_same_at_every_level() {
    for &format in Format::ALL.iter().filter(|format| format.can_dequantize()) {
        let (n_tokens, n_out, len) = (9, 35, 512 + if format.block_len() < 256 { 128 } else { 0 });
        let bytes = blocks(format, n_out, len);
        let mut weights = vec![0.0; n_out * len];
        format.dequantize(Engine::detect().level(), &bytes, &mut weights);
        let x = floats(3, n_tokens * len);
        let expected = reference(&x, &weights, len);
        let mut first: Option<Vec<u32>> = None;
        for engine in chains() {
            let mut out = vec![f32::NAN; n_tokens * n_out];
            let packed = Activations::pack(engine, Rows::new(&x, len));
            engine.multiply(&packed, Weights::new(format, n_out, len, &bytes), &mut out, Accumulate::Store);
            assert_close(&out, &expected, len, &format!("{format} {}", engine.name()));
            let first = first.get_or_insert_with(|| bits(&out));
            assert!(*first == bits(&out), "{format}: {} differs from scalar", engine.name());
        }
        let mut first: Option<Vec<u32>> = None;
        for (engine, n_threads) in chains().into_iter().flat_map(|engine| [(engine, 1), (engine, 4)]) {
            let mut out = vec![0.0; n_out];
            let weights = Weights::new(format, n_out, len, &bytes);
            pool(n_threads).install(|| engine.multiply_token(&x[..len], weights, &mut out, Accumulate::Store));
            assert_close(&out, &expected[..n_out], len, &format!("one token, {format} {}", engine.name()));
            let first = first.get_or_insert_with(|| bits(&out));
            assert!(*first == bits(&out), "one token, {format}: {} with {n_threads} threads differs", engine.name());
            pool(n_threads).install(|| engine.multiply_token(&x[..len], weights, &mut out, Accumulate::Add));
            let twice: Vec<u32> = first.iter().map(|&one| (2.0 * f32::from_bits(one)).to_bits()).collect();
            assert!(twice == bits(&out), "one token, {format}: adding differs");
        }
    }
}

/// Rows and columns that fill no tile, vector or chunk, at every level, with `w` as rows and as columns, stored and added.
#[test]
fn odd_shapes() {
    for (n_tokens, n_out, len) in [1, 7, 33, 129].into_iter().flat_map(|t| {
        let lens: &[usize] = &[1, 15, 16, 129, 255, 256, 257, 600];
        [1, 7, 33, 65, 129].into_iter().zip(lens.iter().cycle().skip(t)).map(move |(n, &len)| (t, n, len))
    }) {
        let (x, w) = (floats(1, n_tokens * len), floats(2, n_out * len));
        let turned: Vec<f32> = (0..len).flat_map(|k| (0..n_out).map(move |n| (n, k))).map(|(n, k)| w[n * len + k]).collect();
        let before = floats(3, n_tokens * n_out);
        let expected = reference(&x, &w, len);
        let added: Vec<(f64, f64)> =
            expected.iter().zip(&before).map(|(&(sum, abs), &b)| (sum + f64::from(b), abs + f64::from(b).abs())).collect();
        let mut first: Option<Vec<u32>> = None;
        for engine in chains() {
            let what = format!("{n_tokens} x {len} x {n_out} {}", engine.name());
            let packed = Activations::pack(engine, Rows::new(&x, len));
            for w in [Right::Rows(Rows::new(&w, len)), Right::Columns(Rows::new(&turned, n_out))] {
                let mut out = vec![f32::NAN; n_tokens * n_out];
                engine.multiply(&packed, w, &mut out, Accumulate::Store);
                assert_close(&out, &expected, len, &what);
                let first = first.get_or_insert_with(|| bits(&out));
                assert!(*first == bits(&out), "{what}: differs");
                out.copy_from_slice(&before);
                engine.multiply(&packed, w, &mut out, Accumulate::Add);
                assert_close(&out, &added, len, &what);
            }
        }
    }
}

/// Any number of threads, any number of tokens at a time, the calling thread alone, any part of the columns: the same bits.
#[test]
fn the_same_bits_however_the_work_is_divided() {
    let (n_tokens, n_out, len) = (19, 451, 768);
    let bytes = blocks(Format::Q4_K, n_out, len);
    let weights = Weights::new(Format::Q4_K, n_out, len, &bytes);
    let x = floats(5, n_tokens * len);
    for engine in chains() {
        let all = Activations::pack(engine, Rows::new(&x, len));
        let mut expected = vec![0.0; n_tokens * n_out];
        pool(1).install(|| engine.multiply(&all, weights, &mut expected, Accumulate::Store));
        let same = |out: &[f32], what: &str| assert!(bits(out) == bits(&expected), "{}: {what} differs", engine.name());
        for n_threads in [2, 4, 16] {
            let mut out = vec![f32::NAN; expected.len()];
            pool(n_threads).install(|| engine.multiply(&all, weights, &mut out, Accumulate::Store));
            same(&out, &format!("{n_threads} threads"));
        }
        for at_a_time in [1, 2, 5, 8, 13] {
            let mut out = vec![f32::NAN; expected.len()];
            for (x, out) in x.chunks(at_a_time * len).zip(out.chunks_mut(at_a_time * n_out)) {
                engine.multiply(&Activations::pack(engine, Rows::new(x, len)), weights, out, Accumulate::Store);
            }
            same(&out, &format!("{at_a_time} tokens at a time"));
        }
        let mut strided = vec![f32::NAN; n_tokens * (n_out + 3)];
        engine.multiply_here(&all, weights, &mut strided, n_out + 3, Accumulate::Store);
        let out: Vec<f32> = strided.chunks(n_out + 3).flat_map(|row| row[..n_out].to_vec()).collect();
        same(&out, "the calling thread");
        assert!(strided.chunks(n_out + 3).all(|row| row[n_out..].iter().all(|v| v.is_nan())), "what lies between rows is kept");
    }
}

/// Tiles of halves: near f64 for shapes that fill no tile, step, square or chunk, whatever the right side is, stored and added.
#[test]
fn tiles_are_near_f64() {
    for (n_tokens, n_out, len) in [(1, 1, 1), (2, 33, 31), (33, 17, 257), (16, 50, 256), (40, 65, 300), (3, 100, 600)] {
        let (x, w) = (floats(1, n_tokens * len), floats(2, n_out * len));
        let turned: Vec<f32> = (0..len).flat_map(|k| (0..n_out).map(move |n| (n, k))).map(|(n, k)| w[n * len + k]).collect();
        let expected = reference(&x, &w, len);
        for engine in tiles() {
            let packed = Activations::pack(engine, Rows::new(&x, len));
            for w in [Right::Rows(Rows::new(&w, len)), Right::Columns(Rows::new(&turned, n_out))] {
                let mut out = vec![f32::NAN; n_tokens * n_out];
                engine.multiply(&packed, w, &mut out, Accumulate::Store);
                for (i, (&got, &(sum, magnitudes))) in out.iter().zip(&expected).enumerate() {
                    let error = (f64::from(got) - sum).abs();
                    let bound = bound(len, magnitudes) + amx::ERROR * magnitudes;
                    assert!(error <= bound, "{n_tokens} x {len} x {n_out}: element {i} is {got}, not {sum}: off by {error:e}");
                }
                let mut twice = out.clone();
                engine.multiply(&packed, w, &mut twice, Accumulate::Add);
                let close = |(&two, &one): (&f32, &f32)| (two - 2.0 * one).abs() <= 1e-5 * len as f32;
                assert!(twice.iter().zip(&out).all(close), "{n_tokens} x {len} x {n_out}: adding");
            }
        }
    }
}

/// What bf16 holds is multiplied without an error of tiles: blocks of small integers, at most sums are rounded.
#[test]
fn tiles_of_integers_are_exact() {
    let (n_tokens, n_out, len) = (35, 37, 288);
    let integers = |seed, n| -> Vec<f32> { floats(seed, n).iter().map(|v| (v * 20.0).round()).collect() };
    let (x, w) = (integers(1, n_tokens * len), integers(2, n_out * len));
    let expected: Vec<f32> = reference(&x, &w, len).iter().map(|&(sum, _)| sum as f32).collect();
    for engine in tiles() {
        let mut out = vec![f32::NAN; n_tokens * n_out];
        let packed = Activations::pack(engine, Rows::new(&x, len));
        engine.multiply(&packed, Right::Rows(Rows::new(&w, len)), &mut out, Accumulate::Store);
        assert!(out == expected, "{}", engine.name());
    }
}

/// Tiles too give the same bits for any number of threads and of tokens at a time.
#[test]
fn tiles_give_the_same_bits_however_the_work_is_divided() {
    let (n_tokens, n_out, len) = (70, 131, 512);
    let bytes = blocks(Format::Q4_K, n_out, len);
    let weights = Weights::new(Format::Q4_K, n_out, len, &bytes);
    let x = floats(5, n_tokens * len);
    for engine in tiles() {
        let all = Activations::pack(engine, Rows::new(&x, len));
        let mut expected = vec![0.0; n_tokens * n_out];
        pool(1).install(|| engine.multiply(&all, weights, &mut expected, Accumulate::Store));
        let mut out = vec![f32::NAN; expected.len()];
        pool(3).install(|| engine.multiply(&all, weights, &mut out, Accumulate::Store));
        assert!(bits(&out) == bits(&expected), "{}: 3 threads", engine.name());
        for (x, out) in x.chunks(9 * len).zip(out.chunks_mut(9 * n_out)) {
            engine.multiply_here(&Activations::pack(engine, Rows::new(x, len)), weights, out, n_out, Accumulate::Store);
        }
        assert!(bits(&out) == bits(&expected), "{}: 9 tokens at a time", engine.name());
    }
}

/// Strided rows of all three operands, as attention has them, and memory that is used again.
#[test]
fn strided_rows() {
    let engine = Engine::new(Level::detect());
    let (n, keys, dim, stride) = (5, 37, 20, 64);
    let (q, k) = (floats(1, n * stride), floats(2, keys * stride));
    let dense = |of: &[f32]| -> Vec<f32> { of.chunks(stride).flat_map(|row| row[..dim].to_vec()).collect() };
    let mut packed = Activations::pack(engine, Rows::new(&[1.0; 300], 3));
    packed.repack(engine, Rows::strided(&q, n, dim, stride));
    let mut out = vec![0.0; n * keys];
    engine.multiply_here(&packed, Right::Rows(Rows::strided(&k, keys, dim, stride)), &mut out, keys, Accumulate::Store);
    assert_close(&out, &reference(&dense(&q), &dense(&k), dim), dim, "strided");
}

/// No tokens, no outputs, no inputs.
#[test]
fn nothing_is_fine() {
    let engine = Engine::detect();
    let none = Activations::pack(engine, Rows::new(&[], 32));
    engine.multiply(&none, Weights::new(Format::Q8_0, 2, 32, &[0; 68]), &mut [], Accumulate::Store);
    let one = Activations::pack(engine, Rows::new(&[1.0; 32], 32));
    engine.multiply(&one, Weights::new(Format::Q8_0, 0, 32, &[]), &mut [], Accumulate::Store);
    engine.multiply_here(&one, Weights::new(Format::Q8_0, 0, 32, &[]), &mut [], 0, Accumulate::Add);
}

#[test]
#[should_panic(expected = "of the same length")]
fn lengths_that_disagree_are_refused() {
    let engine = Engine::detect();
    let x = Activations::pack(engine, Rows::new(&[1.0; 64], 64));
    engine.multiply(&x, Weights::new(Format::Q8_0, 2, 32, &[0; 68]), &mut [0.0; 2], Accumulate::Store);
}
