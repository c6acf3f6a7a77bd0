//! `abruzzi simulate`: a routing trace through the real policies and schedule, on modelled hardware.

use std::io::Write;

use abruzzi::experts::policy::CachePolicy;
use abruzzi::experts::simulate::{Machine, Replay, Replayed, Report, Workload, chart, simulate};
use abruzzi::experts::trace::{RoutingTrace, SyntheticTrace};
use abruzzi::{CancelToken, Error, ModelConfig, Synth};

use crate::args::SimulateArgs;
use crate::ui::{self, bytes, thousands};

pub fn run(args: SimulateArgs, cancel: &CancelToken) -> anyhow::Result<()> {
    let (model, config) = model(&args)?;
    let workload = Workload::new(&config, args.ctx_size);
    let trace = trace(&args, &workload)?;
    let machines = machines(&args)?;
    let mut policies: Vec<Replayed> = args.policy.iter().map(|p| p.parse()).collect::<Result<_, _>>()?;
    if policies.is_empty() {
        policies = CachePolicy::ALL.into_iter().map(Replayed::Policy).chain([Replayed::Belady]).collect();
    }
    // All of it before the first line is printed: what cannot be replayed is an error, not half a table.
    let mut reports = Vec::new();
    for machine in &machines {
        let mut of_machine = Vec::new();
        for &policy in &policies {
            for slots in slots(&args) {
                if cancel.is_cancelled() {
                    return Err(Error::Cancelled.into());
                }
                let mut how = Replay::default();
                how.policy = policy;
                how.slots = slots;
                how.prefetch = !args.no_prefetch;
                how.seed = args.seed;
                of_machine.push(simulate(&trace, &workload, machine, &how)?);
            }
        }
        reports.push(of_machine);
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, chart(&title(&args, &model, &machines[0]), &reports[0]))
            .map_err(|e| anyhow::anyhow!("{}: cannot write: {e}", path.display()))?;
    }
    let mut out = std::io::stdout();
    if args.output.json {
        let stats = trace.stats();
        let event = serde_json::json!({
            "event": "trace", "model": model, "modelled": true, "tokens": stats.tokens,
            "working_set": trace.working_set(), "reused_next": stats.reused_next,
            "reused_within_8": stats.reused_within_8, "touched_by_512": stats.touched_by_512,
            "busiest_tenth": stats.busiest_tenth,
        });
        writeln!(out, "{event}")?;
        for report in reports.iter().flatten() {
            let mut value = serde_json::to_value(report)?;
            value["event"] = "report".into();
            value["modelled"] = true.into();
            writeln!(out, "{value}")?;
        }
        return Ok(());
    }
    header(&mut out, &args, &model, &trace, &workload)?;
    for (machine, reports) in machines.iter().zip(&reports) {
        table_head(&mut out, machine, &workload)?;
        for report in reports {
            row(&mut out, report)?;
        }
    }
    Ok(())
}

fn model(args: &SimulateArgs) -> anyhow::Result<(String, ModelConfig)> {
    if let Some(path) = &args.model {
        let path = ui::model_path(Some(path))?;
        return Ok((path.display().to_string(), ModelConfig::from_file(&path)?));
    }
    let mut synth = Synth::like(&args.like);
    let mut name = args.like.clone();
    if let Some(format) = args.format {
        synth = synth.format(format.into());
        name += &format!(", {}", abruzzi::quant::Format::from(format).name());
    }
    Ok((name, synth.config()?))
}

fn trace(args: &SimulateArgs, workload: &Workload) -> abruzzi::Result<RoutingTrace> {
    if args.trace.as_os_str() != "synthetic" {
        return RoutingTrace::from_json_file(&args.trace);
    }
    let layers = (workload.first..workload.first + workload.layers).map(|l| l as u32).collect();
    let (experts, top_k) = (workload.experts, workload.top_k);
    RoutingTrace::synthetic(&SyntheticTrace { layers, experts, top_k, tokens: args.tokens, seed: args.seed })
}

fn machines(args: &SimulateArgs) -> Result<Vec<Machine>, Error> {
    let known = || Machine::ALL.map(|m| m.name).join(", ");
    let mut machines = Vec::new();
    for name in &args.machine {
        let machine = Machine::named(name).ok_or_else(|| Error::Argument {
            name: "machine",
            problem: format!("is {name:?}, expected {}", known()),
        })?;
        machines.push(if args.no_cpu { machine.without_cpu() } else { machine });
    }
    Ok(machines)
}

