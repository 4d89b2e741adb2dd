//! `config.json`: typed, range-checked access, in both spellings (transformers 4 and 5).
//!
//! Fields of `text_config` win over those beside it: multimodal models keep their language model there. A field that is null counts
//! as absent. Whatever is wrong with a field is a `ConfigField` fault that names it.

use std::path::{Path, PathBuf};

use super::json::{self, Map, Value};
use crate::error::{Error, Fault, Place, Result};

/// Most values of a config.json: names of 21 841 image classes are the longest list of real ones.
const VALUES_MAX: usize = 1 << 16;

const ORIGINAL_LEN: &str = "original_max_position_embeddings";

/// A parsed config.json.
#[derive(Debug, Clone)]
pub struct Config {
    path: PathBuf,
    root: Map<String, Value>,
}

/// Rotary position embedding, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4).
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: Option<f64>,
    /// The same of layers with a window, where they have one of their own.
    pub local_theta: Option<f64>,
    /// The part of each head that is rotated.
    pub partial_factor: Option<f64>,
    /// Context length before stretching, whether or not it is stretched.
    pub original_context_len: Option<f64>,
    /// Pairs that follow time, height and width, in models of images.
    pub sections: Option<Vec<u32>>,
    /// How positions beyond the trained context are reached.
    pub scaling: Scaling,
}

/// How a model stretches its rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    /// It does not.
    None,
    /// By a factor that depends on the text's length; nothing is stored for it.
    Dynamic,
    /// All frequencies by one factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// The factor.
        factor: f64,
        /// Context length before stretching.
        original_context_len: u32,
        /// Weight of extrapolation against interpolation.
        extrapolation_factor: Option<f64>,
        /// Factor on the length of rotated heads: stated, or by `mscale` and the factor, as transformers computes it.
        attention_factor: f64,
        /// Rotations above which a dimension is not stretched.
        beta_fast: Option<f64>,
        /// Rotations below which a dimension is fully stretched.
        beta_slow: Option<f64>,
        /// Whether the bounds between dimensions are rounded outwards to whole ones.
        rounding: Rounding,
    },
    /// Each frequency by its own factor, of two sets: for contexts up to the original length and for longer ones (Phi-3).
    Long {
        /// For longer contexts.
        long_factors: Vec<f64>,
        /// Up to the original length.
        short_factors: Vec<f64>,
        /// How much longer the context became, where that is stated.
        factor: Option<f64>,
        /// Factor on the length of rotated heads, where that is stated.
        attention_factor: Option<f64>,
    },
    /// Llama 3.1's, by wavelength.
    Llama3 {
        /// Factor for long waves.
        factor: f64,
        /// `original_context_len / low_freq_factor` is where waves are long.
        low_freq_factor: f64,
        /// `original_context_len / high_freq_factor` is where waves are short, and kept.
        high_freq_factor: f64,
        /// Context length before stretching.
        original_context_len: f64,
    },
    /// Of each head only the fastest pairs are turned, by frequencies of the whole head.
    Proportional {
        /// Which part of the head.
        part: f64,
    },
    /// A kind that this version does not know, by name.
    Other(String),
}

/// YaRN's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To whole dimensions.
    Outwards,
    /// As they come: `truncate: false`.
    None,
}

