//! Who holds what and who reads what: everything that is decided under the store's lock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indexmap::IndexSet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::load::Load;
use super::memory::Memory;
use super::read::Reading;
use super::{HostStats, StoreOptions, no_damage, trouble};
use crate::checkpoint::{Checkpoint, RecordLayout, memory};
use crate::error::{Error, Fault, Result, Tier};
use crate::experts::ExpertId;
use crate::experts::cache::{Cache, Reserved};
use crate::experts::policy::Policy;
use crate::experts::slots::{Lease, SlotRef};

/// Requests that are noted at most; those beyond are refused, since they would come too late.
const MAX_REQUESTS: usize = 1024;

/// What the store, its reader threads and its records share.
pub(super) struct Shared {
    pub(super) reading: Reading,
    layouts: Vec<Option<RecordLayout>>,
    holds_all: bool,
    patience: Duration,
    state: Mutex<State>,
    /// A load has ended, a lease or a thread has gone.
    pub(super) changed: Condvar,
    /// There is work for the reader threads, or they are to stop.
    pub(super) work: Condvar,
}

pub(super) struct State {
    pub(super) cache: Cache,
    /// Loads that have begun and not ended.
    pub(super) loading: u32,
    /// Experts that another tier has, longest first.
    pub(super) demoted: IndexSet<ExpertId>,
    pub(super) requests: VecDeque<ExpertId>,
    pub(super) requested: FxHashSet<ExpertId>,
    /// The first filling: what nobody has begun to read.
    pub(super) unread: VecDeque<ExpertId>,
    /// The first filling: what is being read.
    pub(super) filling: u32,
    /// Errors of reads that nobody waited for.
    pub(super) errors: FxHashMap<ExpertId, Error>,
    /// What went wrong in the first filling and has not gone right since.
    pub(super) troubles: BTreeMap<ExpertId, Trouble>,
    cancelled: bool,
    pub(super) stopped: bool,
    pub(super) waiting: u32,
    pub(super) stats: HostStats,
}

/// An error that can be told more than once.
pub(super) enum Trouble {
    Damage(Vec<Fault>),
    Other { slot: u32, problem: String },
}

/// An expert's record in host memory, and the lease that keeps it there.
#[derive(Clone)]
pub struct HostRecord(Arc<Held>);

struct Held {
    id: ExpertId,
    len: usize,
    /// `None` only while being dropped.
    lease: Option<Lease>,
    shared: Arc<Shared>,
}

impl HostRecord {
    /// Whose record it is.
    pub fn id(&self) -> ExpertId {
        self.0.id
    }
}

impl AsRef<[u8]> for HostRecord {
    fn as_ref(&self) -> &[u8] {
        match &self.0.lease {
            Some(lease) => self.0.shared.reading.memory.read(lease, self.0.len),
            None => &[],
        }
    }
}

impl std::fmt::Debug for HostRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostRecord").field("id", &self.0.id).field("len", &self.0.len).finish_non_exhaustive()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.lease = None;
        // Under the lock, so that nobody can find the slot leased and begin to wait after this.
        let state = self.shared.lock();
        if state.waiting > 0 {
            self.shared.changed.notify_all();
        }
    }
}

