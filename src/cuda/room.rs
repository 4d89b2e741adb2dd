//! How much device memory a workload takes, known before it starts: whether layers can stay there, how many tokens are computed
//! together, and what is taken from the driver at once.
//!
//! All sizes are bounds on what `backend` asks for. A bound that is too low costs another allocation, no result: [`super::arenas`].

use super::probe::gpu;
use super::ranges::ALIGNMENT;
use super::sizes::{
    BATCH_BYTES_MAX, BATCH_TOKENS_MAX, RUN_ROWS_MIN, halves_bytes_max, halves_bytes_min, logits_bytes, splits_bytes_max, sums_bytes,
};
use crate::error::{Error, Result};
use crate::model::{
    BatchLimits, LayerHparams, Needs, Operation, Residency, Rope, WeightBytes, Work, Workload, activations_per_token,
};
use crate::report::decimal_bytes;

/// What a workload gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub residency: Residency,
    pub limits: BatchLimits,
    /// To take at once, and what it cannot do without.
    pub len_bytes: u64,
    pub len_bytes_min: u64,
}

/// Tokens for which a resident model is worth more than larger batches of one that is streamed: with fewer, weights are dequantized
/// more often than products take.
const RESIDENT_TOKENS: usize = 2048;

/// What activations, or logits, take of a large memory where the weights are few: thousands of tokens, and room for other processes.
const AMPLE_BYTES: u64 = 512 << 20;

/// Layers that are on the device at once while they are streamed: one is computed, the next written, and places differ in length.
const STREAMED_LAYERS: u64 = 3;
const STREAMED_LAYERS_MIN: u64 = 2;

/// Numbers besides activations, for each token: positions, targets, powers of two, scores.
const TOKEN_BYTES: u64 = 256;

impl Room {
    /// The best that `limit_bytes` of memory allow.
    ///
    /// # Errors
    /// `Gpu`, when they are too few.
    pub(super) fn within(workload: &Workload, limit_bytes: u64) -> Result<Room> {
        let (n_tokens_min, n_tokens_max) = workload.batch_tokens();
        let choices = match workload.work {
            Work::Generation { .. } => vec![(Residency::Resident, n_tokens_min)],
            Work::Evaluation { .. } => vec![
                (Residency::Resident, RESIDENT_TOKENS.clamp(n_tokens_min, n_tokens_max)),
                (Residency::Streamed, n_tokens_min),
                (Residency::Resident, n_tokens_min),
            ],
        };
        let least = |&(residency, n_tokens): &(Residency, usize)| Sizes::of(workload, residency, n_tokens).least();
        match choices.iter().find(|choice| least(choice) <= limit_bytes) {
            Some(&(residency, _)) => Ok(Room::of(workload, residency, limit_bytes)),
            None => Err(too_little(workload, choices.iter().map(least).min().unwrap_or(0), limit_bytes)),
        }
    }

    fn of(workload: &Workload, residency: Residency, limit_bytes: u64) -> Room {
        let (n_tokens_min, n_tokens_max) = workload.batch_tokens();
        let smallest = Sizes::of(workload, residency, n_tokens_min);
        let beside = [smallest.weights.1, smallest.halves.1, smallest.rest].into_iter().fold(0, u64::saturating_add);
        let for_batch = limit_bytes.saturating_sub(beside).min(ample_bytes(smallest.weights.1));
        let most_tokens = for_batch / bytes_of_token(workload).max(1);
        let n_tokens = usize::try_from(most_tokens).unwrap_or(usize::MAX).min(BATCH_TOKENS_MAX);
        let limits = BatchLimits { memory_bytes: BATCH_BYTES_MAX, n_tokens };
        let batch = |needs: &Needs| limits.n_sequences(&needs.hparams, needs.n_ctx).saturating_mul(needs.n_ctx);
        let n_tokens = workload.models.iter().map(batch).min().unwrap_or(0).clamp(n_tokens_min, n_tokens_max);
        let most = Sizes::of(workload, residency, n_tokens).most();
        Room { residency, limits, len_bytes: most.min(limit_bytes), len_bytes_min: smallest.least() }
    }
}

/// Bytes of a workload's parts: of pairs the first is the least that works, the second the most that is of use.
struct Sizes {
    weights: (u64, u64),
    /// While a batch goes through the layers.
    activations: u64,
    /// Weights as halves.
    halves: (u64, u64),
    /// States that are scored, and logits.
    scored: (u64, u64),
    /// What is there at any time.
    rest: u64,
}

