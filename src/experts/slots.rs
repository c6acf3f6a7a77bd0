//! The residency protocol: Empty → Loading(g) → Ready(g) → Evicting(g) → Empty, and Empty ↔ Lent.
//!
//! A slot's memory is written by one thread and read by many, kernels among them, without a lock around it. One
//! atomic word a slot keeps them apart:
//!
//! ```text
//! state, 3 bits | leases, 29 bits | generation, 32 bits
//! ```
//!
//! - Only whoever moved the slot to Loading or Lent writes its memory.
//! - Only the holder of a [`Lease`] reads it. A lease is granted in Ready, to who names the slot's generation.
//! - A slot leaves Ready only without leases, and grants none afterwards. So nobody reads what is being overwritten.
//! - Each load is a new generation: a [`SlotRef`] kept from an earlier one is refused. Generation 0 is held by no
//!   expert; a kernel that finds it knows that the slot was never filled. After 2³² loads of one slot generations
//!   repeat; no reference is kept nearly that long.
//!
//! The whole protocol is the table of `Step`s below. Whoever has touched the memory *releases* it by the step that ends
//! this, whoever is going to touch it *acquires* it by the step that begins it. Evicting touches nothing and is relaxed:
//! every step is a read-modify-write, so what the readers released stays in the word until the next load acquires it.
//! The first look at a word is relaxed, since the exchange that follows proves it. A thread may thus be refused for what
//! it has not yet heard of, but is never granted what no longer holds.
//!
//! `tests/slots_loom.rs` checks this file against every interleaving and every stale value the memory model allows,
//! and that each altered step is noticed.

use super::sync::{Arc, AtomicU64, Ordering, in_force};

/// A slot as it was filled once: refers to nothing as soon as the slot is filled again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotRef {
    /// The slot.
    pub slot: u32,
    /// Which of its loads; never 0.
    pub generation: u32,
}

/// Where a slot is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Holds nothing.
    Empty,
    /// Is being written by its loader.
    Loading,
    /// Is readable with a lease.
    Ready,
    /// Is not readable any more, by nobody.
    Evicting,
    /// Is no slot for now: its memory serves something else.
    Lent,
}

/// A slot's word, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Where it is in its life.
    pub state: State,
    /// Leases held on it.
    pub leases: u32,
    /// Its latest load; 0 before the first.
    pub generation: u32,
}

/// A change that the protocol does not allow; the slot is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {action} slot {slot}: {why}")]
pub struct Refused {
    /// What was asked for.
    pub action: &'static str,
    /// Of which slot.
    pub slot: u32,
    /// Why not.
    pub why: Why,
}

/// Why a change was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The table is smaller.
    #[error("there are {slots} slots")]
    NoSuchSlot {
        /// Slots of the table.
        slots: u32,
    },
    /// The slot has been filled again since, or never was.
    #[error("generation {asked} was asked for, it has {has}")]
    Stale {
        /// Generation of the reference.
        asked: u32,
        /// Generation of the slot.
        has: u32,
    },
    /// The slot is elsewhere in its life.
    #[error("it is {is:?}, not {needed:?}")]
    State {
        /// The state it is in.
        is: State,
        /// The state the change starts from.
        needed: State,
    },
    /// The slot has readers.
    #[error("it has {leases} leases")]
    Leased {
        /// How many.
        leases: u32,
    },
}

/// One row of the protocol.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// As refusals name it.
    pub action: &'static str,
    pub from: State,
    pub to: State,
    pub generation: Generation,
    pub leases: Leases,
    /// Of the exchange that carries it out.
    pub order: Ordering,
}

/// What a step asks of the generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Generation {
    /// Must be that of the reference.
    Same,
    /// Begins the next.
    Next,
    /// Is kept, whichever it is.
    Any,
}

/// What a step asks of the leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leases {
    /// There must be none.
    Zero,
    /// Are kept, however many. No step of the sound protocol does this.
    #[allow(dead_code, reason = "the model checker's test alters steps to this")]
    Any,
    /// One more.
    More,
    /// One fewer.
    Less,
}

