//! Chat templates: a conversation as the text that a model was trained on.
//!
//! Templates come with the model and are untrusted programs, so their steps, their depth, their memory and their output are bounded.

use std::fs;
use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use ggforge::Error;
use ggforge::error::{Fault, Place};
use ggforge::gguf::{Model, keys};
use ggforge::source::TensorSource;
use ggforge::tokenizer::encode::Tokenizer;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::exit::Failure;

/// Steps of the template engine: the longest real template takes some thousand for one message.
const STEPS_MAX: u64 = 1_000_000;

/// Bytes that a template may take while it runs. Steps do not bound them: sixty are enough to double a text beyond any memory.
const MEMORY_MAX: u64 = 256 << 20;

/// Templates nested in templates, and calls in calls.
const DEPTH_MAX: usize = 64;

/// Bytes of rendered text.
const OUTPUT_MAX: usize = 1 << 20;

/// The text of a conversation of one question, up to where the answer starts.
///
/// # Errors
/// `ChatTemplate` for a model without a template, or with one that does not work.
pub fn render(model: &Model, tokenizer: &Tokenizer, system: Option<&str>, question: &str) -> Result<String, Error> {
    let fault = |detail: String| {
        let path = model.files().first().map_or(std::path::Path::new(""), |file| file.path());
        Error::malformed(path, Place::Field(keys::TOKENIZER_CHAT_TEMPLATE.to_owned()), Fault::ChatTemplate, detail)
    };
    let template = model.get(keys::TOKENIZER_CHAT_TEMPLATE).and_then(|value| value.as_str());
    let template = template.ok_or_else(|| fault("is missing; without --chat the prompt is used as it is".to_owned()))?;
    let message = |role: &str, content: &str| context! { role, content };
    let system = system.map(|text| message("system", text));
    let messages: Vec<_> = system.into_iter().chain([message("user", question)]).collect();
    let text_of =
        |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).map(|text| String::from_utf8_lossy(text).into_owned());
    let (bos, eos) = (text_of(tokenizer.bos()), text_of(tokenizer.eos()));
    let values = context! { messages, add_generation_prompt => true, bos_token => bos, eos_token => eos };
    let mut output = Bounded(Vec::new());
    let environment = environment();
    let render = || environment.template_from_str(template).and_then(|template| template.render_captured_to(values, &mut output));
    let too_much = format!("cannot be rendered: it takes more than {} MiB of memory", MEMORY_MAX >> 20);
    let rendered = watched(render, Failure::from(fault(too_much)));
    match rendered {
        Ok(_) => String::from_utf8(output.0).map_err(|e| fault(e.to_string())),
        Err(e) => Err(fault(format!("cannot be rendered: {e}"))),
    }
}

/// The dialect that templates are written for: Jinja with Python's methods, as transformers sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the standard delimiters"));
    environment.set_fuel(Some(STEPS_MAX));
    environment.set_recursion_limit(DEPTH_MAX);
    environment.set_unknown_method_callback(unknown_method_callback);
    // As in Jinja, and as templates ask for tools that are not there.
    for name in ["length", "count"] {
        environment.add_filter(name, |value: &Value| if value.is_undefined() { Ok(0) } else { filters::length(value) });
    }
    environment.add_function("raise_exception", |text: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
    });
    environment
}

/// What `work` returns; ends the process with `failure` once it has taken more than [`MEMORY_MAX`]. An allocation cannot be refused from
/// outside, and nothing else is going on yet that would have to be tidied up. Only where the system tells, as Linux does.
fn watched<T>(work: impl FnOnce() -> T, failure: Failure) -> T {
    let before = memory_bytes();
    thread::scope(|scope| {
        let (at_work, done) = mpsc::channel::<()>();
        scope.spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = done.recv_timeout(Duration::from_millis(1)) {
                if memory_bytes().saturating_sub(before) > MEMORY_MAX {
                    failure.end();
                }
            }
        });
        let result = work();
        drop(at_work);
        result
    })
}

/// Memory of the process without that of mapped files, or 0.
fn memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Text up to [`OUTPUT_MAX`].
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_MAX {
            return Err(io::Error::other("more text than a mebibyte"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
