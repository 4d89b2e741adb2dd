//! What an output file is called: the name that was asked for, or one by the GGUF naming convention.
//!
//! ```text
//! BaseName - SizeLabel - FineTune - Version - Encoding .gguf      Llama-3.2-1B-Instruct-Q4_K_M.gguf
//! ```

use std::path::{Path, PathBuf};

use super::Plan;
use super::facts::get;
use crate::error::{Error, Result};
use crate::gguf::{Metadata, Value, keys};

/// Stands for the file type in a name that was asked for.
const TYPE: &str = "{type}";
/// File systems take 255 bytes; this leaves room for type, shard number and a temporary file's ending.
const STEM_BYTES_MAX: usize = 180;

/// Where each output of a plan goes in a folder: under the name that llama.cpp's convention gives it.
pub fn paths_in_folder(plan: &Plan, folder: &Path) -> Vec<PathBuf> {
    plan.outputs.iter().map(|o| folder.join(format!("{}.gguf", convention_name(&o.metadata, &o.file_type)))).collect()
}

/// Where each output of a plan goes. `output` is a file, or a file name with `{type}` in it.
///
/// # Errors
/// `Usage` when one file name would have to serve several outputs.
pub fn paths_by_name(plan: &Plan, output: &Path) -> Result<Vec<PathBuf>> {
    let name = output.file_name().and_then(|name| name.to_str()).unwrap_or("");
    if name.contains(TYPE) {
        return Ok(plan.outputs.iter().map(|o| output.with_file_name(name.replace(TYPE, &o.file_type))).collect());
    }
    match plan.outputs.len() {
        1 => Ok(vec![output.to_owned()]),
        n => Err(Error::usage(format!("{n} types need {n} files; give a folder, or a name such as model-{TYPE}.gguf"))),
    }
}

/// The name of a model by the GGUF naming convention, without `.gguf`.
///
/// The parts come from metadata, so from a stranger: whatever could leave the folder, hide the file or upset a shell becomes `-`.
pub fn convention_name(metadata: &Metadata, file_type: &str) -> String {
    let text = |key| match get(metadata, key) {
        Some(Value::String(bytes)) => Some(String::from_utf8_lossy(bytes)),
        _ => None,
    };
    let base = text(keys::GENERAL_BASENAME).or_else(|| text(keys::GENERAL_NAME)).unwrap_or_default();
    let rest = [keys::GENERAL_SIZE_LABEL, keys::GENERAL_FINETUNE, keys::GENERAL_VERSION].map(text);
    let mut name = String::new();
    for part in std::iter::once(base).chain(rest.into_iter().flatten()) {
        let part = harmless(&part);
        // A label that the base carries in its own name is not said twice.
        if part.is_empty() || name.split('-').any(|said| said.eq_ignore_ascii_case(&part)) {
            continue;
        }
        if !name.is_empty() {
            name.push('-');
        }
        name += &part;
    }
    let end = name.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|&end| end <= STEM_BYTES_MAX).last().unwrap_or(0);
    name.truncate(end);
    match name.is_empty() {
        true => format!("model-{file_type}"),
        false => format!("{name}-{file_type}"),
    }
}

/// Letters, digits and `_ . +`, everything else as `-`; none of `-` and `.` at the ends.
fn harmless(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_alphanumeric() || "_.+".contains(c) { c } else { '-' }).collect();
    let parts: Vec<&str> = clean.split('-').filter(|part| !part.is_empty()).collect();
    parts.join("-").trim_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::OutputPlan;

    fn named(parts: &[(&str, &str)]) -> Metadata {
        parts.iter().map(|&(key, text)| (key.to_owned(), Value::from(text))).collect()
    }

    fn plan(types: &[&str]) -> Plan {
        let metadata = named(&[(keys::GENERAL_BASENAME, "forge"), (keys::GENERAL_SIZE_LABEL, "3M")]);
        let output = |t: &&str| OutputPlan { file_type: (*t).to_owned(), metadata: metadata.clone(), tensors: vec![] };
        Plan { outputs: types.iter().map(output).collect(), warnings: vec![], coverage: None }
    }

    #[test]
    fn names_follow_the_convention() {
        let metadata = named(&[
            (keys::GENERAL_NAME, "Llama 3.2 1B Instruct"),
            (keys::GENERAL_BASENAME, "Llama-3.2"),
            (keys::GENERAL_SIZE_LABEL, "1B"),
            (keys::GENERAL_FINETUNE, "Instruct"),
            (keys::GENERAL_VERSION, "v1.0"),
        ]);
        assert_eq!(convention_name(&metadata, "Q4_K_M"), "Llama-3.2-1B-Instruct-v1.0-Q4_K_M");
        let only_name = named(&[(keys::GENERAL_NAME, "stories260K"), (keys::GENERAL_SIZE_LABEL, "260K")]);
        assert_eq!(convention_name(&only_name, "F16"), "stories260K-260K-F16");
        let repeated = named(&[(keys::GENERAL_NAME, "My Model 7B"), (keys::GENERAL_SIZE_LABEL, "7B")]);
        assert_eq!(convention_name(&repeated, "F16"), "My-Model-7B-F16");
        assert_eq!(convention_name(&vec![], "F16"), "model-F16");
    }

    #[test]
    fn a_name_cannot_leave_its_folder() {
        for name in ["../../etc/passwd", "/abs", "..", ".hidden", "a\0b", "a\nb", "\u{202e}x", "-rf", "a/b\\c:d", ""] {
            let found = convention_name(&named(&[(keys::GENERAL_NAME, name)]), "F16");
            assert!(found.ends_with("-F16"), "{found}");
            assert!(!found.starts_with(['.', '-']) && !found.contains(['/', '\\', '\0', '\n', ':', '\u{202e}']), "{found:?}");
        }
        let long = convention_name(&named(&[(keys::GENERAL_NAME, &"ä".repeat(500))]), "F16");
        assert!(long.len() <= STEM_BYTES_MAX + 4, "{}", long.len());
    }

    #[test]
    fn several_outputs_need_several_names() {
        let both = plan(&["Q8_0", "Q4_K_M"]);
        let in_folder = [Path::new("out/forge-3M-Q8_0.gguf"), Path::new("out/forge-3M-Q4_K_M.gguf")];
        assert_eq!(paths_in_folder(&both, Path::new("out")), in_folder);
        let to = |output: &str| paths_by_name(&both, Path::new(output));
        assert_eq!(to("o/x-{type}.gguf").unwrap(), [Path::new("o/x-Q8_0.gguf"), Path::new("o/x-Q4_K_M.gguf")]);
        assert!(matches!(to("x.gguf"), Err(Error::Usage(_))));
        assert_eq!(paths_by_name(&plan(&["F16"]), Path::new("x.gguf")).unwrap(), [Path::new("x.gguf")]);
    }
}
