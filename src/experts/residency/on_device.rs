//! Slots of the device, what is in them and who reads them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::super::ExpertId;
use super::super::cache::{Cache, Reserved};
use super::super::fault::{Faults, Point};
use super::super::host::HostStore;
use super::super::schedule::{Miss, Rates};
use super::super::slots::Lease;
use super::super::stats::ExpertStats;
use super::ahead::Ahead;
use super::copying::{Arrival, Arriving};
use super::meter::Meter;
use super::{LayerCall, Placement, routed};
use crate::checkpoint::RecordLayout;
use crate::device::{Device, Pass, Routing, SlotAt};
use crate::error::{Error, Result, Tier};
use crate::telemetry::{Row, What};

/// Copies in a row that the device may refuse, each of them made up for by the CPU, before that is an error.
const REFUSALS: u32 = 8;

/// Slots of the device, what is in them and what is on its way.
pub(super) struct OnDevice<D: Device> {
    /// Where records come from.
    pub(super) store: Arc<HostStore>,
    pub(super) memory: D::Slots,
    pub(super) cache: Cache,
    pub(super) tables: Vec<Table>,
    /// Experts of the model.
    all: usize,
    /// Copies that may still be reading host memory.
    pub(super) copies: Meter<Arc<D::Fence>>,
    /// The last copy that is over, to measure the next by; its fence keeps a record, so only where there is room for all.
    copied: Option<Arc<D::Fence>>,
    keeps_copied: bool,
    /// Of the copies ever issued, how many are to be over before the next layer's routing is.
    awaited: u64,
    /// Each layer's resident and shared experts, until the host has seen that they are done.
    residents: Meter<D::Fence>,
    /// The same of experts that had to be copied; only followed for a trace.
    arrived: Option<Meter<D::Fence>>,
    /// Seconds that the host stood still for copies and slots.
    pub(super) waited: f64,
    /// Leases of the layer at work.
    leases: Vec<Lease>,
    /// Leases of layers that were issued, with the fence behind them, oldest first.
    issued: VecDeque<(D::Fence, Vec<Lease>)>,
    /// Slots out of use that nobody has.
    pub(super) idle: Vec<u32>,
    /// Slots that somebody had and that work under way may still use.
    pub(super) dropped: Vec<u32>,
    /// Slots that experts are to have, as far as nobody else has them.
    pub(super) wanted: u32,
    pub(super) rates: Rates,
    pub(super) ahead: Ahead<D>,
    /// Whether copies are compared with checksums.
    pub(super) checksums: bool,
    faults: Faults,
    /// Copies in a row that the device refused.
    refused: u32,
    /// Why nothing can be computed any more: the device failed while it was reading slots.
    broken: Option<String>,
}

/// What a layer's table on the device says, or will as soon as it is used.
pub(super) struct Table {
    pub(super) places: Vec<Option<SlotAt>>,
    changed: bool,
}

impl<D: Device> OnDevice<D> {
    /// Empty slots.
    pub(super) fn new(
        store: Arc<HostStore>,
        memory: D::Slots,
        cache: Cache,
        layouts: &[Option<RecordLayout>],
        experts: usize,
        placement: &Placement,
    ) -> OnDevice<D> {
        let tracer = &placement.trace;
        let table = |layout: &Option<RecordLayout>| {
            let experts = if layout.is_some() { experts } else { 0 };
            Table { places: vec![None; experts], changed: false }
        };
        let tables: Vec<Table> = layouts.iter().map(table).collect();
        let all = tables.iter().map(|t| t.places.len()).sum();
        let wanted = cache.slots();
        OnDevice {
            keeps_copied: store.holds_all(),
            store,
            memory,
            cache,
            tables,
            all,
            copies: Meter::new(tracer.clone(), Row::Copies),
            copied: None,
            awaited: 0,
            residents: Meter::new(tracer.clone(), Row::Residents),
            arrived: tracer.is_on().then(|| Meter::new(tracer.clone(), Row::Arrived)),
            waited: 0.0,
            leases: Vec::new(),
            issued: VecDeque::new(),
            idle: Vec::new(),
            dropped: Vec::new(),
            wanted,
            rates: placement.rates,
            ahead: Ahead::new(placement.idle_copies),
            checksums: placement.checksums,
            faults: placement.faults.clone(),
            refused: 0,
            broken: None,
        }
    }

