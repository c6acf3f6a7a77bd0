//! Bringing experts before they are asked for, on idle link time only.
//!
//! While a layer computes, the next layer's router is asked what it would choose from this layer's hidden state. The
//! guesses are often right, the first more often than the eighth, and some of the experts are not on the GPU. A copy
//! begun now costs nothing while the link has nothing else to do; whatever of it reaches beyond that delays the copies that
//! are known to be needed. So a guess is taken if what it saves when right outweighs what it costs when wrong, by the share
//! of guesses of its rank that were right lately. Where only the link brings what is missing, no more of a record is copied
//! than fits before the next layer's routing is known; then the rest follows, or the slot is free again. So a wrong guess costs
//! nothing there, and a right one saves all the time that would have been idle. Where the CPU computes misses, nothing brings
//! experts to the GPU by itself: link time that guesses leave goes to experts that were missed a moment ago.
//!
//! The prefetcher keeps accounts: when what came early and was used saved less than what was wasted delayed, it stops,
//! and tries again rarely.

use std::collections::VecDeque;

use super::ExpertId;

/// Ranks whose precision is followed one by one; later guesses count as the last of them.
const RANKS: usize = 16;

/// How much of a new observation goes into a rank's precision: about the last hundred guesses count.
const WEIGHT: f64 = 0.02;

/// Prefetches after which it is settled whether they pay.
const WINDOW: u32 = 256;

/// Layers without guesses after a window that did not pay: some seventy tokens of Kimi-K2. A window takes some
/// four tokens, so a model that can't be guessed loses a twentieth of what guessing costs.
const PAUSE: u32 = 4096;

/// Missed experts remembered as candidates; older ones are rarely worth a slot any more.
const MISSED: usize = 64;

/// The smallest part of a record that is copied by itself: below it, beginning a copy costs more than it brings.
const LEAST_PART: f64 = 1.0 / 16.0;

/// When the link is idle, and what an expert costs that was not prefetched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Seconds until the link has done what it was asked for.
    pub link_free_in: f64,
    /// Seconds until the next layer's misses are known, and the link may be wanted for them.
    pub needed_in: f64,
    /// Seconds of the link for one expert.
    pub copy: f64,
    /// Whether the link is wanted then, by misses that only it brings or by weights that are streamed: lateness delays
    /// them.
    pub link_wanted: bool,
    /// Seconds of the CPU for one expert; `None` if it computes none.
    pub cpu: Option<f64>,
    /// Seconds that the CPU needs for all of the next layer's misses, as far as is known.
    pub cpu_busy: f64,
}

/// Where prefetched experts go.
pub trait Destination {
    /// Whether the expert is neither there nor on its way.
    fn absent(&self, id: ExpertId) -> bool;

    /// Begins its copy, of the first `share` of the record (above 0, 1 for all of it): where that is not all, the rest is
    /// copied when the routing says that it is used, or the part is given up. False if nothing worth less than it can make
    /// room, or the copy can't be begun now. `right` is how probably the next layer uses it: a right guess is worth as much as an
    /// expert that was just used. Experts missed before come with 0: they are worth what the policy says.
    fn start(&mut self, id: ExpertId, right: f64, share: f64) -> bool;
}

/// What a guess is worth that is `right` so probably, whose expert the policy holds to be worth `known`, where one that was just
/// used is worth `just_used`.
///
/// Of a part, the slot is a loan: where only the link brings what is missing, the next layer's misses take the same slot
/// if the guess is wrong. So it may take the place of whatever is worth less than what was just used.
pub fn worth_of_guess(known: f64, just_used: f64, right: f64, part: bool) -> f64 {
    let right = if part { 1.0 } else { right };
    known + right * (just_used - known).max(0.0)
}

