//! What config.json says and a GGUF file cannot carry, or llama.cpp does not read: one sentence each. And what is refused because the
//! family computes something else.

use super::config_numbers::InConfig;
use super::describe::{Activation, Body, Layer, Positions};
use super::metadata;
use super::numbers;
use super::sizes::{Hparams, Numbers, Stated};
use crate::error::{Error, Result};
use crate::gguf::keys;
use crate::hf::{Rounding, Scaling};

/// The fields that name an activation, by age.
const ACTIVATION_FIELDS: &[&str] = &["hidden_activation", "hidden_act", "activation_function"];

/// Checks what no hyperparameter shows, and gives what the user should know.
///
/// # Errors
/// `Unsupported` for an activation or a pattern of layers that files of this architecture do not have; `ConfigField`.
pub(super) fn notes(numbers: &InConfig<'_>, hparams: &Hparams) -> Result<Vec<String>> {
    check_activation(numbers, hparams)?;
    check_positions(numbers, hparams)?;
    let direction = numbers.config.value("use_bidirectional_attention").and_then(|value| value.as_str());
    if direction == Some("all") {
        let what = format!("{}: use_bidirectional_attention is \"all\"", numbers.config.path().display());
        return Err(Error::unsupported(what, "files of this architecture are of models that see what was before"));
    }
    let mut notes = Vec::new();
    notes.extend(window(numbers, hparams));
    notes.extend(window_of_qwen(numbers)?);
    if let Scaling::Yarn { rounding: Rounding::None, .. } = numbers.rope.scaling {
        let key = keys::of(numbers.family.name, keys::ROPE_SCALING_YARN_TRUNCATE);
        notes.push(format!(
            "truncate = false of YaRN is written as {key}, which llama.cpp does not read: it rounds the bounds, and scores differ by about 0.001"
        ));
    }
    if metadata::pattern(numbers, hparams).is_some() && !numbers.family.writes(keys::ATTENTION_SLIDING_WINDOW_PATTERN) {
        let key = keys::of(numbers.family.name, keys::ATTENTION_SLIDING_WINDOW_PATTERN);
        notes.push(format!(
            "which layers see all is written as {key}, which older versions of llama.cpp do not read for this architecture"
        ));
    }
    notes.extend(attention_scale(numbers, hparams)?);
    Ok(notes)
}

/// The activation of the family's networks.
fn activation(layers: &[&'static Layer]) -> Option<Activation> {
    layers.iter().flat_map(|layer| layer.steps).find_map(|step| match &step.body {
        Body::Network(network) => Some(network.activation),
        Body::Experts(experts) => Some(experts.activation),
        Body::Both(both) => Some(both.network.activation),
        Body::PerLayer(per_layer) => Some(per_layer.activation),
        Body::Attention(_) | Body::Delta(_) | Body::Scale(_) => None,
    })
}

/// transformers' names of an activation.
fn names(activation: Activation) -> &'static [&'static str] {
    match activation {
        Activation::Silu | Activation::ClampedSwiglu { .. } => &["silu", "swish"],
        Activation::GeluTanh => &["gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh"],
        Activation::GeluErf => &["gelu", "gelu_python"],
    }
}

fn check_activation(numbers: &InConfig<'_>, hparams: &Hparams) -> Result<()> {
    let kinds: Vec<&'static Layer> = hparams.layers.iter().map(|layer| layer.layer).collect();
    let Some(activation) = activation(&kinds) else { return Ok(()) };
    let Some(field) = ACTIVATION_FIELDS.iter().find(|field| numbers.config.value(field).is_some()) else { return Ok(()) };
    let Some(stated) = numbers.config.str(field)? else { return Ok(()) };
    let known = names(activation);
    // Gemma's first configurations say "gelu" and mean the tangent, as its code does.
    let is_old_gemma = activation == Activation::GeluTanh && *field == "hidden_act" && stated == "gelu";
    if known.contains(&stated.to_ascii_lowercase().as_str()) || is_old_gemma {
        return Ok(());
    }
    let what = format!("{}: {field} is {stated:?}", numbers.config.path().display());
    Err(Error::unsupported(what, format!("files of architecture {} always mean {}", numbers.family.name, known[0])))
}

/// Layers without positions have no key: another pattern than the usual would be another model.
fn check_positions(numbers: &InConfig<'_>, hparams: &Hparams) -> Result<()> {
    if metadata::pattern(numbers, hparams).is_none() || numbers.family.kinds().iter().any(|layer| layer.has_window()) {
        return Ok(());
    }
    let without = hparams
        .layers
        .iter()
        .enumerate()
        .filter(|(_, layer)| layer.attention().is_some_and(|attention| attention.positions == Positions::None));
    let without: Vec<String> = without.map(|(index, _)| index.to_string()).collect();
    let what = format!("{}: no rotary positions in layers {}", numbers.config.path().display(), without.join(", "));
    Err(Error::unsupported(what, format!("files of architecture {} can have none in every fourth layer only", numbers.family.name)))
}

/// A window that llama.cpp does not apply.
fn window(numbers: &InConfig<'_>, hparams: &Hparams) -> Option<String> {
    let window = hparams.layers.iter().find_map(|layer| layer.window)?;
    let is_known = numbers.family.writes(keys::ATTENTION_SLIDING_WINDOW) && !numbers.family.has_long_rope();
    if is_known || window >= hparams.n_ctx_train {
        return None;
    }
    Some(format!(
        "attention sees the last {window} tokens only; the file says so, but llama.cpp lets it see all for architecture {}: scores differ in \
         texts longer than that",
        numbers.family.name
    ))
}

/// Qwen's windows are off in every model that was published; no key would turn them on.
fn window_of_qwen(numbers: &InConfig<'_>) -> Result<Option<String>> {
    let config = numbers.config;
    if numbers.family.numbers.iter().any(|number| number.key == keys::ATTENTION_SLIDING_WINDOW) {
        return Ok(None);
    }
    let is_on = config.bool("use_sliding_window")?.unwrap_or(false) && config.value("sliding_window").is_some();
    let of_layers = numbers.layer_types()?.contains(&"sliding_attention");
    let first = config.u32("max_window_layers")?.unwrap_or(0);
    let n_layer = config.u32("num_hidden_layers")?.unwrap_or(0);
    let changes = match config.value("layer_types").is_some() {
        true => of_layers,
        false => first < n_layer,
    };
    Ok((is_on && changes).then(|| "use_sliding_window has no key for this architecture: every layer sees all".to_owned()))
}

/// A factor that has a key of its own only here.
fn attention_scale(numbers: &InConfig<'_>, hparams: &Hparams) -> Result<Option<String>> {
    if numbers.family.writes(keys::ATTENTION_SCALE) {
        return Ok(None);
    }
    let own = numbers.family.numbers.iter().copied().find(|number| number.key == numbers::ATTENTION_SCALE.key);
    let Some(number) = own else { return Ok(None) };
    let is_written = metadata::metadata(numbers, hparams)?.iter().any(|(key, _)| key.ends_with(keys::ATTENTION_SCALE));
    let stated = matches!(numbers.stated(number)?, Some(Stated::Float(_)));
    Ok((is_written && stated).then(|| {
        let key = keys::of(numbers.family.name, keys::ATTENTION_SCALE);
        format!("query_pre_attn_scalar is not the width of a head: {key} says so, which llama.cpp does not read")
    }))
}
