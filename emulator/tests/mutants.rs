//! Faults that people ship, one a kernel: each is caught in some schedule, and the healthy originals in none.
//!
//! Caught means that a finding of the expected kind ends the launch, or that the result is wrong: an emulator that ran
//! everything at once and in order would let most of these pass with right results.

mod common;

use std::collections::BTreeMap;

use common::{Params, bytes, download, ptx, schedules, upload};
use cuda_emulator::check::Kind;
use cuda_emulator::exec::{Launch, Module};
use cuda_emulator::tensor::tensor_map::{Request, encode};
use cuda_emulator::{Memory, Settings};

/// Seeds of each schedule.
const SEEDS: u64 = 5;

/// What each mutant is to be caught by: its finding's kind, or a wrong result (`None`).
#[rustfmt::skip]
const MUTANTS: [(&str, &str, &[Option<Kind>]); 34] = [
    ("reduce_1", "reads one element too far", &[Some(Kind::OutOfBounds)]),
    ("reduce_2", "misaligned load", &[Some(Kind::Misaligned)]),
    ("reduce_3", "shared memory nobody wrote", &[Some(Kind::Uninitialised)]),
    ("reduce_4", "no barrier between write and read", &[Some(Kind::SharedRace), Some(Kind::Uninitialised)]),
    ("reduce_5", "no barrier between steps", &[Some(Kind::SharedRace)]),
    ("reduce_6", "shuffle of half a warp with a full mask", &[Some(Kind::Convergence), Some(Kind::Deadlock)]),
    ("reduce_7", "writes far outside", &[Some(Kind::OutOfBounds)]),
    ("reduce_8", "writes just behind the end", &[Some(Kind::OutOfBounds)]),
    ("reduce_9", "trap", &[Some(Kind::Trap)]),
    ("reduce_10", "barrier count nobody reaches", &[Some(Kind::Deadlock)]),
    ("reduce_11", "waits for what never comes", &[Some(Kind::RunawaySpin)]),
    ("reduce_12", "lane not in its own mask", &[Some(Kind::Convergence)]),
    ("pipeline_1", "no cp.async.wait", &[Some(Kind::Uninitialised), Some(Kind::SharedRace)]),
    ("pipeline_2", "cp.async.wait_group counts one too many", &[Some(Kind::Uninitialised), Some(Kind::SharedRace)]),
    ("pipeline_3", "no barrier behind the wait", &[Some(Kind::SharedRace), Some(Kind::Uninitialised)]),
    ("pipeline_4", "copy overwrites what is being read", &[Some(Kind::SharedRace)]),
    ("gemm_1", "mbarrier not initialised", &[Some(Kind::Mbarrier)]),
    ("gemm_2", "more arrivals than counted", &[Some(Kind::Mbarrier), Some(Kind::SharedRace)]),
    ("gemm_3", "stage reused before it is empty", &[Some(Kind::SharedRace), Some(Kind::Mbarrier), Some(Kind::Deadlock)]),
    ("gemm_4", "expect_tx too small", &[Some(Kind::Mbarrier)]),
    ("gemm_5", "expect_tx too large", &[Some(Kind::Deadlock)]),
    ("gemm_6", "misplaced box", &[Some(Kind::TensorMap)]),
    ("gemm_7", "no tensor map at the address", &[Some(Kind::TensorMap)]),
    ("gemm_8", "copy in flight at exit", &[Some(Kind::ExitInFlight)]),
    ("gemm_9", "flipped parity", &[Some(Kind::SharedRace), Some(Kind::Uninitialised), Some(Kind::Deadlock), Some(Kind::Mbarrier)]),
    ("gemm_10", "full barrier not waited for", &[Some(Kind::SharedRace), Some(Kind::Uninitialised), Some(Kind::Mbarrier)]),
    ("gemm_11", "descriptor with undefined bits", &[Some(Kind::Wgmma)]),
    ("gemm_12", "another swizzle than the copy's", &[None, Some(Kind::OutOfBounds), Some(Kind::Uninitialised)]),
    ("gemm_13", "last wgmma group not waited for", &[Some(Kind::WgmmaAccumulator), Some(Kind::SharedRace)]),
    ("gemm_14", "no wgmma.wait_group", &[Some(Kind::WgmmaAccumulator), Some(Kind::SharedRace)]),
    ("gemm_15", "stages never given back", &[Some(Kind::Deadlock)]),
    ("gemm_16", "tile stored before it is written", &[Some(Kind::SharedRace), Some(Kind::Uninitialised)]),
    ("gemm_17", "block ends before its store", &[Some(Kind::ExitInFlight)]),
    ("gemm_18", "stage given back right before the wait for its reader", &[Some(Kind::SharedRace)]),
];

