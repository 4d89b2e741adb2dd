//! `--calibrate`: rounding by what a text puts into the matrices, for commands that write GGUF files.

use std::path::{Path, PathBuf};

use clap::Args;
use ggforge::Error;
use ggforge::calibrate::{self, Calibrated, Choice, Method, Reached};
use ggforge::gguf::{Header, Model};
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Cpu, Hparams, Network, Residency};
use ggforge::pipeline;
use ggforge::plan::{Calibration, Plan};
use ggforge::source::TensorSource;
use ggforge::tokenizer::encode::Tokenizer;
use serde_json::{Value, json};

use crate::exit::{Failure, named};
use crate::measuring::timed;
use crate::signals::Stop;
use crate::texts::Texts;
use crate::{Session, size};

/// Options of calibration.
#[derive(Debug, Args)]
pub struct CalibrateOptions {
    /// Round by what this text puts into each matrix: better files of the same size, in minutes instead of seconds. May be repeated, then
    /// texts give their chunks in turn; self is text that the model writes itself
    #[arg(long, value_name = "TEXT", conflicts_with = "imatrix")]
    pub calibrate: Vec<PathBuf>,
    /// Chunks of 512 tokens to use at most, of all texts together
    #[arg(long, value_name = "N", default_value_t = 100, requires = "calibrate")]
    pub calibrate_chunks: usize,
    /// Choose the types of the layers' matrices so that all tensors take this many bits per weight at most, and lose least
    #[arg(long, value_name = "BITS", requires = "calibrate", value_parser = bits)]
    #[arg(conflicts_with_all = ["size", "tensor_type", "tensor_type_file", "pure"])]
    pub bpw: Option<f64>,
    /// The same for the size of the file, such as 4200MB
    #[arg(long, value_name = "SIZE", requires = "calibrate", value_parser = size::parse)]
    #[arg(conflicts_with_all = ["split_max_size", "tensor_type", "tensor_type_file", "pure"])]
    pub size: Option<u64>,
}

fn bits(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|bits| (1.0..=32.0).contains(bits)).ok_or_else(|| "a number of bits from 1 to 32 is needed".to_owned())
}

/// Tokens of a chunk, unless the model was trained for fewer.
const CTX: usize = 512;

/// A model and the text that it is calibrated on.
pub struct Calibrating<'a> {
    model: &'a Model,
    texts: Texts,
    bpw: Option<f64>,
    size: Option<u64>,
}

impl CalibrateOptions {
    /// The texts in the tokens of `model`, where any were given.
    ///
    /// # Errors
    /// Those of the text and of the vocabulary.
    pub fn of<'a>(&self, model: &'a Model) -> Result<Option<Calibrating<'a>>, Failure> {
        if self.calibrate.is_empty() {
            return Ok(None);
        }
        model.check_has_weights()?;
        let tokenizer = Tokenizer::from_metadata(&model.shards()[0]).map_err(named(model.files()[0].path()))?;
        let ctx = CTX.min(Hparams::read(model)?.n_ctx_train);
        let texts = Texts::read(&self.calibrate, tokenizer, ctx, self.calibrate_chunks)?;
        Ok(Some(Calibrating { model, texts, bpw: self.bpw, size: self.size }))
    }
}

