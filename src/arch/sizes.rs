//! What a model is, apart from its weights: read by one reader from whatever states it, config.json or GGUF metadata.
//!
//! Nothing is allocated by what is read here but one small struct per layer, of which there are at most [`numbers::LAYERS_MAX`].

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation, clippy::indexing_slicing, clippy::unwrap_used)]

use super::delta_sizes::DeltaHparams;
use super::describe::{
    Attention, AttentionWidth, Body, Default, Dim, Experts, Family, Kind, Layer, Layers, Norm, Number, Positions, Step, When,
};
use super::describe::{OutputGate, RopeLayout, Scale, Weighing};
use super::numbers::{self, WIDTH_MAX};
use crate::error::{Error, Fault, Result};
use crate::hf::Rounding;

/// The numbers that shape a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Hparams {
    /// The architecture.
    pub family: &'static Family,
    /// Tokens in the vocabulary: rows of the embedding.
    pub n_vocab: usize,
    /// Width of the states.
    pub n_embd: usize,
    /// Width of what each layer gets of the tokens; 0 where it gets nothing.
    pub n_per_layer: usize,
    /// Tokens of context it was trained for. Nothing is ever allocated by it.
    pub n_ctx_train: usize,
    /// Added to the mean square, or the variance, before its root is taken.
    pub norm_eps: f32,
    /// What the embedding is multiplied with.
    pub embedding_scale: f32,
    /// What each step's result is multiplied with before it is added.
    pub residual_scale: f32,
    /// What the scores of tokens are divided by.
    pub logit_scale: f32,
    /// The bound `c` of scores of tokens, `c * tanh(score / c)`.
    pub logit_softcap: Option<f32>,
    /// How the context was stretched.
    pub rope_scaling: RopeScaling,
    /// Every layer's own sizes.
    pub layers: Vec<LayerHparams>,
    /// Those of the blocks after them, which foretell more tokens and are not run.
    pub drafts: Vec<LayerHparams>,
}

/// Sizes that may differ from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerHparams {
    /// What it does.
    pub layer: &'static Layer,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads, a divisor of `n_head`.
    pub n_head_kv: usize,
    /// Width of a query and of a key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Factor on the scores of attention.
    pub attention_scale: f32,
    /// The bound `c` of the scores of attention, `c * tanh(score / c)`.
    pub attention_softcap: Option<f32>,
    /// The layer before it whose keys and values it uses instead of its own.
    pub keys_of: Option<usize>,
    /// Rotary positions, where it has them.
    pub rope: Option<Rope>,
    /// Tokens that attention sees: the last ones. All where there is no window.
    pub window: Option<usize>,
    /// Inner width of the feed-forward network, where it is one.
    pub n_ff: usize,
    /// Sizes of the experts that are in its place.
    pub experts: Option<ExpertHparams>,
    /// Sizes of the delta net that is in the place of attention.
    pub delta: Option<DeltaHparams>,
}

/// Sizes of a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertHparams {
    /// Experts to choose from.
    pub n_expert: usize,
    /// Experts that one token uses.
    pub n_used: usize,
    /// Inner width of an expert.
    pub n_ff: usize,
    /// Inner width of the expert that every token uses, where there is one.
    pub n_ff_shared: Option<usize>,
}

/// How positions are turned into angles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Leading dimensions of each head that are rotated: even.
    pub n_rot: usize,
    /// Base of the frequencies.
    pub freq_base: f64,
    /// Which dimensions are a pair.
    pub layout: RopeLayout,
    /// How the context was stretched.
    pub scaling: RopeScaling,
}

/// How a context longer than the first training's is fitted in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all, or by factors that the file holds for each pair (Llama 3.1).
    None,
    /// Positions are divided by the factor.
    Linear {
        /// By how much the context was stretched.
        factor: f64,
    },
    /// Fast pairs are kept, slow ones divided, those between blended (<https://arxiv.org/abs/2309.00071>).
    Yarn {
        /// By how much the context was stretched.
        factor: f64,
        /// Context of the first training.
        n_ctx_orig: usize,
        /// Turns within that context from which on a pair is kept.
        beta_fast: f64,
        /// Turns up to which it is divided.
        beta_slow: f64,
        /// Factor on the length of rotated heads, beside YaRN's own.
        attn_factor: f64,
        /// What becomes of the pairs between which frequencies are blended.
        rounding: Rounding,
    },
    /// Two sets of factors, for contexts up to the first training's and for longer ones (Phi-3).
    Long {
        /// Context of the first training.
        n_ctx_orig: usize,
        /// Factor on the length of rotated heads.
        attn_factor: f64,
    },
}

