//! Threads of the processor, and what they compute where records lie: experts.

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
    /// # Panics
    /// If a job names a row that is not there, or its output is not of the size of its results.
    pub fn host_experts(&self, x: &[f32], jobs: &mut [HostJob<'_>]) {
        self.install(|| {
            jobs.par_iter_mut().for_each(|HostJob { mlp, tokens, out }| {
                let cols = mlp.gate.layout().cols;
                let mut gathered = Vec::with_capacity(tokens.len() * cols);
                for &token in tokens.iter() {
                    gathered.extend_from_slice(&x[token as usize * cols..][..cols]);
                }
                gated(self.isa, &gathered, mlp, out);
            });
        });
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
