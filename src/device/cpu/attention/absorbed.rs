//! Few queries: scores on the latents themselves. q·(K c) = (Kᵀ q)·c, and Σ p·(V c) = V Σ p·c.
//!
//! Three parallel parts: queries through Kᵀ, a task a head; the cache, a task some pages with some heads, so that a page that
//! was read stays near for every head; what the pages gave, merged, through V, a task a head.

use super::{Attend, Memory};
use crate::device::KV_PAGE;
use crate::device::cpu::format::{Lines, RowBytes, Weights, with_weights};
use crate::device::cpu::matmul::Way;
use crate::device::cpu::rows::Output;
use crate::quant::MatrixView;
use crate::simd::{Kernel, Simd};

/// Heads that share a cached row's way into registers.
const HEADS: usize = 4;

/// Pages of a task at least, and tasks at most that the cache is cut into. Not a matter of threads: results must not be.
const PAGES: usize = 4;
const MOST_SPLITS: usize = 64;

pub(super) fn run(attend: &Attend<'_>, memory: &mut Memory) {
    let a = attend.call.attention;
    let (heads, latent, dim) = (a.num_heads, a.kv_lora_rank, a.cached_dim());
    let compute = attend.compute;
    let (pool, isa) = (compute.pool, compute.isa);
    let Memory { queries, partial, .. } = memory;

    let queries = queries.take(attend.tokens * heads * dim);
    let to = Output::new(queries, dim);
    pool.run(heads, &|head| isa.run(Absorb { attend, head, to }));
    let queries = &*queries;

    let pages = attend.cached().div_ceil(KV_PAGE);
    let each = PAGES.max(pages.div_ceil(MOST_SPLITS));
    let splits = pages.div_ceil(each);
    // A short cache is divided by heads.
    let groups = (2 * pool.threads()).div_ceil(splits).min(heads.div_ceil(HEADS));
    let group = heads.div_ceil(groups).next_multiple_of(HEADS);
    let groups = heads.div_ceil(group);
    // Of every query and split: the maximum, Σ e^(s − max), the weighted latents.
    let width = latent + 2;
    let rows = attend.tokens * heads;
    let partial = partial.take(splits * rows * width);
    let to = Output::new(partial, width);
    pool.run(splits * groups, &|task| {
        let (split, first) = (task / groups, task % groups * group);
        isa.run(Scan {
            attend,
            queries,
            heads: first..(first + group).min(heads),
            pages: split * each..((split + 1) * each).min(pages),
            to,
            first_row: split * rows,
        });
    });
    let partial = &*partial;

    pool.run(heads, &|head| {
        let mut lines = Lines::default();
        let mut mixed = vec![0.0; latent];
        for token in 0..attend.tokens {
            let parts = (0..splits).map(|s| &partial[(s * rows + token * heads + head) * width..][..width]);
            merge(parts, &mut mixed);
            let (x, w) = (&mixed, attend.kv_b);
            let x = compute.activations(Way::Few, w.layout(), x, None, &mut lines);
            let rows = a.nope_head_dim + a.v_head_dim;
            let values = head * rows + a.nope_head_dim..(head + 1) * rows;
            // Row `values.start` of the matrix is the head's first column of the token's results.
            let out = attend.out.moved(token, head * a.v_head_dim, values.start);
            compute.multiply((w, x), values, out);
        }
    });
}

/// The weighted mean of the latents from what several runs of pages gave.
fn merge<'p>(parts: impl Iterator<Item = &'p [f32]> + Clone, mixed: &mut [f32]) {
    let max = parts.clone().map(|p| p[0]).fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    mixed.fill(0.0);
    for part in parts {
        let share = (part[0] - max).exp();
        sum += share * part[1];
        for (mixed, value) in mixed.iter_mut().zip(&part[2..]) {
            *mixed += share * value;
        }
    }
    let norm = 1.0 / sum;
    mixed.iter_mut().for_each(|value| *value *= norm);
}

/// A head's queries on the latents, times the scale of the softmax: [Kᵀ·nope, rope].
struct Absorb<'a> {
    attend: &'a Attend<'a>,
    head: usize,
    /// [tokens · heads, latent + rope].
    to: Output,
}

