//! mbarriers: phase, pending arrivals, pending bytes — kept beside shared memory, where misuse can be seen.
//!
//! The 64-bit object itself is opaque to programs (PTX ISA, "Parallel Synchronization: mbarrier"), so its state lives
//! in a table by address and the bytes in shared memory mean nothing.

use std::collections::BTreeMap;

use super::race::Clock;

/// Most arrivals of a phase (PTX ISA).
const MAX_COUNT: i64 = (1 << 20) - 1;
/// Largest pending byte count, either sign (PTX ISA).
const MAX_TX: i64 = (1 << 20) - 1;

/// One mbarrier.
#[derive(Debug, Clone)]
pub(super) struct Mbarrier {
    count: i64,
    pending: i64,
    tx: i64,
    /// Completed phases.
    pub phase: u64,
    gathered: Clock,
    pub released: Clock,
}

/// All mbarriers of a block, by shared address.
#[derive(Debug, Clone, Default)]
pub(super) struct Mbarriers(BTreeMap<u32, Mbarrier>);

impl Mbarriers {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// `mbarrier.init`.
    pub fn init(&mut self, address: u32, count: u32, clock: &Clock) -> Result<(), String> {
        let count = i64::from(count);
        if !(1..=MAX_COUNT).contains(&count) {
            return Err(format!("mbarrier initialised with count {count}, expected 1 to {MAX_COUNT}"));
        }
        if self.0.contains_key(&address) {
            return Err(format!("mbarrier at {address:#x} initialised again without mbarrier.inval"));
        }
        let mbarrier = Mbarrier {
            count,
            pending: count,
            tx: 0,
            phase: 0,
            gathered: clock.clone(),
            released: clock.clone(),
        };
        self.0.insert(address, mbarrier);
        Ok(())
    }

    /// `mbarrier.inval`.
    pub fn invalidate(&mut self, address: u32) -> Result<(), String> {
        self.0.remove(&address).map(|_| ()).ok_or_else(|| uninitialised(address))
    }

    /// The mbarrier at an address.
    pub fn get(&mut self, address: u32) -> Result<&mut Mbarrier, String> {
        self.0.get_mut(&address).ok_or_else(|| uninitialised(address))
    }

    /// State of every mbarrier, for the report of a deadlock.
    pub fn describe(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(|(address, m)| {
            format!(
                "mbarrier {address:#x}: phase {} (parity {}), {} of {} arrivals pending, {} bytes pending",
                m.phase,
                m.phase & 1,
                m.pending,
                m.count,
                m.tx
            )
        })
    }
}

fn uninitialised(address: u32) -> String {
    format!("no initialised mbarrier at {address:#x}")
}

impl Mbarrier {
    /// `count` arrivals bringing `clock`; returns the phase they arrived in, which is the state token.
    pub fn arrive(&mut self, count: u32, clock: &Clock) -> Result<u64, String> {
        let phase = self.phase;
        self.pending -= i64::from(count);
        if self.pending < 0 {
            return Err(format!("mbarrier phase {phase} got more arrivals than its count of {}", self.count));
        }
        self.gathered.join(clock);
        self.finish();
        Ok(phase)
    }

    /// More arrivals to wait for in this phase (cp.async.mbarrier.arrive without noinc).
    pub fn grow(&mut self, arrivals: u32) {
        self.pending += i64::from(arrivals);
    }

    /// More bytes to wait for in this phase.
    pub fn expect(&mut self, bytes: u32) -> Result<(), String> {
        self.tx += i64::from(bytes);
        if self.tx > MAX_TX {
            return Err(format!("{} pending bytes, more than an mbarrier can count ({MAX_TX})", self.tx));
        }
        Ok(())
    }

    /// `bytes` arrived, written by an operation that knew `clock`.
    pub fn complete(&mut self, bytes: u32, clock: &Clock) -> Result<(), String> {
        self.tx -= i64::from(bytes);
        self.gathered.join(clock);
        if self.tx < 0 && self.pending == 0 || self.tx < -MAX_TX {
            return Err(format!(
                "{bytes} bytes arrived, {} more than the phase still expected (wrong expect_tx)",
                -self.tx
            ));
        }
        self.finish();
        Ok(())
    }

    fn finish(&mut self) {
        if self.pending == 0 && self.tx == 0 {
            self.phase += 1;
            self.pending = self.count;
            self.released = std::mem::take(&mut self.gathered);
        }
    }

    /// Whether the phase of this parity is over, that is, the current phase has the other parity.
    pub fn passed(&self, parity: u32) -> bool {
        self.phase & 1 != u64::from(parity & 1)
    }

    /// Arrivals still missing in this phase.
    pub fn pending_count(&self) -> u32 {
        self.pending as u32
    }
}
