//! The facts about a model that choices depend on, read from its metadata, and the hyperparameters that no model can have.
//!
//! Metadata is a stranger's: a count here decides how layers are divided, and in a runtime how much memory is taken. What is
//! impossible is refused before any work, with the key and the number.

use std::path::Path;

use super::recipe::Facts;
use crate::arch::FAMILIES;
use crate::arch::numbers::{EXPERTS_MAX, LAYERS_MAX};
use crate::error::{Error, Fault, Place, Result};
use crate::gguf::{self, Array, Metadata, Value, keys};
use crate::names::{Role, TOKEN_EMBD, block_of};

/// Positions are i32 in llama.cpp.
const CONTEXT_LENGTH_MAX: u32 = i32::MAX as u32;

/// Reads the facts about a model and refuses impossible hyperparameters.
///
/// `tensors`: name and row-major shape of each. `path` is what errors name.
///
/// # Errors
/// `ValueType` for a key of the wrong type, `HparamRange` for an impossible value.
pub fn read_facts(path: &Path, metadata: &Metadata, tensors: &[(&str, &[u64])]) -> Result<Facts> {
    let hparams = Hparams { path, metadata, arch: architecture(path, metadata)? };
    let n_layer = match hparams.number(keys::BLOCK_COUNT)? {
        Some(n_layer) => hparams.in_range(keys::BLOCK_COUNT, n_layer, 1, LAYERS_MAX as u32)?,
        // Projectors and the like name their blocks otherwise; what is there is what counts.
        None => tensors.iter().filter_map(|(name, _)| block_of(name)).max().map_or(0, |last| last.saturating_add(1)),
    };
    let n_layer_nextn = hparams.number(keys::NEXTN_PREDICT_LAYERS)?.unwrap_or(0);
    hparams.in_range(keys::NEXTN_PREDICT_LAYERS, n_layer_nextn, 0, n_layer)?;
    let n_expert = hparams.number(keys::EXPERT_COUNT)?.unwrap_or(0);
    hparams.in_range(keys::EXPERT_COUNT, n_expert, 0, EXPERTS_MAX as u32)?;
    for used in hparams.per_layer(keys::EXPERT_USED_COUNT, n_layer)? {
        hparams.in_range(keys::EXPERT_USED_COUNT, used, 0, n_expert)?;
    }
    let (n_head, n_head_kv) = hparams.heads(n_layer, tensors)?;
    hparams.check_ranges(tensors)?;
    Ok(Facts {
        arch: hparams.arch.to_owned(),
        n_layer,
        n_layer_nextn,
        n_head,
        n_head_kv,
        n_expert,
        tied: !tensors.iter().any(|(name, _)| Role::of(name) == Role::Output),
        has_imatrix: false,
    })
}

fn architecture<'a>(path: &Path, metadata: &'a Metadata) -> Result<&'a str> {
    let text = |key| match get(metadata, key) {
        Some(Value::String(bytes)) => std::str::from_utf8(bytes).ok(),
        _ => None,
    };
    text(keys::GENERAL_ARCHITECTURE).ok_or_else(|| gguf::no_architecture(path, text(keys::GENERAL_TYPE)))
}

/// The value of a key.
pub(super) fn get<'a>(metadata: &'a Metadata, key: &str) -> Option<&'a Value> {
    metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value)
}

/// The architecture's own keys.
struct Hparams<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
    arch: &'a str,
}