impl Kernel for Absorb<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Absorb { attend, head, to } = self;
        let a = attend.call.attention;
        let first = head * (a.nope_head_dim + a.v_head_dim);
        for token in 0..attend.tokens {
            let (nope, rope) = attend.query(token, head);
            let row = token * a.num_heads + head;
            let scale = a.softmax_scale;
            let call = Transposed { w: attend.kv_b, first, x: nope, scale, to, row };
            with_weights!(attend.kv_b.layout().format, transposed::<S, W>(call));
            for (i, &value) in rope.iter().enumerate() {
                // SAFETY: a head's rows are its task's.
                unsafe { to.put(row, a.kv_lora_rank + i, value * scale) }
            }
        }
    }
}

struct Transposed<'a> {
    w: MatrixView<'a>,
    /// Row of `w` that meets x[0].
    first: usize,
    x: &'a [f32],
    scale: f32,
    to: Output,
    row: usize,
}

/// to[row, c] = scale · Σ_i x[i]·w[first + i, c].
#[inline(always)]
fn transposed<S: Simd, W: Weights<S>>(call: Transposed<'_>) {
    let Transposed { w, first, x, scale, to, row } = call;
    let cols = w.layout().cols;
    for span in 0..cols.div_ceil(W::SPAN) {
        let width = W::SPAN.min(cols - span * W::SPAN);
        let mut values = [0.0; MOST_SPAN];
        // SAFETY: called inside a kernel for `S`, for spans that the rows have; eight registers are a span's floats, of which
        // there are at most MOST_SPAN.
        unsafe {
            let mut sums = [S::splat(0.0); 8];
            for (i, &x) in x.iter().enumerate() {
                let (decoded, factor) = RowBytes::of(w, first + i).decode::<S, W>(span);
                let factor = S::mul(S::splat(x), factor);
                for (sum, decoded) in sums.iter_mut().zip(decoded) {
                    *sum = S::mul_add(decoded, factor, *sum);
                }
            }
            for (k, &sum) in sums.iter().enumerate() {
                S::store(values.as_mut_ptr().add(k * S::LANES), sum);
            }
        }
        for (i, value) in values[..W::SPAN].iter().enumerate() {
            let column = W::column(i);
            if column < width {
                // SAFETY: a head's rows are its task's.
                unsafe { to.put(row, span * W::SPAN + column, value * scale) }
            }
        }
    }
}

/// Floats of the widest span.
const MOST_SPAN: usize = 128;

/// Scores some heads' queries on some pages and gathers the latents, by running softmax.
struct Scan<'a> {
    attend: &'a Attend<'a>,
    /// [tokens · heads, latent + rope].
    queries: &'a [f32],
    heads: std::ops::Range<usize>,
    pages: std::ops::Range<usize>,
    /// [splits · tokens · heads, latent + 2].
    to: Output,
    first_row: usize,
}

impl Kernel for Scan<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Scan { attend, queries, heads, pages, to, first_row } = self;
        let a = attend.call.attention;
        let (latent, dim) = (a.kv_lora_rank, a.cached_dim());
        for token in 0..attend.tokens {
            let row_of = |head: usize| token * a.num_heads + head;
            let mut state = vec![0.0; heads.len() * (latent + 2)];
            for state in state.chunks_exact_mut(latent + 2) {
                state[0] = f32::NEG_INFINITY;
            }
            let seen = attend.call.start + token + 1;
            let all = attend.cache.pages(attend.call.layer, seen).enumerate();
            for (_, page) in all.skip(pages.start).take(pages.len()) {
                for first in heads.clone().step_by(HEADS) {
                    let count = HEADS.min(heads.end - first);
                    let mut of_heads = [&queries[..0]; HEADS];
                    for (i, of_head) in of_heads.iter_mut().enumerate() {
                        // A head beyond the last is the last once more; what it gives is not looked at.
                        *of_head = &queries[row_of(first + i.min(count - 1)) * dim..][..dim];
                    }
                    let mut scores = [[0.0; KV_PAGE]; HEADS];
                    score::<S>(&of_heads, page, &mut scores);
                    let states = &mut state[(first - heads.start) * (latent + 2)..][..count * (latent + 2)];
                    for (state, scores) in states.chunks_exact_mut(latent + 2).zip(&mut scores) {
                        weigh::<S>(state, &mut scores[..page.len() / dim]);
                    }
                    mix::<S>(states, latent, dim, &scores, page);
                }
            }
            for (head, state) in heads.clone().zip(state.chunks_exact(latent + 2)) {
                for (i, &value) in state.iter().enumerate() {
                    // SAFETY: these heads' rows of this run of pages are this task's.
                    unsafe { to.put(first_row + row_of(head), i, value) }
                }
            }
        }
    }
}

