//! Statistics add up, and traces say what happened without changing it.

mod common;
#[cfg(feature = "cuda")]
#[path = "common/emulator.rs"]
mod emulator;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use abruzzi::device::cpu::CpuDevice;
use abruzzi::experts::residency::Placement;
use abruzzi::experts::trace::RoutingTrace;
use abruzzi::model::Model;
use abruzzi::{
    Checkpoint, DeviceChoice, Engine, EngineBuilder, LoadOptions, Sampling, SessionOptions, Stats, Tracer,
};
use common::cli::{abruzzi, fails, interrupt, json_lines, output, stdout, succeeded, text};
use common::{GREEDY_PROMPT, checkpoint, golden};
use serde_json::Value;

/// Bytes of an expert's record of the demo model.
const RECORD: u64 = 102_400;

fn greedy(engine: &Engine, prompt: &[u32], tokens: usize) -> (Vec<u32>, Stats) {
    let mut sampling = Sampling::greedy(tokens);
    sampling.ignore_eos = true;
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let ids = session.generate_tokens(prompt, &sampling).unwrap().map(|t| t.unwrap().id).collect();
    (ids, session.stats().clone())
}

fn prompt() -> Vec<u32> {
    golden("demo").greedy[..GREEDY_PROMPT].to_vec()
}

fn cpu() -> EngineBuilder {
    Engine::builder(checkpoint("demo")).device(DeviceChoice::Cpu)
}

#[cfg(feature = "cuda")]
fn cuda() -> EngineBuilder {
    emulator::install();
    Engine::builder(checkpoint("demo")).device(DeviceChoice::Cuda(0))
}

/// The file's spans by the name of their row, in order; fails if a row's spans overlap or a time is not one.
fn spans(file: &Path) -> BTreeMap<String, Vec<Value>> {
    let root: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let events = root["traceEvents"].as_array().unwrap();
    let name = |tid: &Value| {
        let named = |e: &&Value| e["name"] == "thread_name" && &e["tid"] == tid;
        events.iter().find(named).unwrap()["args"]["name"].as_str().unwrap().to_owned()
    };
    let mut rows: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for event in events.iter().filter(|e| e["ph"] == "X") {
        rows.entry(name(&event["tid"])).or_default().push(event.clone());
    }
    let mut last = 0.0;
    for event in events.iter().filter(|e| e["ph"] == "X") {
        let ts = event["ts"].as_f64().unwrap();
        assert!(ts >= last, "{event} stands before {last}");
        last = ts;
    }
    for (row, spans) in &rows {
        let mut end = 0.0;
        for span in spans {
            let (ts, dur) = (span["ts"].as_f64().unwrap(), span["dur"].as_f64().unwrap());
            // Times are whole nanoseconds, given in microseconds.
            assert!(ts >= end - 1e-4 && dur >= 0.0, "{row}: {span} begins before {end}");
            end = ts + dur;
        }
    }
    rows
}

/// The routing of the prompt in one pass, then of every generated token but the last in its own.
fn expected_routing(prompt: &[u32], generated: &[u32]) -> RoutingTrace {
    let checkpoint = Arc::new(Checkpoint::open(checkpoint("demo")).unwrap());
    let device = CpuDevice::new(1).unwrap();
    let model =
        Arc::new(Model::load(&checkpoint, device, &LoadOptions::default(), &Placement::default()).unwrap());
    let mut sequence = model.sequence().unwrap();
    let mut trace: Option<RoutingTrace> = None;
    let alone = generated[..generated.len() - 1].chunks(1);
    for tokens in std::iter::once(prompt).chain(alone) {
        sequence.logits(tokens, &AtomicBool::new(false)).unwrap();
        let routing = sequence.routing().unwrap();
        let moe = &checkpoint.config().moe;
        let layers = routing.iter().enumerate().filter(|(_, r)| r.is_some()).map(|(l, _)| l as u32).collect();
        let trace =
            trace.get_or_insert_with(|| RoutingTrace::new(layers, moe.num_experts, moe.top_k).unwrap());
        trace.push_pass(&routing).unwrap();
    }
    let mut trace = trace.unwrap();
    trace.set_prompt(vec![prompt.len() as u32]).unwrap();
    trace
}

#[test]
fn the_routing_recorded_is_that_of_the_tokens_and_tracing_changes_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.json");
    let tracer = Tracer::on();
    let engine = cpu().trace(tracer.clone()).load().unwrap();
    let (traced, stats) = greedy(&engine, &prompt(), 24);
    assert_eq!(traced, greedy(&cpu().load().unwrap(), &prompt(), 24).0);
    assert_eq!(stats.experts, None, "all are where they are computed");
    tracer.save(&file).unwrap();
    assert_eq!(RoutingTrace::from_json_file(&file).unwrap(), expected_routing(&prompt(), &traced));
    let rows = spans(&file);
    let host = &rows["host, session 1"];
    for name in ["L0 attention", "L3 4 experts", "head and checks"] {
        assert!(host.iter().any(|span| span["name"] == name), "{name} in {rows:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no partial file stays");
}

