//! The one place that opens a memory mapping.

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps a whole file for reading.
///
/// What is read through the mapping was checked when the file was opened, but another process may change the file afterwards. So
/// nothing that is decoded again later relies on the check: a changed header gives fewer or other values, never a panic, and
/// [`crate::source::InputFile::check_unchanged`] finds the change. A file that is cut short while its header is read ends the
/// process with SIGBUS; weights are therefore read by position, not from here.
pub(super) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only, private to us and only ever accessed through bounds-checked slices of its fixed length. What
    // cannot be proven is that no other process writes to the file meanwhile: that is undefined behaviour by the letter, as bytes
    // behind a shared reference, and behind a `&str` checked before, would change. Every reader that maps files lives with it; we keep
    // it small by mapping for headers only, checking again at each decoding, and comparing the file's identity at the end of a run.
    unsafe { Mmap::map(file) }
}
