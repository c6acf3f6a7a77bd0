//! The planner: every byte accounted for, and refusals whose change suffices exactly.

mod common;
#[cfg(feature = "cuda")]
#[path = "common/emulator.rs"]
mod emulator;
#[path = "plan/naive.rs"]
mod naive;

use std::path::Path;

use abruzzi::error::Change;
use abruzzi::experts::plan::{Ask, Hardware, Plan};
use abruzzi::{Error, ModelConfig};
use common::cli::{abruzzi, fails, stdout, text};
use naive::Naive;
use proptest::prelude::*;
use serde_json::{Value, json};

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const FP8: &str = "tests/fixtures/configs/kimi-k2-instruct.json";
const INT4: &str = "src/synth/configs/kimi-k2-thinking.json";

fn json_of(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(common::root().join(file)).unwrap()).unwrap()
}

fn config(file: &str) -> ModelConfig {
    ModelConfig::from_file(&common::root().join(file)).unwrap()
}

/// Kimi-K2 as if it had been made for another context.
fn made_for(context: usize) -> ModelConfig {
    let mut value = json_of(FP8);
    value["max_position_embeddings"] = json!(context);
    ModelConfig::from_json(value.to_string().as_bytes(), Path::new("config.json")).unwrap()
}

fn hardware(vram: u64, host: u64, nvme: bool) -> Hardware {
    let mut hardware = Hardware::new(vram, host);
    hardware.nvme = nvme.then_some(7e9);
    hardware
}

fn ask(context: Option<usize>, chunk: Option<usize>) -> Ask {
    let mut ask = Ask::default();
    (ask.context, ask.chunk) = (context, chunk);
    ask
}

fn adds_up(plan: &Plan) {
    for budget in [&plan.vram, &plan.host] {
        assert_eq!(budget.parts.iter().map(|p| p.bytes).sum::<u64>(), budget.total, "{plan}");
        assert_eq!(budget.parts.last().unwrap().name, "unused");
    }
}

#[test]
fn the_three_machines_to_the_byte() {
    for (file, fp8) in [(FP8, true), (INT4, false)] {
        let (naive, config) = (Naive::of(file, fp8), config(file));
        for (vram, host, nvme) in
            [(80 * GIB, 2 * TIB, false), (10 * GIB, 2 * TIB, false), (80 * GIB, 256 * GIB, true)]
        {
            for context in [None, Some(32768), Some(20000)] {
                let plan = Plan::new(&config, &hardware(vram, host, nvme), &ask(context, None)).unwrap();
                naive.check(&plan);
                assert_eq!(plan.trunk.host_bytes == 0, vram == 80 * GIB, "{plan}");
            }
        }
    }
}

/// Figures that were worked out by hand once.
#[test]
fn known_figures() {
    let (fp8, int4) = (Naive::of(FP8, true), Naive::of(INT4, false));
    // 3 · 7168 · 2048 codes and 3 · 56 · 16 scales; 4.5 bits an element.
    assert_eq!((fp8.record(), int4.record()), (44_052_480, 24_772_608));
    let plan = Plan::new(&config(FP8), &hardware(80 * GIB, 2 * TIB, false), &Ask::default()).unwrap();
    assert_eq!((plan.slots.bytes, plan.below.experts, plan.slots.least), (44_052_480, 23_040, 10));
    assert_eq!((plan.context, plan.chunk), (131_072, 4096));
    assert!((plan.vram.part("trunk") as f64 / 1e9 - 14.2).abs() < 0.05, "{plan}");
    assert_eq!(plan.host.part("expert records"), 23_040 * 44_052_480);
    assert_eq!(plan.expected.routed_bytes, 480 * 44_052_480);
}

