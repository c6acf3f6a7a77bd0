//! The planner's arithmetic a second time, from the numbers of config.json and nothing of the crate's.

use abruzzi::experts::plan::{GPU_RESERVE, HOST_RESERVE, Plan};

use crate::{adds_up, json_of};

/// The arithmetic again, from the numbers of config.json and nothing of the crate.
pub struct Naive {
    fp8: bool,
    hidden: u64,
    vocab: u64,
    layers: u64,
    heads: u64,
    q_rank: u64,
    latent: u64,
    rope: u64,
    nope: u64,
    v: u64,
    dense: u64,
    width: u64,
    experts: u64,
    top_k: u64,
}

fn up(n: u64, to: u64) -> u64 {
    n.div_ceil(to) * to
}

fn alloc(bytes: u64) -> u64 {
    up(bytes, 256)
}

impl Naive {
    pub fn of(file: &str, fp8: bool) -> Naive {
        let json = json_of(file);
        let n = |name: &str| json[name].as_u64().unwrap();
        assert_eq!((n("first_k_dense_replace"), n("n_shared_experts")), (1, 1));
        Naive {
            fp8,
            hidden: n("hidden_size"),
            vocab: n("vocab_size"),
            layers: n("num_hidden_layers"),
            heads: n("num_attention_heads"),
            q_rank: n("q_lora_rank"),
            latent: n("kv_lora_rank"),
            rope: n("qk_rope_head_dim"),
            nope: n("qk_nope_head_dim"),
            v: n("v_head_dim"),
            dense: n("intermediate_size"),
            width: n("moe_intermediate_size"),
            experts: n("n_routed_experts"),
            top_k: n("num_experts_per_tok"),
        }
    }

    fn bf16(rows: u64, cols: u64) -> u64 {
        alloc(rows * cols * 2)
    }

    /// A linear layer of the trunk.
    fn linear(&self, rows: u64, cols: u64) -> u64 {
        match self.fp8 {
            true => alloc(up(rows * cols, 128) + rows.div_ceil(128) * cols.div_ceil(128) * 4),
            false => Naive::bf16(rows, cols),
        }
    }

    fn attention(&self) -> u64 {
        self.linear(self.q_rank, self.hidden)
            + self.linear(self.heads * (self.nope + self.rope), self.q_rank)
            + self.linear(self.latent + self.rope, self.hidden)
            + self.linear(self.heads * (self.nope + self.v), self.latent)
            + self.linear(self.hidden, self.heads * self.v)
    }

    fn mlp(&self, width: u64) -> u64 {
        2 * self.linear(width, self.hidden) + self.linear(self.hidden, width)
    }

    pub fn moe_layer(&self) -> u64 {
        self.attention() + Naive::bf16(self.experts, self.hidden) + self.mlp(self.width)
    }

    fn norms(&self) -> u64 {
        let layer = 2 * alloc(4 * self.hidden) + alloc(4 * self.q_rank) + alloc(4 * self.latent);
        self.layers * layer + alloc(4 * self.hidden) + (self.layers - 1) * alloc(4 * self.experts)
    }

    pub fn embedding(&self) -> u64 {
        Naive::bf16(self.vocab, self.hidden)
    }

    /// Trunk with the first `layers` layers, without embedding and head.
    fn trunk(&self, layers: u64) -> u64 {
        let first = if layers > 0 { self.attention() + self.mlp(self.dense) } else { 0 };
        self.norms() + first + layers.saturating_sub(1) * self.moe_layer()
    }

    pub fn record(&self) -> u64 {
        let part = |rows: u64, cols: u64| match self.fp8 {
            true => up(rows * cols, 128) + up(rows.div_ceil(128) * cols.div_ceil(128) * 4, 128),
            false => up(rows * cols / 2, 128) + up(rows * cols / 32 * 2, 128),
        };
        up(2 * part(self.width, self.hidden) + part(self.hidden, self.width), 4096)
    }

    fn kv(&self, context: u64) -> u64 {
        let pages = context.div_ceil(64);
        alloc(pages * self.layers * 64 * (self.latent + self.rope) * 2)
            + alloc(pages.next_power_of_two().max(512) * 8)
    }

