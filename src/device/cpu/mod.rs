//! The CPU device: f32 activations, weights decoded where they lie, work divided over the threads of one pool.
//!
//! Results do not depend on the number of threads: every output element is computed by one task in one order.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
pub mod ceiling;
mod cores;
mod format;
mod gemm;
mod matmul;
mod narrow;
mod pool;
mod rows;
mod together;
mod workers;

use std::any::Any;
use std::cell::RefCell;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

pub use crate::simd::{Isa, VARIABLE as ISA_VARIABLE};
pub use attention::CpuKvCache;
pub use workers::{HostJob, JobPanic, Workers};

use super::{
    Device, HostBytes, MlaCall, Pass, Precision, Routing, RoutingFault, SampleSettings, Shape, Site, SlotAt,
    Trip,
};
use crate::checkpoint::RecordLayout;
use crate::checkpoint::region::HostMatrix;
use crate::checkpoint::weights::GatedMlp;
use crate::config::{AttentionConfig, MoeConfig, RopeConfig};
use crate::error::{Error, Result};

/// The machine's processor.
#[derive(Debug)]
pub struct CpuDevice {
    workers: Arc<Workers>,
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
    /// All rows, row-major.
    pub fn values(&self) -> &[f32] {
        &self.data
    }

    /// Takes these rows in place of those it has.
    ///
    /// # Panics
    /// If they are not whole rows.
    pub fn set(&mut self, rows: &[f32]) {
        assert!(rows.len().is_multiple_of(self.cols.max(1)), "whole rows");
        self.data.clear();
        self.data.extend_from_slice(rows);
    }

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
        Ok(CpuDevice { workers: Arc::new(Workers::new(threads)?) })
    }

    /// Worker threads.
    pub fn threads(&self) -> usize {
        self.workers.threads()
    }

    /// The instruction set its kernels use.
    pub fn isa(&self) -> Isa {
        self.workers.isa()
    }
}

thread_local! {
    /// A calling thread's memory for attention.
    static ATTENTION: RefCell<attention::Memory> = RefCell::default();
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
    type Slots = Infallible;
    type Fence = ();
    type Rows = Vec<f32>;
    type Routing = Routing;
    type Guard = Option<Trip>;

    fn placement(&self) -> String {
        format!("CPU, {} threads, {}", self.threads(), self.isa().name())
    }

    fn matrix(&self, host: &HostMatrix) -> Result<HostMatrix> {
        Ok(host.clone())
    }

    fn vector(&self, host: &[f32]) -> Result<Box<[f32]>> {
        Ok(host.into())
    }

    fn workers(&self) -> Option<&Arc<Workers>> {
        Some(&self.workers)
    }

    fn slots(&self, _: &[Option<RecordLayout>], _: usize, _: usize) -> Result<Option<Infallible>> {
        Ok(None)
    }

    fn fill(&self, slots: &Infallible, _: SlotAt, _: HostBytes) -> Result<()> {
        match *slots {}
    }

    fn fill_part(
        &self,
        slots: &Infallible,
        _: usize,
        _: SlotAt,
        _: HostBytes,
        _: Range<usize>,
    ) -> Result<()> {
        match *slots {}
    }

    fn place(&self, slots: &Infallible, _: usize, _: &[Option<SlotAt>]) -> Result<()> {
        match *slots {}
    }

    fn stale(&self, slots: &Infallible) -> Result<Option<(usize, usize, u32)>> {
        match *slots {}
    }

    fn read_slot(&self, slots: &Infallible, _: u32, _: usize) -> Result<Vec<u8>> {
        match *slots {}
    }

    // What is issued here is done when the call returns.
    fn empty(&self, slots: &Infallible, _: &[u32]) -> Result<()> {
        match *slots {}
    }

    fn fence(&self) -> Result<()> {
        Ok(())
    }

    fn after(&self, (): &()) -> Result<()> {
        Ok(())
    }

    fn passed(&self, (): &()) -> Result<bool> {
        Ok(true)
    }

    fn seconds_between(&self, (): &(), (): &()) -> Result<f64> {
        Ok(0.0)
    }

    fn wait(&self, (): &()) -> Result<()> {
        Ok(())
    }

    fn pin(&self, bytes: HostBytes) -> Result<Box<dyn Any + Send + Sync>> {
        Ok(Box::new(bytes))
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

    fn post_rows(&self, tensor: &CpuTensor) -> Result<Vec<f32>> {
        Ok(tensor.data.clone())
    }

    fn take_rows(&self, rows: Vec<f32>, out: &mut Vec<f32>) -> Result<()> {
        *out = rows;
        Ok(())
    }

    fn write_rows(&self, tensor: &mut CpuTensor, first: usize, rows: &[f32]) -> Result<()> {
        assert!(rows.len().is_multiple_of(tensor.cols), "whole rows");
        tensor.data[first * tensor.cols..][..rows.len()].copy_from_slice(rows);
        Ok(())
    }

    fn kv_cache(&self, layers: usize, dim: usize, _: Option<u64>) -> Result<CpuKvCache> {
        Ok(CpuKvCache::new(layers, dim))
    }

    fn kv_reserve(&self, cache: &mut CpuKvCache, tokens: usize) -> Result<()> {
        cache.reserve(tokens)
    }

    fn kv_adopt(&self, _: &mut CpuKvCache, slots: &Infallible, _: u32) -> Result<usize> {
        match *slots {}
    }

    fn kv_adopted(&self, _: &CpuKvCache) -> usize {
        0
    }

    fn kv_release(&self, _: &mut CpuKvCache, _: usize) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }

    fn routing(&self, _: usize, _: &MoeConfig) -> Result<Routing> {
        Ok(Routing::default())
    }

    fn post_routing(&self, _: &mut Routing) -> Result<()> {
        Ok(())
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
        self.workers.compute().matmul(w.view(), &x.data, out.resize(x.rows()));
        Ok(())
    }

    fn add(&self, x: &CpuTensor, sum: &mut CpuTensor) -> Result<()> {
        for (s, v) in sum.data.iter_mut().zip(&x.data) {
            *s += v;
        }
        Ok(())
    }

    fn gated_mlp(&self, x: &CpuTensor, mlp: &GatedMlp<HostMatrix>, out: &mut CpuTensor) -> Result<()> {
        let mlp = GatedMlp { gate: mlp.gate.view(), up: mlp.up.view(), down: mlp.down.view() };
        self.workers.compute().gated(&mlp, &x.data, None, out.resize(x.rows()));
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
        let out = rows::Output::new(out.resize(tokens), heads * v);
        let (compute, kv_b) = (self.workers.compute(), kv_b.view());
        let attend = attention::Attend { compute, q: &q.data, tokens, kv_b, cache, call, out };
        ATTENTION.with_borrow_mut(|memory| attend.run(memory));
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

    fn blank_pairs(&self, routing: &Routing, pairs: &mut CpuTensor) -> Result<()> {
        pairs.resize(routing.sorted_pairs().len()).fill(f32::NAN);
        Ok(())
    }

    fn experts(
        &self,
        _: &CpuTensor,
        slots: &Infallible,
        _: usize,
        _: Pass<'_>,
        _: &Routing,
        _: &mut CpuTensor,
    ) -> Result<()> {
        match *slots {}
    }

    fn experts_arriving(
        &self,
        _: &CpuTensor,
        slots: &Infallible,
        _: usize,
        _: &[(u32, SlotAt)],
        (): &(),
        _: &Routing,
        _: &mut CpuTensor,
    ) -> Result<()> {
        match *slots {}
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
