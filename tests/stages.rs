//! Compressing in stages: measured, healed, interrupted and continued.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use abruzzi::compress::{Compression, Layers, Method, Step, Target, Tell, Text};
use abruzzi::{Checkpoint, DeviceChoice, Engine, Error, LoadOptions, Sampling, SessionOptions};

use common::demo;

/// Six windows: five to fit to, one to judge on.
fn text() -> Text {
    let text = std::fs::read_to_string(demo().join("heldout.txt")).unwrap();
    let ids = abruzzi::Tokenizer::from_dir(&demo(), 4096).unwrap().encode(&text[..12_000]).unwrap();
    Text::of_tokens(&ids[..6 * 257]).unwrap()
}

fn usage(experts: &[usize], heal: bool) -> Compression {
    Compression {
        layers: None,
        experts: experts.to_vec(),
        method: Method::Usage,
        lists: None,
        target: Target::AS_IS,
        allow_saturation: 0.0,
        text: Some(text()),
        heal,
    }
}

fn silent() -> Tell {
    Arc::new(|_, _| {})
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let items = std::fs::read_dir(dir).unwrap().map(|item| item.unwrap().path());
    items.map(|path| (path.file_name().unwrap().into(), std::fs::read(&path).unwrap())).collect()
}

fn generates(dir: &Path) {
    let engine = Engine::builder(dir).device(DeviceChoice::Cpu).load().unwrap();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let mut sampling = Sampling::default();
    (sampling.temperature, sampling.max_tokens) = (0.0, 8);
    let text: String =
        session.generate("In the beginning", &sampling).unwrap().map(|t| t.unwrap().text).collect();
    assert!(!text.is_empty());
}

#[test]
fn stages_that_were_interrupted_end_as_if_they_had_not_been() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    let compression = usage(&[24, 12], true);
    let made = compression.run(&demo(), &whole, &LoadOptions::default(), &silent()).unwrap();

    // The source, then a row a stage, each smaller and none better than the source.
    assert_eq!(made.rows.len(), 3);
    assert!(made.rows.windows(2).all(|pair| pair[0].size.bytes > pair[1].size.bytes));
    assert!(made.rows[1..].iter().all(|row| row.perplexity > 0.98 * made.rows[0].perplexity));
    let fits = made.healed.unwrap();
    assert!(fits.layers.iter().flatten().all(|fit| fit.error_after <= fit.error_before));
    let stages = dir.path().join("whole.stages");
    for file in ["stages.svg", "stages.txt", "stages.ndjson", "1/config.json"] {
        assert!(stages.join(file).is_file(), "{file}");
    }
    assert!(!stages.join("1.unhealed").exists() && !stages.join("2.unhealed").exists());
    assert!(abruzzi::verify(&whole, &LoadOptions::default()).unwrap().faults.is_empty());
    assert_eq!(Checkpoint::open(&whole).unwrap().config().moe.num_experts, 12);
    generates(&whole);

    // Stopped at one step after the other, a new run each time.
    let mut runs = 0;
    loop {
        let (cancel, steps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut options = LoadOptions::default();
        options.cancel = Some(cancel.clone());
        let stop_after = 7 + 9 * runs;
        let tell: Tell = Arc::new(move |_, step| {
            let counted = !matches!(step, Step::Write(_));
            if counted && steps.fetch_add(1, Ordering::Relaxed) == stop_after {
                cancel.store(true, Ordering::Relaxed);
            }
        });
        match compression.run(&demo(), &cut, &options, &tell) {
            Ok(_) => break,
            Err(Error::Cancelled) => assert!(!cut.exists()),
            Err(other) => panic!("{other}"),
        }
        runs += 1;
    }
    assert!(runs >= 2, "{runs}");
    assert_eq!(files(&whole), files(&cut));

    // Another command must not take these stages for its own.
    std::fs::remove_dir_all(&cut).unwrap();
    let other = usage(&[24, 16], true).run(&demo(), &cut, &LoadOptions::default(), &silent());
    assert!(matches!(other, Err(Error::Unfinished { .. })), "{:?}", other.map(|made| made.rows));
}

#[test]
fn layers_are_chosen_by_influence_and_answered_for() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let compression = Compression { layers: Some(Layers::Count(4)), ..usage(&[], true) };
    let made = compression.run(&demo(), &out, &LoadOptions::default(), &silent()).unwrap();
    assert!(!dir.path().join("out.stages").exists());
    let kept: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("abruzzi-provenance.json")).unwrap()).unwrap();
    // Layer 2 changes the stream least: 0.058 against 0.088, 0.17, 0.25 and 0.84 on 4,112 tokens.
    assert_eq!(kept["selection"]["layers"], serde_json::json!([0, 1, 3, 4]));
    assert_eq!(kept["proof"]["finite_logits"]["texts"], 3);
    let fits = made.healed.unwrap();
    // The layer in front of the one that is gone has more to make good than itself.
    let before: Vec<f64> = fits.layers.iter().flatten().map(|fit| fit.error_before).collect();
    assert!(before[0] > 1e-3, "{before:?}");
    assert!(fits.layers.iter().flatten().all(|fit| fit.error_after <= fit.error_before));
    generates(&out);
}

#[test]
fn what_contradicts_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = |compression: Compression| {
        let out = dir.path().join("out");
        let made = compression.run(&demo(), &out, &LoadOptions::default(), &silent());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        made.map(|made| made.report).unwrap_err().to_string()
    };
    let said = run(Compression { text: None, ..usage(&[16], false) });
    assert!(said.contains("`text` is not given"), "{said}");
    let said = run(Compression { text: None, method: Method::Similarity, ..usage(&[16], true) });
    assert!(said.contains("`text` is not given"), "{said}");
    let said = run(usage(&[16, 16], false));
    assert!(said.contains("`steps` goes from 16 to 16"), "{said}");
    let said = run(Compression { layers: Some(Layers::Count(9)), ..usage(&[], false) });
    assert!(said.contains("`layers` is 9, expected 1 to 5"), "{said}");
    let said = run(usage(&[3], false));
    assert!(said.contains("`experts` is 3, expected 4"), "{said}");
}
