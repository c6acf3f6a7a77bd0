//! `abruzzi compress` and `abruzzi quantize`: what they make of the demo model.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use abruzzi::compress::{
    CompressReport, ExpertLists, Group, Healing, LayerHealing, Layers, Method, Recipe, Selection, Target,
};
use abruzzi::quant::Format;
use abruzzi::{
    Checkpoint, DeviceChoice, Engine, Error, FaultKind, LoadOptions, ModelConfig, Result, Sampling,
};
use common::{demo, oracle};
use safetensors::SafeTensors;

/// Every tensor of a folder's shards: type, shape, bytes.
type Tensors = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

fn tensors(dir: &Path) -> Tensors {
    let mut all = Tensors::new();
    for item in std::fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let bytes = std::fs::read(&path).unwrap();
            for (name, t) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                all.insert(name, (t.dtype().to_string(), t.shape().to_vec(), t.data().to_vec()));
            }
        }
    }
    all
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path).unwrap()
}

fn write(recipe: &Recipe, source: &Path, out: &Path) -> Result<CompressReport> {
    recipe.write(&Checkpoint::open(source)?, out, &LoadOptions::default())
}

fn to(source: &Path, format: Format) -> Recipe {
    Recipe::new(Selection::everything(open(source).config())).target(Target::new(format, false).unwrap())
}

/// Verifies, and continues a text without a non-finite value.
#[track_caller]
fn works(dir: &Path) {
    let report = abruzzi::verify(dir, &LoadOptions::default()).unwrap();
    assert_eq!(report.faults, []);
    assert!(report.skipped.0.is_empty());
    let engine = Engine::builder(dir).device(DeviceChoice::Cpu).load().unwrap();
    let mut session = engine.session(Default::default()).unwrap();
    let mut sampling = Sampling::default();
    (sampling.temperature, sampling.max_tokens) = (0.0, 4);
    let tokens: Vec<_> =
        session.generate("In the beginning", &sampling).unwrap().map(Result::unwrap).collect();
    assert!(!tokens.is_empty());
}

#[test]
fn everything_kept_is_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for (i, source) in
        [demo(), oracle("k2-int4"), oracle("v3-groups-fp8"), oracle("k2-bf16")].iter().enumerate()
    {
        let out = dir.path().join(i.to_string());
        let all = Recipe::new(Selection::everything(open(source).config()));
        let report = write(&all, source, &out).unwrap();
        let (before, after) = (tensors(source), tensors(&out));
        assert!(after.iter().all(|(name, tensor)| before[name] == *tensor));
        let left = before.keys().filter(|name| !after.contains_key(*name));
        assert!(left.into_iter().all(|name| name.ends_with("inv_freq")));
        assert_eq!(report.tensors, after.len());
        let estimate = all.estimate(source, Some(&open(source))).unwrap();
        assert_eq!(estimate.bytes, report.bytes);
        if i != 3 {
            assert_eq!(all.estimate(&source.join("config.json"), None).unwrap().bytes, report.bytes);
        }
        let config = |dir: &Path| format!("{:?}", ModelConfig::from_file(dir).unwrap());
        assert_eq!(config(source), config(&out));
    }
    let copied = dir.path().join("0");
    for name in ["tiktoken.model", "README.md"] {
        assert_eq!(std::fs::read(demo().join(name)).unwrap(), std::fs::read(copied.join(name)).unwrap());
    }
    works(&copied);
}