/// Where hyperparameters are stated: config.json, or the metadata of a GGUF file.
pub trait Numbers {
    /// What is stated, in its own type, not yet compared with any bound. `None` where nothing is.
    ///
    /// # Errors
    /// For a value that has not the type of the number.
    fn stated(&self, number: &Number) -> Result<Option<Stated>>;

    /// An error about a number, by the name that it has here.
    fn fault(&self, number: &Number, fault: Fault, detail: String) -> Error;

    /// How the context was stretched.
    ///
    /// # Errors
    /// For a scaling that cannot be carried out, or lacks a number.
    fn rope_scaling(&self) -> Result<RopeScaling>;

    /// Of a family with [`Layers::Periodic`]: which of the layers are of the kind that is last in each period.
    ///
    /// # Errors
    /// For a pattern that is none.
    fn last_of_periods(&self, n_layer: usize, period: usize) -> Result<Vec<bool>>;

    /// Rows of the embedding.
    ///
    /// # Errors
    /// Where it has none, or what is stated elsewhere contradicts.
    fn n_vocab(&self) -> Result<usize>;

    /// Refuses what would make the experts' weights others than [`Weighing`] says.
    ///
    /// # Errors
    /// `Unsupported`.
    fn check_weighing(&self, weighing: Weighing) -> Result<()>;

    /// Refuses what is stated, but means something that this family does not do.
    ///
    /// # Errors
    /// `Unsupported`.
    fn check_rest(&self) -> Result<()>;
}

/// A value as it is stated.
#[derive(Debug, Clone, PartialEq)]
pub enum Stated {
    /// A whole number.
    Count(u64),
    /// A float.
    Float(f64),
    /// True or false.
    Flag(bool),
    /// Whole numbers, one for each layer.
    Counts(Vec<u64>),
}

impl Hparams {
    /// Reads and checks them.
    ///
    /// # Errors
    /// Those of [`Numbers`]; `ValueType` for a number that is missing, `HparamRange` for one that cannot be.
    pub fn of(family: &'static Family, numbers: &dyn Numbers) -> Result<Hparams> {
        let reader = Reader { family, numbers };
        let n_embd = reader.required_count(&numbers::EMBEDDING_LENGTH)?;
        let float = |number: &Number| Ok::<_, Error>(reader.float(number)?.map(narrow));
        let mut layers = reader.layers(n_embd)?;
        let drafts = layers.split_off(reader.n_layers()?.min(layers.len()));
        let hparams = Hparams {
            family,
            n_vocab: numbers.n_vocab()?,
            n_embd,
            n_per_layer: reader.count(&numbers::PER_LAYER_INPUT)?.unwrap_or(0),
            n_ctx_train: reader.required_count(&numbers::CONTEXT_LENGTH)?,
            norm_eps: reader.norm_eps()?,
            embedding_scale: match family.embedding.scale {
                Scale::One => 1.0,
                #[allow(clippy::cast_precision_loss)] // widths are below 2^24
                Scale::SqrtEmbd => (n_embd as f32).sqrt(),
                Scale::Stated => float(&numbers::EMBEDDING_SCALE)?.unwrap_or(1.0),
            },
            residual_scale: float(&numbers::RESIDUAL_SCALE)?.unwrap_or(1.0),
            logit_scale: float(&numbers::LOGIT_SCALE)?.unwrap_or(1.0),
            logit_softcap: float(&numbers::FINAL_SOFTCAP)?.filter(|cap| *cap > 0.0),
            rope_scaling: reader.rope_scaling()?,
            layers,
            drafts,
        };
        numbers.check_rest()?;
        Ok(hparams)
    }

