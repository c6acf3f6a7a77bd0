//! The safetensors header: eight bytes of length, then JSON from names to (dtype, shape, offsets).
//!
//! Parsed as a stream, entry by entry, so that a hostile header costs bounded memory; checked here rather than by the
//! `safetensors` crate because that accepts duplicate names and unguarded products. What comes out is trustworthy:
//! every tensor lies inside the file, none overlaps another, and its size is what its shape and type say.

use std::fmt;
use std::io::Read;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::FaultKind;

/// Kimi-K2's headers are 0.4 MB; a single-file checkpoint of all its tensors would need 24 MB.
pub const MAX_HEADER: u64 = 32 << 20;

/// Tensors a checkpoint may have in all. The largest known has 208,550.
pub const MAX_TENSORS: usize = 1 << 18;

/// Bytes of a tensor's name at most.
pub(super) const MAX_NAME: usize = 512;
/// Dimensions of a tensor at most.
pub(super) const MAX_RANK: usize = 4;

/// Element types of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "named as in the format")]
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E4m3,
    F8E5m2,
    F8E8m0,
    I16,
    U16,
    F16,
    Bf16,
    I32,
    U32,
    F32,
    I64,
    U64,
    F64,
}

impl Dtype {
    const ALL: [(&'static str, Dtype, u64); 16] = [
        ("BOOL", Dtype::Bool, 1),
        ("U8", Dtype::U8, 1),
        ("I8", Dtype::I8, 1),
        ("F8_E4M3", Dtype::F8E4m3, 1),
        ("F8_E5M2", Dtype::F8E5m2, 1),
        ("F8_E8M0", Dtype::F8E8m0, 1),
        ("I16", Dtype::I16, 2),
        ("U16", Dtype::U16, 2),
        ("F16", Dtype::F16, 2),
        ("BF16", Dtype::Bf16, 2),
        ("I32", Dtype::I32, 4),
        ("U32", Dtype::U32, 4),
        ("F32", Dtype::F32, 4),
        ("I64", Dtype::I64, 8),
        ("U64", Dtype::U64, 8),
        ("F64", Dtype::F64, 8),
    ];

    fn parse(name: &str) -> Option<Dtype> {
        Dtype::ALL.iter().find(|d| d.0 == name).map(|d| d.1)
    }

    /// The format's name for it.
    pub fn name(self) -> &'static str {
        Dtype::ALL.iter().find(|d| d.1 == self).map_or("?", |d| d.0)
    }

    /// Bytes an element.
    pub fn bytes(self) -> u64 {
        Dtype::ALL.iter().find(|d| d.1 == self).map_or(1, |d| d.2)
    }
}

/// A tensor of a header. Offsets are absolute in the file.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name.
    pub name: Box<str>,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Box<[u64]>,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A checked header: the entries that can be trusted, and what is wrong with the others.
#[derive(Debug, Default)]
pub struct Header {
    /// Sound tensors, by offset.
    pub entries: Vec<Entry>,
    /// Faults: (tensor, if one is to blame; what).
    pub faults: Vec<(Option<String>, FaultKind)>,
}

/// Reads the header of a safetensors file of `file_len` bytes.
///
/// # Errors
/// The one fault that makes the whole file unusable; faults of single tensors come in the [`Header`].
pub fn parse_header(mut file: impl Read, file_len: u64) -> Result<Header, FaultKind> {
    let bad = |problem: String| Err(FaultKind::BadFile(problem));
    let mut start = [0u8; 8];
    let got = read_up_to(&mut file, &mut start);
    if let Some(what) = super::looks_like(&start[..got]).filter(|_| got < 8 || file_len == 0) {
        return bad(format!("is {what}, expected a safetensors file"));
    }
    if got < 8 {
        return bad(format!("has {file_len} bytes, too few for a safetensors header"));
    }
    let len = u64::from_le_bytes(start);
    if len == 0 || len > file_len - 8 || len > MAX_HEADER {
        let mut more = [0u8; 64];
        let got = read_up_to(&mut file, &mut more);
        let beginning = [&start[..], &more[..got]].concat();
        if let Some(what) = super::looks_like(&beginning) {
            return bad(format!("is {what}, expected a safetensors file"));
        }
        return bad(match len {
            0 => "its header length is 0".into(),
            len if len > file_len - 8 => {
                format!(
                    "its header length is {len}, but only {} bytes follow: truncated or no safetensors file",
                    file_len - 8
                )
            }
            len => format!("its header length is {len}, more than the {MAX_HEADER} this engine accepts"),
        });
    }
    let data = 8 + len;
    let reader = std::io::BufReader::with_capacity(1 << 16, file.take(len));
    let mut json = serde_json::Deserializer::from_reader(reader);
    let raw = RawHeader::deserialize(&mut json)
        .and_then(|raw| json.end().map(|()| raw))
        .map_err(|e| FaultKind::BadFile(format!("its header is not the JSON of a safetensors file: {e}")))?;
    Ok(check(raw, data, file_len))
}

fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> usize {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    got
}

/// One entry as written, bounded in size but not yet believed.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

struct RawHeader {
    entries: Vec<(Box<str>, RawEntry)>,
    duplicates: Vec<String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawHeader, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if name.len() > MAX_NAME {
                        return Err(A::Error::custom(format!("a tensor name of {} bytes", name.len())));
                    }
                    if entries.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    let entry: RawEntry =
                        map.next_value().map_err(|e| A::Error::custom(format!("tensor {name:?}: {e}")))?;
                    if entry.shape.len() > MAX_RANK || entry.dtype.len() > 16 {
                        return Err(A::Error::custom(format!(
                            "tensor {name:?}: rank above {MAX_RANK} or odd dtype"
                        )));
                    }
                    entries.push((name.into_boxed_str(), entry));
                }
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                let mut duplicates: Vec<String> =
                    entries.windows(2).filter(|w| w[0].0 == w[1].0).map(|w| w[0].0.to_string()).collect();
                duplicates.dedup();
                entries.dedup_by(|a, b| a.0 == b.0);
                Ok(RawHeader { entries, duplicates })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Checks every entry on its own, then that together they tile the data section.
fn check(raw: RawHeader, data: u64, file_len: u64) -> Header {
    let mut header = Header::default();
    for name in raw.duplicates {
        header.faults.push((Some(name), FaultKind::Duplicate { other: "the same header".into() }));
    }
    let mut tiles: Vec<(u64, u64)> = Vec::with_capacity(raw.entries.len());
    for (name, entry) in raw.entries {
        match sound(name, entry, data, file_len) {
            Ok(entry) => {
                tiles.push((entry.offset, entry.offset + entry.len));
                header.entries.push(entry);
            }
            Err((name, kind)) => header.faults.push((Some(name), kind)),
        }
    }
    header.entries.sort_by_key(|e| e.offset);
    let mut end = data;
    let clean = header.faults.is_empty();
    // Against the furthest end so far, not only the neighbour's: one entry may span several others. What overlaps goes.
    let mut last: Option<Entry> = None;
    let mut kept = Vec::with_capacity(header.entries.len());
    for entry in std::mem::take(&mut header.entries) {
        match &last {
            Some(before) if entry.offset < before.offset + before.len => {
                let problem = format!("its bytes overlap those of {}", before.name);
                header.faults.push((Some(entry.name.to_string()), FaultKind::BadLayout(problem)));
            }
            _ => kept.extend(last.replace(entry)),
        }
    }
    kept.extend(last);
    header.entries = kept;
    tiles.sort_unstable();
    for (from, to) in tiles {
        // Bytes that belong to no tensor are only told where every entry could be read.
        if from > end && clean {
            let problem = format!("{} bytes at {end} belong to no tensor", from - end);
            header.faults.push((None, FaultKind::BadLayout(problem)));
        }
        end = end.max(to);
    }
    if end < file_len && clean {
        let problem = format!("{} bytes follow the last tensor", file_len - end);
        header.faults.push((None, FaultKind::BadLayout(problem)));
    }
    header
}

fn sound(name: Box<str>, raw: RawEntry, data: u64, file_len: u64) -> Result<Entry, (String, FaultKind)> {
    let RawEntry { dtype, shape, data_offsets: [begin, end] } = raw;
    let bad = |problem: String| Err((name.to_string(), FaultKind::BadLayout(problem)));
    let Some(dtype) = Dtype::parse(&dtype) else {
        return bad(format!("has the unknown type {dtype:?}"));
    };
    if shape.contains(&0) {
        return bad(format!("has the empty shape {shape:?}"));
    }
    let elements = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    let Some(bytes) = elements.and_then(|n| n.checked_mul(dtype.bytes())) else {
        return bad(format!("has the impossible shape {shape:?}"));
    };
    if begin > end {
        return bad(format!("has reversed offsets [{begin}, {end}]"));
    }
    if end - begin != bytes {
        return bad(format!("spans {} bytes, but {shape:?} of {} is {bytes}", end - begin, dtype.name()));
    }
    match data.checked_add(end) {
        Some(last) if last <= file_len => {
            Ok(Entry { dtype, shape: shape.into(), offset: data + begin, len: bytes, name })
        }
        _ => bad(format!("ends at byte {end} of {}: the file is truncated", file_len - data)),
    }
}
