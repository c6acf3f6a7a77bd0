//! A checkpoint on disk: what it holds, whether that is what its configuration describes, and reading it in place.
//!
//! [`Checkpoint::open`] is the quick structural check and always runs; [`Checkpoint::load_trunk`] and
//! [`Checkpoint::read_expert`] look at every value while they read; [`verify`] does all that without keeping anything and lists
//! all that is wrong.

mod catalogue;
mod direct;
mod expert;
mod file;
mod header;
mod index;
mod inventory;
mod load;
mod manifest;
mod mapped;
pub mod memory;
mod rates;
mod read;
mod record;
pub mod region;
mod ring;
mod stream;
pub(crate) mod tensors;
mod verify;
pub mod weights;
pub(crate) mod write;

use std::path::{Path, PathBuf};

pub use catalogue::INDEX_FILE;
pub(crate) use catalogue::Located;
pub use direct::{DirectIo, ReadBuffer};
pub(crate) use file::{looks_like, open_regular};
pub(crate) use header::MAX_TENSORS;
pub use header::{Dtype, Entry, Header, parse_header};
pub(crate) use index::resolve;
pub use index::{Index, parse_index};
pub use inventory::{Amount, Inventory};
pub use load::{HostVector, LoadStats, LoadedTrunk};
pub use manifest::SkippedTensors;
pub(crate) use manifest::Source;
pub use rates::ReadRates;
pub use read::{LoadOptions, LoadProgress};
pub use record::{Placed, RecordLayout};
pub use verify::{VerifyReport, verify};

use catalogue::Catalogue;
use manifest::Bound;

use crate::config::ModelConfig;
use crate::error::{Error, Fault, FaultList, Result};
use crate::quant::Format;
use weights::{Weights, expert_spec};

/// A checkpoint whose structure is sound.
pub struct Checkpoint {
    dir: PathBuf,
    config: ModelConfig,
    catalogue: Catalogue,
    bound: Bound,
    skipped: SkippedTensors,
    bytes: u64,
    direct: direct::DirectFiles,
}

/// A checkpoint as found, sound or not.
struct Opened {
    dir: PathBuf,
    config: ModelConfig,
    catalogue: Catalogue,
    bound: Option<Bound>,
    skipped: SkippedTensors,
    faults: Vec<Fault>,
}

impl Opened {
    fn new(path: &Path) -> Result<Opened> {
        let dir = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
        if !path.exists() {
            let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::io(path, "open the checkpoint")(gone));
        }
        let config = ModelConfig::from_file(&dir.join("config.json"))?;
        let mut faults = Vec::new();
        let catalogue = Catalogue::open(path, &mut faults)?;
        // Without one readable shard every tensor would be missing, which says nothing.
        let (bound, skipped) = if catalogue.tensors.is_empty() {
            (None, SkippedTensors::default())
        } else {
            manifest::bind(&config, &catalogue, &mut faults)
        };
        Ok(Opened { dir: dir.to_owned(), config, catalogue, bound, skipped, faults })
    }

    /// INT4's recorded shapes and what they must be, as far as the tensors are there.
    fn recorded_shapes(&self) -> Vec<(&Located, [usize; 2])> {
        let mut shapes = Vec::new();
        let mut note = |spec: &weights::MatrixSpec| {
            let Some(shape) = spec.tensors().shape else { return };
            let found = self.catalogue.tensors.get(shape.name.as_str()).filter(|t| t.entry.len == 8);
            shapes.extend(found.map(|t| (t, [spec.rows, spec.cols])));
        };
        Weights::describe(&self.config).visit(&mut |m| note(m), &mut |_| {});
        for layer in self.config.first_k_dense..self.config.num_layers {
            for e in 0..self.config.moe.num_experts {
                expert_spec(&self.config, layer, e).each().into_iter().for_each(&mut note);
            }
        }
        shapes
    }
}

impl Checkpoint {
    /// Opens a checkpoint folder (or a single safetensors file beside its `config.json`) and checks its structure:
    /// headers, index, and that exactly the tensors the configuration implies are there.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Io`], and [`Error::Checkpoint`] with every structural fault.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let Opened { dir, config, catalogue, bound, skipped, faults } = Opened::new(path.as_ref())?;
        match bound {
            Some(bound) if faults.is_empty() => {
                let bytes = catalogue.tensors.values().map(|t| t.entry.len).sum();
                Ok(Checkpoint { dir, config, catalogue, bound, skipped, bytes, direct: Default::default() })
            }
            _ => Err(Error::Checkpoint { dir, faults: FaultList(faults) }),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How matrices that no quantisation covers are stored, by the largest of them.
    pub fn plain_format(&self) -> Format {
        self.bound.trunk.embedding.layout.format
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tensors that are there and that this engine does not use.
    pub fn skipped(&self) -> &SkippedTensors {
        &self.skipped
    }
}
