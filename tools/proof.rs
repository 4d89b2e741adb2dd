//! The proof that a converted tokenizer splits text as the source's own does, made beside the conversion.
//!
//! The source's is run by a library that trusts its files: a [child process](crate::child) runs it. Conversations are rendered before,
//! by another, so that the text that a model is used with is among those compared.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use ggforge::gguf::Metadata;
use ggforge::tokenizer::Files;
use ggforge::tokenizer::proof::{Comparison, Outcome, Question};

use crate::child::{self, Job, Limits, NoAnswer};
use crate::terminal::warn;
use crate::{chat, summary};

/// What a child of this program is for that compares tokenizers.
pub const JOB: Job = Job { name: "--compare-tokenizers", work: answer };

const MIB: u64 = 1 << 20;
/// Bytes of memory for each of a large tokenizer.json: one of 262,000 tokens and 512,000 merges in 24 MB takes 20.
const MEMORY_PER_BYTE: u64 = 32;

/// By the size of tokenizer.json.
fn limits(json_bytes: u64) -> Limits {
    let cpu_seconds = 1 + json_bytes / MIB;
    Limits {
        memory_bytes: (256 * MIB).max(json_bytes.saturating_mul(MEMORY_PER_BYTE)),
        cpu_seconds,
        // After the other work, a conversion does not wait much longer than for the largest tokenizers known.
        wait: Duration::from_secs(20 + cpu_seconds),
        // An example has a conversation at most.
        answer_bytes: 16 * MIB,
    }
}

fn answer(question: Vec<u8>) -> Vec<u8> {
    let question = Question::from_bytes(&question).expect("the parent's question");
    serde_json::to_vec(&question.answer()).expect("an outcome as JSON")
}

/// A comparison under way.
pub enum Proof {
    Running(JoinHandle<Found>),
    Impossible(String),
}

/// What came of it.
pub struct Found {
    outcome: Result<Outcome, NoAnswer>,
    /// Why the chat template renders no conversation, where it does not.
    template: Option<String>,
}

impl Proof {
    /// Starts to compare the tokenizer of the model folder with the one in the metadata that was made of it.
    pub fn start(files: &dyn Files, metadata: &Metadata) -> Proof {
        let mut question = match Question::read(files, metadata) {
            Ok(Some(question)) => question,
            Ok(None) => return Proof::Impossible("there is no tokenizer.json".to_owned()),
            Err(error) => return Proof::Impossible(error.to_string()),
        };
        let template = chat::Template::of(metadata);
        let work = move || {
            let conversations = template.map_or(Ok(Vec::new()), |template| template.conversations());
            let (conversations, template) = conversations.map_or_else(|why| (Vec::new(), Some(why)), |texts| (texts, None));
            question.conversations = conversations;
            let answer = child::ask(&JOB, limits(question.json_bytes()), question.to_bytes());
            let outcome = answer.and_then(|answer| serde_json::from_slice(&answer).map_err(|e| NoAnswer::Ended(e.to_string())));
            Found { outcome, template }
        };
        match thread::Builder::new().name("tokenizer proof".to_owned()).spawn(work) {
            Ok(thread) => Proof::Running(thread),
            Err(error) => Proof::Impossible(format!("no thread could be started: {error}")),
        }
    }

    /// Waits for the result, and warns of what a person should know. Other tokens are worth a warning: what a model makes of text that
    /// it was not trained to read is nothing that a later measurement explains.
    pub fn finish(self) -> Outcome {
        let Found { outcome, template } = match self {
            Proof::Impossible(why) => return Outcome::NotCompared(why),
            // Its children are ended where they take too long.
            Proof::Running(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        };
        if let Some(why) = template {
            warn(&format!("the chat template cannot be rendered, so that generate --chat will refuse it: {why}"));
        }
        let outcome = outcome.unwrap_or_else(|why| {
            let why = format!("Hugging Face's library does not read tokenizer.json: {why}");
            warn(&format!("the tokenizer is not compared with the source's own; the conversion is whole: {why}"));
            Outcome::NotCompared(why)
        });
        if let Outcome::Compared(Comparison { example: Some(example), .. }) = &outcome {
            warn(&summary::example_line(example));
        }
        outcome
    }
}
