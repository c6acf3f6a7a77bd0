//! Replaying routing traces on modelled hardware: what a replay must never claim, and the command.

mod common;

use abruzzi::experts::policy::CachePolicy;
use abruzzi::experts::simulate::{Machine, Replay, Replayed, Report, Workload, chart, simulate};
use abruzzi::experts::trace::{RoutingTrace, SyntheticTrace};
use abruzzi::quant::Format;
use abruzzi::{Error, Synth};
use common::cli::{fails, json_lines, stdout};

/// Kimi-K2's widths, fewer layers and experts.
fn workload(format: Format) -> Workload {
    let synth = Synth::like("kimi-k2").layers(9).experts(64).format(format);
    Workload::new(&synth.config().unwrap(), 4096)
}

fn trace(of: &Workload, tokens: usize) -> RoutingTrace {
    let layers = (of.first..of.first + of.layers).map(|l| l as u32).collect();
    let (experts, top_k) = (of.experts, of.top_k);
    RoutingTrace::synthetic(&SyntheticTrace { layers, experts, top_k, tokens, seed: 11 }).unwrap()
}

fn replay(policy: Replayed, slots: usize, prefetch: bool) -> Replay {
    let mut how = Replay::default();
    how.policy = policy;
    how.slots = Some(slots);
    how.prefetch = prefetch;
    how
}

fn policies() -> impl Iterator<Item = Replayed> {
    CachePolicy::ALL.into_iter().map(Replayed::Policy).chain([Replayed::Belady])
}

#[test]
fn kimi_k2_is_counted_as_it_is() {
    let fp8 = Workload::new(&Synth::like("kimi-k2").config().unwrap(), 0);
    assert_eq!((fp8.layers, fp8.experts, fp8.top_k, fp8.first), (60, 384, 8, 1));
    // 21.1 and 11.9 GB; the rest of the token 11.9 and 21.1 GB: facts derived from the configuration elsewhere.
    assert!(
        (fp8.routed() / 21.14e9 - 1.0).abs() < 0.01 && (fp8.read() / 11.9e9 - 1.0).abs() < 0.01,
        "{fp8:?}"
    );
    let int4 = Synth::like("kimi-k2").format(Format::Int4Group32).config().unwrap();
    let int4 = Workload::new(&int4, 0);
    assert!(
        (int4.routed() / 11.89e9 - 1.0).abs() < 0.01 && (int4.read() / 21.1e9 - 1.0).abs() < 0.01,
        "{int4:?}"
    );
    for (of, slots) in [(&fp8, 1475), (&int4, 2250)] {
        let (found, streamed) = of.slots(&Machine::H100);
        assert!(found.abs_diff(slots) < 20 && streamed == 0, "{found}");
    }
    assert!(fp8.slots(&Machine::MIG_10GB).1 > 2_000_000_000, "the trunk does not fit 10 GB");
    assert_eq!(fp8.host_records(&Machine::H100), 60 * 384);
    assert!(fp8.host_records(&Machine::H100_512GB) < 60 * 384 / 2);
}

#[test]
fn equal_inputs_give_equal_reports() {
    let of = workload(Format::Fp8Block);
    let trace = trace(&of, 40);
    for machine in Machine::ALL {
        for how in [replay(Replayed::Belady, 60, true), replay(Replayed::Policy(CachePolicy::Lru), 60, true)]
        {
            let run = || simulate(&trace, &of, &machine, &how).unwrap();
            assert_eq!(run(), run());
        }
    }
}

/// For each policy, machine and size: no bound is exceeded and no share is more than a whole.
#[test]
fn bounds_hold() {
    for format in [Format::Fp8Block, Format::Int4Group32] {
        let of = workload(format);
        let trace = trace(&of, 60);
        // Host memory for half of the records, with the disk below.
        let half = of.record * (of.layers * of.experts / 2) as u64;
        let mut disk = Machine::H100_1TB;
        disk.host = half + Machine::H100.host_reserve;
        for machine in [Machine::H100, Machine::H100.without_cpu(), Machine::MIG_10GB, disk.clone()] {
            for policy in policies() {
                for (slots, prefetch) in [(8, true), (64, true), (64, false), (256, true), (512, true)] {
                    let r = simulate(&trace, &of, &machine, &replay(policy, slots, prefetch)).unwrap();
                    sound(&r, &machine, prefetch);
                    assert_eq!(r.disk_reads.is_some(), machine == disk, "{r:?}");
                }
            }
        }
    }
}

