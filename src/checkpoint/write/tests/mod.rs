//! The writer against a producer whose bytes are known, in this process and in children that are killed or short of
//! something.

mod children;
mod refused;
mod resumed;
mod whole;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rayon::prelude::*;

use super::sync::Pace;
use super::{Dtype, Folder, NewTensor, Produce, Sink, Unit, Written};
use crate::checkpoint::LoadOptions;
use crate::error::Result;

const IDENTITY: [u8; 32] = [7; 32];
const SHARD_BYTES: u64 = 500_000;

/// Syncs as often as a run of hours would.
const BRISK: Pace = Pace { bytes: 128 << 10, interval: Duration::from_millis(2) };

/// Bytes that depend on the tensor and the position.
fn content(tensor: &NewTensor) -> Vec<u8> {
    let mut state = blake3::hash(tensor.name.as_bytes()).as_bytes().as_chunks().0[0];
    let mut next = || {
        state = u64::from_le_bytes(state)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407)
            .to_le_bytes();
        state[7]
    };
    (0..tensor.bytes()).map(|_| next()).collect()
}

/// Some units of several tensors of different sizes and types; about `kilobytes` each.
fn units(count: usize, kilobytes: u64) -> Vec<Unit> {
    let tensor = |name: String, shape: &[u64], dtype| NewTensor { name, shape: shape.to_vec(), dtype };
    (0..count as u64)
        .map(|i| {
            let mut tensors = vec![
                tensor(format!("u.{i}.weight"), &[1 + i % 5, kilobytes * 256 + i], Dtype::F8E4m3),
                tensor(format!("u.{i}.scale"), &[i % 7 + 1], Dtype::F32),
            ];
            if i % 3 == 0 {
                tensors.push(tensor(format!("u.{i}.norm"), &[3, 1, 5], Dtype::Bf16));
            }
            Unit { tensors }
        })
        .collect()
}

/// Puts what [`content`] says, in pieces of odd sizes, on several threads, and counts the units it made.
struct Maker<'a> {
    units: &'a [Unit],
    made: AtomicUsize,
}

impl<'a> Maker<'a> {
    fn of(units: &'a [Unit]) -> Maker<'a> {
        Maker { units, made: AtomicUsize::new(0) }
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }
}

impl Produce for Maker<'_> {
    fn produce(&self, unit: usize, sink: &Sink<'_>) -> Result<()> {
        self.units[unit].tensors.par_iter().enumerate().rev().try_for_each(|(number, tensor)| {
            let bytes = content(tensor);
            let pieces: Vec<(usize, &[u8])> = bytes.chunks(40_001).enumerate().collect();
            pieces.into_par_iter().rev().try_for_each(|(i, piece)| sink.put(number, i as u64 * 40_001, piece))
        })?;
        self.made.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn options(threads: usize) -> LoadOptions {
    LoadOptions { threads, ..LoadOptions::default() }
}

fn begin(out: &Path) -> Result<Folder> {
    let mut folder = Folder::begin(out, IDENTITY, 1 << 20)?;
    folder.pace = BRISK;
    Ok(folder)
}

/// A whole checkpoint, from the beginning or what is there.
fn write(out: &Path, producer: &dyn Produce, units: &[Unit], threads: usize) -> Result<Written> {
    let mut folder = begin(out)?;
    let written = folder.shards(units, producer, SHARD_BYTES, &options(threads))?;
    folder.json("config.json", &serde_json::json!({}))?;
    folder.finish()?;
    Ok(written)
}

/// Every file of a folder with its bytes, by name.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |item: std::io::Result<fs::DirEntry>| {
        let item = item.unwrap();
        (item.file_name().into_string().unwrap(), fs::read(item.path()).unwrap())
    };
    fs::read_dir(dir).unwrap().map(read).collect()
}

/// Folders that differ, differ in a file: names it instead of printing megabytes.
fn assert_same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in found {
        assert!(*bytes == expected[name], "{name} differs");
    }
}
