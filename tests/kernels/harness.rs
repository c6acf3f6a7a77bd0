//! One GPU for all tests of this binary, the schedules they run under, random inputs, comparisons.
#![allow(dead_code, reason = "each family uses its own part")]

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard, PoisonError};

use abruzzi::device::Precision;
use abruzzi::device::cuda::{CudaTensor, Gpu};
use rand_core::{Rng as _, SeedableRng};
use rand_pcg::Pcg64Mcg;

#[path = "../common/emulator.rs"]
mod emulator;

pub use emulator::{configure, real};

/// Whether to leave out what only more of the same would show: under compute-sanitizer, in a dry run.
pub fn quick() -> bool {
    std::env::var_os("ABRUZZI_TEST_QUICK").is_some_and(|v| v == "1")
}

/// What to run of `all`: the first `few` if that is what a quick run is to see.
pub fn some_of<T>(all: &[T], few: usize) -> &[T] {
    if quick() { &all[..few.min(all.len())] } else { all }
}

/// The emulator's settings are the process's: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

/// A GPU, and the right to change how it is emulated.
pub struct Session {
    pub gpu: Gpu,
    _turn: MutexGuard<'static, ()>,
}

/// Opens the GPU for one test; the next waits until it is dropped.
pub fn session() -> Session {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    emulator::install();
    // A failed test may have left an error in the context.
    configure(r#"{"reset": true, "checks": true, "counters": true, "schedule": "eager", "fp8": "exact"}"#);
    Session { gpu: Gpu::open_with(0, replacements()).expect("a GPU"), _turn: turn }
}

/// `ABRUZZI_TEST_REPLACE=name=file`: run with this PTX instead of an image's own code. How mutants are tested.
fn replacements() -> HashMap<&'static str, Vec<u8>> {
    let Ok(text) = std::env::var("ABRUZZI_TEST_REPLACE") else { return HashMap::new() };
    let (image, file) = text.split_once('=').expect("name=file");
    let mut ptx = std::fs::read(file).unwrap();
    ptx.push(0);
    HashMap::from([(&*image.to_owned().leak(), ptx)])
}

