//! Which expert is in which slot: the protocol of [`super::slots`] and the choice of [`super::policy`] together.
//!
//! A tier has one `Cache`, behind a lock: every change of residency goes through it. Leases are taken through it and
//! used and dropped outside of the lock. An expert is in one slot or in none; it is loading or ready; whoever reserved
//! a slot says [`ready`](Cache::ready) or [`failed`](Cache::failed).

use rustc_hash::FxHashMap;

use super::ExpertId;
use super::policy::{Policy, Victim};
use super::slots::{Lease, Refused, SlotRef, SlotTable, State};

/// The experts of one tier.
pub struct Cache {
    table: SlotTable,
    policy: Box<dyn Policy>,
    /// Experts that are loading or ready.
    held: FxHashMap<ExpertId, SlotRef>,
    /// The same by slot.
    occupants: Vec<Option<ExpertId>>,
    free: Vec<u32>,
    lent: u32,
    ready: u32,
}

/// Where an expert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its slot.
    pub at: SlotRef,
    /// Whether it can be read; if not it is being loaded.
    pub ready: bool,
}

/// What [`Cache::reserve`] answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// A slot to load the expert into.
    Slot {
        /// The slot, Loading.
        at: SlotRef,
        /// Who was in it until now.
        evicted: Option<ExpertId>,
    },
    /// The expert has a slot already.
    Held(Found),
    /// No resident is worth less, or there are no slots: use the expert without keeping it.
    Bypass,
    /// What could go is leased, needed or loading: ask again when leases have been returned.
    Busy,
}

/// The cache is not loading the expert: nobody reserved a slot for it, or its load is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not being loaded: reserve a slot first, and end its load once")]
pub struct NotLoading(pub ExpertId);

impl Cache {
    /// A cache of `slots` empty slots.
    pub fn new(slots: u32, policy: Box<dyn Policy>) -> Cache {
        Cache {
            table: SlotTable::new(slots),
            policy,
            held: FxHashMap::default(),
            occupants: vec![None; slots as usize],
            // The lowest slot goes first.
            free: (0..slots).rev().collect(),
            lent: 0,
            ready: 0,
        }
    }

    /// The slots' words. Leases may be taken from them directly; residency changes only through the cache.
    pub fn table(&self) -> &SlotTable {
        &self.table
    }

    /// Slots, not counting lent ones.
    pub fn slots(&self) -> u32 {
        self.table.slots() - self.lent
    }

    /// Slots that are lent.
    pub fn lent(&self) -> u32 {
        self.lent
    }

    /// Experts that can be read.
    pub fn resident(&self) -> u32 {
        self.ready
    }