    /// The length of a dimension: in `layer`, or of the model as a whole.
    ///
    /// # Panics
    /// For a dimension that only layers have, without one: a mistake of a family's description.
    pub fn len(&self, dim: Dim, layer: Option<&LayerHparams>) -> usize {
        let in_layer = || layer.expect("a dimension of a layer");
        let experts = || in_layer().experts.expect("a dimension of experts");
        let [q, k, v] = [
            |layer: &LayerHparams| layer.n_head.saturating_mul(layer.key_dim),
            |layer: &LayerHparams| layer.n_head_kv.saturating_mul(layer.key_dim),
            |layer: &LayerHparams| layer.n_head_kv.saturating_mul(layer.value_dim),
        ];
        match dim {
            Dim::Vocab => self.n_vocab,
            Dim::Embd => self.n_embd,
            Dim::TwiceEmbd => self.n_embd.saturating_mul(2),
            Dim::Ctx => self.n_ctx_train,
            Dim::PerLayer => self.n_per_layer,
            Dim::AllPerLayer => self.n_per_layer.saturating_mul(self.layers.len()),
            Dim::One => 1,
            Dim::Ff => in_layer().n_ff,
            Dim::GateUp => in_layer().n_ff.saturating_mul(2),
            Dim::Q => q(in_layer()),
            Dim::GatedQ => q(in_layer()).saturating_mul(2),
            Dim::K => k(in_layer()),
            Dim::V => v(in_layer()),
            Dim::Qkv => q(in_layer()).saturating_add(k(in_layer())).saturating_add(v(in_layer())),
            Dim::Attended => in_layer().n_head.saturating_mul(in_layer().value_dim),
            Dim::HeadDim => in_layer().key_dim,
            Dim::Heads => in_layer().n_head,
            Dim::Experts => experts().n_expert,
            Dim::ExpertFf => experts().n_ff,
            Dim::ExpertGateUp => experts().n_ff.saturating_mul(2),
            Dim::SharedFf => experts().n_ff_shared.expect("the width of a shared expert"),
            delta => in_layer().delta.expect("a dimension of a delta net").len(delta),
        }
    }

    /// True where its layers have a step.
    pub fn has(&self, step: &Step) -> bool {
        match step.when {
            When::Always => true,
            When::PerLayer => self.n_per_layer > 0,
            When::Experts => self.layers.iter().any(|layer| layer.experts.is_some()),
            When::NoExperts => self.layers.iter().all(|layer| layer.experts.is_none()),
        }
    }

    /// How layers that see all are rotated.
    pub fn rope(&self) -> Option<Rope> {
        let is_global =
            |layer: &&LayerHparams| layer.attention().is_some_and(|attention| matches!(attention.positions, Positions::Rope(_)));
        self.layers.iter().find(is_global).or(self.layers.first()).and_then(|layer| layer.rope)
    }

    /// Floating-point operations for the next `n_tokens` of a sequence of which `n_before` are known, up to the scores of the token after
    /// them: two for each multiply-add of the matrices and of attention, none for anything else.
    pub fn flops(&self, n_tokens: usize, n_before: usize) -> f64 {
        let [n_tokens, n_before, n_embd] = [n_tokens, n_before, self.n_embd].map(|n| n as f64);
        let n_keys = n_tokens * n_before + n_tokens * (n_tokens + 1.0) / 2.0;
        let layers = self.layers.iter().map(|layer| {
            let n_q = layer.n_head as f64 * layer.key_dim as f64;
            let n_kv = layer.n_head_kv as f64 * layer.key_dim as f64;
            if let Some(delta) = &layer.delta {
                let weights = n_embd * (delta.outputs() + layer.feed_forward_outputs());
                return 2.0 * (weights + delta.multiply_adds()) * n_tokens;
            }
            let n_gates = if layer.has_gate() { n_q } else { 0.0 };
            let weights = n_embd * (2.0 * n_q + n_gates + 2.0 * n_kv + layer.feed_forward_outputs());
            2.0 * weights * n_tokens + 4.0 * n_q * n_keys
        });
        layers.sum::<f64>() + 2.0 * n_embd * self.n_vocab as f64
    }
}

impl LayerHparams {
    /// Rows of `n_embd` weights, or columns of them, that one token is multiplied with after attention.
    fn feed_forward_outputs(&self) -> f64 {
        let matrices = self.layer.steps.iter().find_map(|step| match &step.body {
            Body::Network(network) => Some(network.n_matrices()),
            _ => None,
        });
        let network = |n_ff: usize| 3.0 * n_ff as f64;
        match self.experts {
            None => matrices.unwrap_or(0.0) * self.n_ff as f64,
            Some(ExpertHparams { n_expert, n_used, n_ff, n_ff_shared }) => {
                n_expert as f64 + n_used as f64 * network(n_ff) + n_ff_shared.map_or(0.0, |n_ff| 1.0 + network(n_ff))
            }
        }
    }

