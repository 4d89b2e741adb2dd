//! A tokenizer's files in memory, for tests that change them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ggforge::tokenizer::Files;
use ggforge::{Error, Result};
use serde_json::Value;

/// Contents by name; files of a subfolder as `folder/name`.
#[derive(Clone, Default)]
pub struct FileMap(pub BTreeMap<String, Vec<u8>>);

impl FileMap {
    /// The JSON and text files of a folder.
    pub fn of(folder: &Path) -> FileMap {
        let mut files = FileMap::default();
        for entry in std::fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().expect("a name").to_str().expect("UTF-8").to_owned();
            if !name.ends_with(".safetensors") && path.is_file() {
                files.0.insert(name, std::fs::read(&path).expect("a readable file"));
            }
        }
        files
    }

    /// With the file `name` replaced.
    pub fn with(mut self, name: &str, content: impl Into<Vec<u8>>) -> FileMap {
        self.0.insert(name.to_owned(), content.into());
        self
    }

    /// Without the file `name`.
    pub fn without(mut self, name: &str) -> FileMap {
        self.0.remove(name);
        self
    }

    /// With the bytes of the file `name` changed.
    pub fn edit_bytes(mut self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> FileMap {
        change(self.0.get_mut(name).expect("a file of that name"));
        self
    }

    /// With the JSON file `name` changed, or made from `{}`.
    pub fn edit(self, name: &str, change: impl FnOnce(&mut Value)) -> FileMap {
        let mut value = match self.0.get(name) {
            Some(bytes) => serde_json::from_slice(bytes).expect("valid JSON"),
            None => serde_json::json!({}),
        };
        change(&mut value);
        self.with(name, value.to_string())
    }
}

impl Files for FileMap {
    fn read_optional(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(name).cloned())
    }

    fn read_folder(&self, folder: &str, suffix: &str) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let names = self.0.iter().filter_map(|(name, content)| Some((name.strip_prefix(folder)?.strip_prefix('/')?, content)));
        Ok(names.filter(|(name, _)| name.ends_with(suffix)).map(|(name, content)| (name.to_owned(), content.clone())).collect())
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new("folder").join(name)
    }
}