impl Session {
    /// Runs `test` under every schedule: eager, lazy, random with three seeds; a quick run takes one of them. Once on a
    /// real GPU.
    pub fn every_schedule(&self, mut test: impl FnMut(&Gpu)) {
        if real() {
            return test(&self.gpu);
        }
        for schedule in some_of(&["lazy", "eager", "random:1", "random:2", "random:3"], 1) {
            configure(&format!(r#"{{"schedule": "{schedule}"}}"#));
            eprintln!("schedule {schedule}");
            test(&self.gpu);
        }
        configure(r#"{"schedule": "eager"}"#);
    }

    /// Runs `work` with neither checks nor counters: for many inputs. No change on a real GPU.
    pub fn fast<R>(&self, work: impl FnOnce(&Gpu) -> R) -> R {
        if real() {
            return work(&self.gpu);
        }
        configure(r#"{"checks": false, "counters": false}"#);
        let result = work(&self.gpu);
        configure(r#"{"checks": true, "counters": true}"#);
        result
    }

    /// Runs `work` and returns what each kernel counted meanwhile, by name; `None` on a real GPU.
    pub fn counted(&self, work: impl FnOnce(&Gpu)) -> Option<serde_json::Map<String, serde_json::Value>> {
        if real() {
            work(&self.gpu);
            return None;
        }
        let before = counters();
        work(&self.gpu);
        self.gpu.synchronize().unwrap();
        let mut now = counters();
        for (kernel, counts) in &mut now {
            if let Some(old) = before.get(kernel) {
                subtract(counts, old);
            }
        }
        now.retain(|_, counts| counts["launches"] != 0);
        Some(now)
    }
}

fn counters() -> serde_json::Map<String, serde_json::Value> {
    let file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    emulator::write_counters(file.path());
    let rows: Vec<serde_json::Map<String, serde_json::Value>> =
        serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
    rows.into_iter().map(|row| (row["kernel"].as_str().unwrap().to_owned(), row.into())).collect()
}

fn subtract(now: &mut serde_json::Value, before: &serde_json::Value) {
    use serde_json::Value;
    match (now, before) {
        (Value::Object(now), Value::Object(before)) => {
            for (key, value) in now {
                if let Some(old) = before.get(key) {
                    subtract(value, old);
                }
            }
        }
        (now @ Value::Number(_), Value::Number(old)) => {
            if let (Some(new), Some(old)) = (now.as_u64(), old.as_u64()) {
                *now = (new - old).into();
            }
        }
        _ => {}
    }
}

/// Fresh random numbers. The seed is on stderr, which a failing test shows; `ABRUZZI_TEST_SEED` repeats a run.
pub struct Random(Pcg64Mcg);

pub fn random() -> Random {
    let fresh =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("ABRUZZI_TEST_SEED").ok().map_or_else(fresh, |s| s.parse().unwrap());
    eprintln!("ABRUZZI_TEST_SEED={seed}");
    Random::seeded(seed)
}

impl Random {
    /// The same numbers every time, for what must not depend on them.
    pub fn seeded(seed: u64) -> Random {
        Random(Pcg64Mcg::seed_from_u64(seed))
    }

    pub fn bits(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % end as u64) as usize
    }

    /// In [−1, 1).
    pub fn unit(&mut self) -> f32 {
        self.bits() as i32 as f32 / (1u32 << 31) as f32
    }

    /// About normal, mean 0 and deviation 1.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() / 2.0
    }

    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }
}

/// A tensor of fresh values, and those values as the device has them (rounded to its precision).
pub fn random_tensor(
    gpu: &Gpu,
    random: &mut Random,
    rows: usize,
    cols: usize,
    precision: Precision,
) -> (CudaTensor, Vec<f32>) {
    let mut values = random.normals(rows * cols);
    if precision == Precision::Working {
        for v in &mut values {
            *v = half::bf16::from_f32(*v).to_f32();
        }
    }
    (CudaTensor::upload(gpu, cols, precision, &values).unwrap(), values)
}

/// An output tensor whose memory is all NaN, so that what a kernel leaves unwritten shows.
pub fn poisoned_tensor(gpu: &Gpu, rows: usize, cols: usize, precision: Precision) -> CudaTensor {
    let mut tensor = CudaTensor::new(gpu, rows, cols, precision).unwrap();
    tensor.memory_mut().all_mut().fill_bytes(gpu, 0xff).unwrap();
    tensor
}

pub fn download(gpu: &Gpu, tensor: &CudaTensor) -> Vec<f32> {
    let mut values = Vec::new();
    tensor.download(gpu, &mut values).unwrap();
    values
}

/// 1 − 2Σxy / Σ(x² + y²) in f64: 0 for equal vectors; the measure of DeepGEMM's tests.
pub fn difference(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut product, mut squares) = (0.0, 0.0);
    for (&x, &y) in got.iter().zip(want) {
        let (x, y) = (f64::from(x), f64::from(y));
        product += x * y;
        squares += x * x + y * y;
    }
    if squares == 0.0 { 0.0 } else { 1.0 - 2.0 * product / squares }
}

/// Holds `got` to `want` [.., cols]: the whole by [`difference`], each element within `relative` of the largest value;
/// NaN and infinities stand where they should. Names the first wrong coordinate.
pub fn assert_close(what: impl Debug, got: &[f32], want: &[f32], cols: usize, whole: f64, relative: f32) {
    assert_eq!(got.len(), want.len(), "{what:?}: elements");
    let finite = |v: &&f32| v.is_finite();
    let largest = want.iter().filter(finite).fold(0.0f32, |m, v| m.max(v.abs()));
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let (row, col) = (i / cols, i % cols);
        let same = if w.is_nan() { g.is_nan() } else { g == w || (g - w).abs() <= relative * largest };
        assert!(same, "{what:?} [{row}, {col}]: {g} for {w}");
    }
    let both = |(g, w): &(&f32, &f32)| g.is_finite() && w.is_finite();
    let (got, want): (Vec<f32>, Vec<f32>) = got.iter().zip(want).filter(both).unzip();
    let found = difference(&got, &want);
    assert!(found < whole, "{what:?}: difference {found:e}, at most {whole:e}");
}