impl Sizes {
    fn of(workload: &Workload, residency: Residency, n_tokens: usize) -> Sizes {
        let models = &workload.models;
        let most = |bytes: &dyn Fn(&Needs) -> u64| models.iter().map(bytes).max().unwrap_or(0);
        let sum = |bytes: &dyn Fn(&Needs) -> u64| models.iter().map(bytes).fold(0, u64::saturating_add);
        let kept = sum(&|needs| padded(needs.kept).saturating_add(tables(needs)));
        let layers = match residency {
            Residency::Resident => [sum(&|needs| padded(needs.layers_bytes())); 2],
            Residency::Streamed => {
                let layer = most(&|needs| needs.layers.iter().map(|layer| padded(*layer)).max().unwrap_or(0));
                [STREAMED_LAYERS_MIN, STREAMED_LAYERS].map(|n_layers| layer.saturating_mul(n_layers))
            }
        };
        let (n_scored, kept_tokens) = match workload.work {
            Work::Evaluation { n_scored, .. } => {
                let n_ctx = models.iter().map(|needs| needs.n_ctx).max().unwrap_or(1).max(1);
                ((n_tokens / n_ctx).saturating_mul(n_scored), 0)
            }
            Work::Generation { .. } => (1, sum(&|needs| cache(needs).saturating_add(splits(needs)))),
        };
        let matrix = |bytes: fn(usize, usize) -> u64| most(&|needs| of_matrices(needs, bytes));
        let vocab = models.iter().map(|needs| needs.hparams.n_vocab).max().unwrap_or(0);
        let n_models = n_compared(workload);
        let logits = |n_rows: usize| logits_bytes(vocab, n_rows).saturating_mul(n_models);
        let states = (n_scored as u64).saturating_mul(bytes_of_state(workload));
        Sizes {
            weights: (kept.saturating_add(layers[0]), kept.saturating_add(layers[1])),
            activations: (n_tokens as u64).saturating_mul(bytes_of_token(workload)).saturating_add(kept_tokens),
            halves: (matrix(halves_bytes_min), matrix(halves_bytes_max)),
            scored: (states.saturating_add(logits(RUN_ROWS_MIN.min(n_scored))), states.saturating_add(logits(n_scored))),
            rest: matrix(|_, n_cols| sums_bytes(n_cols)),
        }
    }

    fn least(&self) -> u64 {
        self.total(self.weights.0, self.halves.0, self.scored.0)
    }

    fn most(&self) -> u64 {
        let scored = self.scored.1.min(ample_bytes(self.weights.1)).max(self.scored.0);
        let total = self.total(self.weights.1, self.halves.1, scored);
        // Gaps between parts of different lengths.
        total.saturating_add(total / 16)
    }

    /// Logits come when the activations have gone.
    fn total(&self, weights: u64, halves: u64, scored: u64) -> u64 {
        [weights, self.activations.max(scored), halves, self.rest].into_iter().fold(0, u64::saturating_add)
    }
}

fn ample_bytes(weights_bytes: u64) -> u64 {
    AMPLE_BYTES.max(weights_bytes.saturating_mul(2))
}

/// Models whose predictions are compared with each other.
fn n_compared(workload: &Workload) -> u64 {
    workload.models.len().min(2) as u64
}

/// What each token takes on its way through the layers: its activations, a quarter more for the gaps between them, its number, position
/// and powers of two, and the states of the model before.
fn bytes_of_token(workload: &Workload) -> u64 {
    let of = |needs: &Needs| activations_per_token(&needs.hparams) as u64 * 5 + TOKEN_BYTES;
    workload.models.iter().map(of).max().unwrap_or(0).saturating_add(bytes_of_state(workload))
}

/// What is kept of each scored token: halves, and what is found about it.
fn bytes_of_state(workload: &Workload) -> u64 {
    let of = |needs: &Needs| needs.hparams.n_embd as u64 * 2 + TOKEN_BYTES;
    workload.models.iter().map(of).max().unwrap_or(0) * n_compared(workload)
}

/// Every tensor begins at a multiple of the alignment.
fn padded(weights: WeightBytes) -> u64 {
    weights.n_bytes.saturating_add(weights.n_tensors * ALIGNMENT)
}

