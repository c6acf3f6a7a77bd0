//! Slots that change hands while sessions generate on the (emulated) GPU: taken from experts and given back, and lent to
//! key/value caches that find no other memory. The tokens are those of the CPU all the same.
#![cfg(feature = "cuda")]

mod common;
#[path = "common/emulator.rs"]
mod emulator;

use std::sync::{Arc, mpsc};

use abruzzi::checkpoint::{Checkpoint, RecordLayout};
use abruzzi::device::Device;
use abruzzi::device::cuda::{CudaDevice, Gpu};
use abruzzi::experts::residency::{Placement, SlotUse};
use abruzzi::model::Model;
use abruzzi::{DeviceChoice, Engine, EngineBuilder, Error, LoadOptions, Sampling, Session, SessionOptions};
use common::{GREEDY_PROMPT, checkpoint, golden};

/// Experts of the demo model: 4 layers of 32.
const ALL: usize = 4 * 32;
/// Bytes of a key/value page of the demo model: 64 tokens of 5 layers, 128 + 32 elements each. A slot holds just one.
const PAGE: u64 = 5 * 64 * 160 * 2;

fn builder() -> EngineBuilder {
    emulator::install();
    Engine::builder(checkpoint("demo")).device(DeviceChoice::Cuda(0))
}

fn cpu() -> Engine {
    Engine::builder(checkpoint("demo")).device(DeviceChoice::Cpu).load().unwrap()
}

fn session(engine: &Engine) -> Session {
    engine.session(SessionOptions::default()).unwrap()
}

/// Goes on greedily after `prompt`, saying so after each token.
fn go_on(session: &mut Session, prompt: &[u32], tokens: usize, mut after: impl FnMut()) -> Vec<u32> {
    let mut sampling = Sampling::greedy(tokens);
    sampling.ignore_eos = true;
    let generation = session.generate_tokens(prompt, &sampling).unwrap();
    generation.map(|token| token.unwrap().id).inspect(|_| after()).collect()
}

fn greedy(engine: &Engine, prompt: &[u32], tokens: usize) -> Vec<u32> {
    go_on(&mut session(engine), prompt, tokens, || ())
}

/// The golden text, over and over with a different token each time around.
fn long_prompt(tokens: usize) -> Vec<u32> {
    let golden = golden("demo");
    let text = golden.greedy.iter().chain(&golden.ids).copied();
    text.cycle()
        .take(tokens)
        .enumerate()
        .map(|(i, id)| if i % 64 == 63 { 100 + i as u32 } else { id })
        .collect()
}

fn slot_use(engine: &Engine) -> SlotUse {
    let slots = engine.slot_use().expect("a GPU has slots");
    assert_eq!(slots.experts + slots.idle + slots.lent, slots.total, "{slots:?}");
    slots
}

/// Resizes whenever `turns` says so, until nobody says it any more; returns how often.
fn resize(engine: &Engine, turns: mpsc::Receiver<()>, sizes: &[usize]) -> usize {
    let mut sizes = sizes.iter().cycle();
    let resized = turns.iter().zip(&mut sizes).map(|((), &size)| {
        let now = engine.resize_slots(size).unwrap();
        assert!(now <= size, "{now} slots of {size}");
    });
    resized.count()
}

#[test]
fn slots_come_and_go_while_a_session_generates() {
    const TOKENS: usize = 64;
    let golden = golden("demo");
    let prompt = &golden.greedy[..GREEDY_PROMPT];
    let want = greedy(&cpu(), prompt, TOKENS);
    for cpu_share in [true, false] {
        let engine = builder().cpu_share(cpu_share).load().unwrap();
        assert_eq!(slot_use(&engine).experts, ALL);
        std::thread::scope(|scope| {
            let (turn, turns) = mpsc::channel();
            let engine = &engine;
            let resizes = scope.spawn(move || resize(engine, turns, &[16, 64, 20, ALL, 1, ALL / 2, 0, 40]));
            let got = go_on(&mut session(engine), prompt, TOKENS, || turn.send(()).unwrap());
            drop(turn);
            assert_eq!(got, want, "CPU {cpu_share}");
            assert_eq!(resizes.join().unwrap(), TOKENS);
        });
        let stats = engine.expert_stats();
        eprintln!("CPU {cpu_share}: {stats:?}, {:?}", slot_use(&engine));
        assert!(stats.over_link + stats.on_cpu > 0, "{stats:?}");

        assert_eq!(engine.resize_slots(20).unwrap(), 20);
        assert_eq!((slot_use(&engine).idle, slot_use(&engine).lent), (ALL - 20, 0));
        assert_eq!(engine.resize_slots(usize::MAX).unwrap(), ALL);
        assert_eq!(greedy(&engine, prompt, 4), want[..4]);
    }
}

