//! Reading tensor bytes into place and looking at every value while it is in the cache.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::catalogue::{Catalogue, Located, Shard};
use super::file::Stamp;
use super::header::Dtype;
use super::mapped::look;
use crate::error::{Error, Fault, FaultKind, Result};

/// Bytes read and checked at a time: they stay in a core's second-level cache between the two.
pub(super) const CHUNK: usize = 512 << 10;

/// Threads that at least look at mapped files: where these come from the disk, threads wait, and with few of them so does
/// the disk.
const LOOKERS: usize = 8;

/// How to load or verify.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Reading threads; 0 takes one per available core, or some more where files are mapped and reading them is waiting.
    pub threads: usize,
    /// Called from the reading threads, often; it should be quick.
    pub progress: Option<Arc<dyn Fn(LoadProgress) + Send + Sync>>,
    /// Stops the work when set.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl LoadOptions {
    /// Threads that look at mapped files: as many as are asked for, or one a core but [`LOOKERS`] at least.
    pub(crate) fn lookers(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from).max(LOOKERS),
            threads => threads,
        }
    }

    /// The same for what is read after `done` of `total` bytes: progress counts all of them.
    pub(crate) fn after(&self, done: u64, total: u64) -> LoadOptions {
        let mut options = self.clone();
        if let Some(progress) = &self.progress {
            let (progress, begun) = (progress.clone(), Instant::now());
            options.progress = Some(Arc::new(move |p: LoadProgress| {
                let (bytes_done, seconds) = (done + p.bytes_done, begun.elapsed().as_secs_f64());
                progress(LoadProgress { bytes_done, bytes_total: total, seconds });
            }));
        }
        options
    }
}

/// How far loading is.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct LoadProgress {
    /// Bytes read and checked.
    pub bytes_done: u64,
    /// Bytes to read.
    pub bytes_total: u64,
    /// Seconds since it began.
    pub seconds: f64,
}

/// What a read has to look out for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Nothing,
    E4m3,
    /// 16-bit floats with these exponent bits.
    Half(u16),
    Single,
}

impl Check {
    fn of(dtype: Dtype) -> Check {
        match dtype {
            Dtype::F8E4m3 => Check::E4m3,
            Dtype::Bf16 => Check::Half(0x7f80),
            Dtype::F16 => Check::Half(0x7c00),
            Dtype::F32 => Check::Single,
            _ => Check::Nothing,
        }
    }

    fn element(self) -> usize {
        match self {
            Check::Nothing | Check::E4m3 => 1,
            Check::Half(_) => 2,
            Check::Single => 4,
        }
    }

    /// Number of non-finite elements and the first one's index.
    fn non_finite(self, bytes: &[u8]) -> Option<(u64, u64)> {
        let bad = |index: usize| match self {
            Check::Nothing => false,
            Check::E4m3 => bytes[index] & 0x7f == 0x7f,
            Check::Half(exponent) => half_bad(bytes.as_chunks().0[index], exponent),
            Check::Single => single_bad(bytes.as_chunks().0[index]),
        };
        // A fold without an early exit is what the compiler turns into vector code.
        let any = match self {
            Check::Nothing => false,
            Check::E4m3 => bytes.iter().fold(false, |any, &b| any | (b & 0x7f == 0x7f)),
            Check::Half(exponent) => {
                bytes.as_chunks().0.iter().fold(false, |any, &raw| any | half_bad(raw, exponent))
            }
            Check::Single => bytes.as_chunks().0.iter().fold(false, |any, &raw| any | single_bad(raw)),
        };
        if !any {
            return None;
        }
        let mut found = (0..bytes.len() / self.element()).filter(|&i| bad(i));
        let first = found.next()? as u64;
        Some((1 + found.count() as u64, first))
    }
}

fn half_bad(raw: [u8; 2], exponent: u16) -> bool {
    u16::from_le_bytes(raw) & exponent == exponent
}

fn single_bad(raw: [u8; 4]) -> bool {
    u32::from_le_bytes(raw) & 0x7f80_0000 == 0x7f80_0000
}

/// A piece of a tensor on its way into memory.
pub(super) struct Piece<'t, 'm> {
    pub tensor: &'t Located,
    /// First byte within the tensor.
    pub at: u64,
    pub into: &'m mut [u8],
}

/// Something wrong found by a piece, mergeable over a tensor's pieces.
pub(super) struct Finding<'a> {
    pub tensor: &'a Located,
    pub kind: FaultKind,
}

/// One loading or verifying run: files, progress and cancellation.
pub(super) struct Run<'a> {
    pub catalogue: &'a Catalogue,
    pub options: &'a LoadOptions,
    pub begun: Instant,
    pub bytes_total: u64,
    done: AtomicU64,
}

