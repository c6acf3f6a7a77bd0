//! The residency protocol with real threads: sessions that read, loaders that fill and fail, and one that takes slots away
//! and scribbles over them. Whoever holds a lease reads what its expert is made of, and in the end no slot is missing.
//! `tests/slots_loom.rs` tries every interleaving of a few steps; here are many steps.
//!
//! `ABRUZZI_STRESS_STEPS` sets the number of steps, `ABRUZZI_STRESS_SEED` what the threads choose.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use abruzzi::experts::ExpertId;
use abruzzi::experts::cache::{Cache, Reserved};
use abruzzi::experts::policy::CachePolicy;
use abruzzi::experts::slots::{Lease, SlotRef, State};
use rand_core::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

const LAYERS: usize = 4;
const EXPERTS: usize = 16;
const SLOTS: u32 = 24;
const WORDS: usize = 256;
const SESSIONS: u64 = 4;
const LOADERS: u64 = 2;
/// How long a thread waits before it looks again.
const MOMENT: Duration = Duration::from_micros(200);
/// One load in so many fails halfway.
const FAILURES: u64 = 16;

/// Slots' memory. The words are atomic so that a wrong read is a wrong value and not undefined; relaxed, so that only the
/// protocol orders them.
type Memory = Vec<[AtomicU64; WORDS]>;

struct Shared {
    cache: Mutex<Cache>,
    memory: Memory,
    /// A load is over.
    came: Condvar,
    /// Experts that sessions did not find, to the loaders.
    missing: Sender<ExpertId>,
    wanted: Mutex<Receiver<ExpertId>>,
    /// Steps begun by all sessions.
    begun: AtomicU64,
    steps: u64,
    /// Sessions at work.
    reading: AtomicU64,
    counts: Counts,
}

/// What a thread does, with a source of chance of its own.
type Work = fn(&Shared, &mut Pcg64Mcg);

#[derive(Debug, Default)]
struct Counts {
    records_read: AtomicU64,
    wrong: AtomicU64,
    absent: AtomicU64,
    loads: AtomicU64,
    failed: AtomicU64,
    evictions: AtomicU64,
    stale_refused: AtomicU64,
    lent: AtomicU64,
}

/// A session at work; also one that panics ends, or the loaders would wait for it.
struct Reading<'a>(&'a AtomicU64);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// What every word of an expert's record is.
fn content(id: ExpertId) -> u64 {
    u64::from(id.layer) << 32 | u64::from(id.expert) | 1 << 63
}

/// An expert; the smaller of two draws, so that some are wanted more often.
fn draw(random: &mut Pcg64Mcg) -> ExpertId {
    let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
    ExpertId::new(below(LAYERS), below(EXPERTS).min(below(EXPERTS)))
}