/// Sessions share threads and statistics, and neither waits for the other's pass for good.
#[test]
fn sessions_at_once_have_rows_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.json");
    let tracer = Tracer::on();
    let engine = cpu().threads(2).trace(tracer.clone()).load().unwrap();
    let want = greedy(&engine, &prompt(), 12).0;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..4).for_each(|_| assert_eq!(greedy(&engine, &prompt(), 12).0, want)));
        }
    });
    tracer.save(&file).unwrap();
    let rows = spans(&file);
    assert_eq!(rows.keys().filter(|row| row.starts_with("host, session")).count(), 17);
    let tokens = RoutingTrace::from_json_file(&file).unwrap().tokens();
    assert_eq!(tokens, 17 * (GREEDY_PROMPT + 11));
}

#[cfg(feature = "cuda")]
#[test]
fn experts_are_counted_where_they_were_found() {
    let dir = tempfile::tempdir().unwrap();
    let want = greedy(&cpu().load().unwrap(), &prompt(), 16).0;
    for (slots, budget, cpu_share) in [
        (32, None, true),
        (32, None, false),
        (16, None, true),
        (32, Some(16 * RECORD), true),
        (2, None, false),
    ] {
        let tracer = Tracer::on();
        let mut builder = cuda().expert_slots(slots).cpu_share(cpu_share).trace(tracer.clone());
        if let Some(bytes) = budget {
            builder = builder.host_budget(bytes);
        }
        let engine = builder.load().unwrap();
        let (tokens, stats) = greedy(&engine, &prompt(), 16);
        assert_eq!(tokens, want, "{slots} slots");
        let experts = stats.experts.unwrap();
        assert_eq!(experts, engine.expert_stats(), "the only session's are the engine's");

        // What the trace says was needed was found somewhere.
        let file = dir.path().join(format!("{slots}-{cpu_share}.json"));
        tracer.save(&file).unwrap();
        let routing = RoutingTrace::from_json_file(&file).unwrap();
        let (mut needed, mut used) = (0, Vec::new());
        for pass in routing.passes() {
            for layer in 0..routing.layers().len() {
                routing.used(pass.clone(), layer, &mut used);
                needed += used.len() as u64;
            }
        }
        assert_eq!(experts.needed(), needed, "{experts:?}");
        assert_eq!(experts.hits + experts.over_link + experts.on_cpu, needed);
        let bytes = [(experts.hits, experts.hit_bytes), (experts.over_link, experts.link_bytes)];
        for (count, bytes) in bytes.into_iter().chain([(experts.on_cpu, experts.cpu_bytes)]) {
            assert_eq!(bytes, count * RECORD, "{experts:?}");
        }
        assert_eq!(experts.from_file > 0, budget.is_some(), "{experts:?}");
        assert_eq!(experts.file_bytes > 0, budget.is_some(), "{experts:?}");
        assert!(experts.from_file <= experts.over_link + experts.on_cpu);
        assert_eq!(experts.on_cpu > 0, experts.cpu_seconds > 0.0, "{experts:?}");
        assert_eq!(experts.over_link > 0, experts.link_seconds > 0.0, "{experts:?}");
        assert!(cpu_share || experts.on_cpu == 0, "{experts:?}");
        for share in [experts.hit_rate(), experts.cpu_share().unwrap(), experts.overlap().unwrap()] {
            assert!((0.0..=1.0).contains(&share), "{experts:?}");
        }
        assert_eq!((stats.limits.len(), stats.decode.len()), (15, 15));
        assert!(stats.limit_share().unwrap() > 0.0 && stats.last_limit_share().is_some(), "{stats:?}");

        // And what was copied or computed beside the device has its spans.
        let rows = spans(&file);
        let bytes_of = |row: &str| {
            let bytes = |span: &Value| span["args"]["bytes"].as_u64().unwrap();
            rows.get(row).map_or(0, |spans| spans.iter().map(bytes).sum::<u64>())
        };
        let copied = bytes_of("copies");
        assert!(copied >= experts.link_bytes && copied <= experts.link_bytes + experts.ahead_bytes);
        assert_eq!(bytes_of("CPU experts"), experts.cpu_bytes);
        assert!(rows.contains_key("device, residents") && rows.contains_key("host, session 1"));
        assert_eq!(rows.contains_key("device, arrived"), experts.over_link > 0);
        if let Some(copies) = rows.get("copies") {
            let name = copies[0]["name"].as_str().unwrap();
            assert!(name.starts_with('L') && name.contains(" E"), "{name}");
        }
    }
}

