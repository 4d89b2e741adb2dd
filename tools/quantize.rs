//! `ggforge quantize`: a GGUF model into others of fewer bits.

use std::path::PathBuf;

use clap::Args;
use ggforge::gguf::Model;
use ggforge::plan::{self, QuantizeOptions};
use ggforge::source::TensorSource;

use crate::arguments::file_types_and_copy;
use crate::calibrating::{CalibrateOptions, Calibrating};
use crate::exit::Failure;
use crate::output::{OutputOptions, Prepared};
use crate::{Run, Session};

/// Quantize a GGUF model
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge quantize llama-F16.gguf --type Q4_K_M --output llama-Q4_K_M.gguf
  ggforge quantize llama-F16.gguf --type Q8_0,Q5_K_M --output 'llama-{type}.gguf'
  ggforge quantize llama-F16.gguf --type Q4_K_M --calibrate calibration.txt --output llama.gguf
  ggforge quantize llama-F16.gguf --type Q4_K_M --calibrate calibration.txt \\
      --size 2300KB --types IQ4_XS,Q4_K,Q6_K --recipe types.txt --output llama.gguf")]
pub struct Quantize {
    /// GGUF file, or any shard of a split model
    #[arg(value_name = "IN.gguf")]
    input: PathBuf,
    /// File types to write, such as Q4_K_M; several share one reading
    #[arg(long = "type", short, value_name = "T", value_delimiter = ',', required = true, alias = "outtype")]
    #[arg(value_parser = file_types_and_copy(), hide_possible_values = true)]
    types: Vec<String>,
    /// Quantize tensors that are quantized already; errors add up
    #[arg(long)]
    allow_requantize: bool,
    #[command(flatten)]
    calibrate: CalibrateOptions,
    #[command(flatten)]
    output: OutputOptions,
}

impl Run for Quantize {
    const NAME: &'static str = "quantize";

    fn run(self, session: &Session) -> Result<(), Failure> {
        let imatrix = self.output.imatrix()?;
        let model = Model::open_unmapped(&self.input)?;
        let calibrating = self.calibrate.of(&model)?;
        let options = QuantizeOptions {
            presets: self.output.presets(&self.types)?,
            overrides: self.output.overrides(&self.calibrate)?,
            imatrix: imatrix.as_ref(),
            calibration: calibrating.as_ref().map(Calibrating::described),
            allow_requantize: self.allow_requantize,
        };
        let plan = plan::quantize(&model, &options)?;
        let protected = model.files().iter().map(|file| file.path().to_owned()).collect();
        let prepared = Prepared { source_path: self.input, source: &model, plan, proof: None, protected, calibrating };
        self.output.carry_out(prepared, session)
    }
}
