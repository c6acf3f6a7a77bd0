//! Bringing a record into a slot of the device, and what may go wrong with that.

use std::sync::Arc;

use super::super::ExpertId;
use super::super::fault::{Faults, Point};
use super::super::host::HostStore;
use super::super::stats::ExpertStats;
use super::on_device::OnDevice;
use crate::device::{Device, HostBytes, SlotAt};
use crate::error::{Result, Tier};

/// Begins to copy a record into the slot reserved for it and orders computing behind the copy. If that fails the slot is
/// free again; false if only the device refused, so that the expert can be computed where its record is.
pub(super) fn copy<D: Device>(
    device: &D,
    store: &HostStore,
    faults: &Faults,
    on: &mut OnDevice<D>,
    id: ExpertId,
    at: SlotAt,
    stats: &mut ExpertStats,
) -> Result<bool> {
    // Records being copied stay in host memory; where that is short, room is left for the next.
    let at_a_time = if store.holds_all() { usize::MAX } else { store.stats().slots as usize / 2 };
    let record = on.limit_copies(device, at_a_time).and_then(|()| store.get(id));
    let begun = record.and_then(|record| fill(device, store, faults, on, id, at, Arc::new(record), stats));
    if !matches!(begun, Ok(true)) {
        on.failed(id);
        return begun;
    }
    store.demote(id);
    on.came(id, at)?;
    Ok(true)
}

/// The copy itself. Where checksums are compared it is waited for and, if it brought something else, repeated once.
#[allow(clippy::too_many_arguments, reason = "one step of copying, on parts of the same state")]
fn fill<D: Device>(
    device: &D,
    store: &HostStore,
    faults: &Faults,
    on: &mut OnDevice<D>,
    id: ExpertId,
    at: SlotAt,
    record: HostBytes,
    stats: &mut ExpertStats,
) -> Result<bool> {
    let bytes = (*record).as_ref().len();
    let refused = || id.error(Tier::Device, Some(at.slot), "the copy failed");
    let mut repeated = false;
    loop {
        let sent = match on.checksums && faults.strikes(Point::Garble) {
            true => garbled(&record),
            false => record.clone(),
        };
        let begun = match faults.strikes(Point::Copy) {
            true => Err(refused()),
            false => device.fill(&on.memory, at, sent),
        };
        let copy = match begun {
            Ok(copy) => copy,
            Err(error) => {
                stats.failed_copies += 1;
                return on.refused(id, at, &error).map(|()| false);
            }
        };
        stats.link_bytes += bytes as u64;
        if on.checksums {
            // Nobody knows of the slot yet: it can be filled again.
            device.wait(&copy)?;
            let held = device.read_slot(&on.memory, at.slot, bytes)?;
            if let Err(error) = store.verify(id, &held, Tier::Device, Some(at.slot)) {
                if repeated {
                    return Err(error);
                }
                stats.repeated_copies += 1;
                repeated = true;
                continue;
            }
        }
        on.order(device, copy)?;
        return Ok(true);
    }
}

/// A record with a wrong byte.
fn garbled(record: &HostBytes) -> HostBytes {
    let mut bytes = (**record).as_ref().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Arc::new(bytes)
}
