//! `--calibrate`: rounding by what a text puts into the matrices, for commands that write GGUF files.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Args;
use ggforge::Error;
use ggforge::calibrate::{self, Aim, Bound, Calibrated, Choice, Chosen, Folders, Method, Reached};
use ggforge::eval::{Cut, Estimate, Windows, divergence, read_text};
use ggforge::gguf::{Header, Model};
use ggforge::matmul::Engine;
use ggforge::model::fit::{self, Running};
use ggforge::model::{Activations, Cpu, Hparams, Network, Residency};
use ggforge::names::Role;
use ggforge::pipeline;
use ggforge::plan::recipe::preset;
use ggforge::plan::{Calibration, Menu, OutputPlan, Overrides, Plan, PlannedTensor, write_list};
use ggforge::quant::{Format, bits_per_weight};
use ggforge::report::{decimal_bytes, printable};
use ggforge::source::TensorSource;
use ggforge::tokenizer::encode::Tokenizer;
use serde_json::{Value, json};

use crate::exit::{Failure, named};
use crate::measuring::{chunks, dataset, timed};
use crate::signals::Stop;
use crate::texts::{Chunks, Texts};
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
    /// Keep finished matrices in this folder, and take those that it has: goes on where a run was stopped, and further types cost less
    #[arg(long, value_name = "FOLDER", requires = "calibrate")]
    pub checkpoint: Option<PathBuf>,
    /// Then measure how far the files are from the source on this text, its first 20 chunks: take another one
    #[arg(long, value_name = "TEXT", requires = "calibrate")]
    pub measure: Option<PathBuf>,
    /// Choose the types of matrices so that all tensors take this many bits per weight at most, and lose least
    #[arg(long, value_name = "BITS", group = "goal", requires = "calibrate", value_parser = bits)]
    #[arg(conflicts_with_all = ["tensor_type", "tensor_type_file", "pure"])]
    pub bpw: Option<f64>,
    /// The same for the size of the file, such as 4200MB
    #[arg(long, value_name = "SIZE", group = "goal", requires = "calibrate", value_parser = size::parse)]
    #[arg(conflicts_with_all = ["split_max_size", "tensor_type", "tensor_type_file", "pure"])]
    pub size: Option<u64>,
    /// The same for the memory of a GPU with all layers, --ctx tokens and their buffers, such as 11GiB of a card of 12: see ggforge fit
    #[arg(long, value_name = "SIZE", group = "goal", requires = "calibrate", value_parser = size::parse)]
    #[arg(conflicts_with_all = ["tensor_type", "tensor_type_file", "pure"])]
    pub gpu_memory: Option<u64>,
    /// Give this share of the layers' weights the type of --type, of 4 bits, and Q8_0 to those that lose most by it, to embedding and head
    #[arg(long, value_name = "SHARE", group = "goal", requires = "calibrate", value_parser = share)]
    #[arg(conflicts_with_all = ["menu", "tensor_type", "tensor_type_file", "pure"])]
    pub ratio: Option<f64>,
    /// Types to choose from: k (fast everywhere), legacy, iq (k and the grids), all, or types by name, separated by commas [default: k]
    #[arg(long = "types", value_name = "LIST", requires = "goal", value_parser = menu)]
    pub menu: Option<Menu>,
    #[command(flatten)]
    pub running: RunningOptions,
}

/// How a model will be run that is to fit into memory.
#[derive(Debug, Clone, Args)]
pub struct RunningOptions {
    /// Tokens of context that --gpu-memory has room for [default: 8192]
    #[arg(long, value_name = "N", requires = "gpu_memory", value_parser = context)]
    pub ctx: Option<usize>,
    /// What its keys and values are kept as [default: f16]
    #[arg(long, value_name = "TYPE", requires = "gpu_memory", value_parser = kv)]
    pub kv: Option<Format>,
}

/// Tokens of context that there is room for, where nothing else is said.
const CTX_DEFAULT: usize = 8192;

impl RunningOptions {
    fn running(&self) -> Running {
        Running { n_ctx: self.ctx.unwrap_or(CTX_DEFAULT), kv: self.kv.unwrap_or(Format::F16) }
    }
}

fn bits(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|bits| (1.0..=32.0).contains(bits)).ok_or_else(|| "a number of bits from 1 to 32 is needed".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "a share from 0 to 1 is needed".to_owned())
}

fn menu(text: &str) -> Result<Menu, String> {
    Menu::parse(text).map_err(|error| error.to_string())
}

