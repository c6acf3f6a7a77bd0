//! Experts copied before a layer asks for them, on idle link time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::super::ExpertId;
use super::super::cache::Reserved;
use super::super::fault::Faults;
use super::super::host::HostStore;
use super::super::prefetch::{Destination, Prefetcher, Window};
use super::copying::{begin_copy, evicted};
use super::on_device::OnDevice;
use crate::device::{Device, Routing, SlotAt};
use crate::error::Result;
use crate::experts::stats::ExpertStats;

/// How much of a new layer's time goes into the estimate of a layer's time.
const WEIGHT: f64 = 0.1;

/// What is on its way, and the times that say whether the link is idle.
pub(super) struct Ahead<D: Device> {
    pub(super) prefetcher: Prefetcher,
    /// Copies that no layer has used yet.
    coming: FxHashMap<ExpertId, Coming<D>>,
    /// The layer that guesses were last made for.
    guessed: Option<usize>,
    /// When the link will have done what it was given, by its rate.
    link_free: Instant,
    /// The layer that was asked for last, when, and the seconds from layer to layer.
    last: (usize, Instant),
    layer_seconds: f64,
    /// Seconds the CPU took for the last layer it had a share of.
    pub(super) cpu_seconds: f64,
}

struct Coming<D: Device> {
    at: SlotAt,
    fence: Arc<D::Fence>,
    due: Instant,
}

impl<D: Device> Ahead<D> {
    pub(super) fn new() -> Ahead<D> {
        Ahead {
            prefetcher: Prefetcher::new(),
            coming: FxHashMap::default(),
            guessed: None,
            link_free: Instant::now(),
            last: (0, Instant::now()),
            layer_seconds: 0.0,
            cpu_seconds: 0.0,
        }
    }

    /// A layer is asked for: keeps the time from layer to layer.
    pub(super) fn tick(&mut self, layer: usize) {
        let (before, at) = std::mem::replace(&mut self.last, (layer, Instant::now()));
        // Between two tokens there may be anything, a person's thoughts for instance.
        if layer == before + 1 {
            let weight = if self.layer_seconds > 0.0 { WEIGHT } else { 1.0 };
            self.layer_seconds += weight * (at.elapsed().as_secs_f64() - self.layer_seconds);
        }
    }

    /// Notes that the link was given a copy of so many seconds.
    pub(super) fn book(&mut self, seconds: f64) {
        let begin = self.link_free.max(Instant::now());
        // A rate that nothing was measured of yet must not overflow a clock.
        self.link_free = begin + Duration::from_secs_f64(seconds.clamp(0.0, 1e6));
    }

    /// Seconds until the link has done what it was given.
    pub(super) fn link_free_in(&self) -> f64 {
        self.link_free.saturating_duration_since(Instant::now()).as_secs_f64()
    }

    /// Seconds until an expert on its way should be there; `None` if it is not on its way.
    pub(super) fn due_in(&self, id: ExpertId) -> Option<f64> {
        let coming = self.coming.get(&id)?;
        Some(coming.due.saturating_duration_since(Instant::now()).as_secs_f64())
    }

    /// An expert on its way is wanted: whoever takes it orders computing behind the copy.
    pub(super) fn take(&mut self, id: ExpertId) -> Option<(SlotAt, Arc<D::Fence>)> {
        self.coming.remove(&id).map(|c| (c.at, c.fence))
    }

    /// Those whose copies are done.
    fn landed(&self, device: &D) -> Result<Vec<ExpertId>> {
        let mut done = Vec::new();
        for (&id, coming) in &self.coming {
            if device.passed(&coming.fence)? {
                done.push(id);
            }
        }
        Ok(done)
    }

    /// Settles the guesses that were made for this layer.
    pub(super) fn settle(&mut self, layer: usize, used: &[ExpertId], absent: usize) {
        if self.guessed.take_if(|guessed| *guessed == layer).is_some() {
            let now = Instant::now();
            let coming = &self.coming;
            let mut late =
                |id| coming.get(&id).map_or(0.0, |c| c.due.saturating_duration_since(now).as_secs_f64());
            // A copy is one piece: what comes in vain arrives all the same and is the first to go.
            let _ = self.prefetcher.settle(used, absent, &mut late);
        }
    }
}

