//! `abruzzi doctor`: what this machine offers the engine.

use std::io::Write;

use abruzzi::Checkpoint;
use abruzzi::checkpoint::{ReadRates, memory};
use abruzzi::device::cpu::{CpuDevice, Isa};
use serde_json::json;

use crate::args::DoctorArgs;
use crate::ui::{bytes, model_path};

pub fn run(args: DoctorArgs) -> anyhow::Result<()> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let processor = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    let processor = processor.map_or("unknown", |(_, name)| name.trim());
    let threads = CpuDevice::new(0)?.threads();
    let huge = read("/sys/kernel/mm/transparent_hugepage/enabled");
    let huge = huge.split(['[', ']']).nth(1).unwrap_or("not available");
    let isa = Isa::chosen()?;
    let host = memory::detect_host();
    let (nodes, memory) = (host.numa_nodes, host.available);
    let gpus = gpus()?;
    let model = model_path(args.model.as_deref());
    let reads = model.and_then(|dir| Ok(Checkpoint::open(dir)?.read_rates()?));
    // A model that is not there is no illness of the machine, unless it was asked for.
    let reads = if args.model.is_some() { Some(reads?) } else { reads.ok() };

    let mut out = std::io::stdout();
    if args.output.json {
        let value = json!({
            "processor": processor,
            "threads": threads,
            "instructions": isa.name(),
            "memory_available": memory,
            "numa_nodes": nodes,
            "transparent_huge_pages": huge,
            "read_cached": reads.as_ref().map(|r| r.cached),
            "read_direct": reads.as_ref().and_then(|r| r.direct.as_ref().ok()),
            "read_io_uring": reads.as_ref().and_then(|r| r.queued.as_ref().ok()),
            "gpus": gpus.iter().map(|g| &g.json).collect::<Vec<_>>(),
        });
        writeln!(out, "{value}")?;
        return Ok(());
    }
    writeln!(out, "processor          {processor}")?;
    writeln!(out, "worker threads     {threads}")?;
    writeln!(out, "kernels            {}", isa.name())?;
    writeln!(out, "memory available   {}", bytes(memory))?;
    writeln!(out, "NUMA nodes         {nodes}")?;
    let advice = if huge == "never" { " (loading is slower; `madvise` is enough)" } else { "" };
    writeln!(out, "huge pages         {huge}{advice}")?;
    if let Some(ReadRates { cached, direct, queued, .. }) = &reads {
        writeln!(
            out,
            "model files        {:.1} GB/s through the file cache, {}",
            cached / 1e9,
            around(direct, queued)
        )?;
    }
    for gpu in &gpus {
        writeln!(out, "GPU                {}", gpu.text)?;
    }
    let kernels = if cfg!(feature = "cuda") {
        "in this build, for compute capability 9.0"
    } else {
        "not in this build; `--features cuda` adds them"
    };
    writeln!(out, "GPU kernels        {kernels}")?;
    Ok(())
}

/// What one thread reads around the file cache, as it does experts that are not in memory.
fn around(direct: &Result<f64, String>, queued: &Result<f64, String>) -> String {
    let rate = |rate: &f64| format!("{:.1} GB/s", rate / 1e9);
    match (direct, queued) {
        (Err(why), _) => format!("not around it ({why})"),
        (Ok(direct), Err(why)) => format!("{} around it by one thread (no io_uring: {why})", rate(direct)),
        (Ok(direct), Ok(queued)) => {
            let note = if queued < direct { "; io_uring is used all the same" } else { "" };
            let (direct, queued) = (rate(direct), rate(queued));
            format!("around it by one thread {direct}, {queued} with io_uring{note}")
        }
    }
}

/// A GPU, for people and for machines.
struct Described {
    text: String,
    json: serde_json::Value,
}

#[cfg(feature = "cuda")]
fn gpus() -> anyhow::Result<Vec<Described>> {
    let describe = |g: abruzzi::device::cuda::GpuDescription| {
        let (major, minor) = g.capability;
        Described {
            text: format!(
                "{} ({}), sm_{major}{minor}, {} multiprocessors, {} of {} free",
                g.name,
                g.id,
                g.multiprocessors,
                bytes(g.memory_free),
                bytes(g.memory)
            ),
            json: json!({
                "name": g.name,
                "id": g.id,
                "capability": [major, minor],
                "multiprocessors": g.multiprocessors,
                "memory": g.memory,
                "memory_free": g.memory_free,
            }),
        }
    };
    Ok(abruzzi::device::cuda::gpus()?.into_iter().map(describe).collect())
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> anyhow::Result<Vec<Described>> {
    Ok(Vec::new())
}
