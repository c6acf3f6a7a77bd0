//! The host's side: where an expert lies there, and computing it there.

use std::sync::Arc;
use std::time::Instant;

use super::super::ExpertId;
use super::super::fault::Point;
use super::super::host::{HostRecord, HostStats, HostStore, MappedExperts};
use super::super::stats::ExpertStats;
use super::{AtWork, ONE_BY_ONE, Residency};
use crate::checkpoint::RecordLayout;
use crate::checkpoint::weights::GatedMlp;
use crate::device::cpu::{HostJob, JobPanic};
use crate::device::{Device, Shape};
use crate::error::{Result, Tier};
use crate::quant::MatrixView;
use crate::telemetry::{Row, Tracer, What};

/// Where the host has the experts.
pub(super) enum InHost {
    /// In records of its own, of which a device can have copies.
    Stored(Arc<HostStore>),
    /// In the checkpoint's files, mapped; only for a device that computes there.
    Mapped(MappedExperts),
}

/// An expert that stays where it is as long as this lives.
pub(super) enum HostExpert<'a> {
    Stored(HostRecord),
    Mapped(GatedMlp<MatrixView<'a>>),
}

impl HostExpert<'_> {
    /// Its matrices; `layout` is that of its layer's records.
    fn views(&self, layout: &RecordLayout) -> GatedMlp<MatrixView<'_>> {
        match self {
            HostExpert::Stored(record) => layout.views(record.as_ref()),
            HostExpert::Mapped(views) => views.map(|view| *view),
        }
    }
}

impl InHost {
    /// Layout of the records of a layer; `None` for dense layers.
    fn layout(&self, layer: usize) -> Option<&RecordLayout> {
        match self {
            InHost::Stored(store) => store.layout(layer),
            InHost::Mapped(experts) => experts.layout(layer),
        }
    }

    /// The expert, sound.
    fn get(&self, id: ExpertId) -> Result<HostExpert<'_>> {
        match self {
            InHost::Stored(store) => store.get(id).map(HostExpert::Stored),
            InHost::Mapped(experts) => experts.get(id).map(HostExpert::Mapped),
        }
    }

    /// Has the expert read ahead, where it may have to be read.
    fn request(&self, id: ExpertId) {
        if let InHost::Stored(store) = self {
            store.request(id);
        }
    }

    /// Experts that can be held at a time.
    fn at_once(&self) -> usize {
        match self {
            InHost::Stored(store) => (store.stats().slots as usize).max(1),
            InHost::Mapped(_) => usize::MAX,
        }
    }

    pub(super) fn tier(&self, id: ExpertId) -> Tier {
        match self {
            InHost::Stored(store) => store.tier(id),
            InHost::Mapped(experts) => experts.tier(id),
        }
    }

    pub(super) fn holds_all(&self) -> bool {
        match self {
            InHost::Stored(store) => store.holds_all(),
            InHost::Mapped(_) => true,
        }
    }

    pub(super) fn wait_loaded(&self) -> Result<()> {
        match self {
            InHost::Stored(store) => store.wait_loaded(),
            InHost::Mapped(experts) => experts.wait_loaded(),
        }
    }

    pub(super) fn stats(&self) -> HostStats {
        match self {
            InHost::Stored(store) => store.stats(),
            InHost::Mapped(experts) => experts.stats(),
        }
    }

    pub(super) fn describe(&self) -> String {
        match self {
            InHost::Stored(store) => store.describe(),
            InHost::Mapped(experts) => experts.describe(),
        }
    }
}

impl<D: Device> Residency<D> {
    /// Computes experts on the CPU and puts their rows among the pairs.
    pub(super) fn on_host(
        &self,
        device: &D,
        layer: usize,
        pairs: &mut D::Tensor,
        at_work: &mut AtWork,
        experts: &[usize],
        stats: &mut ExpertStats,
    ) -> Result<()> {
        let AtWork { routing, x, results } = at_work;
        let hidden = pairs.cols();
        let Some(layout) = self.host.layout(layer) else { return Ok(()) };
        // As many as host memory holds at a time.
        for experts in experts.chunks(self.host.at_once()) {
            let ids = || experts.iter().map(|&e| ExpertId::new(layer, e));
            for id in ids() {
                self.host.request(id);
            }
            let begun = Instant::now();
            // All of them, whatever happens to one: the error of a read that nobody waited for would come up later.
            let records: Vec<_> = ids().map(|id| self.host.get(id)).collect();
            let records = records.into_iter().collect::<Result<Vec<_>>>()?;
            stats.waited_seconds += begun.elapsed().as_secs_f64();
            let rows: usize = experts.iter().map(|&e| routing.pairs_of(e).len()).sum();
            // What is left from before is written over, unless a job panics.
            results.resize(rows * hidden, 0.0);
            let mut rest = results.as_mut_slice();
            let mut jobs = Vec::with_capacity(experts.len());
            for (&expert, record) in experts.iter().zip(&records) {
                let of_expert = routing.pairs_of(expert);
                let (out, later) = rest.split_at_mut(of_expert.len() * hidden);
                rest = later;
                let mut tokens: Vec<_> = of_expert.map(|pair| routing.pair(pair).0 as u32).collect();
                if self.faults.strikes(Point::Panic) {
                    // Beyond any batch.
                    tokens[0] = u32::MAX;
                }
                jobs.push(HostJob { mlp: record.views(layout), tokens, out });
            }
            let begun = Instant::now();
            let panicked = self.workers.host_experts(x, &mut jobs).err();
            let ended = Instant::now();
            drop(jobs);
            if let Some(JobPanic { job, message }) = panicked {
                let problem = format!("the thread that computed it panicked: {message}");
                return Err(ExpertId::new(layer, experts[job]).error(Tier::Host, None, problem));
            }
            let bytes = (experts.len() * layout.size()) as u64;
            stats.cpu_bytes += bytes;
            stats.cpu_seconds += (ended - begun).as_secs_f64();
            // A device that computes experts itself does so on the session's row.
            let beside = if device.workers().is_none() { &self.trace } else { &Tracer::off() };
            beside.record(Row::Cpu, What::Experts(layer, experts.len()), begun, ended, bytes);
            let mut rest = results.as_slice();
            for &expert in experts {
                let of_expert = routing.pairs_of(expert);
                let (out, later) = rest.split_at(of_expert.len() * hidden);
                rest = later;
                device.write_rows(pairs, of_expert.start, out)?;
            }
            stats.on_cpu += experts.len() as u64;
        }
        // Kept for the next layer of single tokens; a prompt's, which may be a gigabyte, is not.
        let kept = ONE_BY_ONE * routing.top_k() * hidden;
        results.truncate(kept);
        results.shrink_to(kept);
        Ok(())
    }
}