impl Shared {
    pub(super) fn new(
        checkpoint: Arc<Checkpoint>,
        budget: Option<u64>,
        policy: Box<dyn Policy>,
        options: StoreOptions,
    ) -> Result<Arc<Shared>> {
        let config = checkpoint.config();
        let layouts: Vec<_> = (0..config.num_layers).map(|layer| checkpoint.record_layout(layer)).collect();
        let experts = config.moe.num_experts;
        let all: VecDeque<ExpertId> = (0..layouts.len())
            .filter(|&layer| layouts[layer].is_some())
            .flat_map(|layer| (0..experts).map(move |expert| ExpertId::new(layer, expert)))
            .collect();
        let slot_bytes = layouts.iter().flatten().map(RecordLayout::size).max().unwrap_or(1);
        let available = memory::available();
        // What is free is also what the rest of the process and the file cache grow into.
        let limit = budget.unwrap_or(available / 16 * 15);
        let slots = all.len().min(usize::try_from(limit / slot_bytes as u64).unwrap_or(usize::MAX));
        let needed = slots.max(1) as u64 * slot_bytes as u64;
        if !all.is_empty() && (slots == 0 || needed > available) {
            let what = "expert records in host memory".to_owned();
            return Err(Error::OutOfMemory { what, needed, available: limit.min(available) });
        }
        let memory = Memory::new(slots, slot_bytes, budget.is_none(), &options.faults)?;
        let slots = memory.slots();
        let holds_all = slots == all.len();
        let stats = HostStats { slots: slots as u64, capacity: memory.bytes(), ..HostStats::default() };
        let state = State {
            cache: Cache::new(slots as u32, policy),
            loading: 0,
            demoted: IndexSet::new(),
            requests: VecDeque::new(),
            requested: FxHashSet::default(),
            unread: if holds_all { all } else { VecDeque::new() },
            filling: 0,
            errors: FxHashMap::default(),
            troubles: BTreeMap::new(),
            cancelled: false,
            stopped: false,
            waiting: 0,
            stats,
        };
        let total = state.unread.iter().filter_map(|id| layouts[id.layer as usize].as_ref());
        let total = total.map(|layout| layout.size() as u64).sum();
        Ok(Arc::new(Shared {
            patience: options.patience,
            reading: Reading::new(checkpoint, memory, options, total),
            layouts,
            holds_all,
            state: Mutex::new(state),
            changed: Condvar::new(),
            work: Condvar::new(),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // What panicked under the lock was an assertion, before it changed anything.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change; false when `until` has passed.
    fn wait<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        until: Option<Instant>,
    ) -> (MutexGuard<'a, State>, bool) {
        state.stats.waits += 1;
        state.waiting += 1;
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let (mut state, in_time) = match left {
            None => (self.changed.wait(state).unwrap_or_else(PoisonError::into_inner), true),
            Some(left) => {
                let (state, out) =
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
                (state, !out.timed_out())
            }
        };
        state.waiting -= 1;
        (state, in_time)
    }

    pub(super) fn layout(&self, id: ExpertId) -> Result<&RecordLayout> {
        let layout = self.layouts.get(id.layer as usize).and_then(Option::as_ref);
        match layout {
            Some(layout) if (id.expert as usize) < self.reading.experts() => Ok(layout),
            _ => Err(Error::argument("expert", format!("is {id}, which the model does not have"))),
        }
    }

    fn record(self: &Arc<Shared>, id: ExpertId, lease: Lease, len: usize) -> HostRecord {
        HostRecord(Arc::new(Held { id, len, lease: Some(lease), shared: self.clone() }))
    }

    pub(super) fn get(self: &Arc<Shared>, id: ExpertId) -> Result<HostRecord> {
        let len = self.layout(id)?.size();
        let mut state = self.lock();
        state.cache.touch(id);
        state.demoted.shift_remove(&id);
        let mut missed = false;
        let mut until = None;
        loop {
            if let Some(error) = state.errors.remove(&id) {
                return Err(error);
            }
            if let Some(lease) = state.cache.lease(id) {
                state.stats.hits += u64::from(!missed);
                return Ok(self.record(id, lease, len));
            }
            state.stats.misses += u64::from(!missed);
            missed = true;
            match state.reserve(id) {
                Reserved::Slot { at, .. } => {
                    let load = self.begin(&mut state, id, at, false);
                    drop(state);
                    let lease = load.run()?;
                    return Ok(self.record(id, lease, len));
                }
                // Somebody is reading it. That ends: a load that is given up ends too.
                Reserved::Held(_) => state = self.wait(state, None).0,
                Reserved::Bypass | Reserved::Busy => {
                    // A patience beyond what the clock can say is without end.
                    let until = *until.get_or_insert_with(|| Instant::now().checked_add(self.patience));
                    let in_time;
                    (state, in_time) = self.wait(state, until);
                    if !in_time {
                        let slots = state.cache.slots();
                        let problem = format!(
                            "all {slots} slots stayed in use for {:?}; raise the host budget or use fewer experts at once",
                            self.patience
                        );
                        return Err(trouble(id, Tier::Host, None, problem));
                    }
                }
            }
        }
    }

    /// Notes that a load has begun in the slot that was reserved, `first` if it belongs to the first filling.
    pub(super) fn begin<'a>(
        self: &'a Arc<Shared>,
        state: &mut State,
        id: ExpertId,
        at: SlotRef,
        first: bool,
    ) -> Load<'a> {
        state.loading += 1;
        state.filling += u32::from(first);
        // Whoever begins takes it from those that were to.
        if state.requested.remove(&id) {
            state.requests.retain(|&other| other != id);
        }
        Load { shared: self, id, at, first, over: false }
    }

    pub(super) fn peek(self: &Arc<Shared>, id: ExpertId) -> Option<HostRecord> {
        let len = self.layout(id).ok()?.size();
        let lease = self.lock().cache.lease(id)?;
        Some(self.record(id, lease, len))
    }

    pub(super) fn is_resident(&self, id: ExpertId) -> bool {
        self.lock().cache.find(id).is_some_and(|found| found.ready)
    }

    pub(super) fn request(&self, id: ExpertId) -> bool {
        if self.layout(id).is_err() {
            return false;
        }
        let mut state = self.lock();
        if state.cache.find(id).is_some() || state.requested.contains(&id) {
            return true;
        }
        if state.requests.len() >= MAX_REQUESTS || state.stats.workers == 0 {
            return false;
        }
        state.requests.push_back(id);
        state.requested.insert(id);
        self.work.notify_one();
        true
    }

    pub(super) fn demote(&self, id: ExpertId) {
        let mut state = self.lock();
        if state.cache.find(id).is_some() {
            state.demoted.insert(id);
        }
    }

    pub(super) fn promote(&self, id: ExpertId) {
        self.lock().demoted.shift_remove(&id);
    }

    /// The next load of the first filling.
    pub(super) fn next_unread(self: &Arc<Shared>, state: &mut State) -> Option<Load<'_>> {
        if !state.cancelled && self.reading.is_cancelled() {
            state.cancelled = true;
        }
        if state.cancelled {
            state.unread.clear();
        }
        while let Some(id) = state.unread.pop_front() {
            if let Reserved::Slot { at, .. } = state.reserve(id) {
                return Some(self.begin(state, id, at, true));
            }
        }
        None
    }

