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
    // SAFETY: the mapping is read-only and private to us, and is only ever seen as `&[u8]`, for which every bit pattern is valid.
    // That the bytes may change under us is the one promise nobody can make about a file; the code above the mapping copies each
    // value out before it decides on it and keeps no decision that a later read depends on for memory safety: every access is a
    // bounds-checked slice operation on the mapping's fixed length.
    unsafe { Mmap::map(file) }
}