/// Where the trunk does not fit, as many layers as fit are resident and no more.
#[test]
fn a_trunk_in_parts() {
    for (file, fp8) in [(FP8, true), (INT4, false)] {
        let (naive, config) = (Naive::of(file, fp8), config(file));
        let hw = hardware(10 * GIB, 2 * TIB, false);
        let plan = Plan::new(&config, &hw, &Ask::default()).unwrap();
        assert!((1..61).contains(&plan.trunk.resident_layers) && !plan.trunk.head_resident, "{plan}");
        // A further layer would need slots that are needed.
        let spare = (plan.slots.count - plan.slots.least) * (naive.record() + 4);
        assert!(plan.vram.part("unused") + spare < naive.moe_layer() + 512, "{plan}");
        let on_host = (61 - plan.trunk.resident_layers as u64) * naive.moe_layer() + 2 * naive.embedding();
        assert_eq!(plan.trunk.host_bytes, on_host);
        assert_eq!(plan.trunk.streamed_bytes, on_host - naive.embedding());

        // It names the memory with which all of it is resident.
        let whole = plan.trunk.whole_from_vram;
        assert!(plan.to_string().contains(&format!("from --vram {whole} on")), "{plan}");
        let context = ask(Some(plan.context), None);
        let resident = |vram| {
            Plan::new(&config, &hardware(vram, 2 * TIB, false), &context).unwrap().trunk.host_bytes == 0
        };
        assert!(resident(whole) && !resident(whole - 1));
    }
}

fn refusal(config: &ModelConfig, hw: &Hardware, ask: &Ask) -> (String, u64, u64, Change) {
    match Plan::new(config, hw, ask).map(|plan| plan.to_string()) {
        Err(Error::DoesNotFit { what, needed, available, change }) => {
            assert!(needed > available, "{what}: {needed} of {available}");
            (what, needed, available, change)
        }
        other => panic!("expected a refusal: {other:?}"),
    }
}

