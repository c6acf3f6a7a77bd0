//! What this processor can do at most, to hold kernels against: memory read by all threads, multiply-adds in f32, products in tiles.

use std::time::Instant;

use super::Workers;
use crate::simd::{Kernel, Simd};

/// Pieces that threads take in turn: long enough that a hardware prefetcher's start does not matter.
const PIECE: usize = 1 << 20;

/// Multiply-adds of a register that [`multiply_adds`] makes a task of.
const STEPS: usize = 1 << 20;

/// Running sums: two units with a latency of four or five.
const CHAINS: usize = 12;

/// Seconds that the threads take to read `bytes` once, each byte by one thread, with loads and nothing but an addition a
/// register (STREAM's way of measuring, with reads alone).
pub fn read(workers: &Workers, bytes: &[u8]) -> f64 {
    let compute = workers.compute();
    let begun = Instant::now();
    compute.pool.run(bytes.len().div_ceil(PIECE), &|piece| {
        let part = &bytes[piece * PIECE..bytes.len().min((piece + 1) * PIECE)];
        std::hint::black_box(compute.isa.run(Read(part)));
    });
    begun.elapsed().as_secs_f64()
}

/// Multiply-adds a second, each counted as two operations, of the threads together on registers alone.
pub fn multiply_adds(workers: &Workers) -> f64 {
    let compute = workers.compute();
    let tasks = workers.threads() * 8;
    let begun = Instant::now();
    compute.pool.run(tasks, &|_| {
        std::hint::black_box(compute.isa.run(MultiplyAdds));
    });
    let lanes = compute.isa.run(Lanes);
    (tasks * STEPS * CHAINS * lanes * 2) as f64 / begun.elapsed().as_secs_f64()
}

/// The same of bfloat16 in tiles, where the threads use them ([`Isa::Amx`](super::Isa::Amx)). A product as exact as in f32 is several
/// of these: three with weights of FP8 or bfloat16, five with INT4.
pub fn tile_multiply_adds(workers: &Workers) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if workers.isa() == super::Isa::Amx
        && let Some(amx) = crate::simd::amx::Amx::get()
    {
        let tasks = workers.threads() * 8;
        let begun = Instant::now();
        workers.compute().pool.run(tasks, &|_| super::amx::alone(amx));
        return Some((tasks * super::amx::ALONE * 2) as f64 / begun.elapsed().as_secs_f64());
    }
    let _ = workers;
    None
}

/// # Safety
/// Inside a kernel for `S`.
#[inline(always)]
unsafe fn total<S: Simd>(sums: &[S::F]) -> f32 {
    let mut total = 0.0;
    for &sum in sums {
        // SAFETY: the caller's.
        total += unsafe { S::sum(sum) };
    }
    total
}

struct Read<'a>(&'a [u8]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let step = 8 * S::LANES * size_of::<f32>();
        // SAFETY: inside a kernel for `S`; eight registers lie in each step, and any bytes are floats.
        unsafe {
            let mut sums = [S::splat(0.0); 8];
            for part in self.0.chunks_exact(step) {
                let from = part.as_ptr().cast::<f32>();
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = S::add(*sum, S::load(from.add(i * S::LANES)));
                }
            }
            total::<S>(&sums)
        }
    }
}

struct MultiplyAdds;

impl Kernel for MultiplyAdds {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        // SAFETY: inside a kernel for `S`.
        unsafe {
            let mut sums = [S::splat(0.5); CHAINS];
            // Opaque, or the compiler knows what comes out.
            let (factor, term) = (std::hint::black_box(0.999), std::hint::black_box(1e-3));
            let (factor, term) = (S::splat(factor), S::splat(term));
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = S::mul_add(*sum, factor, term);
                }
            }
            total::<S>(&sums)
        }
    }
}

struct Lanes;

impl Kernel for Lanes {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self) -> usize {
        S::LANES
    }
}
