//! Threads of the processor, and what they compute where records lie: experts.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Isa;
use super::matmul::{Compute, FEW};
use super::pool::Pool;
use super::together;
use crate::checkpoint::weights::GatedMlp;
use crate::error::Result;
use crate::quant::MatrixView;

/// Threads of one pool, and the instruction set they use.
#[derive(Debug)]
pub struct Workers {
    pool: Pool,
    isa: Isa,
}

/// An expert and the rows it is to be applied to.
pub struct HostJob<'a> {
    /// Its matrices.
    pub mlp: GatedMlp<MatrixView<'a>>,
    /// Rows of x, in order.
    pub tokens: Vec<u32>,
    /// Their results, [tokens, hidden].
    pub out: &'a mut [f32],
}

/// A job whose thread panicked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobPanic {
    /// Its place among the jobs.
    pub job: usize,
    /// What the panic said.
    pub message: String,
}

impl JobPanic {
    pub(super) fn new(job: usize, panic: &(dyn Any + Send)) -> JobPanic {
        let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
        let message = text.or_else(|| panic.downcast_ref::<String>().cloned());
        JobPanic { job, message: message.unwrap_or_else(|| "it gave no reason".to_owned()) }
    }
}

impl Workers {
    /// `threads` threads, the caller's among them; 0 takes one a core.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) if the threads cannot be started, or if the environment asks for
    /// instructions that this processor does not have ([`Isa::chosen`]).
    pub fn new(threads: usize) -> Result<Workers> {
        Ok(Workers { isa: Isa::chosen()?, pool: Pool::new(threads)? })
    }

    /// Threads, the caller's among them.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instruction set they use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub(super) fn compute(&self) -> Compute<'_> {
        Compute { pool: &self.pool, isa: self.isa }
    }

    /// out = down·(silu(gate·x) ⊙ (up·x)) of every job, in f32; `x` is whole rows. Waits until all are done. Results do not
    /// depend on the number of threads or on the other jobs.
    ///
    /// # Errors
    /// The first job that panicked, as one does that names a row that is not there or whose output is not of the size of its
    /// results. The other jobs are done all the same.
    pub fn host_experts(&self, x: &[f32], jobs: &mut [HostJob<'_>]) -> Result<(), JobPanic> {
        let mut first = None;
        let (mut few, many): (Vec<_>, Vec<_>) =
            jobs.iter_mut().enumerate().partition(|(_, job)| job.tokens.len() <= FEW);
        for (i, HostJob { mlp, tokens, out }) in many {
            // What a panic can leave half done is the job's output, which nobody looks at then.
            let work = AssertUnwindSafe(|| self.compute().gated(mlp, x, Some(tokens), out));
            if let Err(panic) = catch_unwind(work) {
                first.get_or_insert(JobPanic::new(i, &*panic));
            }
        }
        let panicked = together::run(self.compute(), x, &mut few);
        let first = [first, panicked].into_iter().flatten().min_by_key(|panic| panic.job);
        first.map_or(Ok(()), Err)
    }
}