    /// An error if the device failed earlier.
    pub(super) fn check(&self) -> Result<()> {
        match &self.broken {
            None => Ok(()),
            Some(reason) => Err(Error::DeviceLost { reason: reason.clone() }),
        }
    }

    /// What something came to, in a layer or elsewhere; if the device failed, [`Error::DeviceLost`] now and whatever is asked
    /// for later.
    pub(super) fn outcome(&mut self, done: Result<()>, layer: Option<usize>) -> Result<()> {
        let Err(error @ Error::Cuda { .. }) = done else { return done };
        match layer {
            // What failed first, or the layer would not have been begun.
            Some(layer) => self.broken = Some(format!("in layer {layer}: {error}")),
            None => {
                self.broken.get_or_insert_with(|| error.to_string());
            }
        }
        self.check()
    }

    /// An error of the device if it is to fail.
    fn struck(&self, call: &'static str) -> Result<()> {
        match self.faults.strikes(Point::Device) {
            true => Err(Error::Cuda { call, reason: "a fault on purpose".to_owned() }),
            false => Ok(()),
        }
    }

    /// Notes a copy that the device refused. That may happen; an error if it refuses one after the other.
    pub(super) fn refused(&mut self, id: ExpertId, at: SlotAt, error: &Error) -> Result<()> {
        self.refused += 1;
        if self.refused < REFUSALS {
            return Ok(());
        }
        let problem =
            format!("{} copies to the device failed in a row, the last with: {error}", self.refused);
        Err(id.error(Tier::Device, Some(at.slot), problem))
    }

    /// Waits for all work, then looks at every slot; see [`super::Residency::audit`].
    pub(super) fn audit(&mut self, device: &D) -> Result<usize> {
        self.check()?;
        while self.wait_for_leases(device)? {}
        self.limit_copies(device, 0)?;
        let mut residents = 0;
        for (id, at) in self.cache.residents() {
            let wrong = |problem: String| id.error(Tier::Device, Some(at.slot), problem);
            let status = self.cache.table().status(at.slot);
            let leases = status.map_or(0, |status| status.leases);
            if leases > 0 {
                return Err(wrong(format!("{leases} leases are left with nothing at work")));
            }
            let place = self.tables[id.layer as usize].places[id.expert as usize];
            if place != Some(SlotAt { slot: at.slot, generation: at.generation }) {
                return Err(wrong(format!("is there, but the table names {place:?}")));
            }
            let bytes = self.store.layout(id.layer as usize).map_or(0, RecordLayout::size);
            let held = device.read_slot(&self.memory, at.slot, bytes)?;
            self.store.verify(id, &held, Tier::Device, Some(at.slot))?;
            residents += 1;
        }
        for (layer, table) in self.tables.iter().enumerate() {
            for (expert, place) in table.places.iter().enumerate() {
                let id = ExpertId::new(layer, expert);
                if let (Some(at), None) = (place, self.cache.find(id)) {
                    let problem = "the device's table names it, but no slot holds it";
                    return Err(id.error(Tier::Device, Some(at.slot), problem));
                }
            }
        }
        Ok(residents)
    }

    /// Experts of the model.
    pub(super) fn all(&self) -> usize {
        self.all
    }

    /// Whether every expert of the model has its slot, so that nothing can be missed.
    pub(super) fn holds_all(&self) -> bool {
        self.cache.resident() as usize == self.all
    }

    /// Returns the leases of work that is over.
    pub(super) fn retire(&mut self, device: &D) -> Result<()> {
        while let Some((fence, _)) = self.issued.front() {
            if !device.passed(fence)? {
                break;
            }
            self.issued.pop_front();
        }
        Ok(())
    }

    /// Waits until some work is over and returns its leases; false if there is none.
    pub(super) fn wait_for_leases(&mut self, device: &D) -> Result<bool> {
        self.close(device)?;
        let Some((fence, _)) = self.issued.front() else { return Ok(false) };
        let begun = Instant::now();
        device.wait(fence)?;
        self.waited += begun.elapsed().as_secs_f64();
        self.issued.pop_front();
        Ok(true)
    }

    /// Waits until nothing that was issued reads or fills a slot, and nothing is leased or on its way.
    pub(super) fn quiesce(&mut self, device: &D) -> Result<()> {
        self.check()?;
        self.close(device)?;
        // Where all experts are resident nothing is leased, so the leases' fences do not suffice.
        device.wait(&device.fence()?)?;
        self.issued.clear();
        self.drop_parts();
        self.limit_copies(device, 0)?;
        // A slot filled ahead of need can only be taken from a resident.
        self.land(device)?;
        self.leases.clear();
        self.idle.append(&mut self.dropped);
        Ok(())
    }

