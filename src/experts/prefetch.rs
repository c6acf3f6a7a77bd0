//! Bringing experts before they are asked for, on idle link time only.
//!
//! While a layer computes, the next layer's router is asked what it would choose from this layer's hidden state. The
//! guesses are often right, the first more often than the eighth, and some of the experts are not on the GPU. A copy
//! begun now costs nothing while the link has nothing else to do; whatever of it reaches beyond that delays the copies that
//! are known to be needed. So a guess is taken if what it saves when right outweighs what it costs when wrong, by the share
//! of guesses of its rank that were right lately. A copy made in pieces can be given up between two of them once the
//! routing is known, so a wrong guess costs a piece at most. Where the CPU computes misses, nothing brings experts to the GPU
//! by itself: link time that guesses leave goes to experts that were missed a moment ago.
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

/// When the link is idle, and what an expert costs that was not prefetched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Seconds until the link has done what it was asked for.
    pub link_free_in: f64,
    /// Seconds until the next layer's misses are known, and the link may be wanted for them.
    pub needed_in: f64,
    /// Seconds of the link for one expert.
    pub copy: f64,
    /// Seconds of it between two moments at which a copy can be given up; `copy` if it is made in one piece.
    pub piece: f64,
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

    /// Begins its copy. False if nothing worth less than it can make room, or the copy can't be begun now. `right` is how
    /// probably the next layer uses it: a right guess is worth as much as an expert that was just used. Experts missed
    /// before come with 0: they are worth what the policy says.
    fn start(&mut self, id: ExpertId, right: f64) -> bool;
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
    issued: bool,
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
    in_vain: Vec<ExpertId>,
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
            in_vain: Vec::new(),
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
            let end = free + window.copy;
            let issued = free < window.needed_in
                && self.pays(rank, end, &window)
                && to.start(id, self.confidence(rank));
            if issued {
                free = end;
                self.stats.issued += 1;
            }
            self.pending.push(Pending { id, rank, issued });
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
            } else if to.start(id, 0.0) {
                self.missed.remove(at);
                self.stats.refilled += 1;
                free += window.copy;
            } else {
                at += 1;
            }
        }
    }

    /// The layer that was guessed is routed: `used` are its experts, `absent` of which are neither on the GPU nor on
    /// their way. `late` gives the seconds after which a prefetched expert arrives, 0 if it is there. Returns the
    /// experts that were copied in vain: where the link is wanted, their copies should be given up after the piece they are
    /// at.
    pub fn settle(
        &mut self,
        used: &[ExpertId],
        absent: usize,
        late: &mut dyn FnMut(ExpertId) -> f64,
    ) -> &[ExpertId] {
        self.in_vain.clear();
        let Some(window) = self.window.take() else { return &self.in_vain };
        self.stats.needed += absent as u64;
        for Pending { id, rank, issued } in std::mem::take(&mut self.pending) {
            let right = used.contains(&id);
            let precision = &mut self.precision[rank.min(RANKS - 1)];
            *precision += WEIGHT * (f64::from(u8::from(right)) - *precision);
            if !issued {
                continue;
            }
            let late = late(id);
            self.settled += 1;
            if right {
                self.stats.used += 1;
                self.stats.needed += 1;
                self.balance += window.saved(late);
            } else {
                self.stats.wasted += 1;
                self.balance -= window.lost(late);
                if window.link_wanted && late > 0.0 {
                    self.in_vain.push(id);
                }
            }
        }
        if self.settled >= WINDOW {
            if self.balance <= 0.0 {
                self.pause = PAUSE;
            }
            self.settled = 0;
            self.balance = 0.0;
        }
        &self.in_vain
    }

    fn pays(&self, rank: usize, end: f64, window: &Window) -> bool {
        let late = (end - window.needed_in).max(0.0);
        let right = self.confidence(rank);
        right * window.saved(late) > (1.0 - right) * window.lost(late)
    }
}

impl Window {
    /// Whether the CPU takes misses sooner than the link would bring them.
    fn by_cpu(&self) -> bool {
        self.cpu.is_some_and(|cpu| cpu < self.copy)
    }

    /// Seconds that an expert saves which is used and comes `late` after it is asked for.
    fn saved(&self, late: f64) -> f64 {
        match self.cpu {
            Some(cpu) if cpu < self.copy => {
                // As long as the CPU is at the others, the copy may take its time.
                if late <= self.cpu_busy { cpu } else { 0.0 }
            }
            _ => (self.copy - late).max(0.0),
        }
    }

    /// Seconds that an expert costs which is not used and keeps the link for so long after it is wanted, unless it is
    /// given up.
    fn lost(&self, late: f64) -> f64 {
        let done = self.copy - late;
        if !self.link_wanted || done <= 0.0 {
            return 0.0;
        }
        // To the end of the piece it is at.
        ((done / self.piece).ceil() * self.piece - done).min(late)
    }
}

#[cfg(test)]
mod tests;