fn sound(r: &Report, machine: &Machine, prefetch: bool) {
    // A copy that was begun before counting began may be used within: one in forty-eight tokens.
    assert!(r.share_of_bound <= 1.005, "{r:?}");
    for side in [r.link_ms, r.gpu_ms, r.cpu_ms] {
        assert!(side <= r.step_ms * 1.02, "{r:?}");
    }
    for share in [r.hit_rate, r.ahead_rate, r.cpu_share, r.overlap, r.resident_share] {
        assert!((0.0..=1.0).contains(&share), "{r:?}");
    }
    assert!(r.step_by_longest > 0.98 && r.p50_ms <= r.p99_ms && r.tokens == 48, "{r:?}");
    assert!((r.tok_s * r.step_ms / 1e3 - 1.0).abs() < 1e-9, "{r:?}");
    if machine.cpu == 0.0 {
        assert_eq!((r.cpu_share, r.cpu_ms, r.refilled_bytes), (0.0, 0.0, 0.0), "{r:?}");
    }
    if !prefetch {
        assert_eq!((r.prefetch_precision, r.ahead_rate, r.wasted_bytes), (None, 0.0, 0.0), "{r:?}");
    }
}

#[test]
fn nothing_is_hit_more_often_than_with_knowledge_of_the_future() {
    let of = workload(Format::Fp8Block);
    let trace = trace(&of, 120);
    // Without copies ahead, and with every miss over the link: what is kept is the policy's decision alone.
    let machine = Machine::H100.without_cpu();
    for slots in [40, 64, 128, 256] {
        let run = |policy| simulate(&trace, &of, &machine, &replay(policy, slots, false)).unwrap();
        let best = run(Replayed::Belady);
        for policy in CachePolicy::ALL {
            let r = run(Replayed::Policy(policy));
            assert!(r.hit_rate <= best.hit_rate && r.tok_s <= best.tok_s * 1.001, "{r:?}\n{best:?}");
        }
    }
}

#[test]
fn more_of_anything_is_never_slower() {
    let of = workload(Format::Fp8Block);
    let trace = trace(&of, 60);
    let run = |machine: &Machine, slots| {
        simulate(&trace, &of, machine, &replay(Replayed::Belady, slots, false)).unwrap().tok_s
    };
    let base = Machine::H100;
    assert!(run(&base, 256) > run(&base, 64));
    assert!(run(&base, 64) > run(&base.clone().without_cpu(), 64));
    let mut faster = base.clone().without_cpu();
    faster.link = 110e9;
    assert!(run(&faster, 64) > run(&base.clone().without_cpu(), 64));
    // Room for everything: what misses is used for the first time.
    let all = of.layers * of.experts;
    let how = replay(Replayed::Policy(CachePolicy::Lru), all, false);
    let r = simulate(&self::trace(&of, 400), &of, &base.without_cpu(), &how).unwrap();
    assert!(r.hit_rate > 0.95, "{r:?}");
}

#[test]
fn prefetching_pays_where_only_the_link_brings_experts() {
    let of = workload(Format::Int4Group32);
    let trace = trace(&of, 200);
    let machine = Machine::H100.without_cpu();
    let run = |prefetch| simulate(&trace, &of, &machine, &replay(Replayed::Belady, 128, prefetch)).unwrap();
    let (with, without) = (run(true), run(false));
    assert!(with.tok_s > without.tok_s, "{with:?}\n{without:?}");
    assert!(with.overlap > without.overlap);
    // Most of the sure ones are there already; a wrong one costs nothing, so the others are tried too.
    assert!(with.prefetch_precision.unwrap() > 0.3 && with.prefetch_recall.unwrap() > 0.2, "{with:?}");
}

