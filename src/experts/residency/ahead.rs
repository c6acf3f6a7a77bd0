//! Experts copied before a layer asks for them, on idle link time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::super::ExpertId;
use super::super::cache::Reserved;
use super::super::fault::Faults;
use super::super::prefetch::{Destination, Prefetcher, Window, worth_of_guess};
use super::copying::{Arrival, begin_copy, begin_rest, evicted};
use super::on_device::OnDevice;
use crate::device::{Device, HostBytes, Routing, SlotAt};
use crate::error::Result;
use crate::experts::stats::ExpertStats;

/// How much of a new gap goes into the estimate of the gap between two layers.
const WEIGHT: f64 = 0.1;

/// Parts of a record end at a multiple of so many bytes.
const GRAIN: usize = 4096;

/// What is on its way, and the times that say whether the link is idle.
pub(super) struct Ahead<D: Device> {
    pub(super) prefetcher: Prefetcher,
    /// Copies that no layer has used yet.
    coming: FxHashMap<ExpertId, Coming<D>>,
    /// Guesses of whose records only a part was copied, until the routing says whether they are right. In the order of copying.
    parts: Vec<Part<D>>,
    /// The layer that guesses were last made for.
    guessed: Option<usize>,
    /// When the link will have done what it was given, by its rate.
    link_free: Instant,
    /// The layer whose routing is to be known next, since when that is measured, and from what.
    awaited: Option<(usize, Instant, Since)>,
    /// Seconds from a layer's misses until the next layer's routing is known.
    gap: f64,
    /// Seconds from the guess that begins a token until the first routing is known.
    lead: f64,
    /// Copies for which the link is taken to be idle whatever was seen, for tests.
    idle_copies: Option<f64>,
    /// The experts of the layer that was issued last.
    used: Vec<ExpertId>,
    /// Seconds the CPU took for the last layer it had a share of.
    pub(super) cpu_seconds: f64,
}

/// What the time until a routing is measured from.
#[derive(Debug, Clone, Copy)]
enum Since {
    /// Link and CPU have done the misses of the layer before.
    Misses,
    /// The host has seen the guess that was made from the embedding.
    Guess,
}

struct Coming<D: Device> {
    at: SlotAt,
    arrival: Arrival<D::Fence>,
    due: Instant,
}

/// The first `bytes` of a record, on their way to a slot.
struct Part<D: Device> {
    id: ExpertId,
    at: SlotAt,
    bytes: usize,
    fence: Arc<D::Fence>,
    due: Instant,
}

impl<D: Device> Ahead<D> {
    pub(super) fn new(idle_copies: Option<f64>) -> Ahead<D> {
        Ahead {
            prefetcher: Prefetcher::new(),
            coming: FxHashMap::default(),
            parts: Vec::new(),
            guessed: None,
            link_free: Instant::now(),
            awaited: None,
            gap: 0.0,
            lead: 0.0,
            idle_copies,
            used: Vec::new(),
            cpu_seconds: 0.0,
        }
    }

    /// A layer's routing is known: keeps the time since the misses of the layer before were done, or since it was guessed.
    pub(super) fn routed(&mut self, layer: usize) {
        let Some((awaited, at, since)) = self.awaited.take() else { return };
        // Between two tokens there may be anything, a person's thoughts for instance.
        if layer == awaited {
            let estimate = match since {
                Since::Misses => &mut self.gap,
                Since::Guess => &mut self.lead,
            };
            let weight = if *estimate > 0.0 { WEIGHT } else { 1.0 };
            *estimate += weight * (at.elapsed().as_secs_f64() - *estimate);
        }
    }

    /// A layer's misses are issued: returns the seconds until the next layer's routing will be known.
    fn issued(&mut self, layer: usize) -> f64 {
        let now = Instant::now();
        let done = self.link_free.max(now);
        self.awaited = Some((layer + 1, done, Since::Misses));
        (done - now).as_secs_f64() + self.gap
    }

