//! `ggforge fit`: the memory that a model takes as this or that file type, and what fits.

use std::path::PathBuf;

use clap::Args;
use ggforge::gguf::Model;
use ggforge::model::Hparams;
use ggforge::model::fit::{self, MemoryUse, Running};
use ggforge::plan::recipe::{Preset, preset};
use ggforge::plan::{self, Calibration, OutputPlan, QuantizeOptions};
use ggforge::quant::{Format, bits_per_weight};
use ggforge::report::{Cell, Table, decimal_bytes, decimal_count, json_text, printable};
use ggforge::source::TensorSource;
use ggforge::{Error, Result};
use serde_json::{Value, json};

use crate::arguments::file_types;
use crate::calibrating::{context, kv};
use crate::exit::{Failure, named, print};
use crate::terminal::fitted;
use crate::{Run, Session, model, size};

/// Tell how much memory a model takes on a GPU, type by type, and what fits
///
/// Counted is what llama.cpp takes with all layers on one GPU and flash attention: weights, keys and values of the context, and the buffers
/// of a batch of 512 tokens. Not counted is what the driver and the desktop take of a card: some hundred MB.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge fit llama-F16.gguf
  ggforge fit Llama-3.2-1B --gpu-memory 11GiB --ctx 8192,65536 --kv q8_0
  ggforge fit llama-F16.gguf --type Q8_0,Q4_K_M --json")]
pub struct Fit {
    /// GGUF file, any shard, or model folder; no weight is read
    #[arg(value_name = "MODEL")]
    input: PathBuf,
    /// File types to tell of [default: the usual ones]
    #[arg(long = "type", short, value_name = "T", value_delimiter = ',', value_parser = file_types(), hide_possible_values = true)]
    types: Vec<String>,
    /// Tokens of context, one number or several
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "4096,8192,32768", value_parser = context)]
    ctx: Vec<usize>,
    /// What keys and values are kept as, such as f16 or q8_0
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv)]
    kv: Format,
    /// Memory that is free on the GPU: tells what fits, and up to which context
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    gpu_memory: Option<u64>,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// From the largest to the smallest.
const USUAL: &[&str] =
    &["BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_L", "Q3_K_M", "IQ3_M", "Q2_K", "IQ2_M", "IQ2_XXS"];

/// Contexts that a table has columns for.
const CTX_MAX: usize = 8;

/// A type and what it takes.
struct Row {
    name: String,
    n_weights: u64,
    tensor_bytes: u64,
    /// For each context.
    uses: Vec<MemoryUse>,
    /// The longest context that fits, where a memory was given; 0 where none does.
    ctx_fitting: Option<usize>,
}

impl Run for Fit {
    const NAME: &'static str = "fit";

    fn run(self, _: &Session) -> Result<(), Failure> {
        if self.ctx.len() > CTX_MAX {
            return Err(Error::usage(format!("{} contexts; {CTX_MAX} are told of at most", self.ctx.len())).into());
        }
        let model = model::open(&self.input)?;
        let hparams = Hparams::read(&model).map_err(named(model.files()[0].path()))?;
        let own: Vec<(&str, u64)> = model.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor.size_bytes)).collect();
        let n_weights = model.tensors().iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum();
        let mut rows = vec![self.row("this file", n_weights, &hparams, &own)?];
        let names: Vec<&str> = if self.types.is_empty() { USUAL.to_vec() } else { self.types.iter().map(String::as_str).collect() };
        for name in names {
            let output = match planned(&model, preset(name)?) {
                Ok(output) => output,
                // Not every model can be every type, and nobody asked for this one.
                Err(_) if self.types.is_empty() => continue,
                Err(error) => return Err(error.into()),
            };
            let bytes = |tensor: &plan::PlannedTensor| tensor.format.tensor_bytes(&tensor.shape).unwrap_or(u64::MAX);
            let tensors: Vec<(&str, u64)> = output.tensors.iter().map(|tensor| (tensor.name.as_str(), bytes(tensor))).collect();
            rows.push(self.row(&output.file_type, output.summary().n_weights, &hparams, &tensors)?);
        }
        print(&if self.json { self.json_of(&hparams, &rows) } else { self.text(&hparams, &rows) })
    }
}

