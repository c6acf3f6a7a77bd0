//! Records on their way into slots.

use std::ops::Range;
use std::sync::Arc;

use super::super::ExpertId;
use super::super::fault::{Faults, Point};
use super::super::stats::ExpertStats;
use super::on_device::OnDevice;
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

/// Begins to copy a record that is needed now into the slot reserved for it and orders computing behind the copy. If that
/// fails the slot is free again; false if only the device refused, so that the expert can be computed where its record is.
pub(super) fn copy<D: Device>(
    device: &D,
    faults: &Faults,
    on: &mut OnDevice<D>,
    id: ExpertId,
    at: SlotAt,
    stats: &mut ExpertStats,
) -> Result<bool> {
    // Records being copied stay in host memory; where that is short, room is left for the next.
    let store = on.store.clone();
    let at_a_time = if store.holds_all() { usize::MAX } else { store.stats().slots as usize / 2 };
    let record = on.limit_copies(device, at_a_time).and_then(|()| on.wait_for(|| store.get(id)));
    let begun = record.and_then(|record| {
        let all = 0..record.as_ref().len();
        let fence = begin_copy(device, faults, on, id, at, (Arc::new(record), all), stats)?;
        let Some(fence) = fence else { return Ok(false) };
        device.after(&fence)?;
        on.ordered();
        Ok(true)
    });
    if !matches!(begun, Ok(true)) {
        on.failed(id);
        return begun;
    }
    stats.link_bytes += store.layout(id.layer as usize).map_or(0, |layout| layout.size() as u64);
    store.demote(id);
    on.came(id, at)?;
    Ok(true)
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
            false => device.fill_part(&on.memory, at, sent, part.clone()),
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
