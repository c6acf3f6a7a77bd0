//! The forward pass on a GPU: which kernel does what, and the memory they share.
//!
//! Computing is issued on one stream, in order; nothing waits for the device until a result is asked for. Records are copied
//! into slots on another stream, beside it. Scratch
//! memory belongs to the device: since all of its users are ordered by the stream, they can share it.

use std::any::Any;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::copies::CudaFence;
use super::gpu::Gpu;
use super::kernels::{elementwise, mla, norm, rope, route, sample, watch};
use super::memory::Buffer;
use super::routing::{NO_FAULT, fault_of};
use super::scratch::{DrawScratch, Scratch, fit, fit_tensor};
use super::staging::Pin;
use super::trunk::TrunkStream;
use super::{CudaKvCache, CudaMatrix, CudaRouting, CudaRows, CudaSlots, CudaTensor, CudaWeights};
use crate::checkpoint::RecordLayout;
use crate::checkpoint::region::HostMatrix;
use crate::checkpoint::weights::GatedMlp;
use crate::config::{AttentionConfig, MoeConfig, RopeConfig};
use crate::device::{
    Device, HostBytes, MlaCall, MlaForm, Pass, Precision, Routing, RoutingFault, SampleSettings, Shape, Site,
    SlotAt, Trip,
};
use crate::error::{Error, Result};

/// A GPU as the forward pass sees it.
pub struct CudaDevice {
    gpu: Gpu,
    scratch: Mutex<Scratch>,
    /// Taken after the scratch memory where both are.
    trunk: Mutex<Option<TrunkStream>>,
}

/// Watched tensors so far, and the device's record of the first non-finite value among them.
pub struct CudaGuard {
    sites: Vec<Site>,
    word: Buffer<u64>,
}

