//! One output file, invisible until it is complete.
//!
//! Where the file system allows it, the file has no name while it is written (`O_TMPFILE`), so that not even `kill -9` leaves
//! anything behind. Elsewhere it is called `.NAME.tmp.XXXXXX` beside its target and carries a lock for as long as its writer
//! lives; the next run for the same target removes those whose lock is free.
//!
//! Knows bytes and names of files; does not know what the bytes mean.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FallocateFlags, OFlags};
use rustix::io::Errno;
use tempfile::{Builder, NamedTempFile, TempPath};

use super::Existing;
use super::record::Record;
use crate::error::{Error, Result};

/// Whoever writes this much brings it to the disk while the other workers convert on: the disk is busy from the start, and little
/// is left for the end, when a request to stop would have to wait for it. Best of five, 1.24 G weights, against one sync at the
/// end: Q4_K_M 1.86 s for 2.70 s, Q8_0 and F16 alike; the longest wait for a stop 0.78 s for 1.06 s. With 256 MiB nothing is gained.
const UNSYNCED_BYTES_MAX: u64 = 16 << 20;

/// An output file being written.
#[derive(Debug)]
pub(super) struct Sink {
    path: PathBuf,
    /// The open directory of `path`: the file is linked into it, and it is synced last.
    directory: File,
    staged: Staged,
    file_bytes: u64,
    /// Written since anything was last brought to the disk.
    unsynced_bytes: AtomicU64,
    /// What was written where, for reading it back.
    record: Option<Record>,
}

/// Where the bytes are before the output has its name.
#[derive(Debug)]
enum Staged {
    Unnamed(File),
    /// It has a temporary name, to be renamed from.
    Linked(File, TempPath),
    Named(NamedTempFile),
    /// The output has its name.
    Published(File),
}

