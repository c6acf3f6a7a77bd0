//! Happens-before by vector clocks, and races on shared memory.
//!
//! Agents are the block's warps (0 ..) and, [`ASYNC`] further on, each warp's asynchronous copies and matrix
//! operations, which run beside it until somebody waits for them. A barrier joins the clocks of its warps; an mbarrier
//! takes what arrivals bring and gives it to who waits. An access races with an earlier one of another agent whose
//! time its own clock does not include (FastTrack: Flanagan and Freund, 2009).

use super::granules::Granules;

/// Warps a block can have.
pub(super) const WARPS: usize = 32;
/// Index of the agent that stands for warp 0's asynchronous operations.
pub(super) const ASYNC: usize = WARPS;

/// What an agent knows of every agent's time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clock([u32; 2 * WARPS]);

impl Default for Clock {
    fn default() -> Clock {
        Clock([0; 2 * WARPS])
    }
}

impl Clock {
    /// Takes over what another clock knows.
    pub fn join(&mut self, other: &Clock) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }

    /// The time of one agent.
    #[inline(always)]
    pub fn of(&self, agent: usize) -> u32 {
        self.0[agent]
    }

    /// Sets the time of one agent.
    pub fn set(&mut self, agent: usize, time: u32) {
        self.0[agent] = time;
    }

    /// Advances the agent's own time; what it does from now on is later than what it gave away before.
    pub fn tick(&mut self, agent: usize) -> u32 {
        self.0[agent] += 1;
        self.0[agent]
    }
}

/// Agent and time of an access, packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Epoch(u32);

impl Epoch {
    pub const NEVER: Epoch = Epoch(u32::MAX);
    const TIME: u32 = 1 << 26;

    #[inline(always)]
    fn new(agent: usize, time: u32) -> Epoch {
        Epoch(((agent as u32) << 26) | (time % Epoch::TIME))
    }

    pub fn agent(self) -> usize {
        (self.0 >> 26) as usize
    }

    fn time(self) -> u32 {
        self.0 % Epoch::TIME
    }

    /// Whether a read need not be remembered beside a later one: the same agent's, or one that is known.
    #[inline(always)]
    pub fn replaceable_by(self, now: Epoch, clock: &Clock) -> bool {
        self.agent() == now.agent() || self.known_to(clock)
    }

    #[inline(always)]
    pub fn known_to(self, clock: &Clock) -> bool {
        self == Epoch::NEVER || self.time() <= clock.of(self.agent())
    }
}

/// Concurrent readers of four bytes that are remembered in place: a warpgroup reads its right-hand side together.
pub(super) const READERS: usize = 4;

/// What is remembered of four bytes of shared memory, or of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Granule {
    pub write: Epoch,
    /// Reads that no later read is known to come after; more than fit are in [`Shadow::readers`].
    pub reads: [Epoch; READERS],
    /// PTX line of the last write and of the last read.
    pub lines: [u32; 2],
    /// Which of the four bytes were ever written, a bit each.
    pub written: u32,
}

/// In place of a write: some of the bytes were accessed without the others, [`Shadow::bytes`] has each by itself.
pub(super) const SPLIT: Epoch = Epoch(u32::MAX - 1);
/// Set in keys of [`Readers`] that are bytes.
const BYTE: u32 = 1 << 31;

/// Reads beyond [`READERS`], by granule, or by byte with [`BYTE`] set.
type Readers = std::collections::HashMap<u32, Vec<Epoch>>;

pub(super) const FRESH: Granule =
    Granule { write: Epoch::NEVER, reads: [Epoch::NEVER; READERS], lines: [0; 2], written: 0 };

/// The bytes of granule `g` that [offset, end) covers, a bit each.
#[inline(always)]
fn covered(g: u32, offset: u32, end: u32) -> u32 {
    let first = offset.saturating_sub(g * 4);
    let last = (end - g * 4).min(4);
    (0xf << first) & (0xf >> (4 - last))
}

/// Why an access is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nobody orders it and this one.
    Race(Earlier),
    /// The byte at this offset was never written.
    Uninitialised(u32),
}

/// The earlier party of a race.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Earlier {
    /// Byte offset.
    pub offset: u32,
    /// Whether it wrote.
    pub wrote: bool,
    /// Its agent.
    pub agent: usize,
    /// Its PTX line.
    pub line: u32,
}

