//! Placing the parts, and finding the smallest change when they do not fit.

use std::ops::Range;

use super::expect::Load;
use super::footprint::Footprint;
use super::{
    Below, Budget, GPU_RESERVE, HOST_RESERVE, Hardware, MAX_CHUNK, MIN_CHUNK, Part, Plan, STAGING_RECORDS,
    Slots, TRANSIENT_SLOTS, Trunk,
};
use crate::config::ModelConfig;
use crate::device::KV_PAGE;
use crate::error::{Change, Error};

/// More than any machine has.
const MOST_BYTES: u64 = 1 << 62;

/// The smallest context that is chosen.
const SMALL_CONTEXT: usize = 1024;

/// All that a plan follows from.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub config: &'a ModelConfig,
    pub footprint: &'a Footprint<'a>,
    pub hardware: Hardware,
    pub context: usize,
    pub chunk: Option<usize>,
    pub sessions: u64,
}

/// A placement that fits.
pub(super) struct Placement {
    chunk: usize,
    slots: u64,
    /// Slots whose expert is nowhere else.
    held: u64,
    resident_layers: usize,
    head: bool,
    embedding: bool,
    buffers: u64,
    host_records: u64,
    record_bytes: u64,
}

/// The first part that did not fit, and in which memory.
pub(super) enum Short {
    Vram { what: String, needed: u64 },
    Host { what: String },
}

/// The least of a range for which a condition holds that never ceases to hold; the range's end if there is none.
fn least(range: Range<u64>, holds: impl Fn(u64) -> bool) -> u64 {
    let Range { start: mut low, end: mut high } = range;
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) { high = middle } else { low = middle + 1 }
    }
    low
}

impl<'a> Question<'a> {
    fn least_slots(&self) -> u64 {
        (self.config.moe.top_k as u64 + TRANSIENT_SLOTS).min(self.footprint.experts())
    }

    /// Slots that there must be if `held` of them never change their expert.
    fn needed_slots(&self, held: u64) -> u64 {
        (self.least_slots() + held).min(self.footprint.experts())
    }

    fn kv(&self) -> u64 {
        self.footprint.kv(self.context).saturating_mul(self.sessions)
    }

    fn workspace(&self, chunk: usize) -> u64 {
        self.footprint.workspace(chunk).saturating_mul(self.sessions)
    }

    /// What a chunk of this size takes.
    fn of_chunk(&self, chunk: usize) -> u64 {
        self.workspace(chunk).saturating_add(self.footprint.scratch(chunk, self.context))
    }

    fn smallest_chunk(&self) -> usize {
        self.chunk.unwrap_or(MIN_CHUNK)
    }

    /// The parts that depend on neither the chunk nor the trunk's place.
    fn fixed(&self, slots: u64) -> u64 {
        let f = self.footprint;
        [GPU_RESERVE, f.vectors, self.kv(), f.tables(), f.pool(slots)]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    fn page_tables(&self) -> u64 {
        // Eight bytes for every 4 KiB, as if no huge page were granted.
        self.hardware.host / 512
    }

    fn staging(&self) -> u64 {
        STAGING_RECORDS.min(self.footprint.experts()) * self.footprint.slot()
    }

    /// Host memory for records, beside `trunk` bytes of the trunk; `None` if that alone is too much.
    fn host_room(&self, trunk: u64) -> Option<u64> {
        let taken = HOST_RESERVE + self.page_tables() + self.staging() + trunk;
        self.hardware.host.checked_sub(taken)
    }

    /// Records in host memory and their bytes.
    fn host_records(&self, room: u64) -> (u64, u64) {
        let f = self.footprint;
        if f.record_bytes() <= room {
            return (f.experts(), f.record_bytes());
        }
        let records = room.checked_div(f.slot()).unwrap_or(0);
        (records, records * f.slot())
    }

    /// Experts that must be kept in slots because no other memory holds them; `None` if the host lacks what it must have.
    fn held(&self, trunk_on_host: u64) -> Option<u64> {
        let (records, _) = self.host_records(self.host_room(trunk_on_host)?);
        match self.hardware.nvme {
            None => Some(self.footprint.experts() - records),
            Some(_) => (records >= self.least_slots()).then_some(0),
        }
    }

    /// The same question with the context to plan if none is asked for: the model's longest or the largest power of two below
    /// it that fits and of which the key/value cache takes at most a quarter of the memory.
    pub fn with_chosen_context(self) -> Question<'a> {
        let longest = self.config.max_context;
        let powers = (0..usize::BITS).rev().map(|bit| 1usize << bit).filter(|&n| n < longest);
        let of = |context| Question { context, ..self };
        let small = of(longest.min(SMALL_CONTEXT));
        let larger = std::iter::once(longest).chain(powers).take_while(|&n| n > SMALL_CONTEXT).map(of);
        let mut fitting = larger.filter(|q| q.kv() <= q.hardware.vram / 4 && q.fits());
        fitting.next().unwrap_or(small)
    }