/// Allocates a kernel's arguments anew; returns its parameters and the output's address.
type Setup = Box<dyn Fn(&Memory) -> (Vec<u8>, u64)>;

/// A kernel's inputs, launch and expected output.
struct Case {
    launch: Launch,
    setup: Setup,
    expected: Vec<u8>,
}

fn reduce() -> Case {
    let x: Vec<i32> = (0..1000).map(|i| i * 7 % 1001 - 500).collect();
    let sums: Vec<i32> = x.chunks(256).map(|c| c.iter().sum()).collect();
    let setup = move |memory: &Memory| {
        let out = memory.arena().allocate(16, "out".into()).unwrap();
        let x = upload(memory, "x", &bytes(&x));
        (Params::default().add(x).add(out).add(1000i32).0, out)
    };
    Case { launch: Launch::linear(4, 256), setup: Box::new(setup), expected: bytes(&sums) }
}

fn pipeline() -> Case {
    let x: Vec<f32> = (0..3 * 1024).map(|i| i as f32).collect();
    let y: Vec<f32> = (0..3 * 1024).map(|i| 2.0 * (i / 128 * 128 + 127 - i % 128) as f32).collect();
    let setup = move |memory: &Memory| {
        let (x, y) =
            (upload(memory, "x", &bytes(&x)), memory.arena().allocate(3 * 4096, "y".into()).unwrap());
        (Params::default().add(x).add(y).add(0i32).0, y)
    };
    Case { launch: Launch::linear(3, 128), setup: Box::new(setup), expected: bytes(&y) }
}

fn gemm() -> Case {
    const K: usize = 64 * 7;
    let small = |i: usize, m: usize| (i * 7919 % m) as f32 - (m / 2) as f32;
    let a: Vec<f32> = (0..64 * K).map(|i| small(i, 9)).collect();
    let b: Vec<f32> = (0..64 * K).map(|i| small(i * 3 + 1, 7)).collect();
    let dot = |r: usize, c: usize| (0..K).map(|k| a[r * K + k] * b[c * K + k]).sum::<f32>();
    let c: Vec<f32> = (0..64 * 64).map(|i| dot(i / 64, i % 64)).collect();
    let half = |v: &[f32]| bytes(&v.iter().map(|x| (x.to_bits() >> 16) as u16).collect::<Vec<_>>());
    let (a, b) = (half(&a), half(&b));
    let setup = move |memory: &Memory| {
        let out = memory.arena().allocate(64 * 64 * 4, "C".into()).unwrap();
        let map = |address, dims: [u64; 2], data_type, swizzle| {
            let stride = dims[0] * if data_type == 9 { 2 } else { 4 };
            let map = encode(&Request {
                data_type,
                rank: 2,
                address,
                dims: &dims,
                strides: &[stride],
                box_dims: &[64, 64],
                element_strides: &[1, 1],
                interleave: 0,
                swizzle,
                l2_promotion: 0,
                oob_fill: 0,
            });
            map.unwrap()
        };
        let a = map(upload(memory, "A", &a), [K as u64, 64], 9, 3);
        let b = map(upload(memory, "B", &b), [K as u64, 64], 9, 3);
        let c = map(out, [64, 64], 7, 0);
        (Params::default().add(a).add(b).add(c).add(K as i32).0, out)
    };
    let dynamic_shared = 3 * 2 * 64 * 64 * 2 + 64 * 64 * 4;
    let launch = Launch { dynamic_shared, ..Launch::linear(1, 160) };
    Case { launch, setup: Box::new(setup), expected: bytes(&c) }
}

/// What came of one launch: a finding, or whether the result was right.
fn outcome(module: &Module, kernel: &str, case: &Case, settings: &Settings) -> Result<bool, Kind> {
    let memory = Memory::new(64 << 20).unwrap();
    let (params, out) = (case.setup)(&memory);
    let program = module.kernel(kernel).unwrap_or_else(|| panic!("no kernel {kernel}"));
    match program.launch(&case.launch, &params, &memory, settings) {
        Ok(_) => Ok(download::<u8>(out, case.expected.len()) == case.expected),
        Err(finding) => {
            assert_eq!(finding.place.kernel, kernel, "{finding}");
            assert!(finding.place.ptx_line > 0 && finding.place.source.is_some(), "{finding}");
            Err(finding.kind)
        }
    }
}

