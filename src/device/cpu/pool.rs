//! Threads that divide numbered tasks among themselves, woken in a microsecond.
//!
//! A decode step has several hundred short parallel parts. Between two of them the threads spin for a moment, since the next is
//! near; when it does not come they park. The caller works too, so `n` threads are `n − 1` of the pool's own, each bound to a
//! core of its own where the system allows it, none to the second thread of a core.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::cores;
use crate::error::{Error, Result};

/// How long a thread looks out for work before it parks: longer than the serial parts between two parallel ones, shorter than
/// anybody would notice.
const SPIN: Duration = Duration::from_micros(50);

/// See the module.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    /// One parallel part at a time.
    turn: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Counts parallel parts.
    round: AtomicUsize,
    /// Bit 0: the part may be joined. Above it: own threads that have joined and not left. A thread that is late, since it
    /// was parked or has lost its core, finds the part closed and nobody has waited for it.
    gate: AtomicUsize,
    job: Mutex<Job>,
    wake: Condvar,
    parked: AtomicUsize,
    /// The next task that nobody has taken.
    next: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Of [`Shared::gate`].
const OPEN: usize = 1;
const JOINED: usize = 2;

/// What a round does: a pointer to the caller's closure, good until the round ends.
#[derive(Debug, Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

// SAFETY: the closure is `Sync`, and `Pool::run` keeps it alive until every thread that joined has left.
unsafe impl Send for Job {}

thread_local! {
    /// Whether this thread is inside a parallel part: it runs parts within it alone.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// `threads` threads with the caller's; 0 takes one a core.
    ///
    /// # Errors
    /// [`Error::Argument`] if the threads cannot be started.
    pub(super) fn new(threads: usize) -> Result<Pool> {
        let cores = cores::usable();
        let threads = if threads == 0 { cores.len().max(1) } else { threads };
        let idle: &(dyn Fn(usize) + Sync) = &|_| {};
        let shared = Arc::new(Shared {
            round: AtomicUsize::new(0),
            gate: AtomicUsize::new(0),
            job: Mutex::new(Job { run: idle, tasks: 0 }),
            wake: Condvar::new(),
            parked: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, turn: Mutex::new(()), threads: Vec::new() };
        for i in 1..threads {
            let shared = pool.shared.clone();
            // With more threads than cores the scheduler knows better.
            let core = if threads <= cores.len() { Some(cores[i]) } else { None };
            let thread = std::thread::Builder::new().name(format!("abruzzi-{i}")).spawn(move || {
                if let Some(core) = core {
                    cores::bind(core);
                }
                shared.work();
            });
            pool.threads.push(thread.map_err(|e| {
                Error::argument("threads", format!("is {threads}, of which {i} could be started: {e}"))
            })?);
        }
        Ok(pool)
    }

    /// Threads, the caller's included.
    pub(super) fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `run` with 0 .. `tasks`, each once, in any order on any thread, and waits for all.
    ///
    /// # Panics
    /// With the first panic of a task, when all others are done.
    pub(super) fn run(&self, tasks: usize, run: &(dyn Fn(usize) + Sync)) {
        if self.threads.is_empty() || tasks <= 1 || INSIDE.get() {
            return (0..tasks).for_each(run);
        }
        let turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is used by threads that have joined alone, and this function returns
        // when they have left and no other can join.
        let lasting: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute(run as *const (dyn Fn(usize) + Sync)) };
        *lock(&shared.job) = Job { run: lasting, tasks };
        // Published by the gate.
        shared.next.store(0, Ordering::Relaxed);
        shared.gate.store(OPEN, Ordering::SeqCst);
        shared.round.fetch_add(1, Ordering::SeqCst);
        if shared.parked.load(Ordering::SeqCst) > 0 {
            let _held = lock(&shared.job);
            shared.wake.notify_all();
        }
        shared.take_tasks(run, tasks);
        shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let begun = Instant::now();
        while shared.gate.load(Ordering::Acquire) > 0 {
            // The rest of somebody's task: short, unless that thread does not get its core.
            if begun.elapsed() < SPIN { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let panic = lock(&shared.panic).take();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.round.fetch_add(1, Ordering::SeqCst);
        drop(lock(&self.shared.job));
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // Tasks' panics are caught, so there is none to pass on.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut seen = 0;
        loop {
            seen = self.next_round(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if !self.join() {
                continue;
            }
            // The part that was joined is the latest, and no other begins before this thread leaves.
            seen = self.round.load(Ordering::SeqCst);
            let Job { run, tasks } = *lock(&self.job);
            // SAFETY: `Pool::run` keeps the closure until all that joined have left.
            self.take_tasks(unsafe { &*run }, tasks);
            self.gate.fetch_sub(JOINED, Ordering::Release);
        }
    }

    /// Joins the part that is running; false if there is none any more.
    fn join(&self) -> bool {
        let open = |gate| (gate & OPEN != 0).then_some(gate + JOINED);
        self.gate.fetch_update(Ordering::AcqRel, Ordering::Acquire, open).is_ok()
    }

    /// Waits for a round after `seen`.
    fn next_round(&self, seen: usize) -> usize {
        let begun = Instant::now();
        loop {
            for _ in 0..64 {
                let round = self.round.load(Ordering::SeqCst);
                if round != seen {
                    return round;
                }
                std::hint::spin_loop();
            }
            if begun.elapsed() >= SPIN {
                break;
            }
        }
        let mut job = lock(&self.job);
        self.parked.fetch_add(1, Ordering::SeqCst);
        // Whoever begins a round changes `round` first and looks at `parked` then; so one of the two sees the other.
        while self.round.load(Ordering::SeqCst) == seen {
            job = self.wake.wait(job).unwrap_or_else(PoisonError::into_inner);
        }
        self.parked.fetch_sub(1, Ordering::SeqCst);
        self.round.load(Ordering::SeqCst)
    }

    fn take_tasks(&self, run: &(dyn Fn(usize) + Sync), tasks: usize) {
        INSIDE.set(true);
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            // What a panic leaves half done is the caller's, who is told.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(task))) {
                lock(&self.panic).get_or_insert(panic);
            }
        }
        INSIDE.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_once_whatever_the_threads() {
        for threads in [1, 2, 3, 9] {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for tasks in [0, 1, 2, 7, 1000] {
                for round in 0..20 {
                    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(tasks, &|task| {
                        counts[task].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(
                        counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                        "{threads} {tasks} {round}"
                    );
                }
            }
        }
    }

    #[test]
    fn parked_threads_come_back() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..20 {
            let sum = AtomicUsize::new(0);
            pool.run(100, &|task| {
                sum.fetch_add(task, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_works_on() {
        let pool = Pool::new(2).unwrap();
        let done = AtomicUsize::new(0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(10, &|task| {
                assert_ne!(task, 3, "task three");
                done.fetch_add(1, Ordering::Relaxed);
            });
        }));
        assert!(outcome.is_err());
        assert_eq!(done.load(Ordering::Relaxed), 9);
        pool.run(4, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 13);
    }

    #[test]
    fn several_callers_and_parts_within_parts() {
        let pool = Pool::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        pool.run(5, &|_| {
                            pool.run(4, &|_| {
                                sum.fetch_add(1, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 50 * 20);
    }
}