    /// Ties the leases of the layer at work to a fence behind what was issued.
    pub(super) fn close(&mut self, device: &D) -> Result<()> {
        if self.leases.is_empty() {
            return Ok(());
        }
        let leases = std::mem::take(&mut self.leases);
        match self.struck("cuEventRecord").and_then(|()| device.fence()) {
            Ok(fence) => self.issued.push_back((fence, leases)),
            Err(error) => {
                // Nobody can tell any more whether the slots are being read: they stay leased for good.
                std::mem::forget(leases);
                self.broken = Some(error.to_string());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Brings a layer's table on the device up to date.
    pub(super) fn publish(&mut self, device: &D, layer: usize) -> Result<()> {
        let table = &mut self.tables[layer];
        if table.changed {
            device.place(&self.memory, layer, &table.places)?;
            table.changed = false;
        }
        Ok(())
    }

    /// Leases what the layer's routing finds on the device, and lists what it does not find. `host_in` tells the seconds until
    /// an expert's record, of so many bytes and those of its down, is in host memory.
    pub(super) fn hits_and_misses(
        &mut self,
        layer: usize,
        routing: &Routing,
        (bytes, down): (u64, u64),
        host_in: impl Fn(ExpertId) -> f64,
        stats: &mut ExpertStats,
    ) -> Result<Vec<Miss>> {
        let mut misses = Vec::new();
        for expert in routed(routing) {
            let id = ExpertId::new(layer, expert);
            self.cache.touch(id);
            if self.tables[layer].places[expert].is_none() {
                let rows = routing.pairs_of(expert).len() as u32;
                let (arriving_in, host_in) = (self.ahead.due_in(id), host_in(id));
                stats.from_file += u64::from(host_in > 0.0);
                misses.push(Miss { expert: expert as u32, bytes, down, rows, arriving_in, host_in });
                continue;
            }
            self.lease(id)?;
            stats.hits += 1;
            stats.hit_bytes += bytes;
        }
        Ok(misses)
    }

    /// Holds a resident for the layer at work.
    fn lease(&mut self, id: ExpertId) -> Result<()> {
        let missing = || id.error(Tier::Device, None, "the device's table names it, but no slot holds it");
        let lease = self.cache.lease(id).ok_or_else(missing)?;
        self.leases.push(lease);
        Ok(())
    }

    /// A slot for an expert. Where nothing may be passed over, the resident worth least goes if the policy would rather keep
    /// them all.
    pub(super) fn reserve(&mut self, id: ExpertId, may_pass: bool) -> Reserved {
        match self.cache.reserve(id, &mut |_| false) {
            Reserved::Bypass if !may_pass => self.cache.reserve_least(id),
            reserved => reserved,
        }
    }

    /// An expert was evicted.
    pub(super) fn gone(&mut self, id: ExpertId) {
        let table = &mut self.tables[id.layer as usize];
        table.places[id.expert as usize] = None;
        table.changed = true;
    }

    /// A copy that computing is ordered behind, or will be before anything else is issued than what [`Arriving`] orders: the expert
    /// can be used, and is held for the layer at work.
    pub(super) fn came(&mut self, id: ExpertId, at: SlotAt) -> Result<()> {
        self.cache.ready(id).map_err(|e| id.error(Tier::Device, Some(at.slot), e.to_string()))?;
        let table = &mut self.tables[id.layer as usize];
        table.places[id.expert as usize] = Some(at);
        table.changed = true;
        self.lease(id)
    }

    /// A copy that did not begin: its slot is free again.
    pub(super) fn failed(&mut self, id: ExpertId) {
        // It was reserved and is loading: there is nothing that could be refused.
        let _ = self.cache.failed(id);
    }

    /// Computes the experts that have arrived or are arriving, and only those. Computing is then ordered behind all of them.
    pub(super) fn pass(
        &mut self,
        device: &D,
        call: &mut LayerCall<'_, D>,
        arriving: &mut Arriving<D::Fence>,
    ) -> Result<()> {
        if arriving.experts.is_empty() {
            return Ok(());
        }
        self.struck("cuLaunchKernel")?;
        let LayerCall { layer, x, ref routing, ref mut pairs, .. } = *call;
        let (memory, experts) = (&self.memory, &arriving.experts);
        match &arriving.last {
            Some(Arrival { gate_up: Some(gate_up), whole }) => {
                device.after(gate_up)?;
                device.experts_arriving(x, memory, layer, experts, whole, routing, pairs)?;
                arriving.last = None;
            }
            _ => {
                arriving.order(device)?;
                device.experts(x, memory, layer, Pass::Only(&arriving.experts), routing, pairs)?;
            }
        }
        arriving.experts.clear();
        Ok(())
    }

    /// Waits until at most `most` copies are under way; each keeps its record in host memory.
    pub(super) fn limit_copies(&mut self, device: &D, most: usize) -> Result<()> {
        while let Some(oldest) = self.copies.oldest() {
            if self.copies.len() > most {
                let begun = Instant::now();
                device.wait(oldest)?;
                self.waited += begun.elapsed().as_secs_f64();
            } else if !device.passed(oldest)? {
                break;
            }
            self.copy_ended(device)?;
        }
        Ok(())
    }

    /// Takes note of the copies that are over. Does not wait.
    pub(super) fn look_at_copies(&mut self, device: &D) -> Result<()> {
        self.limit_copies(device, usize::MAX)
    }

    /// A copy of so many bytes was issued, behind all others.
    pub(super) fn issued_copy(
        &mut self,
        device: &D,
        id: ExpertId,
        fence: D::Fence,
        bytes: u64,
    ) -> Result<Arc<D::Fence>> {
        // Behind a copy that is under way its fence is one copy after the other's.
        let timed = match self.copies.newest() {
            Some(last) => !device.passed(last)?,
            None => false,
        };
        self.refused = 0;
        let fence = Arc::new(fence);
        self.copies.begun(What::Expert(id), bytes, fence.clone(), timed);
        Ok(fence)
    }

    /// Computing waits for all copies issued so far.
    pub(super) fn ordered(&mut self) {
        self.awaited = self.copies.issued;
    }

    /// The oldest copy is over: how long it took is what the link's rate is known by.
    fn copy_ended(&mut self, device: &D) -> Result<()> {
        let Some((fence, bytes, timed)) = self.copies.ended() else { return Ok(()) };
        if let Some(before) = self.copied.as_ref().filter(|_| timed) {
            self.rates.observe_copy(bytes, device.seconds_between(before, &fence)?);
        }
        self.copied = self.keeps_copied.then_some(fence);
        Ok(())
    }

    /// A layer's resident and shared experts were issued.
    pub(super) fn issued_residents(&mut self, device: &D, layer: usize) -> Result<()> {
        self.residents.begun(What::Layer(layer, "resident, shared"), 0, device.fence()?, false);
        Ok(())
    }

    /// The layer's other experts were issued.
    pub(super) fn issued_arrived(&mut self, device: &D, layer: usize, experts: usize) -> Result<()> {
        if let Some(arrived) = self.arrived.as_mut().filter(|_| experts > 0) {
            arrived.begun(What::Experts(layer, experts), 0, device.fence()?, false);
        }
        Ok(())
    }

    /// Waits for what the next routing is behind anyway, except the `last` residents issued: so it is known how long
    /// copies were waited for when the device had nothing else to do.
    pub(super) fn settle(&mut self, device: &D, last: usize) -> Result<()> {
        while let Some(oldest) = self.residents.oldest().filter(|_| self.residents.len() > last) {
            device.wait(oldest)?;
            self.residents.ended();
        }
        let begun = Instant::now();
        while let Some(oldest) = self.copies.oldest().filter(|_| self.copies.seen < self.awaited) {
            device.wait(oldest)?;
            self.copy_ended(device)?;
        }
        self.waited += begun.elapsed().as_secs_f64();
        Ok(())
    }

    /// Computing was waited for, but for what was issued for the layer at work.
    pub(super) fn settled(&mut self) {
        if let Some(arrived) = &mut self.arrived {
            while arrived.ended().is_some() {}
        }
    }

    /// Does something that copies wait for.
    pub(super) fn wait_for<R>(&mut self, what: impl FnOnce() -> R) -> R {
        let begun = Instant::now();
        let result = what();
        self.waited += begun.elapsed().as_secs_f64();
        result
    }

    /// Whether the resident and shared experts of all layers issued so far are done.
    pub(super) fn residents_done(&mut self, device: &D) -> Result<bool> {
        while let Some(oldest) = self.residents.oldest() {
            if !device.passed(oldest)? {
                return Ok(false);
            }
            self.residents.ended();
        }
        Ok(true)
    }
}
