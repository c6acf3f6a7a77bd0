//! The modelled decoding of tokens: one clock, five resources.
//!
//! Times are absolute seconds. The GPU computes attention, routing, residents and what arrives, in that order; the link, the
//! CPU and the disk each work off a queue of their own.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::guess::Guesses;
use super::report::Counts;
use super::{Machine, Replay, Report, Workload};
use crate::experts::ExpertId;
use crate::experts::cache::{Cache, Reserved};
use crate::experts::prefetch::{Destination, PrefetchStats, Prefetcher, Window, worth_of_guess};
use crate::experts::schedule::{Busy, Miss, Rates, Target, follow, split};
use crate::experts::trace::RoutingTrace;

/// A replay under way.
pub(super) struct Run<'a> {
    trace: &'a RoutingTrace,
    of: &'a Workload,
    on: &'a Machine,
    how: &'a Replay,
    streamed: u64,
    gpu: Gpu,
    host: Option<Host>,
    rates: Rates,
    prefetcher: Prefetcher,
    guesses: Guesses,
    now: f64,
    /// When the experts of the last layer were done.
    experts_done: f64,
    cpu_free: f64,
    /// When the streamed part of the next layer's trunk is there.
    trunk_at: f64,
    /// Seconds from a layer's last expert until the host has seen the next one's routing, lately, by layer.
    gaps: Vec<f64>,
    /// Seconds from when the host has seen the guess that begins a token until it has seen the first routing, lately.
    lead: f64,
    /// Seconds the CPU was at a layer's misses, lately.
    cpu_phase: f64,
    /// Experts prefetched that no layer has used yet.
    fresh: FxHashMap<ExpertId, ()>,
    counts: Counts,
    before: PrefetchStats,
    scratch: Scratch,
}

#[derive(Default)]
struct Scratch {
    used: Vec<ExpertId>,
    misses: Vec<Miss>,
    targets: Vec<Target>,
    guessed: Vec<u32>,
    guesses: Vec<ExpertId>,
    arrivals: Vec<Arrival>,
}

/// The slots, and the link that fills them.
struct Gpu {
    cache: Cache,
    record: u64,
    /// Seconds for a record, and of these for its down.
    copy: f64,
    copy_down: f64,
    free: f64,
    /// Copies under way, in order of arrival.
    coming: VecDeque<Copying>,
    /// Guesses of which only a part was copied.
    parts: Vec<Part>,
    busy: f64,
    /// Seconds of copies that were not completed, since the guess was wrong.
    spared: f64,
}

#[derive(Debug, Clone, Copy)]
struct Copying {
    id: ExpertId,
    at: Arrival,
}

/// When gate and up of a record are there, and when all of it is.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    gate_up: f64,
    whole: f64,
}

/// The first `share` of a record, copied at `end`.
#[derive(Debug, Clone, Copy)]
struct Part {
    id: ExpertId,
    share: f64,
    end: f64,
}

impl Gpu {
    /// Publishes what has arrived.
    fn land(&mut self, now: f64) {
        while let Some(copy) = self.coming.pop_front_if(|c| c.at.whole <= now) {
            // Only what reserved a slot is under way, and it lands once.
            let landed = self.cache.ready(copy.id);
            debug_assert!(landed.is_ok(), "{landed:?}");
        }
    }

    fn arrives(&self, id: ExpertId) -> Option<Arrival> {
        self.coming.iter().find(|c| c.id == id).map(|c| c.at)
    }

    /// When what was asked for of an expert is there; none if that is so already.
    fn late(&self, id: ExpertId) -> Option<f64> {
        let part = self.parts.iter().find(|p| p.id == id).map(|p| p.end);
        part.or_else(|| self.arrives(id).map(|at| at.whole))
    }

    /// Occupies the link for a share of a record, from `start` at the earliest; returns when that is copied.
    fn copy(&mut self, share: f64, start: f64) -> f64 {
        self.free = self.free.max(start) + share * self.copy;
        self.busy += share * self.copy;
        self.free
    }