impl Calibrating<'_> {
    /// What the files will say of it, but for the hash of what the model has yet to write.
    pub fn described(&self) -> Calibration {
        self.texts.described()
    }

    /// The files of the texts.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.texts.paths()
    }

    /// True where the plan's types are only what it begins with.
    pub fn chooses_types(&self) -> bool {
        self.bpw.is_some() || self.size.is_some()
    }

    /// Bytes that the tensors may take together.
    fn budget_bytes(&self, plan: &Plan) -> Result<Option<u64>, Failure> {
        if !self.chooses_types() {
            return Ok(None);
        }
        let [output] = &plan.outputs[..] else {
            return Err(Error::usage("types are chosen for one file at a time; give one --type").into());
        };
        if let Some(bpw) = self.bpw {
            return Ok(Some((output.summary().n_weights as f64 * bpw / 8.0) as u64));
        }
        // Whatever the types, the header is as long, and before every tensor there is less than the alignment.
        let alignment = Header { metadata: output.metadata.clone(), tensors: Vec::new() }.alignment()?;
        let planned = pipeline::files(plan, &[PathBuf::from("file.gguf")], None)?;
        let around = planned[0].layout.header.len() as u64 + (alignment - 1) * (output.tensors.len() as u64 + 1);
        Ok(self.size.map(|size| size.saturating_sub(around)))
    }

    /// Makes the blocks of what `plan` quantizes, and has it take them. `folder` has room for them.
    ///
    /// # Errors
    /// Those of running the model; the signal that ended it.
    pub fn run(&self, plan: &mut Plan, folder: &Path, session: &Session, stop: &Stop) -> Result<Calibrated, Failure> {
        let cpu = Cpu::new(Engine::detect(), session.n_threads(), Activations::F32)?;
        let windows = self.texts.windows(&cpu, self.model, session, stop)?;
        plan.outputs.iter_mut().for_each(|output| windows.calibration.describe(&mut output.metadata));
        let windows = windows.windows;
        let network =
            Network::open(&cpu, self.model, windows.ctx(), Residency::Streamed).map_err(named(self.model.files()[0].path()))?;
        let budget_bytes = self.budget_bytes(plan)?;
        let calibrated = timed("calibrating", session, stop.flag(), |watch| {
            calibrate::calibrate(&network, self.model, plan, &windows, folder, budget_bytes, watch)
        });
        let (calibrated, _) = calibrated.map_err(|error| stop.ended(error))?;
        Ok(calibrated)
    }
}

/// Matrices that one line names at most.
const NAMED_MAX: usize = 4;

/// `calibrated 208 of 211 matrices; rounded by importance alone: blk.18.attn_v.weight (Q4_0), ...`
pub fn line(choices: &[Choice]) -> String {
    let plain: Vec<&Choice> = choices.iter().filter(|choice| choice.method == Method::Importance).collect();
    let mut line = format!("calibrated {} of {} matrices", choices.len() - plain.len(), choices.len());
    if !plain.is_empty() {
        let named: Vec<String> =
            plain.iter().take(NAMED_MAX).map(|choice| format!("{} ({})", choice.name, choice.format)).collect();
        let more = if plain.len() > NAMED_MAX { ", ..." } else { "" };
        line += &format!("; rounded by importance alone: {}{more}", named.join(", "));
    }
    line
}

/// What to know about tensors that calibration does not reach.
pub fn left_out_line(left_out: &[String]) -> Option<String> {
    let named = left_out.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if left_out.len() > NAMED_MAX { ", ..." } else { "" };
    let n = left_out.len();
    (n > 0).then(|| format!("{n} quantized tensors are not calibrated, and rounded without importance: {named}{more}"))
}

/// What to know about experts that few tokens of the text have reached.
pub fn experts_line(reached: &Reached) -> Option<String> {
    let Reached { n_experts, n_few, n_none } = reached;
    (*n_few > 0).then(|| {
        format!(
            "{n_few} of {n_experts} experts were reached by fewer tokens than their matrices have columns, {n_none} by none: \
             they are rounded by the mean of all experts of their layer, too"
        )
    })
}

/// How each matrix was rounded, and what held-out text loses by it and by importance alone.
pub fn as_json(calibrated: &Calibrated) -> Value {
    let of = |choice: &Choice| {
        let (method, lambda) = match choice.method {
            Method::Calibrated { lambda } => ("calibrated", Some(lambda)),
            Method::Importance => ("importance", None),
        };
        json!({
            "tensor": choice.name,
            "type": choice.format.name(),
            "method": method,
            "lambda": lambda,
            "held_out_error": choice.error,
            "held_out_error_by_importance": choice.plain_error,
        })
    };
    json!({
        "matrices": calibrated.choices.iter().map(of).collect::<Vec<_>>(),
        "left_out": calibrated.left_out,
        "experts": {
            "count": calibrated.reached.n_experts,
            "reached_by_few": calibrated.reached.n_few,
            "reached_by_none": calibrated.reached.n_none,
        },
    })
}
