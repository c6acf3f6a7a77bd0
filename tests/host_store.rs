//! The host store: whatever its budget and whatever goes wrong, a record is the expert's or there is an error that
//! names it.

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use abruzzi::checkpoint::{LoadedWeights, ReadBuffer};
use abruzzi::error::Tier;
use abruzzi::experts::ExpertId;
use abruzzi::experts::fault::{Faults, Point};
use abruzzi::experts::host::{HostStore, StoreOptions};
use abruzzi::experts::policy::{Policy, Victim};
use abruzzi::{Checkpoint, Error, LoadOptions, Synth};
use common::{copy, demo, oracle};
use safetensors::SafeTensors;

/// Least recently used.
#[derive(Default)]
struct Oldest {
    clock: u64,
    used: HashMap<ExpertId, u64>,
    resident: Vec<ExpertId>,
    /// Never lets go of anything for a newcomer.
    stubborn: bool,
}

impl Policy for Oldest {
    fn name(&self) -> &'static str {
        "oldest"
    }

    fn touch(&mut self, id: ExpertId) {
        self.clock += 1;
        self.used.insert(id, self.clock);
    }

    fn insert(&mut self, id: ExpertId) {
        self.resident.push(id);
    }

    fn remove(&mut self, id: ExpertId) {
        self.resident.retain(|&other| other != id);
    }

    fn victim(&mut self, _newcomer: ExpertId, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim {
        if self.stubborn {
            return Victim::Bypass;
        }
        let used = |id: &&ExpertId| self.used.get(*id).copied().unwrap_or(0);
        self.resident
            .iter()
            .filter(|&&id| may_go(id))
            .min_by_key(used)
            .map_or(Victim::None, |&id| Victim::Evict(id))
    }

    fn worth(&self, id: ExpertId) -> f64 {
        self.used.get(&id).copied().unwrap_or(0) as f64
    }
}

/// A checkpoint and every record as the whole load has it.
struct Truth {
    checkpoint: Arc<Checkpoint>,
    loaded: LoadedWeights,
    ids: Vec<ExpertId>,
    slot: u64,
}

impl Truth {
    fn of(path: impl AsRef<Path>) -> Truth {
        let checkpoint = Arc::new(Checkpoint::open(path).unwrap());
        let loaded = checkpoint.load(&LoadOptions::default()).unwrap();
        let layers = loaded.experts.iter().enumerate();
        let layers = layers.filter_map(|(layer, records)| Some((layer, records.as_ref()?.count())));
        let ids = layers.flat_map(|(l, count)| (0..count).map(move |e| ExpertId::new(l, e))).collect();
        let slot = loaded.experts.iter().flatten().map(|r| r.layout().size()).max().unwrap() as u64;
        Truth { checkpoint, loaded, ids, slot }
    }

    fn record(&self, id: ExpertId) -> &[u8] {
        self.loaded.experts[id.layer as usize].as_ref().unwrap().record(id.expert as usize)
    }

    fn whole(&self) -> u64 {
        self.slot * self.ids.len() as u64
    }

    fn store(&self, budget: u64, options: StoreOptions) -> Arc<HostStore> {
        HostStore::new(self.checkpoint.clone(), Some(budget), Box::<Oldest>::default(), options).unwrap()
    }

