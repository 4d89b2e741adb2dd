//! The `{arch}.*` keys, in the order and with the value types that llama.cpp's converter gives them, and those without which a file would
//! mean another model.

use super::config_numbers::InConfig;
use super::describe::{AttentionWidth, Layers, Norm, Number, Positions};
use super::numbers;
use super::sizes::{ExpertHparams, Hparams, LayerHparams, Numbers, Rope, RopeScaling, Stated};
use crate::error::Result;
use crate::gguf::{Array, Metadata, Value, keys};
use crate::hf::{Rounding, Scaling, yarn_length};

/// Keys that most converters of llama.cpp leave out, in the order in which they are added where a file would say something else without:
/// readers take the default instead.
const ADDED: &[&str] = &[
    keys::ROPE_SCALING_TYPE,
    keys::ROPE_SCALING_FACTOR,
    keys::ROPE_SCALING_ORIGINAL_CONTEXT_LENGTH,
    keys::ROPE_SCALING_YARN_EXT_FACTOR,
    keys::ROPE_SCALING_ATTN_FACTOR,
    keys::ROPE_SCALING_YARN_BETA_FAST,
    keys::ROPE_SCALING_YARN_BETA_SLOW,
    keys::ROPE_SCALING_YARN_TRUNCATE,
    keys::ROPE_FREQ_BASE,
    keys::ROPE_DIMENSION_COUNT,
    keys::ATTENTION_KEY_LENGTH,
    keys::ATTENTION_VALUE_LENGTH,
    keys::ATTENTION_SCALE,
    keys::ATTENTION_SLIDING_WINDOW,
    keys::ATTENTION_SLIDING_WINDOW_PATTERN,
];
/// What readers take for a base that is not stated.
const FREQ_BASE_DEFAULT: f64 = 10_000.0;

/// `general.architecture` apart, every key that describes the model.
///
/// # Errors
/// `ConfigField` for a field of the wrong type.
pub(super) fn metadata(numbers: &InConfig<'_>, hparams: &Hparams) -> Result<Metadata> {
    let model = Described { numbers, hparams };
    let name = numbers.family.name;
    let mut metadata = Vec::new();
    for key in numbers.family.keys.iter().copied().flatten() {
        metadata.extend(model.value(key)?.map(|value| (keys::of(name, key), value)));
    }
    for key in ADDED {
        if !numbers.family.writes(key) && model.is_told_apart_by(key)? {
            metadata.extend(model.value(key)?.map(|value| (keys::of(name, key), value)));
        } else if [keys::ATTENTION_KEY_LENGTH, keys::ATTENTION_VALUE_LENGTH].contains(key) {
            // Where config.json does not state it, the converter does not write it.
            let full = keys::of(name, key);
            if !metadata.iter().any(|(found, _)| *found == full) && model.is_told_apart_by(key)? {
                metadata.push((full, count(model.first().key_dim)));
            }
        }
    }
    Ok(metadata)
}

/// Which layers see all, where the file has to say so: where a reader would take another pattern.
pub(super) fn pattern(numbers: &InConfig<'_>, hparams: &Hparams) -> Option<Vec<bool>> {
    let is_last = numbers.family.periods(hparams.layers.len())?;
    let (last, others) = numbers.family.kinds_of_periods()?;
    if numbers.family.has_states() {
        return None;
    }
    // Without a window, layers that would have one are as the others.
    if others.has_window() && hparams.layers.iter().all(|layer| layer.window.is_none()) {
        return None;
    }
    let expected = is_last.iter().map(|is_last| if *is_last { last } else { others });
    if numbers.family.writes(keys::ATTENTION_SLIDING_WINDOW_PATTERN) {
        return Some(hparams.layers.iter().map(|layer| std::ptr::eq(layer.layer, others)).collect());
    }
    let differs = hparams.layers.iter().zip(expected).any(|(layer, expected)| !std::ptr::eq(layer.layer, expected));
    differs.then(|| hparams.layers.iter().map(|layer| std::ptr::eq(layer.layer, others)).collect())
}

/// A model as config.json and its class describe it.
struct Described<'a> {
    numbers: &'a InConfig<'a>,
    hparams: &'a Hparams,
}

fn count(n: usize) -> Value {
    Value::U32(u32::try_from(n).unwrap_or(u32::MAX))
}