    /// A token has begun, and the first layer with experts was guessed: returns the seconds until its routing will be known.
    fn begun(&mut self, first: usize) -> f64 {
        self.awaited = Some((first, Instant::now(), Since::Guess));
        self.lead
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
    pub(super) fn take(&mut self, id: ExpertId) -> Option<(SlotAt, Arrival<D::Fence>)> {
        self.coming.remove(&id).map(|c| (c.at, c.arrival))
    }

    /// Those whose copies are done.
    fn landed(&self, device: &D) -> Result<Vec<ExpertId>> {
        let mut done = Vec::new();
        for (&id, coming) in &self.coming {
            if device.passed(&coming.arrival.whole)? {
                done.push(id);
            }
        }
        Ok(done)
    }

    /// Settles the guesses that were made for this layer.
    fn settle(&mut self, layer: usize, used: &[ExpertId], absent: usize) {
        if self.guessed.take_if(|guessed| *guessed == layer).is_some() {
            let now = Instant::now();
            let (coming, parts) = (&self.coming, &self.parts);
            let due = |id| {
                let part = parts.iter().find(|part| part.id == id).map(|part| part.due);
                part.or_else(|| coming.get(&id).map(|coming| coming.due))
            };
            let mut late = |id| due(id).map_or(0.0, |due| due.saturating_duration_since(now).as_secs_f64());
            self.prefetcher.settle(used, absent, &mut late);
        }
    }
}

impl<D: Device> OnDevice<D> {
    /// Copies that are done become residents.
    pub(super) fn land(&mut self, device: &D) -> Result<()> {
        for id in self.ahead.landed(device)? {
            let Some((at, arrival)) = self.ahead.take(id) else { continue };
            device.after(&arrival.whole)?;
            self.came(id, at)?;
        }
        Ok(())
    }

    /// The routing of a layer is known: guesses of it are settled, the parts of experts that it uses are completed, before
    /// anything else is copied, and those of others are given up.
    pub(super) fn routing_known(
        &mut self,
        device: &D,
        faults: &Faults,
        stats: &mut ExpertStats,
        layer: usize,
        used: &[ExpertId],
    ) {
        self.ahead.routed(layer);
        let absent = used.iter().filter(|&&id| self.cache.find(id).is_none()).count();
        self.ahead.settle(layer, used, absent);
        for Part { id, at, bytes, fence, .. } in std::mem::take(&mut self.ahead.parts) {
            let record = if used.contains(&id) { self.store.peek(id) } else { None };
            let rest = record.and_then(|record| {
                let length = record.as_ref().len() - bytes;
                // What the device refuses is a miss like any other, and is tried again as one.
                let begun = begin_rest(device, faults, self, id, at, (Arc::new(record), bytes), stats);
                Some((begun.ok().flatten()?, length))
            });
            match rest {
                Some((rest, length)) => {
                    stats.completed_parts += 1;
                    stats.ahead_bytes += length as u64;
                    // Without a part of gate or up in the rest, they came with what was copied before.
                    let arrival = Arrival { gate_up: rest.gate_up.or(Some(fence)), ..rest };
                    let due = self.ahead.link_free;
                    self.ahead.coming.insert(id, Coming { at, arrival, due });
                }
                None => {
                    stats.dropped_parts += 1;
                    self.failed(id);
                }
            }
        }
    }

    /// Gives up all parts: nobody knows when their layer will be asked for.
    pub(super) fn drop_parts(&mut self) {
        for part in std::mem::take(&mut self.ahead.parts) {
            self.failed(part.id);
        }
    }

    /// A layer's misses are issued: begins copies of what the next layer probably needs and of what was missed, as far as the
    /// link is idle. `used` are this layer's experts.
    #[allow(clippy::too_many_arguments, reason = "what copying needs, and what was guessed")]
    pub(super) fn look_ahead(
        &mut self,
        device: &D,
        faults: &Faults,
        stats: &mut ExpertStats,
        guess: Option<&Routing>,
        used: Vec<ExpertId>,
        (layer, bytes, cpu_share): (usize, u64, bool),
    ) {
        self.ahead.used = used;
        let needed_in = self.ahead.issued(layer);
        let guess = guess.map(|routing| (layer + 1, routing));
        self.begin_ahead(device, faults, stats, guess, needed_in, (bytes, cpu_share));
    }

