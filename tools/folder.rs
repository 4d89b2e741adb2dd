//! The folder that outputs go to, made for them where there is none: `--output newdir/`.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ggforge::Error;

/// Folders that were made for outputs. They go away again with this, unless they are kept.
#[derive(Debug, Default)]
pub struct MadeFolders {
    /// The outermost first.
    made: Vec<PathBuf>,
}

impl MadeFolders {
    /// Makes the folder and those around it, as far as they are missing.
    ///
    /// # Errors
    /// `Io`; nothing is left then.
    pub fn for_outputs(folder: &Path) -> Result<MadeFolders, Error> {
        let is_missing = |path: &&Path| !path.as_os_str().is_empty() && fs::symlink_metadata(path).is_err();
        let mut missing: Vec<&Path> = folder.ancestors().take_while(is_missing).collect();
        missing.reverse();
        let mut folders = MadeFolders::default();
        for path in missing {
            match fs::create_dir(path) {
                Ok(()) => folders.made.push(path.to_owned()),
                // Another run was faster.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io(path, "make the folder", e)),
            }
            // Where names are synced, those of the folders around them are, too.
            let around = path.parent().filter(|around| !around.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let synced = File::open(around).and_then(|around| around.sync_all());
            synced.map_err(|e| Error::io(around, "sync the folder", e))?;
        }
        Ok(folders)
    }

    /// Leaves the folders there: something is in them.
    pub fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        // One that is not empty stays.
        self.made.iter().rev().for_each(|path| drop(fs::remove_dir(path)));
    }
}
