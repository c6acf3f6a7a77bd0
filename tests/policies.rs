//! How good the cache policies are, on routing of the demo model and on synthetic routing of Kimi-K2's kind.
//! `docs/notes/policies.md` has the longer measurements.

mod common;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};

use abruzzi::device::SampleSettings;
use abruzzi::device::cpu::CpuDevice;
use abruzzi::experts::policy::{Belady, CachePolicy, Foretold, evaluate};
use abruzzi::experts::residency::Placement;
use abruzzi::experts::trace::{RoutingTrace, SyntheticTrace};
use abruzzi::model::Model;
use abruzzi::{Checkpoint, LoadOptions, Tokenizer};
use common::checkpoint;

/// Fewer layers than Kimi-K2 has, for the sake of time; layers behave alike.
static SYNTHETIC: LazyLock<RoutingTrace> = LazyLock::new(|| {
    let shape = SyntheticTrace { layers: (1..=12).collect(), ..SyntheticTrace::kimi_k2(4000, 1) };
    RoutingTrace::synthetic(&shape).unwrap()
});

/// The routing of the first 4,096 tokens of the held-out text, in windows of 512.
static DEMO: LazyLock<RoutingTrace> = LazyLock::new(|| {
    let dir = checkpoint("demo");
    let checkpoint = Arc::new(Checkpoint::open(&dir).unwrap());
    let config = checkpoint.config().clone();
    let text = std::fs::read_to_string(dir.join("heldout.txt")).unwrap();
    let text = Tokenizer::from_dir(&dir, config.vocab_size).unwrap().encode(&text).unwrap();
    let mut trace = RoutingTrace::new(vec![1, 2, 3, 4], config.moe.num_experts, config.moe.top_k).unwrap();
    let (cpu, load) = (CpuDevice::new(0).unwrap(), LoadOptions::default());
    let model = Arc::new(Model::load(&checkpoint, cpu, &load, &Placement::default()).unwrap());
    let greedy = SampleSettings { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
    for window in text.chunks_exact(512).take(8) {
        let mut sequence = model.sequence().unwrap();
        sequence.next(window, &greedy, 0, &AtomicBool::new(false)).unwrap();
        trace.push_pass(&sequence.routing().unwrap()).unwrap();
    }
    assert_eq!(trace.tokens(), 4096);
    trace
});

/// What each policy and Belady's achieve with `slots`.
fn rates(trace: &RoutingTrace, slots: usize) -> (Vec<(CachePolicy, f64)>, f64) {
    let build = |policy: CachePolicy| policy.build(slots, 61, trace.experts(), trace.top_k());
    let of = |policy| (policy, evaluate(trace, &mut *build(policy), slots).rate());
    (CachePolicy::ALL.map(of).into(), evaluate(trace, &mut Belady::new(trace), slots).rate())
}

/// At every size the default is near the best other policy or better, and the one that knows the future is the bound.
/// Returns how far below that bound the default is with 12 % of the experts resident.
fn compare(trace: &RoutingTrace) -> f64 {
    let (all, token) = (trace.all_experts(), trace.working_set());
    let share = |percent| all * percent / 100;
    let check = |trace: &RoutingTrace, slots: usize| {
        let (rates, belady) = rates(trace, slots);
        let default = rates.iter().find(|(p, _)| *p == CachePolicy::default()).unwrap().1;
        for &(policy, rate) in &rates {
            assert!(default >= 0.95 * rate, "{slots} slots: {default} for {rate} of {policy}");
            assert!(belady >= rate, "{slots} slots: {policy} has {rate}, the bound is {belady}");
        }
        belady - default
    };
    let half = trace.head(trace.tokens() / 2);
    for slots in [token / 2, token, share(3), share(6), share(24), share(48)] {
        check(&half, slots);
    }
    check(trace, share(12))
}

#[test]
fn default_policy_on_synthetic_routing() {
    let gap = compare(&SYNTHETIC);
    assert!(gap <= 0.10, "{gap} below Belady at 12 %");
}

/// The demo model's experts are used nearly evenly and 12 % of them are fewer than one token uses, so there is less to
/// know from the past than in a large model: the bound is further away.
#[test]
fn default_policy_on_the_demo_model() {
    let gap = compare(&DEMO);
    assert!(gap <= 0.18, "{gap} below Belady at 12 %");
}

/// With 12 % resident: how much more the default hits when it is told the rest of each pass without error, which is the most that
/// guesses of later layers can say; and how far below Belady it is when it is told the next token's experts as well.
fn told(trace: &RoutingTrace) -> (f64, f64) {
    let slots = trace.all_experts() * 12 / 100;
    let told = |next| evaluate(trace, &mut Foretold::new(trace, next), slots).rate();
    let default = CachePolicy::default().build(slots, 61, trace.experts(), trace.top_k());
    let default = evaluate(trace, &mut *{ default }, slots).rate();
    (told(0.0) - default, evaluate(trace, &mut Belady::new(trace), slots).rate() - told(1.0))
}

/// Why the policy is told no guesses: an expert that a layer misses comes again with the next token at the soonest, and no router
/// knows that token.
#[test]
fn guesses_of_the_layers_to_come_hardly_help_a_cache() {
    for (trace, gap) in [(&*SYNTHETIC, 0.10), (&*DEMO, 0.12)] {
        let (more, below) = told(trace);
        assert!(more.abs() < 0.005, "{more} more hits by the rest of a pass");
        assert!(below < gap, "{below} below Belady with the next token known");
    }
}

/// The published figures: hit rates by resident share, reuse by the next token (30–45 %).
#[test]
fn synthetic_routing_is_as_published() {
    let trace = &*SYNTHETIC;
    let stats = trace.stats();
    assert!((0.30..=0.45).contains(&stats.reused_next), "{stats:?}");
    for (percent, published) in [(6, 0.41), (12, 0.62), (24, 0.79), (48, 0.90)] {
        let slots = trace.all_experts() * percent / 100;
        let rate = evaluate(trace, &mut *CachePolicy::Lru.build(slots, 61, 384, 8), slots).rate();
        assert!((rate - published).abs() <= 0.05, "{percent} %: {rate}, published {published}");
    }
    // One token's experts and no more: only what the next token uses again is still there.
    let slots = trace.all_experts() * 3 / 100;
    let rate = evaluate(trace, &mut *CachePolicy::Lru.build(slots, 61, 384, 8), slots).rate();
    assert!((rate - stats.reused_next).abs() < 0.02, "{rate}");
}
