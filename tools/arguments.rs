//! How arguments are read that several commands have.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::builder::{PathBufValueParser, PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command};
use ggforge::plan::recipe::{COPY, PRESETS};
use ggforge::quant::Format;

/// The path of an output. A single hyphen is no file: what is given a name only when it is complete cannot go through a pipe.
pub fn output_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.as_os_str() == "-" {
        true => Err("an output is a file, which gets its name when it is complete, and never standard output; give a name"),
        false => Ok(path),
    })
}

/// Names of file types, for `--type`.
pub fn file_types() -> Names {
    Names(|| PRESETS.iter().map(|preset| preset.name).collect())
}

/// The same with the one that keeps every tensor of a GGUF file.
pub fn file_types_and_copy() -> Names {
    Names(|| PRESETS.iter().chain([&COPY]).map(|preset| preset.name).collect())
}

/// Names of tensor formats.
pub fn formats() -> Names {
    Names(|| Format::ALL.iter().map(|format| format.name()).collect())
}

/// Names that a shell completes. Others are read, too: the library knows more spellings, and says best what is wrong with one.
#[derive(Debug, Clone)]
pub struct Names(fn() -> Vec<&'static str>);

impl TypedValueParser for Names {
    type Value = String;

    fn parse_ref(&self, command: &Command, argument: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new((self.0)().into_iter().map(PossibleValue::new)))
    }
}
