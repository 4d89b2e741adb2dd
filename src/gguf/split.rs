//! Models in several files: the shards' names, their metadata, and how tensors are divided among them.
//!
//! As llama.cpp's gguf-split does it: the first shard holds all metadata, every shard the three `split.*` keys; a new shard starts when
//! the next tensor would take the data of the current one over the limit. Headers are not counted. The files are byte for byte those
//! of gguf-split.

use std::path::{Path, PathBuf};

use super::keys;
use super::value::Value;
use super::write::{DEFAULT_ALIGNMENT, Header, TensorSpec};
use crate::error::{Error, Result};

/// The file name of one shard, taken apart: `{stem}-00002-of-00003.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardName {
    /// What comes before the numbers.
    pub stem: String,
    /// From 0, though names count from 1.
    pub index: u16,
    /// Number of shards.
    pub count: u16,
}

impl ShardName {
    /// Takes a file name apart; `None` when it is not a shard's.
    pub fn parse(file_name: &str) -> Option<ShardName> {
        let rest = file_name.strip_suffix(".gguf")?;
        let (rest, count) = rest.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let (number, count) = (five_digits(number)?, five_digits(count)?);
        let index = number.checked_sub(1).filter(|_| number <= count)?;
        (!stem.is_empty()).then(|| ShardName { stem: stem.to_owned(), index, count })
    }

    /// The name of another shard of the same model.
    pub fn sibling(&self, index: u16) -> ShardName {
        ShardName { index, ..self.clone() }
    }
}

impl std::fmt::Display for ShardName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{:05}-of-{:05}.gguf", self.stem, u32::from(self.index).saturating_add(1), self.count)
    }
}

