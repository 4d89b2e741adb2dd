//! Hyperparameters as config.json states them, in both spellings (transformers 4 and 5): what it leaves out is what its class assumes.

use super::describe::{Assumed, Class, Family, Kind, Layers, Number, Pattern, Weighing};
use super::numbers;
use super::sizes::{Hparams, Numbers, RopeScaling, Stated};
use crate::error::{Error, Fault, Place, Result};
use crate::gguf::keys;
use crate::hf::json::Value as Json;
use crate::hf::{Config, Rope, Scaling, yarn_length};

/// Largest vocabulary accepted; the largest real ones have about 262 000 tokens.
const N_VOCAB_MAX: u32 = 1 << 24;

const ATTENTION_INTERVAL: &str = "full_attention_interval";

/// config.json, read as one class.
pub(super) struct InConfig<'a> {
    pub config: &'a Config,
    pub family: &'static Family,
    pub class: &'static Class,
    pub rope: Rope,
    /// Blocks after the layers that the source has.
    pub n_drafts: u64,
}

impl<'a> InConfig<'a> {
    /// # Errors
    /// Those of [`Config::rope`]; `HparamRange` for factors that cannot be, `Unsupported` for a scaling that this version does not know,
    /// and for a field that makes the model compute something else.
    pub fn new(config: &'a Config, family: &'static Family, class: &'static Class) -> Result<InConfig<'a>> {
        let numbers = InConfig { config, family, class, rope: config.rope()?, n_drafts: 0 };
        numbers.check_scaling()?;
        numbers.check_fixed()?;
        numbers.check_heads()?;
        Ok(numbers)
    }

    /// # Errors
    /// Those of [`Hparams::of`].
    pub fn hparams(&self) -> Result<Hparams> {
        Hparams::of(self.family, self)
    }

    /// True when the output is the token embedding.
    ///
    /// # Errors
    /// `ConfigField` where that is no truth value.
    pub fn is_tied(&self) -> Result<bool> {
        let stated = self.config.bool("tie_word_embeddings")?;
        Ok(stated.unwrap_or(matches!(self.assumed("tie_word_embeddings"), Some(Assumed::Is(x)) if x != 0.0)))
    }

    /// The width of a head where it is stated, or its class fills it in: then it is written too.
    pub fn stated_head_dim(&self) -> Result<Option<u64>> {
        match self.stated(&numbers::KEY_LENGTH)? {
            Some(Stated::Count(width)) => Ok(Some(width)),
            _ => Ok(None),
        }
    }

    /// Context length before stretching.
    pub fn original_context_len(&self) -> Result<Option<u32>> {
        const FIELD: &str = "original_max_position_embeddings";
        let assumed = match self.assumed(FIELD) {
            Some(Assumed::Is(len)) => Some(len),
            _ => None,
        };
        let Some(len) = self.rope.original_context_len.or(assumed) else { return Ok(None) };
        match len.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(&len) {
            true => Ok(Some(len as u32)),
            false => Err(self.config.fault(FIELD, format!("expected a context length, found {len}"))),
        }
    }

    /// What Phi-3's factors come with on the length of rotated heads.
    pub fn long_attention_factor(&self, n_ctx: usize) -> Result<Option<f64>> {
        let Scaling::Long { factor, attention_factor, .. } = &self.rope.scaling else { return Ok(None) };
        if attention_factor.is_some() {
            return Ok(*attention_factor);
        }
        let original = f64::from(self.original_context_len()?.unwrap_or(1));
        // llama.cpp's converter and transformers take the ratio, and transformers a factor that is stated before it.
        let factor = factor.unwrap_or(n_ctx as f64 / original);
        Ok(Some(if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() }))
    }

    /// Pairs that follow time, height and width.
    pub fn sections(&self) -> Option<&[u32]> {
        match (&self.rope.sections, self.assumed("mrope_section")) {
            (Some(sections), _) => Some(sections),
            (None, Some(Assumed::Are(sections))) if self.has(&numbers::ROPE_SECTIONS) => Some(sections),
            _ => None,
        }
    }

