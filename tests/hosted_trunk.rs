//! A trunk that does not fit into GPU memory: parts of it stay on the host and are brought when they are used, and the tokens are
//! those of a model that has everything at hand.
#![cfg(feature = "cuda")]

mod common;
#[path = "common/emulator.rs"]
mod emulator;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};

use abruzzi::checkpoint::region::PART_ALIGN;
use abruzzi::checkpoint::{Checkpoint, LoadOptions};
use abruzzi::device::cuda::{CudaDevice, Gpu, gpus};
use abruzzi::experts::plan::{Ask, Hardware, Plan, Trunk};
use abruzzi::experts::residency::Placement;
use abruzzi::model::Model;
use abruzzi::{DeviceChoice, Engine, EngineBuilder};
use common::{GREEDY_PROMPT, checkpoint, golden, greedy};

/// Held for writing by who counts the bytes of the GPU that all tests share.
static MEMORY: RwLock<()> = RwLock::new(());

fn builder() -> EngineBuilder {
    emulator::install();
    Engine::builder(checkpoint("demo")).device(DeviceChoice::Cuda(0)).context(512)
}

fn want(prompt: &[u32], tokens: usize) -> Vec<u32> {
    let engine = Engine::builder(checkpoint("demo")).device(DeviceChoice::Cpu).load().unwrap();
    greedy(&engine, prompt, tokens)
}

/// The trunk's place in so much GPU memory.
fn trunk(vram: u64) -> Option<Trunk> {
    Some(builder().vram_budget(vram).plan().ok()?.trunk)
}

/// The least memory for which `holds`, which goes on holding.
fn least(holds: impl Fn(&Trunk) -> bool) -> u64 {
    let (mut low, mut high) = (0u64, 4 << 30);
    while low < high {
        let middle = low + (high - low) / 2;
        if trunk(middle).is_some_and(|t| holds(&t)) { high = middle } else { low = middle + 1 }
    }
    low
}

/// From the least memory that can be planned to that which holds all: nothing of the trunk resident, all but the embedding, all.
/// In between two lanes are larger than what they would save: the demo model's layers are small.
#[test]
fn every_budget_gives_the_cpus_tokens() {
    let golden = golden("demo");
    let prompt = &golden.greedy[..GREEDY_PROMPT];
    let want = want(prompt, 12);
    let layers = trunk(4 << 30).unwrap().layers;
    let mut seen = Vec::new();
    let _others = MEMORY.read();
    for vram in [least(|_| true), least(|t| t.head_resident), least(|t| t.host_bytes == 0)] {
        let placed = trunk(vram).unwrap();
        let engine = builder().vram_budget(vram).load().unwrap();
        assert_eq!(greedy(&engine, prompt, 12), want, "{placed:?}");
        let said = engine.placement().contains("cross the link for each token");
        assert_eq!(said, placed.host_bytes > 0, "{placed:?}: {}", engine.placement());
        seen.push((placed.resident_layers, placed.head_resident, placed.embedding_resident));
    }
    assert_eq!(seen, [(0, false, false), (layers, true, false), (layers, true, true)]);
}