#[cfg(feature = "cuda")]
#[test]
fn a_second_generation_is_counted_by_itself() {
    let engine = cuda().expert_slots(32).load().unwrap();
    let first = greedy(&engine, &prompt(), 4).1.experts.unwrap();
    let second = greedy(&engine, &prompt(), 4).1.experts.unwrap();
    assert_eq!(second.needed(), first.needed());
    assert_eq!(engine.expert_stats().since(&first), second);
    let resident = cuda().load().unwrap();
    assert_eq!(greedy(&resident, &prompt(), 4).1.experts, None);
}

#[test]
fn a_run_of_the_command_is_recorded_and_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.json");
    let name = file.to_str().unwrap();
    let base =
        ["generate", "--device", "cpu", "-p", "In the beginning", "-n", "40", "--temp", "0", "--ignore-eos"];
    let plain = stdout(&base);
    let args = [&base[..], &["--trace", name, "--stats"]].concat();
    let out = output(&args);
    assert_eq!(succeeded(&out, &args), plain);
    let said = text(&out.stderr);
    assert!(said.contains("spans, routing of") && said.contains("placement "), "{said}");
    assert!(!spans(&file).is_empty());

    let demo = checkpoint("demo");
    let demo = demo.to_str().unwrap();
    let events =
        json_lines(&stdout(&["simulate", "-m", demo, "--trace", name, "--slots", "16,32", "--json"]));
    let tokens = RoutingTrace::from_json_file(&file).unwrap().tokens();
    assert_eq!((&events[0]["event"], &events[0]["tokens"]), (&"trace".into(), &tokens.into()));
    assert!(tokens >= 40 && events.len() > 2, "{events:?}");
}

#[test]
fn a_budget_of_host_memory_is_seen_in_the_statistics() {
    let dir = tempfile::tempdir().unwrap();
    let tracer = Tracer::on();
    let engine = cpu().host_budget(16 * RECORD).trace(tracer.clone()).load().unwrap();
    let (_, stats) = greedy(&engine, &prompt(), 8);
    let experts = stats.experts.unwrap();
    assert_eq!((experts.hits, experts.over_link), (0, 0));
    assert!(experts.from_file > 0 && experts.from_file <= experts.on_cpu, "{experts:?}");
    assert!(experts.file_bytes >= experts.from_file * RECORD, "{experts:?}");
    let file = dir.path().join("run.json");
    tracer.save(&file).unwrap();
    assert!(!spans(&file).contains_key("CPU experts"), "the session's own row has them");
}

#[test]
fn a_run_that_is_interrupted_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.json");
    let args =
        ["generate", "--device", "cpu", "-p", "a", "-n", "100000", "--ignore-eos", "--json", "--trace"];
    let mut child = abruzzi(&[&args[..], &[file.to_str().unwrap()]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    // The first bytes of the first token.
    out.read_exact(&mut [0; 8]).unwrap();
    interrupt(&child);
    let reader = std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
    let end = child.wait_with_output().unwrap();
    reader.join().unwrap().unwrap();
    assert_eq!(end.status.code(), Some(130), "{}", text(&end.stderr));
    assert!(text(&end.stderr).contains("interrupted"), "{}", text(&end.stderr));
    assert!(RoutingTrace::from_json_file(&file).unwrap().tokens() >= 1);
    assert!(!spans(&file).is_empty());
}

#[cfg(feature = "cuda")]
#[test]
fn a_run_that_fails_is_recorded_up_to_there() {
    use abruzzi::experts::fault::{Faults, Point};
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.json");
    let tracer = Tracer::on();
    let faults = Faults::span(Point::Copy, 40, u64::MAX);
    let engine =
        cuda().expert_slots(16).cpu_share(false).faults(faults).trace(tracer.clone()).load().unwrap();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let mut sampling = Sampling::greedy(32);
    sampling.ignore_eos = true;
    let tokens: Vec<_> = session.generate_tokens(&prompt(), &sampling).unwrap().collect();
    tracer.save(&file).unwrap();
    spans(&file);
    // Where a failed copy is an error the last pass is not in the routing; where the CPU steps in, all are.
    let done = tokens.iter().filter(|t| t.is_ok()).count();
    let recorded = RoutingTrace::from_json_file(&file).map_or(0, |routing| routing.tokens());
    assert_eq!(recorded, if done == 0 { 0 } else { GREEDY_PROMPT + done - 1 });
    assert!(session.stats().experts.is_some());
}

#[test]
fn a_file_that_cannot_be_written_is_refused_before_the_first_token() {
    fails(
        &["generate", "--device", "cpu", "-p", "a", "--trace", "no/such/folder/run.json"],
        1,
        "cannot write",
    );
}
