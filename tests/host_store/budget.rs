//! The memory that a store takes, measured.

use std::path::Path;
use std::sync::Arc;

use abruzzi::error::Tier;
use abruzzi::experts::ExpertId;
use abruzzi::experts::host::HostStore;
use abruzzi::{Checkpoint, LoadOptions, Synth};

use crate::common::demo;
use crate::truth::{Oldest, Random, options};

/// Set in the process that measures itself.
const MEASURED: &str = "ABRUZZI_TEST_MEASURED_CHECKPOINT";

/// In a process of its own: other tests' memory would be counted.
#[test]
fn memory_stays_within_the_budget() {
    const NAME: &str = "budget::memory_stays_within_the_budget";
    if let Some(path) = std::env::var_os(MEASURED) {
        return measure(Path::new(&path));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    Synth::like(demo().join("config.json").to_str().unwrap())
        .experts(256)
        .write(&path, &LoadOptions::default())
        .unwrap();
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture", "--test-threads=1"])
        .env(MEASURED, &path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout);
    println!("{}", text.lines().find(|line| line.contains("budget")).unwrap_or_default());
    assert!(
        run.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

fn measure(path: &Path) {
    let peak = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() * 1024
    };
    let checkpoint = Arc::new(Checkpoint::open(path).unwrap());
    let slot = checkpoint.record_layout(1).unwrap().size() as u64;
    let all = slot * 4 * 256;
    let before = peak();
    for budget in [slot, all / 10, all / 2] {
        let store =
            HostStore::new(checkpoint.clone(), Some(budget), Box::<Oldest>::default(), options(|_| {}))
                .unwrap();
        let mut random = Random(7);
        for _ in 0..1500 {
            let id = ExpertId::new(1 + random.below(4), random.below(256));
            let record = store.get(id).unwrap();
            store.verify(id, record.as_ref(), Tier::Host, None).unwrap();
        }
        let grown = peak() - before;
        println!("budget {budget} of {all} bytes: grown by {grown}");
        // Threads, read buffers and huge pages' rounding.
        assert!(grown <= budget + (12 << 20), "grown by {grown} with a budget of {budget}");
    }
}
