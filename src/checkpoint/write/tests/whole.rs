//! What a run without trouble leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use safetensors::SafeTensors;

use super::*;
use crate::checkpoint::write::layout::Layout;
use crate::checkpoint::{INDEX_FILE, parse_index};

#[test]
fn every_tensor_is_where_the_index_says_with_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let units = units(30, 90);
    let written = write(&out, &Maker::of(&units), &units, 2).unwrap();
    let files = files(&out);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(files.len(), written.shards + 2, "{:?}", files.keys());
    assert_eq!(files["config.json"], b"{}\n");

    let index = parse_index(&files[INDEX_FILE][..]).unwrap();
    assert!(written.shards > 4);
    assert_eq!((index.shards.len(), index.map.len()), (written.shards, written.tensors));
    assert_eq!(index.total_size, Some(written.bytes));
    let mut hasher = blake3::Hasher::new();
    let (mut tensors, mut bytes) = (0, 0);
    for tensor in units.iter().flat_map(|u| &u.tensors) {
        let file = &files[&index.shards[index.map[tensor.name.as_str()] as usize]];
        let parsed = SafeTensors::deserialize(file).unwrap();
        let found = parsed.tensor(&tensor.name).unwrap();
        assert_eq!(found.shape().iter().map(|&n| n as u64).collect::<Vec<_>>(), tensor.shape);
        assert_eq!(found.dtype().to_string(), tensor.dtype.name());
        assert!(found.data() == content(tensor), "{}", tensor.name);
        // The hash, as `Written::hash` describes it.
        for text in [&tensor.name, tensor.dtype.name()] {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        hasher.update(&(tensor.shape.len() as u64).to_le_bytes());
        for n in &tensor.shape {
            hasher.update(&n.to_le_bytes());
        }
        hasher.update(blake3::hash(found.data()).as_bytes());
        tensors += 1;
        bytes += found.data().len() as u64;
    }
    assert_eq!((tensors, bytes, hasher.finalize()), (written.tensors, written.bytes, written.hash));
}

#[test]
fn neither_threads_nor_shards_change_the_hash() {
    let dir = tempfile::tempdir().unwrap();
    let units = units(12, 60);
    let one = write(&dir.path().join("one"), &Maker::of(&units), &units, 1).unwrap();
    let many = write(&dir.path().join("many"), &Maker::of(&units), &units, 5).unwrap();
    assert_eq!(one, many);
    assert_same(&files(&dir.path().join("one")), &files(&dir.path().join("many")));
    let mut folder = begin(&dir.path().join("single")).unwrap();
    let single = folder.shards(&units, &Maker::of(&units), u64::MAX, &options(2)).unwrap();
    assert_eq!((single.shards, single.hash), (1, one.hash));
    assert!(folder.finish().unwrap().join("model-00001-of-00001.safetensors").exists());
}

#[test]
fn headers_and_index_are_these_bytes() {
    let tensor =
        |name: &str, shape: &[u64], dtype| NewTensor { name: name.into(), shape: shape.into(), dtype };
    let units = [
        Unit { tensors: vec![tensor("b", &[2, 3], Dtype::Bf16), tensor("a\"", &[], Dtype::F32)] },
        Unit { tensors: vec![] },
        Unit { tensors: vec![tensor("c", &[5], Dtype::I32)] },
    ];
    let layout = Layout::of(&units, 35).unwrap();
    assert_eq!(layout.shards.len(), 2);
    let json = r#"{"a\"":{"data_offsets":[12,16],"dtype":"F32","shape":[]},"b":{"data_offsets":[0,12],"dtype":"BF16","shape":[2,3]}}"#;
    let padded = format!("{json:<width$}", width = json.len().next_multiple_of(8));
    let expected = [&(padded.len() as u64).to_le_bytes(), padded.as_bytes()].concat();
    assert_eq!(layout.header(0), expected);
    assert_eq!(layout.shards[0].len(), expected.len() as u64 + 16);
    let index = serde_json::to_string(&layout.index()).unwrap();
    let one = "model-00001-of-00002.safetensors";
    let two = "model-00002-of-00002.safetensors";
    let map = format!(r#"{{"a\"":"{one}","b":"{one}","c":"{two}"}}"#);
    assert_eq!(index, format!(r#"{{"metadata":{{"total_size":36}},"weight_map":{map}}}"#));
}

#[test]
fn a_unit_is_never_divided_and_a_shard_never_too_large_without_need() {
    let units = units(40, 30);
    for limit in [0, 1, 20_000, 100_000, 1_000_000, u64::MAX] {
        let layout = Layout::of(&units, limit).unwrap();
        let mut next = 0;
        for (number, shard) in layout.shards.iter().enumerate() {
            assert_eq!(shard.units.start, next, "{limit}");
            next = shard.units.end;
            let mut offset = 0;
            for unit in shard.units.clone() {
                assert_eq!((layout.places[unit].shard, layout.places[unit].offset), (number, offset));
                offset += units[unit].bytes();
            }
            assert_eq!(offset, shard.data);
            assert!(shard.data <= limit || shard.units.len() == 1, "{limit}");
            // The next unit would not have fitted.
            assert!(next == units.len() || shard.data + units[next].bytes() > limit, "{limit}");
        }
        assert_eq!(next, units.len());
    }
    assert_eq!(Layout::of(&[], 1).unwrap().shards.len(), 0);
}

#[test]
fn progress_counts_every_byte_once() {
    let dir = tempfile::tempdir().unwrap();
    let units = units(10, 50);
    let bytes: u64 = units.iter().map(Unit::bytes).sum();
    let (calls, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (count, highest) = (calls.clone(), most.clone());
    let mut options = options(3);
    options.progress = Some(Arc::new(move |p| {
        assert!(p.bytes_total == bytes && p.bytes_done <= bytes);
        count.fetch_add(1, Ordering::Relaxed);
        highest.fetch_max(p.bytes_done, Ordering::Relaxed);
    }));
    let mut folder = begin(&dir.path().join("out")).unwrap();
    folder.shards(&units, &Maker::of(&units), SHARD_BYTES, &options).unwrap();
    assert_eq!(most.load(Ordering::Relaxed), bytes);
    assert!(calls.load(Ordering::Relaxed) >= 20);
}

#[test]
fn small_files_come_along() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("tokenizer");
    let bytes = vec![3u8; 3 << 20];
    std::fs::write(&source, &bytes).unwrap();
    let mut folder = begin(&dir.path().join("out")).unwrap();
    folder.json("x", &"longer than what follows").unwrap();
    folder.json("x", &"short").unwrap();
    folder.json("y.json", &serde_json::json!({"a": [1]})).unwrap();
    folder.copy_file("tiktoken.model", &source).unwrap();
    let files = files(folder.finish().unwrap());
    assert_eq!(files.keys().collect::<Vec<_>>(), ["tiktoken.model", "x", "y.json"]);
    assert_eq!(files["x"], b"\"short\"\n");
    assert_eq!(files["y.json"], b"{\n  \"a\": [\n    1\n  ]\n}\n");
    assert!(files["tiktoken.model"] == bytes);
    folder.abandon().unwrap();
    assert!(dir.path().join("out/x").exists());
}