fn five_digits(text: &str) -> Option<u16> {
    (text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// The paths of `count` shards of the model that was asked for as `output`: itself when there is one, else
/// `output` with its `.gguf` replaced by `-00001-of-0000N.gguf`.
pub fn shard_paths(output: &Path, count: u16) -> Vec<PathBuf> {
    if count <= 1 {
        return vec![output.to_owned()];
    }
    let file_name = output.file_name().unwrap_or_default().to_string_lossy();
    let stem = file_name.strip_suffix(".gguf").unwrap_or(&file_name).to_owned();
    (0..count).map(|index| output.with_file_name(ShardName { stem: stem.clone(), index, count }.to_string())).collect()
}

impl Header {
    /// Divides the model into shards of at most `max_bytes` of tensor data each. A model that fits one shard is returned as it is.
    ///
    /// # Errors
    /// `Usage` when one tensor alone is over the limit, or more shards are needed than their names can count.
    pub fn split(self, max_bytes: u64) -> Result<Vec<Header>> {
        let shards = divide(&self.tensors, max_bytes)?;
        if shards.len() <= 1 {
            return Ok(vec![self]);
        }
        let too_many = |_| Error::usage(format!("{} shards of {max_bytes} bytes; their names count to {}", shards.len(), u16::MAX));
        let count = u16::try_from(shards.len()).map_err(too_many)?;
        let n_tensors =
            i32::try_from(self.tensors.len()).map_err(|_| Error::usage("a split model has at most 2^31 - 1 tensors"))?;
        let mut metadata = self.metadata;
        let headers = shards.into_iter().zip(0..count).map(|(tensors, index)| {
            // Only the first shard carries the model's own metadata: `take` leaves nothing for the others.
            let mut metadata = std::mem::take(&mut metadata);
            metadata.push((keys::SPLIT_NO.to_owned(), Value::U16(index)));
            metadata.push((keys::SPLIT_TENSORS_COUNT.to_owned(), Value::I32(n_tensors)));
            metadata.push((keys::SPLIT_COUNT.to_owned(), Value::U16(count)));
            Header { metadata, tensors }
        });
        Ok(headers.collect())
    }
}

fn divide(tensors: &[TensorSpec], max_bytes: u64) -> Result<Vec<Vec<TensorSpec>>> {
    let mut shards: Vec<Vec<TensorSpec>> = Vec::new();
    let mut shard_bytes = u64::MAX;
    for tensor in tensors {
        let size_bytes = tensor.size_bytes()?.checked_next_multiple_of(DEFAULT_ALIGNMENT).unwrap_or(u64::MAX);
        if size_bytes > max_bytes {
            let name = &tensor.name;
            return Err(Error::usage(format!("{name} alone has {size_bytes} bytes; shards of {max_bytes} cannot hold it")));
        }
        match (shards.last_mut(), shard_bytes.checked_add(size_bytes).filter(|&bytes| bytes <= max_bytes)) {
            (Some(shard), Some(bytes)) => {
                shard.push(tensor.clone());
                shard_bytes = bytes;
            }
            _ => {
                shards.push(vec![tensor.clone()]);
                shard_bytes = size_bytes;
            }
        }
    }
    Ok(shards)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::quant::Format;

    #[test]
    fn names_are_taken_apart_and_put_together() {
        let name = ShardName::parse("a-00001-of-00002-b-00002-of-00010.gguf").unwrap();
        assert_eq!((name.stem.as_str(), name.index, name.count), ("a-00001-of-00002-b", 1, 10));
        assert_eq!(name.to_string(), "a-00001-of-00002-b-00002-of-00010.gguf");
        assert_eq!(name.sibling(9).to_string(), "a-00001-of-00002-b-00010-of-00010.gguf");
        for other in [
            "a.gguf",
            "a-00000-of-00002.gguf",
            "a-00003-of-00002.gguf",
            "a-1-of-2.gguf",
            "-00001-of-00002.gguf",
            "a-00001-of-00002",
            "a-+0001-of-00002.gguf",
            "a-70000-of-70000.gguf",
        ] {
            assert_eq!(ShardName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_model_that_fits_is_not_split_and_one_that_does_not_carries_its_metadata_in_the_first_shard() {
        let tensor = |name: &str, columns| TensorSpec { name: name.into(), format: Format::F32, shape: vec![columns] };
        let tensors = vec![tensor("a", 8), tensor("b", 9), tensor("c", 8), tensor("d", 16)];
        let header = Header { metadata: vec![(keys::GENERAL_ARCHITECTURE.into(), "llama".into())], tensors };
        assert_eq!(header.clone().split(1000).unwrap(), vec![header.clone()]);

        // Padded to 32 bytes the tensors take 32, 64, 32 and 64 bytes.
        let shards = header.clone().split(96).unwrap();
        let names: Vec<Vec<&str>> = shards.iter().map(|s| s.tensors.iter().map(|t| t.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["a", "b"], vec!["c", "d"]]);
        let keys_of = |shard: &Header| shard.metadata.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
        assert_eq!(keys_of(&shards[0]), [keys::GENERAL_ARCHITECTURE, keys::SPLIT_NO, keys::SPLIT_TENSORS_COUNT, keys::SPLIT_COUNT]);
        assert_eq!(shards[1].metadata[0], (keys::SPLIT_NO.to_owned(), Value::U16(1)));
        assert_eq!(shards[1].metadata[1], (keys::SPLIT_TENSORS_COUNT.to_owned(), Value::I32(4)));
        assert_eq!(shards[1].metadata[2], (keys::SPLIT_COUNT.to_owned(), Value::U16(2)));

        let error = header.split(40).unwrap_err().to_string();
        assert!(error.contains("b alone has 64 bytes"), "{error}");
    }

    #[test]
    fn shard_paths_lie_beside_the_output() {
        assert_eq!(shard_paths(Path::new("x/m.gguf"), 1), [Path::new("x/m.gguf")]);
        assert_eq!(
            shard_paths(Path::new("x/m.gguf"), 2),
            ["x/m-00001-of-00002.gguf", "x/m-00002-of-00002.gguf"].map(PathBuf::from)
        );
    }
}
