//! The residency protocol under a model checker: every interleaving of a few threads, and every stale value that the
//! memory model allows, over the engine's own `slots.rs`. Memory is a cell in which loom finds races by itself.
//!
//! Then the same models with one step of the protocol altered: each must fail. The counts are listed in
//! `docs/notes/experts-protocol.md`; `cargo test --test slots_loom -- --nocapture` prints them.

// The engine uses all of it, these models a part.
#[allow(dead_code)]
#[path = "../src/experts/slots.rs"]
mod slots;

/// What `src/experts/sync.rs` is to the engine.
mod sync {
    use std::cell::Cell;

    use super::slots::Step;

    pub(super) use loom::sync::atomic::Ordering;
    /// Not under test, and each of its operations would multiply the interleavings.
    pub(super) use std::sync::Arc;

    /// A word of which a load can be made a change that changes nothing: loom goes back before a thread's latest change, but
    /// not before an earlier load. Such loads see the newest value only, so both kinds are explored.
    #[derive(Debug)]
    pub(super) struct AtomicU64(loom::sync::atomic::AtomicU64);

    impl AtomicU64 {
        pub(super) fn new(value: u64) -> AtomicU64 {
            AtomicU64(loom::sync::atomic::AtomicU64::new(value))
        }

        pub(super) fn load(&self, order: Ordering) -> u64 {
            if LOADS_CHANGE.get() { self.0.fetch_add(0, order) } else { self.0.load(order) }
        }

        pub(super) fn compare_exchange_weak(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.0.compare_exchange_weak(current, new, success, failure)
        }
    }

    pub(super) type Alteration = fn(Step) -> Step;

    thread_local! {
        /// A model's threads are coroutines of one thread of the system.
        pub(super) static ALTERATION: Cell<Alteration> = const { Cell::new(|step| step) };
        pub(super) static LOADS_CHANGE: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn in_force(step: Step) -> Step {
        ALTERATION.get()(step)
    }
}

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed as Counting};

use loom::thread;

use slots::{Generation, Leases, Refused, SlotRef, SlotTable, State, Step};
use sync::{ALTERATION, Alteration, LOADS_CHANGE, Ordering};

/// A table of one slot, and the slot's memory: what is written to it is the generation it is written for.
struct Slot {
    table: SlotTable,
    memory: loom::cell::UnsafeCell<u32>,
}

// SAFETY: the protocol keeps readers and writers of the memory apart. That is what is being checked: loom's cell finds
// every access that is not ordered with another, and fails the model instead of racing.
unsafe impl Sync for Slot {}

/// What a borrower writes.
const PAGE: u32 = 1000;

impl Slot {
    fn empty() -> Arc<Slot> {
        Arc::new(Slot { table: SlotTable::new(1), memory: loom::cell::UnsafeCell::new(0) })
    }

    /// A slot that was filled, and where it is.
    fn filled() -> (Arc<Slot>, SlotRef) {
        let slot = Slot::empty();
        let at = slot.fill().expect("empty");
        (slot, at)
    }

    fn write(&self, value: u32) {
        // SAFETY: loom's cell refuses what would race (see above).
        self.memory.with_mut(|memory| unsafe { *memory = value });
    }

    fn read(&self) -> u32 {
        // SAFETY: loom's cell refuses what would race (see above).
        self.memory.with(|memory| unsafe { *memory })
    }

    fn fill(&self) -> Result<SlotRef, Refused> {
        let at = self.table.begin_load(0)?;
        self.write(at.generation);
        self.table.ready(at).expect("the loader alone ends a load");
        Ok(at)
    }

    /// Reads what `at` refers to, if it still does.
    fn look(&self, at: SlotRef) -> bool {
        // A failed model does not return its leases: the checker cannot go on while it unwinds.
        let Some(lease) = self.table.lease(at).map(ManuallyDrop::new) else { return false };
        assert_eq!(self.read(), at.generation, "wrong weights");
        drop(ManuallyDrop::into_inner(lease));
        true
    }

    fn evict(&self, at: SlotRef) -> bool {
        let begun = self.table.begin_evict(at).is_ok();
        if begun {
            self.table.finish_evict(at).expect("the evictor alone ends an eviction");
        }
        begun
    }

    fn borrow(&self) -> bool {
        let lent = self.table.lend(0).is_ok();
        if lent {
            self.write(PAGE);
            assert_eq!(self.read(), PAGE, "somebody else's page");
            self.table.give_back(0).expect("the borrower alone gives back");
        }
        lent
    }

    /// What must hold when all threads are done: nothing leaked, nothing stuck, and the slot can go on.
    fn settled(&self) {
        let status = self.table.status(0).expect("the slot");
        assert_eq!(status.leases, 0, "a lease leaked");
        let at = SlotRef { slot: 0, generation: status.generation };
        match status.state {
            State::Empty => {}
            State::Ready => {
                assert!(self.look(at), "not readable");
                assert!(self.evict(at), "not evictable");
            }
            stuck => panic!("left {stuck:?}"),
        }
        assert!(!self.look(at), "readable after its eviction");
        self.fill().expect("usable again");
    }
}

