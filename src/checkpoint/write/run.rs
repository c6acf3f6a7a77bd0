//! One run over the units that are still to be made.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use blake3::Hash;
use rayon::Scope;

use super::journal::{Finished, Journal};
use super::layout::Layout;
use super::sync::{Message, Pace, Shards};
use super::{Produce, Sink};
use crate::checkpoint::{LoadOptions, LoadProgress};
use crate::error::{Error, Result};

/// What is to be done.
pub(super) struct Job<'a> {
    pub folder: &'a Path,
    pub layout: &'a Layout<'a>,
    pub producer: &'a dyn Produce,
    pub options: &'a LoadOptions,
    pub pace: Pace,
    pub journal: &'a mut Journal,
    /// The hashes of units that are finished, by unit.
    pub known: Vec<Option<Box<[Hash]>>>,
}

/// What all units share.
pub(super) struct Run<'a> {
    pub layout: &'a Layout<'a>,
    pub shards: Shards<'a>,
    producer: &'a dyn Produce,
    options: &'a LoadOptions,
    /// Units to make, in the order of the files.
    todo: Vec<usize>,
    next: AtomicUsize,
    begun: Instant,
    done: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
}

/// Makes what is not made yet; returns the hashes of all units' tensors.
pub(super) fn all(job: Job<'_>) -> Result<Vec<Box<[Hash]>>> {
    let Job { folder, layout, producer, options, pace, journal, known } = job;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads)
        .build()
        .map_err(|e| Error::argument("threads", format!("cannot be started: {e}")))?;
    let threads = pool.current_num_threads();
    let (made, todo): (Vec<usize>, Vec<usize>) =
        (0..layout.units.len()).partition(|&unit| known[unit].is_some());
    let run = Run {
        layout,
        shards: Shards::new(folder, layout, pace, threads),
        producer,
        options,
        todo,
        next: AtomicUsize::new(0),
        begun: Instant::now(),
        done: AtomicU64::new(made.iter().map(|&unit| layout.units[unit].bytes()).sum()),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    let known = std::thread::scope(|scope| {
        let (messages, received) = mpsc::channel();
        let run = &run;
        let syncing = scope.spawn(move || {
            let _ends = Ends(&run.stop);
            run.shards.keep(received, journal, known).map_err(|e| run.fail(e)).unwrap_or_default()
        });
        pool.scope(|scope| {
            // As many chains of units as threads, each link begun when the one before it is done: a thread that waits
            // inside a producer may take up a link of another chain, but never are more units in the making.
            for _ in 0..threads {
                scope.spawn(|scope| run.step(scope, &messages));
            }
        });
        drop(messages);
        syncing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    if let Some(error) = run.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    // Without a failure every unit was made or known.
    Ok(known.into_iter().flatten().collect())
}

/// Stops the writers when the syncing thread ends, were it by a panic: nobody would make room for them any more.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Run<'a> {
    fn step<'s>(&'s self, scope: &Scope<'s>, messages: &'s Sender<Message>) {
        let Some(&unit) = self.todo.get(self.next.fetch_add(1, Ordering::Relaxed)) else { return };
        match self.make(unit, messages) {
            Ok(finished) => {
                // If nobody listens any more, the run has failed and the next step ends it.
                let _ = messages.send(Message::Finished(finished));
                scope.spawn(|scope| self.step(scope, messages));
            }
            Err(e) => self.fail(e),
        }
    }

    fn make(&self, unit: usize, messages: &Sender<Message>) -> Result<Finished> {
        self.go_on()?;
        let sink = Sink::new(self, messages, unit)?;
        self.producer.produce(unit, &sink)?;
        Ok(Finished { unit, hashes: sink.finish()? })
    }

    /// Keeps the first error: those after it are often its consequences.
    fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Nothing if the work goes on, [`Error::Cancelled`] if it ends, for whatever reason.
    pub(super) fn go_on(&self) -> Result<()> {
        let cancelled = self.options.cancel.as_ref().is_some_and(|c| c.load(Ordering::Relaxed));
        match cancelled || self.stop.load(Ordering::Relaxed) {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    /// Counts bytes that were put.
    pub(super) fn report(&self, len: u64) {
        let bytes_done = self.done.fetch_add(len, Ordering::Relaxed) + len;
        if let Some(progress) = &self.options.progress {
            let seconds = self.begun.elapsed().as_secs_f64();
            progress(LoadProgress { bytes_done, bytes_total: self.layout.bytes, seconds });
        }
    }
}