    /// Occupies the link for what follows the first `share` of a record, from `start` at the earliest: what is left of gate and up,
    /// then of down. `before` is when the first part was there.
    fn copy_rest(&mut self, share: f64, before: f64, start: f64) -> Arrival {
        let whole = self.copy(1.0 - share, start);
        let left = (1.0 - share) * self.copy > self.copy_down;
        Arrival { gate_up: if left { whole - self.copy_down } else { before }, whole }
    }

    /// The routing is known: parts of what is used are completed, the others' slots are free again.
    fn complete(&mut self, used: &[ExpertId], now: f64) {
        for Part { id, share, end } in std::mem::take(&mut self.parts) {
            if used.contains(&id) {
                let at = self.copy_rest(share, end, now);
                self.coming.push_back(Copying { id, at });
            } else {
                self.spared += (1.0 - share) * self.copy;
                let failed = self.cache.failed(id);
                debug_assert!(failed.is_ok(), "{failed:?}");
            }
        }
    }
}

/// Host memory where it can't hold every record, and the disk that fills it.
struct Host {
    cache: Cache,
    read: f64,
    free: f64,
    coming: VecDeque<(f64, ExpertId)>,
    reads: u64,
}

impl Host {
    /// When the record is in host memory, if it is or is asked for now.
    fn fetch(&mut self, id: ExpertId, now: f64, used: &[ExpertId]) -> f64 {
        while let Some((_, id)) = self.coming.pop_front_if(|c| c.0 <= now) {
            let landed = self.cache.ready(id);
            debug_assert!(landed.is_ok(), "{landed:?}");
        }
        match self.cache.reserve(id, &mut |other| used.contains(&other)) {
            Reserved::Held(found) if found.ready => now,
            Reserved::Held(_) => self.coming.iter().find(|c| c.1 == id).map_or(now, |c| c.0),
            reserved => {
                self.free = self.free.max(now) + self.read;
                self.reads += 1;
                // What isn't kept is read into a buffer beside.
                if let Reserved::Slot { .. } = reserved {
                    self.coming.push_back((self.free, id));
                }
                self.free
            }
        }
    }

    fn has(&self, id: ExpertId) -> bool {
        self.cache.find(id).is_some_and(|f| f.ready)
    }
}

/// What the prefetcher sees.
struct Ahead<'a> {
    gpu: &'a mut Gpu,
    host: Option<&'a Host>,
    used: &'a [ExpertId],
    now: f64,
    fresh: &'a mut FxHashMap<ExpertId, ()>,
}

impl Destination for Ahead<'_> {
    fn absent(&self, id: ExpertId) -> bool {
        self.gpu.cache.find(id).is_none()
    }

    fn start(&mut self, id: ExpertId, right: f64, share: f64) -> bool {
        if self.host.is_some_and(|host| !host.has(id)) {
            return false;
        }
        let used = self.used;
        let cache = &self.gpu.cache;
        let just_used = used.first().map_or(0.0, |&u| cache.worth(u));
        let worth = worth_of_guess(cache.worth(id), just_used, right, share < 1.0);
        let reserved = self.gpu.cache.reserve_over(id, worth, &mut |other| used.contains(&other));
        let Reserved::Slot { .. } = reserved else { return false };
        if share < 1.0 {
            let end = self.gpu.copy(share, self.now);
            self.gpu.parts.push(Part { id, share, end });
        } else {
            let at = self.gpu.copy_rest(0.0, self.now, self.now);
            self.gpu.coming.push_back(Copying { id, at });
            self.fresh.insert(id, ());
        }
        true
    }
}