fn fits(config: &ModelConfig, hw: Hardware, ask: Ask) -> bool {
    match Plan::new(config, &hw, &ask) {
        Ok(plan) => {
            adds_up(&plan);
            true
        }
        Err(Error::DoesNotFit { .. }) => false,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_million_tokens_in_ten_gib() {
    let hw = hardware(10 * GIB, 2 * TIB, false);
    let million = ask(Some(1 << 20), None);
    let config = made_for(1 << 20);
    let (what, needed, available, change) = refusal(&config, &hw, &million);
    assert_eq!(what, "the key/value cache of 1048576 tokens");
    assert_eq!(available, 10 * GIB);
    // What is needed is the least that suffices.
    assert!(fits(&config, hardware(needed, 2 * TIB, false), million));
    assert!(!fits(&config, hardware(needed - 1, 2 * TIB, false), million));
    let Change::Context(most) = change else { panic!("{change:?}") };
    assert!((65_536..262_144).contains(&most) && most % 64 == 0, "{most}");
    assert!(fits(&config, hw, ask(Some(most), None)));
    assert!(!fits(&config, hw, ask(Some(most + 1), None)));
    assert_eq!(change.to_string(), format!("--ctx-size {most} fits"));

    // A model that was not made for it: one change mends both.
    let k2 = self::config(FP8);
    let (_, _, _, change) = refusal(&k2, &hw, &million);
    assert_eq!(change, Change::Context(131_072));
    assert!(fits(&k2, hw, ask(Some(131_072), None)));
    // Where memory would suffice, the model is the reason.
    let large = hardware(200 * GIB, 2 * TIB, false);
    match Plan::new(&k2, &large, &million) {
        Err(Error::Argument { name: "context", problem }) => {
            assert_eq!(problem, "is 1048576, expected 1 to 131072 for this model")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn host_memory_that_is_short() {
    let config = config(FP8);
    let hw = hardware(80 * GIB, 256 * GIB, false);
    let (what, needed, _, change) = refusal(&config, &hw, &Ask::default());
    assert_eq!(what, "23040 experts, each in host memory or in a slot");
    assert_eq!(change, Change::Host { bytes: needed, file_tier: true });
    assert!(fits(&config, hardware(80 * GIB, needed, false), Ask::default()));
    assert!(!fits(&config, hardware(80 * GIB, needed - 1, false), Ask::default()));
    assert!(fits(&config, hardware(80 * GIB, 256 * GIB, true), Ask::default()));

    // Experts without room on the host stay in slots, and every expert is in one of the two.
    let plan = Plan::new(&config, &hardware(80 * GIB, 930 * GIB, false), &Ask::default()).unwrap();
    assert!(plan.slots.held > 0 && plan.slots.held + plan.slots.least <= plan.slots.count, "{plan}");
    assert_eq!((plan.slots.held + plan.below.host, plan.below.file), (23_040, 0), "{plan}");
    adds_up(&plan);

    // With a file tier the host still needs a token's experts of one layer.
    let little = hardware(80 * GIB, GIB + GIB / 4, true);
    let (what, needed, _, change) = refusal(&config, &little, &Ask::default());
    assert_eq!(
        (what.as_str(), change),
        ("a host cache of 10 experts", Change::Host { bytes: needed, file_tier: false })
    );
    assert!(fits(&config, hardware(80 * GIB, needed, true), Ask::default()));
    assert!(!fits(&config, hardware(80 * GIB, needed - 1, true), Ask::default()));
}

#[test]
fn gpu_memory_that_is_short() {
    let config = config(FP8);
    let (what, _, _, change) = refusal(&config, &hardware(GIB, 2 * TIB, false), &ask(Some(64), None));
    assert_eq!(what, "the least number of slots, 10");
    let Change::Vram(least) = change else { panic!("{change:?}") };
    let with = |vram| fits(&config, hardware(vram, 2 * TIB, false), ask(Some(64), None));
    assert!(with(least) && !with(least - 1));

    let (what, ..) = refusal(&config, &hardware(GIB / 4, 2 * TIB, false), &Ask::default());
    assert_eq!(what, "what the driver keeps");
    let (what, ..) = refusal(&config, &hardware(GIB / 2 + GIB / 16, 2 * TIB, false), &Ask::default());
    assert_eq!(what, "the trunk's norms and stream buffers");
    let (what, ..) = refusal(&config, &hardware(1_130_000_000, 2 * TIB, false), &Ask::default());
    assert_eq!(what, "the workspace of a chunk of 16 tokens");

    // Both memories: neither change alone would do, so the refusal has both.
    let (_, _, _, change) = refusal(&config, &hardware(GIB, GIB, false), &ask(Some(64), None));
    let Change::VramAndHost { vram, host } = change else { panic!("{change:?}") };
    let with = |vram, host| fits(&config, hardware(vram, host, false), ask(Some(64), None));
    assert!(with(vram, host) && !with(vram - 1, host) && !with(vram, host - 1));
}

#[test]
fn a_chunk_that_is_too_large() {
    let config = config(INT4);
    let hw = hardware(10 * GIB, 2 * TIB, false);
    let (what, _, _, change) = refusal(&config, &hw, &ask(Some(32768), Some(65536)));
    assert_eq!(what, "the workspace of a chunk of 65536 tokens");
    let Change::Chunk(most) = change else { panic!("{change:?}") };
    assert!(fits(&config, hw, ask(Some(32768), Some(most))));
    assert!(!fits(&config, hw, ask(Some(32768), Some(most + 1))));
}

#[test]
fn arguments_out_of_range() {
    let config = config(FP8);
    let hw = hardware(80 * GIB, 2 * TIB, false);
    let name = |hw: &Hardware, ask: &Ask| match Plan::new(&config, hw, ask) {
        Err(Error::Argument { name, .. }) => name,
        other => panic!("{other:?}"),
    };
    assert_eq!(name(&hw, &ask(Some(0), None)), "context");
    assert_eq!(name(&hw, &ask(None, Some(0))), "chunk");
    assert_eq!(name(&hw, &ask(None, Some(usize::MAX))), "chunk");
    assert_eq!(name(&hw, &ask(Some(usize::MAX), None)), "context");
    let mut none = Ask::default();
    none.sessions = 0;
    assert_eq!(name(&hw, &none), "sessions");
    let mut bad = hw;
    bad.link = 0.0;
    assert_eq!(name(&bad, &Ask::default()), "pcie");
    bad = hw;
    bad.nvme = Some(f64::NAN);
    assert_eq!(name(&bad, &Ask::default()), "nvme");
}

#[test]
fn more_sessions_take_more_caches_and_workspaces() {
    let config = config(FP8);
    let hw = hardware(80 * GIB, 2 * TIB, false);
    let one = ask(Some(8192), Some(512));
    let mut three = one;
    three.sessions = 3;
    let [one, three] = [one, three].map(|ask| Plan::new(&config, &hw, &ask).unwrap());
    for name in ["key/value cache", "workspace"] {
        assert_eq!(three.vram.part(name), 3 * one.vram.part(name), "{name}");
    }
    assert_eq!(three.vram.part("kernel scratch"), one.vram.part("kernel scratch"));
    assert!(three.slots.count < one.slots.count);
}

proptest! {
    /// Whatever the numbers: a plan that adds up, or a refusal whose change is enough.
    #[test]
    fn any_machine(
        file in prop::sample::select(vec![FP8, INT4, "models/demo/config.json", "tests/fixtures/configs/moonlight.json"]),
        vram in (20u32..50, any::<u16>()).prop_map(|(bit, low)| (1u64 << bit) + u64::from(low)),
        host in (20u32..50, any::<u16>()).prop_map(|(bit, low)| (1u64 << bit) + u64::from(low)),
        nvme: bool,
        context in prop::option::of(1usize..1 << 21),
        chunk in prop::option::of(1usize..1 << 15),
    ) {
        let config = config(file);
        let (hw, ask) = (hardware(vram, host, nvme), ask(context, chunk));
        match Plan::new(&config, &hw, &ask) {
            Ok(plan) => {
                adds_up(&plan);
                prop_assert!(plan.slots.held + plan.slots.least.min(plan.below.experts - plan.slots.held) <= plan.slots.count);
                prop_assert!(nvme || plan.below.file == 0);
                prop_assert!(plan.expected.decode.iter().all(|b| b.serial > 0.0 && b.serial <= b.ideal));
            }
            Err(Error::Argument { name, .. }) => prop_assert_eq!(name, "context"),
            Err(Error::DoesNotFit { change, .. }) => {
                let (mut better, mut less) = (hw, ask);
                match change {
                    Change::Context(n) => less.context = Some(n),
                    Change::Chunk(n) => less.chunk = Some(n),
                    Change::Vram(n) => better.vram = n,
                    Change::Host { bytes, .. } => better.host = bytes,
                    Change::VramAndHost { vram, host } => (better.vram, better.host) = (vram, host),
                    other => panic!("{other:?}"),
                }
                match Plan::new(&config, &better, &less) {
                    Ok(plan) => adds_up(&plan),
                    // What was short was memory; that the context is not the model's either is said next.
                    Err(Error::Argument { name, .. }) => prop_assert_eq!(name, "context"),
                    Err(other) => panic!("{other}"),
                }
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn the_table_adds_up_in_print() {
    let shown = stdout(&["plan", "-m", FP8, "--vram", "80GiB", "--host", "2TiB"]);
    let mut sum = 0;
    let mut total = None;
    for line in shown.lines().skip_while(|l| !l.starts_with("GPU memory")).take_while(|l| !l.is_empty()) {
        let bytes = line.split(" B ").next().unwrap().split_whitespace().last().unwrap().replace(',', "");
        let bytes: u64 = bytes.parse().unwrap();
        match total {
            None => total = Some(bytes),
            Some(_) => sum += bytes,
        }
    }
    assert_eq!((total, sum), (Some(80 * GIB), 80 * GIB), "{shown}");
    assert!(shown.contains("modelled, not measured") && shown.contains("estimate"), "{shown}");
    let streamed = stdout(&["plan", "-m", FP8, "--vram", "10GiB", "--host", "2TiB"]);
    assert!(streamed.contains("cross the link for each token"), "{streamed}");
}

#[test]
fn json_for_machines() {
    let args = ["plan", "-m", INT4, "--vram", "80GiB", "--host", "256GiB", "--nvme", "--json"];
    let plan: Value = serde_json::from_str(&stdout(&args)).unwrap();
    for memory in ["vram", "host"] {
        let parts = plan[memory]["parts"].as_array().unwrap();
        let sum: u64 = parts.iter().map(|p| p["bytes"].as_u64().unwrap()).sum();
        assert_eq!(Some(sum), plan[memory]["total"].as_u64(), "{memory}");
    }
    assert_eq!((&plan["trunk"]["host_bytes"], &plan["hardware"]["nvme"]), (&json!(0), &json!(7e9)));
    assert!(plan["below"]["file"].as_u64().unwrap() > 0, "{plan}");
    assert_eq!(plan["modelled"], json!(["expected"]));
}

#[test]
fn refusals_on_the_command_line() {
    let million = ["plan", "-m", FP8, "--vram", "10GiB", "--host", "2TiB", "-c", "1048576"];
    fails(&million, 1, "--ctx-size 131072 fits");
    fails(&["plan", "-m", FP8, "--vram", "80GiB", "--host", "256GiB"], 1, "or --nvme");
    fails(&["plan", "-m", FP8, "--vram", "200GiB", "--host", "2TiB", "-c", "1048576"], 2, "--ctx-size (-c)");
    fails(&["plan", "-m", FP8, "--vram", "80GiB", "--chunk", "0"], 2, "--chunk is 0");
    fails(&["plan", "-m", FP8, "--vram", "80G"], 2, "80GiB");
    fails(&["plan", "-m", "none.json", "--vram", "80GiB"], 1, "none.json");
}

#[test]
fn flags_from_the_environment() {
    let mut command = abruzzi(&["plan", "-m", FP8, "--json"]);
    let out = command
        .env("ABRUZZI_VRAM", "80GiB")
        .env("ABRUZZI_HOST", "256GiB")
        .env("ABRUZZI_NVME", "12GB/s")
        .env("ABRUZZI_CTX_SIZE", "4096")
        .output()
        .unwrap();
    let plan: Value = serde_json::from_str(&text(&out.stdout)).unwrap();
    assert_eq!((&plan["context"], &plan["hardware"]["nvme"]), (&json!(4096), &json!(12e9)));
}

/// The device's own allocations, on the emulated GPU, which counts bytes as they are asked for and not in whole 256.
#[cfg(feature = "cuda")]
#[test]
fn the_device_takes_what_is_planned() {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use abruzzi::checkpoint::{Checkpoint, LoadOptions};
    use abruzzi::device::cuda::{CudaDevice, Gpu, gpus};
    use abruzzi::device::{Device, SampleSettings};
    use abruzzi::experts::residency::Placement;
    use abruzzi::model::{Model, PREFILL_CHUNK};

    emulator::install();
    emulator::configure(r#"{"checks": false, "counters": false}"#);
    let free = || gpus().unwrap()[0].memory_free;
    for case in ["k2-bf16", "k2-fp8", "k2-int4"] {
        let checkpoint = Arc::new(Checkpoint::open(common::checkpoint(case)).unwrap());
        let config = checkpoint.config().clone();
        let vocab = config.vocab_size as u32;
        let asked = ask(Some(PREFILL_CHUNK), Some(PREFILL_CHUNK));
        let plan = Plan::new(&config, &hardware(80 * GIB, 2 * TIB, false), &asked).unwrap();
        let near = |used: u64, planned: u64, allocations: u64, what: &str| {
            let lost =
                planned.checked_sub(used).unwrap_or_else(|| panic!("{case} {what}: {used} of {planned}"));
            assert!(lost < 256 * allocations, "{case} {what}: {used} of {planned}");
        };

        let loaded = checkpoint.load_trunk(&LoadOptions::default()).unwrap();
        let model = |device| {
            Arc::new(
                Model::load(&checkpoint, device, &LoadOptions::default(), &Placement::default()).unwrap(),
            )
        };
        let gpu = Gpu::open(0).unwrap();
        let cancel = AtomicBool::new(false);
        let settings = SampleSettings { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
        // Kernels have memory of their own from when they are loaded; it counts as the driver's.
        model(CudaDevice::new(gpu.clone())).sequence().unwrap().next(&[1], &settings, 0, &cancel).unwrap();
        let device = CudaDevice::new(gpu.clone());
        let before = free();
        let trunk = loaded.trunk.try_map(&mut |m| device.matrix(m), &mut |v| device.vector(v)).unwrap();
        near(before - free(), plan.vram.part("trunk"), 64, "trunk");
        drop(trunk);

        let model = model(device);
        let before = free();
        let mut sequence = model.sequence().unwrap();
        // A sequence has its page table from the beginning: eight bytes for each of 512 pages.
        near(before - free(), plan.vram.part("workspace") + 8 * 512, 64, "workspace");
        // From the largest chunk to single tokens: each kernel's scratch memory is at its largest at one of these.
        let ids: Vec<u32> = (0..PREFILL_CHUNK as u32).map(|i| i % vocab).collect();
        for tokens in [PREFILL_CHUNK, 64, 16, 4] {
            sequence.truncate(PREFILL_CHUNK - tokens);
            sequence.logits(&ids[..tokens], &cancel).unwrap();
        }
        sequence.truncate(PREFILL_CHUNK - 1);
        sequence.next(&ids[..1], &settings, 0, &cancel).unwrap();
        let parts = ["workspace", "key/value cache", "kernel scratch"].map(|name| plan.vram.part(name));
        near(before - free(), parts.iter().sum(), 96, "a session");
    }
}
