//! `model.safetensors.index.json`: which shard holds which tensor. Names in it are untrusted paths.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use super::header::MAX_TENSORS;
use crate::error::FaultKind;

/// The largest known index has 16 MB.
const MAX_INDEX: u64 = 64 << 20;
/// Shards that a checkpoint may have.
pub(super) const MAX_SHARDS: usize = 4096;

/// A parsed index.
#[derive(Debug, Default)]
pub struct Index {
    /// Shard file names, in order of first mention.
    pub shards: Vec<String>,
    /// Tensor name to index into `shards`.
    pub map: HashMap<Box<str>, u32>,
    /// `metadata.total_size`: bytes of all tensors.
    pub total_size: Option<u64>,
}

/// Parses an index as a stream.
///
/// # Errors
/// What makes it unusable, as one fault.
pub fn parse_index(reader: impl Read) -> Result<Index, FaultKind> {
    let reader = std::io::BufReader::with_capacity(1 << 16, reader.take(MAX_INDEX));
    let mut json = serde_json::Deserializer::from_reader(reader);
    let index = Index::deserialize(&mut json)
        .and_then(|index| json.end().map(|()| index))
        .map_err(|e| FaultKind::BadIndex(format!("is not the JSON of a safetensors index: {e}")))?;
    for shard in &index.shards {
        let mut parts = Path::new(shard).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !plain || shard.contains(['/', '\\', '\0']) {
            return Err(FaultKind::BadIndex(format!(
                "names the shard {shard:?}, which is not a plain file name beside the index"
            )));
        }
    }
    Ok(index)
}

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Index, D::Error> {
        #[derive(serde::Deserialize)]
        struct Metadata {
            total_size: Option<serde_json::Number>,
        }
        #[derive(serde::Deserialize)]
        struct File {
            metadata: Option<Metadata>,
            weight_map: WeightMap,
        }
        let file = File::deserialize(deserializer)?;
        let total_size = file.metadata.and_then(|m| m.total_size);
        // Some writers store the size as a float; beyond 2^53 that is no exact claim and is not checked.
        let total_size = total_size.and_then(|n| n.as_u64());
        Ok(Index { shards: file.weight_map.shards, map: file.weight_map.map, total_size })
    }
}

#[derive(Default)]
struct WeightMap {
    shards: Vec<String>,
    map: HashMap<Box<str>, u32>,
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WeightMap, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to shard files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<WeightMap, A::Error> {
                let mut found = WeightMap::default();
                while let Some(name) = access.next_key_seed(ShortString)? {
                    let shard = access.next_value_seed(ShortString)?;
                    if found.map.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    // Most files list a shard's tensors together: look at the last one first.
                    let id = match found.shards.iter().rposition(|s| *s == shard) {
                        Some(id) => id,
                        None if found.shards.len() < MAX_SHARDS => {
                            found.shards.push(shard);
                            found.shards.len() - 1
                        }
                        None => return Err(A::Error::custom(format!("more than {MAX_SHARDS} shards"))),
                    };
                    if found.map.insert(name.clone().into_boxed_str(), id as u32).is_some() {
                        return Err(A::Error::custom(format!("tensor {name:?} stands twice")));
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// A string of a length that names have.
struct ShortString;

impl<'de> DeserializeSeed<'de> for ShortString {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > 512 { Err(D::Error::custom("a name longer than 512 bytes")) } else { Ok(text) }
    }
}

/// The real path of a shard, if it may be opened: inside the checkpoint's folder, or, in the Hugging Face hub's cache
/// layout (`snapshots/<revision>/x` linking to `blobs/<hash>` of the same repository), inside that `blobs` folder.
///
/// # Errors
/// A fault for a missing shard or a link that leads elsewhere.
pub(crate) fn resolve(dir: &Path, shard: &str) -> Result<PathBuf, FaultKind> {
    let bad = |problem: String| FaultKind::BadIndex(problem);
    let real_dir = dir.canonicalize().map_err(|e| bad(format!("cannot be resolved: {e}")))?;
    let real = dir.join(shard).canonicalize().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => bad("is missing: the index names it".into()),
        _ => bad(format!("cannot be opened: {e}")),
    })?;
    let in_hub_cache = || {
        let snapshots = real_dir.parent()?;
        let repository = snapshots.parent()?;
        let is_snapshot = snapshots.file_name()? == "snapshots";
        (is_snapshot && real.parent()? == repository.join("blobs")).then_some(())
    };
    if real.parent() == Some(&real_dir) || in_hub_cache().is_some() {
        Ok(real)
    } else {
        Err(bad("is a link that leads out of the checkpoint's folder".into()))
    }
}
