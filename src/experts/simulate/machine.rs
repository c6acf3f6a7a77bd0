//! The modelled hardware and the model's demands on it.

use crate::checkpoint::weights::expert_spec;
use crate::checkpoint::{Inventory, RecordLayout};
use crate::config::ModelConfig;
use crate::quant::Format;

/// A machine, by what its parts deliver. All figures are published or assumed, none was measured.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Machine {
    /// As the command line names it.
    pub name: &'static str,
    /// Bytes of GPU memory.
    pub vram: u64,
    /// GPU memory for key/value cache, workspace and driver.
    pub vram_reserve: u64,
    /// Bytes of host memory.
    pub host: u64,
    /// Host memory for everything but expert records.
    pub host_reserve: u64,
    /// Bytes a second from the disk to host memory; 0 without one.
    pub disk: f64,
    /// Bytes a second from host memory to the GPU.
    pub link: f64,
    /// Bytes a second that host memory delivers to all who read it.
    pub dram: f64,
    /// Bytes of experts a second that the CPU's workers compute with for one row.
    pub cpu: f64,
    /// Bytes a second of the GPU's memory.
    pub hbm: f64,
    /// Share of `hbm` that kernels reach.
    pub hbm_share: f64,
    /// Seconds of the GPU between two groups of kernels that wait for each other, three a layer.
    pub launch: f64,
    /// Seconds until the host has seen a result of the GPU and acted on it.
    pub sync: f64,
}

const GIB: u64 = 1 << 30;

impl Machine {
    /// One H100 80 GB on PCIe 5 with 2 TB of host memory.
    ///
    /// 3.35 TB/s HBM3, of which kernels reach 80 %; 55 GB/s of the link's 64 (56 and 52 were seen by others); 400 GB/s of
    /// host memory, of which the CPU's experts draw 300; 6 GB for key/value cache and workspace beside the driver's
    /// own. Three launches of 8 µs a layer are what is left of 1/73 s when all is in HBM and bytes are paid for.
    pub const H100: Machine = Machine {
        name: "h100",
        vram: 80 * GIB,
        vram_reserve: 6_000_000_000 + GIB / 2,
        host: 2_000_000_000_000,
        host_reserve: 32_000_000_000,
        disk: 0.0,
        link: 55e9,
        dram: 400e9,
        cpu: 300e9,
        hbm: 3.35e12,
        hbm_share: 0.8,
        launch: 8e-6,
        sync: 15e-6,
    };

    /// The same with 1 TB of host memory, and a disk of 12 GB/s (assumed: one PCIe 5 ×4 drive) below it.
    pub const H100_1TB: Machine =
        Machine { name: "h100-1tb", host: 1_000_000_000_000, disk: 12e9, ..Machine::H100 };

    /// The same with 512 GB of host memory.
    pub const H100_512GB: Machine =
        Machine { name: "h100-512gb", host: 512_000_000_000, ..Machine::H100_1TB };

    /// A 1g.10gb slice of the H100: an eighth of its memory and of the memory's bandwidth. 1 GB is kept for key/value cache
    /// and workspace. A trunk that does not fit is streamed from the host for every token.
    pub const MIG_10GB: Machine = Machine {
        name: "mig-10gb",
        vram: 10 * GIB,
        vram_reserve: 1_000_000_000,
        hbm: 3.35e12 / 8.0,
        ..Machine::H100
    };

    /// One H200: 141 GB at 4.8 TB/s.
    pub const H200: Machine = Machine { name: "h200", vram: 141_000_000_000, hbm: 4.8e12, ..Machine::H100 };

    /// Every machine known by name.
    pub const ALL: [Machine; 5] =
        [Machine::H100, Machine::H100_1TB, Machine::H100_512GB, Machine::MIG_10GB, Machine::H200];

    /// The machine of that name.
    pub fn named(name: &str) -> Option<Machine> {
        Machine::ALL.into_iter().find(|m| m.name == name)
    }

    /// The same without CPU workers: every miss crosses the link.
    pub fn without_cpu(self) -> Machine {
        Machine { cpu: 0.0, ..self }
    }

