//! Many queries: keys and values are computed from the latents, some pages at a time, and met by all queries in tiles.
//!
//! For each run of [`KEYS`] cached tokens: one matrix product expands their latents for all heads; then, a task a head and
//! some queries, scores, running softmax and weighted values are products of [`Simd::tile`].

use super::{Attend, Memory};
use crate::device::KV_PAGE;
use crate::device::cpu::rows::Output;
use crate::simd::{Kernel, Simd, TileCall, exp_all};

/// Cached tokens that are expanded at a time: whole pages.
const KEYS: usize = 4 * KV_PAGE;

/// Queries of a task at most: a multiple of every set's `TILE_ROWS`.
const QUERIES: usize = 96;

pub(super) fn run(attend: &Attend<'_>, memory: &mut Memory) {
    let a = attend.call.attention;
    let (heads, latent, dim) = (a.num_heads, a.kv_lora_rank, a.cached_dim());
    let expanded_dim = heads * (a.nope_head_dim + a.v_head_dim);
    let Memory { queries: states, latents, expanded, .. } = memory;
    // Of every query and head: the maximum, Σ e^(s − max). The weighted values are gathered where they go.
    let states = states.take(attend.tokens * heads * 2);
    for state in states.as_chunks_mut::<2>().0 {
        *state = [f32::NEG_INFINITY, 0.0];
    }
    let state = Output::new(states, 2);
    let cached = attend.cached();
    let blocks = attend.tokens.div_ceil(QUERIES);
    for first in (0..cached).step_by(KEYS) {
        let keys = KEYS.min(cached - first);
        let rows: Vec<&[f32]> = attend
            .cache
            .pages(attend.call.layer, first + keys)
            .skip(first / KV_PAGE)
            .flat_map(|page| page.chunks_exact(dim))
            .collect();
        let latents = latents.take(keys * latent);
        for (to, row) in latents.chunks_exact_mut(latent).zip(&rows) {
            to.copy_from_slice(&row[..latent]);
        }
        expanded.clear();
        expanded.resize(keys * expanded_dim, 0.0);
        attend.compute.matmul(attend.kv_b, latents, expanded);
        let (rows, expanded) = (&rows, &*expanded);
        attend.compute.pool.run(heads * blocks, &|task| {
            let (head, block) = (task / blocks, task % blocks);
            let queries = block * QUERIES..((block + 1) * QUERIES).min(attend.tokens);
            // Queries that stand before all of these keys see nothing of them.
            if attend.call.start + queries.end > first {
                attend.compute.isa.run(Meet { attend, head, queries, first, rows, expanded, state });
            }
        });
    }
    attend.compute.pool.run(attend.tokens, &|token| {
        for head in 0..heads {
            for c in head * a.v_head_dim..(head + 1) * a.v_head_dim {
                // SAFETY: a token's rows are its task's.
                unsafe {
                    let sum = state.get(token * heads + head, 1);
                    attend.out.put(token, c, attend.out.get(token, c) / sum);
                }
            }
        }
    });
}

/// A head's queries meet a run of keys.
struct Meet<'a> {
    attend: &'a Attend<'a>,
    head: usize,
    queries: std::ops::Range<usize>,
    /// Position of the first key.
    first: usize,
    /// Cached rows of the keys.
    rows: &'a [&'a [f32]],
    /// [keys, heads · (nope + v)].
    expanded: &'a [f32],
    /// [tokens · heads, 2].
    state: Output,
}