/// Angles of all positions, as they come and as kernels want them, for every way in which layers rotate.
fn tables(needs: &Needs) -> u64 {
    let mut ropes: Vec<Rope> = Vec::new();
    for rope in needs.hparams.layers.iter().filter_map(|layer| layer.rope) {
        if !ropes.contains(&rope) {
            ropes.push(rope);
        }
    }
    let bytes = |n_rot: usize| (needs.n_ctx as u64).saturating_mul(n_rot as u64 * 8).saturating_add(2 * ALIGNMENT);
    // And the last norm.
    ropes.iter().map(|rope| bytes(rope.n_rot)).fold(needs.hparams.n_embd as u64 * 8 + 2 * ALIGNMENT, u64::saturating_add)
}

/// Keys and values of all layers: halves, and a power of two for each row.
fn cache(needs: &Needs) -> u64 {
    let halves = |layer: &LayerHparams| (layer.n_head_kv * (layer.key_dim + layer.value_dim)) as u64;
    let row_bytes: u64 = needs.hparams.layers.iter().map(|layer| halves(layer) * 2 + 2 * 4).sum();
    let n_layers = needs.hparams.layers.len() as u64;
    (needs.n_ctx as u64).saturating_mul(row_bytes).saturating_add(n_layers * 4 * ALIGNMENT)
}

/// The parts of attention over many keys.
fn splits(needs: &Needs) -> u64 {
    let of = |layer: &LayerHparams| splits_bytes_max(needs.n_ctx, layer.n_head, layer.key_dim);
    needs.hparams.layers.iter().map(of).max().unwrap_or(0)
}

/// The most that any matrix of products takes.
fn of_matrices(needs: &Needs, bytes: fn(usize, usize) -> u64) -> u64 {
    let of = |operation: &Operation| match operation {
        Operation::Product(shape) | Operation::Logits(shape) | Operation::Rows(shape) => bytes(shape.n_rows, shape.n_cols),
        _ => 0,
    };
    needs.operations.iter().map(of).max().unwrap_or(0)
}

