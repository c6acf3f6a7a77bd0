//! Faults on purpose, wherever experts come from: the tokens are the CPU's or there is a named error, after which the engine
//! goes on or says that it is lost. Nothing hangs.
//!
//! Every step of a generation is struck, by one kind of fault after the other; `ABRUZZI_TEST_FULL=1` has every kind strike
//! every step.
#![cfg(feature = "cuda")]

mod common;
#[path = "common/emulator.rs"]
mod emulator;
#[path = "common/timeline.rs"]
mod timeline;

use std::collections::BTreeMap;

use abruzzi::error::Tier;
use abruzzi::experts::fault::{Faults, Point};
use abruzzi::{DeviceChoice, Engine, EngineBuilder, Error, SessionOptions};
use common::checkpoint;
use timeline::{RECORD_BYTES, STEPS, Watchdog, generate, quiet, session};

/// Experts of the demo model that fit the GPU and host memory, of 4 layers of 32.
const SLOTS: usize = 16;
const RECORDS: u64 = 24;

fn full() -> bool {
    std::env::var_os("ABRUZZI_TEST_FULL").is_some_and(|v| v == "1")
}

fn cuda() -> EngineBuilder {
    emulator::install();
    quiet();
    Engine::builder(checkpoint("demo")).device(DeviceChoice::Cuda(0)).expert_slots(SLOTS).checksums(true)
}

/// Few slots and little host memory, so that every tier is used.
fn short(device: DeviceChoice, cpu_share: bool, faults: &Faults) -> EngineBuilder {
    let builder = cuda().device(device).host_budget(RECORDS * RECORD_BYTES).cpu_share(cpu_share);
    builder.faults(faults.clone())
}

/// What a fault must come to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    Recovery,
    /// An error that names the expert and this tier.
    Expert(Tier),
    /// An error that names layer and expert of a NaN.
    NonFinite,
}

/// A kind of fault: where, how often in a row, and what must come of it if all strike.
#[derive(Debug, Clone, Copy)]
struct Kind {
    point: Point,
    count: u64,
    outcome: Outcome,
}

const fn kind(point: Point, count: u64, outcome: Outcome) -> Kind {
    Kind { point, count, outcome }
}

/// Faults that do not end the engine. Two failed reads are the two attempts at one record, or one each of two. A wrong byte is
/// found behind the second of a record's two copies, and all of it copied once more: three cannot be survived.
const KINDS: [Kind; 12] = [
    kind(Point::Read, 1, Outcome::Recovery),
    kind(Point::Read, 2, Outcome::Expert(Tier::File)),
    kind(Point::ShortRead, 1, Outcome::Recovery),
    kind(Point::ShortRead, 2, Outcome::Expert(Tier::File)),
    kind(Point::Corrupt, 1, Outcome::Recovery),
    kind(Point::Corrupt, 2, Outcome::Expert(Tier::File)),
    kind(Point::Copy, 1, Outcome::Recovery),
    kind(Point::Copy, 8, Outcome::Expert(Tier::Device)),
    kind(Point::Garble, 1, Outcome::Recovery),
    kind(Point::Garble, 3, Outcome::Expert(Tier::Device)),
    kind(Point::Panic, 1, Outcome::Expert(Tier::Host)),
    kind(Point::NonFinite, 1, Outcome::NonFinite),
];

impl Kind {
    fn name(&self) -> String {
        format!("{:?} x{}", self.point, self.count)
    }

    /// Whether what came of `struck` faults is what must come of them.
    fn check(&self, result: &Result<(), Error>, struck: u64) {
        let recovery_is_right = match self.point {
            // Attempts at different records, each repeated with success.
            Point::Read | Point::ShortRead | Point::Corrupt => true,
            _ => self.outcome == Outcome::Recovery || struck < self.count,
        };
        match (result, self.outcome) {
            (Ok(()), _) => assert!(recovery_is_right, "{self:?}: {struck} struck and no error"),
            (Err(Error::Expert { tier, slot, .. }), Outcome::Expert(want)) => {
                assert_eq!(*tier, want, "{self:?}");
                assert_eq!(slot.is_some(), want != Tier::Host, "{self:?} {result:?}");
            }
            (Err(Error::NonFinite(at)), Outcome::NonFinite) => {
                assert!(at.layer.is_some() && at.expert.is_some(), "{at:?}");
            }
            (Err(error), _) => panic!("{self:?}: {error}"),
        }
    }
}

/// Counts by kind: recovered, errors.
#[derive(Default)]
struct Counts(BTreeMap<String, [u64; 2]>);

impl Counts {
    fn note(&mut self, kind: String, result: &Result<(), Error>) {
        self.0.entry(kind).or_default()[usize::from(result.is_err())] += 1;
    }

    fn print(&self, of: &str) {
        for (kind, [recovered, errors]) in &self.0 {
            eprintln!("{of}: {kind:<16} recovered {recovered:>4}, named errors {errors:>4}");
        }
    }
}

