//! Slots of the device, what is in them and who reads them.

use std::collections::VecDeque;

use super::super::ExpertId;
use super::super::cache::{Cache, Reserved};
use super::super::fault::{Faults, Point};
use super::super::host::HostStore;
use super::super::schedule::{Miss, Rates};
use super::super::slots::Lease;
use super::super::stats::ExpertStats;
use super::{LayerCall, Placement, routed};
use crate::checkpoint::RecordLayout;
use crate::device::{Device, Pass, Routing, SlotAt};
use crate::error::{Error, Result, Tier};

/// Copies in a row that the device may refuse, each of them made up for by the CPU, before that is an error.
const REFUSALS: u32 = 8;

/// Slots of the device, what is in them and what is on its way.
pub(super) struct OnDevice<D: Device> {
    pub(super) memory: D::Slots,
    pub(super) cache: Cache,
    pub(super) tables: Vec<Table>,
    /// Experts of the model.
    all: usize,
    /// Copies that may still be reading host memory, oldest first.
    copying: VecDeque<D::Fence>,
    /// Leases of the layer at work.
    leases: Vec<Lease>,
    /// Leases of layers that were issued, with the fence behind them, oldest first.
    issued: VecDeque<(D::Fence, Vec<Lease>)>,
    pub(super) rates: Rates,
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
        memory: D::Slots,
        cache: Cache,
        layouts: &[Option<RecordLayout>],
        experts: usize,
        placement: &Placement,
    ) -> OnDevice<D> {
        let table = |layout: &Option<RecordLayout>| {
            let experts = if layout.is_some() { experts } else { 0 };
            Table { places: vec![None; experts], changed: false }
        };
        let tables: Vec<Table> = layouts.iter().map(table).collect();
        let all = tables.iter().map(|t| t.places.len()).sum();
        OnDevice {
            memory,
            cache,
            tables,
            all,
            copying: VecDeque::new(),
            leases: Vec::new(),
            issued: VecDeque::new(),
            rates: placement.rates,
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
    pub(super) fn audit(&mut self, device: &D, store: &HostStore) -> Result<usize> {
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
            let bytes = store.layout(id.layer as usize).map_or(0, RecordLayout::size);
            let held = device.read_slot(&self.memory, at.slot, bytes)?;
            store.verify(id, &held, Tier::Device, Some(at.slot))?;
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
        device.wait(fence)?;
        self.issued.pop_front();
        Ok(true)
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
    /// an expert's record, of so many bytes, is in host memory.
    pub(super) fn hits_and_misses(
        &mut self,
        layer: usize,
        routing: &Routing,
        bytes: u64,
        host_in: impl Fn(ExpertId) -> f64,
        stats: &mut ExpertStats,
    ) -> Result<Vec<Miss>> {
        let mut misses = Vec::new();
        for expert in routed(routing) {
            let id = ExpertId::new(layer, expert);
            self.cache.touch(id);
            if self.tables[layer].places[expert].is_none() {
                let rows = routing.pairs_of(expert).len() as u32;
                misses.push(Miss {
                    expert: expert as u32,
                    bytes,
                    rows,
                    arriving_in: None,
                    host_in: host_in(id),
                });
                continue;
            }
            self.lease(id)?;
            stats.hits += 1;
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

    /// A copy that computing is ordered behind: the expert can be used, and is held for the layer at work.
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

    /// Computes the experts that have arrived, and only those.
    pub(super) fn pass(
        &mut self,
        device: &D,
        call: &mut LayerCall<'_, D>,
        arrived: &mut Vec<(u32, SlotAt)>,
    ) -> Result<()> {
        if !arrived.is_empty() {
            self.struck("cuLaunchKernel")?;
            let only = Pass::Only(arrived);
            device.experts(call.x, &self.memory, call.layer, only, call.routing, call.pairs)?;
            arrived.clear();
        }
        Ok(())
    }

    /// Waits until at most `most` copies are under way; each keeps its record in host memory.
    pub(super) fn limit_copies(&mut self, device: &D, most: usize) -> Result<()> {
        while let Some(oldest) = self.copying.front() {
            if self.copying.len() > most {
                device.wait(oldest)?;
            } else if !device.passed(oldest)? {
                break;
            }
            self.copying.pop_front();
        }
        Ok(())
    }

    /// A copy has begun: computing waits for it.
    pub(super) fn order(&mut self, device: &D, copy: D::Fence) -> Result<()> {
        device.after(&copy)?;
        self.refused = 0;
        self.copying.push_back(copy);
        Ok(())
    }
}