    pub fn place(&self) -> Result<Placement, Short> {
        self.place_whole().or_else(|| self.place_streamed()).ok_or_else(|| self.shortage())
    }

    /// With all of the trunk in GPU memory.
    fn place_whole(&self) -> Option<Placement> {
        let held = self.held(0)?;
        let taken = self.fixed(self.needed_slots(held)).saturating_add(self.footprint.trunk());
        let room = self.hardware.vram.checked_sub(taken)?;
        let chunk = self.choose_chunk(room)?;
        let (host_records, record_bytes) = self.host_records(self.host_room(0)?);
        let room = room - self.of_chunk(chunk);
        Some(Placement {
            chunk,
            slots: self.slots(held, room),
            held,
            resident_layers: self.config.num_layers,
            head: true,
            embedding: true,
            buffers: 0,
            host_records,
            record_bytes,
        })
    }

    /// With as much of the trunk in GPU memory as fits beside the least of everything else.
    fn place_streamed(&self) -> Option<Placement> {
        let f = self.footprint;
        // Counted as if all of it were on the host: how much is depends on the slots, which depend on the host.
        let held = self.held(f.trunk())?;
        let mut room = self.hardware.vram.checked_sub(self.fixed(self.needed_slots(held)))?;
        let tied = f.head == 0;
        let without_embedding = f.trunk() - f.embedding;
        let smallest = self.of_chunk(self.smallest_chunk());
        let only_embedding = !tied && without_embedding.saturating_add(smallest) <= room;
        let buffers = if only_embedding { 0 } else { f.stream_buffers() };
        room = room.checked_sub(buffers)?;
        let chunk = self.choose_chunk(if only_embedding { room - without_embedding } else { room })?;
        room -= self.of_chunk(chunk);
        let mut take = |bytes: u64| {
            let fits = bytes <= room;
            room -= if fits { bytes } else { 0 };
            fits
        };
        let resident_layers = f.layers.iter().take_while(|&&bytes| take(bytes)).count();
        let all_layers = resident_layers == f.layers.len();
        let head = all_layers && take(if tied { f.embedding } else { f.head });
        let mut placed = Placement {
            chunk,
            slots: self.slots(held, room),
            held,
            resident_layers,
            head,
            embedding: tied && head,
            buffers,
            host_records: 0,
            record_bytes: 0,
        };
        let (on_host, _) = self.trunk_on_host(&placed);
        (placed.host_records, placed.record_bytes) = self.host_records(self.host_room(on_host)?);
        placed.held = held.min(f.experts() - placed.host_records);
        Some(placed)
    }

    /// Trunk bytes on the host, and those of them that cross the link for each token.
    fn trunk_on_host(&self, placed: &Placement) -> (u64, u64) {
        let f = self.footprint;
        let layers: u64 = f.layers[placed.resident_layers..].iter().sum();
        let head = if placed.head { 0 } else { f.head };
        let embedding = if placed.embedding { 0 } else { f.embedding };
        // A head of its own leaves the embedding one row a token, which is not counted.
        let read = if f.head == 0 { embedding } else { 0 };
        (layers + head + embedding, layers + head + read)
    }