/// Tokens of context, from one token on.
pub fn context(text: &str) -> Result<usize, String> {
    let tokens = text.parse().ok().filter(|n| (1..=1 << 30).contains(n));
    tokens.ok_or_else(|| "a number of tokens from 1 to 1073741824 is needed".to_owned())
}

/// A type for keys and values, as llama.cpp has them.
pub fn kv(text: &str) -> Result<Format, String> {
    let known = [
        Format::F16,
        Format::Q8_0,
        Format::BF16,
        Format::F32,
        Format::Q5_1,
        Format::Q5_0,
        Format::Q4_1,
        Format::Q4_0,
        Format::IQ4_NL,
    ];
    let format = text.parse().ok().filter(|format| known.contains(format));
    format.ok_or_else(|| format!("one of {} is needed", known.map(|format| format.name().to_lowercase()).join(", ")))
}

/// Chunks that `--measure` takes at most.
const MEASURED_CHUNKS: usize = 20;

/// Tokens of a chunk, unless the model was trained for fewer.
const CTX: usize = 512;

/// A model and the text that it is calibrated on.
pub struct Calibrating<'a> {
    model: &'a Model,
    texts: Texts,
    checkpoint: Option<PathBuf>,
    measure: Option<Windows>,
    goal: Option<Goal>,
    menu: Menu,
    running: Running,
    /// Where types are not chosen: what was predicted of those that were.
    pub predicted_kld: Option<f32>,
}

/// What types are chosen for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Goal {
    BitsPerWeight(f64),
    FileBytes(u64),
    GpuBytes(u64),
    Ratio(f64),
}

impl CalibrateOptions {
    fn goal(&self) -> Option<Goal> {
        let goals = [
            self.bpw.map(Goal::BitsPerWeight),
            self.size.map(Goal::FileBytes),
            self.gpu_memory.map(Goal::GpuBytes),
            self.ratio.map(Goal::Ratio),
        ];
        goals.into_iter().flatten().next()
    }

    /// True where the types of --type are only what the choice begins with.
    pub fn chooses_types(&self) -> bool {
        self.goal().is_some()
    }

    /// Of tensors that no choice reaches: with `--ratio` embedding and head have 8 bits, where nothing else is said.
    pub fn adjust(&self, overrides: &mut Overrides) {
        if self.ratio.is_some() {
            overrides.output.get_or_insert(Format::Q8_0);
            overrides.token_embd.get_or_insert(Format::Q8_0);
        }
    }

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
        let cut = Cut { ctx, stride: None, windows_max: Some(MEASURED_CHUNKS) };
        let measured = |path: &PathBuf| Windows::of_text(path, &read_text(path)?, &tokenizer, &cut);
        let measure = self.measure.as_ref().map(measured).transpose()?;
        let texts = Texts::read(&self.calibrate, tokenizer, ctx, self.calibrate_chunks)?;
        let (goal, menu, running) = (self.goal(), self.menu.clone().unwrap_or_default(), self.running.running());
        let checkpoint = self.checkpoint.clone();
        Ok(Some(Calibrating { model, texts, checkpoint, measure, goal, menu, running, predicted_kld: None }))
    }
}

