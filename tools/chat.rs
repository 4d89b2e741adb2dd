//! Chat templates: a conversation as the text that a model was trained on.
//!
//! Templates come with the model and are untrusted programs. Counting their instructions bounds neither memory nor time nor stack, since
//! one instruction may compare two trees or pad a text to any length. So a [child process](crate::child) renders them.

mod bounds;
mod json;
mod python;
mod render;
mod tags;

use std::path::Path;
use std::time::Duration;

use ggforge::Error;
use ggforge::error::{Fault, Place};
use ggforge::gguf::{Array, Metadata, Model, Value as Entry, keys};
use ggforge::source::TensorSource;
use ggforge::tokenizer::encode::Tokenizer;
use jiff::ZonedDateTime;
use jiff::civil::DateTime;
use serde_json::{Map, Value, json};

use crate::child::{self, Job, Limits, NoAnswer};

/// What a child of this program is for that renders chat templates.
pub const JOB: Job = Job { name: "--render-chat-template", work: render::answer };

/// A real template takes some milliseconds, and some MiB.
const LIMITS: Limits =
    Limits { memory_bytes: 256 << 20, cpu_seconds: 1, wait: Duration::from_secs(20), answer_bytes: bounds::ANSWER_BYTES_MAX };

/// Tokens that templates know by name, as transformers calls them.
const SPECIAL_TOKENS: &[(&str, &str)] = &[
    ("bos_token", keys::TOKENIZER_BOS_TOKEN_ID),
    ("eos_token", keys::TOKENIZER_EOS_TOKEN_ID),
    ("unk_token", keys::TOKENIZER_UNKNOWN_TOKEN_ID),
    ("sep_token", keys::TOKENIZER_SEPARATOR_TOKEN_ID),
    ("pad_token", keys::TOKENIZER_PADDING_TOKEN_ID),
    ("cls_token", keys::TOKENIZER_CLS_TOKEN_ID),
    ("mask_token", keys::TOKENIZER_MASK_TOKEN_ID),
];

/// The text of a conversation of one question, up to where the answer starts.
///
/// # Errors
/// `ChatTemplate` for a model without a template, or with one that does not work or takes too much; `Io` where no child can be started.
pub fn render(model: &Model, tokenizer: &Tokenizer, system: Option<&str>, question: &str) -> Result<String, Error> {
    let fault = |detail: String| {
        let path = model.files().first().map_or(Path::new(""), |file| file.path());
        Error::malformed(path, Place::Field(keys::TOKENIZER_CHAT_TEMPLATE.to_owned()), Fault::ChatTemplate, detail)
    };
    let template = model.get(keys::TOKENIZER_CHAT_TEMPLATE).and_then(|value| value.as_str());
    let template = template.ok_or_else(|| fault("is missing; without --chat the prompt is used as it is".to_owned()))?;
    bounds::check(template).map_err(fault)?;
    let tokens = tokens_of(model, tokenizer);
    let system = system.map(|text| ("system", text));
    let messages: Vec<_> = system.into_iter().chain([("user", question)]).collect();
    let now = ZonedDateTime::now().datetime();
    match rendered(template, &tokens, &[&messages], now) {
        Ok(texts) => {
            let text = texts.into_iter().next().unwrap_or_else(|| Err("there is no answer".to_owned()));
            text.map_err(|why| fault(format!("cannot be rendered: {why}")))
        }
        Err(NoAnswer::NotStarted(error)) => Err(Error::io("a process to render the chat template", "start", error)),
        Err(why) => Err(fault(format!("cannot be rendered: {why}"))),
    }
}

/// Every question as the text of a conversation of it alone, up to where the answer starts; at the same time always. None where the
/// model has no template that works.
pub fn questions(model: &Model, tokenizer: &Tokenizer, questions: &[&str]) -> Vec<String> {
    let Some(template) = model.get(keys::TOKENIZER_CHAT_TEMPLATE).and_then(|value| value.as_str()) else { return Vec::new() };
    if bounds::check(template).is_err() {
        return Vec::new();
    }
    let conversations: Vec<[(&str, &str); 1]> = questions.iter().map(|question| [("user", *question)]).collect();
    let conversations: Vec<&[(&str, &str)]> = conversations.iter().map(|messages| &messages[..]).collect();
    let texts = rendered(template, &tokens_of(model, tokenizer), &conversations, FIXED_TIME).unwrap_or_default();
    texts.into_iter().filter_map(Result::ok).filter(|text| text.len() <= CONVERSATION_BYTES_MAX).collect()
}