    /// True where the result of attention is multiplied with gates.
    pub fn has_gate(&self) -> bool {
        self.attention().is_some_and(|attention| attention.gate != OutputGate::None)
    }

    /// The attention of the layer.
    pub fn attention(&self) -> Option<&'static Attention> {
        self.layer.attention()
    }
}

#[allow(clippy::cast_possible_truncation)] // to the nearest f32, which it was stored as
fn narrow(x: f64) -> f32 {
    x as f32
}

fn usize_of(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Reads numbers within their bounds.
struct Reader<'a> {
    family: &'static Family,
    numbers: &'a dyn Numbers,
}

impl Reader<'_> {
    /// The family's own version of a number; `None` where it has none of the key.
    fn own(&self, number: &Number) -> Option<&'static Number> {
        self.family.numbers.iter().copied().find(|own| own.key == number.key)
    }

    fn fault<T>(&self, number: &Number, fault: Fault, detail: impl Into<String>) -> Result<T> {
        Err(self.numbers.fault(number, fault, detail.into()))
    }

    fn missing<T>(&self, number: &Number) -> Result<T> {
        let what = match number.kind {
            Kind::Count(..) | Kind::PerLayer(..) => "whole number",
            Kind::Positive | Kind::NotNegative => "float",
            Kind::Flag => "bool",
        };
        self.fault(number, Fault::ValueType, format!("is missing; a {what} is required here"))
    }

    fn in_bounds(&self, number: &Number, count: u64) -> Result<usize> {
        let (Kind::Count(min, max) | Kind::PerLayer(min, max)) = number.kind else { return Ok(usize_of(count)) };
        if (min..=max).contains(&count) {
            return Ok(usize_of(count));
        }
        self.fault(number, Fault::HparamRange, format!("{count}, not in {min}..={max}"))
    }

    /// A whole number that every family has.
    fn required_count(&self, number: &Number) -> Result<usize> {
        match self.stated_count(number)? {
            Some(count) => Ok(count),
            None => self.missing(number),
        }
    }

    fn stated_count(&self, number: &Number) -> Result<Option<usize>> {
        match self.numbers.stated(number)? {
            None => Ok(None),
            Some(Stated::Count(count)) => self.in_bounds(number, count).map(Some),
            Some(_) => self.fault(number, Fault::ValueType, "is no whole number"),
        }
    }

    /// A whole number of the family: stated, or by default.
    fn count(&self, number: &Number) -> Result<Option<usize>> {
        let Some(number) = self.own(number) else { return Ok(None) };
        match (self.stated_count(number)?, number.default) {
            (Some(count), _) => Ok(Some(count)),
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a whole number in the table
            (None, Default::Is(count)) => Ok(Some(count as usize)),
            (None, Default::Required) => self.missing(number),
            (None, Default::Absent | Default::As(_)) => Ok(None),
        }
    }

    /// A float of the family: stated, or by default.
    fn float(&self, number: &Number) -> Result<Option<f64>> {
        let Some(number) = self.own(number) else { return Ok(None) };
        let stated = match self.numbers.stated(number)? {
            Some(Stated::Float(x)) => x,
            Some(_) => return self.fault(number, Fault::ValueType, "is no float"),
            None => {
                return match number.default {
                    Default::Is(x) => Ok(Some(x)),
                    Default::Required => self.missing(number),
                    Default::Absent | Default::As(_) => Ok(None),
                };
            }
        };
        let is_bounded = stated <= f64::from(f32::MAX);
        match number.kind {
            Kind::NotNegative if stated >= 0.0 && is_bounded => Ok(Some(stated)),
            Kind::NotNegative => self.fault(number, Fault::HparamRange, format!("{stated}; a number from 0 on is required here")),
            // What f32 has as 0 is written as 0.
            _ if narrow(stated) > 0.0 && is_bounded => Ok(Some(stated)),
            _ => self.fault(number, Fault::HparamRange, format!("{stated}; a number above 0 is required here")),
        }
    }

    /// One number for all layers, or one for each.
    fn per_layer(&self, number: &Number, n_layer: usize) -> Result<Option<Vec<usize>>> {
        match self.numbers.stated(number)? {
            None => Ok(None),
            Some(Stated::Count(count)) => Ok(Some(vec![self.in_bounds(number, count)?; n_layer])),
            Some(Stated::Counts(counts)) if counts.len() == n_layer => {
                counts.into_iter().map(|count| self.in_bounds(number, count)).collect::<Result<_>>().map(Some)
            }
            Some(Stated::Counts(counts)) => {
                self.fault(number, Fault::HparamRange, format!("{} values for {n_layer} layers", counts.len()))
            }
            Some(_) => self.fault(number, Fault::ValueType, "is no whole number"),
        }
    }

    fn norm_eps(&self) -> Result<f32> {
        let number = match self.family.output_norm {
            Norm::Layer(..) => &numbers::LAYER_NORM_EPS,
            Norm::Rms(_) | Norm::RmsAlone | Norm::None => &numbers::RMS_EPS,
        };
        match self.float(number)? {
            Some(eps) if eps < 1.0 => Ok(narrow(eps)),
            Some(eps) => self.fault(number, Fault::HparamRange, format!("{eps}, not below 1")),
            None => self.missing(number),
        }
    }

    /// The window that is stated; converters write 0 for none.
    fn window(&self) -> Result<Option<usize>> {
        Ok(self.count(&numbers::WINDOW)?.filter(|window| *window > 0))
    }

    fn rope_scaling(&self) -> Result<RopeScaling> {
        if self.family.has_rope() { self.numbers.rope_scaling() } else { Ok(RopeScaling::None) }
    }

    /// Layers that are run: all blocks but those that foretell more tokens.
    fn n_layers(&self) -> Result<usize> {
        let n_block = self.required_count(&numbers::BLOCK_COUNT)?;
        let n_draft = self.count(&numbers::DRAFT_LAYERS)?.unwrap_or(0);
        match n_block.checked_sub(n_draft) {
            Some(n_layer) if n_layer > 0 => Ok(n_layer),
            _ => self.fault(&numbers::DRAFT_LAYERS, Fault::HparamRange, format!("{n_draft} of {n_block} blocks")),
        }
    }

    /// Sizes of all blocks, those after the layers included.
    fn layers(&self, n_embd: usize) -> Result<Vec<LayerHparams>> {
        let n_layer = self.required_count(&numbers::BLOCK_COUNT)?;
        let required = |number: &Number| match self.per_layer(number, n_layer)? {
            Some(counts) => Ok(counts),
            None => self.missing(number),
        };
        let n_head = required(&numbers::HEAD_COUNT)?;
        let n_ff = match self.own(&numbers::FEED_FORWARD_LENGTH) {
            // Where all networks are experts, nobody need say how wide others would be.
            Some(own) if own.default == Default::Absent => self.per_layer(own, n_layer)?.unwrap_or_else(|| vec![0; n_layer]),
            _ => required(&numbers::FEED_FORWARD_LENGTH)?,
        };
        let n_head_kv = self.per_layer(&numbers::HEAD_COUNT_KV, n_layer)?.unwrap_or_else(|| n_head.clone());
        let kinds = self.kinds(n_layer)?;
        let layers = kinds.into_iter().zip(n_head).zip(n_head_kv).zip(n_ff);
        let layers =
            layers.map(|(((layer, n_head), n_head_kv), n_ff)| self.layer(layer, n_embd, n_layer, [n_head, n_head_kv, n_ff]));
        self.with_shared_keys(layers.collect::<Result<_>>()?)
    }

    /// The last layers use the keys and values of the last of their kind before them.
    fn with_shared_keys(&self, mut layers: Vec<LayerHparams>) -> Result<Vec<LayerHparams>> {
        let n_shared = self.count(&numbers::SHARED_KV_LAYERS)?.unwrap_or(0);
        let Some(first) = layers.len().checked_sub(n_shared) else {
            let detail = format!("{n_shared} of {} layers", layers.len());
            return self.fault(&numbers::SHARED_KV_LAYERS, Fault::HparamRange, detail);
        };
        let (own, sharing) = layers.split_at_mut(first);
        for layer in sharing {
            layer.keys_of = own.iter().rposition(|before| std::ptr::eq(before.layer, layer.layer));
            if layer.keys_of.is_none() {
                let detail = format!("{n_shared}, but no layer before them is like each of these");
                return self.fault(&numbers::SHARED_KV_LAYERS, Fault::HparamRange, detail);
            }
        }
        Ok(layers)
    }

    /// What each block does.
    fn kinds(&self, n_block: usize) -> Result<Vec<&'static Layer>> {
        let n_layer = self.n_layers()?;
        let mut kinds = self.kinds_of_layers(n_layer)?;
        kinds.truncate(n_layer);
        if let Some(drafts) = self.family.drafts {
            kinds.resize(n_block, drafts.layer);
        }
        Ok(kinds)
    }

    fn kinds_of_layers(&self, n_layer: usize) -> Result<Vec<&'static Layer>> {
        Ok(match self.family.layers {
            Layers::All(layer) => vec![layer; n_layer],
            Layers::Mixture { dense, experts } => {
                let has_experts = self.count(&numbers::EXPERT_COUNT)?.is_some_and(|n_expert| n_expert > 0);
                vec![if has_experts { experts } else { dense }; n_layer]
            }
            // Without a window nothing is left that such layers differ in: llama.cpp takes all for the last kind.
            Layers::Periodic { last, others, .. } if others.has_window() && self.window()?.is_none() => vec![last; n_layer],
            Layers::Periodic { period, last, others, .. } => {
                let kinds = self.numbers.last_of_periods(n_layer, usize_of(period.into()))?;
                kinds.into_iter().map(|is_last| if is_last { last } else { others }).collect()
            }
        })
    }

    fn layer(&self, layer: &'static Layer, n_embd: usize, n_layer: usize, widths: [usize; 3]) -> Result<LayerHparams> {
        let [n_head, n_head_kv, n_ff] = widths;
        if !n_head.is_multiple_of(n_head_kv) {
            let detail = format!("{n_head_kv} heads cannot be shared by {n_head} query heads");
            return self.fault(&numbers::HEAD_COUNT_KV, Fault::HparamRange, detail);
        }
        let (key_dim, value_dim) = self.head_widths(layer, n_embd, n_head)?;
        let may_lack = layer.steps.iter().any(|step| step.when == When::Experts);
        let has_experts = !may_lack || self.count(&numbers::EXPERT_COUNT)?.is_some_and(|n_expert| n_expert > 0);
        let experts = layer.experts().filter(|_| has_experts).map(|experts| self.experts(experts, n_ff)).transpose()?;
        let delta = layer.delta().map(|_| self.delta()).transpose()?;
        let attention = layer.attention();
        let softcap = self.float(&numbers::ATTN_SOFTCAP)?.map(narrow).filter(|cap| *cap > 0.0);
        Ok(LayerHparams {
            layer,
            n_head,
            n_head_kv,
            key_dim,
            value_dim,
            attention_scale: self.attention_scale(n_embd, n_head, key_dim, n_layer)?,
            attention_softcap: softcap,
            keys_of: None,
            rope: attention.map(|attention| self.rope(attention, key_dim)).transpose()?.flatten(),
            window: if layer.has_window() { self.window()? } else { None },
            n_ff,
            experts,
            delta,
        })
    }

    fn delta(&self) -> Result<DeltaHparams> {
        let count = |number: &'static Number| match self.count(number)? {
            Some(count) => Ok(count),
            None => self.missing(number),
        };
        DeltaHparams::read(count, |number, detail| self.fault(number, Fault::HparamRange, detail))
    }

    /// Widths of a key and of a value head: stated, or the embedding's share. They are the same for every family so far.
    fn head_widths(&self, layer: &Layer, n_embd: usize, n_head: usize) -> Result<(usize, usize)> {
        let share = if n_embd.is_multiple_of(n_head) { n_embd.checked_div(n_head) } else { None };
        let width = |number: &Number| match (self.stated_count(self.own(number).unwrap_or(number))?, share) {
            (Some(width), _) | (None, Some(width)) => Ok(width),
            (None, None) => self.fault(
                &numbers::HEAD_COUNT,
                Fault::HparamRange,
                format!("{n_head} heads do not divide an embedding of {n_embd}"),
            ),
        };
        let (key, value) = match layer.has_window() && self.own(&numbers::KEY_LENGTH_SWA).is_some() {
            true => (width(&numbers::KEY_LENGTH_SWA)?, width(&numbers::VALUE_LENGTH_SWA)?),
            false => (width(&numbers::KEY_LENGTH)?, width(&numbers::VALUE_LENGTH)?),
        };
        if key != value {
            let what = format!("running a model whose key heads are {key} and value heads {value} wide");
            return Err(Error::unsupported(what, "heads of one width can be run"));
        }
        if (n_head as u64).saturating_mul(key as u64) > WIDTH_MAX {
            let detail = format!("{n_head} heads of {key} are wider than {WIDTH_MAX}");
            return self.fault(&numbers::HEAD_COUNT, Fault::HparamRange, detail);
        }
        Ok((key, value))
    }

    fn attention_scale(&self, n_embd: usize, n_head: usize, key_dim: usize, n_layer: usize) -> Result<f32> {
        if let Some(scale) = self.float(&numbers::ATTENTION_SCALE)? {
            return Ok(narrow(scale));
        }
        let width = match self.family.attention_width {
            AttentionWidth::One => 1,
            AttentionWidth::EmbdShareAt(layers) if layers as usize == n_layer => {
                n_embd.checked_div(n_head).unwrap_or(key_dim).max(1)
            }
            _ => key_dim,
        };
        Ok(narrow(1.0 / (width as f64).sqrt()))
    }

    fn rope(&self, attention: &Attention, key_dim: usize) -> Result<Option<Rope>> {
        let is_local = matches!(attention.positions, Positions::LocalRope(_));
        let of_windows = self.own(&numbers::ROPE_DIMENSION_COUNT_SWA).filter(|_| is_local);
        let number = of_windows.unwrap_or(&numbers::ROPE_DIMENSION_COUNT);
        let n_rot = self.stated_count(number)?.unwrap_or(key_dim);
        if n_rot > key_dim || !n_rot.is_multiple_of(2) {
            let detail = format!("{n_rot}, not an even number of at most {key_dim}, the width of a head");
            return self.fault(number, Fault::HparamRange, detail);
        }
        Ok(match attention.positions {
            Positions::None => None,
            Positions::Rope(layout) => {
                let freq_base = self.float(&numbers::ROPE_FREQ_BASE)?.unwrap_or(10_000.0);
                Some(Rope { n_rot, freq_base, layout, scaling: self.numbers.rope_scaling()? })
            }
            Positions::LocalRope(layout) => {
                let freq_base = self.float(&numbers::ROPE_FREQ_BASE_SWA)?.unwrap_or(10_000.0);
                Some(Rope { n_rot, freq_base, layout, scaling: RopeScaling::None })
            }
        })
    }

    /// The experts of a layer whose one network would be `n_ff` wide.
    fn experts(&self, experts: &Experts, n_ff: usize) -> Result<ExpertHparams> {
        let required = |number: &'static Number| match self.count(number)? {
            Some(count) => Ok(count),
            None => self.missing(number),
        };
        self.numbers.check_weighing(experts.weighing)?;
        let n_expert = required(&numbers::EXPERT_COUNT)?;
        let n_used = required(&numbers::EXPERT_USED_COUNT)?;
        if n_used > n_expert || n_expert == 0 {
            return self.fault(&numbers::EXPERT_USED_COUNT, Fault::HparamRange, format!("{n_used} of {n_expert} experts"));
        }
        // Where the width of an expert is not stated, Qwen's networks are as wide as all that a token uses, Mixtral's as one of them.
        let n_ff_expert = match self.own(&numbers::EXPERT_FF) {
            None => n_ff,
            Some(_) => match self.count(&numbers::EXPERT_FF)? {
                Some(stated) => stated,
                None => n_ff.checked_div(n_used).unwrap_or(0).max(1),
            },
        };
        let shared = experts.shared.as_ref().map(|_| Ok::<_, Error>(self.count(&numbers::SHARED_EXPERT_FF)?.unwrap_or(n_ff)));
        Ok(ExpertHparams { n_expert, n_used, n_ff: n_ff_expert, n_ff_shared: shared.transpose()? })
    }
}
