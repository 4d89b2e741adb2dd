//! `ggforge tokenize`: the tokens of a text, as a model sees it.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use ggforge::report::{json_text, printable};
use ggforge::tokenizer::encode::{Ends, Specials, Tokenizer, read_text, text_of};
use serde_json::{Value, json};

use crate::exit::{Failure, named, print};
use crate::terminal::warn;
use crate::{Run, Session, model};

/// Show the tokens of a text
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge tokenize llama.gguf 'Hello world'
  ggforge tokenize llama.gguf --file chapter.txt --ids
  git log | ggforge tokenize llama.gguf --file - --json")]
pub struct Tokenize {
    /// GGUF file with the vocabulary, any shard of a split model, or model folder
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The text
    #[arg(value_name = "TEXT")]
    text: Option<String>,
    /// Take the text from a file; - is standard input
    #[arg(long, short, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Print the ids alone, on one line
    #[arg(long)]
    ids: bool,
    /// Leave out what the model wants at begin and end of a text
    #[arg(long)]
    no_bos: bool,
    /// Read special tokens that are spelled out as plain text
    #[arg(long)]
    no_special: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "ids")]
    json: bool,
}

impl Run for Tokenize {
    const NAME: &'static str = "tokenize";

    fn run(self, _session: &Session) -> Result<(), Failure> {
        let model = model::open(&self.model)?;
        let tokenizer = Tokenizer::from_metadata(&model.shards()[0]).map_err(named(&self.model))?;
        tokenizer.warnings().iter().for_each(|warning| warn(warning));
        let specials = if self.no_special { Specials::Literal } else { Specials::Parse };
        let ends = if self.no_bos { Ends::Omit } else { Ends::Add };
        let ids = tokenizer.encode(&self.text()?, specials, ends);
        if self.ids {
            print(&format!("{ids:?}\n"))
        } else if self.json {
            print(&json_text(&as_json(&tokenizer, &ids)))
        } else {
            print(&as_lines(&tokenizer, &ids))
        }
    }
}

impl Tokenize {
    fn text(&self) -> Result<String, ggforge::Error> {
        match (&self.text, &self.file) {
            (Some(text), _) => Ok(text.clone()),
            (None, Some(file)) if file == Path::new("-") => text_of("standard input", io::stdin().lock()),
            (None, Some(file)) => read_text(file),
            (None, None) => {
                Err(ggforge::Error::usage("a text is needed: give it after the model, or with --file FILE (- for standard input)"))
            }
        }
    }
}

/// One line for each token: its id, and what it adds to the text.
fn as_lines(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut lines = String::new();
    for id in ids {
        let _ = writeln!(lines, "{id:>8}  '{}'", printable(&tokenizer.piece(*id, Specials::Parse)));
    }
    let _ = writeln!(lines, "{} token{}", ids.len(), if ids.len() == 1 { "" } else { "s" });
    lines
}

/// Pieces that are not UTF-8 by themselves, parts of a character, are given as bytes.
fn as_json(tokenizer: &Tokenizer, ids: &[u32]) -> Value {
    let token = |id: &u32| {
        let piece = tokenizer.piece(*id, Specials::Parse);
        match String::from_utf8(piece) {
            Ok(text) => json!({ "id": id, "text": text }),
            Err(e) => json!({ "id": id, "bytes": e.into_bytes() }),
        }
    };
    json!({ "n_tokens": ids.len(), "tokens": ids.iter().map(token).collect::<Vec<_>>() })
}