impl Kernel for Meet<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Meet { attend, head, queries, first, rows, expanded, state } = self;
        let a = attend.call.attention;
        let (heads, nope, v, depth) = (a.num_heads, a.nope_head_dim, a.v_head_dim, a.qk_head_dim());
        let stride = expanded.len() / rows.len();
        let of_head = head * (nope + v);
        let panel = 2 * S::LANES;

        // Keys with tokens in the lanes, values as they are; both zero beyond the last.
        let padded = rows.len().next_multiple_of(panel);
        let mut keys = vec![0.0; padded * depth];
        let wide_v = v.next_multiple_of(panel);
        let mut values = vec![0.0; rows.len() * wide_v];
        for (j, row) in rows.iter().enumerate() {
            let expanded = &expanded[j * stride + of_head..][..nope + v];
            let key = expanded[..nope].iter().chain(&row[a.kv_lora_rank..]);
            let to = &mut keys[j / panel * panel * depth + j % panel..];
            for (to, value) in to.iter_mut().step_by(panel).zip(key) {
                *to = *value;
            }
            for (p, part) in expanded[nope..].chunks(panel).enumerate() {
                values[(p * rows.len() + j) * panel..][..part.len()].copy_from_slice(part);
            }
        }

        let mut q = vec![0.0; S::TILE_ROWS * depth];
        let mut scores = vec![0.0; S::TILE_ROWS * padded];
        let mut mixed = vec![0.0; S::TILE_ROWS * wide_v];
        for at in queries.clone().step_by(S::TILE_ROWS) {
            let count = S::TILE_ROWS.min(queries.end - at);
            let seen = |i: usize| (attend.call.start + at + i + 1).saturating_sub(first).min(rows.len());
            if seen(count - 1) == 0 {
                continue;
            }
            for (i, to) in q.chunks_exact_mut(depth).enumerate().take(count) {
                let (of_latent, rotated) = attend.query(at + i, head);
                for (to, value) in to.iter_mut().zip(of_latent.iter().chain(rotated)) {
                    *to = value * a.softmax_scale;
                }
            }
            // Panels that nobody here sees are left out.
            let panels = seen(count - 1).div_ceil(panel);
            scores.fill(0.0);
            for p in 0..panels {
                // SAFETY: inside a kernel for `S`; `q` has TILE_ROWS rows of `depth`, a panel of keys `depth` rows, and
                // `scores` TILE_ROWS rows of `padded`.
                unsafe {
                    S::tile(
                        TileCall {
                            w: q.as_ptr(),
                            w_stride: depth,
                            x: keys.as_ptr().add(p * panel * depth),
                            depth,
                            out: scores.as_mut_ptr().add(p * panel),
                            out_stride: padded,
                            ahead: keys.as_ptr().wrapping_add((p + 1) * panel * depth).cast(),
                        },
                        true,
                    );
                }
            }
            let out_at = |i: usize, c: usize| (at + i, head * v + c);
            for (i, scores) in scores.chunks_exact_mut(padded).enumerate().take(count) {
                let row = (at + i) * heads + head;
                // SAFETY: this head's rows of these queries are this task's.
                let [before, sum] = unsafe { [state.get(row, 0), state.get(row, 1)] };
                let (visible, hidden) = scores.split_at_mut(seen(i));
                let max = visible.iter().copied().fold(before, f32::max);
                exp_all::<S>(visible, max);
                hidden.fill(0.0);
                let shrink = if max > before { (before - max).exp() } else { 1.0 };
                let sum = sum * shrink + visible.iter().sum::<f32>();
                // SAFETY: as above.
                unsafe {
                    state.put(row, 0, max);
                    state.put(row, 1, sum);
                }
                for (c, value) in mixed[i * wide_v..][..v].iter_mut().enumerate() {
                    let (t, column) = out_at(i, c);
                    // SAFETY: this head's columns of these queries are this task's.
                    let before = unsafe { attend.out.get(t, column) };
                    // The first keys find nothing gathered yet.
                    *value = if first == 0 { 0.0 } else { before * shrink };
                }
            }
            for p in 0..wide_v / panel {
                // SAFETY: inside a kernel for `S`; `scores` has TILE_ROWS rows of `padded`, at least `rows.len()`, a panel of
                // values `rows.len()` rows, and `mixed` TILE_ROWS rows of `wide_v`.
                unsafe {
                    S::tile(
                        TileCall {
                            w: scores.as_ptr(),
                            w_stride: padded,
                            x: values.as_ptr().add(p * rows.len() * panel),
                            depth: seen(count - 1),
                            out: mixed.as_mut_ptr().add(p * panel),
                            out_stride: wide_v,
                            ahead: values.as_ptr().wrapping_add((p + 1) * rows.len() * panel).cast(),
                        },
                        true,
                    );
                }
            }
            for i in 0..count {
                for (c, &value) in mixed[i * wide_v..][..v].iter().enumerate() {
                    let (t, column) = out_at(i, c);
                    // SAFETY: this head's columns of these queries are this task's.
                    unsafe { attend.out.put(t, column, value) }
                }
            }
        }
    }
}
