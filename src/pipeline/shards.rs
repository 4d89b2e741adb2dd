//! Which files an output consists of: one, or shards under a size.

use std::ops::Range;
use std::path::PathBuf;

use crate::error::Result;
use crate::gguf::{Header, Layout, TensorSpec, shard_paths};
use crate::plan::{OutputPlan, Plan, PlannedTensor};

/// One file to write.
#[derive(Debug, Clone)]
pub struct PlannedFile {
    /// Index into [`Plan::outputs`].
    pub output: usize,
    /// Its final name.
    pub path: PathBuf,
    /// The tensors it holds: a range of [`OutputPlan::tensors`].
    pub tensors: Range<usize>,
    /// What its header says.
    pub header: Header,
    /// Where everything of the header lands.
    pub layout: Layout,
}

/// The files of a plan, output by output, shard by shard. Pure: nothing is read or written.
///
/// `paths`: one per output. With `split_max_bytes`, an output of more tensor data becomes `NAME-00001-of-0000N.gguf` and so on.
///
/// # Errors
/// What [`Header::split`] and [`Header::layout`] refuse.
///
/// # Panics
/// When `paths` and the outputs differ in number.
pub fn files(plan: &Plan, paths: &[PathBuf], split_max_bytes: Option<u64>) -> Result<Vec<PlannedFile>> {
    assert_eq!(plan.outputs.len(), paths.len(), "one path per output");
    let mut files = Vec::new();
    for (index, (output, path)) in plan.outputs.iter().zip(paths).enumerate() {
        let headers = match split_max_bytes {
            Some(max_bytes) => header(output).split(max_bytes)?,
            None => vec![header(output)],
        };
        let mut first = 0;
        for (path, header) in shard_paths(path, headers.len() as u16).into_iter().zip(headers) {
            let tensors = first..first + header.tensors.len();
            first = tensors.end;
            let layout = header.layout()?;
            files.push(PlannedFile { output: index, path, tensors, header, layout });
        }
    }
    Ok(files)
}

/// The header of the whole output.
pub(super) fn header(output: &OutputPlan) -> Header {
    let spec = |t: &PlannedTensor| TensorSpec { name: t.name.clone(), format: t.format, shape: t.shape.clone() };
    Header { metadata: output.metadata.clone(), tensors: output.tensors.iter().map(spec).collect() }
}