    /// A token has begun: the same for the first layer with experts, as guessed from the embedding. The experts of the last
    /// layer before are those that were just used.
    pub(super) fn look_ahead_of_first(
        &mut self,
        device: &D,
        faults: &Faults,
        stats: &mut ExpertStats,
        guess: &Routing,
        (first, bytes, cpu_share): (usize, u64, bool),
    ) {
        let needed_in = self.ahead.begun(first);
        self.begin_ahead(device, faults, stats, Some((first, guess)), needed_in, (bytes, cpu_share));
    }

    /// Begins copies of what a guessed layer needs and of what was missed, on link time that is idle until `needed_in` seconds
    /// from now.
    #[allow(clippy::too_many_arguments, reason = "what copying needs, and what was guessed")]
    fn begin_ahead(
        &mut self,
        device: &D,
        faults: &Faults,
        stats: &mut ExpertStats,
        guess: Option<(usize, &Routing)>,
        needed_in: f64,
        (bytes, cpu_share): (u64, bool),
    ) {
        let guesses = guess.map_or_else(Vec::new, |(layer, routing)| ranked(layer, routing));
        self.ahead.guessed = guess.map(|(layer, _)| layer);
        let (copy, cpu) = (self.rates.copy_seconds(bytes), self.rates.cpu_seconds(bytes, 1));
        let link_free_in = self.ahead.link_free_in();
        let window = Window {
            link_free_in,
            needed_in: self.ahead.idle_copies.map_or(needed_in, |copies| link_free_in + copies * copy),
            copy,
            link_wanted: !cpu_share || cpu >= copy,
            cpu: cpu_share.then_some(cpu),
            cpu_busy: self.ahead.cpu_seconds,
        };
        // Taken out while it decides, since what it decides about is the rest of `self`.
        let mut prefetcher = std::mem::take(&mut self.ahead.prefetcher);
        let used = std::mem::take(&mut self.ahead.used);
        let mut slots = Slots { device, faults, on: self, stats, used: &used };
        prefetcher.issue(&guesses, window, &mut slots);
        self.ahead.prefetcher = prefetcher;
        self.ahead.used = used;
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
    faults: &'a Faults,
    on: &'a mut OnDevice<D>,
    stats: &'a mut ExpertStats,
    used: &'a [ExpertId],
}

impl<D: Device> Destination for Slots<'_, D> {
    fn absent(&self, id: ExpertId) -> bool {
        self.on.cache.find(id).is_none()
    }

    fn start(&mut self, id: ExpertId, right: f64, share: f64) -> bool {
        // A guess is not worth reading a file for, nor waiting for room in host memory.
        let Some(record) = self.on.store.peek(id) else { return false };
        if !self.on.store.holds_all() {
            return false;
        }
        let all = record.as_ref().len();
        let bytes = if share < 1.0 { (all as f64 * share) as usize / GRAIN * GRAIN } else { all };
        if bytes == 0 {
            return false;
        }
        let cache = &self.on.cache;
        let just_used = self.used.first().map_or(0.0, |&used| cache.worth(used));
        let worth = worth_of_guess(cache.worth(id), just_used, right, bytes < all);
        let used = self.used;
        let reserved = self.on.cache.reserve_over(id, worth, &mut |other| used.contains(&other));
        let Reserved::Slot { at, evicted: old } = reserved else { return false };
        evicted(self.on, self.stats, old);
        let at = SlotAt { slot: at.slot, generation: at.generation };
        // A guess that cannot be copied is no error: whoever needs the expert will try again, and say so.
        let (device, faults) = (self.device, self.faults);
        let record: HostBytes = Arc::new(record);
        let begun = if bytes < all {
            let part = begin_copy(device, faults, self.on, id, at, (record, 0..bytes), self.stats);
            part.ok().flatten().map(|fence| {
                let due = self.on.ahead.link_free;
                self.on.ahead.parts.push(Part { id, at, bytes, fence, due });
            })
        } else {
            let whole = begin_rest(device, faults, self.on, id, at, (record, 0), self.stats);
            whole.ok().flatten().map(|arrival| {
                let due = self.on.ahead.link_free;
                self.on.ahead.coming.insert(id, Coming { at, arrival, due });
            })
        };
        if begun.is_none() {
            self.on.failed(id);
            return false;
        }
        self.stats.ahead_bytes += bytes as u64;
        true
    }
}
