//! The `general.*` keys: what the model is called and where it comes from, in the order that llama.cpp's converter writes them.
//!
//! The first source that says something wins: the model card, then `_name_or_path` of config.json, then the folder's name.

use super::naming::{self, NameParts};
use crate::gguf::{Array, Metadata, Value, keys};
use crate::hf::json::{Map, Value as Json};
use crate::hf::{Card, Config};
use crate::names;

/// What is known about a model beside its weights.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// `general.architecture`.
    pub arch: &'a str,
    /// `org/name` or the folder's name: [`crate::hf::Folder::model_id`].
    pub model_id: &'a str,
    /// config.json.
    pub config: &'a Config,
    /// The model card, empty where there is none.
    pub card: &'a Card,
    /// generation_config.json.
    pub generation: Option<&'a Map<String, Json>>,
    /// Weights of all tensors to be written.
    pub size: Size,
    /// A name that the user gave, which wins over all others.
    pub name: Option<&'a str>,
}

/// How many weights a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// All of them.
    pub n_params: u64,
    /// Of a mixture: weights that every token uses or may use of one expert, and the number of experts.
    pub of_experts: Option<(u64, u64)>,
}

impl Size {
    /// That of tensors, by GGUF name and row-major shape.
    pub fn of<'t>(tensors: impl Iterator<Item = (&'t str, &'t [u64])>) -> Size {
        let (mut n_params, mut n_used, mut n_experts, mut n_stacks) = (0_u64, 0_u64, 0_u64, 0_u64);
        for (name, shape) in tensors {
            let n_weights = shape.iter().fold(1, |n: u64, &dim| n.saturating_mul(dim));
            n_params = n_params.saturating_add(n_weights);
            let n_expert = match shape {
                [n_expert, _, _] if names::is_stack(name) => *n_expert,
                _ => 0,
            };
            n_used = n_used.saturating_add(n_weights.checked_div(n_expert).unwrap_or(n_weights));
            n_experts = n_experts.saturating_add(n_expert);
            n_stacks += u64::from(n_expert > 0);
        }
        let of_experts = n_experts.checked_div(n_stacks).filter(|n_expert| *n_expert > 0);
        Size { n_params, of_experts: of_experts.map(|n_expert| (n_used, n_expert)) }
    }

    /// `8x7B`, `1.2B`.
    fn label(&self) -> String {
        match self.of_experts {
            Some((n_used, n_expert)) => format!("{n_expert}x{}", naming::size_label(n_used)),
            None => naming::size_label(self.n_params),
        }
    }
}

/// Texts of the model card: the key, and the fields that may hold it, best first.
const CARD_TEXTS: &[(&str, &[&str])] = &[
    (keys::GENERAL_NAME, &["name", "model_name"]),
    (keys::GENERAL_AUTHOR, &["author", "model_author", "model_creator"]),
    (keys::GENERAL_VERSION, &["version", "model_version"]),
    (keys::GENERAL_ORGANIZATION, &["organization", "model_organization"]),
    (keys::GENERAL_FINETUNE, &["finetune", "model_finetune"]),
    (keys::GENERAL_BASENAME, &["basename", "model_basename", "model_type"]),
    (keys::GENERAL_DESCRIPTION, &["description", "model_description"]),
    (keys::GENERAL_SIZE_LABEL, &["size_label", "model_size_label"]),
    (keys::GENERAL_LICENSE, &["license"]),
    (keys::GENERAL_LICENSE_NAME, &["license_name"]),
    (keys::GENERAL_LICENSE_LINK, &["license_link"]),
    (keys::GENERAL_SOURCE_URL, &["url", "model_url"]),
    (keys::GENERAL_SOURCE_DOI, &["doi", "model_doi"]),
    (keys::GENERAL_SOURCE_UUID, &["uuid", "model_uuid"]),
    (keys::GENERAL_SOURCE_REPO_URL, &["repo_url", "model_repo_url"]),
];

/// How a number of generation_config.json is written.
#[derive(Clone, Copy)]
enum Number {
    I32,
    F32,
}