/// All of Kimi-K2 on an H100: the shares of what the hardware allows that `docs/notes/simulate.md` states, modelled.
#[test]
fn kimi_k2_reaches_its_shares_of_the_bound() {
    let trace = RoutingTrace::synthetic(&SyntheticTrace::kimi_k2(250, 0)).unwrap();
    let over_pcie = Machine::H100.without_cpu();
    for (format, policy, share) in [
        (Format::Fp8Block, CachePolicy::Reuse, 0.975),
        (Format::Int4Group32, CachePolicy::Reuse, 0.94),
        (Format::Int4Group32, CachePolicy::Lru, 0.955),
    ] {
        let of = Workload::new(&Synth::like("kimi-k2").format(format).config().unwrap(), 4096);
        let run = |prefetch: bool| {
            let mut how = Replay::default();
            how.policy = Replayed::Policy(policy);
            how.prefetch = prefetch;
            simulate(&trace, &of, &over_pcie, &how).unwrap()
        };
        let (with, without) = (run(true), run(false));
        assert!(with.share_of_bound >= share && with.step_by_longest <= 1.10, "{with:?}");
        assert!(with.share_of_bound > without.share_of_bound + 0.015, "{with:?}\n{without:?}");
        // Copied in vain is time that was idle: the misses do not wait for it.
        assert!(
            with.link_ms - with.wasted_bytes / over_pcie.link * 1e3 <= without.link_ms * 1.005,
            "{with:?}"
        );
    }
    for (format, tok_s) in [(Format::Fp8Block, 20.0), (Format::Int4Group32, 38.0)] {
        let of = Workload::new(&Synth::like("kimi-k2").format(format).config().unwrap(), 4096);
        let r = simulate(&trace, &of, &Machine::H100, &Replay::default()).unwrap();
        assert!(r.tok_s >= tok_s && r.step_by_longest <= 1.10, "{r:?}");
    }
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let of = workload(Format::Fp8Block);
    let refused = |result: abruzzi::Result<Report>| match result {
        Err(Error::Argument { name, problem }) => format!("{name} {problem}"),
        other => panic!("{other:?}"),
    };
    let how = Replay::default();
    let k2 = Workload::new(&Synth::like("kimi-k2").config().unwrap(), 0);
    let said = refused(simulate(&trace(&of, 10), &k2, &Machine::H100, &how));
    assert!(said.contains("8 layers of 64 experts, 8 a token, the model has 60 layers of 384"), "{said}");
    let said = refused(simulate(&trace(&of, 4), &of, &Machine::H100, &how));
    assert!(said.starts_with("trace has 4 tokens"), "{said}");
    for slots in [0, 8 * 64 + 1] {
        let how = replay(Replayed::Belady, slots, true);
        let said = refused(simulate(&trace(&of, 10), &of, &Machine::H100, &how));
        assert_eq!(said, format!("slots is {slots}, expected 1 to 512 (every expert)"));
    }
}

#[test]
fn the_chart_has_a_line_for_each_policy_in_both_panels() {
    let of = workload(Format::Fp8Block);
    let trace = trace(&of, 20);
    let mut reports = Vec::new();
    for policy in policies() {
        for slots in [32, 64, 128] {
            reports.push(simulate(&trace, &of, &Machine::H100, &replay(policy, slots, true)).unwrap());
        }
    }
    let svg = chart("a chart", &reports);
    assert_eq!(svg.matches("<polyline").count(), 2 * policies().count());
    assert_eq!(svg.matches("<circle").count(), 2 * reports.len());
    for policy in policies() {
        assert!(svg.contains(&format!(">{policy}</text>")), "{policy}");
    }
    assert!(svg.contains("modelled") && !svg.contains("NaN") && !svg.contains("inf"));
}

#[test]
fn the_command_prints_a_table_json_and_a_chart() {
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("slots.svg");
    let file = dir.path().join("trace.json");
    let of = Workload::new(&Synth::like("moonlight").config().unwrap(), 4096);
    trace(&of, 30).save(&file, &[]).unwrap();
    let (svg_name, file_name) = (svg.to_str().unwrap(), file.to_str().unwrap());
    let base = ["simulate", "--like", "moonlight", "--trace", file_name, "--slots", "200,400"];
    let table = stdout(&[&base[..], &["--svg", svg_name]].concat());
    assert!(table.starts_with("modelled"), "{table}");
    assert!(table.contains("uses repeat the token before") && table.contains("belady"), "{table}");
    assert!(std::fs::read_to_string(&svg).unwrap().starts_with("<svg"));

    let events = json_lines(&stdout(&[&base[..], &["--policy", "lru", "--no-cpu", "--json"]].concat()));
    assert_eq!(events.len(), 3);
    assert_eq!((&events[0]["event"], &events[0]["tokens"]), (&"trace".into(), &30.into()));
    for event in &events {
        assert_eq!(event["modelled"], true);
    }
    assert_eq!((&events[2]["slots"], &events[2]["cpu_share"]), (&400.into(), &0.0.into()));
}

#[test]
fn the_command_names_what_is_wrong() {
    fails(&["simulate", "--machine", "pdp-11"], 2, "--machine is \"pdp-11\", expected h100, h100-1tb");
    fails(&["simulate", "--policy", "best"], 2, "--policy is \"best\", expected one of");
    fails(&["simulate", "--tokens", "3"], 2, "has 3 tokens");
    fails(&["simulate", "--tokens", "10", "--slots", "0"], 2, "--slots is 0");
    fails(&["simulate", "--trace", "nowhere.json"], 1, "nowhere.json");
    fails(&["simulate", "-m", "config.json", "--like", "kimi-k2"], 2, "cannot be used with");
}
