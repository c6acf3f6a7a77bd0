//! Carrying loads out, by whoever needs the expert or by reader threads.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use super::state::{Shared, State, Trouble};
use super::trouble;
use crate::checkpoint::RecordLayout;
use crate::error::{Result, Tier};
use crate::experts::ExpertId;
use crate::experts::cache::Reserved;
use crate::experts::slots::{Lease, SlotRef};

/// A load that has begun. Dropped unfinished (its thread panicked) it frees the slot.
pub(super) struct Load<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) id: ExpertId,
    pub(super) at: SlotRef,
    /// Part of the first filling.
    pub(super) first: bool,
    /// Whether the slot was published or freed.
    pub(super) over: bool,
}

impl<'a> Load<'a> {
    /// Reads the record, for the caller: published, and with a lease.
    pub(super) fn run(self) -> Result<Lease> {
        let (id, slot) = (self.id, self.at.slot);
        let (state, result) = self.finish();
        result?;
        let lease = state.cache.lease(id);
        lease.ok_or_else(|| trouble(id, Tier::Host, Some(slot), "was read but not published"))
    }

    /// Reads the record where nobody waits: an error is kept for whoever asks next.
    pub(super) fn run_unawaited(self) {
        let (shared, id, first) = (self.shared, self.id, self.first);
        let (mut state, result) = self.finish();
        match result {
            Err(error) => drop(state.errors.insert(id, error)),
            Ok(()) if first => {
                drop(state);
                shared.reading.progress(shared.layout(id).map_or(0, RecordLayout::size));
            }
            Ok(()) => {}
        }
    }

    /// Reads the record and publishes it, or frees its slot. The lock comes along, so that nothing happens between that
    /// and what the caller does about it.
    fn finish(mut self) -> (MutexGuard<'a, State>, Result<()>) {
        let (shared, id, slot) = (self.shared, self.id, self.at.slot);
        let begun = Instant::now();
        let len = shared.layout(id).map_or(0, RecordLayout::size);
        // SAFETY: the slot was reserved for this load, so it is Loading until `end`, which comes after the last use.
        let into = unsafe { shared.reading.memory.fill(self.at, len) };
        let (result, repeats) = shared.reading.read(id, slot, into);
        let mut state = shared.lock();
        state.stats.repeats += repeats;
        state.stats.seconds += begun.elapsed().as_secs_f64();
        self.end(&mut state, result.is_ok());
        match result {
            Ok(()) => {
                state.stats.reads += 1;
                state.stats.bytes += len as u64;
                state.troubles.remove(&id);
                state.errors.remove(&id);
                (state, Ok(()))
            }
            Err(error) => {
                if self.first {
                    state.troubles.insert(id, Trouble::of(&error, slot));
                }
                (state, Err(shared.reading.told(id, slot, error)))
            }
        }
    }

    fn end(&mut self, state: &mut State, whole: bool) {
        self.over = true;
        state.loading -= 1;
        state.filling -= u32::from(self.first);
        let ended = if whole { state.cache.ready(self.id).map(drop) } else { state.cache.failed(self.id) };
        debug_assert!(ended.is_ok(), "{ended:?}");
        self.shared.changed.notify_all();
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        if !self.over {
            let shared = self.shared;
            self.end(&mut shared.lock(), false);
        }
    }
}

/// A reader thread. It counts from here until it is dropped, however that comes.
pub(super) struct Worker(Arc<Shared>);

impl Worker {
    pub(super) fn new(shared: &Arc<Shared>) -> Worker {
        shared.lock().stats.workers += 1;
        Worker(shared.clone())
    }

    /// Reads until the store is dropped.
    pub(super) fn run(self) {
        let shared = &self.0;
        loop {
            let mut state = shared.lock();
            while !state.stopped && state.requests.is_empty() && state.unread.is_empty() {
                state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stopped || shared.reading.worker_dies() {
                return;
            }
            let load = match state.requests.pop_front() {
                Some(id) => {
                    state.requested.remove(&id);
                    match state.reserve(id) {
                        Reserved::Slot { at, .. } => Some(shared.begin(&mut state, id, at, false)),
                        // It is there already, or there is no room for what nobody needs yet.
                        _ => None,
                    }
                }
                None => shared.next_unread(&mut state),
            };
            drop(state);
            if let Some(load) = load {
                load.run_unawaited();
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.stats.workers -= 1;
        if state.stats.workers == 0 {
            // Nobody is left to read ahead; who needs these reads them.
            state.requests.clear();
            state.requested.clear();
        }
        self.0.changed.notify_all();
        // What this one was woken for is for the others.
        self.0.work.notify_all();
    }
}
