//! Everything that was written, read back from the disk before the output gets its name.
//!
//! A disk, a file system or memory that turns a bit is not noticed by the calls that write. So a checksum of every stretch of bytes is
//! kept when it is written, and compared with what the disk gives back.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crc32fast::Hasher;

use super::record::Stretch;
use super::shards::PlannedFile;
use super::sink::Sink;
use crate::error::{Error, Result};

/// Compares what was recorded with what the disk holds; the file is synced already.
///
/// # Errors
/// `Io` for the first stretch that differs or cannot be read; `Interrupted` when `stop` is set.
pub(super) fn check(file: &PlannedFile, sink: &Sink, threads: usize, stop: &AtomicBool) -> Result<()> {
    let Some(record) = sink.record() else { return Ok(()) };
    forget_cached(sink.file());
    let stretches = record.stretches();
    let next = AtomicUsize::new(0);
    let first_fault: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let work = || {
        let mut buffer = vec![0; BUFFER_BYTES];
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(stretch) = stretches.get(index) else { break };
            if let Err(fault) = check_stretch(file, sink, stretch, &mut buffer) {
                // The others take nothing more, and the first of the queue is reported.
                next.store(stretches.len(), Ordering::Relaxed);
                let mut first = first_fault.lock().unwrap_or_else(PoisonError::into_inner);
                if first.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
                    *first = Some((index, fault));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for n in 1..threads.min(stretches.len()) {
            // This thread is enough where there are no more.
            let _ = std::thread::Builder::new().name(format!("ggforge-{n}")).spawn_scoped(scope, work);
        }
        work();
    });
    match first_fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, fault)) => Err(fault),
        None if stop.load(Ordering::Relaxed) => Err(Error::Interrupted),
        None => Ok(()),
    }
}

/// Has the system let go of its copies in memory, which would say nothing about the disk. Where it does not, they are compared.
#[cfg(target_os = "linux")]
fn forget_cached(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn forget_cached(_file: &File) {}

/// What is read at once.
const BUFFER_BYTES: usize = 1 << 20;

fn check_stretch(file: &PlannedFile, sink: &Sink, stretch: &Stretch, buffer: &mut [u8]) -> Result<()> {
    let mut hasher = Hasher::new();
    let mut done_bytes = 0;
    while done_bytes < stretch.size_bytes {
        let len = (stretch.size_bytes - done_bytes).min(buffer.len() as u64);
        let bytes = &mut buffer[..len as usize];
        let read = sink.file().read_exact_at(bytes, stretch.offset_bytes + done_bytes);
        read.map_err(|e| Error::io(&file.path, "read back", e))?;
        hasher.update(bytes);
        done_bytes += len;
    }
    if hasher.finalize() == stretch.crc {
        return Ok(());
    }
    let what = format!(
        "{}: bytes {} to {} of the file are not those that were written; check the disk and the memory of this machine",
        owner(file, stretch),
        stretch.offset_bytes,
        stretch.offset_bytes + stretch.size_bytes - 1,
    );
    Err(Error::io(&file.path, "read back", io::Error::other(what)))
}

/// The tensor that a stretch belongs to.
fn owner<'a>(file: &'a PlannedFile, stretch: &Stretch) -> &'a str {
    let places = file.layout.offsets_bytes.iter().zip(&file.layout.sizes_bytes).zip(&file.header.tensors);
    let mut tensors = places.filter(|((offset, size), _)| (**offset..**offset + **size).contains(&stretch.offset_bytes));
    tensors.next().map_or("header", |(_, tensor)| tensor.name.as_str())
}