/// What the model becomes as this type: by importance where it cannot be made without.
fn planned(model: &Model, preset: &'static Preset) -> Result<OutputPlan> {
    let options =
        |calibration| QuantizeOptions { presets: vec![preset], allow_requantize: true, calibration, ..QuantizeOptions::default() };
    let some_text = Calibration { texts: Vec::new(), chunk_count: 0, chunk_size: 0, predicted_kld: None };
    let plan = plan::quantize(model, &options(None)).or_else(|_| plan::quantize(model, &options(Some(some_text))))?;
    plan.outputs.into_iter().next().ok_or_else(|| Error::Internal("a plan without an output".to_owned()))
}

impl Fit {
    fn row(&self, name: &str, n_weights: u64, hparams: &Hparams, tensors: &[(&str, u64)]) -> Result<Row> {
        let memory = |n_ctx| fit::memory(hparams, tensors, &Running { n_ctx, kv: self.kv });
        let uses = self.ctx.iter().map(|&n_ctx| memory(n_ctx)).collect::<Result<_>>()?;
        let fits = |n_ctx, bytes| Ok::<bool, Error>(memory(n_ctx)?.total_bytes() <= bytes);
        let longest = |bytes| -> Result<usize> {
            // More context never takes less.
            let (mut fitting, mut beyond) = (0, hparams.n_ctx_train + 1);
            while beyond - fitting > 1 {
                let middle = fitting + (beyond - fitting) / 2;
                if fits(middle, bytes)? { fitting = middle } else { beyond = middle }
            }
            Ok(fitting)
        };
        let tensor_bytes = tensors.iter().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
        Ok(Row { name: name.to_owned(), n_weights, tensor_bytes, uses, ctx_fitting: self.gpu_memory.map(longest).transpose()? })
    }

    fn text(&self, hparams: &Hparams, rows: &[Row]) -> String {
        let mut beside = Table::new(&["context", "keys and values", "buffers"]);
        for (&n_ctx, used) in self.ctx.iter().zip(&rows[0].uses) {
            beside.push([Cell::Count(n_ctx as u64), Cell::Bytes(used.cache_bytes), Cell::Bytes(used.buffers_bytes)]);
        }
        let title = |text: String| -> &'static str { String::leak(text) };
        let mut titles = vec!["type", "bpw", "tensors"];
        titles.extend(self.ctx.iter().map(|n_ctx| title(format!("at {n_ctx}"))));
        titles.extend(self.gpu_memory.map(|bytes| title(format!("longest in {}", decimal_bytes(bytes)))));
        let mut table = Table::new(&titles);
        for row in rows {
            let mut cells = vec![
                Cell::from(row.name.as_str()),
                Cell::Fixed(bits_per_weight(row.tensor_bytes, row.n_weights), 2),
                Cell::Bytes(row.tensor_bytes),
            ];
            cells.extend(row.uses.iter().map(|used| Cell::Bytes(used.total_bytes())));
            cells.extend(row.ctx_fitting.map(|n_ctx| if n_ctx == 0 { "does not fit".into() } else { Cell::Count(n_ctx as u64) }));
            table.push_row(cells);
        }
        let name = printable(self.input.as_os_str().as_encoded_bytes());
        format!(
            "{name}: {} weights, trained for {} tokens; keys and values in {}, all layers on the GPU\n\n{}\n{}",
            decimal_count(rows[0].n_weights),
            hparams.n_ctx_train,
            self.kv,
            fitted(&beside),
            fitted(&table),
        )
    }

    fn json_of(&self, hparams: &Hparams, rows: &[Row]) -> String {
        let of_use = |(n_ctx, used): (&usize, &MemoryUse)| {
            json!({
                "ctx": n_ctx,
                "weights_bytes": used.weights_bytes,
                "cache_bytes": used.cache_bytes,
                "buffers_bytes": used.buffers_bytes,
                "total_bytes": used.total_bytes(),
                "fits": self.gpu_memory.map(|bytes| used.total_bytes() <= bytes),
            })
        };
        let of_row = |row: &Row| {
            json!({
                "type": row.name,
                "tensor_bytes": row.tensor_bytes,
                "bits_per_weight": bits_per_weight(row.tensor_bytes, row.n_weights),
                "memory": self.ctx.iter().zip(&row.uses).map(of_use).collect::<Vec<Value>>(),
                "ctx_max": row.ctx_fitting,
            })
        };
        json_text(&json!({
            "file": self.input.to_string_lossy(),
            "weights": rows[0].n_weights,
            "ctx_train": hparams.n_ctx_train,
            "kv": self.kv.name(),
            "gpu_memory": self.gpu_memory,
            "types": rows.iter().map(of_row).collect::<Vec<Value>>(),
        }))
    }
}
