//! The CPU device: f32 activations, weights decoded where they lie, work divided over the threads of one pool.
//!
//! Results do not depend on the number of threads: every output element is computed by one task in one order.

mod attention;
mod matmul;
mod simd;

use std::ops::Range;

use rayon::prelude::*;

pub use attention::CpuKvCache;
pub use simd::Isa;

use super::{Device, MlaCall, Precision, Routing, RoutingFault, SampleSettings, Shape, Site, Trip};
use crate::checkpoint::ExpertRecords;
use crate::checkpoint::region::HostMatrix;
use crate::checkpoint::weights::GatedMlp;
use crate::config::{AttentionConfig, MoeConfig, RopeConfig};
use crate::error::{Error, Result};

/// The machine's processor.
#[derive(Debug)]
pub struct CpuDevice {
    pool: rayon::ThreadPool,
    isa: Isa,
}

/// Activations in host memory, row-major.
#[derive(Debug, Clone, Default)]
pub struct CpuTensor {
    data: Vec<f32>,
    cols: usize,
}

impl Shape for CpuTensor {
    fn rows(&self) -> usize {
        self.data.len().checked_div(self.cols).unwrap_or(0)
    }

    fn cols(&self) -> usize {
        self.cols
    }
}

impl CpuTensor {
    /// Takes `rows` rows whose content is about to be overwritten.
    fn resize(&mut self, rows: usize) -> &mut [f32] {
        self.data.resize(rows * self.cols, 0.0);
        &mut self.data
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }
}

impl CpuDevice {
    /// A device with `threads` worker threads; 0 takes one per available core.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn new(threads: usize) -> Result<CpuDevice> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("abruzzi-{i}"))
            .build()
            .map_err(|e| Error::argument("threads", format!("cannot be started: {e}")))?;
        Ok(CpuDevice { pool, isa: Isa::detect() })
    }

    /// Worker threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The instruction set its kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// down·(silu(gate·x) ⊙ (up·x)) of rows `x` into `out`.
    fn gated(&self, x: &[f32], mlp: &GatedMlp<HostMatrix>, out: &mut [f32]) {
        let tokens = x.len() / mlp.gate.layout.cols;
        let width = mlp.gate.layout.rows;
        let mut gate = vec![0.0; tokens * width];
        let mut up = vec![0.0; tokens * width];
        matmul::matmul(self.isa, mlp.gate.view(), x, &mut gate);
        matmul::matmul(self.isa, mlp.up.view(), x, &mut up);
        for (g, u) in gate.iter_mut().zip(&up) {
            *g = *g / (1.0 + (-*g).exp()) * u;
        }
        matmul::matmul(self.isa, mlp.down.view(), &gate, out);
    }
}

/// x / √(mean(x²) + eps) ⊙ weight.
fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((o, v), w) in out.iter_mut().zip(x).zip(weight) {
        *o = v * scale * w;
    }
}

impl Device for CpuDevice {
    type Tensor = CpuTensor;
    type Matrix = HostMatrix;
    type Vector = Box<[f32]>;
    type KvCache = CpuKvCache;
    type Pool = Vec<GatedMlp<HostMatrix>>;
    type Routing = Routing;
    type Guard = Option<Trip>;

    fn placement(&self) -> String {
        format!("CPU, {} threads, {}; all experts in host memory", self.threads(), self.isa.name())
    }

    fn scope<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    fn matrix(&self, host: &HostMatrix) -> Result<HostMatrix> {
        Ok(host.clone())
    }

    fn vector(&self, host: &[f32]) -> Result<Box<[f32]>> {
        Ok(host.into())
    }

    fn pool(&self, records: &ExpertRecords) -> Result<Vec<GatedMlp<HostMatrix>>> {
        Ok((0..records.count()).map(|e| records.expert(e)).collect())
    }

