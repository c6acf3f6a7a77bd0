//! Threads of the processor, and what they compute where records lie: experts.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rayon::prelude::*;

use super::Isa;
use super::matmul::matmul;
use crate::checkpoint::weights::GatedMlp;
use crate::error::{Error, Result};
use crate::quant::MatrixView;

/// Threads of one pool, and the instruction set they use.
#[derive(Debug)]
pub struct Workers {
    pool: rayon::ThreadPool,
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
    fn new(job: usize, panic: &(dyn Any + Send)) -> JobPanic {
        let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
        let message = text.or_else(|| panic.downcast_ref::<String>().cloned());
        JobPanic { job, message: message.unwrap_or_else(|| "it gave no reason".to_owned()) }
    }
}

impl Workers {
    /// `threads` threads; 0 takes one per available core.
    ///
    /// # Errors
    /// [`Error::Argument`] if the threads cannot be started.
    pub fn new(threads: usize) -> Result<Workers> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("abruzzi-{i}"))
            .build()
            .map_err(|e| Error::argument("threads", format!("cannot be started: {e}")))?;
        Ok(Workers { pool, isa: Isa::detect() })
    }

    /// Worker threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The instruction set they use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Runs `work` on one of them, and waits for it.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// out = down·(silu(gate·x) ⊙ (up·x)) of every job, in f32; `x` is whole rows. Waits until all are done. Results do not
    /// depend on the number of threads or on the other jobs.
    ///
    /// # Errors
    /// The first job that panicked, as one does that names a row that is not there or whose output is not of the size of its
    /// results. The other jobs are done all the same.
    pub fn host_experts(&self, x: &[f32], jobs: &mut [HostJob<'_>]) -> Result<(), JobPanic> {
        let run = |HostJob { mlp, tokens, out }: &mut HostJob<'_>| {
            let cols = mlp.gate.layout().cols;
            let mut gathered = Vec::with_capacity(tokens.len() * cols);
            for &token in tokens.iter() {
                gathered.extend_from_slice(&x[token as usize * cols..][..cols]);
            }
            gated(self.isa, &gathered, mlp, out);
        };
        let first = self.install(|| {
            let jobs = jobs.par_iter_mut().enumerate();
            let panics = jobs.filter_map(|(i, job)| {
                // What a panic can leave half done is the job's output, which nobody looks at then.
                let panic = catch_unwind(AssertUnwindSafe(|| run(job))).err()?;
                Some(JobPanic::new(i, &*panic))
            });
            panics.min_by_key(|panic| panic.job)
        });
        first.map_or(Ok(()), Err)
    }
}

/// down·(silu(gate·x) ⊙ (up·x)) of rows `x` into `out`.
pub(super) fn gated(isa: Isa, x: &[f32], mlp: &GatedMlp<MatrixView<'_>>, out: &mut [f32]) {
    let tokens = x.len() / mlp.gate.layout().cols;
    let width = mlp.gate.layout().rows;
    let mut gate = vec![0.0; tokens * width];
    let mut up = vec![0.0; tokens * width];
    matmul(isa, mlp.gate, x, &mut gate);
    matmul(isa, mlp.up, x, &mut up);
    for (g, u) in gate.iter_mut().zip(&up) {
        *g = *g / (1.0 + (-*g).exp()) * u;
    }
    matmul(isa, mlp.down, &gate, out);
}
