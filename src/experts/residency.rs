//! The experts of a layer, wherever they are: residents on the device, misses over the link or on the CPU.
//!
//! One step is described in `docs/notes/experts.md`. The lock is held while a layer's work is issued, not while it runs, so sessions
//! take turns layer by layer. Everything that reads a slot is issued on the device's one computing stream; a slot is
//! given away only when the host has seen that its last reader is through.

mod on_device;

use std::sync::{Arc, Mutex, PoisonError};

use super::ExpertId;
use super::cache::{Cache, Reserved};
use super::fault::{Faults, Point};
use super::host::HostStore;
use super::policy::Policy;
use super::schedule::{Busy, Miss, Rates, Target, split};
use super::stats::ExpertStats;
use crate::checkpoint::RecordLayout;
use crate::device::cpu::{HostJob, Workers};
use crate::device::{Device, Pass, Routing, Shape, SlotAt};
use crate::error::{Error, Result, Tier};

use on_device::OnDevice;

/// All routed experts of a model, and the device that computes them.
pub struct Residency<D: Device> {
    store: Arc<HostStore>,
    workers: Arc<Workers>,
    /// Whether the CPU takes a share of what is not on the device.
    cpu_share: bool,
    faults: Faults,
    state: Mutex<State<D>>,
}

/// How experts are kept on a device.
pub struct ResidencyOptions {
    /// Slots of the device; as many as the model has experts, or more, keep them all there.
    pub slots: usize,
    /// What to keep where not all fit.
    pub policy: Box<dyn Policy>,
    /// Whether the CPU computes a share of the experts that are not on the device.
    pub cpu_share: bool,
    /// What the machine is believed to do until it has been seen.
    pub rates: Rates,
    /// Faults on purpose.
    #[doc(hidden)]
    pub faults: Faults,
}

struct State<D: Device> {
    /// What the device holds; none for a device that computes experts where their records lie.
    on_device: Option<OnDevice<D>>,
    /// Reused from layer to layer: the routing and the tokens of the layer at work, in host memory.
    routing: Routing,
    x: Vec<f32>,
    stats: ExpertStats,
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
}

/// Tokens up to which each expert is computed as soon as it has arrived. With more tokens several are taken together:
/// every pass prepares the tokens anew.
const ONE_BY_ONE: usize = 16;

/// Experts of a pass beyond that.
const TOGETHER: usize = 8;

impl<D: Device> Residency<D> {
    /// Makes room on the device; where all experts fit, brings them all.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for the slots; what reading and copying report.
    pub fn new(
        device: &D,
        store: Arc<HostStore>,
        workers: Arc<Workers>,
        layouts: &[Option<RecordLayout>],
        experts: usize,
        options: ResidencyOptions,
    ) -> Result<Residency<D>> {
        let ResidencyOptions { slots, policy, cpu_share, rates, faults } = options;
        let all = layouts.iter().flatten().count() * experts;
        let slots = slots.min(all);
        let memory = device.slots(layouts, experts, slots)?;
        let on_device = memory.map(|memory| {
            let cache = Cache::new(slots as u32, policy);
            OnDevice::new(memory, cache, layouts, experts, rates)
        });
        let state = State { on_device, routing: Routing::default(), x: Vec::new(), stats: ExpertStats::default() };
        let mut residency = Residency { store, workers, cpu_share, faults, state: Mutex::new(state) };
        if slots == all {
            residency.bring_all(device, layouts, experts)?;
        }
        Ok(residency)
    }

    /// Fills every slot, in order.
    fn bring_all(&mut self, device: &D, layouts: &[Option<RecordLayout>], experts: usize) -> Result<()> {
        let layers = layouts.iter().enumerate().filter(|(_, layout)| layout.is_some()).map(|(layer, _)| layer);
        let ids = layers.flat_map(|layer| (0..experts).map(move |e| ExpertId::new(layer, e)));
        for id in ids {
            let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
            let Some(on) = &mut state.on_device else { return Ok(()) };
            self.store.request(ExpertId::new(id.layer as usize, id.expert as usize));
            let Reserved::Slot { at, .. } = on.reserve(id, false) else { continue };
            let at = SlotAt { slot: at.slot, generation: at.generation };
            copy(device, &self.store, &self.faults, on, id, at)?;
            on.close(device)?;
        }
        Ok(())
    }

