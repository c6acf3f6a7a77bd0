use std::collections::HashSet;

use super::*;

/// Takes everything it has room for.
#[derive(Default)]
struct Gpu {
    there: HashSet<ExpertId>,
    started: Vec<ExpertId>,
    shares: Vec<f64>,
    worth_more: HashSet<ExpertId>,
}

impl Destination for Gpu {
    fn absent(&self, id: ExpertId) -> bool {
        !self.there.contains(&id)
    }

    fn start(&mut self, id: ExpertId, _right: f64, share: f64) -> bool {
        let taken = !self.worth_more.contains(&id);
        if taken {
            self.there.insert(id);
            self.started.push(id);
            self.shares.push(share);
        }
        taken
    }
}

fn ids(experts: &[usize]) -> Vec<ExpertId> {
    experts.iter().map(|&e| ExpertId::new(3, e)).collect()
}

/// Only the link brings experts; it is idle for 2 ms, which two and a half copies fill.
fn link() -> Window {
    Window { link_free_in: 1.0, needed_in: 3.0, copy: 0.8, link_wanted: true, cpu: None, cpu_busy: 0.0 }
}

/// The CPU computes experts faster than the link brings them.
fn cpu() -> Window {
    Window { cpu: Some(0.15), cpu_busy: 0.6, link_free_in: 0.0, needed_in: 0.7, link_wanted: false, ..link() }
}

#[test]
fn only_idle_link_time_is_used_and_only_for_the_absent() {
    let mut prefetcher = Prefetcher::new();
    let mut gpu = Gpu { there: HashSet::from_iter(ids(&[5])), ..Gpu::default() };
    prefetcher.issue(&ids(&[5, 1, 2, 4, 6]), link(), &mut gpu);
    assert_eq!(gpu.started, ids(&[1, 2, 4]));
    assert!((gpu.shares[2] - 0.5).abs() < 1e-9, "half of the third fits: {:?}", gpu.shares);
    assert_eq!(gpu.shares[..2], [1.0, 1.0]);
    let mut gpu = Gpu::default();
    prefetcher.issue(&ids(&[1, 2]), Window { link_free_in: 3.0, ..link() }, &mut gpu);
    assert_eq!(gpu.started, [], "the link is busy");
    prefetcher.issue(&ids(&[1, 2]), Window { needed_in: 1.02, ..link() }, &mut gpu);
    assert_eq!(gpu.started, [], "a fortieth is not worth beginning");
    prefetcher.issue(&ids(&[1, 2]), Window { needed_in: 1.2, ..link() }, &mut gpu);
    assert_eq!(gpu.started, ids(&[1]));
    assert!((gpu.shares[0] - 0.25).abs() < 1e-9, "{:?}", gpu.shares);
}

#[test]
fn a_part_saves_its_time_when_right_and_costs_only_what_comes_late_when_wrong() {
    let window = link();
    assert_eq!((window.saved(0.0, 0.3), window.lost(0.0, 0.3)), (0.3, 0.0));
    assert!((window.saved(0.1, 0.3) - 0.2).abs() < 1e-9 && window.lost(0.1, 0.3) == 0.1);
    // No more than was copied, and nothing where nobody waits for the link.
    assert_eq!((window.saved(0.5, 0.3), window.lost(0.5, 0.3)), (0.0, 0.3));
    assert_eq!(cpu().lost(0.5, 0.8), 0.0);
}

#[test]
fn beside_a_fast_cpu_copies_are_whole() {
    let mut gpu = Gpu::default();
    Prefetcher::new().issue(&ids(&[1]), Window { needed_in: 0.1, ..cpu() }, &mut gpu);
    assert_eq!((gpu.started, gpu.shares), (vec![], vec![]), "it would come when the CPU has done the work");
    let mut gpu = Gpu::default();
    Prefetcher::new().issue(&ids(&[1]), Window { needed_in: 0.3, ..cpu() }, &mut gpu);
    assert_eq!((gpu.started, gpu.shares), (ids(&[1]), vec![1.0]));
}

#[test]
fn a_part_may_take_the_place_of_what_is_worth_less_than_what_was_just_used() {
    assert_eq!(worth_of_guess(0.1, 0.5, 0.25, false), 0.2);
    assert_eq!(worth_of_guess(0.1, 0.5, 0.25, true), 0.5);
    assert_eq!(worth_of_guess(0.7, 0.5, 0.25, true), 0.7, "never less than the policy says");
}

#[test]
fn what_is_worth_more_stays() {
    let mut prefetcher = Prefetcher::new();
    let mut gpu = Gpu { worth_more: HashSet::from_iter(ids(&[1])), ..Gpu::default() };
    prefetcher.issue(&ids(&[1, 2]), link(), &mut gpu);
    assert_eq!(gpu.started, ids(&[2]));
    assert_eq!(prefetcher.stats().issued, 1);
}