    /// The chunk, given what it shares with slots beyond the least.
    fn choose_chunk(&self, room: u64) -> Option<usize> {
        let fits = |chunk: usize, room: u64| self.of_chunk(chunk) <= room;
        if let Some(chunk) = self.chunk {
            return fits(chunk, room).then_some(chunk);
        }
        let most = self.context.next_power_of_two().clamp(MIN_CHUNK, MAX_CHUNK);
        let powers = std::iter::successors(Some(most), |&n| (n > MIN_CHUNK).then_some(n / 2));
        powers.into_iter().find(|&n| fits(n, room / 8)).or_else(|| fits(MIN_CHUNK, room).then_some(MIN_CHUNK))
    }

    /// Slots in what is left, added to those already counted.
    fn slots(&self, held: u64, room: u64) -> u64 {
        let (f, least) = (self.footprint, self.needed_slots(held));
        f.slots_in(f.pool(least).saturating_add(room)).max(least).min(f.experts())
    }

    fn fits(&self) -> bool {
        self.place().is_ok()
    }

    /// What is missing. The parts are added up in the order of how little a caller can do about them.
    fn shortage(&self) -> Short {
        let f = self.footprint;
        let chunk = self.smallest_chunk();
        let least = self.least_slots();
        let streamed = match f.head {
            0 => f.stream_buffers(),
            _ => f.stream_buffers().min(f.trunk() - f.embedding),
        };
        let parts = [
            ("what the driver keeps".to_owned(), GPU_RESERVE),
            ("the trunk's norms and stream buffers".to_owned(), f.vectors + streamed.min(f.trunk())),
            (format!("the least number of slots, {least}"), f.pool(least).saturating_add(f.tables())),
            (format!("the workspace of a chunk of {chunk} tokens"), self.of_chunk(chunk)),
            (format!("the key/value cache of {} tokens", self.context), self.kv()),
        ];
        let needed = parts.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        if needed <= self.hardware.vram {
            let what = match self.hardware.nvme {
                None => format!("{} experts, each in host memory or in a slot", f.experts()),
                Some(_) => format!("a host cache of {least} experts"),
            };
            return Short::Host { what };
        }
        let mut sum = 0u64;
        let [first, rest @ ..] = parts;
        sum = sum.saturating_add(first.1);
        let mut what = first.0;
        for (name, bytes) in rest {
            if sum > self.hardware.vram {
                break;
            }
            sum = sum.saturating_add(bytes);
            what = name;
        }
        Short::Vram { what, needed }
    }

    /// The refusal, with the smallest change.
    pub fn refuse(&self, short: Short) -> Error {
        match short {
            Short::Host { what } => {
                let host = |host| Question { hardware: Hardware { host, ..self.hardware }, ..*self };
                let needed = least(self.hardware.host..MOST_BYTES, |n| host(n).fits());
                let change = Change::Host { bytes: needed, file_tier: self.hardware.nvme.is_none() };
                Error::DoesNotFit { what, needed, available: self.hardware.host, change }
            }
            Short::Vram { what, needed } => {
                let available = self.hardware.vram;
                Error::DoesNotFit { what, needed, available, change: self.change(needed) }
            }
        }
    }

    /// A smaller chunk if one was asked for, else a shorter context, else more memory: the first that suffices alone.
    fn change(&self, needed: u64) -> Change {
        let pages = self.context.min(self.config.max_context).div_ceil(KV_PAGE) as u64;
        let of_context = |context| Question { context, ..*self };
        if let Some(chunk) = self.chunk {
            let of_chunk = |n: u64| Question { chunk: Some(n as usize), ..*self };
            let most = least(1..chunk as u64, |n| !of_chunk(n).fits()) - 1;
            if most > 0 && self.context <= self.config.max_context {
                return Change::Chunk(most as usize);
            }
        }
        let tokens = |pages: u64| (pages as usize * KV_PAGE).min(self.config.max_context);
        let most = least(1..pages + 1, |n| !of_context(tokens(n)).fits()) - 1;
        if most > 0 {
            return Change::Context(tokens(most));
        }
        let of = |vram, host| Question { hardware: Hardware { vram, host, ..self.hardware }, ..*self };
        let host = self.hardware.host;
        if of(MOST_BYTES, host).fits() {
            return Change::Vram(least(needed..MOST_BYTES, |n| of(n, host).fits()));
        }
        let vram = least(needed..MOST_BYTES, |n| of(n, MOST_BYTES).fits());
        Change::VramAndHost { vram, host: least(host..MOST_BYTES, |n| of(vram, n).fits()) }
    }