impl Sink {
    /// Creates the file, still without its name, and reserves its space. Its mode is that of the file which has the name now, where there
    /// is one, else what the umask allows.
    ///
    /// # Errors
    /// `NoSpace` when `file_bytes` do not fit; `Io` when the directory cannot be written to.
    pub(super) fn create(path: &Path, file_bytes: u64) -> Result<Sink> {
        let (parent, name) = split(path)?;
        let directory = File::open(parent).map_err(|e| Error::io(parent, "open the directory", e))?;
        sweep(parent, name);
        let staged = match unnamed(&directory) {
            Some(opened) => {
                let file = opened.map_err(|e| Error::io(parent, "create a file in the directory", e))?;
                // For the moment in which `publish` gives it a temporary name.
                let _ = file.try_lock();
                Staged::Unnamed(file)
            }
            None => Staged::Named(named(parent, name)?),
        };
        let sink = Sink { path: path.to_owned(), directory, staged, file_bytes, unsynced_bytes: AtomicU64::new(0), record: None };
        // Before the first byte: what only its owner may read is never readable for others.
        if let Some(old) = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file) {
            let mode = Permissions::from_mode(old.permissions().mode() & 0o777);
            sink.file().set_permissions(mode).map_err(|e| Error::io(path, "set the mode", e))?;
        }
        sink.reserve()?;
        Ok(sink)
    }

    /// As [`Sink::create`], for a file whose whole content will be read back.
    pub(super) fn create_recorded(path: &Path, file_bytes: u64) -> Result<Sink> {
        Ok(Sink { record: Some(Record::default()), ..Sink::create(path, file_bytes)? })
    }

    /// What was written where; nothing for a sink that does not record it.
    pub(super) fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        match &self.staged {
            Staged::Unnamed(file) | Staged::Linked(file, _) | Staged::Published(file) => file,
            Staged::Named(temp) => temp.as_file(),
        }
    }

    /// Takes the blocks of the whole file now, so that a full disk is found before the first weight is read.
    fn reserve(&self) -> Result<()> {
        let reserved = loop {
            match rustix::fs::fallocate(self.file(), FallocateFlags::empty(), 0, self.file_bytes) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        match reserved {
            Ok(()) => Ok(()),
            // File systems that cannot reserve (NFS 3, FUSE, ZFS): the writes will find out.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => match self.free_bytes() {
                Some(free) if free < self.file_bytes => Err(self.no_space(Some(free))),
                _ => self.file().set_len(self.file_bytes).map_err(|e| self.write_error("extend", e)),
            },
            Err(e) => Err(self.write_error("reserve space", e.into())),
        }
    }

    /// Writes all of `bytes` at `offset_bytes`.
    pub(super) fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<()> {
        // Summed up first: whatever the bytes meet on their way is noticed.
        if let Some(record) = &self.record {
            record.add(bytes, offset_bytes);
        }
        self.file().write_all_at(bytes, offset_bytes).map_err(|e| self.write_error("write", e))?;
        let len = bytes.len() as u64;
        if self.unsynced_bytes.fetch_add(len, Ordering::Relaxed) + len < UNSYNCED_BYTES_MAX {
            return Ok(());
        }
        self.unsynced_bytes.store(0, Ordering::Relaxed);
        self.file().sync_data().map_err(|e| self.write_error("sync", e))
    }

    /// Returns when all of the content is on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        // An error here is final: the kernel has dropped the pages that it could not write, so a second fsync would lie.
        self.file().sync_all().map_err(|e| self.write_error("sync", e))
    }

    /// Gives the file a temporary name, as a link cannot replace a name and a rename can: what may fail for want of space or rights fails
    /// here, with the older file still there.
    pub(super) fn link_beside(mut self) -> Result<Sink> {
        if let Staged::Unnamed(file) = self.staged {
            let (parent, name) = split(&self.path)?;
            let prefix = temp_prefix(name);
            let linked = Builder::new().prefix(&prefix).make_in(parent, |path| link(&file, &self.directory, file_name(path)));
            let linked = linked.map_err(|e| Error::io(&self.path, "name the output", e))?;
            self.staged = Staged::Linked(file, linked.into_temp_path());
        }
        Ok(self)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// `Usage` when the name has been taken meanwhile and `existing` says to refuse.
    pub(super) fn publish(self, existing: Existing) -> Result<Sink> {
        let mut sink = if existing == Existing::Replace { self.link_beside()? } else { self };
        let (_, name) = split(&sink.path)?;
        let published = match (sink.staged, existing) {
            (Staged::Unnamed(file), Existing::Refuse) => link(&file, &sink.directory, Path::new(name)).map(|()| file),
            (Staged::Linked(file, temp), Existing::Replace) => temp.persist(&sink.path).map_err(io::Error::from).map(|()| file),
            (Staged::Named(temp), Existing::Refuse) => temp.persist_noclobber(&sink.path).map_err(io::Error::from),
            (Staged::Named(temp), Existing::Replace) => temp.persist(&sink.path).map_err(io::Error::from),
            (Staged::Unnamed(_) | Staged::Linked(..) | Staged::Published(_), _) => {
                return Err(Error::Internal("an output was published twice, or in two ways".into()));
            }
        };
        match published {
            Ok(file) => {
                sink.staged = Staged::Published(file);
                Ok(sink)
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Err(already_exists(&sink.path)),
            Err(e) => Err(Error::io(&sink.path, "name the output", e)),
        }
    }

    /// Removes the older file of this name; returns when that is on the disk.
    pub(super) fn remove_old(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Ok(()) => self.sync_directory(),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io(&self.path, "remove the older file", e)),
        }
    }

    /// Takes a published name away again, because another file of the same run could not be published.
    pub(super) fn withdraw(self) {
        if matches!(self.staged, Staged::Published(_)) && same_file(&self.path, self.file()) {
            // Best effort: the error that led here is the one to report.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Returns when the name is on the disk.
    pub(super) fn sync_directory(&self) -> Result<()> {
        self.directory.sync_all().map_err(|e| Error::io(&self.path, "sync the directory", e))
    }

    fn free_bytes(&self) -> Option<u64> {
        // A file system without a size of its own, such as ramfs, says 0 of 0.
        let stat = rustix::fs::fstatvfs(self.file()).ok().filter(|stat| stat.f_blocks > 0)?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }

    fn no_space(&self, have_bytes: Option<u64>) -> Error {
        Error::NoSpace { path: self.path.clone(), need_bytes: self.file_bytes, have_bytes }
    }

    fn write_error(&self, op: &'static str, e: io::Error) -> Error {
        match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => self.no_space(self.free_bytes()),
            _ => Error::io(&self.path, op, e),
        }
    }
}

