//! Slots that change hands while sessions run: fewer or more for experts, and memory for key/value caches.
//!
//! Slots are allocated once. Each is the cache's, or lent: to a key/value cache, to the holder of a [`Lent`], or to nobody
//! (idle). Before one changes hands the host waits until nothing that was issued reads or fills it; this is rare, so everything is
//! waited for. A slot that leaves the cache is marked as empty on the device, so that no table, however old, finds an
//! expert there.

use super::super::ExpertId;
use super::on_device::OnDevice;
use super::{PoisonError, Residency};
use crate::device::Device;
use crate::error::{Error, Result};

/// Who has the slots of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotUse {
    /// Slots of the device.
    pub total: usize,
    /// Those that experts have.
    pub experts: usize,
    /// Those that are out of use: no expert has them, and no cache needs them.
    pub idle: usize,
    /// Those that key/value caches or other borrowers have.
    pub lent: usize,
}

/// Slots taken out of use for experts: their memory is the holder's, until they are [given back](Lent::give_back). Dropped,
/// they are lent to nobody: experts have them again after the next time that slots change hands.
#[must_use = "dropped slots come back late"]
pub struct Lent<'r, D: Device> {
    residency: &'r Residency<D>,
    slots: Vec<u32>,
}

impl<D: Device> Lent<'_, D> {
    /// The slots.
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// Gives them back, after all computing issued so far.
    ///
    /// # Errors
    /// What the device reports; they are then as if dropped.
    pub fn give_back(self, device: &D) -> Result<()> {
        let residency = self.residency;
        drop(self);
        residency.with_slots(device, |_| Ok(())).map(drop)
    }
}

impl<D: Device> Drop for Lent<'_, D> {
    fn drop(&mut self) {
        let mut state = self.residency.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(on) = &mut state.on_device {
            on.dropped.append(&mut self.slots);
        }
    }
}

impl<D: Device> Residency<D> {
    /// Who has the slots; `None` for a device without.
    pub fn slot_use(&self) -> Option<SlotUse> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let on = state.on_device.as_ref()?;
        let (experts, lent) = (on.cache.slots() as usize, on.cache.lent() as usize);
        let idle = on.idle.len() + on.dropped.len();
        Some(SlotUse { total: experts + lent, experts, idle, lent: lent - idle })
    }

    /// Lets experts have `slots` slots, or what there is of them beside what is lent; from now on, slots that come back
    /// are theirs up to that number. Returns how many they have now.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a device without slots; what the device reports.
    pub fn resize(&self, device: &D, slots: usize) -> Result<usize> {
        let now = self.with_slots(device, |on| {
            let total = on.cache.slots() + on.cache.lent();
            on.wanted = u32::try_from(slots).unwrap_or(u32::MAX).min(total);
            let too_many = on.cache.slots().saturating_sub(on.wanted);
            let taken = self.take(device, on, too_many)?;
            on.idle.extend(taken);
            on.use_idle();
            Ok(on.cache.slots() as usize)
        })?;
        now.ok_or_else(|| Error::Unsupported {
            what: "resizing slots".to_owned(),
            instead: "this device computes experts where they lie in host memory; choose a GPU".to_owned(),
        })
    }

    /// Takes up to `n` slots out of use: idle ones, then free ones, then those of the experts worth least, which are from then on
    /// where they were before they came to the device. None from a device without slots.
    ///
    /// # Errors
    /// What the device reports.
    pub fn shrink(&self, device: &D, n: usize) -> Result<Lent<'_, D>> {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        let slots = self.with_slots(device, |on| self.borrow(device, on, n))?;
        Ok(Lent { residency: self, slots: slots.unwrap_or_default() })
    }

    /// [`Device::kv_reserve`], with slots where the device has no other memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if slots do not help: all are lent, or a page is larger than a slot. What the cache holds
    /// stays. Slots it has got are its own, until [`Residency::return_kv`].
    pub fn reserve_kv(&self, device: &D, cache: &mut D::KvCache, tokens: usize) -> Result<()> {
        let refused = match device.kv_reserve(cache, tokens) {
            Err(refused @ Error::OutOfMemory { .. }) => refused,
            done => return done,
        };
        let enough = self.with_slots(device, |on| {
            // One at a time: what is still missing may fit the device's other memory.
            while let Some(slot) = self.borrow(device, on, 1)?.pop() {
                match device.kv_adopt(cache, &on.memory, slot) {
                    Ok(1..) => {}
                    useless => {
                        on.idle.push(slot);
                        on.use_idle();
                        return useless.map(|_| false);
                    }
                }
                match device.kv_reserve(cache, tokens) {
                    Err(Error::OutOfMemory { .. }) => {}
                    done => return done.map(|()| true),
                }
            }
            Ok(false)
        })?;
        if enough == Some(true) { Ok(()) } else { Err(refused) }
    }

    /// Takes back the slots that a cache of `tokens` tokens does not need.
    ///
    /// # Errors
    /// What the device reports; the cache then keeps its slots.
    pub fn return_kv(&self, device: &D, cache: &mut D::KvCache, tokens: usize) -> Result<()> {
        if device.kv_adopted(cache) == 0 {
            return Ok(());
        }
        let returned = self.with_slots(device, |on| {
            on.idle.extend(device.kv_release(cache, tokens)?);
            on.use_idle();
            Ok(())
        });
        returned.map(drop)
    }

    /// Does something with slots that nothing uses: all that was issued is over, and nothing is issued meanwhile. `None`
    /// without slots.
    fn with_slots<R>(
        &self,
        device: &D,
        work: impl FnOnce(&mut OnDevice<D>) -> Result<R>,
    ) -> Result<Option<R>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(on) = &mut state.on_device else { return Ok(None) };
        on.quiesce(device)?;
        on.use_idle();
        work(on).map(Some)
    }

    /// Up to `n` slots for another use.
    fn borrow(&self, device: &D, on: &mut OnDevice<D>, n: u32) -> Result<Vec<u32>> {
        let at = on.idle.len().saturating_sub(n as usize);
        let mut slots = on.idle.split_off(at);
        match self.take(device, on, n - slots.len() as u32) {
            Ok(taken) => slots.extend(taken),
            Err(error) => {
                on.idle.extend(slots);
                return Err(error);
            }
        }
        Ok(slots)
    }

    /// Takes slots out of the cache, and what was in them out of the tables. Nothing is leased.
    fn take(&self, device: &D, on: &mut OnDevice<D>, n: u32) -> Result<Vec<u32>> {
        if n == 0 {
            return Ok(Vec::new());
        }
        let before: Vec<ExpertId> = on.cache.residents().map(|(id, _)| id).collect();
        let slots = on.cache.shrink(n);
        for id in before {
            if on.cache.find(id).is_none() {
                on.gone(id);
                on.store.promote(id);
            }
        }
        match device.empty(&on.memory, &slots) {
            Ok(()) => Ok(slots),
            Err(error) => {
                on.idle.extend(slots);
                on.use_idle();
                Err(error)
            }
        }
    }
}

impl<D: Device> OnDevice<D> {
    /// Gives experts the slots that they are to have and nobody else has.
    fn use_idle(&mut self) {
        let n = self.wanted.saturating_sub(self.cache.slots()) as usize;
        let slots = self.idle.split_off(self.idle.len().saturating_sub(n));
        let back = self.cache.grow(slots);
        debug_assert!(back.is_ok(), "an idle slot is lent: {back:?}");
    }
}
