use proptest::prelude::*;

use super::*;
use crate::experts::trace::{RoutingTrace, SyntheticTrace};

fn id(layer: u32, expert: u32) -> ExpertId {
    ExpertId { layer, expert }
}

fn anyone(_: ExpertId) -> bool {
    true
}

fn trace_of(layers: u32, experts: usize, top_k: usize, rows: &[Vec<u16>]) -> RoutingTrace {
    let mut trace = RoutingTrace::new((0..layers).collect(), experts, top_k).unwrap();
    rows.iter().for_each(|row| trace.push(row).unwrap());
    trace
}

/// All policies, Belady's among them, for a tier of `slots`.
fn policies(trace: &RoutingTrace, slots: usize) -> Vec<Box<dyn Policy>> {
    let online = CachePolicy::ALL.map(|p| p.build(slots, 9, trace.experts(), trace.top_k()));
    let mut all: Vec<_> = online.into_iter().collect();
    all.push(Box::new(StaticHot::from_trace(trace)));
    all.push(Box::new(Belady::keeping_all(trace)));
    all.push(Box::new(Belady::new(trace)));
    all
}

#[test]
fn names_are_read_as_they_are_written() {
    for policy in CachePolicy::ALL {
        assert_eq!(policy.to_string().parse::<CachePolicy>().unwrap(), policy);
        assert_eq!(policy.build(4, 2, 8, 2).name(), policy.to_string());
    }
    let said = "fifo".parse::<CachePolicy>().unwrap_err().to_string();
    assert_eq!(said, r#"`cache-policy` is "fifo", expected one of reuse, lru, lfru, s3-fifo, static"#);
}

#[test]
fn passes_follow_the_order_of_layers() {
    let mut passes = Passes::default();
    let seen: Vec<u32> = [(1, false), (1, false), (3, false), (1, false), (1, true)]
        .map(|(l, again)| passes.touch(l, again))
        .into();
    assert_eq!(seen, [1, 1, 1, 2, 3]);
}

#[test]
fn lru_gives_up_the_oldest_that_may_go() {
    let mut lru = Lru::new();
    for expert in 0..3 {
        lru.touch(id(1, expert));
        lru.insert(id(1, expert));
    }
    lru.touch(id(1, 0));
    assert_eq!(lru.victim(id(1, 9), &mut anyone), Victim::Evict(id(1, 1)));
    assert_eq!(lru.victim(id(1, 9), &mut |e| e.expert != 1), Victim::Evict(id(1, 2)));
    assert_eq!(lru.victim(id(1, 9), &mut |_| false), Victim::None);
    assert!(lru.worth(id(1, 0)) > lru.worth(id(1, 2)));
}

#[test]
fn lfru_weighs_frequency_against_recency() {
    let mut lfru = Lfru::new();
    for expert in [0, 1] {
        lfru.insert(id(0, expert));
    }
    (0..5).for_each(|_| lfru.touch(id(0, 0)));
    lfru.touch(id(0, 1));
    // Used once, lately, is less than five times just before that.
    assert_eq!(lfru.victim(id(0, 9), &mut anyone), Victim::Evict(id(0, 1)));
    // A hundred passes later the five count for little.
    (0..100).for_each(|_| lfru.touch(id(0, 2)));
    lfru.touch(id(0, 1));
    assert_eq!(lfru.victim(id(0, 9), &mut anyone), Victim::Evict(id(0, 0)));
}

#[test]
fn s3_fifo_keeps_what_is_used_again() {
    let mut s3 = S3Fifo::new(10);
    for expert in 0..10 {
        s3.insert(id(0, expert));
    }
    s3.touch(id(0, 0));
    // The oldest was used again and moves on; the next was not.
    assert_eq!(s3.victim(id(0, 10), &mut anyone), Victim::Evict(id(0, 1)));
    s3.remove(id(0, 1));
    s3.insert(id(0, 10));
    assert_eq!(s3.victim(id(0, 1), &mut anyone), Victim::Evict(id(0, 2)));
    s3.remove(id(0, 2));
    // Remembered: it comes back to the main queue, and outlasts the small one.
    s3.insert(id(0, 1));
    for expert in 3..10 {
        assert_eq!(s3.victim(id(0, 11), &mut anyone), Victim::Evict(id(0, expert)));
        s3.remove(id(0, expert));
    }
    assert!(s3.worth(id(0, 1)) > s3.worth(id(0, 9)));
}

#[test]
fn static_hot_lets_the_others_pass() {
    let trace = trace_of(1, 4, 1, &[vec![0], vec![1], vec![0], vec![1], vec![2]]);
    let mut hot = StaticHot::from_trace(&trace);
    hot.insert(id(0, 0));
    hot.insert(id(0, 2));
    (0..9).for_each(|_| hot.touch(id(0, 3)));
    assert_eq!(hot.victim(id(0, 3), &mut anyone), Victim::Bypass);
    assert_eq!(hot.victim(id(0, 1), &mut anyone), Victim::Evict(id(0, 2)));
}

/// The two things least recent use gets wrong below one token's experts.
#[test]
fn reuse_keeps_some_of_a_cycle_and_lru_nothing() {
    let rows: Vec<_> = (0..200).map(|_| vec![0, 1, 2, 3, 4, 5, 6, 7]).collect();
    let trace = trace_of(8, 8, 1, &rows);
    let rate = |policy: CachePolicy| evaluate(&trace, &mut *policy.build(6, 8, 8, 1), 6).rate();
    assert_eq!(rate(CachePolicy::Lru), 0.0);
    assert!(rate(CachePolicy::Reuse) > 0.7, "{}", rate(CachePolicy::Reuse));
}

/// A newcomer that was never used is passed over, unless something else than its past speaks for it.
#[test]
fn reuse_does_not_pass_over_a_guess() {
    let mut reuse = Reuse::new();
    for pass in 0..40 {
        reuse.touch(id(0, 0));
        if pass % 3 != 0 {
            reuse.touch(id(0, 1));
        }
        reuse.touch(id(1, 0));
    }
    reuse.insert(id(0, 0));
    reuse.insert(id(0, 1));
    assert_eq!(reuse.victim(id(0, 9), &mut anyone), Victim::Bypass);
    assert_eq!(reuse.least(id(0, 9), &mut anyone), Victim::Evict(id(0, 1)));
    assert_eq!(reuse.least(id(0, 9), &mut |other| other == id(0, 0)), Victim::Evict(id(0, 0)));
    assert_eq!(reuse.least(id(0, 9), &mut |_| false), Victim::None);
}

#[test]
fn reuse_follows_a_change_of_subject() {
    let half = |from: u16| (0..300).map(move |i| vec![from + i % 3, from + (i + 1) % 3]);
    let rows: Vec<_> = half(0).chain(half(10)).collect();
    let trace = trace_of(1, 20, 2, &rows);
    // Only what a subject's first tokens bring is missed; some tokens pass before the old subject is given up.
    let result = evaluate(&trace, &mut Reuse::new(), 3);
    assert!(result.rate() > 0.9, "{result:?}");
}

#[test]
fn belady_follows_prefill_chunks() {
    let rows: Vec<Vec<u16>> =
        [[0, 1, 0, 1], [0, 2, 0, 1], [3, 1, 0, 1], [0, 1, 0, 1], [2, 3, 0, 1]].map(Vec::from).into();
    let mut trace = trace_of(2, 4, 2, &rows);
    trace.set_prompt(vec![2, 1]).unwrap();
    // Layer 0 uses 0 1 2 | 3 1 | 0 1 | 2 3 and layer 1 uses 0 1 in each pass: four slots. Layer 1's stay; so do 0 and 1
    // of layer 0 to the third pass, as 2 and 3 come later.
    let result = evaluate(&trace, &mut Belady::new(&trace), 4);
    assert_eq!((result.uses, result.hits), (17, 3 + 6));
}

#[test]
fn what_is_foretold_stays_until_it_was_used() {
    let rows = [[0, 0], [1, 1], [2, 0], [0, 1]].map(Vec::from);
    let trace = trace_of(2, 4, 1, &rows);
    let run = |share: f64, seen: &[ExpertId]| {
        let mut foretold = Foretold::new(&trace, share);
        for e in [id(0, 0), id(1, 0), id(1, 1)] {
            foretold.insert(e);
        }
        seen.iter().for_each(|&e| foretold.touch(e));
        // Which residents it lets go, one after the other, for an expert that nothing is known of.
        let mut gone = Vec::new();
        while let Victim::Evict(e) = foretold.least(id(1, 3), &mut |e| !gone.contains(&e)) {
            assert!(foretold.worth(e) < 1.0);
            gone.push(e);
        }
        gone.sort();
        gone
    };
    // Layer 0 of the second pass: its layer 1 goes to expert 1.
    let seen = [id(0, 0), id(1, 0), id(0, 1)];
    assert_eq!(run(0.0, &seen), [id(0, 0), id(1, 0)]);
    // Then nothing is known, but for who knows the third pass: it goes to experts 2 and 0.
    let seen = [id(0, 0), id(1, 0), id(0, 1), id(1, 1)];
    assert_eq!(run(0.0, &seen), [id(0, 0), id(1, 0), id(1, 1)]);
    assert_eq!(run(1.0, &seen), [id(0, 0), id(1, 1)]);
    // Of every second pass: not of the third, but of the fourth, which goes to experts 0 and 1.
    assert_eq!(run(0.5, &seen), [id(0, 0), id(1, 0), id(1, 1)]);
    assert_eq!(run(0.5, &[&seen[..], &[id(0, 2), id(1, 0)]].concat()), [id(1, 0)]);
    // Before the first use and behind the last there is nothing to tell.
    assert_eq!(run(1.0, &[]).len(), 3);
    let end = [&seen[..], &[id(0, 2), id(1, 0), id(0, 0), id(1, 1)]].concat();
    assert_eq!(run(1.0, &end).len(), 3);
}

/// With two slots for a token's three experts: who knows the next token keeps what it uses.
#[test]
fn who_is_told_more_hits_more() {
    let trace = RoutingTrace::synthetic(&SyntheticTrace {
        layers: vec![1, 2, 4],
        experts: 12,
        top_k: 1,
        tokens: 2000,
        seed: 3,
    })
    .unwrap();
    let told = |share| evaluate(&trace, &mut Foretold::new(&trace, share), 2).rate();
    let (default, best) =
        (evaluate(&trace, &mut Reuse::new(), 2), evaluate(&trace, &mut Belady::new(&trace), 2));
    let rates = [default.rate() - 0.01, told(0.0), told(0.5), told(1.0), best.rate()];
    assert!(rates.is_sorted(), "{rates:?}");
    assert!(told(1.0) > told(0.0) + 0.05, "{rates:?}");
}

/// The most hits a tier can have when experts are used one by one: every choice tried.
fn most_hits(uses: &[u16], resident: &mut Vec<u16>, slots: usize) -> usize {
    let Some((&used, rest)) = uses.split_first() else { return 0 };
    if resident.contains(&used) {
        return 1 + most_hits(rest, resident, slots);
    }
    let mut most = most_hits(rest, resident, slots);
    if resident.len() < slots {
        resident.push(used);
        most = most.max(most_hits(rest, resident, slots));
        resident.pop();
    } else {
        for at in 0..slots {
            let old = std::mem::replace(&mut resident[at], used);
            most = most.max(most_hits(rest, resident, slots));
            resident[at] = old;
        }
    }
    most
}

proptest! {
    #[test]
    fn belady_is_the_best_there_is(uses in prop::collection::vec((0_u16..3, 0_u16..3), 1..5), slots in 1_usize..4) {
        let rows: Vec<_> = uses.iter().map(|&(a, b)| vec![a, b]).collect();
        let hits = evaluate(&trace_of(2, 3, 1, &rows), &mut Belady::new(&trace_of(2, 3, 1, &rows)), slots).hits;
        let ids: Vec<u16> = uses.iter().flat_map(|&(a, b)| [a, 10 + b]).collect();
        prop_assert_eq!(hits as usize, most_hits(&ids, &mut Vec::new(), slots));
    }

    /// A policy gives up only what is there and may go, whatever it is told and in whatever order.
    #[test]
    fn victims_are_residents_that_may_go(steps in prop::collection::vec((0_u8..4, 0_u32..3, 0_u32..6), 1..200)) {
        let trace = RoutingTrace::synthetic(&SyntheticTrace {
            layers: vec![0, 1, 2], experts: 6, top_k: 2, tokens: 20, seed: 5,
        }).unwrap();
        for mut policy in policies(&trace, 5) {
            let mut residents: Vec<ExpertId> = Vec::new();
            for &(step, layer, expert) in &steps {
                let at = id(layer, expert);
                match step {
                    0 => policy.touch(at),
                    1 if !residents.contains(&at) => {
                        policy.insert(at);
                        residents.push(at);
                    }
                    2 => {
                        policy.remove(at);
                        residents.retain(|&r| r != at);
                    }
                    _ => {
                        let mut may_go = |e: ExpertId| e.layer != layer;
                        let victim = policy.victim(at, &mut may_go);
                        let some = residents.iter().any(|r| r.layer != layer);
                        match victim {
                            Victim::Evict(old) => {
                                prop_assert!(residents.contains(&old) && old.layer != layer, "{}", policy.name());
                            }
                            Victim::None => prop_assert!(!some, "{} has a victim", policy.name()),
                            Victim::Bypass => prop_assert!(some, "{} has none", policy.name()),
                        }
                    }
                }
                prop_assert!(policy.worth(at).is_finite());
            }
        }
    }
}

/// A victim costs a look at few residents, however many there are.
#[test]
fn few_are_asked() {
    let trace = RoutingTrace::synthetic(&SyntheticTrace::kimi_k2(12, 1)).unwrap();
    for mut policy in policies(&trace, 2250) {
        let mut resident = std::collections::HashSet::new();
        let mut used = Vec::new();
        for pass in trace.passes() {
            for layer in 0..60 {
                trace.used(pass.clone(), layer, &mut used);
                used.iter().for_each(|&e| policy.touch(e));
                for &e in used.iter().filter(|e| resident.len() < 2250 && resident.insert(**e)) {
                    policy.insert(e);
                }
            }
        }
        assert_eq!(resident.len(), 2250);
        let mut asked = 0;
        let victim = policy.victim(id(60, 383), &mut |_| {
            asked += 1;
            true
        });
        assert_ne!(victim, Victim::None);
        // One a layer at most; S3-FIFO looks at each of its queue once, then not again.
        if policy.name() != "s3-fifo" {
            assert!(asked <= 60, "{} asked {asked} times", policy.name());
        }
    }
}
