//! RoPE, the latent cache and MLA on the CPU, one task a head.

use crate::checkpoint::region::HostMatrix;
use crate::config::{AttentionConfig, RopeConfig};
use crate::device::{KV_PAGE, MlaCall, MlaForm};
use crate::error::{Error, Result};
use crate::simd::{Isa, Kernel, Simd, axpy, dot, mul_add};

/// Latent cache of one sequence in f32: per layer, pages of [`KV_PAGE`] tokens [latent, rotated key part].
#[derive(Debug)]
pub struct CpuKvCache {
    dim: usize,
    layers: Vec<Vec<Box<[f32]>>>,
}

impl CpuKvCache {
    pub(super) fn new(layers: usize, dim: usize) -> CpuKvCache {
        CpuKvCache { dim, layers: (0..layers).map(|_| Vec::new()).collect() }
    }

    pub(super) fn reserve(&mut self, tokens: usize) -> Result<()> {
        let pages = tokens.div_ceil(KV_PAGE);
        let page = KV_PAGE * self.dim;
        for layer in &mut self.layers {
            while layer.len() < pages {
                let mut fresh = Vec::new();
                fresh.try_reserve_exact(page).map_err(|_| Error::OutOfMemory {
                    what: format!("a key/value page of {KV_PAGE} tokens"),
                    needed: (page * size_of::<f32>()) as u64,
                    available: 0,
                })?;
                fresh.resize(page, 0.0);
                layer.push(fresh.into_boxed_slice());
            }
        }
        Ok(())
    }

    fn row_mut(&mut self, layer: usize, position: usize) -> &mut [f32] {
        &mut self.layers[layer][position / KV_PAGE][position % KV_PAGE * self.dim..][..self.dim]
    }

    /// The cached rows `0 .. tokens` of a layer, page by page; the last page is cut to what is written.
    fn pages(&self, layer: usize, tokens: usize) -> impl Iterator<Item = &[f32]> {
        let pages = &self.layers[layer][..tokens.div_ceil(KV_PAGE)];
        pages.iter().enumerate().map(move |(i, page)| &page[..(tokens - i * KV_PAGE).min(KV_PAGE) * self.dim])
    }
}

/// Rotates interleaved pairs by the angles of `position`; first elements end in the first half, second in the second.
pub(super) fn rotate(part: &mut [f32], position: usize, rope: &RopeConfig, scratch: &mut Vec<f32>) {
    scratch.clear();
    scratch.extend_from_slice(part);
    let half = part.len() / 2;
    for (i, freq) in rope.inv_freq.iter().enumerate() {
        // The product in f32, as every implementation of RoPE tables does: positions agree with the models' training.
        let (sin, cos) = (position as f32 * freq).sin_cos();
        let (sin, cos) = (sin * rope.amplitude, cos * rope.amplitude);
        let (a, b) = (scratch[2 * i], scratch[2 * i + 1]);
        part[i] = a * cos - b * sin;
        part[half + i] = b * cos + a * sin;
    }
}

/// Writes one token into the cache: latent normalised, key part rotated.
pub(super) fn append(
    kv_a: &[f32],
    norm: &[f32],
    eps: f32,
    rope: &RopeConfig,
    (layer, position): (usize, usize),
    cache: &mut CpuKvCache,
    scratch: &mut Vec<f32>,
) {
    let row = cache.row_mut(layer, position);
    let latent = norm.len();
    super::rms_norm_row(&kv_a[..latent], norm, eps, &mut row[..latent]);
    row[latent..].copy_from_slice(&kv_a[latent..]);
    rotate(&mut row[latent..], position, rope, scratch);
}

/// One head of MLA for all query rows. Output rows are [tokens, v].
pub(super) struct Head<'a> {
    /// Queries of all heads [tokens, heads · (nope + rope)].
    pub q: &'a [f32],
    pub kv_b: &'a HostMatrix,
    pub cache: &'a CpuKvCache,
    pub call: MlaCall<'a>,
    pub head: usize,
    pub tokens: usize,
}

impl Head<'_> {
    pub(super) fn compute(self, isa: Isa) -> Vec<f32> {
        match self.call.form {
            MlaForm::Absorbed => isa.run(Absorbed(self)),
            MlaForm::Expanded => isa.run(Expanded(self)),
        }
    }

    fn query(&self, token: usize) -> (&[f32], &[f32]) {
        let a = self.call.attention;
        let width = a.qk_head_dim();
        let q = &self.q[(token * a.num_heads + self.head) * width..][..width];
        q.split_at(a.nope_head_dim)
    }

    /// The head's rows of `kv_b`, decoded: [nope + v, kv_lora], key rows first.
    #[inline(always)]
    fn weights(&self) -> Vec<f32> {
        let a = self.call.attention;
        let rows = a.nope_head_dim + a.v_head_dim;
        let mut decoded = vec![0.0; rows * a.kv_lora_rank];
        let w = self.kv_b.view();
        for (i, row) in decoded.chunks_exact_mut(a.kv_lora_rank).enumerate() {
            w.decode(self.head * rows + i, 0, row);
        }
        decoded
    }
}