    /// The policy's name.
    pub fn policy_name(&self) -> &'static str {
        self.policy.name()
    }

    /// Where the expert is, if it is ready or loading.
    pub fn find(&self, id: ExpertId) -> Option<Found> {
        self.held.get(&id).map(|&at| Found { at, ready: is_ready(&self.table, at) })
    }

    /// The experts that can be read, in the order of slots.
    pub fn residents(&self) -> impl Iterator<Item = (ExpertId, SlotRef)> {
        let held = self.occupants.iter().flatten().map(|id| (*id, self.held[id]));
        held.filter(|&(_, at)| is_ready(&self.table, at))
    }

    /// Tells the policy of a use, whether or not the expert is resident.
    pub fn touch(&mut self, id: ExpertId) {
        self.policy.touch(id);
    }

    /// What the policy holds the expert to be worth.
    pub fn worth(&self, id: ExpertId) -> f64 {
        self.policy.worth(id)
    }

    /// A lease on the expert, if it is ready.
    pub fn lease(&self, id: ExpertId) -> Option<Lease> {
        self.table.lease(*self.held.get(&id)?)
    }

    /// A slot for an expert that is going to be used. Residents for which `needed` says true stay: a forward pass that
    /// has counted on an expert must find it.
    pub fn reserve(&mut self, id: ExpertId, needed: &mut dyn FnMut(ExpertId) -> bool) -> Reserved {
        self.reserve_below(id, None, needed)
    }

    /// A slot for an expert that must have one, for instance because nobody else can compute it: the resident worth least
    /// goes, even if it is worth more. Never [`Reserved::Bypass`] while there are slots.
    pub fn reserve_least(&mut self, id: ExpertId) -> Reserved {
        let free = |at: &SlotRef| self.table.status(at.slot).is_some_and(|s| s.leases == 0);
        let worth = |id: &ExpertId| self.policy.worth(*id);
        let least = self
            .residents()
            .filter(|(_, at)| free(at))
            .map(|(id, _)| id)
            .min_by(|a, b| worth(a).total_cmp(&worth(b)).then(a.cmp(b)));
        match least {
            _ if self.held.contains_key(&id) || !self.free.is_empty() || self.slots() == 0 => {
                self.reserve(id, &mut |_| false)
            }
            Some(victim) if self.evict(victim) => self.load(id, Some(victim)),
            _ => Reserved::Busy,
        }
    }

    /// A slot for a guess: as [`reserve`](Cache::reserve), but nothing goes that is worth `worth` or more.
    pub fn reserve_over(
        &mut self,
        id: ExpertId,
        worth: f64,
        needed: &mut dyn FnMut(ExpertId) -> bool,
    ) -> Reserved {
        self.reserve_below(id, Some(worth), needed)
    }

    fn reserve_below(
        &mut self,
        id: ExpertId,
        limit: Option<f64>,
        needed: &mut dyn FnMut(ExpertId) -> bool,
    ) -> Reserved {
        if let Some(found) = self.find(id) {
            return Reserved::Held(found);
        }
        if self.slots() == 0 {
            return Reserved::Bypass;
        }
        if !self.free.is_empty() {
            return self.load(id, None);
        }
        let victim = match self.choose(id, limit.is_some(), needed) {
            Victim::Evict(victim) => victim,
            Victim::Bypass => return Reserved::Bypass,
            Victim::None => return Reserved::Busy,
        };
        if limit.is_some_and(|limit| self.policy.worth(victim) >= limit) {
            return Reserved::Bypass;
        }
        // Refused if a reader has just taken a lease from the table.
        if !self.evict(victim) {
            return Reserved::Busy;
        }
        self.load(id, Some(victim))
    }

    /// The expert's load is over: it can be read.
    pub fn ready(&mut self, id: ExpertId) -> Result<SlotRef, NotLoading> {
        let at = *self.held.get(&id).ok_or(NotLoading(id))?;
        self.table.ready(at).map_err(|_| NotLoading(id))?;
        self.ready += 1;
        self.policy.insert(id);
        Ok(at)
    }

    /// The expert's load failed: its slot is free again.
    pub fn failed(&mut self, id: ExpertId) -> Result<(), NotLoading> {
        let at = *self.held.get(&id).ok_or(NotLoading(id))?;
        self.table.abandon(at).map_err(|_| NotLoading(id))?;
        self.forget(id, at);
        Ok(())
    }

    /// Drops a resident on purpose, because it is damaged or because another tier has it. False if it is not ready or
    /// has leases.
    pub fn evict(&mut self, id: ExpertId) -> bool {
        let Some(&at) = self.held.get(&id) else { return false };
        // Nobody else changes residency, so the second step follows from the first.
        let gone = self.table.begin_evict(at).and_then(|()| self.table.finish_evict(at)).is_ok();
        if gone {
            self.ready -= 1;
            self.policy.remove(id);
            self.forget(id, at);
        }
        gone
    }

    /// Takes up to `n` slots out of the cache, free ones first, then those of the residents worth least. Fewer come
    /// back when the others are leased or loading: ask again for the rest. The slots' memory is the caller's until
    /// [`grow`](Cache::grow).
    pub fn shrink(&mut self, n: u32) -> Vec<u32> {
        let n = n.min(self.slots()) as usize;
        if self.free.len() < n {
            let mut residents: Vec<_> = self.residents().map(|(id, _)| (self.policy.worth(id), id)).collect();
            residents.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            for (_, id) in residents {
                if self.free.len() >= n {
                    break;
                }
                self.evict(id);
            }
        }
        // From the end that is used last, so that a small cache lies together.
        let taken: Vec<u32> = self.free.drain(..n.min(self.free.len())).collect();
        let (lent, kept): (Vec<u32>, Vec<u32>) =
            taken.into_iter().partition(|&slot| self.table.lend(slot).is_ok());
        self.free.extend(kept);
        self.lent += lent.len() as u32;
        lent
    }

    /// Takes lent slots back. A slot that was not lent is refused and named, the others are back.
    pub fn grow(&mut self, slots: Vec<u32>) -> Result<(), Refused> {
        let mut result = Ok(());
        for slot in slots {
            match self.table.give_back(slot) {
                Ok(()) => {
                    self.lent -= 1;
                    self.free.push(slot);
                }
                Err(refused) => result = result.and(Err(refused)),
            }
        }
        result
    }

    /// The policy's answer, if it keeps to what may go.
    fn choose(
        &mut self,
        newcomer: ExpertId,
        guessed: bool,
        needed: &mut dyn FnMut(ExpertId) -> bool,
    ) -> Victim {
        let (table, held) = (&self.table, &self.held);
        let mut may_go = |id| {
            let status = held.get(&id).and_then(|at| table.status(at.slot));
            status.is_some_and(|s| s.state == State::Ready && s.leases == 0) && !needed(id)
        };
        let victim = match guessed {
            true => self.policy.least(newcomer, &mut may_go),
            false => self.policy.victim(newcomer, &mut may_go),
        };
        match victim {
            Victim::Evict(id) if !may_go(id) => Victim::None,
            answer => answer,
        }
    }

    /// Begins a load in a free slot.
    fn load(&mut self, id: ExpertId, evicted: Option<ExpertId>) -> Reserved {
        let at = self.free.pop().and_then(|slot| self.table.begin_load(slot).ok());
        // Free slots are Empty: only the cache changes residency.
        let Some(at) = at else { return Reserved::Busy };
        self.held.insert(id, at);
        self.occupants[at.slot as usize] = Some(id);
        Reserved::Slot { at, evicted }
    }

    fn forget(&mut self, id: ExpertId, at: SlotRef) {
        self.held.remove(&id);
        self.occupants[at.slot as usize] = None;
        self.free.push(at.slot);
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("policy", &self.policy_name())
            .field("slots", &self.slots())
            .field("resident", &self.ready)
            .field("lent", &self.lent)
            .finish_non_exhaustive()
    }
}

/// Of a slot whose reference is not stale.
fn is_ready(table: &SlotTable, at: SlotRef) -> bool {
    table.status(at.slot).is_some_and(|status| status.state == State::Ready)
}

#[cfg(test)]
mod tests;
