//! A layer's misses that come over the link.

use super::super::ExpertId;
use super::super::cache::Reserved;
use super::super::stats::ExpertStats;
use super::copying::{Arrival, Arriving, copy, evicted};
use super::on_device::OnDevice;
use super::{LayerCall, ONE_BY_ONE, Residency, TOGETHER};
use crate::device::{Device, SlotAt};
use crate::error::Result;

impl<D: Device> Residency<D> {
    /// Copies experts into slots and has the device compute each as it arrives. Returns those there was no slot for.
    pub(super) fn over_link(
        &self,
        device: &D,
        on: &mut OnDevice<D>,
        call: &mut LayerCall<'_, D>,
        experts: &[usize],
        tokens: usize,
        stats: &mut ExpertStats,
    ) -> Result<Vec<usize>> {
        let together = if tokens <= ONE_BY_ONE { 1 } else { TOGETHER };
        let mut arriving = Arriving::default();
        let left = self.as_they_arrive(device, on, call, (experts, together), &mut arriving, stats);
        // Whatever went wrong: tables name what was begun.
        let ordered = arriving.order(device);
        left.and_then(|left| ordered.map(|()| left))
    }

    /// [`Residency::over_link`], so many experts `together`; computing is not ordered behind what is left in `arriving`.
    fn as_they_arrive(
        &self,
        device: &D,
        on: &mut OnDevice<D>,
        call: &mut LayerCall<'_, D>,
        (experts, together): (&[usize], usize),
        arriving: &mut Arriving<D::Fence>,
        stats: &mut ExpertStats,
    ) -> Result<Vec<usize>> {
        let mut left = Vec::new();
        for &expert in experts {
            let id = ExpertId::new(call.layer, expert);
            let coming = match on.ahead.take(id) {
                Some(coming) => Some(coming),
                None => self.bring(device, on, call, id, arriving, stats)?,
            };
            let Some((at, arrival)) = coming else {
                left.push(expert);
                continue;
            };
            arriving.expect(device, arrival)?;
            on.came(id, at)?;
            stats.over_link += 1;
            arriving.experts.push((expert as u32, at));
            if arriving.experts.len() == together {
                on.pass(device, call, arriving)?;
            }
        }
        on.pass(device, call, arriving)?;
        Ok(left)
    }

    /// Begins to copy an expert into a slot; none if there is no slot for it, or the device refused. What is `arriving` is
    /// computed first where its slots are all there are.
    fn bring(
        &self,
        device: &D,
        on: &mut OnDevice<D>,
        call: &mut LayerCall<'_, D>,
        id: ExpertId,
        arriving: &mut Arriving<D::Fence>,
        stats: &mut ExpertStats,
    ) -> Result<Option<(SlotAt, Arrival<D::Fence>)>> {
        let (at, old) = loop {
            match on.reserve(id, self.cpu_share) {
                Reserved::Busy => {
                    // Everything is leased: by what runs, or by this very layer. Both end.
                    on.pass(device, call, arriving)?;
                    if !on.wait_for_leases(device)? {
                        return Ok(None);
                    }
                }
                Reserved::Slot { at, evicted } => break (at, evicted),
                Reserved::Held(_) | Reserved::Bypass => return Ok(None),
            }
        };
        evicted(on, stats, old);
        let at = SlotAt { slot: at.slot, generation: at.generation };
        let arrival = copy(device, &self.faults, on, id, at, stats)?;
        Ok(arrival.map(|arrival| (at, arrival)))
    }
}
