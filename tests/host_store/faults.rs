//! What goes wrong is mended or told, and never comes out as a record.

use std::path::Path;
use std::sync::Arc;

use abruzzi::experts::ExpertId;
use abruzzi::experts::fault::{Faults, Point};
use abruzzi::experts::host::HostStore;
use abruzzi::{Checkpoint, Error};
use safetensors::SafeTensors;

use crate::common::{copy, demo};
use crate::truth::{Oldest, Truth, Watchdog, named, options};

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