    /// Each thread asks for random experts, holding the last few: only right bytes or errors that name the expert.
    /// Returns how many of each there were.
    fn roam(&self, store: &HostStore, threads: u64, steps: usize, hold: usize) -> (u64, u64) {
        let counts = [AtomicU64::new(0), AtomicU64::new(0)];
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let counts = &counts;
                scope.spawn(move || {
                    let mut random = Random(thread + 1);
                    let mut held = std::collections::VecDeque::new();
                    for _ in 0..steps {
                        let id = self.ids[random.below(self.ids.len())];
                        match random.below(8) {
                            0 => drop(store.request(self.ids[random.below(self.ids.len())])),
                            1 => store.demote(self.ids[random.below(self.ids.len())]),
                            _ => {}
                        }
                        match store.get(id) {
                            Ok(record) => {
                                assert_eq!(record.as_ref(), self.record(id), "{id}");
                                assert_eq!(record.id(), id);
                                store.verify(id, record.as_ref(), Tier::Host, None).unwrap();
                                counts[0].fetch_add(1, Ordering::Relaxed);
                                held.push_back(record);
                            }
                            Err(error) => {
                                named(&error, id);
                                counts[1].fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        while held.len() > hold {
                            let old = held.pop_front().unwrap();
                            assert_eq!(old.as_ref(), self.record(old.id()), "changed under its lease");
                        }
                    }
                });
            }
        });
        counts.map(AtomicU64::into_inner).into()
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

fn options(change: impl FnOnce(&mut StoreOptions)) -> StoreOptions {
    let mut options = StoreOptions::default();
    options.checksums = true;
    options.load.threads = 2;
    change(&mut options);
    options
}

/// The error names the expert, and says the tier in its text.
fn named(error: &Error, id: ExpertId) {
    let Error::Expert { layer, expert, tier, .. } = error else { panic!("{error:?}") };
    assert_eq!((*layer, *expert), (id.layer as usize, id.expert as usize), "{error}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("expert {expert} of layer {layer} ({tier}")), "{text}");
}

/// A test that hangs ends here, with a word why. Dropped, it does nothing.
struct Watchdog(Arc<AtomicBool>);

impl Watchdog {
    fn new(test: &'static str) -> Watchdog {
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        std::thread::spawn(move || {
            for _ in 0..1200 {
                std::thread::sleep(Duration::from_millis(100));
                if seen.load(Ordering::Relaxed) {
                    return;
                }
            }
            eprintln!("{test} hangs");
            std::process::abort();
        });
        Watchdog(over)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Changes bytes of a tensor in a checkpoint of one file.
fn damage(file: &Path, tensor: &str, at: usize, value: u8) {
    let mut bytes = std::fs::read(file).unwrap();
    let offset = {
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let data = tensors.tensor(tensor).unwrap().data();
        data.as_ptr() as usize - bytes.as_ptr() as usize
    };
    bytes[offset + at] = value;
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn one_by_one_experts_are_what_the_whole_load_reads() {
    for case in ["demo", "k2-fp8", "k2-int4", "k2-bf16", "v3-groups-fp8"] {
        let truth = Truth::of(common::checkpoint(case));
        let mut buffer = ReadBuffer::new().unwrap();
        for &id in &truth.ids {
            let (layer, expert) = (id.layer as usize, id.expert as usize);
            let size = truth.checkpoint.record_layout(layer).unwrap().size();
            // Remains of another record, to be overwritten, padding too.
            let mut cached = vec![0xa5; size];
            let mut direct = vec![0x5a; size];
            truth.checkpoint.read_expert(layer, expert, &mut cached).unwrap();
            truth.checkpoint.read_expert_direct(layer, expert, &mut direct, &mut buffer).unwrap();
            assert!(cached == truth.record(id), "{case}: {id}");
            assert!(direct == truth.record(id), "{case}: {id}, around the cache");
        }
        let trunk = truth.checkpoint.load_trunk(&LoadOptions::default()).unwrap();
        let all = &truth.loaded;
        assert!(trunk.stats.bytes < all.stats.bytes, "{case}");
        let mut matrices = Vec::new();
        let mut vectors = Vec::new();
        trunk.trunk.visit(
            &mut |m| matrices.push((m.layout, m.region.bytes()[m.weight.clone()].to_vec())),
            &mut |v| vectors.push(v.clone()),
        );
        let (mut matrices, mut vectors) = (matrices.into_iter(), vectors.into_iter());
        all.trunk.visit(
            &mut |m| {
                let expected = (m.layout, m.region.bytes()[m.weight.clone()].to_vec());
                assert!(matrices.next() == Some(expected), "{case}");
            },
            &mut |v| assert!(vectors.next().as_ref() == Some(v), "{case}"),
        );
        assert!(matrices.next().is_none() && vectors.next().is_none());
    }
}

#[test]
fn experts_that_are_not_there_and_wrong_sizes_are_refused() {
    let truth = Truth::of(demo());
    let checkpoint = &truth.checkpoint;
    let mut record = vec![0; truth.slot as usize];
    for (layer, expert) in [(0, 0), (1, 32), (5, 0), (usize::MAX, usize::MAX)] {
        let error = checkpoint.read_expert(layer, expert, &mut record).unwrap_err();
        assert!(matches!(error, Error::Argument { name: "expert", .. }), "{error}");
    }
    let error = checkpoint.read_expert(1, 0, &mut record[1..]).unwrap_err();
    assert!(matches!(error, Error::Argument { name: "into", .. }), "{error}");
    assert!(checkpoint.record_layout(0).is_none() && checkpoint.record_layout(99).is_none());

    let store = truth.store(truth.slot, options(|_| {}));
    for id in [ExpertId::new(0, 0), ExpertId::new(1, 32), ExpertId::new(5, 0)] {
        assert!(matches!(store.get(id), Err(Error::Argument { name: "expert", .. })));
        assert!(store.peek(id).is_none() && !store.request(id));
        store.demote(id);
        assert_eq!(store.tier(id), Tier::File);
    }
}

#[test]
fn every_budget_gives_every_expert() {
    let _watchdog = Watchdog::new("every_budget_gives_every_expert");
    for path in [demo(), oracle("k2-int4")] {
        let truth = Truth::of(path);
        let whole = truth.whole();
        for (budget, hold) in [(whole, 3), (whole / 2, 3), (whole / 10, 0), (truth.slot, 0)] {
            let store = truth.store(budget, options(|_| {}));
            let (right, wrong) = truth.roam(&store, 4, 500, hold);
            let stats = store.stats();
            assert_eq!((right, wrong), (2000, 0));
            assert!(stats.capacity <= budget && stats.resident <= stats.slots, "{stats:?}");
            assert_eq!(store.holds_all(), budget == whole);
            let said = store.describe();
            if budget == whole {
                assert_eq!((stats.reads, stats.hits), (truth.ids.len() as u64, right), "{stats:?}");
                assert!(said.starts_with("all "), "{said}");
            } else {
                assert!(stats.evictions > 0 && stats.hits + stats.misses == right, "{stats:?}");
                assert!(said.contains(&format!("room for {} of {}", stats.slots, truth.ids.len())), "{said}");
            }
            // No lease was left behind: every slot can still be had.
            let held: Vec<_> = truth.ids.iter().take(stats.slots as usize).map(|&id| store.get(id)).collect();
            assert!(held.iter().all(Result::is_ok));
        }
        for budget in [0, truth.slot - 1] {
            let store = HostStore::new(
                truth.checkpoint.clone(),
                Some(budget),
                Box::<Oldest>::default(),
                options(|_| {}),
            );
            let needed_for_one = truth.slot;
            match store {
                Err(Error::OutOfMemory { needed, available, .. }) => {
                    assert_eq!((needed, available), (needed_for_one, budget));
                }
                other => panic!("{other:?}"),
            }
        }
        let store = HostStore::new(truth.checkpoint.clone(), None, Box::<Oldest>::default(), options(|_| {}))
            .unwrap();
        assert!(store.holds_all());
    }
}

#[test]
fn a_policy_that_keeps_everything_still_gives_way() {
    let _watchdog = Watchdog::new("a_policy_that_keeps_everything_still_gives_way");
    let truth = Truth::of(demo());
    let policy = Box::new(Oldest { stubborn: true, ..Oldest::default() });
    let store =
        HostStore::new(truth.checkpoint.clone(), Some(truth.slot * 5), policy, options(|_| {})).unwrap();
    assert_eq!(truth.roam(&store, 2, 500, 1), (1000, 0));
}

#[test]
fn threads_that_ask_for_the_same_expert_share_one_read() {
    let truth = Truth::of(demo());
    let store = truth.store(truth.slot * 4, options(|_| {}));
    for round in 0..20 {
        let before = store.stats().reads;
        let id = truth.ids[round * 6];
        let barrier = Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    assert_eq!(store.get(id).unwrap().as_ref(), truth.record(id));
                });
            }
        });
        assert_eq!(store.stats().reads, before + 1);
    }
}

#[test]
fn a_fault_once_is_repeated_twice_is_an_error_and_neither_lasts() {
    let _watchdog = Watchdog::new("a_fault_once_is_repeated_twice_is_an_error_and_neither_lasts");
    let truth = Truth::of(demo());
    let mut counted = [0, 0];
    for (point, says) in
        [(Point::Read, "cannot read"), (Point::ShortRead, "end of file"), (Point::Corrupt, "checksum is")]
    {
        for nth in 1..=24 {
            for count in [1, 2] {
                let faults = Faults::span(point, nth, count);
                let store = truth.store(truth.slot * 3, options(|o| o.faults = faults.clone()));
                let mut errors = Vec::new();
                // Twice round, since only what is read again can be compared.
                for &id in truth.ids[..16].iter().chain(&truth.ids[..16]) {
                    match store.get(id) {
                        Ok(record) => assert_eq!(record.as_ref(), truth.record(id)),
                        Err(error) => {
                            named(&error, id);
                            errors.push(error.to_string());
                            assert_eq!(
                                store.get(id).unwrap().as_ref(),
                                truth.record(id),
                                "usable afterwards"
                            );
                        }
                    }
                }
                let struck = faults.struck();
                // Corrupt is passed 16 times, by the reads of the second round.
                let expected =
                    if point == Point::Corrupt { count.min(17u64.saturating_sub(nth)) } else { count };
                assert!(struck >= expected.min(1), "{point:?} {nth}: {struck}");
                assert_eq!(errors.len() as u64, u64::from(struck == 2), "{point:?} {nth}: {errors:?}");
                assert!(errors.iter().all(|e| e.contains(says) && e.contains("(file, slot ")), "{errors:?}");
                assert_eq!(store.stats().repeats, struck.min(1), "{point:?} {nth}");
                counted[0] += u64::from(struck == 1);
                counted[1] += u64::from(struck == 2);
            }
        }
    }
    println!("{} faults recovered from, {} told", counted[0], counted[1]);
}

#[test]
fn random_faults_never_give_wrong_bytes() {
    let _watchdog = Watchdog::new("random_faults_never_give_wrong_bytes");
    let truth = Truth::of(demo());
    let (mut right, mut told, mut struck) = (0, 0, 0);
    for seed in 0..8 {
        let faults = Faults::seeded(seed, 0.15);
        // The allocation may be struck as well: then there is no store, and an error that says so.
        let store = HostStore::new(
            truth.checkpoint.clone(),
            Some(truth.whole() / 8),
            Box::<Oldest>::default(),
            options(|o| o.faults = faults.clone()),
        );
        match store {
            Ok(store) => {
                let (ok, err) = truth.roam(&store, 4, 300, 2);
                (right, told) = (right + ok, told + err);
            }
            Err(error) => assert!(matches!(error, Error::OutOfMemory { .. }), "{error}"),
        }
        struck += faults.struck();
    }
    println!("seeds 0 to 7: {struck} faults, {right} records right, {told} errors");
    assert!(right > 0 && told > 0 && struck > told);
}

#[test]
fn refused_memory_is_an_error_before_anything_is_read() {
    let truth = Truth::of(demo());
    for budget in [None, Some(truth.whole()), Some(truth.slot)] {
        let faults = Faults::at(Point::HostAlloc, 1);
        let make = || {
            let options = options(|o| o.faults = faults.clone());
            HostStore::new(truth.checkpoint.clone(), budget, Box::<Oldest>::default(), options)
        };
        let error = make().unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
        assert!(error.to_string().contains("expert records in host memory"), "{error}");
        assert!(make().is_ok(), "the next one gets it");
    }
}

#[test]
fn dead_workers_cost_no_answers() {
    let _watchdog = Watchdog::new("dead_workers_cost_no_answers");
    let truth = Truth::of(demo());
    for (first, dead) in [(1, 2), (40, 2), (60, 1)] {
        let faults = Faults::span(Point::Worker, first, dead);
        let store = truth.store(
            truth.whole(),
            options(|o| {
                o.background = true;
                o.faults = faults.clone();
            }),
        );
        store.wait_loaded().unwrap();
        assert_eq!(store.stats().resident, truth.ids.len() as u64);
        for &id in &truth.ids {
            assert_eq!(store.get(id).unwrap().as_ref(), truth.record(id));
        }
    }
    let store = truth.store(truth.slot * 2, options(|o| o.faults = Faults::span(Point::Worker, 1, 2)));
    // Each request wakes a thread, which dies.
    while store.stats().workers > 0 {
        store.request(truth.ids[3]);
        std::thread::yield_now();
    }
    assert!(!store.request(truth.ids[4]), "nobody is left to read ahead");
    assert_eq!(store.get(truth.ids[3]).unwrap().as_ref(), truth.record(truth.ids[3]));
}

#[test]
fn what_is_leased_stays_and_waiting_for_it_ends() {
    let _watchdog = Watchdog::new("what_is_leased_stays_and_waiting_for_it_ends");
    let truth = Truth::of(demo());
    let store = truth.store(truth.slot, options(|o| o.patience = Duration::from_millis(20)));
    let held = store.get(truth.ids[0]).unwrap();
    let again = held.clone();
    let error = store.get(truth.ids[1]).unwrap_err();
    named(&error, truth.ids[1]);
    assert!(error.to_string().contains("all 1 slots stayed in use"), "{error}");
    drop(held);
    assert!(store.get(truth.ids[1]).is_err(), "the copy is a lease too");
    assert_eq!(again.as_ref(), truth.record(truth.ids[0]));
    drop(again);
    assert_eq!(store.get(truth.ids[1]).unwrap().as_ref(), truth.record(truth.ids[1]));

    // With patience, a lease that ends lets the waiting one on.
    let store = truth.store(truth.slot, options(|o| o.patience = Duration::from_secs(600)));
    let held = store.get(truth.ids[0]).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| store.get(truth.ids[1]).unwrap());
        while store.stats().waits == 0 {
            std::thread::yield_now();
        }
        drop(held);
        assert_eq!(waiting.join().unwrap().as_ref(), truth.record(truth.ids[1]));
    });
    // A record outlives its store, also where devices keep it.
    let kept: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(store.get(truth.ids[1]).unwrap());
    drop(store);
    assert_eq!((*kept).as_ref(), truth.record(truth.ids[1]));
}