/// The texts of a model's special tokens.
fn tokens_of(model: &Model, tokenizer: &Tokenizer) -> Map<String, Value> {
    special_tokens(|name, key| {
        let id = match name {
            "bos_token" => tokenizer.bos()?,
            "eos_token" => tokenizer.eos()?,
            _ => u32::try_from(model.get(key)?.as_u64()?).ok()?,
        };
        Some(String::from_utf8_lossy(tokenizer.token_text(id)?).into_owned())
    })
}

/// A template of a conversion, with what it needs.
pub struct Template {
    text: String,
    tokens: Map<String, Value>,
}

/// Short ones, of every kind that templates tell apart.
const CONVERSATIONS: &[&[(&str, &str)]] = &[
    &[("user", "Why is the sky blue?")],
    &[("system", "Answer in one sentence."), ("user", " Who wrote \"Emma\"?\n")],
    &[("user", "Name a prime."), ("assistant", "7"), ("user", "Another one, without 漢字 or 😀!")],
];

/// What time it is for templates whose text must not depend on it.
const FIXED_TIME: DateTime = DateTime::constant(2026, 3, 5, 7, 8, 9, 0);

/// Bytes of a short conversation, with all that a template puts around it: those of tools are some thousand.
const CONVERSATION_BYTES_MAX: usize = 1 << 16;

impl Template {
    /// The template in the metadata, if there is one.
    pub fn of(metadata: &Metadata) -> Option<Template> {
        let find = |name: &str| metadata.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        let Entry::String(text) = find(keys::TOKENIZER_CHAT_TEMPLATE)? else { return None };
        let text = str::from_utf8(text).ok()?.to_owned();
        let tokens = special_tokens(|_, key| match find(keys::TOKENIZER_TOKENS)? {
            Entry::Array(Array::String(tokens)) => {
                let token = tokens.get(usize::try_from(find(key)?.as_u64()?).ok()?)?;
                Some(String::from_utf8_lossy(token).into_owned())
            }
            _ => None,
        });
        Some(Template { text, tokens })
    }

    /// Short conversations, at the same time always; those that the template refuses are left out.
    ///
    /// # Errors
    /// Why it renders none.
    pub fn conversations(&self) -> Result<Vec<String>, String> {
        bounds::check(&self.text)?;
        let texts = rendered(&self.text, &self.tokens, CONVERSATIONS, FIXED_TIME);
        let texts = texts.map_err(|why| why.to_string())?;
        let first_error = texts.iter().find_map(|text| text.as_ref().err()).cloned();
        let is_short = |text: &String| text.len() <= CONVERSATION_BYTES_MAX;
        let texts: Vec<String> = texts.into_iter().filter_map(Result::ok).filter(is_short).collect();
        match first_error {
            Some(why) if texts.is_empty() => Err(why),
            _ => Ok(texts),
        }
    }
}

/// The texts of the special tokens that there are. The others are undefined in templates, which print nothing for them.
fn special_tokens(text: impl Fn(&'static str, &str) -> Option<String>) -> Map<String, Value> {
    SPECIAL_TOKENS.iter().filter_map(|(name, key)| Some(((*name).to_owned(), text(name, key)?.into()))).collect()
}

/// The texts of conversations, each of messages with their roles, up to where the next answer starts; for each that cannot be
/// rendered, why.
fn rendered(
    template: &str,
    tokens: &Map<String, Value>,
    conversations: &[&[(&str, &str)]],
    now: DateTime,
) -> Result<Vec<Result<String, String>>, NoAnswer> {
    let values = |messages: &[(&str, &str)]| {
        let messages: Vec<_> = messages.iter().map(|(role, content)| json!({ "role": role, "content": content })).collect();
        // transformers passes both as None where there are none.
        let mut values = json!({ "messages": messages, "tools": null, "documents": null, "add_generation_prompt": true });
        values.as_object_mut().expect("an object").extend(tokens.clone());
        values
    };
    let conversations: Vec<_> = conversations.iter().map(|messages| values(messages)).collect();
    let request = json!({ "template": template, "conversations": conversations, "now": now.to_string() });
    let answer = child::ask(&JOB, LIMITS, request.to_string().into_bytes())?;
    bounds::texts(&answer).map_err(NoAnswer::Ended)
}