impl CudaDevice {
    /// The forward pass on a GPU that was opened.
    pub fn new(gpu: Gpu) -> CudaDevice {
        CudaDevice { gpu, scratch: Mutex::default(), trunk: Mutex::default() }
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(super) fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn trunk(&self) -> MutexGuard<'_, Option<TrunkStream>> {
        self.trunk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for CudaDevice {
    type Tensor = CudaTensor;
    type Matrix = CudaWeights;
    type Vector = Buffer<f32>;
    type KvCache = CudaKvCache;
    type Slots = CudaSlots;
    type Fence = CudaFence;
    type Rows = CudaRows;
    type Routing = CudaRouting;
    type Guard = CudaGuard;

    fn placement(&self) -> String {
        let why = self.trunk().as_ref().and_then(TrunkStream::unpinned).map(str::to_owned);
        let why = why.map_or(String::new(), |why| {
            format!("; the trunk is copied from memory that is not page-locked: {why}")
        });
        self.gpu.name().to_owned() + &why
    }

    fn memory_free(&self) -> Result<Option<u64>> {
        self.gpu.memory_free().map(Some)
    }

    fn supports(&self, attention: &AttentionConfig, moe: &MoeConfig) -> Result<()> {
        mla::check_widths(attention)?;
        route::check_widths(moe)
    }

    fn matrix(&self, host: &HostMatrix) -> Result<CudaWeights> {
        CudaMatrix::upload(&self.gpu, host).map(CudaWeights::Resident)
    }

    fn hosted(&self, host: &HostMatrix, piece: usize) -> Result<CudaWeights> {
        let mut trunk = self.trunk();
        let stream = match &mut *trunk {
            Some(stream) => stream,
            none => none.insert(TrunkStream::new(&self.gpu)?),
        };
        Ok(CudaWeights::Hosted(stream.host(host, piece)))
    }

    fn vector(&self, host: &[f32]) -> Result<Buffer<f32>> {
        self.gpu.upload(host, "a weight vector")
    }

    fn slots(
        &self,
        layouts: &[Option<RecordLayout>],
        experts: usize,
        count: usize,
    ) -> Result<Option<CudaSlots>> {
        CudaSlots::new(&self.gpu, layouts, experts, count).map(Some)
    }

    fn fill(&self, slots: &CudaSlots, at: SlotAt, record: HostBytes) -> Result<CudaFence> {
        slots.fill(at, record)
    }

    fn fill_part(
        &self,
        slots: &CudaSlots,
        layer: usize,
        at: SlotAt,
        record: HostBytes,
        part: Range<usize>,
    ) -> Result<CudaFence> {
        slots.fill_part(layer, at, record, part)
    }

    fn place(&self, slots: &CudaSlots, layer: usize, places: &[Option<SlotAt>]) -> Result<()> {
        slots.place(layer, places)
    }

    fn stale(&self, slots: &CudaSlots) -> Result<Option<(usize, usize, u32)>> {
        slots.stale()
    }

    fn empty(&self, slots: &CudaSlots, which: &[u32]) -> Result<()> {
        slots.empty(which)
    }

    fn read_slot(&self, slots: &CudaSlots, slot: u32, bytes: usize) -> Result<Vec<u8>> {
        slots.record(slot, bytes)
    }

    fn fence(&self) -> Result<CudaFence> {
        CudaFence::of_computing(&self.gpu)
    }

    fn after(&self, fence: &CudaFence) -> Result<()> {
        fence.before_computing()
    }

    fn passed(&self, fence: &CudaFence) -> Result<bool> {
        fence.passed()
    }

    fn seconds_between(&self, earlier: &CudaFence, later: &CudaFence) -> Result<f64> {
        earlier.seconds_until(later)
    }

    fn wait(&self, fence: &CudaFence) -> Result<()> {
        fence.wait()
    }

    fn pin(&self, bytes: HostBytes) -> Result<Box<dyn Any + Send + Sync>> {
        Ok(Box::new(Pin::new(&self.gpu, bytes)?))
    }

    fn tensor(&self, max_rows: usize, cols: usize, precision: Precision) -> Result<CudaTensor> {
        CudaTensor::new(&self.gpu, max_rows, cols, precision)
    }

    fn read(&self, tensor: &CudaTensor, out: &mut Vec<f32>) -> Result<()> {
        tensor.download(&self.gpu, out)
    }

    fn post_rows(&self, tensor: &CudaTensor) -> Result<CudaRows> {
        tensor.post(&self.gpu)
    }

    fn take_rows(&self, rows: CudaRows, out: &mut Vec<f32>) -> Result<()> {
        rows.take(out)
    }

    fn write_rows(&self, tensor: &mut CudaTensor, first: usize, rows: &[f32]) -> Result<()> {
        tensor.write_rows(&self.gpu, first, rows)
    }

    fn kv_cache(&self, layers: usize, dim: usize, limit: Option<u64>) -> Result<CudaKvCache> {
        Ok(CudaKvCache::new(&self.gpu, layers, dim)?.limited(limit))
    }

    fn kv_reserve(&self, cache: &mut CudaKvCache, tokens: usize) -> Result<()> {
        cache.reserve(tokens)
    }

    fn kv_adopt(&self, cache: &mut CudaKvCache, slots: &CudaSlots, slot: u32) -> Result<usize> {
        cache.adopt(slots, slot)
    }

    fn kv_adopted(&self, cache: &CudaKvCache) -> usize {
        cache.adopted()
    }

    fn kv_release(&self, cache: &mut CudaKvCache, tokens: usize) -> Result<Vec<u32>> {
        cache.release(tokens)
    }

    fn routing(&self, max_tokens: usize, moe: &MoeConfig) -> Result<CudaRouting> {
        CudaRouting::new(&self.gpu, max_tokens, moe)
    }

    fn post_routing(&self, routing: &mut CudaRouting) -> Result<()> {
        routing.post(&self.gpu)
    }

    fn read_routing(&self, routing: &CudaRouting, out: &mut Routing) -> Result<()> {
        *out = routing.download(&self.gpu)?;
        Ok(())
    }

    fn write_routing(&self, host: &Routing, routing: &mut CudaRouting) -> Result<()> {
        routing.upload(&self.gpu, host)
    }

    fn routing_fault(&self, layers: &[Option<CudaRouting>]) -> Result<Option<(usize, RoutingFault)>> {
        // Gathered on the device, so that the host waits once and not once a layer.
        let mut scratch = self.scratch();
        let fits = |b: &mut Buffer<u64>| b.len() >= layers.len();
        let words = fit(&mut scratch.faults, fits, || self.gpu.alloc(layers.len(), "routing faults"))?;
        let routed = || layers.iter().enumerate().filter_map(|(layer, r)| Some((layer, r.as_ref()?)));
        for (at, (_, routing)) in routed().enumerate() {
            words.slice_mut(at..=at).copy_from(&self.gpu, routing.fault())?;
        }
        let found = words.slice(..routed().count()).download(&self.gpu)?;
        let first = routed().zip(found).find_map(|((layer, _), word)| Some((layer, fault_of(word)?)));
        Ok(first)
    }

    fn guard(&self) -> Result<CudaGuard> {
        Ok(CudaGuard { sites: Vec::new(), word: self.gpu.upload(&[NO_FAULT], "the non-finite guard")? })
    }

    fn embed(&self, table: &CudaWeights, ids: &[u32], out: &mut CudaTensor) -> Result<()> {
        let table = match table {
            CudaWeights::Resident(table) => table,
            CudaWeights::Hosted(table) => return self.embed_hosted(&table.host, ids, out),
        };
        let mut scratch = self.scratch();
        let held = fit(
            &mut scratch.ids,
            |b: &mut Buffer<u32>| b.len() >= ids.len(),
            || self.gpu.alloc(ids.len(), "token ids"),
        )?;
        held.slice_mut(..ids.len()).write(&self.gpu, ids)?;
        elementwise::embed(&self.gpu, table, held.slice(..ids.len()), out)
    }

    fn rms_norm(&self, x: &CudaTensor, weight: &Buffer<f32>, eps: f32, out: &mut CudaTensor) -> Result<()> {
        norm::rms_norm(&self.gpu, x, weight.all(), eps, out)
    }

    fn linear(&self, x: &CudaTensor, w: &CudaWeights, out: &mut CudaTensor) -> Result<()> {
        self.multiply(x, w, &mut self.scratch().decoded, out)
    }

    fn add(&self, x: &CudaTensor, sum: &mut CudaTensor) -> Result<()> {
        elementwise::add(&self.gpu, x, sum)
    }

    fn add_rms_norm(
        &self,
        x: &CudaTensor,
        sum: &mut CudaTensor,
        weight: &Buffer<f32>,
        eps: f32,
        out: &mut CudaTensor,
    ) -> Result<()> {
        norm::add_rms_norm(&self.gpu, x, sum, weight.all(), eps, out)
    }

    fn gated_mlp(&self, x: &CudaTensor, mlp: &GatedMlp<CudaWeights>, out: &mut CudaTensor) -> Result<()> {
        let scratch = &mut *self.scratch();
        let width = mlp.gate.layout().rows;
        let gate = fit_tensor(&self.gpu, &mut scratch.gate, x.rows(), width)?;
        let up = fit_tensor(&self.gpu, &mut scratch.up, x.rows(), width)?;
        self.multiply(x, &mlp.gate, &mut scratch.decoded, gate)?;
        self.multiply(x, &mlp.up, &mut scratch.decoded, up)?;
        let hidden = fit_tensor(&self.gpu, &mut scratch.hidden, x.rows(), width)?;
        elementwise::swiglu(&self.gpu, gate, up, hidden)?;
        self.multiply(hidden, &mlp.down, &mut scratch.decoded, out)
    }

    fn rows(&self, x: &CudaTensor, range: Range<usize>, out: &mut CudaTensor) -> Result<()> {
        elementwise::copy_rows(&self.gpu, x, range, out)
    }

    fn rope_query(
        &self,
        q: &mut CudaTensor,
        start: usize,
        attention: &AttentionConfig,
        rope: &RopeConfig,
    ) -> Result<()> {
        let mut scratch = self.scratch();
        let frequencies = scratch.frequencies(&self.gpu, rope)?.all();
        let AttentionConfig { num_heads, nope_head_dim: nope, rope_head_dim: rotary, .. } = *attention;
        rope::rope_query(&self.gpu, q, start, num_heads, nope, rotary, frequencies, rope.amplitude)
    }

    fn kv_append(
        &self,
        kv_a: &CudaTensor,
        norm: &Buffer<f32>,
        eps: f32,
        rope: &RopeConfig,
        layer: usize,
        start: usize,
        cache: &mut CudaKvCache,
    ) -> Result<()> {
        let mut scratch = self.scratch();
        let frequencies = scratch.frequencies(&self.gpu, rope)?.all();
        rope::kv_append(
            &self.gpu,
            kv_a,
            norm.all(),
            eps,
            frequencies,
            rope.amplitude,
            start,
            &cache.layer(layer),
        )
    }

    fn mla(
        &self,
        q: &CudaTensor,
        kv_b: &CudaWeights,
        cache: &CudaKvCache,
        call: MlaCall<'_>,
        out: &mut CudaTensor,
    ) -> Result<()> {
        let (pages, scratch) = (cache.layer(call.layer), &mut self.scratch().mla);
        if let CudaWeights::Hosted(hosted) = kv_b
            && hosted.pieces.len() > 1
        {
            return Err(Error::Unsupported {
                what: format!(
                    "layer {}'s kv_b_proj in host memory, in {} pieces",
                    call.layer,
                    hosted.pieces.len()
                ),
                instead: "attention takes it whole: let pieces be as large".into(),
            });
        }
        self.each_piece(kv_b, |kv_b, _| match call.form {
            MlaForm::Absorbed => {
                mla::decode(&self.gpu, q, kv_b, &pages, call.start, call.attention, scratch, out)
            }
            MlaForm::Expanded => {
                mla::prefill(&self.gpu, q, kv_b, &pages, call.start, call.attention, scratch, out)
            }
        })
    }

    fn route(
        &self,
        logits: &CudaTensor,
        bias: &Buffer<f32>,
        moe: &MoeConfig,
        routing: &mut CudaRouting,
    ) -> Result<()> {
        route::route(&self.gpu, logits, bias.all(), moe, routing)
    }

    fn blank_pairs(&self, routing: &CudaRouting, pairs: &mut CudaTensor) -> Result<()> {
        pairs.resize(routing.pairs());
        pairs.blank(&self.gpu)
    }

    fn experts(
        &self,
        x: &CudaTensor,
        slots: &CudaSlots,
        layer: usize,
        pass: Pass<'_>,
        routing: &CudaRouting,
        pairs: &mut CudaTensor,
    ) -> Result<()> {
        self.pass(x, slots, layer, pass, None, routing, pairs)
    }

    fn experts_arriving(
        &self,
        x: &CudaTensor,
        slots: &CudaSlots,
        layer: usize,
        experts: &[(u32, SlotAt)],
        down: &CudaFence,
        routing: &CudaRouting,
        pairs: &mut CudaTensor,
    ) -> Result<()> {
        self.pass(x, slots, layer, Pass::Only(experts), Some(down), routing, pairs)
    }

    fn combine(&self, pairs: &CudaTensor, routing: &CudaRouting, sum: &mut CudaTensor) -> Result<()> {
        elementwise::combine(&self.gpu, pairs, routing.weights(), routing.positions(), routing.top_k(), sum)
    }

    fn sample(&self, logits: &CudaTensor, settings: &SampleSettings, word: u64) -> Result<u32> {
        assert_eq!(logits.rows(), 1, "one row to draw from");
        let mut scratch = self.scratch();
        let make = || {
            Ok(DrawScratch {
                word: self.gpu.alloc(1, "a random word")?,
                id: self.gpu.alloc(1, "a token id")?,
                fault: self.gpu.upload(&[sample::NO_FAULT], "a row that cannot be drawn from")?,
            })
        };
        let DrawScratch { word: held, id, fault } = fit(&mut scratch.draw, |_| true, make)?;
        held.all_mut().write(&self.gpu, &[word])?;
        sample::sample(&self.gpu, logits, settings, held.all(), id.all_mut(), fault.all_mut())?;
        // Of one row the id tells a fault as well.
        let id = id.download()?[0];
        assert_ne!(id, sample::NO_TOKEN, "a row that can be drawn from");
        Ok(id)
    }

    fn watch(&self, x: &CudaTensor, site: Site, guard: &mut CudaGuard) -> Result<()> {
        guard.sites.push(site);
        watch::watch(&self.gpu, x, guard.sites.len() as u32 - 1, guard.word.all_mut())
    }

    fn tripped(&self, guard: &mut CudaGuard) -> Result<Option<Trip>> {
        let sites = std::mem::take(&mut guard.sites);
        let Some((site, row, col)) = watch::unpack(guard.word.download()?[0]) else { return Ok(None) };
        guard.word.all_mut().write(&self.gpu, &[NO_FAULT])?;
        Ok(Some(Trip { site: sites[site as usize], row, col }))
    }
}
