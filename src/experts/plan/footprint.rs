//! What each thing the engine keeps in GPU memory takes, in bytes, from the configuration alone.
//!
//! The sizes are those of the allocations that the CUDA device makes: `model/forward.rs` (workspace), `device/cuda/kv.rs`,
//! `device/cuda/tensor.rs`, `device/cuda/routing.rs`, and the scratch memory of `device/cuda/device.rs` and its kernels. Whoever
//! changes a size there changes it here.

use crate::checkpoint::RecordLayout;
use crate::checkpoint::region::PART_ALIGN;
use crate::checkpoint::weights::{GatedMlp, MatrixSpec, Mlp, Query, Weights, expert_spec};
use crate::config::ModelConfig;
use crate::device::KV_PAGE;
use crate::experts::residency::ONE_BY_ONE;
use crate::quant::Format;

/// Where the driver begins an allocation, in bytes.
const ALLOCATION: u64 = 256;
/// Pages that a cache's table has room for at least.
const PAGE_TABLE: u64 = 512;
/// Elements that a row of activations is padded to.
const STRIDE: usize = 8;
/// Tokens up to which matrices are multiplied as they stand; beyond, FP8 ones of the trunk are decoded first.
const SMALL_BATCH: usize = 16;
/// Queries up to which attention works on the latent.
const ABSORB_UP_TO: usize = 4;
/// Bytes of expanded keys and values at a time.
const EXPANDED: usize = 64 << 20;
/// Heads of a block of absorbed attention.
const HEADS: usize = 64;
/// Multiprocessors of a whole H100 or H200; absorbed attention on fewer takes less.
const MULTIPROCESSORS: usize = 132;
/// Mean rows an expert up to which experts of a format are multiplied without being decoded.
const MANY_ROWS_BF16: usize = 16;
const MANY_ROWS_INT4: usize = 8 * 16;
/// Bytes of decoded expert matrices, and how many there are at most.
const DECODED_BYTES: usize = 256 << 20;
const MAX_GROUPS: usize = 1024;
/// Largest piece of a streamed matrix. Rows are independent, so a matrix can be streamed in pieces; 64 MiB is more than a
/// millisecond of the link, against which a launch is nothing.
const STREAM_PIECE: u64 = 64 << 20;

/// What an allocation takes.
pub(super) fn allocation(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(ALLOCATION)
}

fn elements(count: usize, size: u64) -> u64 {
    allocation(count as u64 * size)
}

fn tensor(rows: usize, cols: usize, size: u64) -> u64 {
    elements(rows * cols.next_multiple_of(STRIDE), size)
}

/// Sizes that depend on the model only.
pub(super) struct Footprint<'a> {
    config: &'a ModelConfig,
    /// Norms and the router's biases, always resident.
    pub vectors: u64,
    pub embedding: u64,
    /// Matrices of each layer but its routed experts.
    pub layers: Vec<u64>,
    /// 0 if the head is the embedding.
    pub head: u64,
    largest_matrix: u64,
    largest_kv_b: u64,
    /// Elements of the largest FP8 matrix of the trunk, as it is decoded.
    decoded: Option<(usize, usize)>,
    /// Widest gated MLP of the trunk.
    widest: usize,
    /// Record size of each layer with experts.
    pub records: Vec<u64>,
    expert: Option<GatedMlp<MatrixSpec>>,
    plain: Format,
}

