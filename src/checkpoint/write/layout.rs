//! Which unit lies in which shard, and what the headers and the index say of it.

use std::collections::BTreeMap;
use std::ops::Range;

use blake3::{Hash, Hasher};
use serde::Serialize;

use super::hash::{describe, text};
use super::{NewTensor, Unit};
use crate::checkpoint::Dtype;
use crate::checkpoint::header::{MAX_HEADER, MAX_NAME, MAX_RANK, MAX_TENSORS};
use crate::checkpoint::index::MAX_SHARDS;
use crate::error::{Error, Result};

/// Units in shards. A shard holds its units one behind the other, in their order.
#[derive(Debug)]
pub(super) struct Layout<'a> {
    pub units: &'a [Unit],
    /// By unit.
    pub places: Vec<Place>,
    pub shards: Vec<Shard>,
    pub tensors: usize,
    /// Of all tensors.
    pub bytes: u64,
}

/// Where a unit lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub shard: usize,
    /// Its first byte behind the shard's header.
    pub offset: u64,
}

/// A file of tensors.
#[derive(Debug)]
pub(super) struct Shard {
    pub name: String,
    pub units: Range<usize>,
    /// Bytes of its header.
    pub header: u64,
    /// Bytes of its tensors.
    pub data: u64,
}

impl Shard {
    /// The file's length.
    pub(super) fn len(&self) -> u64 {
        self.header + self.data
    }
}

impl<'a> Layout<'a> {
    /// Lays units out: a shard ends before it would exceed `shard_bytes`. What the loader would not take is refused here,
    /// before hours of work.
    pub(super) fn of(units: &'a [Unit], shard_bytes: u64) -> Result<Layout<'a>> {
        let (tensors, bytes) = check(units)?;
        let mut places = Vec::with_capacity(units.len());
        let mut shards: Vec<Shard> = Vec::new();
        for (number, unit) in units.iter().enumerate() {
            let len = unit.bytes();
            if shards.last().is_none_or(|last| last.data > 0 && last.data + len > shard_bytes) {
                shards.push(Shard { name: String::new(), units: number..number, header: 0, data: 0 });
            }
            let index = shards.len() - 1;
            let shard = &mut shards[index];
            places.push(Place { shard: index, offset: shard.data });
            shard.units.end = number + 1;
            shard.data += len;
        }
        let mut layout = Layout { units, places, shards, tensors, bytes };
        layout.name_shards(shard_bytes)?;
        Ok(layout)
    }

    fn name_shards(&mut self, shard_bytes: u64) -> Result<()> {
        let count = self.shards.len();
        if count > MAX_SHARDS {
            let problem =
                format!("is {shard_bytes}, which makes {count} shards; at most {MAX_SHARDS} are loaded");
            return Err(Error::argument("shard_bytes", problem));
        }
        for number in 0..count {
            let header = self.header(number).len() as u64;
            if header - 8 > MAX_HEADER {
                let problem = format!(
                    "is {shard_bytes}, which makes a header of {header} bytes; at most {MAX_HEADER} are loaded"
                );
                return Err(Error::argument("shard_bytes", problem));
            }
            self.shards[number].header = header;
            self.shards[number].name = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
        }
        Ok(())
    }

    /// The safetensors header of a shard.
    pub(super) fn header(&self, shard: usize) -> Vec<u8> {
        header(self.tensors_of(shard).map(|t| (t.name.as_str(), t.dtype, &t.shape[..], t.bytes())))
    }

    /// The content of the index file.
    pub(super) fn index(&self) -> Index<'_> {
        let weight_map = (0..self.shards.len())
            .flat_map(|shard| {
                let file = self.shards[shard].name.as_str();
                self.tensors_of(shard).map(move |tensor| (tensor.name.as_str(), file))
            })
            .collect();
        Index { metadata: Metadata { total_size: self.bytes }, weight_map }
    }

    /// A hash of what lies where.
    pub(super) fn hash(&self) -> Hash {
        let mut hasher = Hasher::new();
        for (number, shard) in self.shards.iter().enumerate() {
            text(&mut hasher, &shard.name);
            hasher.update(&(shard.units.end as u64).to_le_bytes());
            self.tensors_of(number).for_each(|tensor| describe(&mut hasher, tensor));
        }
        // Where one unit ends and the next begins decides what the journal's hashes are hashes of.
        self.units.iter().for_each(|unit| {
            hasher.update(&(unit.tensors.len() as u64).to_le_bytes());
        });
        hasher.finalize()
    }

    fn tensors_of(&self, shard: usize) -> impl Iterator<Item = &'a NewTensor> {
        self.units[self.shards[shard].units.clone()].iter().flat_map(|unit| &unit.tensors)
    }
}

/// The header of a safetensors file of these tensors (name, type, shape, bytes), which follow each other: the length of the JSON,
/// then the JSON, padded so that the first tensor is aligned to 8 bytes.
pub(crate) fn header<'a>(tensors: impl Iterator<Item = (&'a str, Dtype, &'a [u64], u64)>) -> Vec<u8> {
    let (mut offset, mut entries) = (0, BTreeMap::new());
    for (name, dtype, shape, bytes) in tensors {
        let data_offsets = [offset, offset + bytes];
        offset = data_offsets[1];
        entries.insert(name, Entry { data_offsets, dtype: dtype.name(), shape });
    }
    // Strings, numbers and arrays in a map by strings: nothing that JSON cannot say.
    let mut json = serde_json::to_vec(&entries).unwrap_or_default();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    header
}

/// Fields in the order in which they are written.
#[derive(Serialize)]
struct Entry<'a> {
    data_offsets: [u64; 2],
    dtype: &'static str,
    shape: &'a [u64],
}

/// `model.safetensors.index.json`.
#[derive(Serialize)]
pub(super) struct Index<'a> {
    metadata: Metadata,
    weight_map: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct Metadata {
    total_size: u64,
}

/// Number and bytes of all tensors, if the loader can take every one.
fn check(units: &[Unit]) -> Result<(usize, u64)> {
    let defect = |tensor: &NewTensor, problem: &str| {
        Err(Error::Defect { what: format!("the tensor {:?} {problem}", tensor.name) })
    };
    let tensors: usize = units.iter().map(|unit| unit.tensors.len()).sum();
    if tensors > MAX_TENSORS {
        return Err(Error::Defect {
            what: format!("{tensors} tensors are to be written, at most {MAX_TENSORS} are loaded"),
        });
    }
    let bytes = units.iter().fold(0u64, |bytes, unit| bytes.saturating_add(unit.bytes()));
    let mut names = rustc_hash::FxHashSet::default();
    for tensor in units.iter().flat_map(|unit| &unit.tensors) {
        let name = tensor.name.as_str();
        if name.len() > MAX_NAME || name == "__metadata__" {
            return defect(tensor, "has a name that the format does not take");
        }
        if tensor.shape.len() > MAX_RANK || tensor.shape.contains(&0) {
            return defect(tensor, &format!("has the shape {:?}, which is not loaded", tensor.shape));
        }
        // File offsets are signed.
        if bytes > i64::MAX as u64 && tensor.bytes() > (i64::MAX as u64) / MAX_TENSORS as u64 {
            return defect(tensor, &format!("has the shape {:?}, too large for any file", tensor.shape));
        }
        if !names.insert(name) {
            return defect(tensor, "is to be written twice");
        }
    }
    Ok((tensors, bytes))
}