/// Sampling defaults: the key, and the fields that may hold it, best first.
const SAMPLING: &[(&str, &[&str], Number)] = &[
    (keys::GENERAL_SAMPLING_TOP_K, &["top_k"], Number::I32),
    (keys::GENERAL_SAMPLING_TOP_P, &["top_p"], Number::F32),
    (keys::GENERAL_SAMPLING_MIN_P, &["min_p"], Number::F32),
    (keys::GENERAL_SAMPLING_XTC_PROBABILITY, &["xtc_probability"], Number::F32),
    (keys::GENERAL_SAMPLING_XTC_THRESHOLD, &["xtc_threshold"], Number::F32),
    (keys::GENERAL_SAMPLING_TEMP, &["temperature"], Number::F32),
    (keys::GENERAL_SAMPLING_PENALTY_LAST_N, &["penalty_last_n"], Number::I32),
    (keys::GENERAL_SAMPLING_PENALTY_REPEAT, &["penalty_repeat", "repetition_penalty"], Number::F32),
    (keys::GENERAL_SAMPLING_MIROSTAT, &["mirostat"], Number::I32),
    (keys::GENERAL_SAMPLING_MIROSTAT_TAU, &["mirostat_tau"], Number::F32),
    (keys::GENERAL_SAMPLING_MIROSTAT_ETA, &["mirostat_eta"], Number::F32),
];

/// The `general.*` keys but for `file_type` and `quantization_version`, in the order written.
pub fn general(facts: &Facts) -> Metadata {
    let mut texts = card_texts(facts.card);
    for id in [path_in_config(facts.config), Some(facts.model_id)].into_iter().flatten() {
        add_name_parts(&mut texts, naming::split(id, facts.size.n_params));
    }
    if let Some(name) = facts.name {
        texts.retain(|(key, _)| *key != keys::GENERAL_NAME);
        texts.push((keys::GENERAL_NAME, name.to_owned()));
    }
    add_missing(&mut texts, keys::GENERAL_NAME, Some(facts.model_id.to_owned()));
    let label = (facts.size.n_params > 0).then(|| facts.size.label());
    add_missing(&mut texts, keys::GENERAL_SIZE_LABEL, label);

    let mut metadata: Metadata =
        vec![(keys::GENERAL_ARCHITECTURE.to_owned(), facts.arch.into()), (keys::GENERAL_TYPE.to_owned(), "model".into())];
    metadata.extend(facts.generation.map(sampling).unwrap_or_default());
    // The table is in the order written.
    for (key, _) in CARD_TEXTS {
        if let Some(text) = find(&texts, key) {
            metadata.push(((*key).to_owned(), text.into()));
        }
    }
    metadata.extend(lineage(facts));
    metadata.extend(string_array(facts.card, keys::GENERAL_TAGS, &["tags", "pipeline_tag"]));
    metadata.extend(string_array(facts.card, keys::GENERAL_LANGUAGES, &["languages", "language"]));
    metadata
}

type Texts = Vec<(&'static str, String)>;

fn find<'a>(texts: &'a Texts, key: &str) -> Option<&'a str> {
    texts.iter().find(|(found, _)| *found == key).map(|(_, text)| text.as_str())
}

fn add_missing(texts: &mut Texts, key: &'static str, text: Option<String>) {
    if let Some(text) = text.filter(|text| !text.is_empty())
        && find(texts, key).is_none()
    {
        texts.push((key, text));
    }
}

fn card_texts(card: &Card) -> Texts {
    let mut texts = Texts::new();
    for (key, fields) in CARD_TEXTS {
        let text = match *key {
            // Several licences are one list.
            keys::GENERAL_LICENSE => card.list("license").map(|licences| licences.join(",")),
            _ => fields.iter().find_map(|field| card.text(field)).map(str::to_owned),
        };
        add_missing(&mut texts, key, text);
    }
    texts
}

/// `_name_or_path`, where it is a name and not a path on somebody's disk.
fn path_in_config(config: &Config) -> Option<&str> {
    config.root_value("_name_or_path")?.as_str().filter(|path| path.matches('/').count() <= 1)
}

