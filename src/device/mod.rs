//! What the forward pass is written against.
//!
//! A [`Device`] is a set of operations with tensors in and out. The model in [`crate::model`] is written once on top
//! of it; a device may fuse, block and parallelise as it likes but not reinterpret: the formulas stand in the trait's
//! documentation. Activations are matrices [rows, cols] with one row a token. Operations size their outputs
//! themselves, so a workspace made for the largest batch serves every smaller one.
//!
//! A device knows slots that hold gated MLPs, not where those come from or which should be there: that is decided above.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod draw;
mod routing;
mod sigmoid;

pub use draw::{SampleSettings, argmax};
pub use routing::{Routing, RoutingFault};
pub(crate) use sigmoid::sigmoid;

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use crate::checkpoint::RecordLayout;
use crate::checkpoint::region::HostMatrix;
use crate::checkpoint::weights::GatedMlp;
use crate::config::{AttentionConfig, MoeConfig, RopeConfig};
use crate::error::Result;

/// Tokens a page of the key/value cache holds.
pub const KV_PAGE: usize = 64;

/// Number of rows and columns of an activation tensor.
pub trait Shape {
    /// Rows (tokens) in use.
    fn rows(&self) -> usize;
    /// Columns (features).
    fn cols(&self) -> usize;
}

/// How exactly a tensor is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// f32: sums that grow over the layers, and whatever ranks or samples are drawn from.
    Full,
    /// What the device multiplies with: f32 on the CPU, bf16 on a GPU.
    Working,
}

/// The place in the forward pass that a watched tensor belongs to; small enough to be recorded by a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    /// Layer, or `None` outside the layers.
    pub layer: Option<usize>,
    /// The checkpoint module whose output it is, without the layer's prefix.
    pub module: &'static str,
}

/// The first non-finite value that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trip {
    /// The watched tensor.
    pub site: Site,
    /// Its row.
    pub row: usize,
    /// Its column.
    pub col: usize,
}

/// Which of two equal forms of MLA to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlaForm {
    /// Keys and values are expanded from the latent, page by page. Cheaper per score; right for many queries.
    Expanded,
    /// `kv_b` is absorbed into query and output, scores are taken on the latent itself. Right for few queries.
    Absorbed,
}

/// One MLA call: where the queries stand and how they are shaped.
#[derive(Debug, Clone, Copy)]
pub struct MlaCall<'a> {
    /// Layer of the cache to read.
    pub layer: usize,
    /// Position of the first query row; row i stands at `start + i` and sees positions `0 ..= start + i`.
    pub start: usize,
    /// Dimensions and softmax scale.
    pub attention: &'a AttentionConfig,
    /// The form to compute.
    pub form: MlaForm,
}

/// Where an expert lies: a slot, and the generation the slot must have for its content to be that expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotAt {
    /// The slot.
    pub slot: u32,
    /// Its generation; never 0, which is a slot that holds nothing.
    pub generation: u32,
}

/// Bytes of a record, the same and in place for as long as somebody holds this.
pub type HostBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Which experts a call computes.
#[derive(Debug, Clone, Copy)]
pub enum Pass<'a> {
    /// Those that the layer's table on the device names.
    Residents,
    /// Just these, wherever the table says they are: expert and place. No expert stands there twice.
    Only(&'a [(u32, SlotAt)]),
}

