//! Three first-in-first-out queues.

use std::collections::VecDeque;

use super::ranked::{PerExpert, Ranked};
use super::{ExpertId, Policy, Victim};

/// Uses are counted up to this.
const MOST: u8 = 3;

/// S3-FIFO (Yang et al., SOSP 2023): newcomers wait in a small queue (a tenth of the slots) and go to the main one only if
/// they are used again; what leaves unused is remembered for as long as the main queue is, and joins the main queue if
/// it comes back. The main queue gives what was used another round.
#[derive(Debug)]
pub struct S3Fifo {
    small: Ranked,
    main: Ranked,
    uses: PerExpert<u8>,
    /// What left the small queue and its number there; one that is no longer [`S3Fifo::left`] counts for nothing.
    ghosts: VecDeque<(ExpertId, u64)>,
    left: PerExpert<Option<u64>>,
    slots: usize,
    clock: u64,
}

impl S3Fifo {
    /// Without residents, for a tier of `slots` places.
    pub fn new(slots: usize) -> S3Fifo {
        S3Fifo {
            small: Ranked::default(),
            main: Ranked::default(),
            uses: PerExpert::default(),
            ghosts: VecDeque::new(),
            left: PerExpert::default(),
            slots,
            clock: 0,
        }
    }

    fn next(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn remember(&mut self, id: ExpertId) {
        let number = self.next();
        *self.left.get_mut(id) = Some(number);
        self.ghosts.push_back((id, number));
        while self.ghosts.len() > self.slots - self.slots / 10 {
            let Some((id, number)) = self.ghosts.pop_front() else { return };
            let left = self.left.get_mut(id);
            if *left == Some(number) {
                *left = None;
            }
        }
    }

    /// The small queue's oldest that may go; those used meanwhile move to the main queue.
    fn oldest_small(&mut self, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Option<ExpertId> {
        while let Some((_, id)) = self.small.lowest(may_go) {
            if self.uses.get(id) == 0 {
                return Some(id);
            }
            self.small.remove(id);
            *self.uses.get_mut(id) = 0;
            let number = self.next();
            self.main.set(id, number);
        }
        None
    }

    /// The main queue's oldest that may go and was not used in its last round.
    fn oldest_main(&mut self, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Option<ExpertId> {
        while let Some((_, id)) = self.main.lowest(may_go) {
            let uses = self.uses.get_mut(id);
            if *uses == 0 {
                return Some(id);
            }
            *uses -= 1;
            let number = self.next();
            self.main.set(id, number);
        }
        None
    }
}

impl Policy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3-fifo"
    }

    fn touch(&mut self, id: ExpertId) {
        if self.small.contains(id) || self.main.contains(id) {
            let uses = self.uses.get_mut(id);
            *uses = (*uses + 1).min(MOST);
        }
    }

    fn insert(&mut self, id: ExpertId) {
        if self.small.contains(id) || self.main.contains(id) {
            return;
        }
        *self.uses.get_mut(id) = 0;
        let number = self.next();
        match self.left.get_mut(id).take() {
            Some(_) => self.main.set(id, number),
            None => self.small.set(id, number),
        }
    }

    fn remove(&mut self, id: ExpertId) {
        if self.small.remove(id) {
            self.remember(id);
        } else {
            self.main.remove(id);
        }
    }

    fn victim(&mut self, _newcomer: ExpertId, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim {
        let id = if self.small.len() * 10 >= self.slots {
            self.oldest_small(may_go).or_else(|| self.oldest_main(may_go))
        } else {
            self.oldest_main(may_go).or_else(|| self.oldest_small(may_go))
        };
        id.map_or(Victim::None, Victim::Evict)
    }

    /// Uses that were counted; half a use for what a queue remembers.
    fn worth(&self, id: ExpertId) -> f64 {
        let uses = f64::from(self.uses.get(id));
        match (self.main.contains(id), self.small.contains(id)) {
            (true, _) => 1.0 + uses,
            (_, true) => uses,
            _ if self.left.get(id).is_some() => 0.5,
            _ => 0.0,
        }
    }
}
