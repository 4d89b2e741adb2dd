//! What a run will write or has written: as text for people, as JSON for programs.

use std::fmt::Write;
use std::path::Path;

use ggforge::error::Escaped;
use ggforge::pipeline::PlannedFile;
use ggforge::plan::{OutputPlan, Plan, PlannedTensor};
use indicatif::{DecimalBytes, HumanDuration};
use serde_json::{Value, json};

/// A run, planned or done.
pub struct Summary<'a> {
    pub source: &'a Path,
    pub plan: &'a Plan,
    pub files: &'a [PlannedFile],
    /// Of a run that is done.
    pub seconds: Option<f64>,
}

impl<'a> Summary<'a> {
    fn files_of(&self, output: usize) -> impl Iterator<Item = &'a PlannedFile> {
        self.files.iter().filter(move |file| file.output == output)
    }

    fn file_bytes_of(&self, output: usize) -> u64 {
        self.files_of(output).map(|file| file.layout.file_bytes).sum()
    }

    /// `2.1 MB, 4.85 bits per weight; tensors: 20 Q4_K, 9 F32`
    fn totals_line(&self, output: usize) -> String {
        let totals = self.plan.outputs[output].summary();
        let formats: Vec<String> = totals.by_format.iter().map(|of| format!("{} {}", of.n_tensors, of.format)).collect();
        let bytes = DecimalBytes(self.file_bytes_of(output));
        format!("{bytes}, {:.2} bits per weight; tensors: {}", totals.bits_per_weight(), formats.join(", "))
    }
}

fn size_bytes(tensor: &PlannedTensor) -> u64 {
    // The files of the plan are laid out already, so every size exists.
    tensor.format.tensor_bytes(&tensor.shape).unwrap_or(0)
}

/// `--dry-run`: every tensor, its type, its size, and why it is not the recipe's base type.
pub fn plan_text(summary: &Summary) -> String {
    let mut text = String::new();
    for (index, output) in summary.plan.outputs.iter().enumerate() {
        for file in summary.files_of(index) {
            let _ = writeln!(text, "{}: {}", output.file_type, shown(&file.path));
            text += &tensor_rows(&output.tensors[file.tensors.clone()]);
        }
        let _ = writeln!(text, "  total: {}\n", summary.totals_line(index));
    }
    text
}

fn tensor_rows(tensors: &[PlannedTensor]) -> String {
    let rows: Vec<[String; 5]> = tensors.iter().map(tensor_row).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let [name, shape, format, bytes] = [0, 1, 2, 3].map(width);
    let mut text = String::new();
    for row in &rows {
        let line = format!("  {:name$}  {:>shape$}  {:format$}  {:>bytes$}  {}", row[0], row[1], row[2], row[3], row[4]);
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn tensor_row(tensor: &PlannedTensor) -> [String; 5] {
    let shape = tensor.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
    let reason = tensor.reason.as_deref().unwrap_or("");
    [
        Escaped(&tensor.name).to_string(),
        shape,
        tensor.format.to_string(),
        DecimalBytes(size_bytes(tensor)).to_string(),
        Escaped(reason).to_string(),
    ]
}

/// One line per file and output of a run that is done.
pub fn done_text(summary: &Summary) -> String {
    let mut text = String::new();
    for (index, output) in summary.plan.outputs.iter().enumerate() {
        for file in summary.files_of(index) {
            let _ = writeln!(text, "{}", shown(&file.path));
        }
        let _ = writeln!(text, "  {}: {}", output.file_type, summary.totals_line(index));
    }
    let seconds = summary.seconds.unwrap_or(0.0);
    match seconds < 100.0 {
        true => text += &format!("done in {seconds:.1} s\n"),
        false => text += &format!("done in {}\n", HumanDuration(std::time::Duration::from_secs_f64(seconds))),
    }
    text
}

/// The same as JSON, `per_tensor` with every tensor.
pub fn json(summary: &Summary, per_tensor: bool) -> String {
    let outputs: Vec<Value> =
        summary.plan.outputs.iter().enumerate().map(|(i, o)| output_json(summary, i, o, per_tensor)).collect();
    let report = json!({
        "ggforge": env!("CARGO_PKG_VERSION"),
        "source": summary.source.to_string_lossy(),
        "dry_run": summary.seconds.is_none(),
        "seconds": summary.seconds,
        "warnings": summary.plan.warnings,
        "outputs": outputs,
    });
    format!("{report:#}\n")
}

fn output_json(summary: &Summary, index: usize, output: &OutputPlan, per_tensor: bool) -> Value {
    let totals = output.summary();
    let files: Vec<Value> =
        summary.files_of(index).map(|f| json!({ "path": f.path.to_string_lossy(), "bytes": f.layout.file_bytes })).collect();
    let by_format: serde_json::Map<String, Value> = totals
        .by_format
        .iter()
        .map(|of| (of.format.to_string(), json!({ "tensors": of.n_tensors, "bytes": of.size_bytes })))
        .collect();
    let mut value = json!({
        "type": output.file_type,
        "files": files,
        "bytes": summary.file_bytes_of(index),
        "weights": totals.n_weights,
        "bits_per_weight": totals.bits_per_weight(),
        "tensors": output.tensors.len(),
        "tensors_by_type": by_format,
    });
    if per_tensor {
        value["tensor_list"] = output.tensors.iter().map(tensor_json).collect();
    }
    value
}

fn tensor_json(tensor: &PlannedTensor) -> Value {
    json!({
        "name": tensor.name,
        "shape": tensor.shape,
        "type": tensor.format.to_string(),
        "bytes": size_bytes(tensor),
        "reason": tensor.reason,
    })
}

fn shown(path: &Path) -> String {
    Escaped(&path.to_string_lossy()).to_string()
}