#[test]
fn every_mutant_is_caught_and_no_original() {
    let text = ptx("mutants.cu", &[]);
    let module = Module::load(&text, &Memory::new(64 << 20).unwrap()).unwrap();
    let cases = BTreeMap::from([("reduce", reduce()), ("pipeline", pipeline()), ("gemm", gemm())]);
    let schedules = schedules(SEEDS);

    let mut false_alarms = Vec::new();
    for (family, case) in &cases {
        for (name, settings) in &schedules {
            let got = outcome(&module, &format!("{family}_0"), case, settings);
            if got != Ok(true) {
                false_alarms.push(format!("{family} {name}: {got:?}"));
            }
        }
        let fast = outcome(&module, &format!("{family}_0"), case, &Settings::fast());
        assert_eq!(fast, Ok(true), "{family} without checks");
    }
    assert!(false_alarms.is_empty(), "healthy kernels: {false_alarms:#?}");

    println!("{:<12} {:<42} {:<10} caught by", "mutant", "fault", "schedules");
    let (mut missed, mut odd) = (Vec::new(), Vec::new());
    for (kernel, fault, expected) in MUTANTS {
        let case = &cases[kernel.split('_').next().unwrap()];
        let (mut caught, mut by) = (0, std::collections::BTreeSet::new());
        for (name, settings) in &schedules {
            match outcome(&module, kernel, case, settings) {
                Ok(true) => {}
                Ok(false) => {
                    if !expected.contains(&None) {
                        odd.push(format!("{kernel} {name}: only a wrong result"));
                    }
                    caught += 1;
                    by.insert(None);
                }
                Err(kind) => {
                    if !expected.contains(&Some(kind)) {
                        odd.push(format!("{kernel} {name}: {kind:?}, expected {expected:?}"));
                    }
                    caught += 1;
                    by.insert(Some(kind));
                }
            }
        }
        let how: Vec<String> =
            by.iter().map(|k| k.map_or("wrong result".into(), |k| format!("{k:?}"))).collect();
        println!("{kernel:<12} {fault:<42} {caught:>2} of {:<4} {}", schedules.len(), how.join(", "));
        if caught == 0 {
            missed.push(kernel);
        }
    }
    println!(
        "{} of {} mutants caught, {} false alarms over {} healthy runs",
        MUTANTS.len() - missed.len(),
        MUTANTS.len(),
        false_alarms.len(),
        cases.len() * schedules.len()
    );
    assert!(missed.is_empty(), "missed: {missed:?}");
    assert!(odd.is_empty(), "caught by something else: {odd:#?}");
}

/// Faults of the program that launches a healthy kernel.
#[test]
fn faults_of_the_host_are_caught() {
    let module = Module::load(&ptx("mutants.cu", &[]), &Memory::new(64 << 20).unwrap()).unwrap();
    let program = module.kernel("reduce_0").unwrap();
    let case = reduce();
    let settings = Settings::default();
    let launch = |launch: &Launch, prepare: &dyn Fn(&Memory, u64) -> (u64, usize)| {
        let memory = Memory::new(64 << 20).unwrap();
        let out = memory.arena().allocate(16, "out".into()).unwrap();
        let x = memory.arena().allocate(4000, "x".into()).unwrap();
        let (x, keep) = prepare(&memory, x);
        let mut params = Params::default().add(x).add(out).add(1000i32).0;
        params.truncate(keep);
        program.launch(launch, &params, &memory, &settings).map(|_| ()).map_err(|f| f.kind)
    };
    let written = |memory: &Memory, x: u64| {
        // SAFETY: freshly allocated with these many bytes.
        unsafe { std::ptr::write_bytes(x as *mut u8, 0, 4000) };
        memory.arena().mark_valid(x, 4000);
    };
    let healthy = |memory: &Memory, x: u64| {
        written(memory, x);
        (x, usize::MAX)
    };
    assert_eq!(launch(&case.launch, &healthy), Ok(()));
    let freed = |memory: &Memory, x: u64| {
        written(memory, x);
        assert!(memory.arena().free(x));
        (x, usize::MAX)
    };
    assert_eq!(launch(&case.launch, &freed), Err(Kind::UseAfterFree));
    assert_eq!(launch(&case.launch, &|_, x| (x, usize::MAX)), Err(Kind::Uninitialised));
    let nowhere = |memory: &Memory, x: u64| {
        written(memory, x);
        (0x1000, usize::MAX)
    };
    assert_eq!(launch(&case.launch, &nowhere), Err(Kind::OutOfBounds));
    let short = |memory: &Memory, x: u64| {
        written(memory, x);
        (x, 16)
    };
    assert_eq!(launch(&case.launch, &short), Err(Kind::LaunchConfig));
    let too_much = Launch { dynamic_shared: 232_448, ..case.launch };
    assert_eq!(launch(&too_much, &healthy), Err(Kind::LaunchConfig));
    let too_many = Launch { block: [512, 1, 1], ..case.launch };
    assert_eq!(launch(&too_many, &healthy), Err(Kind::LaunchConfig));
}