    fn has(&self, number: &Number) -> bool {
        self.family.numbers.iter().any(|own| own.key == number.key)
    }

    /// The period in which kinds of layers change, where it is stated by the first of these fields that is there; `else_period` where none is.
    fn period(&self, fields: &[&str], else_period: usize) -> Result<usize> {
        match fields.iter().find(|field| self.config.value(field).is_some()) {
            Some(field) => Ok(self.config.u32(field)?.unwrap_or(0) as usize),
            None => Ok(else_period),
        }
    }

    /// Of so many layers the last has attention, the others a state.
    ///
    /// # Errors
    /// `ConfigField`.
    pub fn attention_interval(&self, else_period: usize) -> Result<usize> {
        self.period(&[ATTENTION_INTERVAL], else_period)
    }

    fn assumed(&self, field: &str) -> Option<Assumed> {
        self.class.defaults.iter().find(|(found, _)| *found == field).map(|(_, assumed)| *assumed)
    }

    /// A number by one of its names, or what the class assumes.
    fn number(&self, number: &Number) -> Result<Option<f64>> {
        if number.key == keys::EXPERT_COUNT && self.config.bool("enable_moe_block")? == Some(false) {
            return Ok(None);
        }
        if let Some(x) = number.config.iter().find_map(|field| self.of_some_layer(field)) {
            return Ok(Some(x));
        }
        let is_read = |field: &&&str| self.assumed(field) != Some(Assumed::Ignored);
        let fields = || number.config.iter().filter(is_read);
        if let Some(field) = fields().find(|field| self.config.value(field).is_some()) {
            let is_whole = matches!(number.kind, Kind::Count(..) | Kind::PerLayer(..));
            return match is_whole {
                true => Ok(self.config.u32(field)?.map(f64::from)),
                false => self.config.f64(field),
            };
        }
        let is_null = fields().any(|field| self.config.has_null(field));
        match fields().find_map(|field| self.assumed(field)) {
            Some(Assumed::Is(x)) if !is_null => Ok(Some(x)),
            Some(Assumed::Times(field, factor)) => {
                let other = self.config.u32(field)?.map(f64::from);
                let assumed = match self.assumed(field) {
                    Some(Assumed::Is(x)) => Some(x),
                    _ => None,
                };
                Ok(other.or(assumed).map(|x| x * factor))
            }
            Some(Assumed::Share) => Ok(self.share()?.map(|share| share as f64)),
            _ => Ok(None),
        }
    }

    /// A number that config.json has for single layers, which are all of one kind: `per_layer_config.*.head_dim`.
    fn of_some_layer(&self, field: &str) -> Option<f64> {
        let (layers, field) = field.split_once(".*.")?;
        self.config.value(layers)?.as_object()?.values().find_map(|layer| layer.get(field)?.as_u64()).map(|x| x as f64)
    }

    /// One number for each layer, where config.json has another for some of them.
    fn of_layers(&self, number: &Number, usual: f64) -> Result<Option<Vec<u64>>> {
        let n_layer = self.number(&numbers::BLOCK_COUNT)?.unwrap_or(0.0);
        let n_layer = if n_layer <= numbers::LAYERS_MAX as f64 { n_layer as usize } else { 0 };
        let mut counts = vec![usual as u64; n_layer];
        let before = counts.clone();
        let own = self.config.value("per_layer_config").and_then(Json::as_object);
        for (layer, fields) in own.into_iter().flatten() {
            let Some(count) = layer.parse().ok().and_then(|layer: usize| counts.get_mut(layer)) else { continue };
            let stated = number.config.iter().find_map(|field| fields.get(*field)?.as_u64());
            *count = stated.unwrap_or(*count);
        }
        match number.key {
            keys::ATTENTION_HEAD_COUNT_KV if own.is_none() && self.config.bool("attention_k_eq_v")? == Some(true) => {
                let global = self.config.u32("num_global_key_value_heads")?.map(u64::from);
                let kinds = self.last_of_periods(n_layer, self.family.period())?;
                counts
                    .iter_mut()
                    .zip(kinds)
                    .filter(|(_, is_global)| *is_global)
                    .for_each(|(count, _)| *count = global.unwrap_or(*count));
            }
            keys::FEED_FORWARD_LENGTH if self.config.bool("use_double_wide_mlp")? == Some(true) => {
                let n_shared = self.config.u32("num_kv_shared_layers")?.unwrap_or(0) as usize;
                counts.iter_mut().skip(n_layer.saturating_sub(n_shared)).for_each(|count| *count = count.saturating_mul(2));
            }
            _ => {}
        }
        Ok((counts != before).then_some(counts))
    }