/// A thread of the model.
fn start<T: 'static>(slot: &Arc<Slot>, does: impl FnOnce(&Slot) -> T + 'static) -> thread::JoinHandle<T> {
    let slot = Arc::clone(slot);
    thread::spawn(move || does(&slot))
}

fn reader_and_evictor() {
    let (slot, at) = Slot::filled();
    let reader = start(&slot, move |slot| slot.look(at));
    if slot.evict(at) {
        slot.fill().expect("just vacated");
    }
    reader.join().expect("reader");
    slot.settled();
}

fn two_readers_evictor_and_loader() {
    let (slot, at) = Slot::filled();
    let readers = [(); 2].map(|()| start(&slot, move |slot| slot.look(at)));
    let evictor = start(&slot, move |slot| slot.evict(at));
    // Loads once the evictor has made room, if that has happened by now.
    let loaded = slot.fill().is_ok();
    for reader in readers {
        reader.join().expect("reader");
    }
    let evicted = evictor.join().expect("evictor");
    assert!(evicted || !loaded, "loaded over a resident");
    slot.settled();
}

fn loader_and_reader() {
    let slot = Slot::empty();
    let first = SlotRef { slot: 0, generation: 1 };
    let reader = start(&slot, move |slot| slot.look(first) || slot.look(first));
    slot.fill().expect("empty");
    reader.join().expect("reader");
    slot.settled();
}

fn stale_reference_after_refill() {
    let (slot, old) = Slot::filled();
    assert!(slot.evict(old));
    // The reader comes from before: it still has the old reference, and hears of the new one only by trying.
    let new = SlotRef { generation: old.generation + 1, ..old };
    let reader = start(&slot, move |slot| (slot.look(old), slot.look(new)));
    assert_eq!(slot.fill(), Ok(new));
    let (old_seen, _) = reader.join().expect("reader");
    assert!(!old_seen, "a stale reference was accepted");
    slot.settled();
}

fn borrower_and_loader() {
    let slot = Slot::empty();
    let borrower = start(&slot, |slot| slot.borrow());
    let loaded = slot.fill().is_ok() || slot.fill().is_ok();
    let lent = borrower.join().expect("borrower");
    assert!(loaded || lent, "an empty slot served nobody");
    slot.settled();
}

fn reader_evictor_and_borrower() {
    let (slot, at) = Slot::filled();
    let reader = start(&slot, move |slot| slot.look(at));
    let evictor = start(&slot, move |slot| slot.evict(at));
    slot.borrow();
    reader.join().expect("reader");
    evictor.join().expect("evictor");
    slot.settled();
}

fn two_evictors() {
    let (slot, at) = Slot::filled();
    let evict_and_fill = move |slot: &Slot| {
        let evicted = slot.evict(at);
        if evicted {
            slot.fill().expect("just vacated");
        }
        evicted
    };
    let other = start(&slot, evict_and_fill);
    let mine = evict_and_fill(&slot);
    let other = other.join().expect("other evictor");
    assert!(mine != other, "evicted by {}", if mine { "both" } else { "neither" });
    slot.settled();
}

fn failing_loader_and_next() {
    let slot = Slot::empty();
    let failing = start(&slot, |slot| {
        if let Ok(at) = slot.table.begin_load(0) {
            slot.write(u32::MAX);
            slot.table.abandon(at).expect("the loader alone ends a load");
        }
    });
    let reader = start(&slot, |slot| [1, 2].map(|generation| slot.look(SlotRef { slot: 0, generation })));
    let _ = slot.fill();
    failing.join().expect("failing loader");
    reader.join().expect("reader");
    slot.settled();
}

/// A reader that gives its lease back before it has read to the end.
fn lease_returned_too_early() {
    let (slot, at) = Slot::filled();
    let reader = start(&slot, move |slot| {
        if slot.table.lease(at).is_some_and(|lease| lease.at() == at) {
            assert_eq!(slot.read(), at.generation, "wrong weights");
        }
    });
    if slot.evict(at) {
        slot.fill().expect("just vacated");
    }
    reader.join().expect("reader");
}

/// A reader that never gives its lease back.
fn lease_lost() {
    let (slot, at) = Slot::filled();
    let reader = start(&slot, move |slot| std::mem::forget(slot.table.lease(at)));
    slot.evict(at);
    reader.join().expect("reader");
    slot.settled();
}

