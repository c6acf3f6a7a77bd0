//! When copies and computing were begun and seen to be over.
//!
//! The device has no clock that the host could read, so both are followed by fences: in order, on the host's clock.

use std::collections::VecDeque;
use std::time::Instant;

use crate::telemetry::{Row, Tracer, What};

/// One row of a device's work, which it does in order.
pub(super) struct Meter<F> {
    tracer: Tracer,
    row: Row,
    under_way: VecDeque<Begun<F>>,
    /// When the last one was seen to be over.
    over: Option<Instant>,
    /// Seconds in which any was under way, as seen.
    pub(super) seconds: f64,
    /// How many were issued, and how many of them are over.
    pub(super) issued: u64,
    pub(super) seen: u64,
}

struct Begun<F> {
    what: What,
    bytes: u64,
    at: Instant,
    fence: F,
    timed: bool,
}

impl<F> Meter<F> {
    pub(super) fn new(tracer: Tracer, row: Row) -> Meter<F> {
        Meter { tracer, row, under_way: VecDeque::new(), over: None, seconds: 0.0, issued: 0, seen: 0 }
    }

    /// Work was issued, `fence` behind it. `timed` comes back when it ends.
    pub(super) fn begun(&mut self, what: What, bytes: u64, fence: F, timed: bool) {
        self.issued += 1;
        self.under_way.push_back(Begun { what, bytes, at: Instant::now(), fence, timed });
    }

    /// The fence of the last that was issued, if it has not been seen to be over.
    pub(super) fn newest(&self) -> Option<&F> {
        self.under_way.back().map(|begun| &begun.fence)
    }

    /// The fence of the oldest that has not been seen to be over.
    pub(super) fn oldest(&self) -> Option<&F> {
        self.under_way.front().map(|begun| &begun.fence)
    }

    /// How many have not been.
    pub(super) fn len(&self) -> usize {
        self.under_way.len()
    }

    /// The oldest is over: it has had the device to itself since it was issued or the one before was over. Returns its
    /// fence, its bytes and whether it was to be timed.
    pub(super) fn ended(&mut self) -> Option<(F, u64, bool)> {
        let begun = self.under_way.pop_front()?;
        self.seen += 1;
        let now = Instant::now();
        let from = self.over.map_or(begun.at, |over| over.max(begun.at));
        self.seconds += now.saturating_duration_since(from).as_secs_f64();
        self.over = Some(now);
        self.tracer.record(self.row, begun.what, from, now, begun.bytes);
        Some((begun.fence, begun.bytes, begun.timed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experts::ExpertId;

    #[test]
    fn spans_of_a_row_follow_each_other() {
        let tracer = Tracer::on();
        let mut meter = Meter::new(tracer.clone(), Row::Copies);
        let begun = Instant::now();
        for expert in 0..3 {
            meter.begun(What::Expert(ExpertId::new(1, expert)), 10, expert, expert == 1);
        }
        assert_eq!((meter.oldest(), meter.len()), (Some(&0), 3));
        let ended: Vec<_> = (0..4).map_while(|_| meter.ended()).collect();
        assert_eq!(ended, [(0, 10, false), (1, 10, true), (2, 10, false)]);
        assert_eq!((meter.oldest(), tracer.spans()), (None, 3));
        // All three were under way from the first issue on, and are counted once.
        assert!(meter.seconds > 0.0 && meter.seconds <= begun.elapsed().as_secs_f64());
    }
}
