//! What a replay found.

use serde::Serialize;

use super::{Machine, Replay, Workload};
use crate::experts::prefetch::PrefetchStats;

/// Sums over the tokens counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Seconds of each token.
    pub steps: Vec<f64>,
    pub uses: u64,
    /// Uses of what was on the GPU when the layer was routed.
    pub hits: u64,
    /// Of these, first uses of what was copied ahead.
    pub brought_ahead: u64,
    /// Uses of what was being copied when the layer was routed.
    pub under_way: u64,
    pub on_cpu: u64,
    /// Seconds of each side.
    pub gpu: f64,
    pub cpu: f64,
}

/// What a policy, a schedule and prefetching achieve on a modelled machine. Every time and rate is modelled; counts are
/// those of the real code.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The machine's name.
    pub machine: &'static str,
    /// The policy's name.
    pub policy: String,
    /// Slots on the GPU.
    pub slots: usize,
    /// Slots by routed experts.
    pub resident_share: f64,
    /// Tokens counted.
    pub tokens: usize,
    /// Uses whose expert was on the GPU when its layer was routed, by all uses.
    pub hit_rate: f64,
    /// First uses of experts copied ahead of need, by all uses; they are hits if the copy was done in time.
    pub ahead_rate: f64,
    /// Misses that the CPU computed, by all misses.
    pub cpu_share: f64,
    /// Reads of records from the disk, a token; `None` if host memory holds all.
    pub disk_reads: Option<f64>,
    /// Tokens a second.
    pub tok_s: f64,
    /// Milliseconds a token: mean, median and 99th percentile.
    pub step_ms: f64,
    /// The median.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// Milliseconds a token that the link copied.
    pub link_ms: f64,
    /// Milliseconds a token that the GPU computed, launches included.
    pub gpu_ms: f64,
    /// Milliseconds a token that the CPU computed.
    pub cpu_ms: f64,
    /// Of the time that the sides could have hidden behind the busiest one, the share that they did.
    pub overlap: f64,
    /// The step by the busiest side's time.
    pub step_by_longest: f64,
    /// Bytes over the link, a token.
    pub link_bytes: f64,
    /// Of these, copied on a guess that was wrong.
    pub wasted_bytes: f64,
    /// Of these, experts missed before that were copied while the link was idle.
    pub refilled_bytes: f64,
    /// Right guesses by guesses copied.
    pub prefetch_precision: Option<f64>,
    /// Absent experts that guesses brought, by absent experts needed.
    pub prefetch_recall: Option<f64>,
    /// Milliseconds a token that no schedule could go below: the bytes of experts used that were not on the GPU by an earlier
    /// use, at the rate of link and CPU together; or the GPU's bytes at its rate, if that is longer.
    pub bound_ms: f64,
    /// The bound by the step.
    pub share_of_bound: f64,
}

impl Report {
    pub(super) fn new(
        counts: Counts,
        of: &Workload,
        on: &Machine,
        how: &Replay,
        slots: usize,
        (link, spared, reads): (f64, f64, Option<u64>),
        prefetched: PrefetchStats,
    ) -> Report {
        let tokens = counts.steps.len().max(1) as f64;
        let mut sorted = counts.steps.clone();
        sorted.sort_by(f64::total_cmp);
        // The nearest rank: the smallest step that so many of a hundred do not exceed.
        let percentile =
            |p: usize| 1e3 * sorted.get((sorted.len() * p).div_ceil(100).max(1) - 1).unwrap_or(&0.0);
        let step = sorted.iter().sum::<f64>() / tokens;
        let record = of.record as f64;
        let (link, gpu, cpu) = (link / tokens, counts.gpu / tokens, counts.cpu / tokens);
        let longest = link.max(gpu).max(cpu);
        let idle = (link + gpu + cpu - longest).max(f64::MIN_POSITIVE);
        let misses = counts.uses - counts.hits;
        let streamed = of.slots(on).1 as f64;
        let moved = (misses + counts.brought_ahead) as f64 * record / tokens + streamed;
        let on_gpu = (counts.uses - counts.on_cpu) as f64 * record / tokens;
        let bound = (moved / on.host_rate()).max((of.read() + on_gpu) / on.gpu());
        let of_uses = |n: u64| n as f64 / counts.uses.max(1) as f64;
        Report {
            machine: on.name,
            policy: how.policy.to_string(),
            slots,
            resident_share: slots as f64 / (of.layers * of.experts) as f64,
            tokens: counts.steps.len(),
            hit_rate: of_uses(counts.hits),
            ahead_rate: of_uses(counts.brought_ahead) + of_uses(counts.under_way),
            cpu_share: counts.on_cpu as f64 / misses.max(1) as f64,
            disk_reads: reads.map(|n| n as f64 / tokens),
            tok_s: 1.0 / step,
            step_ms: 1e3 * step,
            p50_ms: percentile(50),
            p99_ms: percentile(99),
            link_ms: 1e3 * link,
            gpu_ms: 1e3 * gpu,
            cpu_ms: 1e3 * cpu,
            // A side may be at work for longer than the steps counted: what it began in the last of them ends later.
            overlap: (1.0 - (step - longest) / idle).clamp(0.0, 1.0),
            step_by_longest: step / longest,
            link_bytes: link * on.link,
            wasted_bytes: (prefetched.wasted as f64 * record - spared * on.link) / tokens,
            refilled_bytes: prefetched.refilled as f64 * record / tokens,
            prefetch_precision: prefetched.precision(),
            prefetch_recall: prefetched.recall(),
            bound_ms: 1e3 * bound,
            share_of_bound: bound / step,
        }
    }
}