    /// pairs\[p\] = mlp(x\[token of sorted pair p\]) for all pairs, not weighted. `meanwhile` issues work that does not
    /// need them; it runs while experts are on their way.
    ///
    /// # Errors
    /// [`Error::Expert`] naming layer, expert, tier and slot; what the device reports. After an error the residency is
    /// consistent and further calls may succeed, unless the device itself failed: then they say so.
    pub fn compute(
        &self,
        device: &D,
        call: LayerCall<'_, D>,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { on_device, routing, x, stats } = &mut *state;
        let Some(on) = on_device else {
            device.read_routing(call.routing, routing)?;
            device.read(call.x, x)?;
            device.blank_pairs(call.routing, call.pairs)?;
            meanwhile()?;
            let experts: Vec<usize> = routed(routing).collect();
            return self.on_host(device, call.layer, call.pairs, routing, x, &experts, stats);
        };
        on.check()?;
        on.retire(device)?;
        on.publish(device, call.layer)?;
        let done = if on.holds_all() {
            let LayerCall { layer, x, routing, pairs } = call;
            let residents = device.experts(x, &on.memory, layer, Pass::Residents, routing, pairs);
            residents.and_then(|()| meanwhile())
        } else {
            self.on_demand(device, on, call, routing, x, stats, meanwhile)
        };
        // Whatever went wrong, what was issued reads its slots.
        done.and(on.close(device))
    }

    #[allow(clippy::too_many_arguments, reason = "one step, its state taken apart so that parts can be borrowed")]
    fn on_demand(
        &self,
        device: &D,
        on: &mut OnDevice<D>,
        mut call: LayerCall<'_, D>,
        routing: &mut Routing,
        x: &mut Vec<f32>,
        stats: &mut ExpertStats,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let layer = call.layer;
        device.post_routing(call.routing)?;
        let rows = if self.cpu_share { Some(device.post_rows(call.x)?) } else { None };
        device.blank_pairs(call.routing, call.pairs)?;
        if on.tables[layer].places.iter().any(Option::is_some) {
            device.experts(call.x, &on.memory, layer, Pass::Residents, call.routing, call.pairs)?;
        }
        meanwhile()?;

        device.read_routing(call.routing, routing)?;
        let misses = on.hits_and_misses(layer, routing, self.store.record_bytes(layer), stats)?;
        let (link, mut cpu) = self.divide(on, &misses);
        cpu.extend(self.over_link(device, on, &mut call, &link, routing.tokens(), stats)?);
        if cpu.is_empty() {
            return Ok(());
        }
        match rows {
            Some(rows) => device.take_rows(rows, x)?,
            None => device.read(call.x, x)?,
        }
        self.on_host(device, layer, call.pairs, routing, x, &cpu, stats)
    }

    /// Divides misses between the link and the CPU, in the order in which each takes them.
    fn divide(&self, on: &OnDevice<D>, misses: &[Miss]) -> (Vec<usize>, Vec<usize>) {
        let mut targets = Vec::new();
        if self.cpu_share {
            split(misses, &on.rates, Busy::default(), &mut targets);
        } else {
            targets.resize(misses.len(), Target::Link);
        }
        let (mut link, mut cpu) = (Vec::new(), Vec::new());
        for (miss, target) in misses.iter().zip(targets) {
            match target {
                Target::Link => link.push(miss.expert as usize),
                Target::Cpu => cpu.push(miss.expert as usize),
            }
        }
        (link, cpu)
    }