impl<'a> Run<'a> {
    pub(super) fn new(catalogue: &'a Catalogue, options: &'a LoadOptions, bytes_total: u64) -> Run<'a> {
        Run { catalogue, options, begun: Instant::now(), bytes_total, done: AtomicU64::new(0) }
    }

    /// A pool of so many threads; 0 takes one per available core.
    pub(super) fn pool(&self, threads: usize) -> Result<rayon::ThreadPool> {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|e| Error::argument("threads", format!("cannot be started: {e}")))
    }

    /// Reads a piece and checks it.
    ///
    /// # Errors
    /// [`Error::Cancelled`] and I/O failures; damage is a finding, not an error.
    pub(super) fn read<'t>(&self, piece: Piece<'t, '_>) -> Result<Option<Finding<'t>>> {
        self.go_on()?;
        let Piece { tensor, at, into } = piece;
        let shard = &self.catalogue.shards[tensor.shard];
        let finding = |kind| Ok(Some(Finding { tensor, kind }));
        match read_exact_at(&shard.file, into, tensor.entry.offset + at) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return finding(FaultKind::Changed),
            Err(e) => return Err(Error::io(&shard.name, "read")(e)),
        }
        self.passed(into.len() as u64);
        Ok(non_finite(tensor, at, into).map(|kind| Finding { tensor, kind }))
    }

    /// Looks at a piece of a tensor where the file is mapped.
    ///
    /// # Errors
    /// As [`Run::read`].
    pub(super) fn look<'t>(&self, tensor: &'t Located, piece: Range<u64>) -> Result<Option<Finding<'t>>> {
        self.go_on()?;
        let bytes = piece.end - piece.start;
        let kind = look(self.catalogue, tensor, piece)?;
        self.passed(bytes);
        Ok(kind.map(|kind| Finding { tensor, kind }))
    }

    fn go_on(&self) -> Result<()> {
        let cancelled = self.options.cancel.as_ref().is_some_and(|c| c.load(Ordering::Relaxed));
        if cancelled { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn passed(&self, bytes: u64) {
        let bytes_done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(progress) = &self.options.progress {
            let seconds = self.begun.elapsed().as_secs_f64();
            progress(LoadProgress { bytes_done, bytes_total: self.bytes_total, seconds });
        }
    }

    /// Checks INT4's recorded shape.
    pub(super) fn recorded_shape<'t>(
        &self,
        tensor: &'t Located,
        expected: [usize; 2],
    ) -> Result<Option<Finding<'t>>> {
        let mut raw = [0u8; 8];
        if let Some(finding) = self.read(Piece { tensor, at: 0, into: &mut raw })? {
            return Ok(Some(finding));
        }
        Ok(wrong_shape(raw, expected).map(|kind| Finding { tensor, kind }))
    }

    /// Faults for shards that are no longer what they were when they were opened.
    pub(super) fn changed_files(&self) -> impl Iterator<Item = Fault> {
        self.catalogue.shards.iter().filter_map(changed)
    }

    /// One fault a tensor and kind, in the order of names.
    pub(super) fn merge(&self, findings: Vec<Finding<'_>>) -> Vec<Fault> {
        merge(self.catalogue, findings)
    }
}

/// What is wrong with the values in a piece of a tensor that begins `at` bytes into it.
pub(super) fn non_finite(tensor: &Located, at: u64, piece: &[u8]) -> Option<FaultKind> {
    let check = Check::of(tensor.entry.dtype);
    let (count, first) = check.non_finite(piece)?;
    Some(FaultKind::NonFinite { count, first: first + at / check.element() as u64 })
}

/// What is wrong with INT4's recorded shape.
pub(super) fn wrong_shape(raw: [u8; 8], expected: [usize; 2]) -> Option<FaultKind> {
    let found = raw.as_chunks().0.iter().map(|&w| i64::from(i32::from_le_bytes(w)));
    if found.clone().eq(expected.iter().map(|&n| n as i64)) {
        return None;
    }
    let found: Vec<i64> = found.collect();
    Some(FaultKind::BadLayout(format!("records the shape {found:?}, expected {expected:?}")))
}

/// The fault of a shard that is no longer what it was when it was opened.
pub(super) fn changed(shard: &Shard) -> Option<Fault> {
    (Stamp::of(&shard.file).ok() != Some(shard.stamp)).then(|| Fault::file(&shard.name, FaultKind::Changed))
}

/// One fault a tensor and kind, in the order of names.
pub(super) fn merge(catalogue: &Catalogue, mut findings: Vec<Finding<'_>>) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    findings.sort_by(|a, b| a.tensor.entry.name.cmp(&b.tensor.entry.name));
    for Finding { tensor, kind } in findings {
        let file = &catalogue.shards[tensor.shard].name;
        let fault = Fault::tensor(file, tensor.entry.name.clone(), kind);
        if let Some(last) = faults.last_mut().filter(|l| l.tensor == fault.tensor) {
            match (&mut last.kind, fault.kind) {
                (FaultKind::NonFinite { count, first }, FaultKind::NonFinite { count: c, first: f }) => {
                    *count += c;
                    *first = f.min(*first);
                }
                (kind, other) if *kind == other => {}
                (_, kind) => faults.push(Fault { kind, ..fault }),
            }
        } else {
            faults.push(fault);
        }
    }
    faults
}

fn read_exact_at(file: &File, into: &mut [u8], offset: u64) -> std::io::Result<()> {
    // The standard library's version already repeats short and interrupted reads.
    file.read_exact_at(into, offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_e4m3_code() {
        for code in 0..=255u8 {
            let bad = Check::E4m3.non_finite(&[0, code, 0]).is_some();
            assert_eq!(bad, crate::quant::fp8::decode(code).is_nan(), "{code:#x}");
        }
    }

    #[test]
    fn every_16_bit_float() {
        for bits in 0..=u16::MAX {
            let raw = [[0, 0], bits.to_le_bytes()].concat();
            assert_eq!(
                Check::Half(0x7f80).non_finite(&raw).is_some(),
                !half::bf16::from_bits(bits).is_finite()
            );
            assert_eq!(
                Check::Half(0x7c00).non_finite(&raw).is_some(),
                !half::f16::from_bits(bits).is_finite()
            );
        }
    }

    #[test]
    fn counts_and_finds_the_first() {
        let values = [1.0f32, f32::NAN, -0.0, f32::NEG_INFINITY, f32::MAX];
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(Check::Single.non_finite(&raw), Some((2, 1)));
        assert_eq!(Check::Nothing.non_finite(&raw), None);
    }
}
