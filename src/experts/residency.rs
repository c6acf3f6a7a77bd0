//! The experts of a layer, wherever they are: residents on the device, misses over the link or on the CPU.
//!
//! One step is described in `docs/notes/experts.md`. The lock is held while a layer's work is issued, not while it runs, so sessions
//! take turns layer by layer. Everything that reads a slot is issued on the device's one computing stream; a slot is
//! given away only when the host has seen that its last reader is through.

mod ahead;
mod copying;
mod in_host;
mod load;
mod meter;
mod on_device;
mod over_link;
mod resize;

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ExpertId;
use super::fault::{Faults, Point};
use super::host::HostStats;
use super::schedule::{Busy, Miss, Target, split};
use super::stats::ExpertStats;
use crate::device::cpu::Workers;
use crate::device::{Device, Pass, Routing, Shape};
use crate::error::{Result, Tier};
use crate::telemetry::{Row, Tracer, What};

use in_host::InHost;
pub use load::{PREFILL_CHUNK, Placement};
use on_device::OnDevice;
pub use resize::{Lent, SlotUse};

/// All routed experts of a model, and the device that computes them.
pub struct Residency<D: Device> {
    workers: Arc<Workers>,
    /// Whether the CPU takes a share of what is not on the device.
    cpu_share: bool,
    faults: Faults,
    trace: Tracer,
    state: Mutex<State<D>>,
    /// Why host memory is not page-locked, if it should be.
    unpinned: Option<String>,
    /// Page locks; released before the memory they lock.
    #[allow(dead_code, reason = "held, not used")]
    pins: Vec<Box<dyn Any + Send + Sync>>,
    host: InHost,
    /// Held by the session whose turn it is, where sessions must not meet in host memory.
    turn: Mutex<()>,
    /// What the store had done when all was loaded.
    loaded: HostStats,
}

struct State<D: Device> {
    /// What the device holds; none for a device that computes experts where their records lie.
    on_device: Option<OnDevice<D>>,
    at_work: AtWork,
    stats: ExpertStats,
}

/// What host memory has of the layer at work, reused from layer to layer.
#[derive(Default)]
struct AtWork {
    routing: Routing,
    /// The tokens, [tokens, hidden].
    x: Vec<f32>,
    /// What the CPU made of them, [pairs, hidden].
    results: Vec<f32>,
}

/// The experts of one layer for a batch of tokens.
pub struct LayerCall<'a, D: Device> {
    /// Layer.
    pub layer: usize,
    /// What the experts are given, [tokens, hidden].
    pub x: &'a D::Tensor,
    /// Who goes where, just issued.
    pub routing: &'a mut D::Routing,
    /// [pairs, hidden], to be filled.
    pub pairs: &'a mut D::Tensor,
    /// The session's row in a trace.
    pub session: Row,
}

/// Tokens up to which each expert is computed as soon as it has arrived. With more tokens several are taken together:
/// every pass prepares the tokens anew.
pub const ONE_BY_ONE: usize = 16;

/// Experts of a pass beyond that.
const TOGETHER: usize = 8;

/// Bytes a second at which experts are believed to come from files: one NVMe drive's. It only shifts who takes a miss.
pub(crate) const FILE_RATE: f64 = 5e9;

