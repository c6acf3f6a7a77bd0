//! Everything at once on the (emulated) GPU: several sessions, faults as a seed decides, and slots that are taken from experts
//! and given back meanwhile, by a resizing thread and by caches that have no other memory. Whatever token comes is
//! right, whatever error comes is named and the next try goes on, and in the end no slot is missing.
//!
//! `ABRUZZI_STRESS_STEPS` sets the number of tokens, `ABRUZZI_STRESS_SEED` the faults, the sizes and the emulator's order of
//! things.
#![cfg(feature = "cuda")]

mod common;
#[path = "common/emulator.rs"]
mod emulator;
#[path = "common/timeline.rs"]
mod timeline;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};

use abruzzi::experts::fault::{Faults, Point};
use abruzzi::{DeviceChoice, Engine, EngineBuilder, Error, Session};
use common::checkpoint;
use rand_core::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;
use timeline::{RECORD_BYTES, STEPS, Watchdog, generate, quiet, session};

/// Experts of the demo model, 4 layers of 32: as many slots, when caches have none.
const ALL: usize = 4 * 32;
/// Sessions of each of two threads.
const SESSIONS: usize = 2;
/// Slots that the caches of all sessions have at most: a page of 64 tokens is a slot, a timeline is longer than one.
const PAGES: usize = 2 * SESSIONS * 2;

/// What goes wrong, one in a hundred times each.
const AMONG: [Point; 8] = [
    Point::Read,
    Point::ShortRead,
    Point::Corrupt,
    Point::Copy,
    Point::Garble,
    Point::Worker,
    Point::Panic,
    Point::NonFinite,
];
const RATE: f64 = 0.01;

/// A whole number from the environment.
fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().unwrap_or_else(|e| panic!("{name}={n}: {e}")))
}

/// What is stressed.
struct Setting {
    name: &'static str,
    /// Whether the CPU computes a share of what is missing.
    cpu_share: bool,
    /// Records that host memory holds; where those are all, experts are copied ahead of need.
    records: u64,
    /// The emulator's order of things.
    schedule: &'static str,
}

const SETTINGS: [Setting; 3] = [
    Setting { name: "short host memory", cpu_share: true, records: 24, schedule: "random:SEED" },
    Setting { name: "short host memory, link only", cpu_share: false, records: 24, schedule: "lazy" },
    Setting { name: "all in host memory", cpu_share: true, records: ALL as u64, schedule: "random:SEED" },
];

impl Setting {
    fn builder(&self, faults: &Faults) -> EngineBuilder {
        let builder = Engine::builder(checkpoint("demo")).device(DeviceChoice::Cuda(0)).kv_limit(0);
        let builder = builder.checksums(true).cpu_share(self.cpu_share).faults(faults.clone());
        builder.host_budget(self.records * RECORD_BYTES)
    }

    /// An engine; a record that cannot be had while it is loaded is an error, and the next try goes on.
    fn load(&self, faults: &Faults) -> Engine {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.builder(faults).load() {
                Ok(engine) => return engine,
                Err(Error::Expert { .. }) if tries < 5 => {}
                Err(error) => panic!("{}: {error}", self.name),
            }
        }
    }
}

/// What became of the steps: tokens, and errors by what they name.
type Outcomes = Mutex<BTreeMap<String, u64>>;

/// Sessions of one thread take turns until `steps` steps were begun by all threads together.
struct Worker<'a> {
    engine: &'a Engine,
    begun: &'a AtomicU64,
    steps: u64,
    outcomes: &'a Outcomes,
    watchdog: &'a Watchdog,
}