    fn tensor(&self, max_rows: usize, cols: usize, _: Precision) -> Result<CpuTensor> {
        let mut data = Vec::new();
        data.try_reserve_exact(max_rows * cols).map_err(|_| Error::OutOfMemory {
            what: format!("activations of {max_rows} tokens"),
            needed: (max_rows * cols * size_of::<f32>()) as u64,
            available: 0,
        })?;
        Ok(CpuTensor { data, cols })
    }

    fn read(&self, tensor: &CpuTensor, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        out.extend_from_slice(&tensor.data);
        Ok(())
    }

    fn kv_cache(&self, layers: usize, dim: usize) -> Result<CpuKvCache> {
        Ok(CpuKvCache::new(layers, dim))
    }

    fn kv_reserve(&self, cache: &mut CpuKvCache, tokens: usize) -> Result<()> {
        cache.reserve(tokens)
    }

    fn routing(&self, _: usize, _: &MoeConfig) -> Result<Routing> {
        Ok(Routing::default())
    }

    fn read_routing(&self, routing: &Routing, out: &mut Routing) -> Result<()> {
        out.clone_from(routing);
        Ok(())
    }

    fn write_routing(&self, host: &Routing, routing: &mut Routing) -> Result<()> {
        routing.clone_from(host);
        Ok(())
    }

    fn routing_fault(&self, layers: &[Option<Routing>]) -> Result<Option<(usize, RoutingFault)>> {
        Ok(layers.iter().enumerate().find_map(|(l, routing)| Some((l, routing.as_ref()?.fault()?))))
    }

    fn guard(&self) -> Result<Option<Trip>> {
        Ok(None)
    }

    fn embed(&self, table: &HostMatrix, ids: &[u32], out: &mut CpuTensor) -> Result<()> {
        let (view, cols) = (table.view(), out.cols);
        for (&id, row) in ids.iter().zip(out.resize(ids.len()).chunks_exact_mut(cols)) {
            view.decode(id as usize, 0, row);
        }
        Ok(())
    }