/// scores[h][j] = q[h]·page[j].
#[inline(always)]
fn score<S: Simd>(q: &[&[f32]; HEADS], page: &[f32], scores: &mut [[f32; KV_PAGE]; HEADS]) {
    const KEYS: usize = 2;
    let dim = q[0].len();
    let whole = dim / S::LANES * S::LANES;
    let keys = page.len() / dim;
    for first in (0..keys).step_by(KEYS) {
        let mut rows = [page; KEYS];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = &page[(first + i).min(keys - 1) * dim..][..dim];
        }
        // SAFETY: called inside a kernel for `S`; whole registers lie in rows of `dim` floats.
        unsafe {
            let mut sums = [[S::splat(0.0); KEYS]; HEADS];
            for at in (0..whole).step_by(S::LANES) {
                let mut columns = [S::splat(0.0); KEYS];
                for (column, row) in columns.iter_mut().zip(rows) {
                    *column = S::load(row.as_ptr().add(at));
                }
                for (sums, q) in sums.iter_mut().zip(q) {
                    let q = S::load(q.as_ptr().add(at));
                    for k in 0..KEYS {
                        sums[k] = S::mul_add(q, columns[k], sums[k]);
                    }
                }
            }
            for (h, sums) in sums.iter().enumerate() {
                for (k, &sum) in sums.iter().enumerate() {
                    let mut total = S::sum(sum);
                    for at in whole..dim {
                        total += q[h][at] * rows[k][at];
                    }
                    if first + k < keys {
                        scores[h][first + k] = total;
                    }
                }
            }
        }
    }
}

/// Turns scores into weights relative to the maximum so far, and what was gathered before with them.
#[inline(always)]
fn weigh<S: Simd>(state: &mut [f32], scores: &mut [f32]) {
    let (head, gathered) = state.split_at_mut(2);
    let max = scores.iter().copied().fold(head[0], f32::max);
    if max > head[0] {
        let shrink = (head[0] - max).exp();
        head[1] *= shrink;
        gathered.iter_mut().for_each(|value| *value *= shrink);
        head[0] = max;
    }
    crate::simd::exp_all::<S>(scores, head[0]);
    head[1] += scores.iter().sum::<f32>();
}

/// Adds the page's latents, weighed, to what each head has gathered.
#[inline(always)]
fn mix<S: Simd>(
    states: &mut [f32],
    latent: usize,
    dim: usize,
    weights: &[[f32; KV_PAGE]; HEADS],
    page: &[f32],
) {
    const COLUMNS: usize = 2;
    let count = states.len() / (latent + 2);
    let keys = page.len() / dim;
    let block = COLUMNS * S::LANES;
    let whole = latent / block * block;
    for at in (0..whole).step_by(block) {
        // SAFETY: called inside a kernel for `S`; `at` and a block lie in the latent part of a row and of a head's state.
        unsafe {
            let mut sums = [[S::splat(0.0); COLUMNS]; HEADS];
            for key in 0..keys {
                let row = page.as_ptr().add(key * dim + at);
                let mut columns = [S::splat(0.0); COLUMNS];
                for (c, column) in columns.iter_mut().enumerate() {
                    *column = S::load(row.add(c * S::LANES));
                }
                for (sums, weights) in sums.iter_mut().zip(weights) {
                    let weight = S::splat(weights[key]);
                    for c in 0..COLUMNS {
                        sums[c] = S::mul_add(weight, columns[c], sums[c]);
                    }
                }
            }
            for (h, sums) in sums.iter().enumerate().take(count) {
                for (c, &sum) in sums.iter().enumerate() {
                    let to = states.as_mut_ptr().add(h * (latent + 2) + 2 + at + c * S::LANES);
                    S::store(to, S::add(S::load(to), sum));
                }
            }
        }
    }
    for (state, weights) in states.chunks_exact_mut(latent + 2).zip(weights) {
        for (row, weight) in page.chunks_exact(dim).zip(weights) {
            for at in whole..latent {
                state[2 + at] += weight * row[at];
            }
        }
    }
}