#[test]
fn what_another_tier_has_goes_first() {
    let truth = Truth::of(demo());
    let store = truth.store(truth.slot * 4, options(|_| {}));
    let ids = &truth.ids;
    ids[..4].iter().for_each(|&id| drop(store.get(id).unwrap()));
    store.demote(ids[2]);
    store.demote(ids[3]);
    store.demote(ids[1]);
    store.promote(ids[1]);
    let tiers =
        |store: &HostStore| ids[..6].iter().map(|&id| store.tier(id) == Tier::Host).collect::<Vec<_>>();
    drop(store.get(ids[4]).unwrap());
    assert_eq!(tiers(&store), [true, true, false, true, true, false]);
    // Being asked for here ends it.
    drop(store.get(ids[3]).unwrap());
    drop(store.get(ids[5]).unwrap());
    assert_eq!(tiers(&store), [false, true, false, true, true, true], "the oldest went");
}

#[test]
fn requests_are_read_ahead_and_their_errors_kept() {
    let _watchdog = Watchdog::new("requests_are_read_ahead_and_their_errors_kept");
    let truth = Truth::of(demo());
    let id = truth.ids[9];
    let store = truth.store(truth.slot * 2, options(|_| {}));
    assert!(store.peek(id).is_none());
    assert!(store.request(id) && store.request(id));
    while store.peek(id).is_none() {
        std::thread::yield_now();
    }
    assert_eq!(store.get(id).unwrap().as_ref(), truth.record(id));
    assert_eq!((store.stats().reads, store.stats().hits, store.stats().misses), (1, 1, 0));

    let faults = Faults::span(Point::Read, 1, 2);
    let store = truth.store(truth.slot * 2, options(|o| o.faults = faults.clone()));
    assert!(store.request(id));
    while store.stats().repeats == 0 {
        std::thread::yield_now();
    }
    named(&store.get(id).unwrap_err(), id);
    assert_eq!(store.get(id).unwrap().as_ref(), truth.record(id));
}

