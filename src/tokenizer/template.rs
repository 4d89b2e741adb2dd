//! Chat templates: found and copied, never run.
//!
//! As in Hugging Face's library, a `chat_template.jinja` beside the configuration goes before the `chat_template` inside it; the
//! configuration's may be one template or a list of named ones.

use super::faults::invalid;
use super::inputs::Inputs;
use super::vocab::ChatTemplates;
use crate::error::Result;
use crate::hf::json::{self, Value};

const ADDITIONAL_FOLDER: &str = "additional_chat_templates";
const SUFFIX: &str = ".jinja";

/// The templates of the model.
pub(super) fn read(inputs: &Inputs, warnings: &mut Vec<String>) -> Result<ChatTemplates> {
    let inside = from_config(inputs, warnings);
    let Some(default) = text(inputs, "chat_template.jinja")? else {
        return match inside {
            Some(templates) => Ok(templates),
            None => from_json(inputs),
        };
    };
    if inside.is_some_and(|inside| inside.default.is_some_and(|inside| inside != default)) {
        warnings.push("chat_template.jinja differs from the chat_template of tokenizer_config.json; the former is used".to_owned());
    }
    let mut templates = ChatTemplates { default: Some(default), named: Vec::new() };
    for (file, template) in inputs.files.read_folder(ADDITIONAL_FOLDER, SUFFIX)? {
        let name = file.strip_suffix(SUFFIX).unwrap_or(&file);
        add(&mut templates, name, utf8(inputs, &file, template)?);
    }
    Ok(templates)
}

/// `chat_template` of `tokenizer_config.json`.
fn from_config(inputs: &Inputs, warnings: &mut Vec<String>) -> Option<ChatTemplates> {
    let mut templates = ChatTemplates::default();
    match inputs.tokenizer_setting("chat_template")? {
        Value::String(template) => templates.default = Some(template.clone()),
        Value::Array(list) => {
            for entry in list {
                match (entry["name"].as_str(), entry["template"].as_str()) {
                    (Some(name), Some(template)) => add(&mut templates, name, template.to_owned()),
                    _ => warnings.push("a chat template without name or text is left out".to_owned()),
                }
            }
        }
        other => {
            let kind = json::kind(other);
            warnings.push(format!("chat_template of tokenizer_config.json is {kind}, neither text nor a list; it is left out"));
        }
    }
    Some(templates)
}

/// `chat_template.json`, which processors of multimodal models write.
fn from_json(inputs: &Inputs) -> Result<ChatTemplates> {
    let name = "chat_template.json";
    let Some(bytes) = inputs.files.read_optional(name)? else { return Ok(ChatTemplates::default()) };
    let object = json::parse_object(&inputs.files.path(name), &bytes)?;
    let default = object.get("chat_template").and_then(Value::as_str).map(str::to_owned);
    Ok(ChatTemplates { default, named: Vec::new() })
}

/// Adds a template under a name that fits into a metadata key.
fn add(templates: &mut ChatTemplates, name: &str, template: String) {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if name == "default" {
        templates.default = Some(template);
    } else if let Some(present) = templates.named.iter_mut().find(|(present, _)| *present == name) {
        present.1 = template;
    } else if !name.is_empty() {
        templates.named.push((name, template));
    }
}

fn text(inputs: &Inputs, name: &str) -> Result<Option<String>> {
    inputs.files.read_optional(name)?.map(|bytes| utf8(inputs, name, bytes)).transpose()
}

fn utf8(inputs: &Inputs, name: &str, bytes: Vec<u8>) -> Result<String> {
    match String::from_utf8(bytes) {
        // Python reads text with every line end turned into \n.
        Ok(text) if text.contains('\r') => Ok(text.replace("\r\n", "\n").replace('\r', "\n")),
        Ok(text) => Ok(text),
        Err(_) => Err(invalid(&inputs.files.path(name), name, "not UTF-8")),
    }
}