#[test]
fn accounts_are_kept() {
    let mut prefetcher = Prefetcher::new();
    let mut gpu = Gpu::default();
    assert_eq!((prefetcher.stats().precision(), prefetcher.stats().recall()), (None, None));
    prefetcher.issue(&ids(&[1, 2]), link(), &mut gpu);
    prefetcher.settle(&ids(&[0, 2, 9]), 2, &mut |_| 0.0);
    let expected = PrefetchStats { issued: 2, used: 1, wasted: 1, needed: 3, refilled: 0 };
    assert_eq!(prefetcher.stats(), expected);
    assert_eq!(prefetcher.stats().precision(), Some(0.5));
    assert_eq!(prefetcher.stats().recall(), Some(1.0 / 3.0));
    // Settled once.
    prefetcher.settle(&ids(&[0, 2, 9]), 2, &mut |_| 0.0);
    assert_eq!(prefetcher.stats(), expected);
}

#[test]
fn beside_a_fast_cpu_idle_time_goes_to_guesses_then_to_what_was_missed() {
    let mut prefetcher = Prefetcher::new();
    let mut gpu = Gpu { worth_more: HashSet::from_iter(ids(&[7])), ..Gpu::default() };
    for id in ids(&[6, 7, 8]) {
        prefetcher.missed(id);
    }
    prefetcher.issue(&ids(&[1, 2]), cpu(), &mut gpu);
    assert_eq!(gpu.started, ids(&[1]), "one copy fills the layer");
    prefetcher.issue(&[], Window { needed_in: 1.5, ..cpu() }, &mut gpu);
    assert_eq!(gpu.started, ids(&[1, 8, 6]), "the latest first, but not where others are worth more");
    assert_eq!(prefetcher.stats().refilled, 2);
    // A copy that comes when the CPU has done the work saves nothing.
    prefetcher.issue(&ids(&[3]), Window { cpu_busy: 0.05, ..cpu() }, &mut gpu);
    assert_eq!(gpu.started.len(), 3);
    // Where the link brings every miss, nothing is brought twice.
    prefetcher.issue(&[], link(), &mut gpu);
    assert_eq!(gpu.started.len(), 3);
}

#[test]
fn missed_experts_are_remembered_once_and_not_for_ever() {
    let mut prefetcher = Prefetcher::new();
    for id in ids(&(0..100).chain(90..100).collect::<Vec<_>>()) {
        prefetcher.missed(id);
    }
    let mut gpu = Gpu::default();
    prefetcher.issue(&[], Window { needed_in: 1e9, ..cpu() }, &mut gpu);
    assert_eq!(gpu.started, ids(&(36..100).rev().collect::<Vec<_>>()));
}

/// `right` of ten guesses are, each coming late.
fn play(prefetcher: &mut Prefetcher, layers: usize, right: usize) -> usize {
    let mut guessed = 0;
    for layer in 0..layers {
        if prefetcher.wants_guesses() {
            guessed += 1;
            // A quarter of the copy is late for weights that are streamed: pays from four in seven on.
            let window = Window { link_free_in: 1.0, needed_in: 1.6, link_wanted: true, ..cpu() };
            prefetcher.issue(&ids(&[1]), window, &mut Gpu::default());
            let used = if layer % 10 < right { ids(&[1]) } else { ids(&[2]) };
            prefetcher.settle(&used, 0, &mut |_| 0.2);
        } else {
            prefetcher.issue(&[], link(), &mut Gpu::default());
            prefetcher.settle(&ids(&[2]), 1, &mut |_| 0.0);
        }
    }
    guessed
}

#[test]
fn confidence_follows_what_is_right() {
    let mut prefetcher = Prefetcher::new();
    assert!((prefetcher.confidence(0) - 0.92).abs() < 1e-9);
    assert_eq!(prefetcher.confidence(999), prefetcher.confidence(15));
    play(&mut prefetcher, 1000, 8);
    assert!((prefetcher.confidence(0) - 0.8).abs() < 0.1, "{}", prefetcher.confidence(0));
    assert!(!prefetcher.is_off(), "eight of ten right pays");
    // Right in one of ten, the rule of a single guess stops issuing before the window is full.
    play(&mut prefetcher, 2000, 1);
    let before = prefetcher.stats().issued;
    play(&mut prefetcher, 1000, 1);
    assert_eq!(prefetcher.stats().issued, before);
}

#[test]
fn it_stops_when_it_does_not_pay_and_tries_again() {
    let mut prefetcher = Prefetcher::new();
    // In time by the estimate, late in truth: each wrong guess costs more than a right one saves.
    let mut round = |layers: usize, late: f64| {
        let mut guessed = 0;
        for _ in 0..layers {
            if prefetcher.wants_guesses() {
                guessed += 1;
                prefetcher.issue(&ids(&[1]), link(), &mut Gpu::default());
                prefetcher.settle(&ids(if guessed % 2 == 0 { &[1] } else { &[2] }), 0, &mut |_| late);
            }
        }
        (guessed, prefetcher.is_off())
    };
    assert_eq!(round(WINDOW as usize, 0.7), (WINDOW as usize, true));
    assert_eq!(round(PAUSE as usize - 1, 0.7), (0, true));
    assert_eq!(round(WINDOW as usize, 0.0), (WINDOW as usize, false), "tried again, and it pays now");
}
