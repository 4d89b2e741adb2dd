//! `model.safetensors.index.json`: which shard holds which tensor.
//!
//! ```text
//! {"metadata": {"total_size": 16060522496}, "weight_map": {"model.embed_tokens.weight": "model-00001-of-00004.safetensors", ...}}
//! ```

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::json;
use super::open::is_plain_name;
use crate::error::{Error, Fault, Place, Result};

/// Longest index accepted; DeepSeek-V3's, with 91 991 tensors, has 9 MB.
pub(super) const INDEX_BYTES_MAX: u64 = 64 << 20;
/// Most shards accepted; the largest models known have a few hundred.
pub(super) const SHARDS_MAX: usize = 4096;

/// What an index says.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Tensor names, sorted, each with its shard as an index into `shards`.
    pub tensors: Vec<(Box<str>, u32)>,
    /// Plain file names, sorted.
    pub shards: Vec<String>,
    /// `metadata.total_size`, where it is a whole number.
    pub total_bytes: Option<u64>,
}

impl Index {
    /// # Errors
    /// `Json`, `JsonDepth`, `DuplicateKey`, `ShardName`, and `IndexMismatch` when there is no weight map.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Index> {
        let text = json::check(path, bytes)?;
        let mut parts = Parts {
            stop: RefCell::new(None),
            text_bytes: text.len(),
            shard_ids: HashMap::new(),
            weight_map: None,
            total_bytes: None,
        };
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let run = deserializer.deserialize_map(Top(&mut parts)).and_then(|()| deserializer.end());
        if let Err(e) = run {
            return Err(match parts.stop.take() {
                Some((place, fault, detail)) if e.is_data() => Error::malformed(path, place, fault, detail),
                _ => json::syntax_error(path, text, &e),
            });
        }
        let Some(mut tensors) = parts.weight_map else {
            return Err(Error::malformed(path, Place::Field("weight_map".into()), Fault::IndexMismatch, "missing"));
        };
        tensors.sort_unstable();
        if let Some(pair) = tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let place = Place::Tensor(pair[0].0.to_string());
            return Err(Error::malformed(path, place, Fault::DuplicateKey, "listed twice in weight_map"));
        }
        Ok(Index::with_sorted_shards(tensors, parts.shard_ids, parts.total_bytes))
    }

    /// Renumbers the shards, which were met in the order of the file, by name: their order must not depend on it.
    fn with_sorted_shards(mut tensors: Vec<(Box<str>, u32)>, ids: HashMap<String, u32>, total_bytes: Option<u64>) -> Index {
        let mut by_name: Vec<(String, u32)> = ids.into_iter().collect();
        by_name.sort_unstable();
        let mut new_ids = vec![0; by_name.len()];
        for (new, (_, old)) in by_name.iter().enumerate() {
            new_ids[*old as usize] = new as u32;
        }
        for (_, shard) in &mut tensors {
            *shard = new_ids[*shard as usize];
        }
        Index { tensors, shards: by_name.into_iter().map(|(name, _)| name).collect(), total_bytes }
    }

    /// The shard that the index gives for `tensor`.
    pub fn shard_of(&self, tensor: &str) -> Option<u32> {
        let at = self.tensors.binary_search_by(|(name, _)| name.as_ref().cmp(tensor)).ok()?;
        Some(self.tensors[at].1)
    }
}

/// What has been read so far, and why reading was stopped.
struct Parts {
    stop: RefCell<Option<(Place, Fault, String)>>,
    text_bytes: usize,
    shard_ids: HashMap<String, u32>,
    weight_map: Option<Vec<(Box<str>, u32)>>,
    total_bytes: Option<u64>,
}

impl Parts {
    fn stop<E: serde::de::Error>(&self, place: Place, fault: Fault, detail: &str) -> E {
        self.stop.borrow_mut().get_or_insert_with(|| (place, fault, detail.to_owned()));
        E::custom("stopped")
    }
}

/// The outermost object.
struct Top<'a>(&'a mut Parts);

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with weight_map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let parts = self.0;
        let mut has_metadata = false;
        while let Some(key) = map.next_key::<String>()? {
            let seen = (key == "weight_map" && parts.weight_map.is_some()) || (key == "metadata" && has_metadata);
            if seen {
                return Err(parts.stop(Place::Field(key), Fault::DuplicateKey, "the same key twice in one object"));
            }
            match key.as_str() {
                "weight_map" => parts.weight_map = Some(map.next_value_seed(WeightMap(parts))?),
                "metadata" => {
                    has_metadata = true;
                    parts.total_bytes = map.next_value_seed(Metadata(parts))?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// `metadata`: only `total_size` is of interest.
struct Metadata<'a>(&'a Parts);

impl<'de> DeserializeSeed<'de> for Metadata<'_> {
    type Value = Option<u64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<u64>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Metadata<'_> {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<u64>, A::Error> {
        let mut total = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "total_size" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if total.is_some() {
                return Err(self.0.stop(Place::Field(key), Fault::DuplicateKey, "the same key twice in one object"));
            }
            total = Some(map.next_value::<Value>()?.as_u64());
        }
        Ok(total.flatten())
    }
}

/// `weight_map`: shard file names by tensor name.
struct WeightMap<'a>(&'a mut Parts);

impl<'de> DeserializeSeed<'de> for WeightMap<'_> {
    type Value = Vec<(Box<str>, u32)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for WeightMap<'_> {
    type Value = Vec<(Box<str>, u32)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let parts = self.0;
        // `"a":"a.safetensors",` is the shortest entry, so this is room for all: about as much memory as the text, and no doubling.
        let mut tensors = Vec::with_capacity(parts.text_bytes / 20);
        while let Some(name) = map.next_key::<Box<str>>()? {
            let Value::String(shard) = map.next_value::<Value>()? else {
                return Err(parts.stop(Place::Tensor(name.into()), Fault::ShardName, "its shard is not a string"));
            };
            let id = match parts.shard_ids.get(&shard) {
                Some(&id) => id,
                None if !is_plain_name(&shard) || !shard.ends_with(".safetensors") => {
                    let detail = format!("shard {shard:?} is not a plain file name that ends in .safetensors");
                    return Err(parts.stop(Place::Tensor(name.into()), Fault::ShardName, &detail));
                }
                None if parts.shard_ids.len() == SHARDS_MAX => return Err(A::Error::custom("too many shards")),
                None => {
                    let id = parts.shard_ids.len() as u32;
                    parts.shard_ids.insert(shard, id);
                    id
                }
            };
            tensors.push((name, id));
        }
        Ok(tensors)
    }
}