    /// Copies experts into slots and has the device compute each when it is there. Returns those there was no slot for.
    fn over_link(
        &self,
        device: &D,
        on: &mut OnDevice<D>,
        call: &mut LayerCall<'_, D>,
        experts: &[usize],
        tokens: usize,
        stats: &mut ExpertStats,
    ) -> Result<Vec<usize>> {
        let together = if tokens <= ONE_BY_ONE { 1 } else { TOGETHER };
        let mut arrived: Vec<(u32, SlotAt)> = Vec::new();
        let mut left = Vec::new();
        for &expert in experts {
            let id = ExpertId::new(call.layer, expert);
            let reserved = loop {
                match on.reserve(id, self.cpu_share) {
                    Reserved::Busy => {
                        // Everything is leased: by what runs, or by this very layer. Both end.
                        on.pass(device, call, &mut arrived)?;
                        if !on.wait_for_leases(device)? {
                            break None;
                        }
                    }
                    Reserved::Slot { at, evicted } => break Some((at, evicted)),
                    Reserved::Held(_) | Reserved::Bypass => break None,
                }
            };
            let Some((at, evicted)) = reserved else {
                left.push(expert);
                continue;
            };
            if let Some(evicted) = evicted {
                on.gone(evicted);
                stats.evicted += 1;
            }
            let at = SlotAt { slot: at.slot, generation: at.generation };
            stats.link_bytes += copy(device, &self.store, &self.faults, on, id, at)?;
            stats.over_link += 1;
            arrived.push((expert as u32, at));
            if arrived.len() == together {
                on.pass(device, call, &mut arrived)?;
            }
        }
        on.pass(device, call, &mut arrived)?;
        Ok(left)
    }

    /// Computes experts on the CPU and puts their rows among the pairs.
    fn on_host(
        &self,
        device: &D,
        layer: usize,
        pairs: &mut D::Tensor,
        routing: &Routing,
        x: &[f32],
        experts: &[usize],
        stats: &mut ExpertStats,
    ) -> Result<()> {
        let hidden = pairs.cols();
        let layout = self.store.layout(layer);
        // As many as host memory holds at a time.
        for experts in experts.chunks(self.store.at_once()) {
            let ids = || experts.iter().map(|&e| ExpertId::new(layer, e));
            ids().for_each(|id| self.store.request(id));
            let records = ids().map(|id| self.store.get(id)).collect::<Result<Vec<_>>>()?;
            let rows: usize = experts.iter().map(|&e| routing.pairs_of(e).len()).sum();
            let mut results = vec![0.0; rows * hidden];
            let mut rest = results.as_mut_slice();
            let mut jobs = Vec::with_capacity(experts.len());
            for (&expert, record) in experts.iter().zip(&records) {
                let of_expert = routing.pairs_of(expert);
                let (out, later) = rest.split_at_mut(of_expert.len() * hidden);
                rest = later;
                let tokens = of_expert.map(|pair| routing.pair(pair).0 as u32).collect();
                jobs.push(HostJob { mlp: layout.views(record.as_ref()), tokens, out });
            }
            self.workers.host_experts(x, &mut jobs);
            drop(jobs);
            let mut rest = results.as_slice();
            for &expert in experts {
                let of_expert = routing.pairs_of(expert);
                let (out, later) = rest.split_at(of_expert.len() * hidden);
                rest = later;
                device.write_rows(pairs, of_expert.start, out)?;
            }
            stats.on_cpu += experts.len() as u64;
        }
        Ok(())
    }
}

/// Begins to copy a record into the slot reserved for it and orders computing behind the copy; returns its bytes. If that
/// fails the slot is free again.
fn copy<D: Device>(
    device: &D,
    store: &HostStore,
    faults: &Faults,
    on: &mut OnDevice<D>,
    id: ExpertId,
    at: SlotAt,
) -> Result<u64> {
    let begun = store.get(id).and_then(|record| {
        if faults.strikes(Point::Copy) {
            return Err(id.error(Tier::Device, Some(at.slot), "the copy failed"));
        }
        let bytes = record.as_ref().len() as u64;
        device.after(&device.fill(&on.memory, at, Arc::new(record))?)?;
        Ok(bytes)
    });
    if begun.is_err() {
        on.failed(id);
    }
    let bytes = begun?;
    on.came(id, at)?;
    Ok(bytes)
}

/// The experts of a layer that have pairs, ascending.
fn routed(routing: &Routing) -> impl Iterator<Item = usize> {
    routing.offsets().windows(2).enumerate().filter(|(_, w)| w[0] < w[1]).map(|(expert, _)| expert)
}