#[test]
fn slots_come_and_go_while_two_sessions_generate() {
    const TOKENS: usize = 24;
    let prompts = [golden("demo").greedy[..GREEDY_PROMPT].to_vec(), long_prompt(70)];
    let cpu = cpu();
    let want = prompts.each_ref().map(|prompt| greedy(&cpu, prompt, TOKENS));
    // Both caches grow into slots while the number of slots for experts changes.
    let engine = builder().kv_limit(0).load().unwrap();
    std::thread::scope(|scope| {
        let (turn, turns) = mpsc::channel();
        let engine = &engine;
        let resizes = scope.spawn(move || resize(engine, turns, &[16, 64, 20, ALL, 0]));
        let both = prompts.each_ref().map(|prompt| {
            let turn = turn.clone();
            scope.spawn(move || go_on(&mut session(engine), prompt, TOKENS, || turn.send(()).unwrap()))
        });
        drop(turn);
        assert_eq!(both.map(|session| session.join().unwrap()), want);
        assert_eq!(resizes.join().unwrap(), 2 * TOKENS);
    });
    assert_eq!(slot_use(&engine).lent, 0);
    assert_eq!(engine.resize_slots(ALL).unwrap(), ALL);
}

#[test]
fn slots_that_are_being_filled_ahead_of_need_can_be_taken() {
    const TOKENS: usize = 16;
    let golden = golden("demo");
    let prompt = &golden.greedy[..GREEDY_PROMPT];
    let want = greedy(&cpu(), prompt, TOKENS);
    // Host memory holds all records, so what was missed is copied when the last layer is through.
    let engine = builder().expert_slots(ALL / 2).load().unwrap();
    let got = go_on(&mut session(&engine), prompt, TOKENS, || {
        assert_eq!(engine.resize_slots(0).unwrap(), 0);
        assert_eq!(engine.resize_slots(ALL / 2).unwrap(), ALL / 2);
    });
    assert_eq!(got, want);
    let prefetch = engine.expert_stats().prefetch;
    assert!(prefetch.issued + prefetch.refilled > 0, "{prefetch:?}");
}

#[test]
fn a_context_grows_into_slots_and_gives_them_back() {
    const TOKENS: usize = 6;
    let prompt = long_prompt(256);
    let cpu = cpu();
    let mut on_cpu = session(&cpu);
    let want = go_on(&mut on_cpu, &prompt, TOKENS, || ());
    on_cpu.rewind(100);
    let want_again = go_on(&mut on_cpu, &prompt[..90], TOKENS, || ());
    // Slots of experts, pages of the cache's own.
    for (slots, own) in [(ALL, 1), (ALL / 4, 0), (5, 0)] {
        let engine = builder().expert_slots(slots).kv_limit(own as u64 * PAGE).load().unwrap();
        let mut session = session(&engine);
        assert_eq!(go_on(&mut session, &prompt, TOKENS, || ()), want, "{slots} slots, {own} pages");
        // 262 tokens are five pages.
        let lent = 5 - own;
        let now = slot_use(&engine);
        assert_eq!((now.lent, now.experts, now.idle), (lent, slots - lent, 0));
        session.rewind(100);
        assert_eq!((slot_use(&engine).lent, slot_use(&engine).experts), (2, slots - 2));
        assert_eq!(go_on(&mut session, &prompt[..90], TOKENS, || ()), want_again);
        drop(session);
        let now = slot_use(&engine);
        assert_eq!((now.lent, now.experts, now.idle), (0, slots, 0));
    }
}

#[test]
fn where_slots_do_not_suffice_either_memory_is_out_and_the_engine_goes_on() {
    let prompt = long_prompt(256);
    let want = greedy(&cpu(), &prompt[..100], 4);
    let engine = builder().expert_slots(3).kv_limit(0).load().unwrap();
    let mut session = session(&engine);
    let error = session.logits(&prompt).unwrap_err();
    assert!(
        matches!(&error, Error::OutOfMemory { needed, available: 0, .. } if *needed == 4 * PAGE),
        "{error}"
    );
    assert!(error.to_string().contains("key/value pages for 256 tokens"), "{error}");
    let now = slot_use(&engine);
    assert_eq!((now.lent, now.experts), (0, 3));
    assert_eq!(go_on(&mut session, &prompt[..100], 4, || ()), want);
    assert_eq!(slot_use(&engine).lent, 2);
    // What the timeline holds stays when there is no room to go on.
    assert!(matches!(session.logits(&prompt), Err(Error::OutOfMemory { .. })));
    assert_eq!(slot_use(&engine).lent, 2);
    assert_eq!(session.tokens()[..100], prompt[..100]);
}