fn float(x: f64) -> Value {
    Value::F32(x as f32)
}

impl Described<'_> {
    fn first(&self) -> &LayerHparams {
        // Hyperparameters without a layer are refused.
        &self.hparams.layers[0]
    }

    /// A layer that sees all.
    fn global(&self) -> &LayerHparams {
        self.hparams.layers.iter().find(|layer| !layer.layer.has_window()).unwrap_or(self.first())
    }

    /// A layer with a window.
    fn local(&self) -> Option<&LayerHparams> {
        self.hparams.layers.iter().find(|layer| layer.layer.has_window())
    }

    /// One number for all layers, or a list where config.json has several.
    fn of_layers(&self, number: &Number, of: impl Fn(&LayerHparams) -> usize) -> Result<Value> {
        let mut counts = self.hparams.layers.iter().map(|layer| i32::try_from(of(layer)).unwrap_or(i32::MAX));
        Ok(match self.numbers.stated(number)? {
            Some(Stated::Counts(_)) => Value::Array(Array::I32(counts.collect())),
            _ => count(counts.next().unwrap_or(0).unsigned_abs() as usize),
        })
    }

    fn experts(&self) -> Option<ExpertHparams> {
        self.hparams.layers.iter().find_map(|layer| layer.experts)
    }

    /// The rotation of layers that see all, or of those with a window.
    fn rope(&self, is_local: Locality) -> Option<Rope> {
        let is_wanted = |layer: &&LayerHparams| {
            let positions = layer.attention().map(|attention| attention.positions);
            match is_local {
                Locality::Global => matches!(positions, Some(Positions::Rope(_))),
                Locality::Local => matches!(positions, Some(Positions::LocalRope(_))),
            }
        };
        self.hparams.layers.iter().find(is_wanted)?.rope
    }

    /// A value by its key; `None` where the model has none.
    fn value(&self, key: &str) -> Result<Option<Value>> {
        let Described { numbers, hparams } = *self;
        let first = self.first();
        let stated_float = |number| {
            Ok::<_, crate::Error>(match numbers.stated(number)? {
                Some(Stated::Float(x)) => Some(float(x)),
                _ => None,
            })
        };
        Ok(match key {
            keys::BLOCK_COUNT => Some(count(hparams.layers.len() + hparams.drafts.len())),
            keys::NEXTN_PREDICT_LAYERS => (!hparams.drafts.is_empty()).then(|| count(hparams.drafts.len())),
            keys::CONTEXT_LENGTH => Some(count(hparams.n_ctx_train)),
            keys::EMBEDDING_LENGTH => Some(count(hparams.n_embd)),
            keys::FEED_FORWARD_LENGTH if first.n_ff == 0 => None,
            keys::FEED_FORWARD_LENGTH => Some(self.of_layers(&numbers::FEED_FORWARD_LENGTH, |layer| layer.n_ff)?),
            keys::VOCAB_SIZE => Some(count(hparams.n_vocab)),
            keys::ATTENTION_HEAD_COUNT => Some(count(first.n_head)),
            keys::ATTENTION_HEAD_COUNT_KV => Some(self.of_layers(&numbers::HEAD_COUNT_KV, |layer| layer.n_head_kv)?),
            keys::ATTENTION_KEY_LENGTH if numbers.stated_head_dim()?.is_some() => Some(count(self.global().key_dim)),
            keys::ATTENTION_VALUE_LENGTH if numbers.stated_head_dim()?.is_some() => Some(count(self.global().value_dim)),
            keys::ATTENTION_KEY_LENGTH_SWA => self.local().map(|layer| count(layer.key_dim)),
            keys::ATTENTION_VALUE_LENGTH_SWA => self.local().map(|layer| count(layer.value_dim)),
            keys::ATTENTION_SHARED_KV_LAYERS => Some(count(hparams.layers.iter().filter(|layer| layer.keys_of.is_some()).count())),
            keys::EMBEDDING_LENGTH_PER_LAYER_INPUT => Some(count(hparams.n_per_layer)),
            keys::ATTENTION_LAYER_NORM_RMS_EPSILON => {
                matches!(numbers.family.output_norm, Norm::Rms(_)).then_some(Value::F32(hparams.norm_eps))
            }
            keys::ATTENTION_LAYER_NORM_EPSILON => {
                matches!(numbers.family.output_norm, Norm::Layer(..)).then_some(Value::F32(hparams.norm_eps))
            }
            keys::ATTENTION_SLIDING_WINDOW => {
                let window = hparams.layers.iter().find_map(|layer| layer.window);
                // Where the key is always there, 0 is none.
                if numbers.family.writes(key) { Some(count(window.unwrap_or(0))) } else { window.map(count) }
            }
            keys::ATTENTION_SLIDING_WINDOW_PATTERN => pattern(numbers, hparams).map(|local| Value::Array(Array::Bool(local))),
            keys::ATTENTION_SCALE => match numbers.family.writes(key) {
                true => stated_float(&numbers::ATTENTION_SCALE)?,
                false => Some(Value::F32(first.attention_scale)),
            },
            keys::ATTN_LOGIT_SOFTCAPPING => stated_float(&numbers::ATTN_SOFTCAP)?,
            keys::FINAL_LOGIT_SOFTCAPPING => stated_float(&numbers::FINAL_SOFTCAP)?,
            keys::EMBEDDING_SCALE => stated_float(&numbers::EMBEDDING_SCALE)?,
            keys::RESIDUAL_SCALE => stated_float(&numbers::RESIDUAL_SCALE)?,
            keys::LOGIT_SCALE => stated_float(&numbers::LOGIT_SCALE)?,
            keys::EXPERT_COUNT => self.experts().map(|experts| count(experts.n_expert)),
            keys::EXPERT_USED_COUNT => self.experts().map(|experts| count(experts.n_used)),
            keys::EXPERT_FEED_FORWARD_LENGTH => self.experts().map(|experts| count(experts.n_ff)),
            keys::EXPERT_SHARED_FEED_FORWARD_LENGTH => self.experts().and_then(|experts| experts.n_ff_shared).map(count),
            keys::N_DEEPSTACK_LAYERS => Some(count(self.n_deepstack())),
            keys::ATTENTION_RECURRENT_LAYERS => {
                let blocks = hparams.layers.iter().chain(&hparams.drafts);
                Some(Value::Array(Array::Bool(blocks.map(|layer| layer.delta.is_some()).collect())))
            }
            keys::FULL_ATTENTION_INTERVAL => self.attention_interval()?.map(count),
            key => self.delta_value(key).map_or_else(|| self.rope_value(key), |value| Ok(Some(value)))?,
        })
    }

    fn attention_interval(&self) -> Result<Option<usize>> {
        match self.numbers.family.layers {
            Layers::Periodic { period, .. } => self.numbers.attention_interval(period as usize).map(Some),
            _ => Ok(None),
        }
    }

    fn delta_value(&self, key: &str) -> Option<Value> {
        let delta = self.hparams.layers.iter().find_map(|layer| layer.delta)?;
        match key {
            keys::SSM_CONV_KERNEL => Some(count(delta.n_kernel)),
            keys::SSM_STATE_SIZE => Some(count(delta.key_dim)),
            keys::SSM_GROUP_COUNT => Some(count(delta.n_key_heads)),
            keys::SSM_TIME_STEP_RANK => Some(count(delta.n_value_heads)),
            keys::SSM_INNER_SIZE => Some(count(delta.n_value_heads * delta.value_dim)),
            _ => None,
        }
    }

    fn rope_value(&self, key: &str) -> Result<Option<Value>> {
        let Described { numbers, hparams } = *self;
        let Some(rope) = self.rope(Locality::Global) else { return Ok(None) };
        let scaling = &numbers.rope.scaling;
        Ok(match key {
            keys::ROPE_DIMENSION_COUNT => Some(count(rope.n_rot)),
            keys::ROPE_DIMENSION_COUNT_SWA => self.rope(Locality::Local).map(|rope| count(rope.n_rot)),
            keys::ROPE_FREQ_BASE => Some(float(rope.freq_base)),
            keys::ROPE_FREQ_BASE_SWA => self.rope(Locality::Local).map(|rope| float(rope.freq_base)),
            keys::ROPE_DIMENSION_SECTIONS => numbers.sections().map(|sections| {
                let mut four: Vec<i32> = sections.iter().map(|n| i32::try_from(*n).unwrap_or(i32::MAX)).collect();
                four.resize(4, 0);
                Value::Array(Array::I32(four))
            }),
            keys::ROPE_SCALING_TYPE => match scaling {
                Scaling::Linear { .. } => Some(Value::from("linear")),
                Scaling::Yarn { .. } => Some(Value::from("yarn")),
                _ => None,
            },
            keys::ROPE_SCALING_FACTOR => match scaling {
                Scaling::Linear { factor } | Scaling::Yarn { factor, .. } => Some(float(*factor)),
                _ => None,
            },
            keys::ROPE_SCALING_ORIGINAL_CONTEXT_LENGTH => match scaling {
                Scaling::Yarn { original_context_len, .. } => Some(Value::U32(*original_context_len)),
                _ if numbers.family.has_long_rope() => numbers.original_context_len()?.map(Value::U32),
                _ => None,
            },
            keys::ROPE_SCALING_ATTN_FACTOR => match scaling {
                // Readers multiply with YaRN's own factor, whatever else is stated.
                Scaling::Yarn { factor, attention_factor, .. } => {
                    let beside = attention_factor / yarn_length(*factor, 1.0);
                    ((beside as f32) != 1.0).then_some(float(beside))
                }
                Scaling::Long { .. } => numbers.long_attention_factor(hparams.n_ctx_train)?.map(float),
                _ => None,
            },
            keys::ROPE_SCALING_YARN_EXT_FACTOR => self.yarn(|[extrapolation, _, _]| extrapolation),
            keys::ROPE_SCALING_YARN_BETA_FAST => self.yarn(|[_, fast, _]| fast),
            keys::ROPE_SCALING_YARN_BETA_SLOW => self.yarn(|[_, _, slow]| slow),
            keys::ROPE_SCALING_YARN_TRUNCATE => match scaling {
                Scaling::Yarn { rounding: Rounding::None, .. } => Some(Value::Bool(false)),
                _ => None,
            },
            _ => None,
        })
    }

    fn yarn(&self, which: impl Fn([Option<f64>; 3]) -> Option<f64>) -> Option<Value> {
        match &self.numbers.rope.scaling {
            Scaling::Yarn { extrapolation_factor, beta_fast, beta_slow, .. } => {
                which([*extrapolation_factor, *beta_fast, *beta_slow]).map(float)
            }
            _ => None,
        }
    }

    /// Layers that pictures are added to once more.
    fn n_deepstack(&self) -> usize {
        let vision = self.numbers.config.root_value("vision_config");
        let indexes = vision.and_then(|vision| vision.get("deepstack_visual_indexes")).and_then(|list| list.as_array());
        indexes.map_or(0, Vec::len)
    }

    /// True where a file without the key would be another model.
    fn is_told_apart_by(&self, key: &str) -> Result<bool> {
        let Described { numbers, hparams } = *self;
        let first = self.first();
        let rope = self.rope(Locality::Global);
        let share = hparams.n_embd / first.n_head.max(1);
        Ok(match key {
            keys::ROPE_FREQ_BASE => rope.is_some_and(|rope| rope.freq_base != FREQ_BASE_DEFAULT),
            keys::ROPE_DIMENSION_COUNT => rope.is_some_and(|rope| rope.n_rot != first.key_dim),
            keys::ATTENTION_KEY_LENGTH | keys::ATTENTION_VALUE_LENGTH => {
                first.key_dim != share || !hparams.n_embd.is_multiple_of(first.n_head.max(1))
            }
            keys::ATTENTION_SCALE => {
                let width = match numbers.family.attention_width {
                    AttentionWidth::One => 1,
                    AttentionWidth::EmbdShareAt(layers) if layers as usize == hparams.layers.len() => share,
                    _ => first.key_dim,
                };
                first.attention_scale != (1.0 / (width as f64).sqrt()) as f32
            }
            keys::ATTENTION_SLIDING_WINDOW => {
                let sees_all = |window: usize| window >= hparams.n_ctx_train;
                hparams.layers.iter().any(|layer| layer.window.is_some_and(|window| !sees_all(window)))
            }
            keys::ATTENTION_SLIDING_WINDOW_PATTERN => true,
            // Scaling of any other kind is a tensor, or nothing.
            _ => !matches!(rope.map(|rope| rope.scaling), None | Some(RopeScaling::None)),
        })
    }
}

/// Layers that see all, or with a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Locality {
    Global,
    Local,
}