fn too_little(workload: &Workload, least: u64, limit_bytes: u64) -> Error {
    let what = match (&workload.work, &workload.models[..]) {
        (Work::Generation { .. }, _) => "to generate, with all layers",
        (_, [_]) => "to evaluate the model",
        _ => "to evaluate the models",
    };
    let [least, limit] = [least, limit_bytes].map(decimal_bytes);
    gpu(
        format!("not enough GPU memory: {least} are needed {what}, {limit} may be used"),
        "choose a smaller --ctx, a larger --gpu-memory, end what else uses the GPU, or use --device cpu",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Header, Model, TensorSpec, Value};
    use crate::quant::Format;

    const GIB: u64 = 1 << 30;

    /// A model of llama's kind whose weights nobody has written, since nobody reads them.
    fn needs(format: Format, n_layers: u32, [n_embd, n_ff, n_vocab]: [u32; 3], n_ctx: usize) -> Needs {
        let mut metadata = vec![
            ("general.architecture".to_owned(), Value::from("llama")),
            ("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::F32(1e-5)),
        ];
        let counts = [
            ("block_count", n_layers),
            ("embedding_length", n_embd),
            ("feed_forward_length", n_ff),
            ("attention.head_count", n_embd / 64),
            ("context_length", 4096),
        ];
        metadata.extend(counts.map(|(key, value)| (format!("llama.{key}"), Value::U32(value))));
        let matrix =
            |name: String, n_rows: u32, n_cols: u32| TensorSpec { name, format, shape: vec![n_rows.into(), n_cols.into()] };
        let vector = |name: String| TensorSpec { name, format: Format::F32, shape: vec![n_embd.into()] };
        let mut tensors = vec![matrix("token_embd.weight".into(), n_vocab, n_embd), vector("output_norm.weight".into())];
        tensors.push(matrix("output.weight".into(), n_vocab, n_embd));
        for layer in 0..n_layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            tensors.extend(["attn_norm", "ffn_norm"].map(|part| vector(name(part))));
            tensors.extend(["attn_q", "attn_k", "attn_v", "attn_output"].map(|part| matrix(name(part), n_embd, n_embd)));
            tensors.extend(["ffn_gate", "ffn_up"].map(|part| matrix(name(part), n_ff, n_embd)));
            tensors.push(matrix(name("ffn_down"), n_embd, n_ff));
        }
        let layout = Header { metadata, tensors }.layout().expect("a sound header");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, &layout.header).expect("room");
        let file = std::fs::File::options().write(true).open(&path).expect("the same file");
        file.set_len(layout.file_bytes).expect("a file with holes");
        Needs::of(&Model::open(&path).expect("a model"), n_ctx).expect("a sound model")
    }

    fn evaluation(models: Vec<Needs>) -> Workload {
        Workload { models, work: Work::Evaluation { n_sequences: 600, n_scored: 255 } }
    }

    /// 13.5 GB.
    fn seven_billion() -> Needs {
        needs(Format::F16, 32, [4096, 11_008, 32_000], 512)
    }

    #[test]
    fn a_small_model_leaves_room_for_others() {
        // 22 million parameters in Q8_0, and the same with a vocabulary whose logits alone would take a gigabyte.
        let plain = needs(Format::Q8_0, 6, [512, 1536, 8192], 512);
        let large_vocabulary = needs(Format::Q8_0, 6, [64, 192, 131_072], 512);
        for needs in [plain, large_vocabulary] {
            let n_bytes = needs.kept.n_bytes + needs.layers_bytes().n_bytes;
            assert!((15 << 20..30 << 20).contains(&n_bytes), "{n_bytes}");
            for models in [vec![needs.clone()], vec![needs.clone(); 2]] {
                let room = Room::within(&evaluation(models), 140 * GIB).expect("room");
                assert_eq!(room.residency, Residency::Resident);
                assert!(room.len_bytes < GIB, "{} of a large GPU", room.len_bytes);
                assert!(room.limits.n_sequences(&needs.hparams, 512) >= 8, "{:?}", room.limits);
            }
        }
    }

    #[test]
    fn layers_stay_where_they_fit() {
        let needs = seven_billion();
        let workload = evaluation(vec![needs.clone()]);
        let residency = |gib: u64| Room::within(&workload, gib * GIB).map(|room| room.residency).ok();
        let expected = [(80, Some(Residency::Resident)), (23, Some(Residency::Resident)), (15, Some(Residency::Resident))];
        for (gib, expected) in
            expected.into_iter().chain([(12, Some(Residency::Streamed)), (4, Some(Residency::Streamed)), (1, None)])
        {
            assert_eq!(residency(gib), expected, "{gib} GiB");
        }
        let two = evaluation(vec![needs.clone(), needs]);
        assert_eq!(Room::within(&two, 23 * GIB).expect("room").residency, Residency::Streamed);
        assert_eq!(Room::within(&two, 40 * GIB).expect("room").residency, Residency::Resident);
    }

    #[test]
    fn a_batch_fits_beside_the_weights() {
        let workload = evaluation(vec![seven_billion()]);
        for gib in [3, 6, 14, 16, 24, 80] {
            let room = Room::within(&workload, gib * GIB).expect("room");
            assert!(room.len_bytes_min <= room.len_bytes && room.len_bytes <= gib * GIB, "{gib} GiB: {room:?}");
            let n_tokens = 512 * room.limits.n_sequences(&workload.models[0].hparams, 512);
            let sizes = Sizes::of(&workload, room.residency, n_tokens);
            assert!(sizes.least() <= gib * GIB, "{gib} GiB: {n_tokens} tokens take {}", sizes.least());
            println!("{gib} GiB: {:?}, {n_tokens} tokens, {} bytes", room.residency, room.len_bytes);
        }
    }

    #[test]
    fn generation_needs_all_layers() {
        let mut needs = seven_billion();
        needs.n_ctx = 1000;
        let workload = Workload { models: vec![needs], work: Work::Generation { n_prompt: 900 } };
        let room = Room::within(&workload, 80 * GIB).expect("room");
        // 13.5 GB, keys and values of 1000 tokens, and little else.
        assert!(room.residency == Residency::Resident && room.len_bytes < 16 * GIB, "{room:?}");
        let Err(Error::Gpu { what, .. }) = Room::within(&workload, 12 * GIB) else { panic!("it does not fit") };
        assert!(what.starts_with("not enough GPU memory: ") && what.contains("12.9 GB may be used"), "{what}");
    }
}
