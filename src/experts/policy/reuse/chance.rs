//! How likely an expert is used, by its past.

/// Passes over which its frequency is averaged: a passage, and a subject.
const SPANS: [f32; 2] = [16.0, 256.0];
/// −log2(1 − 1/span), what a frequency's logarithm loses in a pass.
const DECAYS: [f32; 2] = [0.093_109_4, 0.005_646_56];

/// Kinds of past: ages of 1, 2, 3, 4 passes, then by powers of two; frequencies by steps of their logarithm.
const AGES: usize = 11;
const FREQUENCIES: usize = 18;
/// The logarithms below which the lowest kind of each frequency ends, and how far apart the next are.
const LOWEST: [f32; 2] = [-3.25, -1.0];
const STEP: f32 = 0.5;

/// An expert in so many is learnt from in a pass.
const SAMPLE: u32 = 2;
/// What was seen counts half after so many passes.
const MEMORY: u32 = 1024;
/// How many sightings the belief to begin with is worth.
const BELIEF: f32 = 128.0;

/// The past of an expert.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct History {
    /// The pass of the last use, 0 before the first.
    last: u32,
    /// For each span, log2 of Σ (1 − 1/span)^(last − t) over the passes t in which it was used.
    frequencies: [f32; 2],
}

impl History {
    pub fn used_in(self, pass: u32) -> bool {
        self.last == pass && pass > 0
    }

    /// With a use in pass `now`, later than all before.
    pub fn used(self, now: u32) -> History {
        let frequency = |span| match self.last {
            0 => 0.0,
            _ => (1.0 + self.frequency(span, now).exp2()).log2(),
        };
        History { last: now, frequencies: [frequency(0), frequency(1)] }
    }

    /// The frequency's logarithm as of pass `now`.
    fn frequency(self, span: usize, now: u32) -> f32 {
        self.frequencies[span] - (now - self.last) as f32 * DECAYS[span]
    }

    /// Its kind in pass `now`; none if it was never used before.
    fn kind(self, now: u32) -> Option<usize> {
        let age = now.checked_sub(self.last).filter(|&age| age > 0 && self.last > 0)?;
        let age = if age <= 4 { age as usize - 1 } else { (age.ilog2() as usize + 2).min(AGES - 1) };
        let frequency = |span: usize| {
            let step = (self.frequency(span, now) - LOWEST[span]) / STEP;
            (step.max(0.0) as usize).min(FREQUENCIES - 1)
        };
        Some((age * FREQUENCIES + frequency(0)) * FREQUENCIES + frequency(1))
    }
}

/// Learnt chances, by kind of past.
#[derive(Debug)]
pub(super) struct Chances {
    kinds: Vec<Kind>,
    halved: u32,
}

#[derive(Debug, Clone, Copy)]
struct Kind {
    seen: f32,
    came: f32,
}

impl Default for Chances {
    /// To begin with, the chance is the mean of both frequencies.
    fn default() -> Chances {
        let rate =
            |span: usize, kind: usize| ((LOWEST[span] + kind as f32 * STEP).exp2() / SPANS[span]).min(1.0);
        let belief = |kind: usize| {
            let chance = (rate(0, kind / FREQUENCIES % FREQUENCIES) + rate(1, kind % FREQUENCIES)) / 2.0;
            Kind { seen: BELIEF, came: BELIEF * chance }
        };
        Chances { kinds: (0..AGES * FREQUENCIES * FREQUENCIES).map(belief).collect(), halved: 0 }
    }
}

impl Chances {
    /// Whether pass `now` learns from the expert.
    pub fn sampled(expert: u32, now: u32) -> bool {
        expert.wrapping_add(now).is_multiple_of(SAMPLE)
    }

    /// An expert with this past could be used in pass `now`.
    pub fn expect(&mut self, history: History, now: u32) {
        if now >= self.halved + MEMORY {
            self.halved = now;
            // What was seen never falls to nothing: a kind that no longer comes up keeps its chance.
            for kind in self.kinds.iter_mut().filter(|k| k.seen > 2.0 * BELIEF) {
                *kind = Kind { seen: kind.seen / 2.0, came: kind.came / 2.0 };
            }
        }
        if let Some(kind) = history.kind(now) {
            self.kinds[kind].seen += 1.0;
        }
    }

    /// It was.
    pub fn came(&mut self, history: History, now: u32) {
        if let Some(kind) = history.kind(now) {
            self.kinds[kind].came += 1.0;
        }
    }

    /// The chance that an expert with this past is used in pass `next`.
    pub fn of(&self, history: History, next: u32) -> f32 {
        let Some(kind) = history.kind(next) else { return 0.0 };
        let Kind { seen, came } = self.kinds[kind];
        // Within a kind, by frequency: too little to matter between kinds.
        came / seen + (history.frequency(0, next) + history.frequency(1, next)) * 1e-5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_are_the_sums_they_stand_for() {
        let uses = [3, 4, 9, 40];
        let history = uses.iter().fold(History::default(), |history, &now| history.used(now));
        for (span, &passes) in SPANS.iter().enumerate() {
            let kept = 1.0 - 1.0 / f64::from(passes);
            let sum: f64 = uses.iter().map(|&at| kept.powi(50 - at as i32)).sum();
            let found = f64::from(history.frequency(span, 50));
            assert!((found - sum.log2()).abs() < 1e-3, "{found} for {}", sum.log2());
        }
        assert!(history.used_in(40) && !history.used_in(41) && !History::default().used_in(0));
    }

    /// Of experts that come every third pass it is learnt that they come then, and not before.
    #[test]
    fn chances_are_learnt() {
        let mut chances = Chances::default();
        let mut history = History::default();
        for now in 1..2000 {
            // Sixteen of them: what was believed at first no longer counts.
            (0..16).for_each(|_| chances.expect(history, now));
            if now % 3 == 0 {
                (0..16).for_each(|_| chances.came(history, now));
                history = history.used(now);
            }
        }
        // Last used in pass 1998.
        let chance = |next| chances.of(history, next);
        assert!(chance(1999) < 0.05 && chance(2000) < 0.05, "{} {}", chance(1999), chance(2000));
        assert!(chance(2001) > 0.95, "{}", chance(2001));
        assert_eq!(chances.of(History::default(), 5), 0.0, "nothing is known of it");
    }
}