impl Shared {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap()
    }

    fn over(&self) -> bool {
        self.reading.load(Relaxed) == 0
    }

    fn write(&self, slot: u32, value: u64, words: usize) {
        self.memory[slot as usize][..words].iter().for_each(|word| word.store(value, Relaxed));
    }

    /// Reads four experts a step, each as soon as it is there, and tries an old reference.
    fn read(&self, random: &mut Pcg64Mcg) {
        let _reading = Reading(&self.reading);
        let table = self.cache().table().clone();
        let mut kept: Option<(ExpertId, SlotRef)> = None;
        while self.begun.fetch_add(1, Relaxed) < self.steps {
            for _ in 0..4 {
                let id = draw(random);
                self.cache().touch(id);
                let lease = self.wait_for(id);
                self.compare(id, lease.at());
                kept = kept.or(Some((id, lease.at())));
            }
            // Not through the cache: whoever has a reference asks the slot itself.
            if let Some((id, at)) = kept {
                match table.lease(at) {
                    Some(lease) => self.compare(id, lease.at()),
                    None => {
                        count(&self.counts.stale_refused);
                        kept = None;
                    }
                }
            }
        }
    }

    /// A lease on an expert, sooner or later: another session may be quicker, or its slot be taken away again.
    fn wait_for(&self, id: ExpertId) -> Lease {
        let mut cache = self.cache();
        loop {
            if let Some(lease) = cache.lease(id) {
                return lease;
            }
            count(&self.counts.absent);
            self.missing.send(id).unwrap();
            cache = self.came.wait_timeout(cache, MOMENT).unwrap().0;
        }
    }

    /// Reads a record, not so fast that nobody could come between.
    fn compare(&self, id: ExpertId, at: SlotRef) {
        count(&self.counts.records_read);
        let (first, second) = self.memory[at.slot as usize].split_at(WORDS / 2);
        let right = |words: &[AtomicU64]| words.iter().all(|word| word.load(Relaxed) == content(id));
        let first = right(first);
        std::thread::yield_now();
        if !(first && right(second)) {
            count(&self.counts.wrong);
        }
    }

    /// Fills slots with what was not found; some loads fail when they are half done.
    fn load(&self, random: &mut Pcg64Mcg) {
        while !self.over() {
            let wanted = self.wanted.lock().unwrap().recv_timeout(MOMENT);
            // Even where nothing is missing, something comes and goes.
            let id = wanted.unwrap_or_else(|_| draw(random));
            let reserved = self.cache().reserve_least(id);
            let Reserved::Slot { at, evicted } = reserved else { continue };
            count(&self.counts.loads);
            if evicted.is_some() {
                count(&self.counts.evictions);
            }
            let fails = random.next_u64().is_multiple_of(FAILURES);
            self.write(at.slot, content(id), if fails { WORDS / 2 } else { WORDS });
            if fails {
                count(&self.counts.failed);
                self.cache().failed(id).unwrap();
            } else {
                assert_eq!(self.cache().ready(id), Ok(at));
            }
            self.came.notify_all();
        }
    }

    /// Takes slots, all of them at times, writes other things into them and gives them back; after every sixteenth step or so.
    fn resize(&self, random: &mut Pcg64Mcg) {
        let mut next = 0;
        while !self.over() {
            if self.begun.load(Relaxed) < next {
                std::thread::sleep(MOMENT);
                continue;
            }
            next = self.begun.load(Relaxed) + 16;
            let wanted = random.next_u64() as u32 % (SLOTS + 1);
            let slots = self.cache().shrink(wanted);
            assert!(slots.len() <= wanted as usize);
            self.counts.lent.fetch_add(slots.len() as u64, Relaxed);
            for &slot in &slots {
                self.write(slot, !0, WORDS);
            }
            self.cache().grow(slots).unwrap();
        }
    }
}

#[test]
fn threads_read_load_and_resize() {
    let variable = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |n| n.parse().unwrap_or_else(|e| panic!("{name}={n}: {e}")))
    };
    let (steps, seed) = (variable("ABRUZZI_STRESS_STEPS", 10_000), variable("ABRUZZI_STRESS_SEED", 1));
    let policy = CachePolicy::default().build(SLOTS as usize, LAYERS, EXPERTS, 4);
    let (missing, wanted) = channel();
    let shared = Shared {
        cache: Mutex::new(Cache::new(SLOTS, policy)),
        memory: (0..SLOTS).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect(),
        came: Condvar::new(),
        missing,
        wanted: Mutex::new(wanted),
        begun: AtomicU64::new(0),
        steps,
        reading: AtomicU64::new(SESSIONS),
        counts: Counts::default(),
    };
    std::thread::scope(|scope| {
        let shared = &shared;
        let work: [(Work, u64); 3] = [(Shared::read, SESSIONS), (Shared::load, LOADERS), (Shared::resize, 1)];
        let threads = work.iter().flat_map(|&(work, threads)| (0..threads).map(move |_| work));
        for (thread, work) in threads.enumerate() {
            let mut random = Pcg64Mcg::seed_from_u64(seed << 8 | thread as u64);
            scope.spawn(move || work(shared, &mut random));
        }
    });
    let counts = &shared.counts;
    eprintln!("{steps} steps: {counts:?}");
    assert_eq!(counts.wrong.load(Relaxed), 0);
    for happened in
        [&counts.records_read, &counts.failed, &counts.evictions, &counts.stale_refused, &counts.lent]
    {
        assert!(happened.load(Relaxed) > 0, "{counts:?}");
    }

    let mut cache = shared.cache.lock().unwrap();
    for slot in 0..SLOTS {
        let status = cache.table().status(slot).unwrap();
        assert!(
            matches!(status.state, State::Ready | State::Empty) && status.leases == 0,
            "{slot}: {status:?}"
        );
    }
    assert_eq!(cache.shrink(SLOTS).len(), SLOTS as usize, "no slot is missing");
    assert_eq!((cache.resident(), cache.slots()), (0, 0));
}
