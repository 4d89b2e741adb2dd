//! The texts that a model is calibrated on: files, and what the model writes itself.

use std::fs;
use std::path::{Path, PathBuf};

use ggforge::Error;
use ggforge::eval::{Cut, Windows, text_of};
use ggforge::gguf::Model;
use ggforge::model::Cpu;
use ggforge::plan::{Calibration, CalibrationText};
use ggforge::tokenizer::encode::Tokenizer;
use sha2::{Digest, Sha256};

use crate::Session;
use crate::exit::Failure;
use crate::measuring::dataset;
use crate::openings;
use crate::signals::Stop;

/// What stands for the text that the model writes. A file of the name is `./self`.
const SELF: &str = "self";

/// Texts, and how many chunks each gives.
pub struct Texts {
    texts: Vec<Text>,
    shares: Vec<usize>,
    tokenizer: Tokenizer,
    ctx: usize,
}

enum Text {
    File {
        path: PathBuf,
        sha256: String,
        windows: Windows,
    },
    /// Not written yet.
    OfModel,
}

/// All chunks, and what files say of them.
pub struct Chunks {
    pub windows: Windows,
    pub calibration: Calibration,
}

impl Texts {
    /// Reads the files. All texts together give `chunks_max` chunks of `ctx` tokens, in turn.
    ///
    /// # Errors
    /// Those of the files; a file that is shorter than two chunks.
    pub fn read(texts: &[PathBuf], tokenizer: Tokenizer, ctx: usize, chunks_max: usize) -> Result<Texts, Error> {
        let read = |path: &PathBuf| {
            if path == Path::new(SELF) {
                return Ok(Text::OfModel);
            }
            let bytes = fs::read(path).map_err(|e| Error::io(path, "read", e))?;
            let cut = Cut { ctx, stride: None, windows_max: Some(chunks_max) };
            let windows = Windows::of_text(path, &text_of(path, &bytes[..])?, &tokenizer, &cut)?;
            Ok(Text::File { path: path.clone(), sha256: hexadecimal(&Sha256::digest(&bytes)), windows })
        };
        let texts = texts.iter().map(read).collect::<Result<Vec<_>, Error>>()?;
        let lens = texts.iter().map(|text| match text {
            Text::File { windows, .. } => windows.len(),
            Text::OfModel => chunks_max,
        });
        let shares = Windows::shares(&lens.collect::<Vec<_>>(), chunks_max);
        Ok(Texts { texts, shares, tokenizer, ctx })
    }

    /// Those that are files.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.texts.iter().filter_map(|text| match text {
            Text::File { path, .. } => Some(path.clone()),
            Text::OfModel => None,
        })
    }

    /// What files say of the texts; of what the model has yet to write, without its hash.
    pub fn described(&self) -> Calibration {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let described = |(text, share): (&Text, &usize)| {
            let (name, sha256) = match text {
                Text::File { path, sha256, .. } => (dataset(path), sha256.clone()),
                // As long as the hash will be: headers are planned before.
                Text::OfModel => (SELF.to_owned(), "0".repeat(64)),
            };
            CalibrationText { name, sha256, n_tokens: count(share * self.ctx) }
        };
        Calibration {
            texts: self.texts.iter().zip(&self.shares).map(described).collect(),
            chunk_count: count(self.shares.iter().sum()),
            chunk_size: count(self.ctx),
            predicted_kld: None,
        }
    }

    /// All chunks; the model writes those that are its own.
    ///
    /// # Errors
    /// Those of running the model.
    pub fn windows(&self, cpu: &Cpu, model: &Model, session: &Session, stop: &Stop) -> Result<Chunks, Failure> {
        let mut calibration = self.described();
        let mut of_texts = Vec::new();
        for (index, text) in self.texts.iter().enumerate() {
            of_texts.push(match text {
                Text::File { windows, .. } => windows.clone(),
                Text::OfModel => {
                    // Two at least, to be windows; as many are taken as the text's share is.
                    let n_chunks = self.shares[index].max(2);
                    let tokens = openings::continued(cpu, model, &self.tokenizer, (n_chunks, self.ctx), session, stop)?;
                    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
                    calibration.texts[index].sha256 = hexadecimal(&Sha256::digest(&bytes));
                    Windows::of_tokens(SELF, tokens, None, &Cut { ctx: self.ctx, stride: None, windows_max: None })?
                }
            });
        }
        Ok(Chunks { windows: Windows::in_turn(&of_texts, &self.shares)?, calibration })
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
