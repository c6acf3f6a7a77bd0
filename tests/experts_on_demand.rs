//! Experts that are not where they are needed: with few slots on the (emulated) GPU, few records in host memory, or both,
//! the tokens are those of a model that has everything at hand.
#![cfg(feature = "cuda")]

mod common;
#[path = "common/emulator.rs"]
mod emulator;

use std::time::Instant;

use abruzzi::experts::policy::CachePolicy;
use abruzzi::{DeviceChoice, Engine, EngineBuilder};
use common::{GREEDY_PROMPT, checkpoint, golden, greedy};

/// Experts of the demo model: 4 layers of 32, of which a token takes 4 each.
const ALL: usize = 4 * 32;
const ONE_TOKEN: usize = 4 * 4;

/// Tokens to generate; `ABRUZZI_TEST_TOKENS` sets another number.
fn tokens(default: usize) -> usize {
    std::env::var("ABRUZZI_TEST_TOKENS").map_or(default, |n| n.parse().expect("ABRUZZI_TEST_TOKENS"))
}

fn builder() -> EngineBuilder {
    emulator::install();
    Engine::builder(checkpoint("demo")).device(DeviceChoice::Cuda(0))
}

/// A prompt of 256 tokens: the golden text, over and over with a different token each time around.
fn long_prompt() -> Vec<u32> {
    let golden = golden("demo");
    let text = golden.greedy.iter().chain(&golden.ids).copied();
    text.cycle().take(256).enumerate().map(|(i, id)| if i % 64 == 63 { 100 + i as u32 } else { id }).collect()
}

fn want(prompt: &[u32], tokens: usize) -> Vec<u32> {
    let engine = Engine::builder(checkpoint("demo")).device(DeviceChoice::Cpu).load().unwrap();
    greedy(&engine, prompt, tokens)
}

#[test]
fn every_budget_of_slots_gives_the_cpus_tokens() {
    let golden = golden("demo");
    let prompt = &golden.greedy[..GREEDY_PROMPT];
    let tokens = tokens(12);
    let want = want(prompt, tokens);
    for slots in [ALL, ALL / 2, ALL / 4, ALL * 12 / 100, ONE_TOKEN, 1] {
        for cpu_share in [true, false] {
            let engine = builder().expert_slots(slots).cpu_share(cpu_share).load().unwrap();
            assert_eq!(greedy(&engine, prompt, tokens), want, "{slots} slots, CPU {cpu_share}");
            let stats = engine.expert_stats();
            eprintln!("{slots} slots, CPU {cpu_share}: {stats:?}");
            if slots == ALL / 2 {
                assert!(stats.prefetch.issued > 0 && stats.prefetch.used > 0, "{stats:?}");
            }
            if slots < ALL {
                assert!(stats.over_link + stats.on_cpu > 0, "{stats:?}");
            }
            if !cpu_share {
                assert_eq!(stats.on_cpu, 0);
            }
        }
    }
}

