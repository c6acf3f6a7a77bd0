//! What streams are made of.

use std::sync::Arc;

use super::engine::{Launch, Module};
use crate::clock::{Engine, Footprint, Profile};

/// An operation of a stream.
pub(super) struct Op {
    /// Its number.
    pub id: usize,
    /// What must be executed before: stream and operation.
    pub after: Vec<(u64, usize)>,
    /// When the host issued it.
    pub issued: f64,
    /// The function that issued it.
    pub call: &'static str,
    pub action: Action,
}

/// Equal pieces at regular distances; one piece for ordinary copies.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub bytes: u64,
    pub count: u64,
    pub from_pitch: u64,
    pub to_pitch: u64,
}

impl Rows {
    pub fn one(bytes: u64) -> Rows {
        Rows { bytes, count: 1, from_pitch: bytes, to_pitch: bytes }
    }

    pub fn total(self) -> u64 {
        self.bytes * self.count
    }

    fn span(self, pitch: u64) -> u64 {
        if self.count == 0 { 0 } else { pitch * (self.count - 1) + self.bytes }
    }

    pub fn source_span(self) -> u64 {
        self.span(self.from_pitch)
    }

    pub fn target_span(self) -> u64 {
        self.span(self.to_pitch)
    }
}

pub(super) enum Action {
    /// Host to device.
    Upload {
        from: u64,
        to: u64,
        rows: Rows,
        pinned: bool,
    },
    /// Device to host.
    Download {
        from: u64,
        to: u64,
        rows: Rows,
        pinned: bool,
    },
    /// Within the device.
    Move {
        from: u64,
        to: u64,
        rows: Rows,
    },
    /// Within the host.
    HostMove {
        from: u64,
        to: u64,
        rows: Rows,
    },
    /// Fill with a repeated value of `width` bytes.
    Fill {
        to: u64,
        value: u32,
        width: u64,
        rows: Rows,
    },
    Kernel(Box<Kernel>),
    /// A function of the host and its argument.
    Host {
        function: extern "C" fn(*mut std::ffi::c_void),
        data: usize,
    },
    /// End of an allocation.
    Free {
        start: u64,
    },
    /// Records and waits.
    Mark,
}

pub(super) struct Kernel {
    pub module: Arc<dyn Module>,
    pub index: usize,
    pub name: String,
    pub launch: Launch,
    pub params: Vec<u8>,
    pub footprint: Footprint,
}

/// A range of addresses an action touches.
pub(super) type Range = (u64, u64);

impl Action {
    /// Whether the schedule may put it off: only copies that the hardware would make on its own.
    pub fn deferrable(&self) -> bool {
        matches!(self, Action::Upload { .. } | Action::Download { .. })
    }

    /// Ranges of device memory it touches.
    pub fn device_ranges(&self) -> Vec<Range> {
        match self {
            Action::Upload { to, rows, .. } | Action::Fill { to, rows, .. } => {
                vec![(*to, rows.target_span())]
            }
            Action::Download { from, rows, .. } => vec![(*from, rows.source_span())],
            Action::Move { from, to, rows } => vec![(*from, rows.source_span()), (*to, rows.target_span())],
            _ => Vec::new(),
        }
    }

    /// Range of host memory it will touch.
    pub fn host_range(&self) -> Option<Range> {
        match self {
            Action::Upload { from, rows, .. } => Some((*from, rows.source_span())),
            Action::Download { to, rows, .. } => Some((*to, rows.target_span())),
            _ => None,
        }
    }

    /// Whether it uses a byte of [start, start + len): by its ranges, or by a kernel's argument that points there.
    pub fn uses(&self, start: u64, len: u64) -> bool {
        let meets = |&(at, bytes): &Range| at < start + len && start < at + bytes;
        match self {
            Action::Kernel(kernel) => kernel.params.chunks_exact(8).any(|word| {
                let word = word.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
                word >= start && word - start < len
            }),
            other => other.device_ranges().iter().any(meets) || other.host_range().iter().any(meets),
        }
    }

    /// What it is, for traces and reports.
    pub fn label(&self) -> String {
        match self {
            Action::Upload { rows, .. } => format!("copy to device, {} bytes", rows.total()),
            Action::Download { rows, .. } => format!("copy to host, {} bytes", rows.total()),
            Action::Move { rows, .. } => format!("copy on device, {} bytes", rows.total()),
            Action::HostMove { rows, .. } => format!("copy on host, {} bytes", rows.total()),
            Action::Fill { rows, .. } => format!("memset, {} bytes", rows.total()),
            Action::Kernel(kernel) => kernel.name.clone(),
            Action::Host { .. } => "host function".to_owned(),
            Action::Free { start } => format!("free {start:#x}"),
            Action::Mark => "mark".to_owned(),
        }
    }

    /// Engine and duration; of a kernel, only the engine, as its counters are not known before.
    pub fn cost(&self, profile: &Profile) -> (Engine, f64) {
        let link = &profile.link;
        let copy = |bytes: u64, gb_s: f64| link.latency_us + bytes as f64 / (gb_s * 1e3);
        let rate = |pinned: bool, gb_s: f64| if pinned { gb_s } else { link.pageable_gb_s };
        match self {
            Action::Upload { rows, pinned, .. } => {
                (Engine::H2d, copy(rows.total(), rate(*pinned, link.h2d_gb_s)))
            }
            Action::Download { rows, pinned, .. } => {
                (Engine::D2h, copy(rows.total(), rate(*pinned, link.d2h_gb_s)))
            }
            // Read and written.
            Action::Move { rows, .. } => (Engine::Sm, copy(2 * rows.total(), profile.memory_gb_s)),
            Action::Fill { rows, .. } => (Engine::Sm, copy(rows.total(), profile.memory_gb_s)),
            Action::HostMove { rows, .. } => (Engine::Host, rows.total() as f64 / (link.pageable_gb_s * 1e3)),
            Action::Kernel(_) => (Engine::Sm, 0.0),
            Action::Host { .. } => (Engine::Host, profile.cost.call_us),
            Action::Free { .. } | Action::Mark => (Engine::None, 0.0),
        }
    }
}
