//! Opening what a command runs: a GGUF file, or a model folder as the file that it would become, without writing that.

use std::path::{Path, PathBuf};

use ggforge::Error;
use ggforge::gguf::Model;
use ggforge::pipeline;
use ggforge::plan::{self, ConvertOptions};
use ggforge::source::TensorSource;

use crate::convert::files_in;
use crate::terminal;

/// The file at `path`, or the folder there in its own type.
///
/// # Errors
/// Those of [`Model::open_unmapped`]; of a folder, those of its conversion.
pub fn open(path: &Path) -> Result<Model, Error> {
    if !path.is_dir() {
        let model = Model::open_unmapped(path)?;
        model.note().into_iter().for_each(terminal::warn);
        return Ok(model);
    }
    let folder = plan::open_folder(path)?;
    let mut plan = plan::convert(&folder, &ConvertOptions::default())?;
    plan.warnings.iter().for_each(|warning| terminal::warn(warning));
    Model::of_input(pipeline::unwritten(folder, plan.outputs.swap_remove(0))?)
}

/// Every file that is read of a model that was opened at `path`: none of them may become an output.
pub fn inputs(path: &Path, model: &Model) -> Vec<PathBuf> {
    let files = model.files().iter().map(|file| file.path().to_owned());
    files.chain(if path.is_dir() { files_in(path) } else { Vec::new() }).collect()
}
