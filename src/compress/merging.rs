//! Making one expert of several: all in f32, one at a time, whatever the number of threads.

use std::sync::{Mutex, PoisonError};

use super::plan::Convert;
use super::produce::{Encoder, Into, Producer, Rows, put_shape};
use crate::checkpoint::Source;
use crate::checkpoint::weights::GatedMlp;
use crate::error::{Error, Result};
use crate::quant::MatrixLayout;

/// Merges experts one after the other. Memory: the sum so far, the heaviest member and one other in f32 (Kimi-K2: 176 MB
/// each), and their similarities.
pub(super) struct Merging {
    one: Mutex<()>,
    /// Not the writer's threads: one that holds the lock and waits for work it has shared would take up another unit
    /// meanwhile, which may wait for the same lock.
    pool: rayon::ThreadPool,
}

fn align(h: &GatedMlp<Vec<f32>>, _other: &GatedMlp<Vec<f32>>, hidden: usize) -> Vec<u32> {
    (0..(h.gate.len() / hidden) as u32).collect()
}

impl Merging {
    /// On so many threads; 0 takes one per core.
    ///
    /// # Errors
    /// [`Error::Argument`] if they cannot be started.
    pub(super) fn new(threads: usize) -> Result<Merging> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|e| Error::argument("threads", format!("cannot be started: {e}")))?;
        Ok(Merging { one: Mutex::new(()), pool })
    }

    /// Merges `members`, the heaviest first, with their weights, and encodes what comes out; `into` says where gate, up
    /// and down go.
    pub(super) fn merge<'a>(
        &self,
        producer: &Producer<'_>,
        members: &[(&GatedMlp<Source>, f32)],
        layouts: &GatedMlp<MatrixLayout>,
        scale_by: f32,
        into: impl Fn(usize) -> Into<'a>,
    ) -> Result<()> {
        let _one = self.one.lock().unwrap_or_else(PoisonError::into_inner);
        let merged = self.sum(producer, members)?;
        let heaviest = members[0].0;
        for (part, (values, layout)) in merged.each().into_iter().zip(layouts.each()).enumerate() {
            let mut encoder = Encoder::new(*layout, into(part));
            let by = if part == 2 { scale_by } else { 1.0 };
            let mut scaled = Vec::new();
            for (i, block) in values.chunks(super::produce::ROWS * layout.cols).enumerate() {
                scaled.clear();
                scaled.extend(block.iter().map(|v| v * by));
                let put = encoder.put(producer, i * super::produce::ROWS, &scaled, None);
                put.map_err(|e| e.in_source(producer.source, heaviest.each()[part]))?;
            }
            encoder.finish(producer)?;
            put_shape(layout, into(part))?;
        }
        Ok(())
    }

    /// The weighted sum, the neurons of each member in the order of those of the first that they are most like.
    fn sum(
        &self,
        producer: &Producer<'_>,
        members: &[(&GatedMlp<Source>, f32)],
    ) -> Result<GatedMlp<Vec<f32>>> {
        let (first, weight) = members[0];
        let heaviest = decode(producer, first)?;
        let mut sum = heaviest.map(|values| values.iter().map(|v| v * weight).collect::<Vec<f32>>());
        let (width, hidden) = (first.gate.layout.rows, first.gate.layout.cols);
        for &(member, weight) in &members[1..] {
            let other = decode(producer, member)?;
            let order = align(&heaviest, &other, hidden);
            for (neuron, &from) in order.iter().enumerate() {
                let from = from as usize;
                for (sum, other) in [(&mut sum.gate, &other.gate), (&mut sum.up, &other.up)] {
                    let row = &other[from * hidden..][..hidden];
                    sum[neuron * hidden..][..hidden].iter_mut().zip(row).for_each(|(s, v)| *s += weight * v);
                }
            }
            for (sum, row) in sum.down.chunks_exact_mut(width).zip(other.down.chunks_exact(width)) {
                sum.iter_mut().zip(&order).for_each(|(s, &from)| *s += weight * row[from as usize]);
            }
        }
        Ok(sum)
    }
}

/// The three matrices of an expert, in f32.
fn decode(producer: &Producer<'_>, expert: &GatedMlp<Source>) -> Result<GatedMlp<Vec<f32>>> {
    expert.try_map(|source| {
        producer.source.check_recorded_shape(source)?;
        let mut rows = Rows::of(source);
        let mut values = Vec::with_capacity(source.layout.rows * source.layout.cols);
        for first in (0..source.layout.rows).step_by(super::produce::ROWS) {
            values.extend_from_slice(rows.read(producer.source, first)?);
        }
        Ok(values)
    })
}