/// Copies at once, as late as they may, or in between; warps and blocks in any order. Other tests of this file
/// run under whatever this one has set, and must not care. `ABRUZZI_TEST_FULL=1` has every number of slots with a share for
/// the CPU and without.
#[test]
fn every_schedule_gives_the_cpus_tokens() {
    let golden = golden("demo");
    let prompt = &golden.greedy[..GREEDY_PROMPT];
    let tokens = tokens(2);
    let full = std::env::var_os("ABRUZZI_TEST_FULL").is_some_and(|v| v == "1");
    let want = want(prompt, tokens);
    for schedule in ["eager", "lazy", "random:1", "random:2"] {
        for slots in [ALL / 2, ONE_TOKEN, 1] {
            let cpu_shares: &[bool] = if full { &[true, false] } else { &[slots > ONE_TOKEN] };
            for &cpu_share in cpu_shares {
                let builder = builder().expert_slots(slots).cpu_share(cpu_share);
                emulator::configure(&format!(r#"{{"schedule": "{schedule}"}}"#));
                let begun = Instant::now();
                let engine = builder.load().unwrap();
                let case = format!("schedule {schedule}, {slots} slots, CPU {cpu_share}");
                assert_eq!(greedy(&engine, prompt, tokens), want, "{case}");
                let stats = engine.expert_stats();
                assert!(stats.over_link + stats.on_cpu > 0, "{case}: {stats:?}");
                eprintln!("{case}: {tokens} tokens in {:.1} s", begun.elapsed().as_secs_f64());
            }
        }
    }
}

/// Link time that holds a part of a guess, of gate and up or of down, or a whole one and a part: the rest follows if the layer uses
/// it, and where copies are compared with checksums the record is whole. A token's first layer with experts is guessed too.
#[test]
fn guesses_copied_in_part_give_the_cpus_tokens() {
    let golden = golden("demo");
    let prompt = &golden.greedy[..GREEDY_PROMPT];
    let tokens = tokens(8);
    let want = want(prompt, tokens);
    for (schedule, idle, checksums) in
        [("eager", 0.4, true), ("lazy", 0.8, false), ("random:3", 1.4, false), ("random:4", 0.5, true)]
    {
        for slots in [ALL / 2, ALL / 4] {
            let builder = builder().expert_slots(slots).cpu_share(false).checksums(checksums);
            emulator::configure(&format!(r#"{{"schedule": "{schedule}"}}"#));
            let engine = builder.idle_copies(idle).load().unwrap();
            let case = format!("schedule {schedule}, {slots} slots, {idle} copies");
            assert_eq!(greedy(&engine, prompt, tokens), want, "{case}");
            let stats = engine.expert_stats();
            assert!(stats.completed_parts > 0 && stats.dropped_parts > 0, "{case}: {stats:?}");
            assert!(stats.prefetch.used >= stats.completed_parts, "{case}: {stats:?}");
            // Of what came in vain only a part was copied.
            assert!(stats.ahead_bytes < stats.prefetch.issued * 102_400, "{case}: {stats:?}");
            assert_eq!((stats.failed_copies, stats.repeated_copies), (0, 0), "{case}");
            eprintln!("{case}: {} of {} parts completed", stats.completed_parts, stats.prefetch.issued);
        }
    }
}

#[test]
fn a_batch_of_tokens_gives_the_cpus_tokens() {
    let prompt = long_prompt();
    let want = want(&prompt, 4);
    for slots in [ALL, ALL / 4, ONE_TOKEN, 2] {
        for cpu_share in [true, false] {
            let engine = builder().expert_slots(slots).cpu_share(cpu_share).load().unwrap();
            assert_eq!(greedy(&engine, &prompt, 4), want, "{slots} slots, CPU {cpu_share}");
        }
    }
}

#[test]
fn host_memory_may_be_short_too() {
    let golden = golden("demo");
    let prompt = &golden.greedy[..GREEDY_PROMPT];
    let want = want(prompt, 8);
    let record = 102_400;
    for (slots, records) in [(ALL, 16), (ALL / 4, 16), (ONE_TOKEN, 8), (ONE_TOKEN, 1)] {
        for cpu_share in [true, false] {
            let budget = records * record;
            let engine =
                builder().expert_slots(slots).host_budget(budget).cpu_share(cpu_share).load().unwrap();
            assert_eq!(greedy(&engine, prompt, 8), want, "{slots} slots, {records} records, CPU {cpu_share}");
        }
    }
    for records in [16, 1] {
        let cpu = Engine::builder(checkpoint("demo")).device(DeviceChoice::Cpu);
        let engine = cpu.host_budget(records * record).load().unwrap();
        assert_eq!(greedy(&engine, prompt, 8), want, "CPU, {records} records");
    }
}

#[test]
fn sessions_that_share_short_host_memory_do_not_wait_for_each_other_for_good() {
    let golden = golden("demo");
    let prompt = &golden.greedy[..GREEDY_PROMPT];
    let want = want(prompt, 32);
    // A token needs all four records in every layer: two sessions that held two each could not go on.
    let engine = Engine::builder(checkpoint("demo")).device(DeviceChoice::Cpu).host_budget(4 * 102_400);
    let engine = engine.load().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(greedy(&engine, prompt, 32), want));
        }
    });
}

#[test]
fn a_shorter_context_leaves_more_slots() {
    let slots = |builder: EngineBuilder| {
        let engine = builder.vram_budget(545 << 20).load().unwrap();
        engine.slot_use().unwrap().total
    };
    let (short, long) = (slots(builder().context(64)), slots(builder()));
    assert!(long < short, "{long} slots beside the longest context that fits, {short} beside 64 tokens");
}

#[test]
fn the_first_token_may_come_before_the_last_expert() {
    let golden = golden("demo");
    let prompt = &golden.greedy[..GREEDY_PROMPT];
    let want = want(prompt, 8);
    let cpu = || Engine::builder(checkpoint("demo")).device(DeviceChoice::Cpu);
    for builder in [cpu(), builder().expert_slots(ALL / 4)] {
        let engine = builder.serve_while_loading().load().unwrap();
        assert_eq!(greedy(&engine, prompt, 8), want, "{}", engine.placement());
    }
}

#[test]
fn every_policy_gives_the_cpus_tokens() {
    let golden = golden("demo");
    let prompt = &golden.greedy[..GREEDY_PROMPT];
    let want = want(prompt, 8);
    for policy in CachePolicy::ALL {
        let engine = builder().expert_slots(ALL / 4).cache_policy(policy).load().unwrap();
        assert_eq!(greedy(&engine, prompt, 8), want, "{policy}");
        assert!(engine.placement().contains(&policy.to_string()), "{}", engine.placement());
    }
}
