//! The race check's memory, a field at a time.
//!
//! What an access has to look at is contiguous then, and ranges that were treated alike before, which most are, are
//! compared and updated by vector instructions. What is not alike goes granule by granule (see [`super::race`]).

use super::race::{Clock, Epoch, FRESH, Granule, READERS, SPLIT};

/// What is remembered of a block's shared memory, by granules of four bytes.
pub(super) struct Granules {
    write: Vec<Epoch>,
    reads: [Vec<Epoch>; READERS],
    lines: [Vec<u32>; 2],
    pub written: Vec<u8>,
}

/// Whether all elements are the same; the first of them.
#[inline(always)]
fn alike<T: Copy + PartialEq>(values: &[T]) -> Option<T> {
    let first = *values.first()?;
    values.iter().fold(true, |all, v| all & (*v == first)).then_some(first)
}

impl Granules {
    pub fn new(count: usize) -> Granules {
        Granules {
            write: vec![FRESH.write; count],
            reads: std::array::from_fn(|_| vec![Epoch::NEVER; count]),
            lines: [vec![0; count], vec![0; count]],
            written: vec![0; count],
        }
    }

    pub fn len(&self) -> usize {
        self.write.len()
    }

    pub fn reset(&mut self) {
        self.write.fill(FRESH.write);
        self.reads.iter_mut().for_each(|r| r.fill(Epoch::NEVER));
        self.written.fill(0);
    }

    pub fn written(&self, g: u32) -> u32 {
        u32::from(self.written[g as usize])
    }

    pub fn get(&self, g: u32) -> Granule {
        let g = g as usize;
        Granule {
            write: self.write[g],
            reads: std::array::from_fn(|r| self.reads[r][g]),
            lines: [self.lines[0][g], self.lines[1][g]],
            written: u32::from(self.written[g]),
        }
    }

    pub fn set(&mut self, g: u32, granule: &Granule) {
        let g = g as usize;
        self.write[g] = granule.write;
        for (reads, read) in self.reads.iter_mut().zip(granule.reads) {
            reads[g] = read;
        }
        (self.lines[0][g], self.lines[1][g]) = (granule.lines[0], granule.lines[1]);
        self.written[g] = granule.written as u8;
    }

    /// The last write of all granules of a range, if it is the same and known.
    #[inline(always)]
    fn last_write(&self, range: &std::ops::Range<usize>, clock: &Clock) -> bool {
        alike(&self.write[range.clone()]).is_some_and(|w| w != SPLIT && w.known_to(clock))
    }

    /// Notes a read of whole granules if all of them can take it in the same way. `false`: nothing was done.
    pub fn read_alike(&mut self, range: std::ops::Range<u32>, now: Epoch, clock: &Clock, line: u32) -> bool {
        let range = range.start as usize..range.end as usize;
        let usual = &self.reads[now.agent() % READERS][range.clone()];
        let replaceable = alike(usual).is_some_and(|e| e.replaceable_by(now, clock));
        if !replaceable || !self.last_write(&range, clock) || alike(&self.written[range.clone()]) != Some(0xf)
        {
            return false;
        }
        self.reads[now.agent() % READERS][range.clone()].fill(now);
        self.lines[1][range].fill(line);
        true
    }

    /// As [`Granules::read_alike`] for `N` granules from each of `addresses` on, which count bytes from `base`. How many
    /// were noted: all, or those before the first that was not alike.
    pub fn read_all_alike<const N: usize>(
        &mut self,
        addresses: &[u32],
        base: u32,
        now: Epoch,
        clock: &Clock,
        line: u32,
    ) -> usize {
        let reads = &mut self.reads[now.agent() % READERS];
        // What was last found to be fine: most ranges have the same. Nothing is, to begin with.
        let (mut fine_write, mut fine_read) = (Epoch::NEVER, Epoch::NEVER);
        for (i, address) in addresses.iter().enumerate() {
            let offset = address - base;
            let at = offset as usize / 4;
            let range = at..at + N;
            let chunks = (
                self.write.get(range.clone()).and_then(|w| w.first_chunk::<N>()),
                reads.get_mut(range.clone()).and_then(|r| r.first_chunk_mut::<N>()),
                self.written.get(range.clone()).and_then(|w| w.first_chunk::<N>()),
                self.lines[1].get_mut(range).and_then(|l| l.first_chunk_mut::<N>()),
            );
            let (Some(write), Some(read), Some(written), Some(lines)) = chunks else { return i };
            let same = |epochs: &[Epoch; N], e: Epoch| epochs.iter().fold(true, |all, x| all & (*x == e));
            if !same(write, fine_write) {
                if !same(write, write[0]) || write[0] == SPLIT || !write[0].known_to(clock) {
                    return i;
                }
                fine_write = write[0];
            }
            if !same(read, fine_read) {
                if !same(read, read[0]) || !read[0].replaceable_by(now, clock) {
                    return i;
                }
                fine_read = read[0];
            }
            if !offset.is_multiple_of(4) || *written != [0xf; N] {
                return i;
            }
            *read = [now; N];
            *lines = [line; N];
        }
        addresses.len()
    }

    /// As [`Granules::read_alike`], for a write.
    pub fn write_alike(&mut self, range: std::ops::Range<u32>, now: Epoch, clock: &Clock, line: u32) -> bool {
        let range = range.start as usize..range.end as usize;
        let known = |reads: &Vec<Epoch>| alike(&reads[range.clone()]).is_some_and(|e| e.known_to(clock));
        if !self.last_write(&range, clock) || !self.reads.iter().all(known) {
            return false;
        }
        self.write[range.clone()].fill(now);
        self.reads.iter_mut().for_each(|reads| reads[range.clone()].fill(Epoch::NEVER));
        self.lines[0][range.clone()].fill(line);
        self.written[range].fill(0xf);
        true
    }
}
