//! Opens files of a model folder, and no others.
//!
//! A name is one plain component, looked up relative to the folder's own descriptor. What is not a regular file is refused before it is
//! opened and again after, so that a FIFO cannot hang and a device cannot be read. A symbolic link is followed to a file below the
//! folder, or to the `blobs` beside `snapshots/<revision>` where the Hugging Face cache keeps the content. Anywhere else only weights are
//! followed, which people keep on another disk: a file that is not safetensors from end to end is refused, while the text of any other
//! file could end up in the output.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Fault, Place, Result};
use crate::source::InputFile;

/// An open folder.
#[derive(Debug)]
pub(super) struct Dir {
    path: PathBuf,
    /// Of the model folder, also in a subfolder: absolute, without symbolic links.
    real_path: PathBuf,
    fd: OwnedFd,
}

impl Dir {
    /// # Errors
    /// `Io`; the caller has said what to do when `path` is not a folder.
    pub fn open(path: &Path) -> Result<Dir> {
        let real_path = path.canonicalize().map_err(|e| Error::io(path, "open", e))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, &real_path, flags, Mode::empty()).map_err(|e| Error::io(path, "open", e.into()))?;
        Ok(Dir { path: path.to_owned(), real_path, fd })
    }

    /// As the caller spelled it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Absolute, without symbolic links.
    pub fn real_path(&self) -> &Path {
        &self.real_path
    }

    /// Opens the folder `name` in this one; links in it may lead where this one's may. `None` when there is no folder of that name.
    ///
    /// # Errors
    /// `Io`.
    pub fn subfolder(&self, name: &str) -> Result<Option<Dir>> {
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Dir { path, real_path: self.real_path.clone(), fd })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => Err(Error::io(path, "open", e.into())),
        }
    }

    /// Opens the regular file `name`; `None` when there is none of that name.
    ///
    /// # Errors
    /// `ShardName` for more than one plain component, `NotRegularFile`, `OutsideFolder` for a link that leaves the folder, `Io`.
    pub fn file(&self, name: &str) -> Result<Option<InputFile>> {
        let path = self.path.join(name);
        if !is_plain_name(name) {
            return Err(Error::malformed(&self.path, Place::Field(name.to_owned()), Fault::ShardName, "not a plain file name"));
        }
        let stat = match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(Error::io(&path, "stat", e.into())),
        };
        let opened = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => open_nonblocking(&self.fd, Path::new(name)),
            FileType::Symlink => open_nonblocking(CWD, &self.link_target(&path)?),
            other => {
                let detail = format!("expected a regular file, found {}", describe(other));
                return Err(Error::malformed(&path, Place::File, Fault::NotRegularFile, detail));
            }
        };
        let file = opened.map_err(|e| Error::io(&path, "open", e.into()))?;
        InputFile::new(path, file).map(Some)
    }

    /// Where the link at `path` leads, if that is a place the folder may use.
    fn link_target(&self, path: &Path) -> Result<PathBuf> {
        let target = path.canonicalize().map_err(|e| Error::io(path, "follow", e))?;
        let is_weights = path.extension().is_some_and(|extension| extension == "safetensors");
        let inside =
            is_weights || target.starts_with(&self.real_path) || self.cache_blobs().is_some_and(|blobs| target.starts_with(blobs));
        if !inside {
            let detail = "a symbolic link to a file outside the model folder; copy the file into the folder";
            return Err(Error::malformed(path, Place::File, Fault::OutsideFolder, detail));
        }
        let metadata = target.metadata().map_err(|e| Error::io(path, "stat", e))?;
        if !metadata.is_file() {
            let detail = "a symbolic link to something that is not a regular file";
            return Err(Error::malformed(path, Place::File, Fault::NotRegularFile, detail));
        }
        Ok(target)
    }

    /// `models--org--name/blobs` when the folder is `models--org--name/snapshots/<revision>`.
    fn cache_blobs(&self) -> Option<PathBuf> {
        let snapshots = self.real_path.parent().filter(|p| p.file_name().is_some_and(|n| n == "snapshots"))?;
        snapshots.parent()?.join("blobs").canonicalize().ok()
    }
}

/// `O_NONBLOCK`: should the file have become a FIFO since it was looked at, the open still returns at once.
fn open_nonblocking(dir: impl std::os::fd::AsFd, name: &Path) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).map(File::from)
}

/// True for one component that is neither `.` nor `..` and means the same on every system.
pub(super) fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let one = matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name);
    one && !name.contains(['\0', '\\', ':'])
}

fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::is_plain_name;

    #[test]
    fn a_plain_name_is_one_component() {
        for good in ["a.safetensors", "model-00001-of-00002.safetensors", "..a", "ä b"] {
            assert!(is_plain_name(good), "{good}");
        }
        for bad in ["", ".", "..", "/etc/passwd", "../x", "a/b", "a/", "./a", "a/../../b", "a\\..\\b", "C:x", "a\0b"] {
            assert!(!is_plain_name(bad), "{bad:?}");
        }
    }
}
