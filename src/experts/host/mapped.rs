//! The routed experts in the checkpoint's files, mapped.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use super::{HostStats, no_damage, trouble};
use crate::checkpoint::weights::GatedMlp;
use crate::checkpoint::{Checkpoint, LoadOptions, LoadProgress, RecordLayout};
use crate::error::{Error, Result, Tier};
use crate::experts::ExpertId;
use crate::quant::MatrixView;

/// The routed experts of a model where its files are mapped. Every value of an expert is looked at once, by threads that go through
/// all of them or by whoever needs it earlier; what was found then holds as long as this lives.
///
/// No checksums are taken: nothing is copied that could be compared, and nothing read again.
pub struct MappedExperts {
    shared: Arc<Shared>,
    lookers: Vec<JoinHandle<()>>,
}

struct Shared {
    checkpoint: Arc<Checkpoint>,
    layouts: Vec<Option<RecordLayout>>,
    /// By layer and expert, what looking at it has found: its bytes, or what is wrong.
    found: Vec<Vec<OnceLock<Result<u64>>>>,
    /// All experts as the files have them, and how many of them threads have begun to look at.
    order: Vec<ExpertId>,
    begun: AtomicUsize,
    stopped: AtomicBool,
    load: LoadOptions,
    start: Instant,
    bytes_total: u64,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    looked: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl MappedExperts {
    /// Begins to look at all experts, in the background.
    pub fn new(checkpoint: Arc<Checkpoint>, load: &LoadOptions) -> MappedExperts {
        let shared = Arc::new(Shared::new(checkpoint, load));
        // Whoever waits for all of it is one of the threads.
        let beside = load.lookers().saturating_sub(1).max(1);
        let lookers = (0..beside).map_while(|i| {
            let shared = shared.clone();
            let named = std::thread::Builder::new().name(format!("experts-{i}"));
            // Those that can be started do; without any, whoever needs an expert looks at it.
            named.spawn(move || shared.look_on()).ok()
        });
        let lookers = lookers.collect();
        MappedExperts { shared, lookers }
    }

    /// The expert's matrices, looked at before or now.
    ///
    /// # Errors
    /// [`Error::Expert`] if anything is wrong with it; [`Error::Argument`] if there is no such expert.
    pub fn get(&self, id: ExpertId) -> Result<GatedMlp<MatrixView<'_>>> {
        let shared = &*self.shared;
        let known = shared.found(id)?.get().is_some();
        let count = if known { &shared.counts.hits } else { &shared.counts.misses };
        count.fetch_add(1, Ordering::Relaxed);
        match shared.look(id)? {
            Ok(_) => shared.checkpoint.mapped_expert(id.layer as usize, id.expert as usize),
            Err(wrong) => Err(trouble(id, Tier::File, None, wrong.to_string())),
        }
    }

    /// [`Tier::Host`] for an expert that was looked at: if memory did not become short it still is in the file cache.
    pub fn tier(&self, id: ExpertId) -> Tier {
        let known = self.shared.found(id).is_ok_and(|found| found.get().is_some());
        if known { Tier::Host } else { Tier::File }
    }

    /// Layout that records of a layer would have; `None` for dense layers.
    pub fn layout(&self, layer: usize) -> Option<&RecordLayout> {
        self.shared.layouts.get(layer)?.as_ref()
    }

    /// Waits until all experts have been looked at, and helps with it.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with all damaged tensors, [`Error::Expert`] for another trouble, [`Error::Cancelled`].
    pub fn wait_loaded(&self) -> Result<()> {
        let shared = &*self.shared;
        shared.look_on();
        let mut faults = Vec::new();
        for &id in &shared.order {
            if shared.is_cancelled() {
                return Err(Error::Cancelled);
            }
            // Of what another thread is looking at, its result is waited for.
            match shared.look(id)? {
                Ok(_) => {}
                Err(Error::Checkpoint { faults: damage, .. }) => faults.extend(damage.0.iter().cloned()),
                Err(other) => return Err(trouble(id, Tier::File, None, other.to_string())),
            }
        }
        no_damage(shared.checkpoint.dir(), faults)
    }

