//! One error type, sorted by what the caller can do about it.
//!
//! A damaged checkpoint is reported whole: [`Error::Checkpoint`] carries every [`Fault`] that was found, not
//! the first, because a person who re-downloads a terabyte wants to do it once.

mod fault;

pub use fault::{Fault, FaultKind, FaultList};

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused: look at the path, its permissions, the disk.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What was being done, as an infinitive: "read", "create".
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },

    /// `config.json` says something this engine cannot or must not run: mend the file or use another model.
    #[error("{}: `{field}` {problem}", file.display())]
    Config {
        /// The configuration file.
        file: PathBuf,
        /// The JSON field, dotted where nested.
        field: String,
        /// What is wrong with it and what was expected, as a predicate: "is 0, expected 1 to 512".
        problem: String,
    },

    /// The checkpoint is damaged or is not what its configuration describes: download it again.
    #[error("{}: {faults}", dir.display())]
    Checkpoint {
        /// The checkpoint's folder or file.
        dir: PathBuf,
        /// Everything that was found wrong.
        faults: FaultList,
    },

    /// The vocabulary, the special tokens or the chat template cannot be used: mend the named file.
    #[error("{}: {problem}", file.display())]
    Tokenizer {
        /// The tokenizer or template file.
        file: PathBuf,
        /// What is wrong, where (line or id), and what was expected.
        problem: String,
    },

    /// The file is no trace of a run, or not of a model like this: record it again.
    #[error("{}: `{field}` {problem}", file.display())]
    Trace {
        /// The trace file.
        file: PathBuf,
        /// The JSON field, dotted where nested.
        field: String,
        /// What is wrong with it and what was expected, as a predicate.
        problem: String,
    },

    /// An argument of the call (or a flag of the command line) is out of its range: call again, corrected.
    #[error("`{name}` {problem}")]
    Argument {
        /// The argument, spelt as the caller spelt it.
        name: &'static str,
        /// What is wrong with it and what was expected, as a predicate.
        problem: String,
    },

    /// The tokens asked for do not fit the session's context: shorten the prompt or raise the context size.
    #[error(
        "{needed} tokens do not fit the context of {limit}; shorten the prompt or raise the context size"
    )]
    ContextFull {
        /// Tokens the session would have to hold.
        needed: usize,
        /// Tokens it can hold.
        limit: usize,
    },

    /// The arithmetic left the finite numbers: the weights or the input are damaged. The session's cache is
    /// no longer to be trusted; start a new session.
    #[error(transparent)]
    NonFinite(#[from] NonFinite),

    /// There is not enough memory: ask for less (context, threads) or use a larger machine.
    #[error("not enough memory for {what}: {needed} bytes are needed, {available} are available")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },

    /// A plan's memory does not suffice, before anything was allocated: make the change it names.
    #[error("no room for {what}: {needed} bytes are needed in all, {available} are available; {change}")]
    DoesNotFit {
        /// The first part that found no room.
        what: String,
        /// Bytes of that memory that the least of everything takes.
        needed: u64,
        /// Bytes there are.
        available: u64,
        /// The smallest change with which the plan fits.
        change: Change,
    },

    /// The CUDA driver refused: look at the GPU, its driver, who else uses it.
    #[error("{call}: {reason}")]
    Cuda {
        /// The driver's function.
        call: &'static str,
        /// Its reason.
        reason: String,
    },

    /// A routed expert could not be brought where it is needed. What was generated before it stands.
    #[error("expert {expert} of layer {layer} ({tier}{}): {problem}",
        slot.map(|s| format!(", slot {s}")).unwrap_or_default())]
    Expert {
        /// Layer, counted over all layers.
        layer: usize,
        /// Expert within the layer.
        expert: usize,
        /// Where it went wrong.
        tier: Tier,
        /// The slot of the tier, where one was involved.
        slot: Option<u32>,
        /// What went wrong and, where something helps, what to do.
        problem: String,
    },

    /// The device failed while it was at work, and nothing on it can be trusted any more. What was generated before it
    /// stands; load the engine again.
    #[error("the device failed and cannot be used any more: {reason}; load the model again")]
    DeviceLost {
        /// How it failed.
        reason: String,
    },

    /// A folder holds an unfinished result that this run cannot continue: remove the folder or name another output.
    #[error("{}: {problem}; remove this folder or name another output", folder.display())]
    Unfinished {
        /// The folder, named like the output with `.partial` behind.
        folder: PathBuf,
        /// Why it cannot be continued, as a predicate: "is the unfinished result of another command".
        problem: String,
    },

    /// The program contradicts itself, which was noticed before it did harm: report it.
    #[error("{what}; this is a defect of the program, please report it")]
    Defect {
        /// What was noticed.
        what: String,
    },

    /// The request is well-formed but outside what this build does; the text says what to use instead.
    #[error("{what} is not supported: {instead}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What to do instead.
        instead: String,
    },

    /// The caller's cancellation was seen. What was generated before it stands.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Wraps an I/O failure with the path and the action that failed.
    pub(crate) fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_owned();
        move |source| Error::Io { path, action, source }
    }

    /// An argument outside its range; `problem` is a predicate ("is -1, expected 0 or more").
    pub(crate) fn argument(name: &'static str, problem: impl Into<String>) -> Error {
        Error::Argument { name, problem: problem.into() }
    }
}

/// Where an expert's weights can lie, fastest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Tier {
    /// A slot in the memory of the device that computes.
    Device,
    /// A record in host memory.
    Host,
    /// The checkpoint's files.
    File,
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Tier::Device => "device memory",
            Tier::Host => "host memory",
            Tier::File => "file",
        })
    }
}

/// The one change that makes a plan fit; by one unit less it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// At most so many tokens of context.
    Context(usize),
    /// A prefill chunk of at most so many tokens.
    Chunk(usize),
    /// At least so many bytes of GPU memory.
    Vram(u64),
    /// At least so many bytes of host memory.
    Host {
        /// The bytes.
        bytes: u64,
        /// There is no file tier yet, and one would do too.
        file_tier: bool,
    },
    /// Neither memory suffices, whatever the other has.
    VramAndHost {
        /// At least so many bytes of GPU memory.
        vram: u64,
        /// At least so many bytes of host memory, with that.
        host: u64,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Context(tokens) => write!(f, "--ctx-size {tokens} fits"),
            Change::Chunk(tokens) => write!(f, "--chunk {tokens} fits"),
            Change::Vram(bytes) => write!(f, "--vram {bytes} fits"),
            Change::Host { bytes, file_tier: false } => write!(f, "--host {bytes} fits"),
            Change::Host { bytes, file_tier: true } => {
                write!(f, "--host {bytes} fits, or --nvme if experts may be read from the checkpoint's disk")
            }
            Change::VramAndHost { vram, host } => write!(f, "--vram {vram} with --host {host} fits"),
        }
    }
}

/// Where a NaN or an infinity first appeared during a forward pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("non-finite value in {tensor}{} at token {row}, column {column}{}",
    layer.map(|l| format!(" of layer {l}")).unwrap_or_default(),
    expert.map(|e| format!(" (expert {e})")).unwrap_or_default())]
#[non_exhaustive]
pub struct NonFinite {
    /// The layer, if it arose inside one.
    pub layer: Option<usize>,
    /// The routed expert, if it arose inside one.
    pub expert: Option<usize>,
    /// The operation's output, by the name of the checkpoint module that made it: `self_attn.o_proj`,
    /// `mlp.experts.down_proj`, `lm_head`.
    pub tensor: String,
    /// The token, counted from the start of the session.
    pub row: usize,
    /// The column of that output.
    pub column: usize,
}