    fn rms_norm(&self, x: &CpuTensor, weight: &Box<[f32]>, eps: f32, out: &mut CpuTensor) -> Result<()> {
        let cols = x.cols;
        let out = out.resize(x.rows());
        for (x, out) in x.data.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
            rms_norm_row(x, weight, eps, out);
        }
        Ok(())
    }

    fn linear(&self, x: &CpuTensor, w: &HostMatrix, out: &mut CpuTensor) -> Result<()> {
        matmul::matmul(self.isa, w.view(), &x.data, out.resize(x.rows()));
        Ok(())
    }

    fn add(&self, x: &CpuTensor, sum: &mut CpuTensor) -> Result<()> {
        for (s, v) in sum.data.iter_mut().zip(&x.data) {
            *s += v;
        }
        Ok(())
    }

    fn gated_mlp(&self, x: &CpuTensor, mlp: &GatedMlp<HostMatrix>, out: &mut CpuTensor) -> Result<()> {
        self.gated(&x.data, mlp, out.resize(x.rows()));
        Ok(())
    }

    fn rows(&self, x: &CpuTensor, range: Range<usize>, out: &mut CpuTensor) -> Result<()> {
        out.resize(range.len()).copy_from_slice(&x.data[range.start * x.cols..range.end * x.cols]);
        Ok(())
    }

    fn rope_query(
        &self,
        q: &mut CpuTensor,
        start: usize,
        attention: &AttentionConfig,
        rope: &RopeConfig,
    ) -> Result<()> {
        let cols = q.cols;
        let mut scratch = Vec::new();
        for (i, row) in q.data.chunks_exact_mut(cols).enumerate() {
            for head in row.chunks_exact_mut(attention.qk_head_dim()) {
                attention::rotate(&mut head[attention.nope_head_dim..], start + i, rope, &mut scratch);
            }
        }
        Ok(())
    }

    fn kv_append(
        &self,
        kv_a: &CpuTensor,
        norm: &Box<[f32]>,
        eps: f32,
        rope: &RopeConfig,
        layer: usize,
        start: usize,
        cache: &mut CpuKvCache,
    ) -> Result<()> {
        let mut scratch = Vec::new();
        for (i, row) in kv_a.data.chunks_exact(kv_a.cols).enumerate() {
            attention::append(row, norm, eps, rope, (layer, start + i), cache, &mut scratch);
        }
        Ok(())
    }

    fn mla(
        &self,
        q: &CpuTensor,
        kv_b: &HostMatrix,
        cache: &CpuKvCache,
        call: MlaCall<'_>,
        out: &mut CpuTensor,
    ) -> Result<()> {
        let (tokens, heads, v) = (q.rows(), call.attention.num_heads, call.attention.v_head_dim);
        let by_head: Vec<Vec<f32>> = (0..heads)
            .into_par_iter()
            .map(|head| attention::Head { q: &q.data, kv_b, cache, call, head, tokens }.compute(self.isa))
            .collect();
        let out = out.resize(tokens);
        for (h, rows) in by_head.iter().enumerate() {
            for (t, row) in rows.chunks_exact(v).enumerate() {
                out[(t * heads + h) * v..][..v].copy_from_slice(row);
            }
        }
        Ok(())
    }

    fn route(
        &self,
        logits: &CpuTensor,
        bias: &Box<[f32]>,
        moe: &MoeConfig,
        routing: &mut Routing,
    ) -> Result<()> {
        routing.reset(moe.top_k);
        for row in logits.data.chunks_exact(logits.cols) {
            routing.route_row(row, bias, moe);
        }
        routing.sort_by_expert(moe.num_experts);
        Ok(())
    }

    fn experts(
        &self,
        x: &CpuTensor,
        pool: &Vec<GatedMlp<HostMatrix>>,
        routing: &Routing,
        pairs: &mut CpuTensor,
    ) -> Result<()> {
        let cols = pairs.cols;
        let mut rest = pairs.resize(routing.sorted_pairs().len());
        let mut groups = Vec::new();
        for (expert, mlp) in pool.iter().enumerate() {
            let of_expert = routing.pairs_of(expert);
            if !of_expert.is_empty() {
                let (out, later) = rest.split_at_mut(of_expert.len() * cols);
                groups.push((of_expert, mlp, out));
                rest = later;
            }
        }
        groups.into_par_iter().for_each(|(of_expert, mlp, out)| {
            let mut gathered = Vec::with_capacity(of_expert.len() * x.cols);
            for pair in of_expert {
                gathered.extend_from_slice(x.row(routing.pair(pair).0));
            }
            self.gated(&gathered, mlp, out);
        });
        Ok(())
    }

    fn combine(&self, pairs: &CpuTensor, routing: &Routing, sum: &mut CpuTensor) -> Result<()> {
        let (cols, k) = (sum.cols, routing.top_k());
        let of_tokens = routing.weights().chunks_exact(k).zip(routing.positions().chunks_exact(k));
        for (sum, (weights, positions)) in sum.data.chunks_exact_mut(cols).zip(of_tokens) {
            for (&weight, &position) in weights.iter().zip(positions) {
                for (s, v) in sum.iter_mut().zip(pairs.row(position as usize)) {
                    *s += weight * v;
                }
            }
        }
        Ok(())
    }

    fn sample(&self, logits: &CpuTensor, settings: &SampleSettings, word: u64) -> Result<u32> {
        assert_eq!(logits.rows(), 1, "one row to draw from");
        Ok(settings.token(logits.row(0), word))
    }

    fn watch(&self, x: &CpuTensor, site: Site, guard: &mut Option<Trip>) -> Result<()> {
        if guard.is_none()
            && let Some(i) = x.data.iter().position(|v| !v.is_finite())
        {
            *guard = Some(Trip { site, row: i / x.cols, col: i % x.cols });
        }
        Ok(())
    }

    fn tripped(&self, guard: &mut Option<Trip>) -> Result<Option<Trip>> {
        Ok(guard.take())
    }
}
