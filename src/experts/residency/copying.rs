//! Records on their way into slots: gate and up first, then down, each with a fence of its own. Two thirds of an expert's work
//! need only the former, and are done when the latter arrives.

use std::ops::Range;
use std::sync::Arc;

use super::super::ExpertId;
use super::super::fault::{Faults, Point};
use super::super::stats::ExpertStats;
use super::on_device::OnDevice;
use crate::checkpoint::RecordLayout;
use crate::device::{Device, HostBytes, SlotAt};
use crate::error::{Result, Tier};

/// An expert has left its slot for another.
pub(super) fn evicted<D: Device>(on: &mut OnDevice<D>, stats: &mut ExpertStats, old: Option<ExpertId>) {
    if let Some(old) = old {
        on.gone(old);
        on.store.promote(old);
        stats.evicted += 1;
    }
}

/// What to wait for until a record is in its slot.
pub(super) struct Arrival<F> {
    /// Behind gate and up, if that is known apart.
    pub(super) gate_up: Option<Arc<F>>,
    /// Behind all of it.
    pub(super) whole: Arc<F>,
}

/// Experts that the next pass computes. Copies are ordered on the device, so those of all but the last to be added are waited for
/// when another is added: only the last may still be coming when the pass begins.
pub(super) struct Arriving<F> {
    pub(super) experts: Vec<(u32, SlotAt)>,
    /// What computing is not ordered behind yet.
    pub(super) last: Option<Arrival<F>>,
}

impl<F> Default for Arriving<F> {
    fn default() -> Self {
        Arriving { experts: Vec::new(), last: None }
    }
}

impl<F> Arriving<F> {
    /// Another record is coming: computing is ordered behind the one before.
    pub(super) fn expect<D: Device<Fence = F>>(&mut self, device: &D, arrival: Arrival<F>) -> Result<()> {
        match self.last.replace(arrival) {
            Some(before) => device.after(&before.whole),
            None => Ok(()),
        }
    }

    /// Computing is ordered behind all of them, whether it has begun or not.
    pub(super) fn order<D: Device<Fence = F>>(&mut self, device: &D) -> Result<()> {
        match self.last.take() {
            Some(last) => device.after(&last.whole),
            None => Ok(()),
        }
    }
}

/// Begins to copy a record that is needed now into the slot reserved for it. Computing is to be ordered behind it. If that
/// fails the slot is free again; none if only the device refused, so that the expert can be computed where its record is.
pub(super) fn copy<D: Device>(
    device: &D,
    faults: &Faults,
    on: &mut OnDevice<D>,
    id: ExpertId,
    at: SlotAt,
    stats: &mut ExpertStats,
) -> Result<Option<Arrival<D::Fence>>> {
    // Records being copied stay in host memory; where that is short, room is left for the next. Each is two copies.
    let store = on.store.clone();
    let at_a_time = if store.holds_all() { usize::MAX } else { store.stats().slots as usize / 2 * 2 };
    let record = on.limit_copies(device, at_a_time).and_then(|()| on.wait_for(|| store.get(id)));
    let begun =
        record.and_then(|record| begin_rest(device, faults, on, id, at, (Arc::new(record), 0), stats));
    if !matches!(begun, Ok(Some(_))) {
        on.failed(id);
        return begun;
    }
    on.ordered();
    stats.link_bytes += store.layout(id.layer as usize).map_or(0, |layout| layout.size() as u64);
    store.demote(id);
    begun
}

/// Begins to copy what a record has from a byte on: what is left of gate and up, then what is left of down. None if the device
/// refused either of the two.
pub(super) fn begin_rest<D: Device>(
    device: &D,
    faults: &Faults,
    on: &mut OnDevice<D>,
    id: ExpertId,
    at: SlotAt,
    (record, from): (HostBytes, usize),
    stats: &mut ExpertStats,
) -> Result<Option<Arrival<D::Fence>>> {
    let bytes = (*record).as_ref().len();
    let down = on.store.layout(id.layer as usize).map_or(0, RecordLayout::down_start);
    let mut gate_up = None;
    if from < down {
        gate_up = begin_copy(device, faults, on, id, at, (record.clone(), from..down), stats)?;
        if gate_up.is_none() {
            return Ok(None);
        }
    }
    let whole = begin_copy(device, faults, on, id, at, (record, from.max(down)..bytes), stats)?;
    Ok(whole.map(|whole| Arrival { gate_up, whole }))
}

/// The copy itself, of a record or a part of it; none if the device refused. Where checksums are compared the end of a record is
/// waited for and, if the slot holds something else, all of it is copied once more.
#[allow(clippy::too_many_arguments, reason = "one step of copying, on parts of the same state")]
pub(super) fn begin_copy<D: Device>(
    device: &D,
    faults: &Faults,
    on: &mut OnDevice<D>,
    id: ExpertId,
    at: SlotAt,
    (record, mut part): (HostBytes, Range<usize>),
    stats: &mut ExpertStats,
) -> Result<Option<Arc<D::Fence>>> {
    let bytes = (*record).as_ref().len();
    let refused = || id.error(Tier::Device, Some(at.slot), "the copy failed");
    let mut repeated = false;
    loop {
        let sent = match on.checksums && faults.strikes(Point::Garble) {
            true => garbled(&record, &part),
            false => record.clone(),
        };
        let begun = match faults.strikes(Point::Copy) {
            true => Err(refused()),
            false => device.fill_part(&on.memory, id.layer as usize, at, sent, part.clone()),
        };
        let copy = match begun {
            Ok(copy) => copy,
            Err(error) => {
                stats.failed_copies += 1;
                return on.refused(id, at, &error).map(|()| None);
            }
        };
        on.ahead.book(on.rates.copy_seconds(part.len() as u64));
        if on.checksums && part.end == bytes {
            // Nobody knows of the slot yet: it can be filled again.
            device.wait(&copy)?;
            let held = device.read_slot(&on.memory, at.slot, bytes)?;
            if let Err(error) = on.store.verify(id, &held, Tier::Device, Some(at.slot)) {
                if repeated {
                    return Err(error);
                }
                stats.repeated_copies += 1;
                repeated = true;
                part = 0..bytes;
                continue;
            }
        }
        return on.issued_copy(device, id, copy, part.len() as u64).map(Some);
    }
}

/// A record with a wrong byte in that part.
fn garbled(record: &HostBytes, part: &Range<usize>) -> HostBytes {
    let mut bytes = (**record).as_ref().to_vec();
    bytes[part.start + part.len() / 2] ^= 1;
    Arc::new(bytes)
}