impl Worker<'_> {
    fn run(&self, thread: usize, turn: mpsc::Sender<()>) {
        let mut sessions: [(Session, usize); SESSIONS] =
            std::array::from_fn(|i| (session(self.engine), i * thread * STEPS / 2));
        let mut next = thread;
        while self.begun.fetch_add(1, Ordering::Relaxed) < self.steps {
            next += 1;
            let (session, step) = &mut sessions[next % SESSIONS];
            let outcome = match generate(session, *step, &"stress") {
                Ok(()) => {
                    *step = (*step + 1) % STEPS;
                    if *step == 0 {
                        session.rewind(0);
                    }
                    "tokens".to_owned()
                }
                Err(Error::Expert { tier, .. }) => format!("named errors: {tier}"),
                Err(Error::NonFinite(_)) => "named errors: NaN".to_owned(),
                Err(error) => panic!("{error}"),
            };
            *self.outcomes.lock().unwrap().entry(outcome).or_default() += 1;
            if next.is_multiple_of(32) {
                self.engine.audit_experts().unwrap();
            }
            self.watchdog.beat();
            turn.send(()).unwrap();
        }
    }
}

/// Resizes after one turn in three, to a few slots, any number, one or all; returns how often.
fn resize(engine: &Engine, turns: mpsc::Receiver<()>, random: &mut Pcg64Mcg) -> u64 {
    let mut resizes = 0;
    for () in turns {
        let mut below = |n: usize| random.next_u64() as usize % n;
        if below(3) > 0 {
            continue;
        }
        let size = match below(8) {
            0 => 0,
            1 => 1,
            2 | 3 => ALL,
            4 | 5 => below(ALL / 8),
            _ => below(ALL),
        };
        let now = engine.resize_slots(size).unwrap();
        assert!(now <= size && now >= size.min(ALL - PAGES), "{now} slots of {size}");
        let slots = engine.slot_use().unwrap();
        assert_eq!(slots.experts + slots.idle + slots.lent, slots.total, "{slots:?}");
        assert!(slots.lent <= PAGES, "{slots:?}");
        resizes += 1;
    }
    resizes
}

/// Every slot can be taken from experts and given back: none is leased, being filled or lent for good.
fn nothing_is_left(engine: &Engine) {
    assert_eq!(engine.slot_use().unwrap().lent, 0);
    assert_eq!(engine.resize_slots(0).unwrap(), 0);
    assert_eq!(engine.audit_experts().unwrap(), 0);
    assert_eq!(engine.resize_slots(ALL).unwrap(), ALL);
}

fn stress(setting: &Setting, steps: u64, seed: u64, watchdog: &Watchdog) {
    let schedule = setting.schedule.replace("SEED", &seed.to_string());
    emulator::configure(&format!(r#"{{"counters": false, "schedule": "{schedule}"}}"#));
    let faults = Faults::seeded_among(seed, RATE, &AMONG);
    let engine = setting.load(&faults);
    let outcomes = Outcomes::default();
    let begun = AtomicU64::new(0);
    let worker = Worker { engine: &engine, begun: &begun, steps, outcomes: &outcomes, watchdog };
    let resizes = std::thread::scope(|scope| {
        let (turn, turns) = mpsc::channel();
        let (engine, worker) = (&engine, &worker);
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let resizes = scope.spawn(move || resize(engine, turns, &mut random));
        for thread in 0..2 {
            let turn = turn.clone();
            scope.spawn(move || worker.run(thread, turn));
        }
        drop(turn);
        resizes.join().unwrap()
    });
    let residents = engine.audit_experts().unwrap();
    nothing_is_left(&engine);
    let stats = engine.expert_stats();
    let outcomes = outcomes.into_inner().unwrap();
    let reads = stats.hits + stats.over_link + stats.on_cpu;
    eprintln!(
        "{}: {steps} steps {outcomes:?}, {reads} experts read, {resizes} resizes, {} faults struck, {residents} \
         residents sound; {stats:?}",
        setting.name,
        faults.struck()
    );
    assert!(faults.struck() > 0 && resizes > 0);
    assert_eq!(outcomes.values().sum::<u64>(), steps);
}

#[test]
fn sessions_faults_and_resizes_at_once() {
    emulator::install();
    quiet();
    let steps = variable("ABRUZZI_STRESS_STEPS", 36);
    let seed = variable("ABRUZZI_STRESS_SEED", 1);
    let watchdog = Watchdog::new("stress");
    for setting in &SETTINGS {
        stress(setting, steps.div_ceil(SETTINGS.len() as u64), seed, &watchdog);
    }
}
