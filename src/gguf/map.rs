//! The one place that opens a memory mapping.

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps a whole file for reading.
///
/// Only weights are read through the mapping, where every bit pattern is a value; headers are read by position. A file that is cut short
/// while its weights are read through here ends the process with SIGBUS, so conversion reads them by position too.
pub(super) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only, private to us and only ever accessed through bounds-checked slices of its fixed length. What
    // cannot be proven is that no other process writes to the file meanwhile: that is undefined behaviour by the letter, as bytes
    // behind a shared reference would change. Every reader that maps files lives with it; we keep it small by reading nothing from the
    // mapping but blocks of weights, of which none is invalid.
    unsafe { Mmap::map(file) }
}
