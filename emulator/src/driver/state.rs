//! What the driver keeps: contexts and everything that lives in them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, c_char};
use std::sync::Arc;

use super::engine::{KernelInfo, Module};
use super::options::{Options, OptionsError};
use super::status::Status;
use super::work::Op;
use crate::clock::{Clock, KernelRow, OpId, Profile, StreamId};
use crate::{Finding, Memory};

/// The whole driver, from cuInit on.
pub(super) struct Driver {
    pub options: Options,
    pub profile: Profile,
    pub memory: Arc<Memory>,
    pub clock: Clock,
    pub contexts: BTreeMap<u64, Context>,
    pub primary: Primary,
    pub streams: BTreeMap<u64, Stream>,
    pub events: BTreeMap<u64, Event>,
    pub modules: BTreeMap<u64, Loaded>,
    pub functions: BTreeMap<u64, Function>,
    /// Pinned memory by its start.
    pub pinned: BTreeMap<u64, Pinned>,
    pub findings: Vec<Finding>,
    pub rows: Vec<KernelRow>,
    /// By operation: its place on the clock, once it was executed.
    pub executed: Vec<Option<OpId>>,
    pub random: u64,
    /// What was polled last and how often in a row.
    pub polled: (u64, u32),
    /// Kernel names given out as C strings.
    names: Vec<CString>,
    next_handle: u64,
    allocations: u64,
}

/// The primary context of the device.
#[derive(Default)]
pub(super) struct Primary {
    pub context: u64,
    pub retained: u32,
    pub flags: u32,
}

pub(super) struct Context {
    pub flags: u32,
    pub limits: BTreeMap<i32, usize>,
    /// Error that every call returns from now on.
    pub sticky: Option<Status>,
    /// The legacy default stream's handle.
    pub legacy: u64,
    /// Starts of device allocations.
    pub allocations: BTreeSet<u64>,
}

pub(super) struct Stream {
    pub context: u64,
    pub flags: u32,
    pub priority: i32,
    /// Whether it is the legacy default stream.
    pub legacy: bool,
    pub timeline: StreamId,
    pub queue: std::collections::VecDeque<Op>,
    /// Operation issued last.
    pub last: Option<usize>,
    /// Whether a thread is executing an operation of it.
    pub running: bool,
}

impl Stream {
    /// Whether it runs beside the legacy default stream.
    pub fn non_blocking(&self) -> bool {
        self.flags & 1 != 0
    }
}

#[derive(Clone, Copy)]
pub(super) struct Event {
    pub context: u64,
    pub flags: u32,
    /// Stream and operation of the last record.
    pub record: Option<(u64, usize)>,
}

pub(super) struct Loaded {
    pub context: u64,
    pub module: Arc<dyn Module>,
    pub kernels: Vec<KernelInfo>,
}

#[derive(Clone)]
pub(super) struct Function {
    pub module: u64,
    pub kernel: usize,
    pub info: KernelInfo,
    /// As set by cuFuncSetAttribute.
    pub dynamic_shared: Option<u32>,
    pub carveout: i32,
    pub large_clusters: bool,
}

pub(super) struct Pinned {
    pub context: u64,
    pub flags: u32,
    pub len: u64,
    /// Memory of ours; none if it was registered.
    pub block: Option<Box<[u8]>>,
}

impl Driver {
    pub fn new(options: Options) -> Result<Driver, OptionsError> {
        let profile = Profile::named(&options.profile)?;
        let memory = Memory::new(profile.memory_bytes).map_err(|e| OptionsError::Value {
            name: "device memory",
            value: e.to_string(),
            wanted: "address space that the system grants",
        })?;
        let mut clock = Clock::new(&profile);
        if options.trace.is_some() {
            clock.keep_spans();
        }
        Ok(Driver {
            random: options.settings.schedule.seed,
            options,
            profile,
            memory: Arc::new(memory),
            clock,
            contexts: BTreeMap::new(),
            primary: Primary::default(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            pinned: BTreeMap::new(),
            findings: Vec::new(),
            rows: Vec::new(),
            executed: Vec::new(),
            polled: (0, 0),
            names: Vec::new(),
            next_handle: 0x1000,
            allocations: 0,
        })
    }

    /// A handle nobody has; never one of the special stream handles.
    pub fn handle(&mut self) -> u64 {
        self.next_handle += 0x10;
        self.next_handle
    }

    /// A C string that stays where it is.
    pub fn name(&mut self, text: CString) -> *const c_char {
        match self.names.iter().find(|known| **known == text) {
            Some(known) => known.as_ptr(),
            None => {
                // The bytes of a CString do not move with it.
                let at = text.as_ptr();
                self.names.push(text);
                at
            }
        }
    }

    /// A label for a new allocation.
    pub fn label(&mut self, call: &str) -> String {
        self.allocations += 1;
        format!("{call} #{}", self.allocations)
    }

    /// A stream in a context.
    pub fn add_stream(&mut self, context: u64, flags: u32, priority: i32, legacy: bool) -> u64 {
        let handle = self.handle();
        let number = self.streams.len();
        let name = if legacy { "default stream".to_owned() } else { format!("stream {number}") };
        let timeline = self.clock.stream(name, priority);
        let queue = std::collections::VecDeque::new();
        let stream = Stream { context, flags, priority, legacy, timeline, queue, last: None, running: false };
        self.streams.insert(handle, stream);
        handle
    }

    /// A context with its default stream.
    pub fn add_context(&mut self, flags: u32) -> u64 {
        let context = self.handle();
        let legacy = self.add_stream(context, 0, 0, true);
        let state =
            Context { flags, limits: BTreeMap::new(), sticky: None, legacy, allocations: BTreeSet::new() };
        self.contexts.insert(context, state);
        context
    }

    /// The next of a sequence of pseudo-random numbers (splitmix64).
    pub fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}
