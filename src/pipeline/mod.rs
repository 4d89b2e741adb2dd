//! Carries out a plan: weights in, GGUF files out. Knows nothing of why a format was chosen.
//!
//! ```text
//! Plan ─> files (headers, offsets) ─> sinks (temporary, space reserved)
//!      └> jobs (one per source tensor, all outputs together) ─> pieces (some rows) ─> queue
//! worker: pread rows ─> f32 ─> check ─> quantize, once per format ─> pwrite at the planned offset ─> next piece
//! then: headers read back, inputs unchanged?, fsync, all read back where asked for, names appear, directories synced
//! ```
//!
//! Memory is one set of buffers per worker, however large the model is. The bytes written do not depend on the number of threads,
//! on the order in which pieces are done, or on the CPU level.
//!
//! # What a reader of the output can rely on
//! An output's name appears only when the file is complete. Each name appears by itself: where one run writes several files, a
//! crash between two names leaves the first ones complete and the others absent (or old). The shards of a split model get their
//! names from last to first, so a complete set is recognised by its first shard; where they replace an older set, its first shard goes
//! away before any of them appears, so that shards of two sets are never read as one; a kill in between, when nothing is left to do but
//! a few renames, leaves no complete set, which every reader refuses. An error while names are given takes the names
//! already given away again, unless they replaced older files.

mod piece;
mod readback;
mod record;
mod shards;
mod sink;
mod target;
#[cfg(test)]
mod tests;
mod unwritten;
mod verify;
mod work;
mod workers;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::simd::Level;
use crate::source::TensorSource;

pub use shards::{PlannedFile, files};
use sink::Sink;
pub use unwritten::unwritten;
use work::{Job, Piece};

/// How to carry out a plan.
#[derive(Debug, Clone)]
pub struct Options {
    /// CPU level; does not change the result.
    pub level: Level,
    /// Worker threads; does not change the result. `None`: one per core.
    pub threads: Option<NonZeroUsize>,
    /// Bound of the working buffers of all workers together.
    pub memory_max_bytes: u64,
    /// What to do about a file that has an output's name.
    pub existing: Existing,
    /// Split outputs into shards of at most so many bytes of tensor data.
    pub split_max_bytes: Option<u64>,
    /// Files that no output may replace, besides the source's own.
    pub protected: Vec<PathBuf>,
    /// How much of an output is read back before it gets its name.
    pub read_back: ReadBack,
}

/// How much of an output is read back before it gets its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadBack {
    /// The header.
    Header,
    /// Every byte, from the disk where the system lets go of its copies in memory.
    Everything,
}

/// What to do about a file that already has an output's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and fail.
    Refuse,
    /// Replace it once the new file is complete.
    Replace,
}

/// The default of [`Options::memory_max_bytes`]. What is used is usually far less: about 2 MiB per worker.
pub const MEMORY_MAX_BYTES_DEFAULT: u64 = 1 << 30;

impl Default for Options {
    fn default() -> Options {
        Options {
            level: Level::detect(),
            threads: None,
            memory_max_bytes: MEMORY_MAX_BYTES_DEFAULT,
            existing: Existing::Refuse,
            split_max_bytes: None,
            protected: Vec::new(),
            read_back: ReadBack::Header,
        }
    }
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So many of the bytes to read have been read, converted and written.
    Converted {
        /// Bytes of the source.
        done_bytes: u64,
        /// Bytes of the source that the plan needs, each counted once.
        total_bytes: u64,
    },
    /// Everything is written; it is now being brought to the disk.
    Syncing,
    /// Everything is on the disk; it is now being read back.
    ReadingBack,
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Index into [`Plan::outputs`].
    pub output: usize,
    /// Its name.
    pub path: PathBuf,
    /// Its size.
    pub file_bytes: u64,
}