    /// The embedding's share of a head.
    fn share(&self) -> Result<Option<u64>> {
        let (width, n_head) = (self.number(&numbers::EMBEDDING_LENGTH)?, self.number(&numbers::HEAD_COUNT)?);
        Ok(width.zip(n_head).and_then(|(width, n_head)| (width as u64).checked_div(n_head as u64)))
    }

    fn refuse(&self, field: &str, value: impl std::fmt::Display, rule: impl std::fmt::Display) -> Error {
        let place = Place::Field(field.to_owned());
        Error::malformed(self.config.path(), place, Fault::HparamRange, format!("{value}: {rule}"))
    }

    /// Without a width of its own, a head is its share of the embedding, which must then divide.
    fn check_heads(&self) -> Result<()> {
        if self.config.value("head_dim").is_some() {
            return Ok(());
        }
        let (Some(width), Some(n_head)) = (self.number(&numbers::EMBEDDING_LENGTH)?, self.number(&numbers::HEAD_COUNT)?) else {
            return Ok(());
        };
        let is_own = matches!(self.assumed("head_dim"), Some(Assumed::Is(_)));
        match n_head == 0.0 || width % n_head == 0.0 || is_own {
            true => Ok(()),
            false => Err(self.refuse(self.name(&numbers::EMBEDDING_LENGTH), width, format!("not a multiple of {n_head} heads"))),
        }
    }

    fn check_scaling(&self) -> Result<()> {
        let positive = |what: &str, value: f64| match value > 0.0 {
            true => Ok(()),
            false => Err(self.refuse(&format!("rope_scaling.{what}"), value, "expected a positive number")),
        };
        match &self.rope.scaling {
            Scaling::None | Scaling::Dynamic => Ok(()),
            Scaling::Linear { factor } => positive("factor", *factor),
            Scaling::Yarn { factor, attention_factor, .. } => {
                positive("factor", *factor)?;
                positive("attention_factor", *attention_factor)
            }
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_len } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("original_max_position_embeddings", *original_context_len)?;
                match high_freq_factor > low_freq_factor {
                    true => Ok(()),
                    false => {
                        Err(self.refuse("rope_scaling.high_freq_factor", high_freq_factor, "expected more than low_freq_factor"))
                    }
                }
            }
            Scaling::Proportional { part } => match *part > 0.0 && *part <= 1.0 {
                true => Ok(()),
                false => Err(self.refuse("rope_parameters.partial_rotary_factor", part, "expected a part of 1")),
            },
            // Only a family whose converter writes what goes with them has a place for the two sets.
            Scaling::Long { .. } if self.family.has_long_rope() => Ok(()),
            Scaling::Long { .. } => Err(self.unknown_scaling("su (longrope)")),
            Scaling::Other(kind) => Err(self.unknown_scaling(kind)),
        }
    }

    fn unknown_scaling(&self, kind: &str) -> Error {
        Error::unsupported(
            format!("{}: rotary scaling {kind:?} of a {} model", self.config.path().display(), self.family.name),
            "supported are default, dynamic, linear, yarn and llama3",
        )
    }

    /// Refuses fields that would make the model another.
    fn check_fixed(&self) -> Result<()> {
        for (field, wanted) in self.family.fixed {
            let Some(value) = self.config.value(field) else { continue };
            let found = match value {
                Json::Bool(flag) => Some(f64::from(u8::from(*flag))),
                Json::Array(items) => Some(items.len() as f64),
                other => other.as_f64(),
            };
            if found != Some(*wanted) {
                let what = format!("{}: {field} of a {} model", self.config.path().display(), self.family.name);
                return Err(Error::unsupported(what, format!("GGUF files of this architecture are all as if it were {wanted}")));
            }
        }
        Ok(())
    }

    /// The name of a number here: the one that is used, else the first.
    fn name(&self, number: &Number) -> &'static str {
        if number.key == keys::ROPE_DIMENSION_COUNT {
            return if self.rope.partial_factor.is_some() { "partial_rotary_factor" } else { "head_dim" };
        }
        let own = self.family.numbers.iter().copied().find(|own| own.key == number.key);
        let fields = own.map_or(number.config, |own| own.config);
        fields.iter().copied().find(|field| self.config.value(field).is_some()).or(fields.first().copied()).unwrap_or(number.key)
    }
}