/// What became of the prefetched experts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct PrefetchStats {
    /// Copies begun on a guess.
    pub issued: u64,
    /// Of these, used by the layer they were for.
    pub used: u64,
    /// Of these, not used by it.
    pub wasted: u64,
    /// Experts that layers needed and that were not there when they were routed, or only by prefetching.
    pub needed: u64,
    /// Copies begun of experts that were missed before.
    pub refilled: u64,
}

impl PrefetchStats {
    /// What was counted since `before`.
    pub fn since(&self, before: PrefetchStats) -> PrefetchStats {
        PrefetchStats {
            issued: self.issued - before.issued,
            used: self.used - before.used,
            wasted: self.wasted - before.wasted,
            needed: self.needed - before.needed,
            refilled: self.refilled - before.refilled,
        }
    }

    /// Share of the settled guesses that were right; `None` before the first.
    pub fn precision(&self) -> Option<f64> {
        let settled = self.used + self.wasted;
        (settled > 0).then(|| self.used as f64 / settled as f64)
    }

    /// Share of the absent experts that prefetching brought; `None` before the first.
    pub fn recall(&self) -> Option<f64> {
        (self.needed > 0).then(|| self.used as f64 / self.needed as f64)
    }
}

/// A guess that awaits its layer.
#[derive(Debug, Clone, Copy)]
struct Pending {
    id: ExpertId,
    rank: usize,
    /// Seconds of the link that its copy was begun for; 0 if it was not.
    seconds: f64,
}

/// Decides what to copy ahead of need.
#[derive(Debug, Clone)]
pub struct Prefetcher {
    /// Share of absent guesses that were right, by rank.
    precision: [f64; RANKS],
    pending: Vec<Pending>,
    /// The window the pending guesses were made in.
    window: Option<Window>,
    missed: VecDeque<ExpertId>,
    /// Seconds saved less seconds lost by the current window's prefetches.
    balance: f64,
    settled: u32,
    /// Layers for which it stays off.
    pause: u32,
    stats: PrefetchStats,
}

impl Default for Prefetcher {
    fn default() -> Prefetcher {
        // To begin with, what others have measured: the first guess is right in 92 of 100 cases, and the first sixteen
        // hold some 70 % of the eight experts, if precision falls by the same factor from rank to rank.
        let precision = std::array::from_fn(|rank| 0.92 * 0.84f64.powi(rank as i32));
        Prefetcher {
            precision,
            pending: Vec::new(),
            window: None,
            missed: VecDeque::with_capacity(MISSED),
            balance: 0.0,
            settled: 0,
            pause: 0,
            stats: PrefetchStats::default(),
        }
    }
}

impl Prefetcher {
    /// A prefetcher that has seen nothing yet.
    pub fn new() -> Prefetcher {
        Prefetcher::default()
    }

    /// Whether guesses are wanted for the next layer: whoever makes them can save the work. Call once a layer.
    pub fn wants_guesses(&mut self) -> bool {
        self.pause = self.pause.saturating_sub(1);
        self.pause == 0
    }

    /// Whether it has stopped guessing because that did not pay.
    pub fn is_off(&self) -> bool {
        self.pause > 0
    }

    /// Counts since the beginning.
    pub fn stats(&self) -> PrefetchStats {
        self.stats
    }

    /// The share of guesses of `rank` (0 is the first) that were right, of those not on the GPU.
    pub fn confidence(&self, rank: usize) -> f64 {
        self.precision[rank.min(RANKS - 1)]
    }

    /// The CPU computed an expert because it was not on the GPU: idle link time may bring it.
    pub fn missed(&mut self, id: ExpertId) {
        self.missed.retain(|&m| m != id);
        if self.missed.len() == MISSED {
            self.missed.pop_back();
        }
        self.missed.push_front(id);
    }

