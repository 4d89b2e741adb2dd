//! `ggforge convert`: a Hugging Face model folder into GGUF files.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use ggforge::arch;
use ggforge::gguf::Model;
use ggforge::hf::Folder;
use ggforge::pipeline;
use ggforge::plan::{self, ConvertOptions, Overrides, QuantizeOptions};
use ggforge::tokenizer::Scores;

use crate::arguments::file_types;
use crate::calibrating::{CalibrateOptions, Calibrating};
use crate::exit::Failure;
use crate::output::{OutputOptions, Prepared};
use crate::proof::Proof;
use crate::{Run, Session};

/// Convert a Hugging Face model folder to GGUF, quantizing on the way
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  ggforge convert Llama-3.2-1B --type Q4_K_M --output llama.gguf
  ggforge convert Llama-3.2-1B --type Q8_0,Q4_K_M,Q6_K --output out/
  ggforge convert Llama-3.2-1B --type Q4_K_M --calibrate calibration.txt
  ggforge convert Llama-3.2-1B --type Q4_K_M --tensor-type attn_v=Q8_0 \\
      --output llama.gguf --dry-run

Architectures that convert, and run:
{}", arch::list(arch::FAMILIES)))]
pub struct Convert {
    /// Folder with config.json, safetensors and tokenizer files
    source: PathBuf,
    /// File types to write, such as Q4_K_M [default: the source's own type]
    #[arg(long = "type", short, value_name = "T", value_delimiter = ',', alias = "outtype")]
    #[arg(value_parser = file_types(), hide_possible_values = true)]
    types: Vec<String>,
    /// Name of the pre-tokenizer, where it is not recognised
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,
    /// Scores of tokens where tokenizer.json has only merges, without a tokenizer.model
    #[arg(long, value_name = "FROM", default_value = "merges")]
    token_scores: TokenScores,
    /// Name of the model in the metadata [default: from the folder]
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    #[command(flatten)]
    calibrate: CalibrateOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// Where the scores of a vocabulary come from that has none.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum TokenScores {
    /// The order of the merges: llama.cpp makes the tokens that the model knows
    Merges,
    /// -1000 for every token, as convert_hf_to_gguf.py writes
    Constant,
}

impl Run for Convert {
    const NAME: &'static str = "convert";

    fn run(self, session: &Session) -> Result<(), Failure> {
        let imatrix = self.output.imatrix()?;
        let options = ConvertOptions {
            // What convert_hf_to_gguf.py calls the source's own.
            presets: if self.types == ["auto"] { Vec::new() } else { self.output.presets(&self.types)? },
            overrides: self.output.overrides(&self.calibrate)?,
            imatrix: imatrix.as_ref(),
            name: self.name,
            pre: self.pre,
            scores: match self.token_scores {
                TokenScores::Merges => Scores::FromMerges,
                TokenScores::Constant => Scores::Constant,
            },
        };
        let folder = plan::open_folder(&self.source)?;
        let protected = files_in(&self.source);
        if !self.calibrate.calibrate.is_empty() {
            return calibrated(
                folder,
                options,
                Calibrated { source_path: self.source, calibrate: &self.calibrate, output: &self.output, protected },
                session,
            );
        }
        let plan = plan::convert(&folder, &options)?;
        let proof = plan.outputs.first().map(|output| Proof::start(&folder, &output.metadata));
        self.output
            .carry_out(Prepared { source_path: self.source, source: &folder, plan, proof, protected, calibrating: None }, session)
    }
}

/// What is given besides the folder and what to make of it.
struct Calibrated<'a> {
    source_path: PathBuf,
    calibrate: &'a CalibrateOptions,
    output: &'a OutputOptions,
    protected: Vec<PathBuf>,
}

/// The folder is run as the file of its own type that it would become, and that file is quantized.
fn calibrated(folder: Folder, options: ConvertOptions, with: Calibrated, session: &Session) -> Result<(), Failure> {
    let Calibrated { source_path, calibrate, output, protected } = with;
    let of_source = ConvertOptions { presets: Vec::new(), overrides: Overrides::default(), ..options.clone() };
    let mut own = plan::convert(&folder, &of_source)?;
    let proof = own.outputs.first().map(|output| Proof::start(&folder, &output.metadata));
    let model = Model::of_input(pipeline::unwritten(folder, own.outputs.swap_remove(0))?)?;
    let calibrating = calibrate.of(&model)?;
    let quantize = QuantizeOptions {
        presets: options.presets,
        overrides: options.overrides,
        calibration: calibrating.as_ref().map(Calibrating::described),
        ..QuantizeOptions::default()
    };
    let mut plan = plan::quantize(&model, &quantize)?;
    plan.warnings.splice(0..0, own.warnings);
    output.carry_out(Prepared { source_path, source: &model, plan, proof, protected, calibrating }, session)
}

/// Everything in the model folder and its subfolders, by name: config.json, the tokenizer and its templates are inputs as much as the weights are.
pub fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let subfolders = entries(folder).filter(|path| path.is_dir()).flat_map(|subfolder| entries(&subfolder).collect::<Vec<_>>());
    let mut files: Vec<PathBuf> = entries(folder).chain(subfolders).filter(|path| !is_gguf(path)).collect();
    files.sort();
    files
}

/// An older output in the same folder may be replaced.
fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gguf")
}