impl Hparams<'_> {
    /// A count, of whatever width, as those who run the model read it.
    fn number(&self, key: &str) -> Result<Option<u32>> {
        get(self.metadata, &keys::of(self.arch, key)).map(|value| self.whole(key, value)).transpose()
    }

    fn whole(&self, key: &str, value: &Value) -> Result<u32> {
        match value.as_u64() {
            Some(number) => u32::try_from(number)
                .map_err(|_| self.fault(key, Fault::HparamRange, format!("{number} is beyond what any model has"))),
            None => {
                let detail = format!("is {}; a whole number is required here", value.value_type());
                Err(self.fault(key, Fault::ValueType, detail))
            }
        }
    }

    /// A count for each layer: one number stands for all. Empty when the key is absent.
    fn per_layer(&self, key: &str, n_layer: u32) -> Result<Vec<u32>> {
        let negative = |number: i64| self.fault(key, Fault::HparamRange, format!("{number} for a layer"));
        let numbers = match get(self.metadata, &keys::of(self.arch, key)) {
            Some(Value::Array(Array::U32(numbers))) => numbers.clone(),
            Some(Value::Array(Array::I32(numbers))) => {
                numbers.iter().map(|&n| u32::try_from(n).map_err(|_| negative(n.into()))).collect::<Result<_>>()?
            }
            _ => return Ok(self.number(key)?.into_iter().collect()),
        };
        if numbers.len() as u64 != u64::from(n_layer) {
            let detail = format!("{} entries for {n_layer} layers", numbers.len());
            return Err(self.fault(key, Fault::HparamRange, detail));
        }
        Ok(numbers)
    }

    /// Query and key heads of the first layer, after a look at those of all.
    fn heads(&self, n_layer: u32, tensors: &[(&str, &[u64])]) -> Result<(u32, u32)> {
        let heads = self.per_layer(keys::ATTENTION_HEAD_COUNT, n_layer)?;
        let heads_kv = match self.per_layer(keys::ATTENTION_HEAD_COUNT_KV, n_layer)? {
            absent if absent.is_empty() => heads.clone(),
            heads_kv => heads_kv,
        };
        let has_attention = tensors.iter().any(|(name, _)| {
            let role = Role::of(name);
            role == Role::AttnQ || role.carries_values()
        });
        for (key, counts) in [(keys::ATTENTION_HEAD_COUNT, &heads), (keys::ATTENTION_HEAD_COUNT_KV, &heads_kv)] {
            // Hybrid models have layers without attention, whose count is 0; with attention somewhere, not all can be 0.
            if has_attention && !counts.is_empty() && counts.iter().all(|&count| count == 0) {
                return Err(self.fault(key, Fault::HparamRange, "0 heads, but there are attention tensors".to_owned()));
            }
        }
        self.check_head_width(&heads)?;
        let n_pairs = heads.len().max(heads_kv.len());
        let nth = |counts: &[u32], layer: usize| counts.get(layer).or(counts.first()).copied().unwrap_or(0);
        for layer in 0..n_pairs {
            let (n_head, n_head_kv) = (nth(&heads, layer), nth(&heads_kv, layer));
            if n_head_kv != 0 && !n_head.is_multiple_of(n_head_kv) {
                let detail = format!("{n_head_kv} key heads cannot be shared by {n_head} query heads");
                return Err(self.fault(keys::ATTENTION_HEAD_COUNT_KV, Fault::HparamRange, detail));
            }
        }
        Ok((nth(&heads, 0), nth(&heads_kv, 0)))
    }

    /// Without a head width of its own, the residual stream must divide into the heads.
    fn check_head_width(&self, heads: &[u32]) -> Result<()> {
        let embedding_length = self.number(keys::EMBEDDING_LENGTH)?;
        let key_length = get(self.metadata, &keys::of(self.arch, keys::ATTENTION_KEY_LENGTH));
        let (Some(embedding_length), None) = (embedding_length, key_length) else { return Ok(()) };
        match heads.iter().find(|&&n_head| n_head != 0 && !embedding_length.is_multiple_of(n_head)) {
            None => Ok(()),
            Some(n_head) => {
                let detail = format!("{embedding_length} wide embeddings do not divide into {n_head} heads");
                Err(self.fault(keys::ATTENTION_HEAD_COUNT, Fault::HparamRange, detail))
            }
        }
    }

    /// Values that would make a runtime allocate without bound or compute nonsense.
    fn check_ranges(&self, tensors: &[(&str, &[u64])]) -> Result<()> {
        if let Some(length) = self.number(keys::CONTEXT_LENGTH)? {
            self.in_range(keys::CONTEXT_LENGTH, length, 0, CONTEXT_LENGTH_MAX)?;
        }
        // Of architectures that are only known by name, some write 0 for what they do not have.
        let family = FAMILIES.iter().find(|family| family.name == self.arch);
        let rotates = family.is_some_and(|family| family.has_rope());
        if let (Some(n_rot), Some(width)) = (self.number(keys::ROPE_DIMENSION_COUNT)?, self.number(keys::EMBEDDING_LENGTH)?) {
            let key_length = self.number(keys::ATTENTION_KEY_LENGTH)?.unwrap_or(0);
            self.in_range(keys::ROPE_DIMENSION_COUNT, n_rot, if rotates { 2 } else { 0 }, width.max(key_length))?;
            if rotates && n_rot % 2 != 0 {
                let detail = format!("{n_rot} dimensions do not make pairs; an even number is required here");
                return Err(self.fault(keys::ROPE_DIMENSION_COUNT, Fault::HparamRange, detail));
            }
        }
        let rows = tensors.iter().find(|(name, _)| *name == TOKEN_EMBD).and_then(|(_, shape)| shape.first());
        if let (Some(vocab_size), Some(&rows)) = (self.number(keys::VOCAB_SIZE)?, rows) {
            self.in_range(keys::VOCAB_SIZE, vocab_size, 0, u32::try_from(rows).unwrap_or(u32::MAX))?;
        }
        for key in [keys::ATTENTION_LAYER_NORM_EPSILON, keys::ATTENTION_LAYER_NORM_RMS_EPSILON, keys::ROPE_FREQ_BASE] {
            match get(self.metadata, &keys::of(self.arch, key)) {
                None => {}
                Some(value) => match value.as_f64() {
                    Some(x) if !x.is_finite() || x < 0.0 => return Err(self.fault(key, Fault::HparamRange, format!("{x}"))),
                    Some(0.0) if family.is_some() => {
                        return Err(self.fault(key, Fault::HparamRange, "0; a number above 0 is required here".to_owned()));
                    }
                    Some(_) => {}
                    None => {
                        let detail = format!("is {}; a float is required here", value.value_type());
                        return Err(self.fault(key, Fault::ValueType, detail));
                    }
                },
            }
        }
        Ok(())
    }

    fn in_range(&self, key: &str, number: u32, min: u32, max: u32) -> Result<u32> {
        if (min..=max).contains(&number) {
            return Ok(number);
        }
        Err(self.fault(key, Fault::HparamRange, format!("{number} is not between {min} and {max}")))
    }

    fn fault(&self, key: &str, fault: Fault, detail: String) -> Error {
        Error::malformed(self.path, Place::Field(keys::of(self.arch, key)), fault, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENSORS: &[(&str, &[u64])] = &[("token_embd.weight", &[2048, 256]), ("blk.0.attn_q.weight", &[256, 256])];

    fn sound() -> Metadata {
        let mut metadata: Metadata = vec![(keys::GENERAL_ARCHITECTURE.to_owned(), "llama".into())];
        let numbers = [
            (keys::BLOCK_COUNT, 4),
            (keys::CONTEXT_LENGTH, 1024),
            (keys::EMBEDDING_LENGTH, 256),
            (keys::ATTENTION_HEAD_COUNT, 4),
            (keys::ATTENTION_HEAD_COUNT_KV, 2),
            (keys::ROPE_DIMENSION_COUNT, 64),
            (keys::VOCAB_SIZE, 2048),
        ];
        metadata.extend(numbers.map(|(key, number)| (keys::of("llama", key), Value::U32(number))));
        metadata.push((keys::of("llama", keys::ATTENTION_LAYER_NORM_RMS_EPSILON), Value::F32(1e-5)));
        metadata
    }

    fn with(key: &str, value: Value) -> Metadata {
        let mut metadata = sound();
        let key = keys::of("llama", key);
        metadata.retain(|(name, _)| *name != key);
        metadata.push((key, value));
        metadata
    }

    fn read(metadata: &Metadata) -> Result<Facts> {
        read_facts(Path::new("model.gguf"), metadata, TENSORS)
    }

    #[test]
    fn facts_are_read() {
        let facts = read(&sound()).unwrap();
        assert_eq!((facts.arch.as_str(), facts.n_layer, facts.n_head, facts.n_head_kv, facts.n_expert), ("llama", 4, 4, 2, 0));
        assert!(facts.tied);
        assert_eq!(facts.gqa(), 2);
    }

    #[test]
    fn numbers_of_any_width_are_read() {
        assert_eq!(read(&with(keys::BLOCK_COUNT, Value::U64(4))).unwrap().n_layer, 4);
        assert!(read(&with(keys::ATTENTION_LAYER_NORM_RMS_EPSILON, Value::F64(1e-5))).is_ok());
    }

    #[test]
    fn key_heads_default_to_query_heads() {
        let metadata: Metadata = sound().into_iter().filter(|(key, _)| !key.ends_with(keys::ATTENTION_HEAD_COUNT_KV)).collect();
        assert_eq!(read(&metadata).unwrap().n_head_kv, 4);
    }

    #[test]
    fn layers_without_attention_have_no_heads() {
        let metadata = with(keys::ATTENTION_HEAD_COUNT_KV, Value::Array(Array::I32(vec![0, 2, 0, 4])));
        let facts = read(&metadata).unwrap();
        assert_eq!((facts.n_head_kv, facts.gqa()), (0, 0));
    }

    #[test]
    fn impossible_hyperparameters_are_refused_by_key() {
        let cases = [
            (keys::BLOCK_COUNT, Value::U32(0), Fault::HparamRange),
            (keys::BLOCK_COUNT, Value::U32(600), Fault::HparamRange),
            (keys::BLOCK_COUNT, Value::U32(u32::MAX), Fault::HparamRange),
            (keys::BLOCK_COUNT, Value::U64(u64::MAX), Fault::HparamRange),
            (keys::BLOCK_COUNT, Value::F32(4.0), Fault::ValueType),
            (keys::BLOCK_COUNT, Value::I32(-4), Fault::ValueType),
            (keys::ATTENTION_HEAD_COUNT, Value::U32(0), Fault::HparamRange),
            (keys::ATTENTION_HEAD_COUNT, Value::U32(3), Fault::HparamRange),
            (keys::ATTENTION_HEAD_COUNT, Value::U32(96), Fault::HparamRange),
            (keys::ATTENTION_HEAD_COUNT_KV, Value::U32(8), Fault::HparamRange),
            (keys::ATTENTION_HEAD_COUNT_KV, Value::U32(3), Fault::HparamRange),
            (keys::ATTENTION_HEAD_COUNT_KV, Value::U32(0), Fault::HparamRange),
            (keys::ATTENTION_HEAD_COUNT_KV, Value::Array(Array::U32(vec![2; 3])), Fault::HparamRange),
            (keys::ATTENTION_HEAD_COUNT_KV, Value::Array(Array::I32(vec![2, 2, 2, -1])), Fault::HparamRange),
            (keys::ROPE_DIMENSION_COUNT, Value::U32(1 << 31), Fault::HparamRange),
            (keys::ROPE_DIMENSION_COUNT, Value::U32(0), Fault::HparamRange),
            (keys::ROPE_DIMENSION_COUNT, Value::U32(33), Fault::HparamRange),
            (keys::ROPE_FREQ_BASE, Value::F32(0.0), Fault::HparamRange),
            (keys::CONTEXT_LENGTH, Value::U32(u32::MAX), Fault::HparamRange),
            (keys::ATTENTION_LAYER_NORM_RMS_EPSILON, Value::F32(0.0), Fault::HparamRange),
            (keys::VOCAB_SIZE, Value::U32(1_000_000_000), Fault::HparamRange),
            (keys::ATTENTION_LAYER_NORM_RMS_EPSILON, Value::F32(f32::NAN), Fault::HparamRange),
            (keys::ATTENTION_LAYER_NORM_RMS_EPSILON, Value::U32(1), Fault::ValueType),
            (keys::EXPERT_COUNT, Value::U32(5000), Fault::HparamRange),
            (keys::EXPERT_USED_COUNT, Value::U32(2), Fault::HparamRange),
            (keys::NEXTN_PREDICT_LAYERS, Value::U32(5), Fault::HparamRange),
        ];
        for (key, value, expected) in cases {
            match read(&with(key, value.clone())) {
                Err(Error::Malformed { place: Place::Field(field), fault, .. }) => {
                    assert_eq!((fault, field), (expected, keys::of("llama", key)), "{value:?}");
                }
                other => panic!("{key} = {value:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_architecture_is_required() {
        for metadata in [vec![], vec![(keys::GENERAL_ARCHITECTURE.to_owned(), Value::U32(1))]] {
            assert!(matches!(read(&metadata), Err(Error::Malformed { fault: Fault::ValueType, .. })));
        }
    }
}
