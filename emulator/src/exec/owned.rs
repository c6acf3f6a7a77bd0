//! Which registers belong to wgmmas that have not been waited for, by commit group.
//!
//! A kernel that alternates between two sets of accumulators waits with `wgmma.wait_group 1` and reads the older set
//! while the tensor core still adds to the younger: what belongs to whom is known by group only.

use std::collections::VecDeque;

/// Cells, a bit each; as long as it has to be.
type Cells = Vec<u64>;

/// The accumulators of a warp's unfinished wgmmas.
#[derive(Debug, Default)]
pub(super) struct Owned {
    /// Of wgmmas issued since the last commit: no wait reaches them.
    open: Cells,
    /// The accumulators that were added to `open` last: most wgmmas of a group have the same.
    last: Vec<u32>,
    /// Of each commit group that may be unfinished, the oldest first.
    groups: VecDeque<Cells>,
    /// All of these.
    all: Cells,
}

impl Owned {
    /// A wgmma with these accumulators was issued.
    pub fn add(&mut self, cells: &[u32]) {
        if self.last == cells {
            return;
        }
        self.last.clear();
        self.last.extend_from_slice(cells);
        let words = cells.iter().max().map_or(0, |cell| *cell as usize / 64 + 1);
        for set in [&mut self.open, &mut self.all] {
            set.resize(set.len().max(words), 0);
        }
        for cell in cells {
            let (word, bit) = (*cell as usize / 64, 1 << (cell % 64));
            self.open[word] |= bit;
            self.all[word] |= bit;
        }
    }

    /// What was issued becomes a group, even if that is nothing: waits count groups.
    pub fn commit(&mut self) {
        self.last.clear();
        self.groups.push_back(std::mem::take(&mut self.open));
    }

    /// All groups but the `left` youngest have finished. What a later one adds to as well stays owned.
    pub fn wait(&mut self, left: usize) {
        let finished = self.groups.len().saturating_sub(left);
        self.groups.drain(..finished);
        self.all.clear();
        for set in self.groups.iter().chain([&self.open]) {
            self.all.resize(self.all.len().max(set.len()), 0);
            for (word, more) in self.all.iter_mut().zip(set) {
                *word |= more;
            }
        }
    }

    /// Whether nothing is owned.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether a cell is owned. "No register" lies beyond every word.
    #[inline(always)]
    pub fn holds(&self, cell: u32) -> bool {
        self.all.get(cell as usize / 64).is_some_and(|word| word >> (cell % 64) & 1 == 1)
    }

    /// Forgets everything, for the next block.
    pub fn clear(&mut self) {
        self.open.clear();
        self.last.clear();
        self.groups.clear();
        self.all.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_frees_the_groups_it_waits_for() {
        let mut owned = Owned::default();
        owned.add(&[1, 70]);
        owned.commit();
        owned.add(&[2, 70]);
        owned.commit();
        owned.add(&[200]);
        owned.wait(1);
        let held = |owned: &Owned| (0..256).filter(|c| owned.holds(*c)).collect::<Vec<_>>();
        assert_eq!(held(&owned), [2, 70, 200]);
        // What was never committed is not waited for.
        owned.wait(0);
        assert_eq!(held(&owned), [200]);
        owned.commit();
        owned.commit();
        owned.wait(1);
        assert!(held(&owned).is_empty() && owned.is_empty() && !owned.holds(u32::MAX));
    }
}