#[test]
fn serving_begins_before_all_is_read() {
    let _watchdog = Watchdog::new("serving_begins_before_all_is_read");
    let truth = Truth::of(demo());
    // The first record that is read holds the only thread up until the last expert was served.
    let served = Arc::new(Barrier::new(2));
    let (gate, once) = (served.clone(), AtomicBool::new(false));
    let bytes = Arc::new(AtomicU64::new(0));
    let seen = bytes.clone();
    let store = truth.store(
        truth.whole(),
        options(|o| {
            o.background = true;
            o.load.threads = 1;
            o.load.progress = Some(Arc::new(move |p| {
                seen.fetch_max(p.bytes_done, Ordering::Relaxed);
                if !once.swap(true, Ordering::Relaxed) {
                    gate.wait();
                }
            }));
        }),
    );
    let last = *truth.ids.last().unwrap();
    assert_eq!(store.get(last).unwrap().as_ref(), truth.record(last));
    assert!(store.stats().resident < 4);
    served.wait();
    store.wait_loaded().unwrap();
    assert_eq!(store.stats().resident, truth.ids.len() as u64);
    assert_eq!(store.stats().reads, truth.ids.len() as u64, "nothing was read twice");
    assert!(bytes.load(Ordering::Relaxed) >= truth.slot * (truth.ids.len() as u64 - 1));

    let cancel = Arc::new(AtomicBool::new(true));
    let cancelled = HostStore::new(
        truth.checkpoint.clone(),
        None,
        Box::<Oldest>::default(),
        options(|o| o.load.cancel = Some(cancel)),
    );
    assert!(matches!(cancelled, Err(Error::Cancelled)));
}