/// Acquires the end of everybody's reading, of a failed load and of borrowing: what they used is going to be overwritten.
const LOAD: Step = Step {
    action: "load",
    from: State::Empty,
    to: State::Loading,
    generation: Generation::Next,
    leases: Leases::Zero,
    order: Ordering::Acquire,
};
/// Releases what was loaded.
const PUBLISH: Step = Step {
    action: "publish",
    from: State::Loading,
    to: State::Ready,
    generation: Generation::Same,
    leases: Leases::Zero,
    order: Ordering::Release,
};
/// Releases what was half written.
const ABANDON: Step = Step { action: "abandon", to: State::Empty, ..PUBLISH };
/// Acquires what was loaded.
const LEASE: Step = Step {
    action: "lease",
    from: State::Ready,
    to: State::Ready,
    generation: Generation::Same,
    leases: Leases::More,
    order: Ordering::Acquire,
};
/// Releases the end of reading.
const RETURN: Step = Step { action: "return", leases: Leases::Less, order: Ordering::Release, ..LEASE };
/// Does not touch the memory.
const EVICT: Step = Step {
    action: "evict",
    from: State::Ready,
    to: State::Evicting,
    generation: Generation::Same,
    leases: Leases::Zero,
    order: Ordering::Relaxed,
};
/// Does not touch the memory either.
const VACATE: Step = Step { action: "vacate", from: State::Evicting, to: State::Empty, ..EVICT };
/// As [`LOAD`], for another use of the memory.
const LEND: Step = Step { action: "lend", to: State::Lent, generation: Generation::Any, ..LOAD };
/// Releases what the borrower wrote.
const GIVE_BACK: Step = Step {
    action: "give back",
    from: State::Lent,
    to: State::Empty,
    generation: Generation::Any,
    leases: Leases::Zero,
    order: Ordering::Release,
};

/// The words of a tier's slots. Clones are the same table.
#[derive(Debug, Clone)]
pub struct SlotTable {
    words: Arc<Vec<AtomicU64>>,
}

impl SlotTable {
    /// A table of `slots` empty slots.
    pub fn new(slots: u32) -> SlotTable {
        let empty = pack(Status { state: State::Empty, leases: 0, generation: 0 });
        SlotTable { words: Arc::new((0..slots).map(|_| AtomicU64::new(empty)).collect()) }
    }

    /// A table of one slot, somewhere in its life.
    #[cfg(test)]
    #[allow(dead_code, reason = "the model checker's test includes this file, and begins at the beginning")]
    pub(super) fn starting_as(status: Status) -> SlotTable {
        SlotTable { words: Arc::new(vec![AtomicU64::new(pack(status))]) }
    }

    /// Slots of the table, lent ones too.
    pub fn slots(&self) -> u32 {
        self.words.len() as u32
    }

    /// What a slot's word says, perhaps no longer by the time it is read: to look at, not to decide by.
    pub fn status(&self, slot: u32) -> Option<Status> {
        Some(unpack(self.words.get(slot as usize)?.load(Ordering::Relaxed)))
    }

    /// Empty → Loading, the next generation: the slot's memory is the caller's to write until [`ready`](Self::ready)
    /// or [`abandon`](Self::abandon).
    pub fn begin_load(&self, slot: u32) -> Result<SlotRef, Refused> {
        self.change(slot, 0, LOAD)
    }

    /// Loading → Ready: what was written can be read with a lease.
    pub fn ready(&self, at: SlotRef) -> Result<(), Refused> {
        self.change(at.slot, at.generation, PUBLISH).map(drop)
    }

    /// Loading → Empty: the load failed.
    pub fn abandon(&self, at: SlotRef) -> Result<(), Refused> {
        self.change(at.slot, at.generation, ABANDON).map(drop)
    }

    /// Leave to read the slot's memory until the lease is dropped; none if it is not (or no longer) ready as that
    /// generation.
    pub fn lease(&self, at: SlotRef) -> Option<Lease> {
        let at = self.change(at.slot, at.generation, LEASE).ok()?;
        Some(Lease { table: self.clone(), at })
    }