/// Strikes every step of a generation, each by another kind in turn; so often that in a full test every kind has struck every
/// step.
fn strike_every_step(device: DeviceChoice, cpu_share: bool, kinds: &[Kind]) {
    let of = format!("{device:?}, CPU share {cpu_share}");
    let watchdog = Watchdog::new("a fault at every step");
    let faults = Faults::armed();
    let engine = short(device, cpu_share, &faults).load().unwrap();
    let mut struck_session = session(&engine);
    let mut counts = Counts::default();
    let rounds = if full() { kinds.len() } else { 1 };
    for turn in 0..rounds * STEPS {
        let (round, step) = (turn / STEPS, turn % STEPS);
        let kind = &kinds[(round + step) % kinds.len()];
        // Early and late in the pass, in one layer and another.
        let after = (turn / kinds.len() % 4) as u64;
        let before = faults.struck();
        faults.arm(kind.point, after, kind.count);
        let result = generate(&mut struck_session, step, kind);
        faults.arm(kind.point, 0, 0);
        watchdog.beat();
        let struck = faults.struck() - before;
        if struck == 0 {
            result.unwrap_or_else(|error| panic!("{kind:?} at step {step}, not struck: {error}"));
            continue;
        }
        kind.check(&result, struck);
        counts.note(kind.name(), &result);
        if result.is_err() {
            // The session goes on from where it was, and so does a new one now and then.
            generate(&mut struck_session, step, kind).unwrap();
            if turn.is_multiple_of(4) {
                generate(&mut session(&engine), 0, kind).unwrap();
            }
            watchdog.beat();
        }
    }
    counts.print(&of);
    engine.audit_experts().unwrap();
    for kind in kinds {
        assert!(counts.0.contains_key(&kind.name()), "{of}: {} never struck", kind.name());
    }
}

#[test]
fn every_step_is_struck_with_a_share_for_the_cpu() {
    strike_every_step(DeviceChoice::Cuda(0), true, &KINDS);
}

#[test]
fn every_step_is_struck_with_everything_over_the_link() {
    let kinds: Vec<Kind> = KINDS.into_iter().filter(|kind| kind.point != Point::Panic).collect();
    strike_every_step(DeviceChoice::Cuda(0), false, &kinds);
}

#[test]
fn every_step_is_struck_on_the_cpu() {
    let of_device = [Point::Copy, Point::Garble];
    let kinds: Vec<Kind> = KINDS.into_iter().filter(|kind| !of_device.contains(&kind.point)).collect();
    strike_every_step(DeviceChoice::Cpu, true, &kinds);
}

#[test]
fn a_device_that_fails_is_lost_and_the_text_stays() {
    let watchdog = Watchdog::new("a device that fails");
    let positions: Vec<usize> = (0..STEPS).step_by(if full() { 1 } else { 21 }).collect();
    for &step in &positions {
        for cpu_share in [true, false] {
            let faults = Faults::armed();
            let engine = short(DeviceChoice::Cuda(0), cpu_share, &faults).load().unwrap();
            let mut other = session(&engine);
            let mut struck = session(&engine);
            faults.arm(Point::Device, step as u64 % 5, 1);
            let lost = |result: Result<(), Error>| match result {
                Err(Error::DeviceLost { reason }) => assert!(reason.contains("layer"), "{reason}"),
                other => panic!("step {step}: {other:?}"),
            };
            // All tokens before the step at once, which comes to the same.
            lost(generate(&mut struck, step, &"Device"));
            assert_eq!(faults.struck(), 1);
            lost(generate(&mut struck, step, &"Device"));
            lost(generate(&mut other, 0, &"Device"));
            lost(engine.session(SessionOptions::default()).map(drop));
            watchdog.beat();
        }
    }
    eprintln!("device: {} named errors at {} steps", 2 * positions.len(), positions.len());
}

#[test]
fn refused_memory_is_named_and_no_engine_is_made() {
    for (point, what) in [(Point::DeviceAlloc, "slots for 16 experts"), (Point::HostAlloc, "host memory")] {
        match short(DeviceChoice::Cuda(0), true, &Faults::at(point, 1)).load().map(drop) {
            Err(Error::OutOfMemory { what: named, .. }) => assert!(named.contains(what), "{named}"),
            other => panic!("{point:?}: {other:?}"),
        }
    }
}

#[test]
fn copies_refused_while_loading_are_made_up_for_later() {
    let watchdog = Watchdog::new("copies while loading");
    let faults = Faults::span(Point::Copy, 40, 3);
    let engine = cuda().expert_slots(usize::MAX).faults(faults.clone()).load().unwrap();
    assert_eq!(faults.struck(), 3);
    let mut session = session(&engine);
    for step in 0..4 {
        generate(&mut session, step, &"Copy").unwrap();
        watchdog.beat();
    }
    let residents = engine.audit_experts().unwrap();
    assert!((125..=128).contains(&residents), "{residents}");
    // A device that refuses everything is no place for a model.
    match cuda().expert_slots(usize::MAX).faults(Faults::span(Point::Copy, 1, 1000)).load().map(drop) {
        Err(Error::Expert { tier: Tier::Device, slot: Some(_), .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn reader_threads_that_end_cost_no_answers() {
    let watchdog = Watchdog::new("reader threads");
    let faults = Faults::armed();
    let engine = short(DeviceChoice::Cpu, true, &faults).threads(4).load().unwrap();
    let mut session = session(&engine);
    for step in 0..STEPS {
        faults.arm(Point::Worker, 0, u64::from(step % 12 == 0));
        generate(&mut session, step, &"Worker").unwrap();
        watchdog.beat();
    }
    assert_eq!(faults.struck(), 4, "all four readers");
    eprintln!("reader threads: recovered {}", faults.struck());
}