/// Writes every output of `plan`, with one reading of `source`.
///
/// `paths`: one per output. `progress` is called from worker threads. Setting `stop` ends the run within the time of a few pieces.
///
/// # Errors
/// Whatever prevents the outputs from being complete and correct. Nothing is left behind, and no existing file is changed.
/// - `Usage`: an output exists and may not be replaced, is an input, or is no regular file.
/// - `Malformed` with [`Place::Weight`](crate::error::Place::Weight): a weight is not finite, or no value of the target format is near it.
/// - `NoSpace`: found before the first weight is read, where the file system can say so.
/// - `Io`: also where what is read back is not what was written.
/// - `InputChanged`, `Interrupted`, `Limit`, `Internal`: as their names say.
///
/// # Panics
/// When `paths` and the outputs differ in number.
pub fn run(
    plan: &Plan,
    source: &dyn TensorSource,
    paths: &[PathBuf],
    options: &Options,
    progress: &(dyn Fn(Progress) + Sync),
    stop: &AtomicBool,
) -> Result<Vec<Written>> {
    let files = files(plan, paths, options.split_max_bytes)?;
    target::check(&files, source, options)?;
    let jobs = work::jobs(plan, &files, source)?;
    let (threads, pieces) = divide(&jobs, options)?;

    let create = |file: &PlannedFile| match options.read_back {
        ReadBack::Header => Sink::create(&file.path, file.layout.file_bytes),
        ReadBack::Everything => Sink::create_recorded(&file.path, file.layout.file_bytes),
    };
    let sinks = files.iter().map(create).collect::<Result<Vec<_>>>()?;
    for (file, sink) in files.iter().zip(&sinks) {
        sink.write_at(&file.layout.header, 0)?;
    }
    let bench = piece::Bench { jobs: &jobs, sinks: &sinks, level: options.level };
    let total_bytes = jobs.iter().map(Job::source_bytes).sum();
    let advanced = |done_bytes| progress(Progress::Converted { done_bytes, total_bytes });
    workers::run(&bench, &pieces, threads, stop, &advanced)?;

    progress(Progress::Syncing);
    for (file, sink) in files.iter().zip(&sinks) {
        verify::verify(file, sink)?;
        sink.sync()?;
    }
    if options.read_back == ReadBack::Everything {
        progress(Progress::ReadingBack);
        for (file, sink) in files.iter().zip(&sinks) {
            readback::check(file, sink, threads, stop)?;
        }
    }
    for input in source.files() {
        input.check_unchanged()?;
    }
    if stop.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    publish(sinks, &first_shards(&files), options.existing)?;
    Ok(files.into_iter().map(|f| Written { output: f.output, path: f.path, file_bytes: f.layout.file_bytes }).collect())
}

/// Refuses what [`write_file`] would refuse, before there is anything to write.
///
/// # Errors
/// As for [`write_file`].
pub fn check_target(path: &Path, existing: Existing, inputs: &[PathBuf]) -> Result<()> {
    target::check_one(path, &target::identities(inputs), existing)?;
    // A file that is made there and has no name yet shows that the directory exists and can be written to.
    Sink::create(path, 0).map(drop)
}

/// Writes a small file that is in memory already, with the same promises as [`run`].
///
/// # Errors
/// As for [`run`]; `inputs` are files that the output may not replace.
pub fn write_file(path: &Path, bytes: &[u8], existing: Existing, inputs: &[PathBuf]) -> Result<()> {
    write_parts(path, &[bytes], existing, inputs)
}

/// As [`write_file`], of parts that follow each other.
///
/// # Errors
/// As for [`write_file`].
pub fn write_parts(path: &Path, parts: &[&[u8]], existing: Existing, inputs: &[PathBuf]) -> Result<()> {
    target::check_one(path, &target::identities(inputs), existing)?;
    let sink = Sink::create(path, parts.iter().map(|part| part.len() as u64).sum())?;
    let mut offset_bytes = 0;
    for part in parts {
        sink.write_at(part, offset_bytes)?;
        offset_bytes += part.len() as u64;
    }
    sink.sync()?;
    sink.publish(existing)?.sync_directory()
}

/// The number of workers and the queue, such that the memory of all workers stays within the bound.
fn divide(jobs: &[Job], options: &Options) -> Result<(usize, Vec<Piece>)> {
    let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let wanted = options.threads.unwrap_or_else(cores).get() as u64;
    let row_bytes = jobs.iter().map(Job::row_memory_bytes).max().unwrap_or(1).max(1);
    let threads = wanted.min(options.memory_max_bytes / row_bytes);
    if threads == 0 {
        return Err(Error::usage(format!(
            "one row of this model needs {row_bytes} bytes of working memory, more than the {} allowed; raise --max-memory",
            options.memory_max_bytes
        )));
    }
    Ok((threads as usize, work::pieces(jobs, options.memory_max_bytes / threads)))
}

/// Indices of files that are the first shard of several.
fn first_shards(files: &[PlannedFile]) -> Vec<usize> {
    let is_of = |index: usize, output| files.get(index).is_some_and(|file| file.output == output);
    let begins = |&index: &usize| index.checked_sub(1).is_none_or(|before| !is_of(before, files[index].output));
    (0..files.len()).filter(begins).filter(|&index| is_of(index + 1, files[index].output)).collect()
}

/// Gives every file its name, the last first, then brings the names to the disk. `first_shards`: indices of those sinks.
fn publish(mut sinks: Vec<Sink>, first_shards: &[usize], existing: Existing) -> Result<()> {
    if existing == Existing::Replace {
        // What is left to do once an older file has gone away is to rename.
        sinks = sinks.into_iter().map(Sink::link_beside).collect::<Result<_>>()?;
        // Old shards beside new ones of the same names would be read as one model. Without its first shard a set is refused.
        first_shards.iter().try_for_each(|&index| sinks[index].remove_old())?;
    }
    let mut published: Vec<Sink> = Vec::new();
    for sink in sinks.into_iter().rev() {
        match sink.publish(existing) {
            Ok(sink) => published.push(sink),
            Err(error) => {
                if existing == Existing::Refuse {
                    published.into_iter().for_each(Sink::withdraw);
                }
                return Err(error);
            }
        }
    }
    published.iter().try_for_each(Sink::sync_directory)
}