impl Calibrating<'_> {
    /// What the files will say of it, but for the hash of what the model has yet to write.
    pub fn described(&self) -> Calibration {
        Calibration { predicted_kld: self.goal.map(|_| 0.0), ..self.texts.described() }
    }

    /// The files of the texts.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.texts.paths().chain(self.measure.iter().map(|windows| windows.path().to_owned()))
    }

    /// What the choice of types is bound by. `kept`: roles of tensors whose types were given.
    ///
    /// # Errors
    /// `Usage` for more than one output, for a memory that has no room for the model's cache, and for a ratio of a type that is not of 4 bits.
    pub fn aim(&self, plan: &Plan, kept: &[Role]) -> Result<Option<Aim>, Failure> {
        let Some(goal) = self.goal else { return Ok(None) };
        let [output] = &plan.outputs[..] else {
            return Err(Error::usage("types are chosen for one file at a time; give one --type").into());
        };
        let bytes = |tensor: &PlannedTensor| tensor.format.tensor_bytes(&tensor.shape).unwrap_or(u64::MAX);
        let tensors: Vec<(&str, u64)> = output.tensors.iter().map(|tensor| (tensor.name.as_str(), bytes(tensor))).collect();
        let is_kept = |name: &&str| kept.contains(&Role::of(name));
        let mut kept: BTreeSet<String> = tensors.iter().map(|(name, _)| *name).filter(is_kept).map(str::to_owned).collect();
        let mut menu = self.menu.clone();
        let bound = match goal {
            Goal::BitsPerWeight(bpw) => Bound::Bytes((output.summary().n_weights as f64 * bpw / 8.0) as u64),
            Goal::FileBytes(size) => {
                // The hash of a text that the model has yet to write.
                let hashes = self.described().texts.iter().filter(|text| text.sha256.is_empty()).count() as u64 * 64;
                Bound::Bytes(size.saturating_sub(around_tensors(plan, output)?).saturating_sub(hashes))
            }
            Goal::GpuBytes(size) => {
                let away = fit::in_main_memory(&tensors);
                let bytes = |is_counted: &dyn Fn(&str) -> bool| -> u64 {
                    tensors.iter().filter(|(name, _)| is_counted(name)).map(|(_, bytes)| *bytes).sum()
                };
                let used = fit::memory(&Hparams::read(self.model)?, &[], &self.running)?;
                let beside = used.total_bytes();
                let Some(left) = size.checked_sub(beside) else {
                    let [size, beside] = [size, beside].map(decimal_bytes);
                    let n_ctx = self.running.n_ctx;
                    let what = format!(
                        "{size} of memory, but keys, values and buffers of {n_ctx} tokens alone take {beside}; choose a smaller --ctx"
                    );
                    return Err(Error::usage(what).into());
                };
                kept.extend(away.iter().map(|name| (*name).to_owned()));
                Bound::Bytes(left.saturating_add(bytes(&|name| away.contains(&name))))
            }
            Goal::Ratio(ratio) => {
                let base = preset(&output.file_type)?.base;
                let bits = bits_per_weight(base.block_bytes() as u64, base.block_len() as u64);
                if !(4.0..=5.0).contains(&bits) {
                    let what = format!(
                        "--ratio is the share of a type of 4 bits, and {} is none; give --type Q4_0 or Q4_K_M",
                        output.file_type
                    );
                    return Err(Error::usage(what).into());
                }
                menu = Menu::of_two(base, Format::Q8_0);
                Bound::Share(ratio)
            }
        };
        Ok(Some(Aim { menu, bound, kept }))
    }

    /// Makes the blocks of what `plan` quantizes, and has it take them. `folder` has room for them.
    ///
    /// # Errors
    /// Those of running the model; the signal that ended it.
    pub fn run(
        &self,
        plan: &mut Plan,
        aim: Option<&Aim>,
        folder: &Path,
        session: &Session,
        stop: &Stop,
    ) -> Result<Calibrated, Failure> {
        let cpu = Cpu::new(Engine::detect(), session.n_threads(), Activations::F32)?;
        let windows = self.texts.windows(&cpu, self.model, session, stop)?;
        let Chunks { windows, mut calibration } = windows;
        let network =
            Network::open(&cpu, self.model, windows.ctx(), Residency::Streamed).map_err(named(self.model.files()[0].path()))?;
        let folders = Folders { blocks: folder, checkpoint: self.checkpoint.as_deref() };
        let calibrated = timed("calibrating", session, stop.flag(), |watch| {
            calibrate::calibrate(&network, self.model, plan, &windows, folders, aim, watch)
        });
        let (calibrated, _) = calibrated.map_err(|error| stop.ended(error))?;
        calibration.predicted_kld = self.goal.map(|_| predicted(&calibrated.chosen) as f32).or(self.predicted_kld);
        plan.outputs.iter_mut().for_each(|output| calibration.describe(&mut output.metadata));
        Ok(calibrated)
    }

    /// How far files are from the source, where that is to be measured: the first file of each output.
    ///
    /// # Errors
    /// Those of running the models; the signal that ended it.
    pub fn measured(&self, paths: &[PathBuf], session: &Session, stop: &Stop) -> Result<Option<Measured>, Failure> {
        let Some(windows) = &self.measure else { return Ok(None) };
        let cpu = Cpu::new(Engine::detect(), session.n_threads(), Activations::F32)?;
        let open = |model, path: &Path| Network::open(&cpu, model, windows.ctx(), Residency::Streamed).map_err(named(path));
        let base = open(self.model, self.model.files()[0].path())?;
        let models = paths.iter().map(Model::open_unmapped).collect::<Result<Vec<_>, Error>>()?;
        let others = models.iter().zip(paths).map(|(model, path)| open(model, path)).collect::<Result<Vec<_>, Failure>>()?;
        let compared = timed("measuring", session, stop.flag(), |watch| divergence::measure(&base, &others, windows, watch));
        let (comparison, _) = compared.map_err(|error| stop.ended(error))?;
        let klds = comparison.files.iter().map(|file| file.kld).collect();
        Ok(Some(Measured { text: dataset(windows.path()), n_chunks: windows.len(), klds }))
    }
}

