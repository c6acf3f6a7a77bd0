//! Where every byte goes: trunk, key/value cache, workspace, buffers, slots, under one budget.
//!
//! [`Plan::new`] needs a configuration and four or five numbers of the hardware, no weights and no GPU. Its two budgets, GPU
//! and host, are lists of parts that add up to what was given, the unused rest among them. Everything is exact but the parts
//! marked as estimates, and the expectations of [`Expected`], which are modelled.
//!
//! # What comes first
//!
//! 1. What the driver and the operating system keep, the key/value cache at the context asked for, the smallest workspace, and
//!    the least number of slots: a token's experts of one layer and two in transit. If that does not fit, the plan is refused
//!    with [`Error::DoesNotFit`], which names the smallest change that would do.
//! 2. The trunk. All of a token's trunk is read for each token, of its experts' slots only the hits, so a byte of trunk is
//!    worth more than a byte of slots. If it does not fit whole, the embedding table goes to the host first (a token needs one
//!    row of it), then the head, then layers from the last on; what is on the host is streamed through a double buffer for
//!    each token.
//! 3. The prefill chunk, if it is not asked for: the largest power of two from 16 to 32,768, no larger than the context asks
//!    for, whose workspace takes at most an eighth of what is left then. Prefill passes over all experts once a chunk, so twice
//!    the chunk is twice the speed; an eighth of the slots is worth a few points of hit rate.
//! 4. Slots take the rest.
//!
//! # Host memory
//!
//! All experts are kept in host memory if they fit. Otherwise, with a file tier (`nvme`), as many as fit, besides those in
//! slots; all of them can be read again from the checkpoint. Without one, an expert must be in one of the two memories: those
//! for which the host has no room stay in slots of their own and are never evicted.

mod expect;
mod footprint;
mod show;
mod solve;

use serde::Serialize;

pub use expect::{Bound, Expected, hit_rate};

use crate::checkpoint::weights::TrunkPart;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::quant::Format;
use footprint::Footprint;
use solve::Question;

/// What the driver keeps of GPU memory: its context, loaded kernels, and what is lost to the 2 MiB pages of allocations. An
/// estimate: contexts of H100s are reported at 450 to 600 MB by `nvidia-smi`; not measured by this project yet.
pub const GPU_RESERVE: u64 = 512 << 20;

/// What the process and the operating system keep of host memory, page tables apart. An estimate.
pub const HOST_RESERVE: u64 = 1 << 30;

/// Records of the pinned ring through which experts pass where the records themselves cannot be pinned.
pub const STAGING_RECORDS: u64 = 8;

/// Slots in which experts arrive while others are computed with.
pub const TRANSIENT_SLOTS: u64 = 2;

/// Smallest prefill chunk that is planned: one batch of the kernels for few tokens.
pub const MIN_CHUNK: usize = 16;

/// Largest prefill chunk that is chosen.
const MAX_CHUNK: usize = 32 << 10;

/// The memory and the rates to plan for. Bytes and bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Hardware {
    /// GPU memory that may be used: the card's or MIG slice's, or what is free of it.
    pub vram: u64,
    /// Host memory that may be used.
    pub host: u64,
    /// Rate of the disk that holds the checkpoint, if experts may be read from it while generating.
    pub nvme: Option<f64>,
    /// Rate of copies from host to GPU.
    pub link: f64,
    /// Rate of host memory, for the link and the CPU's experts together.
    pub dram: f64,
    /// Rate of GPU memory.
    pub hbm: f64,
}

impl Hardware {
    /// A GPU and a host of these sizes, with the rates of an H100 SXM5 on PCIe 5.0 x16 (55 GB/s reported, FreeToken #421),
    /// twelve channels of DDR5 (400 GB/s) and no file tier.
    pub fn new(vram: u64, host: u64) -> Hardware {
        Hardware { vram, host, nvme: None, link: 55e9, dram: 400e9, hbm: 3350e9 }
    }
}

/// What the plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ask {
    /// Tokens of context of each session. `None`: the model's longest, or the largest power of two below it that
    /// fits and whose key/value cache takes at most a quarter of the GPU's memory; 1,024 if need be.
    pub context: Option<usize>,
    /// Sessions at a time.
    pub sessions: usize,
    /// Tokens that prefill takes at once. `None`: chosen, see the module's documentation.
    pub chunk: Option<usize>,
    /// How the checkpoint stores matrices that no quantisation covers. A configuration does not say; published ones use BF16.
    pub plain: Format,
}

impl Default for Ask {
    fn default() -> Ask {
        Ask { context: None, sessions: 1, chunk: None, plain: Format::Bf16 }
    }
}

/// One use of a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What it is for.
    pub name: &'static str,
    /// How much.
    pub bytes: u64,
    /// Not known exactly before it runs.
    pub estimate: bool,
}

/// A memory and its uses, which add up to all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// All of it.
    pub total: u64,
    /// Uses, `unused` last.
    pub parts: Vec<Part>,
}

impl Budget {
    /// Bytes of the part of this name, 0 if there is none.
    pub fn part(&self, name: &str) -> u64 {
        self.parts.iter().filter(|p| p.name == name).map(|p| p.bytes).sum()
    }
}