fn slots(args: &SimulateArgs) -> Vec<Option<usize>> {
    if args.slots.is_empty() { vec![None] } else { args.slots.iter().map(|&n| Some(n)).collect() }
}

fn title(args: &SimulateArgs, model: &str, machine: &Machine) -> String {
    let trace = args.trace.display();
    let cpu = if args.no_cpu { ", no CPU experts" } else { "" };
    let prefetch = if args.no_prefetch { ", no prefetch" } else { "" };
    format!("{model} on {}{cpu}{prefetch}; trace: {trace}; all modelled", machine.name)
}

fn header(
    out: &mut impl Write,
    args: &SimulateArgs,
    model: &str,
    trace: &RoutingTrace,
    of: &Workload,
) -> std::io::Result<()> {
    let stats = trace.stats();
    writeln!(
        out,
        "modelled, nothing here was measured: {model}, {} layers of {} experts, {} a token, one expert {}",
        of.layers,
        of.experts,
        of.top_k,
        bytes(of.record)
    )?;
    writeln!(
        out,
        "a token reads {} of experts and {} of everything else, {} tokens in the key/value cache",
        bytes(of.routed() as u64),
        bytes(of.read() as u64),
        thousands(args.ctx_size as u64)
    )?;
    writeln!(
        out,
        "trace {}: {} tokens, working set of one {} experts; {:.0} % of uses repeat the token before, {:.0} % one of the \
         8 before; 512 tokens touch {:.0} % of the experts; the busiest tenth has {:.0} % of uses",
        args.trace.display(),
        thousands(stats.tokens as u64),
        trace.working_set(),
        100.0 * stats.reused_next,
        100.0 * stats.reused_within_8,
        100.0 * stats.touched_by_512,
        100.0 * stats.busiest_tenth
    )
}

fn table_head(out: &mut impl Write, machine: &Machine, of: &Workload) -> std::io::Result<()> {
    let gb = |rate: f64| format!("{:.0} GB/s", rate / 1e9);
    write!(
        out,
        "\n{}: link {}, host memory {}, CPU experts {}, GPU memory {} of which {:.0} % are reached",
        machine.name,
        gb(machine.link),
        gb(machine.dram),
        gb(machine.cpu),
        gb(machine.hbm),
        100.0 * machine.hbm_share
    )?;
    let streamed = of.slots(machine).1;
    if streamed > 0 {
        write!(out, "; {} of the trunk do not fit and are streamed for every token", bytes(streamed))?;
    }
    let (held, all) = (of.host_records(machine), of.layers * of.experts);
    if held < all {
        write!(out, "; host memory holds {:.0} % of the experts", 100.0 * held as f64 / all as f64)?;
    }
    writeln!(
        out,
        "\n{:<8}{:>7}{:>7}{:>7}{:>8}{:>8}{:>8}{:>8}{:>8}{:>7}{:>7}{:>9}{:>7}{:>7}{:>7}{:>8}{:>8}",
        "policy",
        "slots",
        "%",
        "hit %",
        "tok/s",
        "p50 ms",
        "p99 ms",
        "link ms",
        "GPU ms",
        "CPU ms",
        "CPU %",
        "overlap %",
        "prec %",
        "rec %",
        "disk",
        "bound %",
        "step/max"
    )
}

fn row(out: &mut impl Write, r: &Report) -> std::io::Result<()> {
    let percent = |share: Option<f64>| share.map_or("-".to_owned(), |s| format!("{:.0}", 100.0 * s));
    writeln!(
        out,
        "{:<8}{:>7}{:>7.1}{:>7.1}{:>8.1}{:>8.1}{:>8.1}{:>8.1}{:>8.1}{:>7.1}{:>7.0}{:>9.0}{:>7}{:>7}{:>7}{:>8.1}{:>8.2}",
        r.policy,
        r.slots,
        100.0 * r.resident_share,
        100.0 * r.hit_rate,
        r.tok_s,
        r.p50_ms,
        r.p99_ms,
        r.link_ms,
        r.gpu_ms,
        r.cpu_ms,
        100.0 * r.cpu_share,
        100.0 * r.overlap,
        percent(r.prefetch_precision),
        percent(r.prefetch_recall),
        r.disk_reads.map_or("-".to_owned(), |n| format!("{n:.1}")),
        100.0 * r.share_of_bound,
        r.step_by_longest
    )
}
