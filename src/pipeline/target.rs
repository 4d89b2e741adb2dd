//! Which names an output may take.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::source::TensorSource;

use super::shards::PlannedFile;
use super::sink::already_exists;
use super::{Existing, Options};

/// Refuses outputs that would destroy an input, something that is not a regular file, each other, or, unless that is asked
/// for, an older file.
///
/// # Errors
/// `Usage` for each of these; `Io` when a path cannot be looked at.
pub(super) fn check(files: &[PlannedFile], source: &dyn TensorSource, options: &Options) -> Result<()> {
    let mut inputs: HashSet<(u64, u64)> = source.files().iter().map(|file| file.device_inode()).collect();
    inputs.extend(identities(&options.protected));
    let mut names = HashSet::new();
    for file in files {
        if !names.insert(&file.path) {
            return Err(Error::usage(format!("two outputs would be called {}; put {{type}} in --output", file.path.display())));
        }
        check_one(&file.path, &inputs, options.existing)?;
    }
    Ok(())
}

/// Device and inode of each path that leads to a file.
pub(super) fn identities(paths: &[PathBuf]) -> HashSet<(u64, u64)> {
    paths.iter().filter_map(|path| fs::metadata(path).ok()).map(|m| (m.dev(), m.ino())).collect()
}

/// As [`check`], for one path.
pub(super) fn check_one(path: &Path, inputs: &HashSet<(u64, u64)>, existing: Existing) -> Result<()> {
    let refuse = |why: &str| Err(Error::usage(format!("{} {why}", path.display())));
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(path, "look at the output", e)),
    };
    // Through a symbolic link the output may still be an input, and that is the more helpful message.
    let followed = fs::metadata(path).unwrap_or_else(|_| metadata.clone());
    if inputs.contains(&(followed.dev(), followed.ino())) {
        return refuse("is an input of this run; an output cannot replace it");
    }
    if metadata.is_symlink() {
        return refuse("is a symbolic link; give the path that it points to");
    }
    if !metadata.is_file() {
        return refuse("exists and is not a regular file");
    }
    match existing {
        Existing::Refuse => Err(already_exists(path)),
        Existing::Replace => Ok(()),
    }
}