/// Where the trunk is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trunk {
    /// Layers at the start whose trunk is in GPU memory; the others' is streamed for each token.
    pub resident_layers: usize,
    /// Layers of the model.
    pub layers: usize,
    /// The head is in GPU memory. The same as `embedding_resident` where they are one matrix.
    pub head_resident: bool,
    /// The embedding table is in GPU memory; otherwise a token's row is copied from the host.
    pub embedding_resident: bool,
    /// Bytes on the host.
    pub host_bytes: u64,
    /// Bytes that cross the link for each token.
    pub streamed_bytes: u64,
    /// Most bytes of a matrix that cross it at once.
    pub piece_bytes: u64,
    /// Least GPU memory with which the trunk would be resident whole, all else as asked.
    pub whole_from_vram: u64,
}

impl Trunk {
    /// Whether a part is in GPU memory.
    pub fn resident(&self, part: TrunkPart) -> bool {
        match part {
            TrunkPart::Embedding => self.embedding_resident,
            TrunkPart::Layer(layer) => layer < self.resident_layers,
            TrunkPart::Head => self.head_resident,
        }
    }
}

/// Slots of experts in GPU memory.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Slots {
    /// How many.
    pub count: u64,
    /// Bytes of each: the largest record.
    pub bytes: u64,
    /// Least number the engine can run with.
    pub least: u64,
    /// Mean number a layer with experts.
    pub per_layer: f64,
    /// Share of all experts that has a slot.
    pub resident: f64,
    /// Slots whose expert has no other place and is never evicted.
    pub held: u64,
    /// Slots that prefill borrows as its double buffer, at most: two layers of experts, half of the slots.
    pub lent_to_prefill: u64,
}

/// Experts by the tier below the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Below {
    /// Routed experts of the model.
    pub experts: u64,
    /// Records there is room for in host memory.
    pub host: u64,
    /// Experts that only the file tier holds, when slots and host memory hold different ones.
    pub file: u64,
}

/// Where every byte goes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// What it was made for.
    pub hardware: Hardware,
    /// Tokens of context of each session.
    pub context: usize,
    /// The longest the model was made for.
    pub max_context: usize,
    /// Sessions at a time.
    pub sessions: usize,
    /// Tokens that prefill takes at once.
    pub chunk: usize,
    /// GPU memory.
    pub vram: Budget,
    /// Host memory.
    pub host: Budget,
    /// Where the trunk is.
    pub trunk: Trunk,
    /// Slots in GPU memory.
    pub slots: Slots,
    /// Tiers below them.
    pub below: Below,
    /// What to expect of it; modelled.
    pub expected: Expected,
}

/// More than any machine or model has: typing errors, and room for the arithmetic.
const MOST_TOKENS: usize = 1 << 32;
const MOST_CHUNK: usize = 1 << 20;
const MOST_SESSIONS: usize = 1 << 16;

impl Plan {
    /// Plans for a model.
    ///
    /// ```
    /// use abruzzi::experts::plan::{Ask, Hardware, Plan};
    ///
    /// # fn main() -> abruzzi::Result<()> {
    /// let config = abruzzi::ModelConfig::from_file("models/demo".as_ref())?;
    /// let plan = Plan::new(&config, &Hardware::new(4 << 30, 8 << 30), &Ask::default())?;
    /// assert_eq!(plan.vram.parts.iter().map(|part| part.bytes).sum::<u64>(), 4 << 30);
    /// println!("{plan}");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] with the smallest change that would make it fit; [`Error::Argument`] for a number out of its
    /// range, a context beyond the model's among them.
    pub fn new(config: &ModelConfig, hardware: &Hardware, ask: &Ask) -> Result<Plan> {
        check(hardware, ask)?;
        let footprint = Footprint::new(config, ask.plain);
        let asked = Question {
            config,
            footprint: &footprint,
            hardware: *hardware,
            context: ask.context.unwrap_or(config.max_context),
            chunk: ask.chunk,
            sessions: ask.sessions as u64,
        };
        let question = if ask.context.is_some() { asked } else { asked.with_chosen_context() };
        let placement = question.place().map_err(|short| question.refuse(short))?;
        let (context, longest) = (question.context, config.max_context);
        if context > longest {
            return Err(Error::argument(
                "context",
                format!("is {context}, expected 1 to {longest} for this model"),
            ));
        }
        Ok(question.plan(placement))
    }
}

fn check(hardware: &Hardware, ask: &Ask) -> Result<()> {
    for (name, rate) in [
        ("pcie", Some(hardware.link)),
        ("dram", Some(hardware.dram)),
        ("hbm", Some(hardware.hbm)),
        ("nvme", hardware.nvme),
    ] {
        if let Some(rate) = rate.filter(|r| !r.is_finite() || *r <= 0.0) {
            return Err(Error::argument(name, format!("is {rate} bytes a second, expected more than 0")));
        }
    }
    for (name, count, most) in [
        ("context", ask.context, MOST_TOKENS),
        ("chunk", ask.chunk, MOST_CHUNK),
        ("sessions", Some(ask.sessions), MOST_SESSIONS),
    ] {
        if let Some(count) = count.filter(|n| !(1..=most).contains(n)) {
            return Err(Error::argument(name, format!("is {count}, expected 1 to {most}")));
        }
    }
    Ok(())
}
