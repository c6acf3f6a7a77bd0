//! A checkpoint as a source of other files: its tensors in pieces, every value looked at, and what identifies it.

use blake3::{Hash, Hasher};

use super::Checkpoint;
use super::catalogue::Located;
use super::manifest::Source;
use super::read::{CHUNK, Finding, changed, merge, non_finite, wrong_shape};
use super::weights::{GatedMlp, Weights};
use crate::error::{Error, Fault, FaultKind, FaultList, Result};

impl Checkpoint {
    /// Where everything but the routed experts lies.
    pub(crate) fn trunk(&self) -> &Weights<Source, Located> {
        &self.bound.trunk
    }

    /// Where the routed experts of a layer lie; none in a dense layer or beyond the last.
    pub(crate) fn experts(&self, layer: usize) -> &[GatedMlp<Source>] {
        self.bound.experts.get(layer).map_or(&[], Vec::as_slice)
    }

    /// Reads a piece of a tensor, from byte `at` on, and checks that every value is finite. A piece begins and ends with
    /// an element.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the tensor, with all that is not finite in it, or if the file ends early; [`Error::Io`].
    pub(crate) fn read_piece(&self, tensor: &Located, at: u64, into: &mut [u8]) -> Result<()> {
        match self.read_unchecked(tensor, at, into)? {
            Some(kind) => Err(self.damaged(vec![self.fault(tensor, kind)])),
            None if non_finite(tensor, at, into).is_some() => Err(self.damaged(self.non_finite(tensor)?)),
            None => Ok(()),
        }
    }

    /// Checks the shape that INT4 records, where there is one, against the matrix's.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the tensor, [`Error::Io`].
    pub(crate) fn check_recorded_shape(&self, source: &Source) -> Result<()> {
        let Some(tensor) = &source.shape else { return Ok(()) };
        let mut raw = [0u8; 8];
        self.read_piece(tensor, 0, &mut raw)?;
        match wrong_shape(raw, [source.layout.rows, source.layout.cols]) {
            Some(kind) => Err(self.damaged(vec![self.fault(tensor, kind)])),
            None => Ok(()),
        }
    }

    /// Checks that no file has changed since the checkpoint was opened.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming each that has.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let faults: Vec<Fault> = self.catalogue.shards.iter().filter_map(changed).collect();
        if faults.is_empty() { Ok(()) } else { Err(self.damaged(faults)) }
    }

    /// The error of a matrix of which an element, multiplied with its scale, is no finite number any more.
    pub(crate) fn overflows(&self, source: &Source, element: u64) -> Error {
        let problem = format!("element {element} times its scale is more than 32-bit floats hold");
        self.damaged(vec![self.fault(&source.weight, FaultKind::BadLayout(problem))])
    }

    /// A hash of the structure: which tensors lie where in which files. With the configuration it says what the
    /// checkpoint is, but for the values.
    pub(crate) fn structure(&self) -> Hash {
        let mut tensors: Vec<&Located> = self.catalogue.tensors.values().collect();
        tensors.sort_unstable_by_key(|t| (t.shard, t.entry.offset));
        let mut hasher = Hasher::new();
        let mut text = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        for Located { entry, shard } in tensors {
            text(&self.catalogue.shards[*shard].name.to_string_lossy());
            text(&entry.name);
            text(entry.dtype.name());
            text(&format!("{:?} {}+{}", entry.shape, entry.offset, entry.len));
        }
        hasher.finalize()
    }

    /// A hash of the versions of the files, as far as the file system tells one from another.
    pub(crate) fn version(&self) -> Hash {
        let mut hasher = Hasher::new();
        for shard in &self.catalogue.shards {
            hasher.update(format!("{:?}", shard.stamp).as_bytes());
        }
        hasher.finalize()
    }

    /// Reads without looking at values; a file that has become shorter is the fault that comes back.
    pub(super) fn read_unchecked(
        &self,
        tensor: &Located,
        at: u64,
        into: &mut [u8],
    ) -> Result<Option<FaultKind>> {
        use std::os::unix::fs::FileExt;
        let shard = &self.catalogue.shards[tensor.shard];
        match shard.file.read_exact_at(into, tensor.entry.offset + at) {
            Ok(()) => Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(Some(FaultKind::Changed)),
            Err(e) => Err(Error::io(self.dir.join(&shard.name), "read")(e)),
        }
    }

    /// All that is not finite in a tensor: one piece has shown that something is.
    fn non_finite(&self, tensor: &Located) -> Result<Vec<Fault>> {
        let mut findings = Vec::new();
        let mut buffer = vec![0; CHUNK];
        for at in (0..tensor.entry.len).step_by(CHUNK) {
            let piece = &mut buffer[..(tensor.entry.len - at).min(CHUNK as u64) as usize];
            let kind = match self.read_unchecked(tensor, at, piece)? {
                Some(kind) => Some(kind),
                None => non_finite(tensor, at, piece),
            };
            findings.extend(kind.map(|kind| Finding { tensor, kind }));
        }
        Ok(merge(&self.catalogue, findings))
    }

    fn fault(&self, tensor: &Located, kind: FaultKind) -> Fault {
        Fault::tensor(&self.catalogue.shards[tensor.shard].name, tensor.entry.name.clone(), kind)
    }

    pub(super) fn damaged(&self, faults: Vec<Fault>) -> Error {
        Error::Checkpoint { dir: self.dir.clone(), faults: FaultList(faults) }
    }
}
