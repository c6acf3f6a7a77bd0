//! The host store: whatever its budget and whatever goes wrong, a record is the expert's or there is an error that
//! names it.

mod budget;
#[path = "../common/mod.rs"]
mod common;
mod direct;
mod faults;
mod truth;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use abruzzi::Error;
use abruzzi::checkpoint::ReadBuffer;
use abruzzi::error::Tier;
use abruzzi::experts::ExpertId;
use abruzzi::experts::fault::{Faults, Point};
use abruzzi::experts::host::HostStore;
use common::{demo, oracle};
use truth::{Oldest, Truth, Watchdog, named, options};

#[test]
fn records_are_what_the_files_hold() {
    for case in ["demo", "k2-fp8", "k2-int4", "k2-bf16", "v3-groups-fp8"] {
        let truth = Truth::of(common::checkpoint(case));
        let mut buffer = ReadBuffer::new().unwrap();
        truth.forget_cached();
        for &id in &truth.ids {
            let (layer, expert) = (id.layer as usize, id.expert as usize);
            let size = truth.checkpoint.record_layout(layer).unwrap().size();
            // Remains of another record, to be overwritten, padding too.
            let mut cached = vec![0xa5; size];
            let mut direct = vec![0x5a; size];
            truth.checkpoint.read_expert_direct(layer, expert, &mut direct, &mut buffer).unwrap();
            truth.checkpoint.read_expert(layer, expert, &mut cached).unwrap();
            assert!(cached == truth.record(id), "{case}: {id}");
            assert!(direct == truth.record(id), "{case}: {id}, around the cache");
        }
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
    let policy = Box::new(Oldest::stubborn());
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
    let store = truth.store(truth.slot, options(|o| o.patience = Duration::MAX));
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
    // Whoever read the last record tells after it is there.
    while bytes.load(Ordering::Relaxed) < truth.slot * (truth.ids.len() as u64 - 1) {
        std::thread::yield_now();
    }

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
        assert!(at.is_multiple_of(4096) && places.iter().any(|place| place.contains(&at)));
    }
    let refused = store.on_chunk(&mut |_| Err(Error::Cancelled));
    assert!(matches!(refused, Err(Error::Cancelled)));
}