fn add_name_parts(texts: &mut Texts, parts: NameParts) {
    add_missing(texts, keys::GENERAL_NAME, parts.full_name.as_deref().map(naming::title));
    add_missing(texts, keys::GENERAL_ORGANIZATION, parts.organization.as_deref().map(naming::title));
    add_missing(texts, keys::GENERAL_BASENAME, parts.basename);
    add_missing(texts, keys::GENERAL_FINETUNE, parts.finetune);
    add_missing(texts, keys::GENERAL_VERSION, parts.version);
    add_missing(texts, keys::GENERAL_SIZE_LABEL, parts.size_label);
}

fn sampling(generation: &Map<String, Json>) -> Metadata {
    let mut metadata = Metadata::new();
    if let Some(sequence) = generation.get("sequence").and_then(Json::as_str) {
        metadata.push((keys::GENERAL_SAMPLING_SEQUENCE.to_owned(), sequence.into()));
    }
    for (key, fields, number) in SAMPLING {
        let Some(value) = fields.iter().find_map(|field| generation.get(*field)) else { continue };
        let value = match number {
            Number::I32 => value.as_i64().and_then(|n| i32::try_from(n).ok()).map(Value::I32),
            Number::F32 => value.as_f64().map(|n| n as f32).filter(|n| n.is_finite()).map(Value::F32),
        };
        // Null, or something that is no number: the model's maker has no advice.
        metadata.extend(value.map(|value| ((*key).to_owned(), value)));
    }
    metadata
}

/// Base models and data sets that the card names.
fn lineage(facts: &Facts) -> Metadata {
    let mut metadata = Metadata::new();
    let groups: [(&str, &str, [&str; 3]); 2] = [
        (keys::GENERAL_BASE_MODEL_COUNT, keys::GENERAL_BASE_MODEL, ["base_model", "base_models", "base_model_sources"]),
        (keys::GENERAL_DATASET_COUNT, keys::GENERAL_DATASET, ["datasets", "dataset", "dataset_sources"]),
    ];
    for (count_key, prefix, fields) in groups {
        let Some(ids) = fields.iter().find_map(|field| facts.card.list(field)) else { continue };
        metadata.push((count_key.to_owned(), Value::U32(ids.len() as u32)));
        for (index, id) in ids.iter().enumerate() {
            for (field, text) in ancestor(id, facts.size.n_params) {
                metadata.push((keys::numbered(prefix, index, field), text.as_str().into()));
            }
        }
    }
    metadata
}

/// What an id or a URL tells about a base model or data set.
fn ancestor(id: &str, n_params: u64) -> Vec<(&'static str, String)> {
    let is_url = ["http://", "https://", "ssh://"].iter().any(|scheme| id.starts_with(scheme));
    let on_hub = ["http://huggingface.co/", "https://huggingface.co/"].iter().find_map(|start| id.strip_prefix(start));
    let hub_id = if is_url { on_hub.filter(|rest| is_org_and_name(rest)) } else { Some(id) };
    let parts = hub_id.map(|id| naming::split(id, n_params)).unwrap_or_default();
    let repo_url = match (&parts.organization, &parts.full_name) {
        _ if is_url => Some(id.to_owned()),
        (Some(organization), Some(name)) => Some(format!("https://huggingface.co/{organization}/{name}")),
        _ => None,
    };
    [
        ("name", parts.full_name.as_deref().map(naming::title)),
        ("version", parts.version),
        ("organization", parts.organization.as_deref().map(naming::title)),
        ("repo_url", repo_url),
    ]
    .into_iter()
    .filter_map(|(field, text)| Some((field, text?)))
    .collect()
}

fn is_org_and_name(rest: &str) -> bool {
    rest.split('/').count() == 2 && rest.split('/').all(|part| !part.is_empty())
}

fn string_array(card: &Card, key: &str, fields: &[&str]) -> Option<(String, Value)> {
    let lists: Vec<&[String]> = fields.iter().filter_map(|field| card.list(field)).collect();
    if lists.is_empty() {
        return None;
    }
    let items = lists.concat().into_iter().map(String::into_bytes).collect();
    Some((key.to_owned(), Value::Array(Array::String(items))))
}