impl Config {
    /// Parses config.json; `path` is for messages.
    ///
    /// # Errors
    /// Those of [`json::parse_python_object_up_to`]; `ConfigField` when `text_config` is not an object.
    pub fn parse(path: impl Into<PathBuf>, bytes: &[u8]) -> Result<Config> {
        let path = path.into();
        let root = json::parse_python_object_up_to(&path, bytes, VALUES_MAX)?;
        let config = Config { path, root };
        match config.root.get("text_config") {
            None | Some(Value::Null | Value::Object(_)) => Ok(config),
            Some(other) => Err(config.fault("text_config", format!("expected an object, found {}", json::kind(other)))),
        }
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A `ConfigField` fault.
    pub fn fault(&self, field: &str, detail: impl Into<String>) -> Error {
        Error::malformed(&self.path, Place::Field(field.to_owned()), Fault::ConfigField, detail)
    }

    /// A field as it stands, `text_config` first; `None` when absent or null.
    pub fn value(&self, field: &str) -> Option<&Value> {
        let nested = self.root.get("text_config").and_then(|text| text.get(field));
        nested.or_else(|| self.root.get(field)).filter(|value| !value.is_null())
    }

    /// True when a field is there but null.
    pub fn has_null(&self, field: &str) -> bool {
        let nested = self.root.get("text_config").and_then(|text| text.get(field));
        nested.or_else(|| self.root.get(field)).is_some_and(Value::is_null)
    }

    /// A field of the outermost object, whatever `text_config` says.
    pub fn root_value(&self, field: &str) -> Option<&Value> {
        self.root.get(field).filter(|value| !value.is_null())
    }

    /// The model's class, such as `LlamaForCausalLM`: the first of `architectures`.
    ///
    /// # Errors
    /// `ConfigField` when there is none.
    pub fn class(&self) -> Result<&str> {
        // The whole model's goes before that of its language part.
        let classes = self.root_value("architectures").or_else(|| self.value("architectures"));
        let classes = classes.ok_or_else(|| self.fault("architectures", "missing: it names the model's class"))?;
        let first = classes.as_array().and_then(|list| list.first()).and_then(Value::as_str);
        first.ok_or_else(|| self.fault("architectures", "expected a list of class names"))
    }

    /// A whole number.
    ///
    /// # Errors
    /// `ConfigField` for anything but a whole number from 0 to 2^32 - 1.
    pub fn u32(&self, field: &str) -> Result<Option<u32>> {
        self.value(field).map(|value| self.to_u32(field, value)).transpose()
    }

    /// A number. Its nearest `f32` is finite.
    ///
    /// # Errors
    /// `ConfigField` for anything else.
    pub fn f64(&self, field: &str) -> Result<Option<f64>> {
        self.value(field).map(|value| self.to_f64(field, value)).transpose()
    }

    /// A truth value.
    ///
    /// # Errors
    /// `ConfigField` for anything else.
    pub fn bool(&self, field: &str) -> Result<Option<bool>> {
        let read = |value: &Value| value.as_bool().ok_or_else(|| self.unexpected(field, "true or false", value));
        self.value(field).map(read).transpose()
    }

    /// A string.
    ///
    /// # Errors
    /// `ConfigField` for anything else.
    pub fn str(&self, field: &str) -> Result<Option<&str>> {
        self.value(field).map(|value| value.as_str().ok_or_else(|| self.unexpected(field, "a string", value))).transpose()
    }

    /// A list of whole numbers, or one alone: `eos_token_id` comes in both forms.
    ///
    /// # Errors
    /// `ConfigField` for anything else.
    pub fn u32s(&self, field: &str) -> Result<Option<Vec<u32>>> {
        let read = |value: &Value| match value {
            Value::Array(items) => items.iter().map(|item| self.to_u32(field, item)).collect(),
            one => Ok(vec![self.to_u32(field, one)?]),
        };
        self.value(field).map(read).transpose()
    }

    /// A list of strings.
    ///
    /// # Errors
    /// `ConfigField` for anything else.
    pub fn strings(&self, field: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let items = value.as_array().and_then(|items| items.iter().map(Value::as_str).collect());
        items.map(Some).ok_or_else(|| self.unexpected(field, "a list of strings", value))
    }

    fn to_u32(&self, field: &str, value: &Value) -> Result<u32> {
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        number.ok_or_else(|| self.unexpected(field, "a whole number from 0 to 4294967295", value))
    }

    fn to_f64(&self, field: &str, value: &Value) -> Result<f64> {
        let number = value.as_f64().filter(|n| (*n as f32).is_finite());
        number.ok_or_else(|| self.unexpected(field, "a number that fits a 32-bit float", value))
    }

    fn unexpected(&self, field: &str, expected: &str, value: &Value) -> Error {
        // A number is short; anything else could be a megabyte.
        let found = match value {
            Value::Number(number) => number.to_string(),
            Value::String(word) if json::NON_FINITE.contains(&word.as_str()) => word.clone(),
            other => json::kind(other).to_owned(),
        };
        self.fault(field, format!("expected {expected}, found {found}"))
    }
}

/// The rotary embedding in both spellings.
impl Config {
    /// Reads `rope_parameters`, else `rope_theta` and `rope_scaling`.
    ///
    /// # Errors
    /// `ConfigField` for a field of the wrong type, a scaling without its numbers, or two spellings that contradict each other.
    pub fn rope(&self) -> Result<Rope> {
        let new = self.rope_section("rope_parameters")?;
        let old = self.rope_section("rope_scaling")?;
        let own_theta = self.f64("rope_theta")?;
        let own_part = ["partial_rotary_factor", "rotary_pct", "rope_pct"].into_iter().find(|field| self.value(field).is_some());
        let own_part = own_part.map_or(Ok(None), |field| self.f64(field))?;
        let local_theta = self.f64("rope_local_base_freq")?;
        let Some(section) = new.as_ref().or(old.as_ref()) else {
            return Ok(Rope {
                theta: own_theta,
                local_theta,
                partial_factor: own_part,
                original_context_len: self.f64(ORIGINAL_LEN)?,
                sections: None,
                scaling: Scaling::None,
            });
        };
        let theta = section.number("rope_theta")?.or(own_theta);
        if let (Some(inner), Some(outer)) = (section.number("rope_theta")?, own_theta)
            && inner != outer
        {
            return Err(self.fault("rope_theta", format!("{outer} here, {inner} in {}", section.name)));
        }
        let scaling = section.scaling()?;
        if let (Some(_), Some(old)) = (&new, &old)
            && old.scaling()? != scaling
        {
            return Err(self.fault("rope_scaling", "contradicts rope_parameters"));
        }
        let local = section.local.as_ref().map_or(Ok(None), |local| local.number("rope_theta"))?;
        Ok(Rope {
            theta,
            local_theta: local.or(local_theta),
            partial_factor: match scaling {
                Scaling::Proportional { .. } => None,
                _ => section.number("partial_rotary_factor")?.or(own_part),
            },
            original_context_len: section.original_context_len()?,
            sections: section.whole_numbers("mrope_section")?,
            scaling,
        })
    }

