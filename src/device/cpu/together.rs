//! Experts with few tokens each, all at once: two parallel parts for a layer's experts, whatever their number.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use super::format::Lines;
use super::matmul::{Activations, Compute, Cut, Way};
use super::rows::Output;
use super::workers::{HostJob, JobPanic};
use crate::checkpoint::weights::GatedMlp;
use crate::quant::MatrixView;

/// A job under way.
struct Work<'a> {
    /// Its place among the caller's jobs.
    at: usize,
    mlp: GatedMlp<MatrixView<'a>>,
    way: Way,
    gate: Activations<'a>,
    up: Activations<'a>,
    /// [tokens, width].
    between: Output,
}

thread_local! {
    /// A calling thread's memory for jobs, one after another, reused from layer to layer.
    static MEMORY: RefCell<Vec<Memory>> = RefCell::default();
}

/// Jobs whose memory is kept: more than a token has. What a prompt's hundreds of experts take is freed.
const KEPT: usize = 32;

/// What lies in memory of a job while it is computed.
#[derive(Default)]
struct Memory {
    /// Activations, prepared for the first matrix and, if that is another format, the second.
    prepared: [Lines; 2],
    /// What is between the two halves, [tokens, width].
    between: Lines,
}

/// Computes the jobs, each with its place. The first that panicked, by place; the others are done all the same.
pub(super) fn run(
    compute: Compute<'_>,
    x: &[f32],
    jobs: &mut [(usize, &mut HostJob<'_>)],
) -> Option<JobPanic> {
    MEMORY.with_borrow_mut(|memory| {
        if memory.len() < jobs.len() {
            memory.resize_with(jobs.len(), Default::default);
        }
        let panicked = run_in(memory, compute, x, jobs);
        memory.truncate(KEPT);
        memory.shrink_to(KEPT);
        panicked
    })
}

fn run_in(
    memory: &mut [Memory],
    compute: Compute<'_>,
    x: &[f32],
    jobs: &mut [(usize, &mut HostJob<'_>)],
) -> Option<JobPanic> {
    let panics = Panics::default();
    let mut works = Vec::with_capacity(jobs.len());
    for ((at, job), Memory { prepared: [first, second], between }) in jobs.iter().zip(memory.iter_mut()) {
        let (gate, up) = (job.mlp.gate.layout(), job.mlp.up.layout());
        panics.catch(*at, || {
            let (mlp, tokens) = (job.mlp.map(|view| *view), job.tokens.len());
            let (way, rows) = (compute.way(&[gate, up], tokens), Some(&*job.tokens));
            let of_gate = compute.activations(way, gate, x, rows, first);
            let of_up = if gate == up { of_gate } else { compute.activations(way, up, x, rows, second) };
            // What is left from before is written over.
            let between = Output::new(between.take(tokens * gate.rows), gate.rows);
            works.push(Work { at: *at, mlp, way, gate: of_gate, up: of_up, between });
        });
    }
    let threads = compute.pool.threads();
    let tasks = Tasks::new(works.iter().map(|w| Cut::new(&w.mlp.gate.layout(), w.way, threads)));
    compute.pool.run(tasks.count(), &|task| {
        let (work, cut, part) = tasks.of(task);
        let Work { at, mlp, gate, up, between, .. } = &works[work];
        panics.catch(*at, || {
            compute.multiply_gated((mlp.gate, *gate), (mlp.up, *up), cut.range(part), *between);
        });
    });
    drop(works);

    let mut works = Vec::with_capacity(jobs.len());
    for ((at, job), Memory { prepared: [first, _], between }) in jobs.iter_mut().zip(memory) {
        let down = job.mlp.down;
        panics.catch(*at, || {
            let tokens = job.tokens.len();
            assert_eq!(job.out.len(), tokens * down.layout().rows, "results of {tokens} tokens");
            let between = between.take(tokens * job.mlp.gate.layout().rows);
            let way = compute.way(&[down.layout()], tokens);
            let x = compute.activations(way, down.layout(), between, None, first);
            works.push((
                *at,
                Cut::new(&down.layout(), way, threads),
                (down, x),
                Output::new(job.out, down.layout().rows),
            ));
        });
    }
    let tasks = Tasks::new(works.iter().map(|(_, cut, ..)| *cut));
    compute.pool.run(tasks.count(), &|task| {
        let (work, cut, part) = tasks.of(task);
        let (at, _, down, out) = works[work];
        panics.catch(at, || compute.multiply(down, cut.range(part), out));
    });
    panics.first()
}

/// The tasks of several matrices under one numbering.
struct Tasks {
    cuts: Vec<Cut>,
    /// The first task of each matrix, and one past the last.
    first: Vec<usize>,
}

impl Tasks {
    fn new(cuts: impl Iterator<Item = Cut>) -> Tasks {
        let cuts: Vec<Cut> = cuts.collect();
        let mut first = vec![0];
        let mut sum = 0;
        for cut in &cuts {
            sum += cut.tasks();
            first.push(sum);
        }
        Tasks { cuts, first }
    }

    fn count(&self) -> usize {
        self.first[self.cuts.len()]
    }

    /// The matrix of a task, its cut, and which of its tasks it is.
    fn of(&self, task: usize) -> (usize, Cut, usize) {
        let work = self.first.partition_point(|&first| first <= task) - 1;
        (work, self.cuts[work], task - self.first[work])
    }
}

/// The panics of jobs.
#[derive(Default)]
struct Panics(Mutex<Option<JobPanic>>);

impl Panics {
    /// Runs a part of a job. What a panic leaves half done is the job's output, which nobody looks at then.
    fn catch(&self, job: usize, work: impl FnOnce()) {
        let Err(panic) = catch_unwind(AssertUnwindSafe(work)) else { return };
        let panic: Box<dyn Any + Send> = panic;
        let panic = JobPanic::new(job, &*panic);
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|first| panic.job < first.job) {
            *first = Some(panic);
        }
    }

    fn first(self) -> Option<JobPanic> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