impl Earlier {
    /// In words.
    pub fn describe(&self) -> String {
        let what = if self.wrote { "written" } else { "read" };
        let who = match self.agent.checked_sub(ASYNC) {
            None => format!("warp {}", self.agent),
            Some(warp) => format!("an asynchronous operation of warp {warp}"),
        };
        format!("{what} before by {who} at PTX line {}, and no barrier orders the two", self.line)
    }
}

/// Accesses to a block's shared memory.
///
/// Four bytes share an entry until one of them is accessed without the others, which may be other threads'. A write of
/// all four brings them together again.
pub(super) struct Shadow {
    granules: Granules,
    /// By byte, for granules that are [`SPLIT`]; empty until one is.
    bytes: Vec<Granule>,
    readers: Readers,
}

impl Shadow {
    pub fn new(bytes: usize) -> Shadow {
        Shadow { granules: Granules::new(bytes.div_ceil(4)), bytes: Vec::new(), readers: Readers::new() }
    }

    /// Forgets everything, for the next block.
    pub fn reset(&mut self) {
        self.granules.reset();
        self.readers.clear();
    }

    /// Notes a read of [offset, offset + len) and tells what is wrong with it.
    #[inline]
    pub fn read(&mut self, agent: usize, clock: &Clock, offset: u32, len: u32, line: u32) -> Option<Trouble> {
        let now = Epoch::new(agent, clock.of(agent));
        let end = offset + len;
        let granules = offset / 4..end.div_ceil(4);
        if (offset | end).is_multiple_of(4) && self.granules.read_alike(granules.clone(), now, clock, line) {
            return None;
        }
        for g in granules {
            let wanted = covered(g, offset, end);
            let mut granule = self.granules.get(g);
            if wanted != 0xf || granule.write == SPLIT {
                let trouble = self.read_bytes(g, wanted, now, clock, line);
                if trouble.is_some() {
                    return trouble;
                }
                continue;
            }
            // A race first: bytes that somebody unordered is still to write are that, not merely unset.
            if !granule.write.known_to(clock) {
                return Some(Trouble::Race(earlier(g, true, granule.write, granule.lines[0])));
            }
            if granule.written != 0xf {
                return Some(Trouble::Uninitialised(g * 4 + granule.written.trailing_ones()));
            }
            granule.note_read(&mut self.readers, g, now, clock, line);
            self.granules.set(g, &granule);
        }
        None
    }

    /// Notes reads of `len` bytes at each of `addresses`, which count from `base`, up to the first that has to be looked
    /// at more closely; how many that were.
    pub fn read_alike(
        &mut self,
        agent: usize,
        clock: &Clock,
        addresses: &[u32],
        base: u32,
        len: u32,
        line: u32,
    ) -> usize {
        let now = Epoch::new(agent, clock.of(agent));
        match len {
            32 => self.granules.read_all_alike::<8>(addresses, base, now, clock, line),
            16 => self.granules.read_all_alike::<4>(addresses, base, now, clock, line),
            _ => 0,
        }
    }

    /// The first byte of [offset, offset + len) that nobody ever wrote.
    pub fn unwritten(&self, offset: u32, len: u32) -> Option<u32> {
        (offset..offset + len).find(|b| self.granules.written(b / 4) >> (b % 4) & 1 == 0)
    }

    /// Notes a write of [offset, offset + len) and tells whom it races with.
    #[inline]
    pub fn write(
        &mut self,
        agent: usize,
        clock: &Clock,
        offset: u32,
        len: u32,
        line: u32,
    ) -> Option<Earlier> {
        let now = Epoch::new(agent, clock.of(agent));
        let end = offset + len;
        let granules = offset / 4..end.div_ceil(4);
        let alike = (offset | end).is_multiple_of(4) && self.readers.is_empty();
        if alike && self.granules.write_alike(granules.clone(), now, clock, line) {
            return None;
        }
        for g in granules {
            let wanted = covered(g, offset, end);
            let granule = self.granules.get(g);
            if wanted != 0xf || granule.write == SPLIT {
                let race = self.write_bytes(g, wanted, now, clock, line);
                if race.is_some() {
                    return race;
                }
                continue;
            }
            if !granule.write.known_to(clock) {
                return Some(earlier(g, true, granule.write, granule.lines[0]));
            }
            let more = self.readers.remove(&g).unwrap_or_default();
            if let Some(read) = granule.reads.iter().chain(&more).find(|e| !e.known_to(clock)) {
                return Some(earlier(g, false, *read, granule.lines[1]));
            }
            let lines = [line, granule.lines[1]];
            self.granules.set(g, &Granule { write: now, lines, written: 0xf, ..FRESH });
        }
        None
    }