/// Its name, how often a thread may be interrupted in it (no limit where it can be explored to the end), what it does.
type Model = (&'static str, Option<usize>, fn());

const MODELS: [Model; 8] = [
    ("reader and evictor", None, reader_and_evictor),
    ("loader and reader", None, loader_and_reader),
    ("stale reference after refill", None, stale_reference_after_refill),
    ("borrower and loader", None, borrower_and_loader),
    ("two evictors", None, two_evictors),
    ("failing loader, next loader and reader", None, failing_loader_and_next),
    ("reader, evictor and borrower", None, reader_evictor_and_borrower),
    ("two readers, evictor and loader", Some(3), two_readers_evictor_and_loader),
];

/// Uses of the protocol that it cannot defend: here the models are wrong, not the steps.
const MISUSES: [(&str, fn()); 2] = [
    ("slot reused before the reader's fence: lease returned too early", lease_returned_too_early),
    ("lease never returned", lease_lost),
];

/// One step altered each.
const ALTERATIONS: &[(&str, Alteration)] = &[
    ("evict: while leased", |step| match step.action {
        "evict" => Step { leases: Leases::Any, ..step },
        _ => step,
    }),
    ("evict: stays Ready until vacated", |step| match step.action {
        "evict" => Step { to: State::Ready, ..step },
        "vacate" => Step { from: State::Ready, leases: Leases::Any, ..step },
        _ => step,
    }),
    ("evict: any generation", |step| match step.action {
        "evict" | "vacate" => Step { generation: Generation::Any, ..step },
        _ => step,
    }),
    ("lease: stale generation accepted", |step| match step.action {
        "lease" => Step { generation: Generation::Any, ..step },
        _ => step,
    }),
    ("lease: granted in Evicting", |step| match step.action {
        "lease" | "return" => Step { from: State::Evicting, to: State::Evicting, ..step },
        _ => step,
    }),
    ("lease: granted in Loading", |step| match step.action {
        "lease" | "return" => Step { from: State::Loading, to: State::Loading, ..step },
        _ => step,
    }),
    ("lease: not counted", |step| match step.action {
        "lease" | "return" => Step { leases: Leases::Any, ..step },
        _ => step,
    }),
    ("return: not counted", |step| match step.action {
        "return" => Step { leases: Leases::Any, ..step },
        _ => step,
    }),
    ("load: same generation again", |step| match step.action {
        "load" => Step { generation: Generation::Any, ..step },
        _ => step,
    }),
    ("load: over a resident", |step| match step.action {
        "load" => Step { from: State::Ready, leases: Leases::Any, ..step },
        "vacate" | "give back" | "abandon" => Step { to: State::Ready, ..step },
        _ => step,
    }),
    ("load: while lent", |step| match step.action {
        "lend" => Step { to: State::Empty, ..step },
        "give back" => Step { from: State::Empty, ..step },
        _ => step,
    }),
    ("load: relaxed", |step| relaxed(step, "load")),
    ("publish: relaxed", |step| relaxed(step, "publish")),
    ("abandon: relaxed", |step| relaxed(step, "abandon")),
    ("lease: relaxed", |step| relaxed(step, "lease")),
    ("return: relaxed", |step| relaxed(step, "return")),
    ("lend: relaxed", |step| relaxed(step, "lend")),
    ("give back: relaxed", |step| relaxed(step, "give back")),
];

fn relaxed(step: Step, action: &str) -> Step {
    if step.action == action { Step { order: Ordering::Relaxed, ..step } } else { step }
}

/// Explores a model to the end and returns the number of executions, or what failed and after how many.
fn explore(
    model: fn(),
    preemptions: Option<usize>,
    alteration: Alteration,
    loads_change: bool,
) -> Result<usize, (usize, String)> {
    let executions = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&executions);
    // A thread of its own: a failed model leaves the checker's state behind.
    let outcome = std::thread::spawn(move || {
        ALTERATION.set(alteration);
        LOADS_CHANGE.set(loads_change);
        catch_unwind(AssertUnwindSafe(|| {
            let mut checker = loom::model::Builder::new();
            checker.preemption_bound = preemptions;
            checker.check(move || {
                count.fetch_add(1, Counting);
                model();
            });
        }))
        .map_err(|panic| match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => panic.downcast::<&str>().map_or("a panic".into(), |text| text.to_string()),
        })
    });
    let outcome = outcome.join().expect("the panic was caught");
    let explored = executions.load(Counting);
    outcome.map(|()| explored).map_err(|text| (explored, text))
}

#[test]
fn the_protocol_holds() {
    for (name, preemptions, model) in MODELS {
        let [changing, stale] = [true, false].map(|loads_change| {
            explore(model, preemptions, |step| step, loads_change)
                .unwrap_or_else(|(executions, text)| panic!("{name}: execution {executions}: {text}"))
        });
        println!("{name}: {changing} executions, {stale} with stale values");
    }
}

#[test]
fn every_altered_step_is_noticed() {
    for (name, alteration) in ALTERATIONS {
        let both = MODELS.iter().flat_map(|model| [(model, true), (model, false)]);
        let noticed = { both }.find_map(|((model, preemptions, run), loads_change)| {
            Some((model, explore(*run, *preemptions, *alteration, loads_change).err()?))
        });
        let (model, (executions, text)) = noticed.unwrap_or_else(|| panic!("{name}: no model noticed"));
        println!("{name}: {model}, execution {executions}: {}", text.lines().next().unwrap_or_default());
    }
}

#[test]
fn misuse_is_noticed() {
    for (name, model) in MISUSES {
        let Err((executions, text)) = explore(model, None, |step| step, false) else {
            panic!("{name}: not noticed")
        };
        println!("{name}: execution {executions}: {}", text.lines().next().unwrap_or_default());
    }
}