/// Softmax over values that arrive in blocks: maximum so far, Σ e^(s − max), and the weighted values.
struct Running<'a> {
    max: f32,
    sum: f32,
    acc: &'a mut [f32],
}

impl Running<'_> {
    #[inline(always)]
    fn absorb<'v, S: Simd>(&mut self, scores: &mut [f32], values: impl Fn(usize) -> &'v [f32]) {
        let max = scores.iter().copied().fold(self.max, f32::max);
        if max > self.max {
            let shrink = (self.max - max).exp();
            self.sum *= shrink;
            self.acc.iter_mut().for_each(|a| *a *= shrink);
            self.max = max;
        }
        for (j, score) in scores.iter_mut().enumerate() {
            let p = (*score - self.max).exp();
            self.sum += p;
            axpy::<S>(p, values(j), self.acc);
        }
    }
}

struct Absorbed<'a>(Head<'a>);

impl Kernel for Absorbed<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Vec<f32> {
        let head = self.0;
        let a: &AttentionConfig = head.call.attention;
        let latent = a.kv_lora_rank;
        let weights = head.weights();
        let (keys, values) = weights.split_at(a.nope_head_dim * latent);
        let mut out = vec![0.0; head.tokens * a.v_head_dim];
        let mut query = vec![0.0; latent];
        let mut mixed = vec![0.0; latent];
        let mut scores = [0.0; KV_PAGE];
        for (t, out) in out.chunks_exact_mut(a.v_head_dim).enumerate() {
            let (nope, rope) = head.query(t);
            query.fill(0.0);
            for (&q, row) in nope.iter().zip(keys.chunks_exact(latent)) {
                axpy::<S>(q, row, &mut query);
            }
            mixed.fill(0.0);
            let mut softmax = Running { max: f32::NEG_INFINITY, sum: 0.0, acc: &mut mixed };
            for page in head.cache.pages(head.call.layer, head.call.start + t + 1) {
                let rows = page.chunks_exact(a.cached_dim());
                let scores = &mut scores[..rows.len()];
                for (score, row) in scores.iter_mut().zip(rows) {
                    let (c, r) = row.split_at(latent);
                    *score = (dot::<S>(&query, c) + dot::<S>(rope, r)) * a.softmax_scale;
                }
                softmax.absorb::<S>(scores, |j| &page[j * a.cached_dim()..][..latent]);
            }
            let norm = 1.0 / softmax.sum;
            for (o, row) in out.iter_mut().zip(values.chunks_exact(latent)) {
                *o = dot::<S>(row, &mixed) * norm;
            }
        }
        out
    }
}

struct Expanded<'a>(Head<'a>);

impl Kernel for Expanded<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Vec<f32> {
        let head = self.0;
        let a: &AttentionConfig = head.call.attention;
        let (latent, nope, v) = (a.kv_lora_rank, a.nope_head_dim, a.v_head_dim);
        let weights = head.weights();
        let mut out = vec![0.0; head.tokens * v];
        let mut max = vec![f32::NEG_INFINITY; head.tokens];
        let mut sum = vec![0.0; head.tokens];
        let mut expanded = vec![0.0; KV_PAGE * (nope + v)];
        let mut scores = [0.0; KV_PAGE];
        let cached = head.call.start + head.tokens;
        for (p, page) in head.cache.pages(head.call.layer, cached).enumerate() {
            let rows: Vec<&[f32]> = page.chunks_exact(a.cached_dim()).collect();
            for (row, expanded) in rows.iter().zip(expanded.chunks_exact_mut(nope + v)) {
                for (e, w) in expanded.iter_mut().zip(weights.chunks_exact(latent)) {
                    *e = dot::<S>(w, &row[..latent]);
                }
            }
            let first = p * KV_PAGE;
            // Queries before this page see nothing of it.
            for t in first.saturating_sub(head.call.start)..head.tokens {
                let visible = (head.call.start + t + 1 - first).min(rows.len());
                let (q_nope, q_rope) = head.query(t);
                let scores = &mut scores[..visible];
                for (j, score) in scores.iter_mut().enumerate() {
                    let key = &expanded[j * (nope + v)..][..nope];
                    let s = dot::<S>(q_nope, key) + dot::<S>(q_rope, &rows[j][latent..]);
                    *score = s * a.softmax_scale;
                }
                let mut softmax = Running { max: max[t], sum: sum[t], acc: &mut out[t * v..][..v] };
                softmax.absorb::<S>(scores, |j| &expanded[j * (nope + v) + nope..][..v]);
                (max[t], sum[t]) = (softmax.max, softmax.sum);
            }
        }
        for (out, sum) in out.chunks_exact_mut(v).zip(sum) {
            let norm = 1.0 / sum;
            for o in out {
                *o = mul_add::<S>(*o, norm, 0.0);
            }
        }
        out
    }
}