impl<'a> Run<'a> {
    pub(super) fn new(
        trace: &'a RoutingTrace,
        of: &'a Workload,
        on: &'a Machine,
        how: &'a Replay,
        slots: usize,
        streamed: u64,
    ) -> Run<'a> {
        let tier = |places: usize| Cache::new(places as u32, how.policy.build(places, trace));
        let gpu = Gpu {
            cache: tier(slots),
            record: of.record,
            copy: of.record as f64 / on.link,
            copy_down: of.down as f64 / on.link,
            free: 0.0,
            coming: VecDeque::new(),
            parts: Vec::new(),
            busy: 0.0,
            spared: 0.0,
        };
        let records = of.host_records(on);
        let host = (records < of.layers * of.experts && on.disk > 0.0).then(|| Host {
            cache: tier(records),
            read: of.record as f64 / on.disk,
            free: 0.0,
            coming: VecDeque::new(),
            reads: 0,
        });
        Run {
            trace,
            of,
            on,
            how,
            streamed,
            gpu,
            host,
            rates: Rates::new(on.link, on.cpu, on.dram, on.gpu(), on.launch),
            prefetcher: Prefetcher::new(),
            guesses: Guesses::new(of.top_k, how.seed),
            now: 0.0,
            experts_done: 0.0,
            cpu_free: 0.0,
            trunk_at: 0.0,
            gaps: vec![0.0; of.layers],
            lead: 0.0,
            cpu_phase: 0.0,
            fresh: FxHashMap::default(),
            counts: Counts::default(),
            before: PrefetchStats::default(),
            scratch: Scratch::default(),
        }
    }

    /// What came before filled the tiers; what comes now is reported.
    pub(super) fn begin_counting(&mut self) {
        self.counts = Counts::default();
        self.gpu.busy = 0.0;
        self.gpu.spared = 0.0;
        if let Some(host) = &mut self.host {
            host.reads = 0;
        }
        self.before = self.prefetcher.stats();
    }

    pub(super) fn report(self) -> Report {
        let reads = self.host.as_ref().map(|h| h.reads);
        let (busy, spared) = (self.gpu.busy, self.gpu.spared);
        let prefetched = self.prefetcher.stats().since(self.before);
        let slots = self.gpu.cache.slots() as usize;
        Report::new(self.counts, self.of, self.on, self.how, slots, (busy, spared, reads), prefetched)
    }

    /// The GPU reads `bytes` with one group of kernels from `start` on.
    fn compute(&mut self, start: f64, bytes: f64) -> f64 {
        let seconds = self.on.launch + bytes / self.on.gpu();
        self.counts.gpu += seconds;
        start + seconds
    }

    pub(super) fn token(&mut self, token: usize) {
        let begin = self.now;
        let mut last = self.of.layers - 1;
        let guessed = self.guess_first(token);
        self.now = self.compute(self.now, self.of.dense);
        for layer in 0..self.of.layers {
            let before = self.experts_done;
            let seen = self.layer(token, layer);
            follow(&mut self.gaps[last], seen - before);
            if let (0, Some(guessed)) = (layer, guessed) {
                follow(&mut self.lead, seen - guessed);
            }
            last = layer;
        }
        self.now = self.compute(self.now, self.of.head) + self.on.sync;
        self.counts.steps.push(self.now - begin);
    }

    /// Where layers without experts come first: the first layer with experts is guessed from the token's embedding, before
    /// anything else is computed. Returns when the host had seen the guess.
    fn guess_first(&mut self, token: usize) -> Option<f64> {
        if !self.how.prefetch || self.of.first == 0 {
            return None;
        }
        if !self.prefetcher.wants_guesses() {
            return None;
        }
        self.now = self.compute(self.now, self.of.router);
        let seen = self.now + self.on.sync;
        let mut scratch = std::mem::take(&mut self.scratch);
        self.guess(&mut scratch, token, 0);
        self.ahead(&mut scratch, seen, self.lead);
        self.scratch = scratch;
        Some(seen)
    }

    /// One layer. Returns when the host had seen its routing.
    fn layer(&mut self, token: usize, layer: usize) -> f64 {
        let (of, on) = (self.of, self.on);
        let mut scratch = std::mem::take(&mut self.scratch);
        let routed = self.compute(self.now.max(self.trunk_at), of.attention);
        let seen = routed + on.sync;
        self.gpu.land(routed);
        scratch.used.clear();
        let number = self.trace.layers()[layer];
        let ids =
            self.trace.ids(token, layer).iter().map(|&e| ExpertId { layer: number, expert: u32::from(e) });
        scratch.used.extend(ids);
        let hits = self.look_up(&scratch.used, &mut scratch.misses, seen);
        let residents = self.compute(routed, of.shared + hits as f64 * of.record as f64);
        self.stream_trunk(seen);

        let busy = Busy {
            link_free_in: (self.gpu.free - seen).max(0.0),
            cpu_free_in: (self.cpu_free - seen).max(0.0),
            gpu_free_in: residents - seen,
        };
        let estimate = split(&scratch.misses, &self.rates, busy, &mut scratch.targets);
        self.on_link(&mut scratch, number, seen);
        if self.how.prefetch {
            // After the last layer there is no hidden state of the next token to ask.
            if self.prefetcher.wants_guesses() && layer + 1 < of.layers {
                self.guess(&mut scratch, token, layer + 1);
            }
            self.ahead(&mut scratch, seen, estimate.max(0.0) + self.gaps[layer]);
        }
        let cpu = self.on_cpu(&scratch, number, seen);
        let mut gpu = residents;
        scratch.arrivals.sort_by(|a, b| a.whole.total_cmp(&b.whole));
        for at in &scratch.arrivals {
            let hidden = self.compute(gpu.max(at.gate_up), (of.record - of.down) as f64);
            gpu = self.compute(hidden.max(at.whole), of.down as f64);
            self.rates.observe_gpu(of.record, of.record as f64 / on.gpu());
        }
        let done = gpu.max(cpu.map_or(0.0, |cpu| cpu + on.launch));
        self.experts_done = done;
        self.now = self.compute(done, 0.0);
        self.scratch = scratch;
        seen
    }

    /// Sorts a layer's experts into hits, which it counts, and misses.
    fn look_up(&mut self, used: &[ExpertId], misses: &mut Vec<Miss>, seen: f64) -> usize {
        misses.clear();
        let mut hits = 0;
        let gpu = &self.gpu;
        let absent = used.iter().filter(|&&id| gpu.cache.find(id).is_none()).count();
        let late = &mut |id| gpu.late(id).map_or(0.0, |at| (at - seen).max(0.0));
        self.prefetcher.settle(used, absent, late);
        self.gpu.complete(used, seen);
        for &id in used {
            self.gpu.cache.touch(id);
            if let Some(host) = &mut self.host {
                host.cache.touch(id);
            }
        }
        for &id in used {
            let found = self.gpu.cache.find(id);
            let fresh = self.fresh.remove(&id).is_some();
            if found.is_some_and(|f| f.ready) {
                hits += 1;
                self.counts.brought_ahead += u64::from(fresh);
                continue;
            }
            let arriving_in = self.gpu.arrives(id).map(|at| (at.whole - seen).max(0.0));
            let host_in = match &mut self.host {
                Some(host) if arriving_in.is_none() => host.fetch(id, seen, used) - seen,
                _ => 0.0,
            };
            let (bytes, down) = (self.of.record, self.of.down);
            let miss = Miss { expert: id.expert, bytes, down, rows: 1, arriving_in, host_in };
            misses.push(miss);
        }
        self.counts.uses += used.len() as u64;
        self.counts.hits += hits as u64;
        self.counts.under_way += (misses.len() - absent) as u64;
        hits
    }

    /// Copies what the link was given.
    fn on_link(&mut self, scratch: &mut Scratch, layer: u32, seen: f64) {
        scratch.arrivals.clear();
        let used = &scratch.used;
        for miss in given(&scratch.misses, &scratch.targets, Target::Link) {
            let id = ExpertId { layer, expert: miss.expert };
            if let Some(at) = self.gpu.arrives(id) {
                scratch.arrivals.push(at);
                continue;
            }
            let reserved = self.gpu.cache.reserve(id, &mut |other| used.contains(&other));
            let start = seen + miss.host_in;
            let at = self.gpu.copy_rest(0.0, start, start);
            self.rates.observe_copy(self.gpu.record, self.gpu.copy);
            // What isn't kept passes through a buffer beside the slots.
            if let Reserved::Slot { .. } = reserved {
                self.gpu.coming.push_back(Copying { id, at });
            }
            scratch.arrivals.push(at);
        }
    }

    /// The next layer's part of a trunk that does not fit.
    fn stream_trunk(&mut self, seen: f64) {
        if self.streamed > 0 {
            let seconds = self.streamed as f64 / self.of.layers as f64 / self.on.link;
            self.gpu.free = self.gpu.free.max(seen) + seconds;
            self.gpu.busy += seconds;
            self.trunk_at = self.gpu.free;
        }
    }

    /// Guesses the experts of a layer.
    fn guess(&self, scratch: &mut Scratch, token: usize, layer: usize) {
        self.guesses.make(self.trace, token, layer, &mut scratch.guessed);
        let number = self.trace.layers()[layer];
        scratch.guesses.extend(scratch.guessed.iter().map(|&expert| ExpertId { layer: number, expert }));
    }

    /// Lets the prefetcher use link time that is idle for `needed_in` seconds from `seen` on.
    fn ahead(&mut self, scratch: &mut Scratch, seen: f64, needed_in: f64) {
        let window = Window {
            link_free_in: (self.gpu.free - seen).max(0.0),
            needed_in,
            copy: self.rates.copy_seconds(self.of.record),
            link_wanted: self.streamed > 0
                || self.rates.cpu_seconds(self.of.record, 1) >= self.rates.copy_seconds(self.of.record),
            cpu: (self.on.cpu > 0.0).then(|| self.rates.cpu_seconds(self.of.record, 1)),
            cpu_busy: self.cpu_phase,
        };
        let host = self.host.as_ref();
        let mut to =
            Ahead { gpu: &mut self.gpu, host, used: &scratch.used, now: seen, fresh: &mut self.fresh };
        self.prefetcher.issue(&scratch.guesses, window, &mut to);
        scratch.guesses.clear();
    }

    /// Computes what the CPU was given; returns when it is done.
    fn on_cpu(&mut self, scratch: &Scratch, layer: u32, seen: f64) -> Option<f64> {
        let bytes = self.of.record as f64;
        let beside_link = self.on.cpu.min((self.on.dram - self.on.link).max(0.0));
        let mut done = None;
        let mut spent = 0.0;
        for miss in given(&scratch.misses, &scratch.targets, Target::Cpu) {
            let start = self.cpu_free.max(seen + miss.host_in);
            let beside = (self.gpu.free - start).max(0.0);
            let seconds = if beside * beside_link >= bytes {
                bytes / beside_link
            } else {
                beside + (bytes - beside * beside_link) / self.on.cpu
            };
            if beside == 0.0 || beside >= seconds {
                self.rates.observe_cpu(self.of.record, 1, seconds, beside > 0.0);
            }
            self.cpu_free = start + seconds;
            spent += seconds;
            done = Some(self.cpu_free);
            self.counts.on_cpu += 1;
            self.prefetcher.missed(ExpertId { layer, expert: miss.expert });
        }
        self.counts.cpu += spent;
        follow(&mut self.cpu_phase, spent);
        done
    }
}

/// The misses that one side was given, in the order in which they come into host memory.
fn given<'a>(misses: &'a [Miss], targets: &[Target], to: Target) -> Vec<&'a Miss> {
    let pairs = misses.iter().zip(targets);
    let mut given: Vec<&Miss> = pairs.filter(|(_, t)| **t == to).map(|(m, _)| m).collect();
    given.sort_by(|a, b| a.host_in.total_cmp(&b.host_in));
    given
}
