//! Findings: what a kernel did that a GPU would punish, or worse, would not.

use std::fmt;

/// Where in the program and in the grid.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Kernel name.
    pub kernel: String,
    /// Line of the PTX text.
    pub ptx_line: u32,
    /// The PTX instruction, as text.
    pub instruction: String,
    /// File and line of the CUDA source, where `-lineinfo` gave them.
    pub source: Option<(String, u32)>,
    /// Block index.
    pub block: [u32; 3],
    /// Warp in the block.
    pub warp: u32,
    /// Lane in the warp, where one lane is to blame.
    pub lane: Option<u32>,
}

/// What kind of fault it is; tests and mutant tables go by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it; Finding::message says the rest")]
#[non_exhaustive]
pub enum Kind {
    OutOfBounds,
    Misaligned,
    UseAfterFree,
    Uninitialised,
    SharedRace,
    Mbarrier,
    WgmmaAccumulator,
    Wgmma,
    TensorMap,
    BulkCopy,
    ExitInFlight,
    Deadlock,
    RunawaySpin,
    Convergence,
    Barrier,
    LaunchConfig,
    Trap,
    Assertion,
    HostCopy,
    Leak,
}

/// One finding. The first one ends its launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Kind.
    pub kind: Kind,
    /// What happened, with addresses and counts, in a sentence.
    pub message: String,
    /// Where; empty for findings of the host side.
    pub place: Place,
    /// Further lines: the other party of a race, every warp's state in a deadlock.
    pub details: Vec<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}: {}", self.kind, self.message)?;
        let place = &self.place;
        if !place.kernel.is_empty() {
            let [x, y, z] = place.block;
            write!(f, "  kernel {}, block ({x}, {y}, {z}), warp {}", place.kernel, place.warp)?;
            if let Some(lane) = place.lane {
                write!(f, ", lane {lane}")?;
            }
            writeln!(f)?;
            if let Some((file, line)) = &place.source {
                writeln!(f, "  at {file}:{line}")?;
            }
            writeln!(f, "  PTX line {}: {}", place.ptx_line, place.instruction)?;
        }
        for line in &self.details {
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Finding {}