    fn rope_section(&self, name: &'static str) -> Result<Option<RopeSection<'_>>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let Value::Object(map) = value else { return Err(self.unexpected(name, "an object", value)) };
        // One section per kind of layer, where kinds differ: the full-attention one is the model's.
        let of_kind = |kind: &str| map.get(kind).and_then(Value::as_object);
        let section = |map| RopeSection { config: self, name, map, local: None };
        let local = of_kind("sliding_attention").map(|map| Box::new(section(map)));
        Ok(Some(RopeSection { local, ..section(of_kind("full_attention").unwrap_or(map)) }))
    }
}

/// `rope_parameters` or `rope_scaling`.
struct RopeSection<'a> {
    config: &'a Config,
    name: &'static str,
    map: &'a Map<String, Value>,
    /// That of layers with a window.
    local: Option<Box<RopeSection<'a>>>,
}

impl RopeSection<'_> {
    fn number(&self, field: &str) -> Result<Option<f64>> {
        let value = self.map.get(field).filter(|value| !value.is_null());
        value.map(|value| self.config.to_f64(&format!("{}.{field}", self.name), value)).transpose()
    }

    fn whole_numbers(&self, field: &str) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.map.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
        let name = format!("{}.{field}", self.name);
        let items = value.as_array().ok_or_else(|| self.config.unexpected(&name, "a list of whole numbers", value))?;
        items.iter().map(|item| self.config.to_u32(&name, item)).collect::<Result<_>>().map(Some)
    }

    /// A list of numbers above 0.
    fn factors(&self, field: &str) -> Result<Vec<f64>> {
        let name = format!("{}.{field}", self.name);
        let value = self.map.get(field).filter(|value| !value.is_null()).ok_or_else(|| self.config.fault(&name, "missing"))?;
        let items = value.as_array().ok_or_else(|| self.config.unexpected(&name, "a list of numbers", value))?;
        let factor = |item| match self.config.to_f64(&name, item)? {
            factor if factor > 0.0 => Ok(factor),
            factor => Err(self.config.fault(&name, format!("expected numbers above 0, found {factor}"))),
        };
        items.iter().map(factor).collect()
    }

    fn flag(&self, field: &str) -> Result<Option<bool>> {
        let Some(value) = self.map.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
        let name = format!("{}.{field}", self.name);
        value.as_bool().map(Some).ok_or_else(|| self.config.unexpected(&name, "true or false", value))
    }

    fn required(&self, field: &str) -> Result<f64> {
        self.number(field)?.ok_or_else(|| self.config.fault(&format!("{}.{field}", self.name), "missing"))
    }

    /// `rope_type`, formerly `type`.
    fn kind(&self) -> Result<Option<String>> {
        let found =
            ["rope_type", "type"].into_iter().find_map(|field| Some((field, self.map.get(field).filter(|v| !v.is_null())?)));
        let Some((field, value)) = found else { return Ok(None) };
        match value.as_str() {
            Some(kind) => Ok(Some(kind.to_lowercase())),
            None => Err(self.config.unexpected(&format!("{}.{field}", self.name), "a string", value)),
        }
    }

    fn original_context_len(&self) -> Result<Option<f64>> {
        self.number(ORIGINAL_LEN)?.map_or_else(|| self.config.f64(ORIGINAL_LEN), |len| Ok(Some(len)))
    }

    fn scaling(&self) -> Result<Scaling> {
        let Some(kind) = self.kind()? else {
            if self.map.contains_key("factor") {
                return Err(self.config.fault(self.name, "has a factor but no rope_type"));
            }
            return Ok(Scaling::None);
        };
        Ok(match kind.as_str() {
            // Positions of images are told apart by `mrope_section`; those of texts are the usual ones.
            "default" | "mrope" => Scaling::None,
            "dynamic" => Scaling::Dynamic,
            "linear" => Scaling::Linear { factor: self.required("factor")? },
            "yarn" => self.yarn()?,
            "proportional" if self.number("factor")?.is_none_or(|factor| factor == 1.0) => {
                Scaling::Proportional { part: self.number("partial_rotary_factor")?.unwrap_or(1.0) }
            }
            "longrope" | "su" => Scaling::Long {
                long_factors: self.factors("long_factor")?,
                short_factors: self.factors("short_factor")?,
                factor: self.number("factor")?,
                attention_factor: self.number("attention_factor")?,
            },
            "llama3" => Scaling::Llama3 {
                factor: self.number("factor")?.unwrap_or(8.0),
                low_freq_factor: self.number("low_freq_factor")?.unwrap_or(1.0),
                high_freq_factor: self.number("high_freq_factor")?.unwrap_or(4.0),
                original_context_len: self.original_context_len()?.unwrap_or(8192.0),
            },
            _ => Scaling::Other(kind),
        })
    }

    fn yarn(&self) -> Result<Scaling> {
        let field = format!("{}.original_max_position_embeddings", self.name);
        // As transformers has it, a model that does not say was trained for as much as it says it takes.
        let stated =
            self.original_context_len()?.map_or_else(|| self.config.f64("max_position_embeddings"), |len| Ok(Some(len)))?;
        let original = stated.ok_or_else(|| self.config.fault(&field, "missing"))?;
        if original.fract() != 0.0 || !(1.0..=f64::from(u32::MAX)).contains(&original) {
            return Err(self.config.fault(&field, format!("expected a context length, found {original}")));
        }
        let factor = self.required("factor")?;
        let stated = self.number("attention_factor")?;
        let attention_factor = match stated.map_or_else(|| self.number("attn_factor"), |factor| Ok(Some(factor)))? {
            Some(stated) => stated,
            None => match (self.number("mscale")?, self.number("mscale_all_dim")?) {
                (Some(some), Some(all)) if some != 0.0 && all != 0.0 => yarn_length(factor, some) / yarn_length(factor, all),
                _ => yarn_length(factor, 1.0),
            },
        };
        Ok(Scaling::Yarn {
            factor,
            original_context_len: original as u32,
            extrapolation_factor: self.number("extrapolation_factor")?,
            attention_factor,
            beta_fast: self.number("beta_fast")?,
            beta_slow: self.number("beta_slow")?,
            rounding: match self.flag("truncate")? {
                Some(false) => Rounding::None,
                Some(true) | None => Rounding::Outwards,
            },
        })
    }
}

/// What YaRN multiplies the length of rotated heads with, of itself: `0.1 mscale ln(factor) + 1` (arXiv 2309.00071, section 3.4).
pub fn yarn_length(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}