impl Numbers for InConfig<'_> {
    fn stated(&self, number: &Number) -> Result<Option<Stated>> {
        let float = |x: Option<f64>| Ok(x.map(Stated::Float));
        match number.key {
            keys::ROPE_FREQ_BASE if self.rope.theta.is_some() => return float(self.rope.theta),
            keys::ROPE_FREQ_BASE_SWA if self.rope.local_theta.is_some() => return float(self.rope.local_theta),
            keys::ROPE_DIMENSION_COUNT => {
                let assumed = match self.assumed("partial_rotary_factor") {
                    Some(Assumed::Is(part)) => Some(part),
                    _ => None,
                };
                let Some(part) = self.rope.partial_factor.or(assumed) else { return Ok(None) };
                let width = self.stated_head_dim()?.map_or_else(|| self.share(), |width| Ok(Some(width)))?;
                return Ok(width.map(|width| Stated::Count((width as f64 * part) as u64)));
            }
            keys::NEXTN_PREDICT_LAYERS => return Ok(Some(Stated::Count(self.n_drafts))),
            // config.json has the width of a head.
            keys::SSM_INNER_SIZE => {
                let factors = self.number(number)?.zip(self.number(&numbers::SSM_TIME_STEP_RANK)?);
                return Ok(factors.map(|(width, n_heads)| Stated::Count((width * n_heads) as u64)));
            }
            _ => {}
        }
        let Some(x) = self.number(number)? else { return Ok(None) };
        let x = if number.key == keys::BLOCK_COUNT { x + self.n_drafts as f64 } else { x };
        Ok(Some(match number.kind {
            Kind::PerLayer(..) => match self.of_layers(number, x)? {
                Some(counts) => Stated::Counts(counts),
                None => Stated::Count(x as u64),
            },
            Kind::Count(..) => Stated::Count(x as u64),
            // config.json has what to divide by the root of.
            _ if number.config == ["query_pre_attn_scalar"] && x > 0.0 => Stated::Float(1.0 / x.sqrt()),
            Kind::Positive | Kind::NotNegative => Stated::Float(x),
            Kind::Flag => Stated::Flag(x != 0.0),
        }))
    }

    fn fault(&self, number: &Number, fault: Fault, detail: String) -> Error {
        match fault {
            Fault::ValueType => self.config.fault(self.name(number), detail),
            fault => Error::malformed(self.config.path(), Place::Field(self.name(number).to_owned()), fault, detail),
        }
    }

    fn rope_scaling(&self) -> Result<RopeScaling> {
        Ok(match &self.rope.scaling {
            Scaling::Linear { factor } => RopeScaling::Linear { factor: *factor },
            Scaling::Yarn { factor, original_context_len, attention_factor, beta_fast, beta_slow, rounding, .. } => {
                RopeScaling::Yarn {
                    factor: *factor,
                    n_ctx_orig: *original_context_len as usize,
                    beta_fast: beta_fast.unwrap_or(32.0),
                    beta_slow: beta_slow.unwrap_or(1.0),
                    attn_factor: attention_factor / yarn_length(*factor, 1.0),
                    rounding: *rounding,
                }
            }
            Scaling::Long { .. } => {
                let n_ctx = self.number(&numbers::CONTEXT_LENGTH)?.unwrap_or(1.0) as usize;
                RopeScaling::Long {
                    n_ctx_orig: self.original_context_len()?.unwrap_or(1) as usize,
                    attn_factor: self.long_attention_factor(n_ctx)?.unwrap_or(1.0),
                }
            }
            Scaling::None | Scaling::Dynamic | Scaling::Llama3 { .. } | Scaling::Proportional { .. } | Scaling::Other(_) => {
                RopeScaling::None
            }
        })
    }

    fn last_of_periods(&self, n_layer: usize, period: usize) -> Result<Vec<bool>> {
        let Layers::Periodic { stated, .. } = self.family.layers else { return Ok(vec![false; n_layer]) };
        let (list, periods): (&str, &[&str]) = match stated {
            Pattern::LayerTypes => ("layer_types", &["sliding_window_pattern", "_sliding_window_pattern"]),
            Pattern::NoRopeLayers => ("no_rope_layers", &["no_rope_layer_interval"]),
            Pattern::Recurrent => ("layer_types", &[ATTENTION_INTERVAL]),
        };
        if self.config.value(list).is_some() {
            let kinds: Vec<bool> = match stated {
                Pattern::LayerTypes | Pattern::Recurrent => {
                    self.layer_types()?.into_iter().map(|kind| kind == "full_attention").collect()
                }
                Pattern::NoRopeLayers => self.config.u32s(list)?.unwrap_or_default().into_iter().map(|rope| rope == 0).collect(),
            };
            return match kinds.len() == n_layer {
                true => Ok(kinds),
                false => {
                    Err(self.refuse(list, format!("{} entries", kinds.len()), format!("expected one for each of {n_layer} layers")))
                }
            };
        }
        let period = self.period(periods, period)?;
        Ok((1..=n_layer).map(|layer| layer.checked_rem(period) == Some(0)).collect())
    }

    fn n_vocab(&self) -> Result<usize> {
        let assumed = match self.assumed("vocab_size") {
            Some(Assumed::Is(n)) => Some(n as u32),
            _ => None,
        };
        match self.config.u32("vocab_size")?.or(assumed) {
            None => Err(self.config.fault("vocab_size", "missing")),
            Some(n) if (1..=N_VOCAB_MAX).contains(&n) => Ok(n as usize),
            Some(n) => Err(self.refuse("vocab_size", n, format!("expected 1 to {N_VOCAB_MAX}"))),
        }
    }

    fn check_weighing(&self, weighing: Weighing) -> Result<()> {
        const FIELD: &str = "norm_topk_prob";
        let assumed = match self.assumed(FIELD) {
            Some(Assumed::Is(x)) => Some(x != 0.0),
            _ => None,
        };
        let Some(is_normalised) = self.config.bool(FIELD)?.or(assumed) else { return Ok(()) };
        if is_normalised == (weighing == Weighing::AmongChosen) {
            return Ok(());
        }
        let what = format!("{}: {FIELD} = {is_normalised} in a {} model", self.config.path().display(), self.family.name);
        Err(Error::unsupported(what, "GGUF files of this architecture all weigh their experts the other way"))
    }

    fn check_rest(&self) -> Result<()> {
        Ok(())
    }
}

impl InConfig<'_> {
    /// `layer_types`.
    ///
    /// # Errors
    /// `ConfigField` where it is no list of strings.
    pub fn layer_types(&self) -> Result<Vec<&str>> {
        Ok(self.config.strings("layer_types")?.unwrap_or_default())
    }
}

impl Family {
    /// True when llama.cpp's converter writes a key for its models.
    pub fn writes(&self, key: &str) -> bool {
        self.keys.iter().copied().flatten().any(|own| *own == key)
    }

    /// True where a model may have two sets of rotary factors, which stand in the file without a type of scaling.
    pub fn has_long_rope(&self) -> bool {
        self.writes(keys::ROPE_SCALING_ATTN_FACTOR) && !self.writes(keys::ROPE_SCALING_TYPE)
    }
}
