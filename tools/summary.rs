//! What a run will write or has written: as text for people, as JSON for programs.

use std::fmt::Write;
use std::path::Path;

use ggforge::imatrix::{Coverage, Matched};
use ggforge::pipeline::PlannedFile;
use ggforge::plan::{OutputPlan, Plan, PlannedTensor};
use ggforge::report::{Cell, Table, decimal_bytes, json_text, printable};
use serde_json::{Map, Value, json};

/// A run, planned or done.
pub struct Summary<'a> {
    pub source: &'a Path,
    pub plan: &'a Plan,
    pub files: &'a [PlannedFile],
    /// Of a run that is done.
    pub seconds: Option<f64>,
}

impl<'a> Summary<'a> {
    /// Every output of the plan with its number.
    fn outputs(&self) -> impl Iterator<Item = (usize, &'a OutputPlan)> {
        self.plan.outputs.iter().enumerate()
    }

    fn files_of(&self, output: usize) -> impl Iterator<Item = &'a PlannedFile> {
        self.files.iter().filter(move |file| file.output == output)
    }

    fn file_bytes_of(&self, output: usize) -> u64 {
        self.files_of(output).map(|file| file.layout.file_bytes).sum()
    }

    /// `2.39 MB, 5.07 bits per weight; tensors: 24 Q4_K, 5 Q6_K, 9 F32`
    fn totals_line(&self, output: usize) -> String {
        let totals = self.plan.outputs[output].summary();
        let formats: Vec<String> = totals.by_format.iter().map(|of| format!("{} {}", of.n_tensors, of.format)).collect();
        let bytes = decimal_bytes(self.file_bytes_of(output));
        format!("{bytes}, {:.2} bits per weight; tensors: {}", totals.bits_per_weight(), formats.join(", "))
    }

    /// `--dry-run`: every tensor, its type, its size, and why it is not the recipe's base type.
    pub fn plan_text(&self) -> String {
        let mut text = String::new();
        for (index, output) in self.outputs() {
            for file in self.files_of(index) {
                let _ = writeln!(text, "{}: {}\n", output.file_type, shown(&file.path));
                text += &tensor_table(&output.tensors[file.tensors.clone()]).text();
                text.push('\n');
            }
            let _ = writeln!(text, "total: {}\n", self.totals_line(index));
        }
        text += &self.coverage_line();
        text.push_str("nothing was written\n");
        text
    }

    /// What was written: the names, then a line of totals per output.
    pub fn done_text(&self) -> String {
        let mut text = String::new();
        for (index, output) in self.outputs() {
            for file in self.files_of(index) {
                let _ = writeln!(text, "{}", shown(&file.path));
            }
            let _ = writeln!(text, "  {}: {}", output.file_type, self.totals_line(index));
        }
        text += &self.coverage_line();
        let _ = writeln!(text, "done in {:.1} s", self.seconds.unwrap_or(0.0));
        text
    }

    /// What the importance matrix covers, where there is one.
    fn coverage_line(&self) -> String {
        let coverage = self.plan.coverage.as_ref();
        coverage.map_or(String::new(), |coverage| format!("{}\n", printable(coverage.summary().as_bytes())))
    }

    /// The same as JSON; for a run that is only planned, with every tensor.
    pub fn json(&self) -> String {
        let outputs: Vec<Value> = self.outputs().map(|(index, output)| self.output_json(index, output)).collect();
        json_text(&json!({
            "ggforge": env!("CARGO_PKG_VERSION"),
            "source": self.source.to_string_lossy(),
            "dry_run": self.seconds.is_none(),
            "seconds": self.seconds,
            "warnings": self.plan.warnings,
            "imatrix": self.plan.coverage.as_ref().map(coverage_json),
            "outputs": outputs,
        }))
    }

    fn output_json(&self, index: usize, output: &OutputPlan) -> Value {
        let totals = output.summary();
        let file_json = |f: &PlannedFile| json!({ "path": f.path.to_string_lossy(), "bytes": f.layout.file_bytes });
        let by_type = totals.by_format.iter();
        let by_type = by_type.map(|of| (of.format.to_string(), json!({ "tensors": of.n_tensors, "bytes": of.size_bytes })));
        let mut value = json!({
            "type": output.file_type,
            "files": self.files_of(index).map(file_json).collect::<Vec<_>>(),
            "bytes": self.file_bytes_of(index),
            "weights": totals.n_weights,
            "bits_per_weight": totals.bits_per_weight(),
            "tensors": output.tensors.len(),
            "tensors_by_type": by_type.collect::<Map<_, _>>(),
        });
        if self.seconds.is_none() {
            value["tensor_list"] = output.tensors.iter().map(tensor_json).collect();
        }
        value
    }
}

fn coverage_json(coverage: &Coverage) -> Value {
    let matched = coverage.matched.iter().map(|matched| {
        let Matched { name, n_experts, without_data } = matched;
        json!({ "tensor": name, "experts": n_experts, "experts_without_data": without_data })
    });
    json!({
        "matched": matched.collect::<Vec<Value>>(),
        "without_entry": coverage.without_entry,
        "unused_entries": coverage.unused,
    })
}

fn tensor_table(tensors: &[PlannedTensor]) -> Table {
    let mut table = Table::new(&["tensor", "shape", "type", "size", "why"]);
    for tensor in tensors {
        let shape = tensor.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
        let why = tensor.reason.as_deref().map_or(Cell::Empty, Cell::from);
        let size = Cell::Bytes(size_bytes(tensor));
        table.push([tensor.name.as_str().into(), shape.into(), tensor.format.name().into(), size, why]);
    }
    table
}

fn tensor_json(tensor: &PlannedTensor) -> Value {
    json!({
        "name": tensor.name,
        "shape": tensor.shape,
        "type": tensor.format.name(),
        "bytes": size_bytes(tensor),
        "reason": tensor.reason,
    })
}

fn size_bytes(tensor: &PlannedTensor) -> u64 {
    // The files of the plan are laid out already, so every size exists.
    tensor.format.tensor_bytes(&tensor.shape).unwrap_or(0)
}

fn shown(path: &Path) -> String {
    printable(path.as_os_str().as_encoded_bytes())
}