impl<D: Device> OnDevice<D> {
    /// Copies that are done become residents.
    pub(super) fn land(&mut self, device: &D) -> Result<()> {
        for id in self.ahead.landed(device)? {
            let Some((at, fence)) = self.ahead.take(id) else { continue };
            device.after(&fence)?;
            self.came(id, at)?;
        }
        Ok(())
    }

    /// Begins copies of what the next layer probably needs and of what was missed, as far as the link is idle. `used` are this
    /// layer's experts.
    #[allow(clippy::too_many_arguments, reason = "what copying needs, and what was guessed")]
    pub(super) fn look_ahead(
        &mut self,
        device: &D,
        store: &HostStore,
        faults: &Faults,
        stats: &mut ExpertStats,
        guess: Option<(usize, &Routing)>,
        used: &[ExpertId],
        (bytes, cpu_share): (u64, bool),
    ) {
        let guesses = guess.map_or_else(Vec::new, |(layer, routing)| ranked(layer, routing));
        self.ahead.guessed = guess.map(|(layer, _)| layer);
        let (copy, cpu) = (self.rates.copy_seconds(bytes), self.rates.cpu_seconds(bytes, 1));
        let window = Window {
            link_free_in: self.ahead.link_free_in(),
            needed_in: self.ahead.layer_seconds,
            copy,
            piece: copy,
            link_wanted: !cpu_share || cpu >= copy,
            cpu: cpu_share.then_some(cpu),
            cpu_busy: self.ahead.cpu_seconds,
        };
        // Taken out while it decides, since what it decides about is the rest of `self`.
        let mut prefetcher = std::mem::take(&mut self.ahead.prefetcher);
        let mut slots = Slots { device, store, faults, on: self, stats, used, bytes };
        prefetcher.issue(&guesses, window, &mut slots);
        self.ahead.prefetcher = prefetcher;
        stats.prefetch = self.ahead.prefetcher.stats();
    }
}

/// The experts of a guessed routing: all first choices, then all second ones, each expert once.
fn ranked(layer: usize, routing: &Routing) -> Vec<ExpertId> {
    let mut ids: Vec<ExpertId> = Vec::new();
    for rank in 0..routing.top_k() {
        for token in routing.ids().chunks_exact(routing.top_k()) {
            let id = ExpertId::new(layer, token[rank] as usize);
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    ids
}

/// The device's slots as the prefetcher sees them.
struct Slots<'a, D: Device> {
    device: &'a D,
    store: &'a HostStore,
    faults: &'a Faults,
    on: &'a mut OnDevice<D>,
    stats: &'a mut ExpertStats,
    used: &'a [ExpertId],
    bytes: u64,
}

impl<D: Device> Destination for Slots<'_, D> {
    fn absent(&self, id: ExpertId) -> bool {
        self.on.cache.find(id).is_none()
    }

    fn start(&mut self, id: ExpertId, right: f64) -> bool {
        // A guess is not worth reading a file for, nor waiting for room in host memory.
        let Some(record) = self.store.peek(id) else { return false };
        if !self.store.holds_all() {
            return false;
        }
        let cache = &self.on.cache;
        let just_used = self.used.first().map_or(0.0, |&used| cache.worth(used));
        let worth = cache.worth(id);
        let worth = worth + right * (just_used - worth).max(0.0);
        let used = self.used;
        let reserved = self.on.cache.reserve_over(id, worth, &mut |other| used.contains(&other));
        let Reserved::Slot { at, evicted: old } = reserved else { return false };
        evicted(self.on, self.store, self.stats, old);
        let at = SlotAt { slot: at.slot, generation: at.generation };
        // A guess that cannot be copied is no error: whoever needs the expert will try again, and say so.
        let (device, store, faults) = (self.device, self.store, self.faults);
        let record = Arc::new(record);
        let Ok(Some(fence)) = begin_copy(device, store, faults, self.on, id, at, record, self.stats) else {
            self.on.failed(id);
            return false;
        };
        self.stats.ahead_bytes += self.bytes;
        let due = self.on.ahead.link_free;
        self.on.ahead.coming.insert(id, Coming { at, fence, due });
        true
    }
}
