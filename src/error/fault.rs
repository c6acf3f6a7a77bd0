//! What can be wrong with a checkpoint, each kind with its own words.

use std::fmt;
use std::path::PathBuf;

/// One thing wrong with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// The file it was found in, relative to the checkpoint's folder, where one file is to blame.
    pub file: Option<PathBuf>,
    /// The tensor, by its full checkpoint name, where one tensor is to blame.
    pub tensor: Option<String>,
    /// What is wrong.
    pub kind: FaultKind,
}

impl Fault {
    /// A fault of one tensor in one file.
    pub fn tensor(file: impl Into<PathBuf>, tensor: impl Into<String>, kind: FaultKind) -> Fault {
        Fault { file: Some(file.into()), tensor: Some(tensor.into()), kind }
    }

    /// A fault of a whole file.
    pub fn file(file: impl Into<PathBuf>, kind: FaultKind) -> Fault {
        Fault { file: Some(file.into()), tensor: None, kind }
    }

    /// A tensor that no file holds.
    pub fn missing(tensor: impl Into<String>, expected: impl Into<String>) -> Fault {
        Fault {
            file: None,
            tensor: Some(tensor.into()),
            kind: FaultKind::Missing { expected: expected.into() },
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        if let Some(tensor) = &self.tensor {
            write!(f, "{tensor}: ")?;
        }
        write!(f, "{}", self.kind)
    }
}

/// The ways in which a checkpoint can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultKind {
    /// The configuration asks for this tensor and no file holds it.
    #[error("missing, expected {expected}")]
    Missing {
        /// Shape and type, in words.
        expected: String,
    },
    /// The same tensor name stands twice.
    #[error("stands twice (also in {other})")]
    Duplicate {
        /// The other place.
        other: String,
    },
    /// The shape is not what the configuration implies.
    #[error("has shape {found:?}, expected {expected:?}")]
    WrongShape {
        /// What the configuration implies.
        expected: Vec<u64>,
        /// What the file says.
        found: Vec<u64>,
    },
    /// The element type is not what the configuration implies.
    #[error("has type {found}, expected {expected}")]
    WrongDtype {
        /// What the configuration implies.
        expected: String,
        /// What the file says.
        found: String,
    },
    /// No part of the architecture uses this tensor and it is not known junk.
    #[error("unexpected: no part of the configured architecture uses it")]
    Unexpected,
    /// Values that are NaN or infinite.
    #[error("{count} non-finite value(s), the first at element {first}")]
    NonFinite {
        /// How many.
        count: u64,
        /// Index of the first in row-major order.
        first: u64,
    },
    /// The tensor's recorded place or size contradicts the file or the other tensors.
    #[error("{0}")]
    BadLayout(String),
    /// A file that is not a safetensors file, or whose header cannot be trusted.
    #[error("{0}")]
    BadFile(String),
    /// The index names something it must not, or disagrees with the files.
    #[error("{0}")]
    BadIndex(String),
    /// The file changed between opening and the end of reading.
    #[error("changed while it was being read")]
    Changed,
}

/// Every fault of a checkpoint, in a stable order. Prints the first few and the count; `verify` prints all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FaultList(pub Vec<Fault>);

/// How many faults an error message spells out before it only counts.
const SHOWN: usize = 5;

impl fmt::Display for FaultList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => write!(f, "no faults"),
            [only] => write!(f, "damaged checkpoint: {only}"),
            all => {
                write!(f, "damaged checkpoint, {} faults:", all.len())?;
                for fault in all.iter().take(SHOWN) {
                    write!(f, "\n  {fault}")?;
                }
                match all.len().saturating_sub(SHOWN) {
                    0 => Ok(()),
                    more => write!(f, "\n  … and {more} more; `abruzzi verify` lists all"),
                }
            }
        }
    }
}