    pub(super) fn wait_loaded(self: &Arc<Shared>) -> Result<()> {
        let mut state = self.lock();
        loop {
            if let Some(load) = self.next_unread(&mut state) {
                drop(state);
                load.run_unawaited();
                state = self.lock();
            } else if state.filling > 0 {
                state = self.wait(state, None).0;
            } else {
                break;
            }
        }
        if state.cancelled {
            return Err(Error::Cancelled);
        }
        let mut faults = Vec::new();
        for (&id, told) in &state.troubles {
            match told {
                Trouble::Damage(damage) => faults.extend(damage.iter().cloned()),
                Trouble::Other { slot, problem } => {
                    return Err(trouble(id, Tier::File, Some(*slot), problem.clone()));
                }
            }
        }
        no_damage(self.reading.dir(), faults)
    }

    pub(super) fn verify(&self, id: ExpertId, bytes: &[u8], tier: Tier, slot: Option<u32>) -> Result<()> {
        self.reading.verify(id, bytes).map_err(|problem| trouble(id, tier, slot, problem))
    }

    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        state.unread.clear();
        self.work.notify_all();
    }

    pub(super) fn stats(&self) -> HostStats {
        let state = self.lock();
        HostStats { resident: u64::from(state.cache.resident()), ..state.stats }
    }

    pub(super) fn layouts(&self) -> &[Option<RecordLayout>] {
        &self.layouts
    }

    pub(super) fn holds_all(&self) -> bool {
        self.holds_all
    }

    pub(super) fn describe(&self) -> String {
        let layers = self.layouts.iter().flatten().count();
        let all = layers * self.reading.experts();
        let slots = self.reading.memory.slots();
        let which = if self.holds_all {
            format!("all {all} expert records in host memory")
        } else {
            let policy = self.lock().cache.policy_name();
            format!("room for {slots} of {all} expert records in host memory ({policy}), the others in files")
        };
        let gib = self.reading.memory.bytes() as f64 / f64::from(1 << 30);
        format!("{which}, {gib:.2} GiB {}, {}", self.reading.memory.describe(), self.reading.describe())
    }
}

impl State {
    /// A slot for an expert. What another tier has goes first; a policy that would rather not keep the newcomer gives
    /// its least resident, since reading it without keeping it would need memory beyond the budget.
    pub(super) fn reserve(&mut self, id: ExpertId) -> Reserved {
        if self.cache.find(id).is_none() && self.cache.resident() + self.loading >= self.cache.slots() {
            let found = self.demoted.iter().position(|&other| self.cache.evict(other));
            if let Some(index) = found {
                self.demoted.shift_remove_index(index);
                self.stats.evictions += 1;
            }
        }
        let mut reserved = self.cache.reserve(id, &mut |_| false);
        if reserved == Reserved::Bypass {
            let residents = self.cache.residents();
            let mut order: Vec<_> = residents.map(|(other, _)| (self.cache.worth(other), other)).collect();
            order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            if order.into_iter().any(|(_, other)| self.cache.evict(other)) {
                self.stats.evictions += 1;
                reserved = self.cache.reserve(id, &mut |_| false);
            }
        }
        if let Reserved::Slot { evicted: Some(evicted), .. } = reserved {
            self.demoted.shift_remove(&evicted);
            self.stats.evictions += 1;
        }
        reserved
    }
}

impl Trouble {
    pub(super) fn of(error: &Error, slot: u32) -> Trouble {
        match error {
            Error::Checkpoint { faults, .. } => Trouble::Damage(faults.0.clone()),
            other => Trouble::Other { slot, problem: other.to_string() },
        }
    }
}