/// Copies at once, as late as they may, or in between. A prompt goes through other kernels than single tokens, and expects pieces in
/// another order.
#[test]
fn every_schedule_gives_the_cpus_tokens() {
    let golden = golden("demo");
    let text = golden.greedy.iter().chain(&golden.ids).copied();
    let prompt: Vec<u32> = text.cycle().take(80).enumerate().map(|(i, id)| id ^ (i as u32 / 64)).collect();
    let want = want(&prompt, 3);
    let vram = least(|_| true);
    let _others = MEMORY.read();
    for schedule in ["eager", "lazy", "random:1", "random:2"] {
        let builder = builder().vram_budget(vram);
        emulator::configure(&format!(r#"{{"schedule": "{schedule}"}}"#));
        let engine = builder.load().unwrap();
        assert_eq!(greedy(&engine, &prompt, 3), want, "schedule {schedule}");
    }
}

/// Two sessions in turn, and matrices in pieces: what comes next is expected wrongly at every change, and each product is
/// put together from columns. The logits are those of a resident trunk, bit by bit.
#[test]
fn small_pieces_and_wrong_expectations_change_nothing() {
    let _others = MEMORY.read();
    emulator::install();
    let cancel = AtomicBool::new(false);
    for case in ["k2-fp8", "k2-int4", "k2-bf16"] {
        let checkpoint = Arc::new(Checkpoint::open(checkpoint(case)).unwrap());
        let config = checkpoint.config().clone();
        let mut hosted = Plan::new(&config, &Hardware::new(8 << 30, 8 << 30), &Ask::default()).unwrap().trunk;
        (hosted.resident_layers, hosted.head_resident, hosted.embedding_resident) = (1, false, false);
        let logits = |trunk: Option<Trunk>| -> abruzzi::Result<Vec<u32>> {
            let device = CudaDevice::new(Gpu::open(0).unwrap());
            let placement = Placement { trunk, ..Placement::default() };
            let model = Model::load(&checkpoint, device, &LoadOptions::default(), &placement).unwrap();
            let model = Arc::new(model);
            let mut sequences = [model.sequence().unwrap(), model.sequence().unwrap()];
            let mut all = Vec::new();
            for tokens in [20usize, 1, 3, 1] {
                for (s, sequence) in sequences.iter_mut().enumerate() {
                    let ids: Vec<u32> =
                        (0..tokens).map(|i| ((7 * i + s) % config.vocab_size) as u32).collect();
                    all.extend(sequence.logits(&ids, &cancel)?.into_iter().map(f32::to_bits));
                }
            }
            Ok(all)
        };
        let resident = logits(None).unwrap();
        // Attention takes kv_b whole, so pieces can be no smaller.
        let least = kv_b_bytes(&checkpoint);
        assert!(least < hosted.piece_bytes, "{case}: the largest matrix takes several pieces of {least}");
        for piece in [hosted.piece_bytes, least] {
            let hosted = Trunk { piece_bytes: piece, ..hosted.clone() };
            assert!(logits(Some(hosted)).unwrap() == resident, "{case} in pieces of {piece}");
        }
        let refused = logits(Some(Trunk { piece_bytes: 1, ..hosted })).unwrap_err().to_string();
        assert!(refused.contains("layer 1's kv_b_proj in host memory"), "{refused}");
    }
}

/// What `kv_b` takes in a lane.
fn kv_b_bytes(checkpoint: &Checkpoint) -> u64 {
    let loaded = checkpoint.load_trunk(&LoadOptions::default()).unwrap();
    let layout = loaded.trunk.layers[0].attention.kv_b.layout;
    (layout.weight_bytes().next_multiple_of(PART_ALIGN) + layout.scale_bytes()) as u64
}

/// What a placement leaves of the GPU's memory is what the plan says: all that it puts on the host, when nothing has been brought yet;
/// then what two lanes take of it.
#[test]
fn the_device_holds_what_is_planned() {
    emulator::install();
    let _alone = MEMORY.write();
    let free = || gpus().unwrap()[0].memory_free;
    let checkpoint = Arc::new(Checkpoint::open(checkpoint("demo")).unwrap());
    let plan = builder().vram_budget(least(|_| true)).plan().unwrap();
    let lanes = plan.vram.part("trunk stream buffers");
    assert!(lanes > 0 && plan.trunk.host_bytes > lanes, "{plan}");
    let cancel = AtomicBool::new(false);
    let held = |trunk: Option<Trunk>| {
        let device = CudaDevice::new(Gpu::open(0).unwrap());
        let before = free();
        let placement = Placement { trunk, slots: Some(16), chunk: plan.chunk, ..Placement::default() };
        let model = Model::load(&checkpoint, device, &LoadOptions::default(), &placement).unwrap();
        let loaded = before - free();
        let model = Arc::new(model);
        let mut sequence = model.sequence().unwrap();
        sequence.logits(&[1, 2], &cancel).unwrap();
        (loaded, before - free())
    };
    let (all, hosted) = (held(None), held(Some(plan.trunk.clone())));
    // The emulated GPU counts bytes as they are asked for; the plan rounds each matrix up to 256.
    let near = |saved: u64, planned: u64| {
        assert!(saved.abs_diff(planned) < 256 * 64, "{saved} bytes saved, {planned} planned");
    };
    near(all.0 - hosted.0, plan.trunk.host_bytes);
    near(all.1 - hosted.1, plan.trunk.host_bytes - lanes);
}
