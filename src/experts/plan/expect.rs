//! What a placement can be expected to do: arithmetic on published figures, nothing measured.

use serde::Serialize;

use super::Hardware;

/// Share of resident experts and of hits, from published curves of other models; none of Kimi-K2 is public. 6, 12 and 24 %
/// are the planning figures between Kimi-Linear (WARP), V4-Flash (hipfire) and Qwen3.8-Flash-Next (imp #2061); 3 % is
/// Kimi-Linear's and 43.8 % V4-Flash's, the lowest published there.
const HITS: [(f64, f64); 7] =
    [(0.0, 0.0), (0.03, 0.13), (0.06, 0.41), (0.12, 0.62), (0.24, 0.79), (0.438, 0.865), (1.0, 1.0)];

/// Share of the memory's rate that kernels reach.
const HBM_SHARE: f64 = 0.8;

/// Seconds a layer with experts costs in waiting for the host. Assumed.
const SYNC: f64 = 20e-6;

/// The hit rate to expect with this share of the experts resident: published curves of other models, interpolated.
///
/// ```
/// assert_eq!(abruzzi::experts::plan::hit_rate(0.12), 0.62);
/// ```
pub fn hit_rate(resident: f64) -> f64 {
    let x = resident.clamp(0.0, 1.0);
    let above = HITS.iter().position(|&(share, _)| x <= share).unwrap_or(HITS.len() - 1);
    let (x1, y1) = HITS[above];
    if x == x1 || above == 0 {
        return y1;
    }
    let (x0, y0) = HITS[above - 1];
    y0 + (y1 - y0) * (x - x0) / (x1 - x0)
}

/// Upper bounds of tokens a second, modelled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bound {
    /// Tokens in the context.
    pub depth: usize,
    /// The CPU computes its share of the misses.
    pub cpu: bool,
    /// Nothing overlaps.
    pub serial: f64,
    /// Everything overlaps.
    pub ideal: f64,
}

/// What to expect. All of it is modelled: hit rates are published curves of other models, times are bytes by rates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Expected {
    /// Share of a token's experts that is in a slot.
    pub hit_rate: f64,
    /// Share that is in a slot or in host memory.
    pub hit_rate_with_host: f64,
    /// Bytes of routed experts a token needs.
    pub routed_bytes: u64,
    /// Bytes of them that slots do not hold.
    pub missed_bytes: u64,
    /// Decode, empty and with the context full.
    pub decode: Vec<Bound>,
    /// Prefill tokens a second, if every chunk takes every expert that has no slot and the streamed trunk over the link once;
    /// 0 if there is nothing to take.
    pub prefill: f64,
}

/// Bytes that the expectations follow from.
pub(super) struct Load {
    pub trunk_read: u64,
    pub trunk_streamed: u64,
    pub routed: u64,
    pub records: u64,
    /// Key/value bytes of a full context.
    pub kv_read: u64,
    pub moe_layers: usize,
    /// Share of experts in slots, those that never leave them, and share in slots or host memory.
    pub resident: f64,
    pub held: f64,
    pub near: f64,
    pub context: usize,
    pub chunk: usize,
}

impl Load {
    /// T_host = misses / min(link + CPU, DRAM), where the CPU can take what DRAM gives, and the trunk that is streamed takes the
    /// link at least. T_gpu = (trunk + cache + hits) / (0.8 · HBM) + layers · t_sync.
    pub fn expect(&self, hw: &Hardware) -> Expected {
        // Held experts are any: they are hit as often as they are many, and the curve is that of the others.
        let others = 1.0 - self.held;
        let cached = if others > 0.0 { hit_rate((self.resident - self.held) / others) } else { 0.0 };
        let (hit, near) = (self.held + others * cached, hit_rate(self.near));
        let (routed, streamed) = (self.routed as f64, self.trunk_streamed as f64);
        let missed = (1.0 - hit) * routed;
        let file = hw.nvme.map_or(0.0, |rate| (1.0 - near) * routed / rate);
        let bound = |depth, cpu| {
            let cache = self.kv_read as f64 * depth as f64 / self.context as f64;
            let gpu = (self.trunk_read as f64 + cache + hit * routed) / (HBM_SHARE * hw.hbm)
                + self.moe_layers as f64 * SYNC;
            let link = hw.link.min(hw.dram);
            let host = match cpu {
                false => (streamed + missed) / link,
                true => ((streamed + missed) / hw.dram).max(streamed / link),
            };
            let ideal = 1.0 / host.max(gpu).max(file);
            Bound { depth, cpu, serial: 1.0 / (host + gpu + file), ideal }
        };
        let per_chunk = ((1.0 - self.resident) * self.records as f64 + streamed) / hw.link.min(hw.dram);
        let from_file = hw.nvme.map_or(0.0, |rate| (1.0 - self.near) * self.records as f64 / rate);
        let slowest = per_chunk.max(from_file);
        let prefill = if slowest > 0.0 { self.chunk as f64 / slowest } else { 0.0 };
        Expected {
            hit_rate: hit,
            hit_rate_with_host: near,
            routed_bytes: self.routed,
            missed_bytes: missed as u64,
            decode: [(0, false), (0, true), (self.context, false), (self.context, true)]
                .map(|(depth, cpu)| bound(depth, cpu))
                .to_vec(),
            prefill,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_goes_through_its_points_and_never_falls() {
        for (share, hits) in HITS {
            assert_eq!(hit_rate(share), hits);
        }
        assert!((hit_rate(0.09) - 0.515).abs() < 1e-12);
        let curve: Vec<f64> = (0..=1000).map(|i| hit_rate(f64::from(i) / 1000.0)).collect();
        assert!(curve.is_sorted(), "{curve:?}");
        assert_eq!((hit_rate(-1.0), hit_rate(2.0)), (0.0, 1.0));
    }

    /// Kimi-K2 FP8 with 6.4 % resident, as facts of this kind are quoted: 2.6 tok/s without slots, 4.5 ideal over the link.
    #[test]
    fn the_link_alone() {
        let load = |resident| Load {
            trunk_read: 11_900_000_000,
            trunk_streamed: 0,
            routed: 21_140_000_000,
            records: 1_015_000_000_000,
            kv_read: 0,
            moe_layers: 60,
            resident,
            held: 0.0,
            near: 1.0,
            context: 1,
            chunk: 8192,
        };
        let hw = Hardware::new(0, 0);
        let at = |resident: f64| load(resident).expect(&hw);
        assert!((at(0.0).decode[0].ideal - 2.60).abs() < 0.01);
        let cached = at(0.064);
        assert!((cached.decode[0].ideal - 4.5).abs() < 0.1, "{cached:?}");
        assert!((at(0.0).prefill - 444.0).abs() < 1.0, "{cached:?}");
        assert!((cached.prefill * (1.0 - 0.064) - 444.0).abs() < 1.0, "{cached:?}");
        let fastest = Hardware { dram: 300e9, ..hw };
        let shared = load(0.064).expect(&fastest);
        assert!((shared.decode[1].ideal - 24.0).abs() < 1.0, "{shared:?}");
    }
}