/// What a file has besides its tensors: whatever the types, the header is as long, and before every tensor there is less than the alignment.
fn around_tensors(plan: &Plan, output: &OutputPlan) -> Result<u64, Error> {
    let alignment = Header { metadata: output.metadata.clone(), tensors: Vec::new() }.alignment()?;
    let planned = pipeline::files(plan, &[PathBuf::from("file.gguf")], None)?;
    Ok(planned[0].layout.header.len() as u64 + (alignment - 1) * (output.tensors.len() as u64 + 1))
}

/// Mean divergences of outputs from the source.
pub struct Measured {
    text: String,
    n_chunks: usize,
    klds: Vec<Estimate>,
}

impl Measured {
    /// `mean KLD on wiki.test.raw, 20 chunks: Q4_K_M 0.000358 ± 0.000004`
    pub fn line(&self, plan: &Plan) -> String {
        let of = |(output, kld): (&OutputPlan, &Estimate)| format!("{} {:.6} ± {:.6}", output.file_type, kld.value, kld.error);
        let files: Vec<String> = plan.outputs.iter().zip(&self.klds).map(of).collect();
        format!("mean KLD on {}, {}: {}", printable(self.text.as_bytes()), chunks(self.n_chunks as u64), files.join(", "))
    }

    /// In the order of the outputs.
    pub fn as_json(&self) -> Value {
        let klds: Vec<Value> = self.klds.iter().map(|kld| json!({ "mean": kld.value, "error": kld.error })).collect();
        json!({ "text": self.text, "chunks": self.n_chunks, "kld": klds })
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

/// `types chosen for 43 tensors: 19 Q4_K, 13 Q5_K; predicted mean KLD 0.00023`
pub fn chosen_line(chosen: &[Chosen]) -> Option<String> {
    let mut n_of: BTreeMap<Format, usize> = BTreeMap::new();
    chosen.iter().for_each(|chosen| *n_of.entry(chosen.format).or_default() += 1);
    let mut counts: Vec<(Format, usize)> = n_of.into_iter().collect();
    counts.sort_by_key(|(_, n)| Reverse(*n));
    let counts: Vec<String> = counts.iter().map(|(format, n)| format!("{n} {format}")).collect();
    let line =
        || format!("types chosen for {} tensors: {}; predicted mean KLD {:.6}", chosen.len(), counts.join(", "), predicted(chosen));
    (!chosen.is_empty()).then(line)
}

/// The mean divergence in nats, as far as it is of these tensors, each for itself.
fn predicted(chosen: &[Chosen]) -> f64 {
    chosen.iter().map(|chosen| chosen.cost).sum()
}

/// The types of `output` as a list that gives the same file again, with how it came about.
pub fn recipe(output: &OutputPlan, chosen: &[Chosen], source: &Path) -> String {
    let summary = output.summary();
    let (name, bits) = (printable(source.as_os_str().as_encoded_bytes()), summary.bits_per_weight());
    let comments = [
        format!("{name}: {} of tensors, {bits:.2} bits per weight", decimal_bytes(summary.tensor_bytes)),
        chosen_line(chosen).unwrap_or_default(),
        format!("Take it with --type {} --recipe FILE, or --tensor-type-file FILE", output.file_type),
    ];
    let quantized = output.tensors.iter().filter(|tensor| tensor.format.block_len() > 1);
    write_list(&comments, predicted(chosen) as f32, quantized.map(|tensor| (tensor.name.as_str(), tensor.format)))
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
    let of_chosen = |chosen: &Chosen| {
        let Chosen { name, format, size_bytes, cost } = chosen;
        json!({ "tensor": name, "type": format.name(), "bytes": size_bytes, "cost": cost })
    };
    let chosen = &calibrated.chosen;
    json!({
        "matrices": calibrated.choices.iter().map(of).collect::<Vec<_>>(),
        "left_out": calibrated.left_out,
        "experts": {
            "count": calibrated.reached.n_experts,
            "reached_by_few": calibrated.reached.n_few,
            "reached_by_none": calibrated.reached.n_none,
        },
        "chosen": (!chosen.is_empty()).then(|| chosen.iter().map(of_chosen).collect::<Vec<_>>()),
        "predicted_kld": (!chosen.is_empty()).then(|| predicted(chosen)),
    })
}