#[test]
fn experts_get_what_caches_give_back_up_to_what_was_asked_for() {
    let prompt = long_prompt(130);
    let engine = builder().expert_slots(8).kv_limit(0).load().unwrap();
    let mut session = session(&engine);
    go_on(&mut session, &prompt, 1, || ());
    assert_eq!(slot_use(&engine).lent, 3);
    assert_eq!(engine.resize_slots(6).unwrap(), 5, "three of eight are lent");
    assert_eq!(engine.resize_slots(4).unwrap(), 4);
    drop(session);
    let now = slot_use(&engine);
    assert_eq!((now.experts, now.idle, now.lent), (4, 4, 0));
    // Idle slots are lent before experts lose theirs.
    let mut session = self::session(&engine);
    go_on(&mut session, &prompt, 1, || ());
    assert_eq!((slot_use(&engine).experts, slot_use(&engine).idle), (4, 1));
}

#[test]
fn a_device_without_slots_says_so() {
    let engine = cpu();
    assert_eq!(engine.slot_use(), None);
    let error = engine.resize_slots(4).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

fn device() -> CudaDevice {
    emulator::install();
    CudaDevice::new(Gpu::open(0).unwrap())
}

#[test]
fn borrowed_slots_come_back_given_or_dropped() {
    let checkpoint = Arc::new(Checkpoint::open(checkpoint("demo")).unwrap());
    let model = Model::load(&checkpoint, device(), &LoadOptions::default(), &Placement::default()).unwrap();
    let (device, experts) = (model.device(), model.residency());
    let count = || experts.slot_use().map(|slots| (slots.experts, slots.lent, slots.idle));
    let first = experts.shrink(device, 10).unwrap();
    let second = experts.shrink(device, 5).unwrap();
    assert_eq!((first.slots().len(), second.slots().len()), (10, 5));
    assert!(first.slots().iter().all(|slot| !second.slots().contains(slot)));
    assert_eq!(count(), Some((ALL - 15, 15, 0)));
    first.give_back(device).unwrap();
    assert_eq!(count(), Some((ALL - 5, 5, 0)));
    drop(second);
    assert_eq!(count(), Some((ALL - 5, 0, 5)));
    let rest = experts.shrink(device, usize::MAX).unwrap();
    assert_eq!((rest.slots().len(), count()), (ALL, Some((0, ALL, 0))));
    rest.give_back(device).unwrap();
    assert_eq!(count(), Some((ALL, 0, 0)));
}

#[test]
fn a_cache_takes_whole_pages_of_a_slot_and_returns_slots_it_needs_no_longer() {
    let checkpoint = Checkpoint::open(checkpoint("demo")).unwrap();
    let layout = checkpoint.record_layout(1).unwrap();
    let device = device();
    let slots = device.slots(&[Some(layout.clone())], 4, 4).unwrap().expect("a GPU has slots");
    let pages = |layers: usize| RecordLayout::size(&layout) / (layers * 64 * 160 * 2);
    // A page of six layers is larger than a slot.
    let mut cache = device.kv_cache(6, 160, Some(0)).unwrap();
    assert_eq!((pages(6), device.kv_adopt(&mut cache, &slots, 0).unwrap()), (0, 0));
    assert_eq!(device.kv_adopted(&cache), 0);

    // Two pages of two layers fit a slot, and one page is the cache's own.
    let mut cache = device.kv_cache(2, 160, Some(2 * 64 * 160 * 2)).unwrap();
    assert_eq!(pages(2), 2);
    assert_eq!(device.kv_adopt(&mut cache, &slots, 3).unwrap(), 128);
    device.kv_reserve(&mut cache, 192).unwrap();
    assert_eq!(device.kv_adopt(&mut cache, &slots, 1).unwrap(), 128);
    assert_eq!(device.kv_adopt(&mut cache, &slots, 2).unwrap(), 128);
    device.kv_reserve(&mut cache, 7 * 64).unwrap();
    assert!(matches!(device.kv_reserve(&mut cache, 7 * 64 + 1), Err(Error::OutOfMemory { .. })));
    assert_eq!(device.kv_adopted(&cache), 3);
    // Token 193 lies in slot 1, token 257 in its second page, token 321 in slot 2.
    assert!(device.kv_release(&mut cache, 321).unwrap().is_empty());
    assert_eq!(device.kv_release(&mut cache, 193).unwrap(), [2]);
    device.kv_reserve(&mut cache, 5 * 64).unwrap();
    assert!(device.kv_reserve(&mut cache, 5 * 64 + 1).is_err());
    assert_eq!(device.kv_release(&mut cache, 192).unwrap(), [1]);
    assert!(device.kv_release(&mut cache, 1).unwrap().is_empty());
    assert_eq!(device.kv_release(&mut cache, 0).unwrap(), [3]);
    assert_eq!(device.kv_adopted(&cache), 0);
    // The cache's own page remains.
    device.kv_reserve(&mut cache, 64).unwrap();
    assert!(device.kv_reserve(&mut cache, 65).is_err());
}