    /// Gives each byte of a granule its own entry.
    fn split(&mut self, g: u32) {
        if self.bytes.is_empty() {
            self.bytes = vec![FRESH; self.granules.len() * 4];
        }
        let granule = self.granules.get(g);
        if granule.write == SPLIT {
            return;
        }
        self.bytes[g as usize * 4..][..4].fill(granule);
        self.granules.set(g, &Granule { write: SPLIT, written: granule.written, ..FRESH });
        if let Some(more) = self.readers.remove(&g) {
            for byte in g * 4..g * 4 + 4 {
                self.readers.insert(BYTE | byte, more.clone());
            }
        }
    }

    /// As [`Shadow::read`], for those bytes of a granule that `wanted` has a bit for.
    #[inline(never)]
    fn read_bytes(&mut self, g: u32, wanted: u32, now: Epoch, clock: &Clock, line: u32) -> Option<Trouble> {
        self.split(g);
        for byte in (0..4).filter(|b| wanted >> b & 1 == 1).map(|b| g * 4 + b) {
            let entry = &mut self.bytes[byte as usize];
            if !entry.write.known_to(clock) {
                return Some(Trouble::Race(earlier(BYTE | byte, true, entry.write, entry.lines[0])));
            }
            if self.granules.written(g) >> (byte % 4) & 1 == 0 {
                return Some(Trouble::Uninitialised(byte));
            }
            entry.note_read(&mut self.readers, BYTE | byte, now, clock, line);
        }
        None
    }

    /// As [`Shadow::write`], for those bytes of a granule that `wanted` has a bit for.
    #[inline(never)]
    fn write_bytes(&mut self, g: u32, wanted: u32, now: Epoch, clock: &Clock, line: u32) -> Option<Earlier> {
        self.split(g);
        for byte in (0..4).filter(|b| wanted >> b & 1 == 1).map(|b| g * 4 + b) {
            let entry = &mut self.bytes[byte as usize];
            if !entry.write.known_to(clock) {
                return Some(earlier(BYTE | byte, true, entry.write, entry.lines[0]));
            }
            let more = self.readers.remove(&(BYTE | byte)).unwrap_or_default();
            if let Some(read) = entry.reads.iter().chain(&more).find(|e| !e.known_to(clock)) {
                return Some(earlier(BYTE | byte, false, *read, entry.lines[1]));
            }
            *entry = Granule { write: now, lines: [line, entry.lines[1]], ..FRESH };
        }
        let granule = match wanted {
            0xf => Granule { written: 0xf, ..self.bytes[g as usize * 4] },
            _ => Granule { write: SPLIT, written: self.granules.written(g) | wanted, ..FRESH },
        };
        self.granules.set(g, &granule);
        None
    }
}

impl Granule {
    /// Remembers a read.
    #[inline(always)]
    fn note_read(&mut self, readers: &mut Readers, key: u32, now: Epoch, clock: &Clock, line: u32) {
        self.lines[1] = line;
        // Each agent has its usual place, so that the warps of a group do not push each other around.
        let usual = &mut self.reads[now.agent() % READERS];
        let replaceable = |e: &Epoch| e.replaceable_by(now, clock);
        if replaceable(usual) {
            *usual = now;
        } else {
            match self.reads.iter_mut().find(|e| replaceable(e)) {
                Some(slot) => *slot = now,
                None => readers.entry(key).or_default().push(now),
            }
        }
    }
}