    /// Least GPU memory that holds the trunk whole.
    fn whole_from(&self) -> u64 {
        let vram = |vram| Question { hardware: Hardware { vram, ..self.hardware }, ..*self };
        least(0..MOST_BYTES, |n| vram(n).place_whole().is_some())
    }

    pub fn plan(&self, placed: Placement) -> Plan {
        let (f, c) = (self.footprint, self.config);
        let (on_host, streamed) = self.trunk_on_host(&placed);
        let vram = budget(
            self.hardware.vram,
            &[
                ("driver", GPU_RESERVE, true),
                ("trunk", f.vectors + f.trunk() - on_host, false),
                ("trunk stream buffers", placed.buffers, false),
                ("key/value cache", self.kv(), false),
                ("workspace", self.workspace(placed.chunk), false),
                ("kernel scratch", f.scratch(placed.chunk, self.context), false),
                ("expert tables", f.tables(), false),
                ("expert slots", f.pool(placed.slots), false),
            ],
        );
        let host = budget(
            self.hardware.host,
            &[
                ("process and system", HOST_RESERVE, true),
                ("page tables", self.page_tables(), true),
                ("pinned staging", self.staging(), false),
                ("trunk", on_host, false),
                ("expert records", placed.record_bytes, false),
            ],
        );
        let experts = f.experts();
        let share = |n: u64| if experts == 0 { 1.0 } else { n as f64 / experts as f64 };
        let near = experts.min(placed.slots + placed.host_records);
        let moe_layers = f.records.len();
        let load = Load {
            trunk_read: f.trunk_read(),
            trunk_streamed: streamed,
            routed: f.routed(),
            records: f.record_bytes(),
            kv_read: f.kv(self.context),
            moe_layers,
            resident: share(placed.slots),
            held: if experts == 0 { 0.0 } else { share(placed.held) },
            near: share(near),
            context: self.context,
            chunk: placed.chunk,
        };
        Plan {
            hardware: self.hardware,
            context: self.context,
            max_context: c.max_context,
            sessions: self.sessions as usize,
            chunk: placed.chunk,
            vram,
            host,
            trunk: Trunk {
                resident_layers: placed.resident_layers,
                layers: c.num_layers,
                head_resident: placed.head,
                embedding_resident: placed.embedding,
                host_bytes: on_host,
                streamed_bytes: streamed,
                piece_bytes: f.stream_piece(),
                whole_from_vram: self.whole_from(),
            },
            slots: Slots {
                count: placed.slots,
                bytes: f.slot(),
                least: self.least_slots(),
                per_layer: if moe_layers == 0 { 0.0 } else { placed.slots as f64 / moe_layers as f64 },
                resident: share(placed.slots),
                held: placed.held,
                lent_to_prefill: (2 * c.moe.num_experts as u64)
                    .min((placed.slots - placed.held) / 2)
                    .max(TRANSIENT_SLOTS.min(placed.slots)),
            },
            below: Below { experts, host: placed.host_records, file: experts - near },
            expected: load.expect(&self.hardware),
        }
    }
}

/// The parts that take something, and what is unused.
fn budget(total: u64, parts: &[(&'static str, u64, bool)]) -> Budget {
    let used: u64 = parts.iter().map(|&(_, bytes, _)| bytes).sum();
    let parts = parts.iter().filter(|(_, bytes, _)| *bytes > 0);
    let mut parts: Vec<Part> = parts.map(|&(name, bytes, estimate)| Part { name, bytes, estimate }).collect();
    parts.push(Part { name: "unused", bytes: total - used, estimate: false });
    Budget { total, parts }
}