/// The refusal of a name that is taken.
pub(super) fn already_exists(path: &Path) -> Error {
    Error::usage(format!("{} exists already; --force replaces it", path.display()))
}

/// A path's directory and file name.
fn split(path: &Path) -> Result<(&Path, &OsStr)> {
    let name = path.file_name().ok_or_else(|| Error::usage(format!("{} names no file", path.display())))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok((parent, name))
}

fn file_name(path: &Path) -> &Path {
    Path::new(path.file_name().expect("a path made by joining a name"))
}

/// A file without a name in `directory`; `None` where the system cannot do that or could not name it later.
#[cfg(target_os = "linux")]
fn unnamed(directory: &File) -> Option<io::Result<File>> {
    if !Path::new("/proc/self/fd").is_dir() {
        return None;
    }
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, ".", flags, rustix::fs::Mode::from_raw_mode(0o666)) {
        Ok(file) => Some(Ok(file.into())),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => None,
        Err(e) => Some(Err(e.into())),
    }
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_directory: &File) -> Option<io::Result<File>> {
    None
}

/// Gives an unnamed file a name in `directory`; fails when the name is taken.
fn link(file: &File, directory: &File, name: &Path) -> io::Result<()> {
    let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(rustix::fs::CWD, descriptor, directory, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// A locked temporary file beside the target.
fn named(parent: &Path, name: &OsStr) -> Result<NamedTempFile> {
    let failed = |e| Error::io(parent, "create a file in the directory", e);
    let prefix = temp_prefix(name);
    loop {
        let mode = Permissions::from_mode(0o666);
        let temp = Builder::new().prefix(&prefix).permissions(mode).tempfile_in(parent).map_err(failed)?;
        // A file system without locks cannot tell a live temporary file from a dead one; then nobody sweeps.
        let locked = !matches!(temp.as_file().try_lock(), Err(fs::TryLockError::WouldBlock));
        if locked && same_file(temp.path(), temp.as_file()) {
            return Ok(temp);
        }
        // Another run's sweep came between the creation and the lock, and took the file for a dead one.
    }
}

/// What the temporary names of a target start with: `.model.gguf.tmp.`
fn temp_prefix(name: &OsStr) -> OsString {
    // The longest name that leaves room for the rest within the 255 bytes that file systems allow.
    let kept = &name.as_bytes()[..name.len().min(230)];
    OsString::from_vec([b".".as_slice(), kept, b".tmp."].concat())
}

/// True for `.model.gguf.tmp.XXXXXX`, where `prefix` is `.model.gguf.tmp.`
fn is_temp_name(name: &OsStr, prefix: &OsStr) -> bool {
    name.as_bytes()
        .strip_prefix(prefix.as_bytes())
        .is_some_and(|rest| rest.len() == 6 && rest.iter().all(u8::is_ascii_alphanumeric))
}

/// Removes temporary files of this target whose writers are dead. Best effort: what cannot be removed does no harm.
fn sweep(parent: &Path, name: &OsStr) {
    let prefix = temp_prefix(name);
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if !is_temp_name(&entry.file_name(), &prefix) || !entry.file_type().is_ok_and(|t| t.is_file()) {
            continue;
        }
        let path = entry.path();
        let nofollow = OFlags::NOFOLLOW.bits() as i32;
        let Ok(file) = OpenOptions::new().read(true).custom_flags(nofollow).open(&path) else { continue };
        if file.try_lock().is_ok() && same_file(&path, &file) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// True when `path` names the open `file`.
fn same_file(path: &Path, file: &File) -> bool {
    match (fs::symlink_metadata(path), file.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sink as on a file system without unnamed files.
    fn named_sink(path: &Path) -> Sink {
        let (parent, name) = split(path).unwrap();
        let staged = Staged::Named(named(parent, name).unwrap());
        Sink {
            path: path.to_owned(),
            directory: File::open(parent).unwrap(),
            staged,
            file_bytes: 4,
            unsynced_bytes: AtomicU64::new(0),
            record: None,
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn both_ways_of_staging_keep_the_name_free_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        let ways: [fn(&Path) -> Sink; 2] = [named_sink, |path| Sink::create(path, 4).unwrap()];
        for create in ways {
            let sink = create(&path);
            sink.write_at(b"new!", 0).unwrap();
            assert!(!path.exists());
            let sink = sink.publish(Existing::Refuse).unwrap();
            assert_eq!(names(dir.path()), ["a.gguf"]);
            assert_eq!(fs::read(&path).unwrap(), b"new!");
            sink.withdraw();
            assert!(names(dir.path()).is_empty());

            fs::write(&path, "old").unwrap();
            let refused = create(&path).publish(Existing::Refuse).unwrap_err();
            assert!(matches!(refused, Error::Usage(_)), "{refused}");
            assert_eq!(fs::read(&path).unwrap(), b"old");
            let sink = create(&path);
            sink.write_at(b"new!", 0).unwrap();
            sink.publish(Existing::Replace).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"new!");
            drop(create(&path));
            assert_eq!(names(dir.path()), ["a.gguf"]);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn the_mode_follows_the_umask() {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let umask = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
        let mode = 0o666 & !u32::from_str_radix(umask.trim(), 8).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        for sink in [named_sink(&path), Sink::create(&path, 4).unwrap()] {
            sink.publish(Existing::Replace).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, mode);
        }
    }

    #[test]
    fn a_replaced_file_s_mode_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        for mode in [0o600, 0o640, 0o444, 0o666] {
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let sink = Sink::create(&path, 4).unwrap();
            assert_eq!(sink.file().metadata().unwrap().mode() & 0o777, mode, "already while it is written");
            sink.publish(Existing::Replace).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, mode);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn only_dead_temporary_files_of_the_same_target_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        let live = named_sink(&path);
        let others = [".a.gguf.tmp.notes", ".b.gguf.tmp.Ab12Cd", "a.gguf.tmp.Ab12Cd"];
        for name in others.iter().chain(&[".a.gguf.tmp.Ab12Cd"]) {
            fs::write(dir.path().join(name), "left by a killed run, or somebody's own").unwrap();
        }
        drop(Sink::create(&path, 4).unwrap());
        let mut expected: Vec<String> = others.map(String::from).to_vec();
        let Staged::Named(temp) = &live.staged else { unreachable!() };
        expected.push(temp.path().file_name().unwrap().to_str().unwrap().to_owned());
        expected.sort();
        assert_eq!(names(dir.path()), expected);
        live.publish(Existing::Refuse).unwrap();
    }

    #[test]
    fn a_file_that_does_not_fit_is_refused_with_figures() {
        let dir = tempfile::tempdir().unwrap();
        let error = Sink::create(&dir.path().join("a.gguf"), 1 << 55).unwrap_err();
        match error {
            Error::NoSpace { need_bytes, have_bytes, .. } => {
                assert!(need_bytes == 1 << 55 && have_bytes.is_some_and(|have| have < 1 << 55))
            }
            // Beyond the largest file of the file system.
            Error::Io { source, .. } => assert_eq!(source.kind(), ErrorKind::FileTooLarge),
            other => panic!("{other}"),
        }
        assert!(names(dir.path()).is_empty());
    }
}