#[test]
fn damage_is_found_in_the_background_too() {
    let _watchdog = Watchdog::new("damage_is_found_in_the_background_too");
    let dir = copy(&demo());
    let names =
        ["model.layers.2.mlp.experts.7.up_proj.weight", "model.layers.4.mlp.experts.0.down_proj.weight"];
    for name in names {
        damage(&dir.path().join("model.safetensors"), name, 4321, 0x7f);
    }
    let damaged = [ExpertId::new(2, 7), ExpertId::new(4, 0)];
    let truth = Truth::of(demo());
    let checkpoint = Arc::new(Checkpoint::open(dir.path()).unwrap());
    let make = |budget, background| {
        let options = options(|o| o.background = background);
        HostStore::new(checkpoint.clone(), budget, Box::<Oldest>::default(), options)
    };
    let all_listed = |error: &Error| {
        let Error::Checkpoint { faults, .. } = error else { panic!("{error:?}") };
        let found: Vec<_> = faults.0.iter().filter_map(|f| f.tensor.as_deref()).collect();
        assert_eq!(found, names, "{error}");
    };
    all_listed(&make(None, false).unwrap_err());
    for budget in [None, Some(truth.slot * 8)] {
        let store = make(budget, true).unwrap();
        for &id in &truth.ids {
            let result = store.get(id);
            if let Some(i) = damaged.iter().position(|&d| d == id) {
                let error = result.unwrap_err();
                named(&error, id);
                assert!(error.to_string().contains(names[i]), "{error}");
                assert!(error.to_string().contains("the first at element 4321"), "{error}");
                assert!(store.get(id).is_err(), "it is no better the second time");
            } else {
                assert_eq!(result.unwrap().as_ref(), truth.record(id));
            }
        }
        match budget {
            None => all_listed(&store.wait_loaded().unwrap_err()),
            Some(_) => store.wait_loaded().unwrap(),
        }
    }
}