impl<'a> Footprint<'a> {
    /// `plain` is how matrices are stored that no quantisation covers.
    pub fn new(config: &'a ModelConfig, plain: Format) -> Footprint<'a> {
        let weights = Weights::describe(config);
        let moe_layers = config.first_k_dense.min(config.num_layers)..config.num_layers;
        let mut f = Footprint {
            config,
            vectors: 0,
            embedding: 0,
            layers: Vec::with_capacity(config.num_layers),
            head: 0,
            largest_matrix: 0,
            largest_kv_b: 0,
            decoded: None,
            widest: 0,
            expert: (!moe_layers.is_empty()).then(|| expert_spec(config, moe_layers.start, 0)),
            records: Vec::with_capacity(moe_layers.len()),
            plain,
        };
        weights.visit(&mut |_| {}, &mut |v| f.vectors += elements(v.len, 4));
        f.embedding = f.matrix(&weights.embedding);
        f.head = weights.head.as_ref().map_or(0, |head| f.matrix(head));
        for layer in &weights.layers {
            let attention = &layer.attention;
            let mut matrices = vec![&attention.kv_a, &attention.kv_b, &attention.output];
            match &attention.query {
                Query::Direct(q) => matrices.push(q),
                Query::LowRank { a, b, .. } => matrices.extend([a, b]),
            }
            let gated = match &layer.mlp {
                Mlp::Dense(mlp) => Some(mlp),
                Mlp::Experts { router, shared, .. } => {
                    matrices.push(router);
                    shared.as_ref()
                }
            };
            if let Some(mlp) = gated {
                matrices.extend(mlp.each());
                f.widest = f.widest.max(mlp.gate.rows);
            }
            f.largest_kv_b = f.largest_kv_b.max(f.matrix(&attention.kv_b));
            let bytes = matrices.into_iter().map(|m| f.matrix(m)).sum();
            f.layers.push(bytes);
        }
        for layer in moe_layers {
            let layout = RecordLayout::new(&expert_spec(config, layer, 0).map(|m| m.layout(plain)));
            f.records.push(layout.size() as u64);
        }
        f
    }

    /// A matrix as it is uploaded: weights, padding, scales.
    fn matrix(&mut self, spec: &MatrixSpec) -> u64 {
        let layout = spec.layout(self.plain);
        if layout.format == Format::Fp8Block && layout.cols.is_multiple_of(16) {
            let size = |(rows, cols): (usize, usize)| rows * cols;
            let this = (layout.rows, layout.cols);
            self.decoded = self.decoded.into_iter().chain([this]).max_by_key(|&d| size(d));
        }
        let weight = layout.weight_bytes().next_multiple_of(PART_ALIGN);
        let bytes = allocation((weight + layout.scale_bytes()) as u64);
        self.largest_matrix = self.largest_matrix.max(bytes);
        bytes
    }

    /// The trunk's matrices.
    pub fn trunk(&self) -> u64 {
        self.embedding + self.layers.iter().sum::<u64>() + self.head
    }

    /// Trunk bytes that a decoded token reads in device memory.
    pub fn trunk_read(&self) -> u64 {
        let head = if self.head == 0 { self.embedding } else { self.head };
        self.vectors + self.layers.iter().sum::<u64>() + head
    }

    /// Most bytes of a streamed matrix at once. Attention takes `kv_b` whole.
    pub fn stream_piece(&self) -> u64 {
        STREAM_PIECE.min(self.largest_matrix).max(self.largest_kv_b)
    }

    /// The double buffer that streamed matrices pass through.
    pub fn stream_buffers(&self) -> u64 {
        2 * allocation(self.stream_piece())
    }

    /// Routed experts of all layers.
    pub fn experts(&self) -> u64 {
        (self.records.len() * self.config.moe.num_experts) as u64
    }

    /// Bytes of all records.
    pub fn record_bytes(&self) -> u64 {
        self.records.iter().sum::<u64>() * self.config.moe.num_experts as u64
    }

    /// Bytes of a slot: the largest record, since all layers share the slots.
    pub fn slot(&self) -> u64 {
        self.records.iter().copied().max().unwrap_or(0)
    }

    /// Bytes of routed experts a token needs.
    pub fn routed(&self) -> u64 {
        self.records.iter().sum::<u64>() * self.config.moe.top_k as u64
    }

    /// Slots and their generations, two a slot.
    pub fn pool(&self, slots: u64) -> u64 {
        match slots {
            0 => 0,
            _ => slots.saturating_mul(self.slot()).saturating_add(allocation(8 * slots)),
        }
    }

    /// Most slots in `bytes`.
    pub fn slots_in(&self, bytes: u64) -> u64 {
        bytes.saturating_sub(ALLOCATION).checked_div(self.slot() + 4).filter(|_| self.slot() > 0).unwrap_or(0)
    }

    /// Table of (slot, generation) by expert of every layer, and the word that names a stale slot.
    pub fn tables(&self) -> u64 {
        match self.experts() {
            0 => 0,
            experts => allocation(8 * experts) + allocation(8),
        }
    }

    /// Latent cache and page table of one session.
    pub fn kv(&self, context: usize) -> u64 {
        let stride = self.config.attention.cached_dim().next_multiple_of(STRIDE);
        let pages = context.div_ceil(KV_PAGE) as u64;
        let page = (self.config.num_layers * KV_PAGE * stride * 2) as u64;
        let table = pages.next_power_of_two().max(PAGE_TABLE);
        allocation(pages.saturating_mul(page)).saturating_add(allocation(8 * table))
    }

    /// Activations of one session, for chunks of `chunk` tokens.
    pub fn workspace(&self, chunk: usize) -> u64 {
        let (c, a, moe) = (self.config, &self.config.attention, &self.config.moe);
        let working = |cols| tensor(chunk, cols, 2);
        let full = |cols| tensor(chunk, cols, 4);
        // ids, weights, the sorted pairs, their tokens, positions; offsets; the fault; its progress.
        let routing = |tokens: usize| {
            5 * elements(tokens * moe.top_k, 4)
                + elements(moe.num_experts + 1, 4)
                + allocation(8)
                + allocation(16)
        };
        let guess = tensor(ONE_BY_ONE, c.hidden_size, 4)
            + tensor(ONE_BY_ONE, c.hidden_size, 2)
            + tensor(ONE_BY_ONE, moe.num_experts, 4)
            + routing(ONE_BY_ONE);
        let latent = working(a.q_lora_rank.unwrap_or(1));
        2 * full(c.hidden_size)
            + 2 * working(c.hidden_size)
            + 2 * latent
            + working(a.num_heads * a.qk_head_dim())
            + working(a.cached_dim())
            + working(a.num_heads * a.v_head_dim)
            + full(moe.num_experts)
            + tensor(chunk * moe.top_k, c.hidden_size, 2)
            + full(c.vocab_size)
            + routing(chunk) * self.records.len() as u64
            + guess
            + allocation(8)
    }

    /// What kernels keep between them, shared by all sessions.
    pub fn scratch(&self, chunk: usize, context: usize) -> u64 {
        let c = self.config;
        let mlp = if self.widest == 0 { 0 } else { 3 * tensor(chunk, self.widest, 2) };
        let decoded = match self.decoded {
            Some((rows, cols)) if chunk > SMALL_BATCH => tensor(rows, cols, 2),
            _ => 0,
        };
        let draw = allocation(8) + 2 * allocation(4);
        let small = elements(chunk, 4) + elements(c.rope.inv_freq.len(), 4) + elements(c.num_layers, 8);
        mlp + decoded + draw + small + self.expert_scratch(chunk) + self.attention_scratch(chunk, context)
    }

    fn expert_scratch(&self, chunk: usize) -> u64 {
        let Some(expert) = &self.expert else { return 0 };
        let (gate, moe) = (expert.gate.layout(self.plain), &self.config.moe);
        let (pairs, hidden, width) = (chunk * moe.top_k, self.config.hidden_size, moe.intermediate_size);
        let unblocked = |pairs: usize| tensor(pairs, width, 2);
        let many = match gate.format {
            Format::Fp8Block if hidden.is_multiple_of(16) && width.is_multiple_of(16) => {
                let small = unblocked(pairs.min(SMALL_BATCH * moe.top_k));
                let quantised = |cols: usize| {
                    let scales = cols.div_ceil(128) * pairs.next_multiple_of(4);
                    elements(pairs * cols.next_multiple_of(16), 1) + elements(scales, 4)
                };
                return match chunk > SMALL_BATCH {
                    true => small + quantised(hidden) + quantised(width),
                    false => small,
                };
            }
            Format::Bf16 => MANY_ROWS_BF16 * moe.num_experts,
            Format::Int4Group32 => MANY_ROWS_INT4 * moe.num_experts,
            _ => usize::MAX,
        };
        if pairs <= many || !hidden.is_multiple_of(8) || !width.is_multiple_of(8) {
            return unblocked(pairs);
        }
        let decoded = match gate.format {
            Format::Bf16 => 0,
            _ => {
                let each = (gate.rows * gate.cols * 2).max(1);
                (DECODED_BYTES / each).clamp(1, moe.num_experts.min(MAX_GROUPS)) * each
            }
        };
        unblocked(many)
            + tensor(pairs, hidden, 2)
            + 3 * tensor(pairs, width, 2)
            + 2 * elements(moe.num_experts, 4)
            + allocation(decoded as u64)
    }

    fn attention_scratch(&self, chunk: usize, context: usize) -> u64 {
        let a = &self.config.attention;
        let few = chunk.min(ABSORB_UP_TO);
        let pages = context.div_ceil(KV_PAGE).max(1);
        // Fewer tokens at a time are divided into more parts.
        let split_rows = (1..=few).map(|tokens| {
            let splits = MULTIPROCESSORS / (a.num_heads.div_ceil(HEADS) * tokens);
            splits.clamp(1, pages) * tokens * a.num_heads
        });
        let (rows, split_rows) = (few * a.num_heads, split_rows.max().unwrap_or(0));
        let absorbed = elements(rows * a.cached_dim(), 2)
            + elements(split_rows * a.kv_lora_rank, 4)
            + elements(split_rows, 4)
            + elements(rows * a.kv_lora_rank, 4);
        if chunk <= ABSORB_UP_TO {
            return absorbed;
        }
        let width = a.num_heads * (a.nope_head_dim + a.v_head_dim);
        let pair = 2 * KV_PAGE;
        let range = (EXPANDED / (2 * width)).max(pair) / pair * pair;
        let range = range.min(context.next_multiple_of(KV_PAGE));
        let (sums, norms) = match range < context {
            true => (chunk * a.num_heads * a.v_head_dim, chunk * a.num_heads * 2),
            false => (0, 0),
        };
        absorbed + elements(range * width, 2) + elements(sums, 4) + elements(norms, 4)
    }
}
