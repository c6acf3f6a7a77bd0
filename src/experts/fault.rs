//! Faults on purpose, for tests: a plan says which pass over which point goes wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where something can be made to go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Point {
    /// A record's read from the file tier fails.
    Read,
    /// A read ends before the record is whole.
    ShortRead,
    /// A read brings a wrong byte.
    Corrupt,
    /// The system refuses host memory.
    HostAlloc,
    /// A copy to the device fails.
    Copy,
    /// A copy to the device brings a wrong byte; only where checksums would tell.
    Garble,
    /// The device refuses memory.
    DeviceAlloc,
    /// The device reports an error.
    Device,
    /// A thread working for the store ends.
    Worker,
    /// A thread that computes an expert panics.
    Panic,
    /// A computation on the device gives a NaN.
    NonFinite,
}

impl Point {
    /// All of them.
    pub const ALL: [Point; 11] = [
        Point::Read,
        Point::ShortRead,
        Point::Corrupt,
        Point::HostAlloc,
        Point::Copy,
        Point::Garble,
        Point::DeviceAlloc,
        Point::Device,
        Point::Worker,
        Point::Panic,
        Point::NonFinite,
    ];
}

/// Which faults strike. [`Faults::none`], the default, costs one comparison a question. Copies share their counts.
#[derive(Debug, Clone, Default)]
pub struct Faults(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    plan: Plan,
    /// Questions asked so far, by point.
    asked: [AtomicU64; Point::ALL.len()],
    struck: AtomicU64,
}

#[derive(Debug)]
enum Plan {
    /// The questions `first .. first + count` about one point.
    Window { point: Point, first: u64, count: u64 },
    /// Each question about one of the points (a bit each) with a probability, which a seed decides.
    Random { seed: u64, rate: f64, points: u32 },
    /// By point, the questions that were [armed](Faults::arm).
    Armed([Armed; Point::ALL.len()]),
}

/// The questions `first .. first + count`.
#[derive(Debug, Default)]
struct Armed {
    first: AtomicU64,
    count: AtomicU64,
}

impl Faults {
    /// None ever.
    pub fn none() -> Faults {
        Faults(None)
    }

    /// Whether none was planned.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// One, when `point` is passed for the `nth` time, counted from 1.
    pub fn at(point: Point, nth: u64) -> Faults {
        Faults::span(point, nth, 1)
    }

    /// `count` in a row, from the `nth` time on.
    pub fn span(point: Point, nth: u64, count: u64) -> Faults {
        Faults::new(Plan::Window { point, first: nth.max(1) - 1, count })
    }

    /// At every point with probability `rate`. The seed decides which times a point is struck, whatever the threads.
    pub fn seeded(seed: u64, rate: f64) -> Faults {
        Faults::seeded_among(seed, rate, &Point::ALL)
    }

    /// [`Faults::seeded`], at these points only.
    pub fn seeded_among(seed: u64, rate: f64, points: &[Point]) -> Faults {
        let points = points.iter().fold(0, |bits, &point| bits | 1 << point as u32);
        Faults::new(Plan::Random { seed, rate, points })
    }

    /// None until [`Faults::arm`] says so.
    pub fn armed() -> Faults {
        Faults::new(Plan::Armed(Default::default()))
    }

    /// From now on, after `after` more times that go well, `point` goes wrong `count` times in a row. Replaces what was
    /// armed at the point before. Only for [`Faults::armed`].
    pub fn arm(&self, point: Point, after: u64, count: u64) {
        let Some(inner) = &self.0 else { return };
        let Plan::Armed(armed) = &inner.plan else { return };
        let armed = &armed[point as usize];
        armed.count.store(0, Ordering::Relaxed);
        let asked = inner.asked[point as usize].load(Ordering::Relaxed);
        armed.first.store(asked + after, Ordering::Relaxed);
        armed.count.store(count, Ordering::Relaxed);
    }

    fn new(plan: Plan) -> Faults {
        Faults(Some(Arc::new(Inner { plan, asked: Default::default(), struck: AtomicU64::new(0) })))
    }

    /// Whether this time `point` goes wrong.
    pub fn strikes(&self, point: Point) -> bool {
        let Some(inner) = &self.0 else { return false };
        let index = inner.asked[point as usize].fetch_add(1, Ordering::Relaxed);
        let within = |first: u64, count: u64| index >= first && index - first < count;
        let strikes = match inner.plan {
            Plan::Window { point: at, first, count } => at == point && within(first, count),
            Plan::Armed(ref armed) => {
                let armed = &armed[point as usize];
                within(armed.first.load(Ordering::Relaxed), armed.count.load(Ordering::Relaxed))
            }
            Plan::Random { points, .. } if points & 1 << point as u32 == 0 => false,
            Plan::Random { seed, rate, .. } => {
                let word = mix(seed ^ mix(point as u64 + 1) ^ mix(index));
                // The upper 53 bits are what an f64 holds exactly.
                ((word >> 11) as f64) < rate * (1u64 << 53) as f64
            }
        };
        if strikes {
            inner.struck.fetch_add(1, Ordering::Relaxed);
        }
        strikes
    }

    /// How many struck so far.
    pub fn struck(&self) -> u64 {
        self.0.as_ref().map_or(0, |inner| inner.struck.load(Ordering::Relaxed))
    }
}

/// The output function of SplitMix64.
fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_down_at_one_point_only() {
        let faults = Faults::span(Point::Copy, 3, 2);
        let shared = faults.clone();
        let struck: Vec<bool> = (0..6).map(|_| shared.strikes(Point::Copy)).collect();
        assert_eq!(struck, [false, false, true, true, false, false]);
        assert!((0..6).all(|_| !faults.strikes(Point::Read)));
        assert_eq!(faults.struck(), 2);
        assert!((0..9).all(|_| !Faults::none().strikes(Point::Copy)));
    }

    #[test]
    fn armed_faults_come_after_the_call_and_end() {
        let faults = Faults::armed();
        let next = |n: usize| -> Vec<bool> { (0..n).map(|_| faults.strikes(Point::Copy)).collect() };
        assert_eq!(next(2), [false; 2]);
        faults.arm(Point::Copy, 1, 2);
        assert!(!faults.strikes(Point::Read));
        assert_eq!(next(4), [false, true, true, false]);
        faults.arm(Point::Copy, 0, 9);
        assert_eq!(next(1), [true]);
        faults.arm(Point::Copy, 0, 0);
        assert_eq!(next(1), [false]);
        assert_eq!(faults.struck(), 3);
    }

    #[test]
    fn seeded_faults_come_at_their_rate_and_repeat() {
        let run = |seed| -> Vec<bool> {
            let faults = Faults::seeded(seed, 0.05);
            (0..20_000).map(|i| faults.strikes(Point::ALL[i % Point::ALL.len()])).collect()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let share = run(7).iter().filter(|&&s| s).count() as f64 / 20_000.0;
        assert!((0.04..0.06).contains(&share), "{share}");
        let among = Faults::seeded_among(7, 1.0, &[Point::Read]);
        assert!(among.strikes(Point::Read) && !among.strikes(Point::Copy));
        // Points are struck independently.
        let faults = Faults::seeded(7, 0.5);
        let both: Vec<[bool; 2]> =
            (0..64).map(|_| [Point::Read, Point::Copy].map(|p| faults.strikes(p))).collect();
        assert!(both.iter().any(|b| b[0] != b[1]) && both.iter().any(|b| b[0] == b[1]));
    }
}