#[test]
fn a_file_that_changes_while_in_use_is_noticed() {
    let dir = copy(&demo());
    let file = dir.path().join("model.safetensors");
    let truth = Truth::of(dir.path());
    let store = truth.store(truth.slot * 2, options(|_| {}));
    let held = store.get(truth.ids[0]).unwrap();
    let len = std::fs::metadata(&file).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(len / 2).unwrap();
    for &id in &[truth.ids[1], *truth.ids.last().unwrap()] {
        let error = store.get(id).unwrap_err();
        named(&error, id);
        assert!(error.to_string().contains("changed while it was being read"), "{error}");
    }
    assert_eq!(held.as_ref(), truth.record(truth.ids[0]));
    assert!(store.get(truth.ids[0]).is_ok(), "what is in memory is still served");
}

#[test]
fn bytes_brought_elsewhere_can_be_verified() {
    let truth = Truth::of(demo());
    let id = truth.ids[5];
    let mut bytes = truth.record(id).to_vec();
    let store = truth.store(truth.slot, options(|_| {}));
    store.verify(id, b"anything", Tier::Device, None).unwrap();
    drop(store.get(id).unwrap());
    store.verify(id, &bytes, Tier::Device, Some(17)).unwrap();
    bytes[4000] ^= 4;
    let error = store.verify(id, &bytes, Tier::Device, Some(17)).unwrap_err();
    named(&error, id);
    assert!(error.to_string().contains("(device memory, slot 17): checksum is"), "{error}");
    let store = truth.store(truth.slot, options(|o| o.checksums = false));
    drop(store.get(id).unwrap());
    store.verify(id, &bytes, Tier::Device, None).unwrap();
}