    /// Begins copies as long as the link has idle time for them: guesses of the next layer, the most probable
    /// first, then recently missed experts. `guesses` is empty where none were made.
    pub fn issue(&mut self, guesses: &[ExpertId], window: Window, to: &mut dyn Destination) {
        self.pending.clear();
        self.window = Some(window);
        let mut free = window.link_free_in;
        for (rank, &id) in guesses.iter().enumerate() {
            if !to.absent(id) {
                continue;
            }
            let seconds = window.room(free);
            let right = self.confidence(rank);
            let begun = seconds > 0.0
                && window.pays(right, free + seconds, seconds)
                && to.start(id, right, seconds / window.copy);
            let seconds = if begun { seconds } else { 0.0 };
            free += seconds;
            self.stats.issued += u64::from(begun);
            self.pending.push(Pending { id, rank, seconds });
        }
        // What the link itself is needed for is copied anyway.
        if !window.by_cpu() {
            return;
        }
        let mut at = 0;
        let last = window.needed_in - if window.link_wanted { window.copy } else { 0.0 };
        while free < last && at < self.missed.len() {
            let id = self.missed[at];
            if !to.absent(id) {
                self.missed.remove(at);
            } else if to.start(id, 0.0, 1.0) {
                self.missed.remove(at);
                self.stats.refilled += 1;
                free += window.copy;
            } else {
                at += 1;
            }
        }
    }

    /// The layer that was guessed is routed: `used` are its experts, `absent` of which are neither on the GPU nor on
    /// their way. `late` gives the seconds after which what was copied of an expert arrives, 0 if it is there.
    pub fn settle(&mut self, used: &[ExpertId], absent: usize, late: &mut dyn FnMut(ExpertId) -> f64) {
        let Some(window) = self.window.take() else { return };
        self.stats.needed += absent as u64;
        for Pending { id, rank, seconds } in self.pending.drain(..) {
            let right = used.contains(&id);
            let precision = &mut self.precision[rank.min(RANKS - 1)];
            *precision += WEIGHT * (f64::from(u8::from(right)) - *precision);
            if seconds == 0.0 {
                continue;
            }
            self.settled += 1;
            if right {
                self.stats.used += 1;
                self.stats.needed += 1;
                self.balance += window.saved(late(id), seconds);
            } else {
                self.stats.wasted += 1;
                self.balance -= window.lost(late(id), seconds);
            }
        }
        if self.settled >= WINDOW {
            if self.balance <= 0.0 {
                self.pause = PAUSE;
            }
            self.settled = 0;
            self.balance = 0.0;
        }
    }
}

impl Window {
    /// Whether the CPU takes misses sooner than the link would bring them.
    fn by_cpu(&self) -> bool {
        self.cpu.is_some_and(|cpu| cpu < self.copy)
    }

    /// Seconds of a copy that may begin when the link is free after `free`; 0 if none may. Where only the link brings what is
    /// missing, no more than is idle: the rest waits for the routing.
    fn room(&self, free: f64) -> f64 {
        let idle = self.needed_in - free;
        match self.by_cpu() {
            true if idle > 0.0 => self.copy,
            false if idle >= LEAST_PART * self.copy => idle.min(self.copy),
            _ => 0.0,
        }
    }

    /// Whether a copy of so many `seconds`, done at `end`, saves more than it costs if it is `right` so probably.
    fn pays(&self, right: f64, end: f64, seconds: f64) -> bool {
        let late = (end - self.needed_in).max(0.0);
        right * self.saved(late, seconds) > (1.0 - right) * self.lost(late, seconds)
    }

    /// Seconds saved by a copy of `seconds` of an expert which is used, done `late` after it is asked for.
    fn saved(&self, late: f64, seconds: f64) -> f64 {
        match self.cpu {
            Some(cpu) if cpu < self.copy => {
                // As long as the CPU is at the others, the copy may take its time.
                if late <= self.cpu_busy { cpu } else { 0.0 }
            }
            _ => (seconds - late).max(0.0),
        }
    }

    /// Seconds that such a copy keeps the link from others if the expert is not used.
    fn lost(&self, late: f64, seconds: f64) -> f64 {
        if self.link_wanted { late.min(seconds) } else { 0.0 }
    }
}

#[cfg(test)]
mod tests;
