//! Making one expert of several: all in f32, one at a time, whatever the number of threads.

use std::sync::{Mutex, PoisonError};

use super::merge;
use super::produce::{Encoder, Into, Producer, ROWS, Rows, put_shape};
use crate::checkpoint::Source;
use crate::checkpoint::weights::GatedMlp;
use crate::error::{Error, Result};
use crate::quant::MatrixLayout;

/// Merges experts one after the other. Memory: the heaviest member, the sum so far and one other in f32 (Kimi-K2: 176 MB
/// each), and what aligning two takes.
pub(super) struct Merging {
    threads: usize,
    /// Who holds it merges. The threads that share the arithmetic are not the writer's: one of those, waiting for work it
    /// has shared, would take up another unit meanwhile, which may wait for this lock.
    pool: Mutex<Option<rayon::ThreadPool>>,
}

impl Merging {
    /// On so many threads, started when there is something to merge; 0 takes one per core.
    pub(super) fn new(threads: usize) -> Merging {
        Merging { threads, pool: Mutex::new(None) }
    }

    /// Merges `members`, the heaviest first, with their weights, and encodes what comes out; `into` says where gate, up
    /// and down go. Down is multiplied with `scale_by`.
    ///
    /// # Errors
    /// As reading the source and putting into a sink; [`Error::Argument`] if the threads cannot be started.
    pub(super) fn merge<'a>(
        &self,
        producer: &Producer<'_>,
        members: &[(&GatedMlp<Source>, f32)],
        layouts: &GatedMlp<MatrixLayout>,
        scale_by: f32,
        into: impl Fn(usize) -> Into<'a>,
    ) -> Result<()> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = match &mut *pool {
            Some(pool) => pool,
            none => none.insert(self.start()?),
        };
        let mut merged = weighted_average(producer, pool, members, &|| into(0).sink.go_on())?;
        if scale_by != 1.0 {
            merged.down.iter_mut().for_each(|v| *v *= scale_by);
        }
        let parts = merged.each().into_iter().zip(layouts.each()).zip(members[0].0.each());
        for (part, ((values, layout), heaviest)) in parts.enumerate() {
            let mut encoder = Encoder::new(*layout, into(part));
            for (block, values) in values.chunks(ROWS * layout.cols).enumerate() {
                let put = encoder.put(producer, block * ROWS, values, None);
                put.map_err(|refused| refused.in_source(producer.source, heaviest))?;
            }
            encoder.finish(producer)?;
            put_shape(layout, into(part))?;
        }
        Ok(())
    }

    fn start(&self) -> Result<rayon::ThreadPool> {
        rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .build()
            .map_err(|e| Error::argument("threads", format!("cannot be started: {e}")))
    }
}

/// The average of experts, the neurons of each in the order of those of the first that they are most like.
fn weighted_average(
    producer: &Producer<'_>,
    pool: &rayon::ThreadPool,
    members: &[(&GatedMlp<Source>, f32)],
    go_on: &dyn Fn() -> Result<()>,
) -> Result<GatedMlp<Vec<f32>>> {
    let first = members[0].0;
    let hidden = first.gate.layout.cols;
    let heaviest = decode(producer, first)?;
    let mut sum = heaviest.clone();
    for &(member, weight) in &members[1..] {
        go_on()?;
        let other = decode(producer, member)?;
        // From a thread that is no pool's: waiting for the result it takes up nothing else.
        let added = std::thread::scope(|scope| {
            let add = || pool.install(|| merge::add(&mut sum, &heaviest, &other, weight, hidden));
            scope.spawn(add).join()
        });
        added.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
    Ok(sum)
}

/// The three matrices of an expert, in f32.
fn decode(producer: &Producer<'_>, expert: &GatedMlp<Source>) -> Result<GatedMlp<Vec<f32>>> {
    expert.try_map(|source| {
        producer.source.check_recorded_shape(source)?;
        Rows::of(source).read_all(producer.source)
    })
}