#[cold]
fn earlier(key: u32, wrote: bool, epoch: Epoch, line: u32) -> Earlier {
    let offset = if key & BYTE != 0 { key - BYTE } else { key * 4 };
    Earlier { offset, wrote, agent: epoch.agent(), line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_race_is_an_access_the_clock_does_not_know() {
        let mut shadow = Shadow::new(64);
        let (mut a, mut b) = (Clock::default(), Clock::default());
        a.tick(0);
        b.tick(1);
        assert_eq!(shadow.write(0, &a, 8, 4, 1), None);
        let race = Earlier { offset: 8, wrote: true, agent: 0, line: 1 };
        assert_eq!(shadow.read(1, &b, 8, 4, 2), Some(Trouble::Race(race)));
        b.join(&a);
        assert_eq!(shadow.read(1, &b, 8, 4, 2), None);
        // The reader is unknown to the first warp until a barrier tells it.
        let race = shadow.write(0, &a, 4, 8, 3).unwrap();
        assert_eq!((race.offset, race.wrote, race.agent), (8, false, 1));
        a.join(&b);
        assert_eq!(shadow.write(0, &a, 4, 8, 3), None);
    }

    #[test]
    fn every_byte_is_known_to_be_written_or_not() {
        let mut shadow = Shadow::new(64);
        let clock = Clock::default();
        assert_eq!(shadow.write(0, &clock, 6, 5, 1), None);
        for offset in 0..16 {
            for len in 1..8 {
                let missing = (offset..offset + len).find(|b| !(6..11).contains(b));
                assert_eq!(shadow.unwritten(offset, len), missing);
                assert_eq!(shadow.read(0, &clock, offset, len, 2), missing.map(Trouble::Uninitialised));
            }
        }
    }

    #[test]
    fn several_readers_are_all_remembered() {
        let mut shadow = Shadow::new(64);
        let mut clocks = vec![Clock::default(); READERS + 3];
        for (agent, clock) in clocks.iter_mut().enumerate() {
            clock.tick(agent);
            shadow.granules.written[0] = 0xf;
            assert_eq!(shadow.read(agent, clock, 0, 4, 1), None);
        }
        let last = clocks.len() - 1;
        for agent in 1..last {
            let known = clocks[agent].clone();
            clocks[0].join(&known);
        }
        assert_eq!(shadow.write(0, &clocks[0], 0, 4, 2).unwrap().agent, last);
    }

    #[test]
    fn neighbouring_bytes_are_different_places() {
        let mut shadow = Shadow::new(64);
        let mut clocks = vec![Clock::default(); 3];
        for (agent, clock) in clocks.iter_mut().enumerate() {
            clock.tick(agent);
            assert_eq!(shadow.write(agent, clock, 8 + agent as u32, 1, 1), None);
        }
        assert_eq!(shadow.read(0, &clocks[0], 8, 1, 2), None);
        let race = Earlier { offset: 9, wrote: true, agent: 1, line: 1 };
        assert_eq!(shadow.read(0, &clocks[0], 8, 2, 2), Some(Trouble::Race(race)));
        assert_eq!(shadow.write(0, &clocks[0], 8, 4, 3), Some(race));
        // Whoever knows them all brings the bytes together again.
        let (second, third) = (clocks[1].clone(), clocks[2].clone());
        clocks[0].join(&second);
        clocks[0].join(&third);
        assert_eq!(shadow.read(0, &clocks[0], 8, 4, 3), Some(Trouble::Uninitialised(11)));
        assert_eq!(shadow.write(0, &clocks[0], 8, 4, 4), None);
        let race = Earlier { offset: 11, wrote: true, agent: 0, line: 4 };
        assert_eq!(shadow.read(2, &clocks[2], 11, 1, 5), Some(Trouble::Race(race)));
    }

    #[test]
    fn readers_of_a_word_are_readers_of_its_bytes() {
        let mut shadow = Shadow::new(64);
        let mut clocks = vec![Clock::default(); READERS + 3];
        for (agent, clock) in clocks.iter_mut().enumerate() {
            clock.tick(agent);
            shadow.granules.written[1] = 0xf;
            assert_eq!(shadow.read(agent, clock, 4, 4, 1), None);
        }
        let last = clocks.len() - 1;
        for agent in 1..last {
            let known = clocks[agent].clone();
            clocks[0].join(&known);
        }
        let race = shadow.write(0, &clocks[0], 6, 2, 2).unwrap();
        assert_eq!((race.offset, race.wrote, race.agent), (6, false, last));
    }
}