/// A backend of the forward pass.
///
/// Matrices multiply as y = W·x with x and y rows of tensors, accumulated in f32.
pub trait Device: Send + Sync + 'static {
    /// Activations.
    type Tensor: Shape + Send;
    /// A weight matrix, in its checkpoint format.
    type Matrix: Send + Sync;
    /// A weight vector.
    type Vector: Send + Sync;
    /// Key/value cache of one sequence, all layers.
    type KvCache: Send;
    /// Memory for expert records, and tables of which expert is where.
    type Slots: Send + Sync;
    /// A point in the device's work.
    type Fence: Send + Sync;
    /// Rows of a tensor on their way to the host.
    type Rows: Send;
    /// Which experts a batch of tokens goes to.
    type Routing: Send;
    /// Remembers the first non-finite value among watched tensors.
    type Guard: Send;

    /// What computes and where the weights are, in words.
    fn placement(&self) -> String;

    /// Refuses a model that the device has no kernels for; asked before its weights are read.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] naming the field of the configuration and what to do instead.
    fn supports(&self, _attention: &AttentionConfig, _moe: &MoeConfig) -> Result<()> {
        Ok(())
    }

    /// Bytes of memory of its own that are free; `None` from a device that computes in host memory.
    fn memory_free(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Brings a matrix to the device; host devices share the memory.
    fn matrix(&self, host: &HostMatrix) -> Result<Self::Matrix>;

    /// A matrix that stays in host memory and is brought to the device whenever it is used, at most about `piece` bytes at a
    /// time, ahead of the computing where the order of use repeats. [`Device::embed`] takes rows of it alone. A device that computes in host memory uses it there.
    ///
    /// # Errors
    /// What the device reports.
    fn hosted(&self, host: &HostMatrix, _piece: usize) -> Result<Self::Matrix> {
        self.matrix(host)
    }

    /// Brings a vector to the device.
    fn vector(&self, host: &[f32]) -> Result<Self::Vector>;

    /// Threads of this device that can compute experts where their records lie, if it has any.
    fn workers(&self) -> Option<&Arc<cpu::Workers>> {
        None
    }

    /// Slots for `count` records, empty, and a table for each layer with experts that names none; `layouts` by layer,
    /// none in dense ones, each layer having `experts`. `None` from a device that computes experts where their records lie.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    fn slots(
        &self,
        layouts: &[Option<RecordLayout>],
        experts: usize,
        count: usize,
    ) -> Result<Option<Self::Slots>>;

    /// Copies a record into a slot, beside the computing: first the slot is marked as holding nothing, then it is
    /// filled, then marked as `at.generation`. The fence is passed when all that is done, and keeps the bytes; if it is
    /// dropped before, the device keeps them. The caller makes sure that nobody reads the slot any more.
    ///
    /// # Errors
    /// What the device reports; the slot then holds nothing or, if the report is about something earlier, the record.
    ///
    /// # Panics
    /// If there is no such slot, the record is larger than a slot, or the generation is 0.
    fn fill(&self, slots: &Self::Slots, at: SlotAt, record: HostBytes) -> Result<Self::Fence>;

    /// As [`fill`](Device::fill), but copies those bytes of the record of an expert of `layer` only: the slot is marked as holding
    /// nothing before the first byte, as the gate and up of `at.generation` behind the last byte before
    /// [down](RecordLayout::down_start), and as its down too behind the very last. Parts are copied in the order of calls.
    ///
    /// # Errors
    /// As [`fill`](Device::fill).
    ///
    /// # Panics
    /// As [`fill`](Device::fill), or if the record does not have those bytes or the layer no experts.
    fn fill_part(
        &self,
        slots: &Self::Slots,
        layer: usize,
        at: SlotAt,
        record: HostBytes,
        part: Range<usize>,
    ) -> Result<Self::Fence>;

    /// Replaces a layer's table: by expert, where it is, if it is anywhere. In order with the computing.
    ///
    /// # Panics
    /// If the layer has no experts, or not as many.
    fn place(&self, slots: &Self::Slots, layer: usize, places: &[Option<SlotAt>]) -> Result<()>;

    /// The first layer with an expert that was computed but was not in the slot where its table said, that expert and
    /// the slot, since the last call. Waits for the computing issued so far, once for all layers.
    fn stale(&self, slots: &Self::Slots) -> Result<Option<(usize, usize, u32)>>;

    /// Marks slots as holding nothing, for computing issued from here on: no table finds an expert there, whatever is
    /// written to their memory. The caller makes sure that nobody reads or fills them any more.
    ///
    /// # Panics
    /// If there is no such slot.
    fn empty(&self, slots: &Self::Slots, which: &[u32]) -> Result<()>;

    /// The first bytes of what a slot holds. Waits for all copies and computing issued so far.
    ///
    /// # Panics
    /// If there is no such slot, or it is smaller.
    fn read_slot(&self, slots: &Self::Slots, slot: u32, bytes: usize) -> Result<Vec<u8>>;

    /// A fence behind all computing issued so far.
    fn fence(&self) -> Result<Self::Fence>;

    /// Makes computing issued from here on wait, on the device, for the fence.
    fn after(&self, fence: &Self::Fence) -> Result<()>;

    /// Whether the device has passed the fence. Does not wait.
    fn passed(&self, fence: &Self::Fence) -> Result<bool>;

    /// Seconds from one fence to a later one of the same kind (of copies, or of computing), both passed.
    fn seconds_between(&self, earlier: &Self::Fence, later: &Self::Fence) -> Result<f64>;

    /// Waits until the device has passed the fence.
    fn wait(&self, fence: &Self::Fence) -> Result<()>;

    /// Makes host memory fit for copies that run beside the host, until what is returned is dropped. [`Device::fill`] takes
    /// other memory too, but has to copy it first.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] if the system refuses to lock so much, naming its limit.
    fn pin(&self, bytes: HostBytes) -> Result<Box<dyn Any + Send + Sync>>;

    /// A tensor for up to `max_rows` rows; it starts with none.
    fn tensor(&self, max_rows: usize, cols: usize, precision: Precision) -> Result<Self::Tensor>;

    /// Copies all rows to host memory, row-major.
    fn read(&self, tensor: &Self::Tensor, out: &mut Vec<f32>) -> Result<()>;

    /// Starts copying all rows to the host, as they are after what was issued so far.
    fn post_rows(&self, tensor: &Self::Tensor) -> Result<Self::Rows>;

    /// Waits for the copy that was posted, not for work issued after it; row-major.
    fn take_rows(&self, rows: Self::Rows, out: &mut Vec<f32>) -> Result<()>;

    /// Rows of the tensor from `first` on become `rows`, rounded to its precision.
    ///
    /// # Panics
    /// If they are not whole rows that are in use.
    fn write_rows(&self, tensor: &mut Self::Tensor, first: usize, rows: &[f32]) -> Result<()>;

    /// An empty cache for `layers` layers of `dim` elements a token, which allocates at most `limit` bytes on a device with
    /// slots.
    fn kv_cache(&self, layers: usize, dim: usize, limit: Option<u64>) -> Result<Self::KvCache>;

    /// Makes room for `tokens` tokens, in pages of [`KV_PAGE`].
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`]; what the cache held stays.
    fn kv_reserve(&self, cache: &mut Self::KvCache, tokens: usize) -> Result<()>;

    /// Adds the memory of a slot to a cache, as whole pages behind those it has, and returns for how many tokens there is more
    /// room; 0 if a page is larger than a slot, and the cache then has not taken it. The slot is [empty](Device::empty),
    /// and nobody fills it until [`Device::kv_release`] returns it.
    ///
    /// # Errors
    /// What the device reports; the cache has not taken the slot then.
    ///
    /// # Panics
    /// If there is no such slot.
    fn kv_adopt(&self, cache: &mut Self::KvCache, slots: &Self::Slots, slot: u32) -> Result<usize>;

    /// Slots whose memory the cache has.
    fn kv_adopted(&self, cache: &Self::KvCache) -> usize;

    /// Takes those slots out of a cache that lie wholly beyond its first `tokens` tokens, and whatever they held. The
    /// caller makes sure that nothing that is under way reads them.
    ///
    /// # Errors
    /// What the device reports; the cache keeps all its slots then.
    fn kv_release(&self, cache: &mut Self::KvCache, tokens: usize) -> Result<Vec<u32>>;

    /// Room for the routing of up to `max_tokens` tokens.
    fn routing(&self, max_tokens: usize, moe: &MoeConfig) -> Result<Self::Routing>;

    /// Starts copying the routing to the host, as it is after what was issued so far: [`Device::read_routing`] then waits for
    /// this copy, not for work issued after it.
    fn post_routing(&self, routing: &mut Self::Routing) -> Result<()>;

    /// Copies a routing to host memory.
    fn read_routing(&self, routing: &Self::Routing, out: &mut Routing) -> Result<()>;

    /// Replaces a routing by decisions made elsewhere for as many tokens.
    fn write_routing(&self, host: &Routing, routing: &mut Self::Routing) -> Result<()>;

    /// The first layer with a token whose scores could not fill its top-k. Layers without experts have no routing.
    fn routing_fault(&self, layers: &[Option<Self::Routing>]) -> Result<Option<(usize, RoutingFault)>>;

    /// A guard that has seen nothing.
    fn guard(&self) -> Result<Self::Guard>;

    /// out\[i\] = table[ids\[i\]]. Ids are below the table's rows.
    fn embed(&self, table: &Self::Matrix, ids: &[u32], out: &mut Self::Tensor) -> Result<()>;

    /// out = x / √(mean(x²) + eps) ⊙ weight, by row.
    fn rms_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// out = W·x.
    fn linear(&self, x: &Self::Tensor, w: &Self::Matrix, out: &mut Self::Tensor) -> Result<()>;

    /// sum += x, elementwise.
    fn add(&self, x: &Self::Tensor, sum: &mut Self::Tensor) -> Result<()>;

    /// [`Device::add`], then [`Device::rms_norm`] of the sum.
    fn add_rms_norm(
        &self,
        x: &Self::Tensor,
        sum: &mut Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.add(x, sum)?;
        self.rms_norm(sum, weight, eps, out)
    }

    /// out = down·(silu(gate·x) ⊙ (up·x)), silu(z) = z / (1 + e^-z).
    fn gated_mlp(&self, x: &Self::Tensor, mlp: &GatedMlp<Self::Matrix>, out: &mut Self::Tensor)
    -> Result<()>;

    /// out = rows `range` of x.
    fn rows(&self, x: &Self::Tensor, range: Range<usize>, out: &mut Self::Tensor) -> Result<()>;

    /// Rotates the rotary part of every head of `q` [tokens, heads · (nope + rope)] in place. Row i stands at
    /// position `start + i`. Pairs (2i, 2i+1) rotate by position · inv_freq\[i\]; their first elements are left in the
    /// first half of the rotary part, their second in the second half.
    fn rope_query(
        &self,
        q: &mut Self::Tensor,
        start: usize,
        attention: &AttentionConfig,
        rope: &RopeConfig,
    ) -> Result<()>;

    /// Appends `kv_a` [tokens, kv_lora + rope] to a layer of the cache from position `start` on: the latent part
    /// normalised with `norm`, the key part rotated as in [`Device::rope_query`].
    #[allow(
        clippy::too_many_arguments,
        reason = "one fused operation of the model, each argument distinct in type"
    )]
    fn kv_append(
        &self,
        kv_a: &Self::Tensor,
        norm: &Self::Vector,
        eps: f32,
        rope: &RopeConfig,
        layer: usize,
        start: usize,
        cache: &mut Self::KvCache,
    ) -> Result<()>;

    /// Causal multi-head latent attention over the cache: per head h of query row i
    /// out = Σⱼ softmaxⱼ(scale · (q_nope·K_h·cⱼ + q_rope·rⱼ)) V_h·cⱼ over cached (latent cⱼ, key rⱼ), where K_h and V_h are
    /// the head's rows of `kv_b`. `q` as [`Device::rope_query`] left it; `out` [tokens, heads · v].
    fn mla(
        &self,
        q: &Self::Tensor,
        kv_b: &Self::Matrix,
        cache: &Self::KvCache,
        call: MlaCall<'_>,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// Routes every row of `logits` [tokens, experts] by the rules of [`Routing::route_row`].
    fn route(
        &self,
        logits: &Self::Tensor,
        bias: &Self::Vector,
        moe: &MoeConfig,
        routing: &mut Self::Routing,
    ) -> Result<()>;

    /// Gives `pairs` a row for each pair of the routing, all NaN, so that a row that nobody computes is noticed.
    fn blank_pairs(&self, routing: &Self::Routing, pairs: &mut Self::Tensor) -> Result<()>;

    /// pairs\[p\] = mlp(x[token of sorted pair p]) with the MLP of that pair's expert, not yet weighted, for the experts of
    /// the pass; other rows stay as they are. An expert whose slot has another generation than its place says is computed
    /// as NaN, and [`Device::stale`] names it.
    ///
    /// # Panics
    /// If the layer has no experts.
    fn experts(
        &self,
        x: &Self::Tensor,
        slots: &Self::Slots,
        layer: usize,
        pass: Pass<'_>,
        routing: &Self::Routing,
        pairs: &mut Self::Tensor,
    ) -> Result<()>;

    /// As [`experts`](Device::experts) of [`Pass::Only`] with these experts, but the device makes the computing wait for `down`
    /// itself: before it reads the first down matrix, as late as its kernels allow. All of gate and up is there when what was
    /// waited for before is.
    ///
    /// # Panics
    /// If the layer has no experts.
    #[allow(clippy::too_many_arguments, reason = "a pass over experts, and when the rest of them is there")]
    fn experts_arriving(
        &self,
        x: &Self::Tensor,
        slots: &Self::Slots,
        layer: usize,
        experts: &[(u32, SlotAt)],
        down: &Self::Fence,
        routing: &Self::Routing,
        pairs: &mut Self::Tensor,
    ) -> Result<()>;

    /// sum\[t\] += Σⱼ weight[t, j] · pairs[position of pair (t, j)], j in rank order.
    fn combine(&self, pairs: &Self::Tensor, routing: &Self::Routing, sum: &mut Self::Tensor) -> Result<()>;

    /// The token that `settings` and a random word choose from `logits`, one row of [`Precision::Full`], as
    /// [`SampleSettings::token`] defines it. The logits are finite.
    fn sample(&self, logits: &Self::Tensor, settings: &SampleSettings, word: u64) -> Result<u32>;

    /// Notes the first NaN or infinity of `x` in the guard, unless it already holds one.
    fn watch(&self, x: &Self::Tensor, site: Site, guard: &mut Self::Guard) -> Result<()>;

    /// Takes what the guard holds, leaving it empty.
    fn tripped(&self, guard: &mut Self::Guard) -> Result<Option<Trip>>;
}
