//! The protocol of one slot by one thread. Beside `slots.rs`, which the model checker's test includes as it is.

use super::slots::*;

const ALL: [State; 5] = [State::Empty, State::Loading, State::Ready, State::Evicting, State::Lent];

fn table_in(state: State, leases: u32, generation: u32) -> SlotTable {
    SlotTable::starting_as(Status { state, leases, generation })
}

fn why<T: std::fmt::Debug>(result: Result<T, Refused>) -> Why {
    result.expect_err("refused").why
}

#[test]
fn words_keep_their_parts() {
    for state in ALL {
        for leases in [0, 1, MOST_LEASES] {
            for generation in [0, 1, u32::MAX] {
                let status = Status { state, leases, generation };
                assert_eq!(unpack(pack(status)), status);
            }
        }
    }
}

#[test]
fn a_life() {
    let table = SlotTable::new(2);
    let at = table.begin_load(1).expect("empty");
    assert_eq!(at, SlotRef { slot: 1, generation: 1 });
    assert!(table.lease(at).is_none(), "not loaded yet");
    table.ready(at).expect("loading");
    let (first, second) = (table.lease(at).expect("ready"), table.lease(at).expect("ready"));
    assert_eq!(first.at(), at);
    assert_eq!(why(table.begin_evict(at)), Why::Leased { leases: 2 });
    drop(first);
    assert_eq!(why(table.begin_evict(at)), Why::Leased { leases: 1 });
    drop(second);
    table.begin_evict(at).expect("no leases");
    assert!(table.lease(at).is_none(), "being evicted");
    table.finish_evict(at).expect("evicting");
    let again = table.begin_load(1).expect("empty");
    assert_eq!(again.generation, 2);
    table.abandon(again).expect("loading");
    assert_eq!(table.begin_load(1).expect("empty").generation, 3);
    assert_eq!(table.status(0), Some(Status { state: State::Empty, leases: 0, generation: 0 }));
    assert_eq!(table.status(2), None);
}

/// Every operation in every state: allowed from one state only, refused with that state's name from the others,
/// and a refusal changes nothing.
#[test]
fn each_step_starts_from_one_state() {
    type Operation = fn(&SlotTable, SlotRef) -> Result<(), Refused>;
    let operations: [(State, State, Operation); 7] = [
        (State::Empty, State::Loading, |t, at| t.begin_load(at.slot).map(drop)),
        (State::Loading, State::Ready, |t, at| t.ready(at)),
        (State::Loading, State::Empty, |t, at| t.abandon(at)),
        (State::Ready, State::Evicting, |t, at| t.begin_evict(at)),
        (State::Evicting, State::Empty, |t, at| t.finish_evict(at)),
        (State::Empty, State::Lent, |t, at| t.lend(at.slot)),
        (State::Lent, State::Empty, |t, at| t.give_back(at.slot)),
    ];
    for (from, to, operation) in operations {
        for state in ALL {
            let table = table_in(state, 0, 7);
            let result = operation(&table, SlotRef { slot: 0, generation: 7 });
            let after = table.status(0).expect("a slot").state;
            if state == from {
                assert_eq!((result, after), (Ok(()), to));
            } else {
                assert_eq!((why(result), after), (Why::State { is: state, needed: from }, state));
            }
        }
    }
}

#[test]
fn stale_references_are_refused() {
    let old = SlotRef { slot: 0, generation: 6 };
    let stale = Why::Stale { asked: 6, has: 7 };
    assert_eq!(why(table_in(State::Loading, 0, 7).ready(old)), stale);
    assert_eq!(why(table_in(State::Loading, 0, 7).abandon(old)), stale);
    assert_eq!(why(table_in(State::Ready, 0, 7).begin_evict(old)), stale);
    assert_eq!(why(table_in(State::Evicting, 0, 7).finish_evict(old)), stale);
    assert!(table_in(State::Ready, 0, 7).lease(old).is_none());
}

#[test]
fn slots_outside_the_table_are_refused() {
    let (table, at) = (SlotTable::new(3), SlotRef { slot: 3, generation: 1 });
    let none = Why::NoSuchSlot { slots: 3 };
    assert_eq!(why(table.begin_load(3)), none);
    assert_eq!(why(table.ready(at)), none);
    assert_eq!(why(table.give_back(u32::MAX)), none);
    assert!(table.lease(at).is_none());
    let text = table.lend(3).expect_err("refused").to_string();
    assert_eq!(text, "cannot lend slot 3: there are 3 slots");
}

#[test]
fn generations_wrap_past_zero() {
    let table = table_in(State::Empty, 0, u32::MAX);
    assert_eq!(table.begin_load(0).expect("empty").generation, 1);
}

#[test]
fn leases_do_not_overflow_into_the_state() {
    let table = table_in(State::Ready, MOST_LEASES, 7);
    assert!(table.lease(SlotRef { slot: 0, generation: 7 }).is_none());
    assert_eq!(table.status(0).expect("a slot").state, State::Ready);
}
