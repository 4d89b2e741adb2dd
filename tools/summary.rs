//! What a run will write or has written: as text for people, as JSON for programs.

use std::fmt::Write;
use std::path::Path;

use ggforge::calibrate::Calibrated;
use ggforge::imatrix::{Coverage, Matched};
use ggforge::pipeline::PlannedFile;
use ggforge::plan::{OutputPlan, Plan, PlannedTensor};
use ggforge::report::{Cell, Table, decimal_bytes, json_text, printable};
use ggforge::tokenizer::proof::{Comparison, Example, Outcome};
use serde_json::{Map, Value, json};

use crate::calibrating::{self, Measured};
use crate::terminal::fitted;

/// A run, planned or done.
pub struct Summary<'a> {
    pub source: &'a Path,
    pub plan: &'a Plan,
    pub files: &'a [PlannedFile],
    /// Whether the tokenizer is still the source's, where the source has one of its own.
    pub tokenizer: Option<Outcome>,
    /// How matrices were rounded, where a text was given for that.
    pub calibrated: Option<&'a Calibrated>,
    /// How far the files are from their source, where that was measured.
    pub measured: Option<&'a Measured>,
    /// Where the types that were chosen are written down.
    pub recipe: Option<&'a Path>,
    /// Of a run that is done.
    pub seconds: Option<f64>,
}

impl<'a> Summary<'a> {
    pub fn new(source: &'a Path, plan: &'a Plan, files: &'a [PlannedFile]) -> Summary<'a> {
        Summary { source, plan, files, tokenizer: None, calibrated: None, measured: None, recipe: None, seconds: None }
    }

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
                text += &fitted(&tensor_table(&output.tensors[file.tensors.clone()]));
                text.push('\n');
            }
            let _ = writeln!(text, "total: {}\n", self.totals_line(index));
        }
        text += &self.coverage_line();
        text += &self.tokenizer_line();
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
        text += &self.calibrated.map_or(String::new(), |calibrated| format!("{}\n", calibrating::line(&calibrated.choices)));
        let chosen = self.calibrated.and_then(|calibrated| calibrating::chosen_line(&calibrated.chosen));
        text += &chosen.map_or(String::new(), |line| format!("{line}\n"));
        text += &self.recipe.map_or(String::new(), |path| format!("{}: these types, for --recipe\n", shown(path)));
        text += &self.measured.map_or(String::new(), |measured| format!("{}\n", measured.line(self.plan)));
        text += &self.tokenizer_line();
        let _ = writeln!(text, "done in {:.1} s", self.seconds.unwrap_or(0.0));
        text
    }

    /// What the importance matrix covers, where there is one.
    fn coverage_line(&self) -> String {
        let coverage = self.plan.coverage.as_ref();
        coverage.map_or(String::new(), |coverage| format!("{}\n", printable(coverage.summary().as_bytes())))
    }

    /// Whether the tokenizer is still the source's.
    fn tokenizer_line(&self) -> String {
        let line = match &self.tokenizer {
            None => return String::new(),
            Some(Outcome::NotCompared(why)) => format!("not compared with the source's own: {why}"),
            Some(Outcome::Compared(found)) => found_line(found),
        };
        format!("tokenizer: {}\n", printable(line.as_bytes()))
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
            "calibration": self.calibrated.map(calibrating::as_json),
            "measured": self.measured.map(Measured::as_json),
            "recipe": self.recipe.map(Path::to_string_lossy),
            "tokenizer": self.tokenizer.as_ref().map(tokenizer_json),
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

/// Kinds of text named; JSON has all of them.
const SECTIONS_SHOWN: usize = 3;

/// `201 texts in many scripts (5042 tokens) are split as tokenizer.json splits them`
fn found_line(found: &Comparison) -> String {
    let Comparison { n_texts, n_tokens, n_different, n_uncomposed, .. } = found;
    if *n_different == 0 {
        return format!(
            "{n_texts} texts in many scripts ({n_tokens} tokens) are split as tokenizer.json splits them{}",
            untried(found)
        );
    }
    let percent = 100.0 * found.rate();
    let mut line = format!("{n_different} of {n_texts} texts ({percent:.1} %) are split otherwise than tokenizer.json splits them");
    if n_uncomposed == n_different {
        line += ", since llama.cpp does not compose characters (NFC); text is composed as a rule";
        return line;
    }
    let mut sections: Vec<(&String, &usize)> = found.sections.iter().collect();
    sections.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let shown: Vec<String> = sections.iter().take(SECTIONS_SHOWN).map(|(name, n)| format!("{name} {n}")).collect();
    let more = if sections.len() > SECTIONS_SHOWN { "; …" } else { "" };
    let _ = write!(line, ": {}{more}", shown.join("; "));
    line
}

/// What the bound on the number of texts left out.
fn untried(found: &Comparison) -> String {
    let Comparison { n_added_tried, n_added_tokens, .. } = found;
    if n_added_tried == n_added_tokens {
        return String::new();
    }
    format!("; {n_added_tried} of {n_added_tokens} added tokens were tried")
}

/// `"a  b" is split otherwise ...: [1, 2, 3], not [1, 4]`
pub fn example_line(example: &Example) -> String {
    let Example { text, ours, theirs } = example;
    format!("the tokenizer is not the source's: {text:?} becomes {ours:?} with the GGUF file, {theirs:?} with tokenizer.json")
}

fn tokenizer_json(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::NotCompared(why) => json!({ "not_compared": why }),
        Outcome::Compared(found) => json!({
            "texts": found.n_texts,
            "conversations": found.n_conversations,
            "texts_with_added_tokens": found.n_added_texts,
            "added_tokens": found.n_added_tokens,
            "added_tokens_tried": found.n_added_tried,
            "tokens": found.n_tokens,
            "different": found.n_different,
            "rate": found.rate(),
            "different_for_composition": found.n_uncomposed,
            "sections": found.sections,
            "example": found.example.as_ref().map(|e| json!({ "text": e.text, "ids": e.ours, "tokenizer_json": e.theirs })),
        }),
    }
}

fn coverage_json(coverage: &Coverage) -> Value {
    let matched = coverage.matched.iter().map(|matched| {
        let Matched { name, n_experts, without_data } = matched;
        json!({ "tensor": name, "experts": n_experts, "experts_without_data": without_data })
    });
    json!({
        "matches_nothing": coverage.matches_nothing(),
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