impl<D: Device> Residency<D> {
    /// Whether what was computed since the last call found every expert where the tables say. Waits for it.
    ///
    /// # Errors
    /// [`crate::Error::Expert`] naming layer, expert and slot.
    pub fn check(&self, device: &D) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(on) = &mut state.on_device else { return Ok(()) };
        on.settle(device, 0)?;
        let stale = device.stale(&on.memory)?;
        on.settled();
        match stale {
            None => Ok(()),
            Some((layer, expert, slot)) => Err(ExpertId::new(layer, expert).error(
                Tier::Device,
                Some(slot),
                "the slot held something else when the expert was computed; the result was discarded",
            )),
        }
    }

    /// An error if the device failed earlier.
    ///
    /// # Errors
    /// [`crate::Error::DeviceLost`].
    pub fn usable(&self) -> Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.on_device.as_ref().map_or(Ok(()), OnDevice::check)
    }

    /// A forward pass on a device that computes in host memory takes its turn where that is short: two passes that each hold
    /// part of the records would wait for each other's. To be asked for outside the device's own threads.
    pub fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = state.on_device.is_none() && !self.host.holds_all();
        drop(state);
        alone.then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a forward pass came to: if its device failed, that cannot be used any more, and the error says so.
    ///
    /// # Errors
    /// That of the pass, or [`crate::Error::DeviceLost`] instead.
    pub fn outcome(&self, done: Result<()>) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut state.on_device {
            Some(on) => on.outcome(done, None),
            None => done,
        }
    }

    /// Waits for all work and looks at every slot: that tables name it, that nothing leases it and, with checksums, that it holds
    /// what it should. Returns the number of residents.
    ///
    /// # Errors
    /// [`crate::Error::Expert`] for the first that is not as it should be; what the device reports.
    #[doc(hidden)]
    pub fn audit(&self, device: &D) -> Result<usize> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(on) = &mut state.on_device else { return Ok(0) };
        on.audit(device)
    }

    /// Makes a computed row NaN if that is to go wrong.
    pub(crate) fn taint(&self, device: &D, pairs: &mut D::Tensor) -> Result<()> {
        if !self.faults.strikes(Point::NonFinite) {
            return Ok(());
        }
        device.write_rows(pairs, pairs.rows() / 2, &vec![f32::NAN; pairs.cols()])
    }

    /// Where experts were found so far.
    pub fn stats(&self) -> ExpertStats {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let host = self.host.stats();
        let mut stats = state.stats;
        stats.file_bytes = host.bytes - self.loaded.bytes;
        stats.file_seconds = host.seconds - self.loaded.seconds;
        if let Some(on) = &state.on_device {
            stats.link_seconds = on.copies.seconds;
            stats.waited_seconds += on.waited;
        }
        stats
    }

    /// Whether every expert is where it is computed, so that nothing has to be brought.
    pub fn all_at_hand(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.on_device.as_ref().map_or(self.host.holds_all(), OnDevice::holds_all)
    }

    /// Bytes a second at which the device is believed to read its memory; `None` if experts are computed in host memory.
    pub fn device_rate(&self) -> Option<f64> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.on_device.as_ref().map(|on| on.rates.gpu)
    }

    /// What it records into.
    pub fn trace(&self) -> &Tracer {
        &self.trace
    }

    /// What host memory and files did so far.
    pub fn store_stats(&self) -> HostStats {
        self.host.stats()
    }

    /// Where the experts are kept, in words.
    pub fn describe(&self) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = match &state.on_device {
            None => return self.host.describe(),
            Some(on) if on.holds_all() => return "all experts in its memory".to_owned(),
            Some(on) => format!(
                "{} of {} experts in its memory ({}); {}",
                on.cache.slots(),
                on.all(),
                on.cache.policy_name(),
                self.host.describe()
            ),
        };
        if let Some(why) = &self.unpinned {
            text += &format!("; copies through a ring: {why}");
        }
        text
    }

    /// pairs\[p\] = mlp(x\[token of sorted pair p\]) for all pairs, not weighted. `meanwhile` issues work that does not
    /// need them; it runs while experts are on their way. It may return a guess of the next layer's routing, posted, where
    /// [`Residency::wants_guess`] asks for one.
    ///
    /// # Errors
    /// [`crate::Error::Expert`] naming layer, expert, tier and slot; what the device reports. After an error the residency is
    /// consistent and further calls may succeed, unless the device itself failed: then they say so.
    pub fn compute<'g>(
        &self,
        device: &D,
        call: LayerCall<'_, D>,
        meanwhile: impl FnOnce() -> Result<Option<&'g D::Routing>>,
    ) -> Result<()>
    where
        D::Routing: 'g,
    {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { on_device, at_work, stats } = &mut *state;
        let Some(on) = on_device else {
            // Not under the lock: who asks for the counts does not wait for the computing.
            let mut at_work = std::mem::take(at_work);
            drop(state);
            meanwhile()?;
            let mut stats = ExpertStats::default();
            let done = self.where_they_lie(device, call, &mut at_work, &mut stats);
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.stats.add(&stats);
            state.at_work = at_work;
            return done;
        };
        on.check()?;
        let layer = call.layer;
        on.retire(device)?;
        on.land(device)?;
        on.publish(device, call.layer)?;
        let done = if on.holds_all() {
            let LayerCall { layer, x, routing, pairs, .. } = call;
            let residents = device.experts(x, &on.memory, layer, Pass::Residents, routing, pairs);
            residents.and_then(|()| meanwhile()).map(|_| ())
        } else {
            self.on_demand(device, on, call, at_work, stats, meanwhile)
        };
        // Whatever went wrong, what was issued reads its slots.
        let done = done.and(on.close(device));
        on.outcome(done, Some(layer))
    }

    /// All experts of a layer on a device that computes them in host memory.
    fn where_they_lie(
        &self,
        device: &D,
        call: LayerCall<'_, D>,
        at_work: &mut AtWork,
        stats: &mut ExpertStats,
    ) -> Result<()> {
        let begun = self.trace.now();
        device.read_routing(call.routing, &mut at_work.routing)?;
        device.read(call.x, &mut at_work.x)?;
        device.blank_pairs(call.routing, call.pairs)?;
        let experts: Vec<usize> = routed(&at_work.routing).collect();
        let in_file = |&&e: &&usize| self.host.tier(ExpertId::new(call.layer, e)) == Tier::File;
        stats.from_file += experts.iter().filter(in_file).count() as u64;
        let done = self.on_host(device, call.layer, call.pairs, at_work, &experts, stats);
        self.trace.end(call.session, What::Experts(call.layer, experts.len()), begun);
        done
    }

    fn on_demand<'g>(
        &self,
        device: &D,
        on: &mut OnDevice<D>,
        mut call: LayerCall<'_, D>,
        at_work: &mut AtWork,
        stats: &mut ExpertStats,
        meanwhile: impl FnOnce() -> Result<Option<&'g D::Routing>>,
    ) -> Result<()>
    where
        D::Routing: 'g,
    {
        let layer = call.layer;
        let begun = self.trace.now();
        device.post_routing(call.routing)?;
        let rows = if self.cpu_share { Some(device.post_rows(call.x)?) } else { None };
        device.blank_pairs(call.routing, call.pairs)?;
        if on.tables[layer].places.iter().any(Option::is_some) {
            device.experts(call.x, &on.memory, layer, Pass::Residents, call.routing, call.pairs)?;
        }
        let guess = meanwhile()?;
        on.issued_residents(device, layer)?;
        let mut at = self.trace.end(call.session, What::Layer(layer, "issue"), begun);
        on.settle(device, 1)?;
        at = self.trace.end(call.session, What::Layer(layer, "wait for copies"), at);

        device.read_routing(call.routing, &mut at_work.routing)?;
        let routing = &at_work.routing;
        on.settled();
        at = self.trace.end(call.session, What::Layer(layer, "wait for routing"), at);
        let (bytes, down) =
            on.store.layout(layer).map_or((0, 0), |l| (l.size() as u64, (l.size() - l.down_start()) as u64));
        let from_file = bytes as f64 / FILE_RATE;
        let store = on.store.clone();
        let host_in = |id| if store.tier(id) == Tier::Host { 0.0 } else { from_file };
        let used: Vec<ExpertId> = routed(routing).map(|expert| ExpertId::new(layer, expert)).collect();
        on.routing_known(device, &self.faults, stats, layer, &used);
        let misses = on.hits_and_misses(layer, routing, (bytes, down), host_in, stats)?;
        let (link, mut cpu) = self.divide(on, &misses);
        let left = self.over_link(device, on, &mut call, &link, routing.tokens(), stats)?;
        on.issued_arrived(device, layer, link.len() - left.len())?;
        on.look_at_copies(device)?;
        at = self.trace.end(call.session, What::Layer(layer, "issue misses"), at);
        cpu.extend(left);
        if !cpu.is_empty() {
            self.cpu_share_of(device, on, &mut call, at_work, rows, &cpu, stats)?;
            self.trace.end(call.session, What::Layer(layer, "CPU experts"), at);
        }
        let guess = match guess {
            Some(guess) => {
                device.read_routing(guess, &mut at_work.routing)?;
                Some(&at_work.routing)
            }
            None => None,
        };
        let layer = (layer, bytes, self.cpu_share);
        on.look_ahead(device, &self.faults, stats, guess, used, layer);
        Ok(())
    }

    /// The misses that the CPU takes, and what that says of its speed.
    #[allow(
        clippy::too_many_arguments,
        reason = "one step, its state taken apart so that parts can be borrowed"
    )]
    fn cpu_share_of(
        &self,
        device: &D,
        on: &mut OnDevice<D>,
        call: &mut LayerCall<'_, D>,
        at_work: &mut AtWork,
        rows: Option<D::Rows>,
        experts: &[usize],
        stats: &mut ExpertStats,
    ) -> Result<()> {
        match rows {
            Some(rows) => device.take_rows(rows, &mut at_work.x)?,
            None => device.read(call.x, &mut at_work.x)?,
        }
        if !on.store.holds_all() {
            on.limit_copies(device, 0)?;
        }
        let (computed, bytes) = (stats.cpu_seconds, stats.cpu_bytes);
        let link_busy = on.ahead.link_free_in() > 0.0;
        self.on_host(device, call.layer, call.pairs, at_work, experts, stats)?;
        let seconds = stats.cpu_seconds - computed;
        on.look_at_copies(device)?;
        if on.residents_done(device)? {
            stats.waited_seconds += seconds;
        }
        on.ahead.cpu_seconds = seconds;
        let rows = experts.iter().map(|&e| at_work.routing.pairs_of(e).len());
        let rows = rows.sum::<usize>().div_ceil(experts.len());
        let each = experts.len() as f64;
        let bytes = ((stats.cpu_bytes - bytes) as f64 / each) as u64;
        on.rates.observe_cpu(bytes, rows as u32, seconds / each, link_busy);
        for &expert in experts {
            on.ahead.prefetcher.missed(ExpertId::new(call.layer, expert));
        }
        Ok(())
    }

    /// Whether a guess of the next layer's routing is wanted, for so many tokens: it costs the device a little.
    pub fn wants_guess(&self, tokens: usize) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let on = state.on_device.as_mut().filter(|on| !on.holds_all() && tokens <= ONE_BY_ONE);
        on.is_some_and(|on| on.store.holds_all() && on.ahead.prefetcher.wants_guesses())
    }

    /// A token begins, and `layer`, the first with experts, was guessed from its embedding; the guess was posted where
    /// [`Residency::wants_guess`] asks for one. Begins copies as far as the link is idle until that layer's routing is known.
    /// Waits for the guess: what the device computes meanwhile is to be issued before.
    ///
    /// # Errors
    /// What the device reports.
    pub fn guessed_first(&self, device: &D, layer: usize, guess: &D::Routing) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { on_device, at_work: AtWork { routing, .. }, stats } = &mut *state;
        let Some(on) = on_device else { return Ok(()) };
        on.check()?;
        let read = on.retire(device).and_then(|()| device.read_routing(guess, routing));
        if read.is_ok() {
            let bytes = on.store.layout(layer).map_or(0, |l| l.size() as u64);
            let layer = (layer, bytes, self.cpu_share);
            on.look_ahead_of_first(device, &self.faults, stats, routing, layer);
        }
        on.outcome(read, Some(layer))
    }

    /// Divides misses between the link and the CPU, in the order in which each takes them: what the link is at already arrives
    /// before what it is asked for now.
    fn divide(&self, on: &OnDevice<D>, misses: &[Miss]) -> (Vec<usize>, Vec<usize>) {
        let mut targets = Vec::new();
        if self.cpu_share {
            let busy = Busy { link_free_in: on.ahead.link_free_in(), ..Busy::default() };
            split(misses, &on.rates, busy, &mut targets);
        } else {
            targets.resize(misses.len(), Target::Link);
        }
        let to = |side| {
            let pairs = misses.iter().zip(&targets);
            pairs.filter(|&(_, &target)| target == side).map(|(miss, _)| miss).collect::<Vec<_>>()
        };
        let mut link = to(Target::Link);
        let due = |miss: &Miss| miss.arriving_in.unwrap_or(f64::INFINITY);
        link.sort_by(|a, b| due(a).total_cmp(&due(b)));
        let ids = |misses: Vec<&Miss>| misses.iter().map(|miss| miss.expert as usize).collect();
        (ids(link), ids(to(Target::Cpu)))
    }
}

/// The experts of a layer that have pairs, ascending.
fn routed(routing: &Routing) -> impl Iterator<Item = usize> {
    routing.offsets().windows(2).enumerate().filter(|(_, w)| w[0] < w[1]).map(|(expert, _)| expert)
}