    /// Bytes a second at which the GPU's kernels read.
    pub fn gpu(&self) -> f64 {
        self.hbm * self.hbm_share
    }

    /// Bytes a second at which link and CPU together take experts from host memory.
    pub fn host_rate(&self) -> f64 {
        (self.link + self.cpu).min(self.dram.max(self.link))
    }
}

/// What decoding a token asks of a machine, in bytes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Workload {
    /// Layers with experts.
    pub layers: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts a token uses in a layer.
    pub top_k: usize,
    /// The first layer with experts.
    pub first: usize,
    /// Record of an expert.
    pub record: u64,
    /// Of that down, the last part of it.
    pub down: u64,
    /// Read before a layer's routing is known: attention, its cache, router.
    pub attention: f64,
    /// Of that the router, which a guess reads too.
    pub router: f64,
    /// Shared experts of a layer.
    pub shared: f64,
    /// Layers without experts, together.
    pub dense: f64,
    /// Output matrix.
    pub head: f64,
    /// Everything but routed experts.
    pub trunk: u64,
    /// The part of the trunk of which a token reads one row only.
    pub embedding: u64,
}

impl Workload {
    /// What a configuration implies, with `context` tokens in the key/value cache.
    pub fn new(config: &ModelConfig, context: usize) -> Workload {
        let inventory = Inventory::of(config);
        let part = |name: &str| inventory.parts.get(name).map_or(0, |a| a.bytes);
        let layers = config.num_layers - config.first_k_dense;
        let a = &config.attention;
        let cache = context * (a.kv_lora_rank + a.rope_head_dim) * 2;
        let attention =
            (part("attention") + part("norms and biases")) as f64 / config.num_layers as f64 + cache as f64;
        let per_layer = |name: &str| part(name) as f64 / layers.max(1) as f64;
        let layout = |l| RecordLayout::new(&expert_spec(config, l, 0).map(|m| m.layout(Format::Bf16)));
        let sizes = (config.first_k_dense..config.num_layers).map(layout).map(|l| (l.size(), l.down_start()));
        let (record, down_start) = sizes.max().unwrap_or_default();
        let embedding = part("embedding");
        let head = part("head");
        Workload {
            layers,
            experts: config.moe.num_experts,
            top_k: config.moe.top_k,
            first: config.first_k_dense,
            record: record as u64,
            down: (record - down_start) as u64,
            attention: attention + per_layer("router"),
            router: per_layer("router"),
            shared: per_layer("shared experts"),
            dense: part("dense MLP") as f64 + attention * config.first_k_dense as f64,
            // A tied head reads the embedding.
            head: if head > 0 { head } else { embedding } as f64,
            trunk: inventory.total.bytes - part("routed experts"),
            embedding: if head > 0 { embedding } else { 0 },
        }
    }

    /// Slots that a machine has room for beside the trunk, at least two layers' worth, and the bytes of the trunk
    /// that have to be streamed for every token because it has not.
    pub fn slots(&self, machine: &Machine) -> (usize, u64) {
        let room = machine.vram.saturating_sub(machine.vram_reserve);
        let least = 2 * self.top_k;
        let slots = (room.saturating_sub(self.trunk) / self.record.max(1)) as usize;
        if slots >= least {
            return (slots.min(self.layers * self.experts), 0);
        }
        // The embedding's rows are looked up on the host then.
        let needed = self.trunk - self.embedding + least as u64 * self.record;
        (least, needed.saturating_sub(room))
    }

    /// Records that the machine's host memory holds.
    pub fn host_records(&self, machine: &Machine) -> usize {
        let room = machine.host.saturating_sub(machine.host_reserve) / self.record.max(1);
        (room as usize).min(self.layers * self.experts)
    }

    /// Bytes of routed experts a token uses.
    pub fn routed(&self) -> f64 {
        (self.layers * self.top_k) as f64 * self.record as f64
    }

    /// Bytes of the trunk a token reads.
    pub fn read(&self) -> f64 {
        self.dense + self.head + self.layers as f64 * (self.attention + self.shared)
    }
}