#[test]
fn regions_are_handed_out_whole_while_records_are_read() {
    let _watchdog = Watchdog::new("regions_are_handed_out_whole_while_records_are_read");
    let truth = Truth::of(demo());
    let store = truth.store(truth.whole(), options(|o| o.background = true));
    let mut total = 0;
    let mut places = Vec::new();
    store
        .on_chunk(&mut |chunk| {
            total += chunk.len() as u64;
            places.push(chunk.as_ptr() as usize..chunk.as_ptr() as usize + chunk.len());
            // SAFETY: only address and length are used.
            let bytes = unsafe { chunk.bytes() };
            assert_eq!(((*bytes).as_ref().as_ptr(), (*bytes).as_ref().len()), (chunk.as_ptr(), chunk.len()));
            Ok(())
        })
        .unwrap();
    assert_eq!(total, store.stats().capacity);
    store.wait_loaded().unwrap();
    for &id in &truth.ids {
        let record = store.get(id).unwrap();
        assert_eq!(record.as_ref(), truth.record(id), "committing changed nothing");
        let at = record.as_ref().as_ptr() as usize;
        assert!(at % 4096 == 0 && places.iter().any(|place| place.contains(&at)));
    }
    let refused = store.on_chunk(&mut |_| Err(Error::Cancelled));
    assert!(matches!(refused, Err(Error::Cancelled)));
}

/// Set in the process that measures itself.
const MEASURED: &str = "ABRUZZI_TEST_MEASURED_CHECKPOINT";

/// In a process of its own: other tests' memory would be counted.
#[test]
fn memory_stays_within_the_budget() {
    const NAME: &str = "memory_stays_within_the_budget";
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