    /// What it has done so far; looking at an expert counts as reading its record.
    pub fn stats(&self) -> HostStats {
        let Shared { counts, order, bytes_total, .. } = &*self.shared;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        HostStats {
            reads: of(&counts.looked),
            bytes: of(&counts.bytes),
            seconds: of(&counts.nanoseconds) as f64 / 1e9,
            hits: of(&counts.hits),
            misses: of(&counts.misses),
            resident: of(&counts.looked),
            slots: order.len() as u64,
            workers: self.lookers.iter().filter(|thread| !thread.is_finished()).count() as u64,
            capacity: *bytes_total,
            ..HostStats::default()
        }
    }

    /// Where the experts are, in words.
    pub fn describe(&self) -> String {
        let Shared { order, bytes_total, .. } = &*self.shared;
        let gib = *bytes_total as f64 / f64::from(1 << 30);
        format!("all {} experts mapped, {gib:.2} GiB in the checkpoint's files", order.len())
    }
}

impl Drop for MappedExperts {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for looker in self.lookers.drain(..) {
            // A panic there has left its expert to whoever needs it; there is nobody to tell.
            let _ = looker.join();
        }
    }
}

impl Shared {
    fn new(checkpoint: Arc<Checkpoint>, load: &LoadOptions) -> Shared {
        let config = checkpoint.config();
        let layouts: Vec<_> = (0..config.num_layers).map(|layer| checkpoint.record_layout(layer)).collect();
        let (mut found, mut order, mut bytes_total) = (Vec::new(), Vec::new(), 0);
        for (layer, layout) in layouts.iter().enumerate() {
            let experts = checkpoint.experts(layer);
            found.push(experts.iter().map(|_| OnceLock::new()).collect());
            let parts = layout.as_ref().map_or(0, |l| {
                l.parts().each().iter().map(|p| p.weight.len() + p.scale.len()).sum::<usize>()
            });
            bytes_total += (experts.len() * parts) as u64;
            for (expert, source) in experts.iter().enumerate() {
                let begins = source.each().map(|m| (m.weight.shard, m.weight.entry.offset));
                order.push((begins.into_iter().min(), ExpertId::new(layer, expert)));
            }
        }
        order.sort_unstable();
        let order = order.into_iter().map(|(_, id)| id).collect();
        Shared {
            layouts,
            found,
            order,
            begun: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            load: load.clone(),
            start: Instant::now(),
            bytes_total,
            counts: Counts::default(),
            checkpoint,
        }
    }

    fn found(&self, id: ExpertId) -> Result<&OnceLock<Result<u64>>> {
        let found = self.found.get(id.layer as usize).and_then(|layer| layer.get(id.expert as usize));
        found.ok_or_else(|| Error::argument("expert", format!("is {id}, which the model does not have")))
    }

    /// What looking at an expert has found, or finds now. Threads that ask for the same share it.
    fn look(&self, id: ExpertId) -> Result<&Result<u64>> {
        Ok(self.found(id)?.get_or_init(|| {
            let begun = Instant::now();
            let bytes = self.checkpoint.look_at_expert(id.layer as usize, id.expert as usize);
            let Counts { looked, bytes: seen, nanoseconds, .. } = &self.counts;
            nanoseconds.fetch_add(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
            looked.fetch_add(1, Ordering::Relaxed);
            let bytes_of = *bytes.as_ref().unwrap_or(&0);
            let bytes_done = seen.fetch_add(bytes_of, Ordering::Relaxed) + bytes_of;
            if let Some(progress) = &self.load.progress {
                let (bytes_total, seconds) = (self.bytes_total, self.start.elapsed().as_secs_f64());
                progress(LoadProgress { bytes_done, bytes_total, seconds });
            }
            bytes
        }))
    }

    /// Looks at one expert after the other, beside other threads that do, until none is left or it is to stop.
    fn look_on(&self) {
        while !self.stopped.load(Ordering::Relaxed) && !self.is_cancelled() {
            let next = self.begun.fetch_add(1, Ordering::Relaxed);
            let Some(&id) = self.order.get(next) else { return };
            // What is wrong is kept for whoever asks for the expert.
            let _ = self.look(id);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.load.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }
}
