//! RoPE, the latent cache and multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) on the CPU.

mod absorbed;
mod expanded;

use super::format::Lines;
use super::matmul::Compute;
use super::rows::Output;
use crate::config::RopeConfig;
use crate::device::{KV_PAGE, MlaCall, MlaForm};
use crate::error::{Error, Result};
use crate::quant::MatrixView;

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

    /// Pages of a layer that hold rows `0 .. tokens`; the last is cut to what is written.
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

/// Attention of one call.
pub(super) struct Attend<'a> {
    pub compute: Compute<'a>,
    /// Queries of all heads, [tokens, heads · (nope + rope)].
    pub q: &'a [f32],
    pub tokens: usize,
    /// [heads · (nope + v), latent].
    pub kv_b: MatrixView<'a>,
    pub cache: &'a CpuKvCache,
    pub call: MlaCall<'a>,
    /// [tokens, heads · v].
    pub out: Output,
}

/// A calling thread's memory for attention, reused.
#[derive(Debug, Default)]
pub(super) struct Memory {
    queries: Lines,
    partial: Lines,
    latents: Lines,
    expanded: Vec<f32>,
}

impl Attend<'_> {
    /// Fills `out`. Results do not depend on the number of threads.
    pub(super) fn run(&self, memory: &mut Memory) {
        match self.call.form {
            MlaForm::Absorbed => absorbed::run(self, memory),
            MlaForm::Expanded => expanded::run(self, memory),
        }
    }

    /// A head's query of a token: the part for keys of the latent, and the rotated part.
    fn query(&self, token: usize, head: usize) -> (&[f32], &[f32]) {
        let a = self.call.attention;
        let width = a.qk_head_dim();
        self.q[(token * a.num_heads + head) * width..][..width].split_at(a.nope_head_dim)
    }

    /// Cached tokens that the last query sees.
    fn cached(&self) -> usize {
        self.call.start + self.tokens
    }
}