    /// Ready → Evicting, if nobody has a lease; nobody gets one from then on.
    pub fn begin_evict(&self, at: SlotRef) -> Result<(), Refused> {
        self.change(at.slot, at.generation, EVICT).map(drop)
    }

    /// Evicting → Empty.
    pub fn finish_evict(&self, at: SlotRef) -> Result<(), Refused> {
        self.change(at.slot, at.generation, VACATE).map(drop)
    }

    /// Empty → Lent: the slot's memory is the caller's, for anything, until [`give_back`](Self::give_back).
    pub fn lend(&self, slot: u32) -> Result<(), Refused> {
        self.change(slot, 0, LEND).map(drop)
    }

    /// Lent → Empty.
    pub fn give_back(&self, slot: u32) -> Result<(), Refused> {
        self.change(slot, 0, GIVE_BACK).map(drop)
    }

    /// Carries out a step, or says why not.
    fn change(&self, slot: u32, generation: u32, step: Step) -> Result<SlotRef, Refused> {
        let step = in_force(step);
        let refused = |why| Refused { action: step.action, slot, why };
        let word = self.words.get(slot as usize);
        let word = word.ok_or_else(|| refused(Why::NoSuchSlot { slots: self.slots() }))?;
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            let next = step.after(unpack(seen), generation).map_err(refused)?;
            match word.compare_exchange_weak(seen, pack(next), step.order, Ordering::Relaxed) {
                Ok(_) => return Ok(SlotRef { slot, generation: next.generation }),
                Err(current) => seen = current,
            }
        }
    }
}

impl Step {
    /// What a slot becomes by this step, taken by someone who means `generation`.
    fn after(self, status: Status, generation: u32) -> Result<Status, Why> {
        if self.generation == Generation::Same && status.generation != generation {
            return Err(Why::Stale { asked: generation, has: status.generation });
        }
        if status.state != self.from {
            return Err(Why::State { is: status.state, needed: self.from });
        }
        let leased = Why::Leased { leases: status.leases };
        let leases = match self.leases {
            Leases::Zero if status.leases > 0 => return Err(leased),
            Leases::Zero | Leases::Any => status.leases,
            Leases::More if status.leases == MOST_LEASES => return Err(leased),
            Leases::More => status.leases + 1,
            Leases::Less => status.leases.checked_sub(1).ok_or(leased)?,
        };
        let generation = match self.generation {
            Generation::Same | Generation::Any => status.generation,
            // 0 is skipped: it means that nothing was ever loaded.
            Generation::Next => status.generation.checked_add(1).unwrap_or(1),
        };
        Ok(Status { state: self.to, leases, generation })
    }
}

/// Leave to read a slot's memory. While it is held the slot is neither evicted nor overwritten; dropping it ends that,
/// so hold it until the reader's work, on the device too, is over.
#[must_use = "a dropped lease protects nothing"]
pub struct Lease {
    table: SlotTable,
    at: SlotRef,
}

impl Lease {
    /// What it is a lease of.
    pub fn at(&self) -> SlotRef {
        self.at
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let returned = self.table.change(self.at.slot, self.at.generation, RETURN);
        // A leased slot stays Ready, of its generation, with this lease counted: there is nothing to refuse.
        debug_assert!(returned.is_ok() || std::thread::panicking(), "{returned:?}");
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("at", &self.at).finish_non_exhaustive()
    }
}

const LEASE_BITS: u32 = 29;
pub(super) const MOST_LEASES: u32 = (1 << LEASE_BITS) - 1;

pub(super) fn pack(status: Status) -> u64 {
    let high = (status.state as u64) << LEASE_BITS | u64::from(status.leases);
    high << 32 | u64::from(status.generation)
}

pub(super) fn unpack(word: u64) -> Status {
    let high = (word >> 32) as u32;
    let state = match high >> LEASE_BITS {
        0 => State::Empty,
        1 => State::Loading,
        2 => State::Ready,
        3 => State::Evicting,
        // Only the five states are ever written.
        _ => State::Lent,
    };
    Status { state, leases: high & MOST_LEASES, generation: word as u32 }
}