    fn workspace(&self, chunk: u64) -> u64 {
        let f32s = |cols: u64| alloc(chunk * cols * 4);
        let bf16s = |cols: u64| alloc(chunk * cols * 2);
        let pairs = chunk * self.top_k;
        let routing = |tokens: u64| {
            5 * alloc(tokens * self.top_k * 4) + alloc((self.experts + 1) * 4) + alloc(8) + alloc(16)
        };
        let guess = alloc(16 * self.hidden * 4)
            + alloc(16 * self.hidden * 2)
            + alloc(16 * self.experts * 4)
            + routing(16);
        2 * f32s(self.hidden) // hidden, last
            + 2 * bf16s(self.hidden) // normed, update
            + 2 * bf16s(self.q_rank)
            + bf16s(self.heads * (self.nope + self.rope))
            + bf16s(self.latent + self.rope)
            + bf16s(self.heads * self.v)
            + f32s(self.experts)
            + alloc(pairs * self.hidden * 2)
            + f32s(self.vocab)
            + (self.layers - 1) * routing(chunk)
            + guess
            + alloc(8) // guard
    }

    /// For chunks of more than 16 tokens and contexts beyond 2048 and 132 pages.
    fn scratch(&self, chunk: u64) -> u64 {
        let pairs = chunk * self.top_k;
        let mlp = 3 * alloc(chunk * self.dense * 2);
        let small = alloc(4 * chunk) + alloc(4 * self.rope / 2) + alloc(8 * self.layers);
        let draw = alloc(8) + alloc(4) + alloc(4);
        let (decoded, experts) = match self.fp8 {
            true => {
                let codes = alloc(pairs * self.hidden) + alloc(pairs * self.width);
                let scales = alloc(self.hidden / 128 * pairs * 4) + alloc(self.width / 128 * pairs * 4);
                let few = alloc(16 * self.top_k * self.width * 2);
                (alloc(self.dense * self.hidden * 2), few + codes + scales)
            }
            // Below 128 rows an expert: not decoded.
            false => {
                assert!(pairs <= 128 * self.experts);
                (0, alloc(pairs * self.width * 2))
            }
        };
        // Few queries: 132 parts of one token are the most at once.
        let rows = 4 * self.heads;
        let absorbed = alloc(rows * (self.latent + self.rope) * 2)
            + alloc(132 * self.heads * self.latent * 4)
            + alloc(132 * self.heads * 4)
            + alloc(rows * self.latent * 4);
        let expanded = alloc(2048 * self.heads * (self.nope + self.v) * 2)
            + alloc(chunk * self.heads * self.v * 4)
            + alloc(chunk * self.heads * 2 * 4);
        mlp + small + draw + decoded + experts + absorbed + expanded
    }

    fn tables(&self) -> u64 {
        alloc(8 * self.experts * (self.layers - 1)) + alloc(8)
    }

    /// Every part of both budgets against a plan's; what the plan chose is taken from it and nothing else.
    pub fn check(&self, plan: &Plan) {
        let (chunk, slots) = (plan.chunk as u64, plan.slots.count);
        let resident = plan.trunk.resident_layers as u64;
        let mut trunk = self.trunk(resident);
        trunk += if plan.trunk.head_resident { self.embedding() } else { 0 };
        trunk += if plan.trunk.embedding_resident { self.embedding() } else { 0 };
        let whole = self.trunk(self.layers) + 2 * self.embedding();
        let buffers = if trunk == whole { 0 } else { 2 * (64 << 20) };
        let pool = slots * self.record() + alloc(8 * slots);
        let vram = [
            ("driver", GPU_RESERVE),
            ("trunk", trunk),
            ("trunk stream buffers", buffers),
            ("key/value cache", self.kv(plan.context as u64)),
            ("workspace", self.workspace(chunk)),
            ("kernel scratch", self.scratch(chunk)),
            ("expert tables", self.tables()),
            ("expert slots", pool),
        ];
        for (name, bytes) in vram {
            assert_eq!(plan.vram.part(name), bytes, "{name}\n{plan}");
        }
        let used: u64 = vram.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(plan.vram.part("unused"), plan.vram.total - used);
        // Nothing is left that a slot would fit in.
        let all = self.experts * (self.layers - 1);
        assert!(slots == all || plan.vram.part("unused") < self.record() + 512, "{plan}");

        let host_fixed = HOST_RESERVE + plan.host.total / 512 + 8 * self.record() + whole - trunk;
        let records = all.min((plan.host.total - host_fixed) / self.record());
        assert_eq!(plan.below.host, records, "{plan}");
        assert_eq!(plan.host.part("trunk"), whole - trunk);
        assert_eq!(plan.host.part("expert records"), records * self.record());
        assert_eq!(plan.host.part("pinned staging"), 8 * self.record());
        assert_eq!(plan.host.part("unused"), plan.host.total - host_fixed - records * self.record());
        assert_eq!(plan.below.file, all.saturating_sub(records + slots));
        adds_up(plan);
    }
}
