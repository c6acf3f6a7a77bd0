//! From a checkpoint and what is wanted of it to a new one, proven before it gets its name.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use blake3::{Hash, Hasher};
use serde::Serialize;
use serde_json::Value;

use super::heal::Healing;
use super::kept::{self, KEPT_SCALES, KeptScales};
use super::lists;
use super::merging::Merging;
use super::plan::Plan;
use super::produce::{Counts, Producer};
use super::proof::{Proof, finite_logits};
use super::provenance;
use super::select::Selection;
use super::sidecar::Sidecars;
use super::target::Target;
use crate::checkpoint::write::Folder;
use crate::checkpoint::{Checkpoint, LoadOptions, verify};
use crate::config::ModelConfig;
use crate::config::rewrite::Rewrite;
use crate::error::{Error, Fault, FaultKind, FaultList, Result};

/// Bytes of tensors in a shard at most, as the large checkpoints have it.
const SHARD_BYTES: u64 = 5_000_000_000;

/// What to make of a checkpoint.
///
/// ```no_run
/// use abruzzi::compress::{Recipe, Selection, Target};
/// use abruzzi::quant::Format;
/// use abruzzi::{Checkpoint, LoadOptions};
///
/// # fn main() -> abruzzi::Result<()> {
/// let source = Checkpoint::open("kimi-k2")?;
/// let recipe = Recipe::new(Selection::everything(source.config())).target(Target::new(Format::Int4Group32, false)?);
/// let report = recipe.write(&source, "kimi-k2-int4".as_ref(), &LoadOptions::default())?;
/// println!("{} tensors, {} bytes", report.tensors, report.bytes);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Recipe {
    pub(super) selection: Selection,
    pub(super) target: Target,
    pub(super) healing: Option<Healing>,
    allow_saturation: f64,
    shard_bytes: u64,
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CompressReport {
    /// Tensors.
    pub tensors: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Files they lie in.
    pub shards: usize,
    /// BLAKE3 over all tensors, in hexadecimal: names, types, shapes and bytes.
    pub hash: String,
    /// Values beyond the largest of their format, stored as that. Counted over what this run made; a resumed run made
    /// the rest before.
    pub saturated: u64,
    /// Values that became zero, counted as `saturated` is.
    pub vanished: u64,
    /// Blocks of FP8 that took the scale they had before they were decoded, counted as `saturated` is.
    pub kept_scales: u64,
    /// Blocks of FP8 to which that scale does not give back their values.
    pub fresh_scales: u64,
    /// Tensors of the source that no part of the model uses and that were left behind, by kind.
    pub left_behind: BTreeMap<&'static str, usize>,
    /// What was proven of it.
    pub proof: Proof,
    /// Files copied from the source: tokenizer, templates, licence.
    pub copied: Vec<String>,
    /// Files of the source that were not, with the reason.
    pub left_out: Vec<String>,
    /// Seconds it took.
    pub seconds: f64,
}

impl Recipe {
    /// These layers and experts, stored as they are.
    pub fn new(selection: Selection) -> Recipe {
        Recipe {
            selection,
            target: Target::AS_IS,
            healing: None,
            allow_saturation: 0.0,
            shard_bytes: SHARD_BYTES,
        }
    }

    /// How to store the weights.
    pub fn target(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// What to mend.
    pub fn healing(mut self, healing: Healing) -> Self {
        self.healing = Some(healing);
        self
    }

    /// The share of a tensor's values that may be beyond the largest of its new format and become that, 0 unless set.
    pub fn allow_saturation(mut self, share: f64) -> Self {
        self.allow_saturation = share;
        self
    }

    /// Bytes of tensors in a shard at most (a matrix and its scales are never divided), 5 GB unless set.
    pub fn shard_bytes(mut self, bytes: u64) -> Self {
        self.shard_bytes = bytes;
        self
    }

    /// The configuration the new model will have, from that of the source (its `config.json`, or the folder of one).
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Config`] for the file; [`Error::Argument`] if the selection is not one of this model, or
    /// it cannot be stored so.
    pub fn config(&self, source: &Path) -> Result<ModelConfig> {
        let (json, own) = Rewrite::read(source)?;
        self.selection.check(&own)?;
        Ok(self.target.config(json, &own, &self.selection)?.1)
    }

    /// Writes the new checkpoint to the folder `out`, which must not exist yet. It comes into being as `out`.partial and
    /// is verified there, value by value, before it gets its name. A run that was killed or cancelled is continued by the
    /// same call, with the same bytes at the end.
    ///
    /// Memory: some ten megabytes a thread, and the lists of all tensors; merging experts takes four experts in F32 more,
    /// whatever the number of threads. Of the options, threads, progress (of writing, then verifying, as one) and
    /// cancellation are used.
    ///
    /// # Errors
    /// As [`Recipe::config`]; [`Error::Checkpoint`] if the source is damaged or changes meanwhile, or what was written is
    /// not what was meant; [`Error::Io`] if `out` exists, does not fit the disk or cannot be written;
    /// [`Error::Unfinished`] if the partial folder is another command's; [`Error::Argument`] if more values than allowed
    /// are beyond their new format; [`Error::Cancelled`].
    pub fn write(&self, source: &Checkpoint, out: &Path, options: &LoadOptions) -> Result<CompressReport> {
        let begun = Instant::now();
        if !(0.0..=1.0).contains(&self.allow_saturation) {
            let problem = format!("is {}, expected a share from 0 to 1", self.allow_saturation);
            return Err(Error::argument("allow-saturation", problem));
        }
        let (json, own) = Rewrite::read(source.dir())?;
        check_same(&own, source)?;
        self.selection.check(&own)?;
        let (json, config) = self.target.config(json, &own, &self.selection)?;
        let plan = Plan::of(self, source, &config);
        let scales = kept::scales_to_keep(&plan);
        let scales = if self.target.keeps_scales() { scales } else { Vec::new() };
        let sidecars = Sidecars::of(source.dir())?;
        let needed = plan.bytes + kept::kept_bytes(&scales) + sidecars.bytes();

        let identity = self.identity(source, &json);
        let mut folder = Folder::begin(out, *identity.as_bytes(), needed)?;
        let kept_scales = KeptScales::beside(source.dir())?;
        let producer = Producer {
            source,
            plan: &plan,
            kept: kept_scales.as_ref(),
            allow_saturation: self.allow_saturation,
            merging: Merging::new(options.threads),
            counts: Counts::default(),
        };
        // Verifying reads what writing wrote: half of the way each.
        let all = 2 * plan.bytes;
        let written = folder.shards(&plan.units, &producer, self.shard_bytes, &options.after(0, all))?;
        folder.json("config.json", &json)?;
        sidecars.copy(&folder)?;
        if !scales.is_empty() {
            folder.stream(KEPT_SCALES, |path, file| kept::write(source, &scales, path, file))?;
        }
        source.check_unchanged()?;

        let seed = written.hash.as_bytes().iter().fold(0, |seed, &byte| seed << 8 | u64::from(byte));
        let proof = self.prove(&plan, &folder, seed, &options.after(plan.bytes, all))?;
        let origin = provenance::Origin { recipe: self, source, config: &config };
        folder.json(provenance::FILE, &origin.to_json(&written, &proof))?;
        folder.finish()?;
        let counts = producer.counts.sum();
        Ok(CompressReport {
            tensors: written.tensors,
            bytes: written.bytes,
            shards: written.shards,
            hash: written.hash.to_hex().to_string(),
            saturated: counts.saturated,
            vanished: counts.vanished,
            kept_scales: counts.kept_scales,
            fresh_scales: counts.fresh_scales,
            left_behind: source.skipped().0.clone(),
            proof,
            copied: sidecars.names(),
            left_out: sidecars.left_out().to_vec(),
            seconds: begun.elapsed().as_secs_f64(),
        })
    }

    /// Reads what was written as a loader would, compares it with what was planned, and runs it.
    fn prove(&self, plan: &Plan<'_>, folder: &Folder, seed: u64, options: &LoadOptions) -> Result<Proof> {
        let report = verify(folder.path(), options)?;
        if !report.faults.is_empty() {
            let dir = folder.path().to_owned();
            return Err(Error::Checkpoint { dir, faults: FaultList(report.faults) });
        }
        if (report.tensors, report.bytes) != (plan.tensors, plan.bytes) || !report.skipped.0.is_empty() {
            let what = format!(
                "{} tensors with {} bytes were written, {} with {} were planned",
                report.tensors, report.bytes, plan.tensors, plan.bytes
            );
            return Err(Error::Defect { what });
        }
        Ok(Proof {
            verified_tensors: report.tensors,
            verified_bytes: report.bytes,
            finite_logits: finite_logits(folder.path(), seed, options)?,
        })
    }

    /// A hash of all that decides the bytes.
    fn identity(&self, source: &Checkpoint, config: &Value) -> Hash {
        let mut hasher = Hasher::new();
        let parts = [
            env!("CARGO_PKG_VERSION").to_owned(),
            source.structure().to_hex().to_string(),
            source.version().to_hex().to_string(),
            config.to_string(),
            format!("{:?}", self.selection.layers()),
            lists::to_json(&self.selection).to_string(),
            format!("{:?} {}", self.target, self.shard_bytes),
        ];
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        if let Some(healing) = &self.healing {
            healing.write_to(|bytes| {
                hasher.update(bytes);
            });
        }
        hasher.finalize()
    }
}

/// The configuration that was read to be changed must be the one the checkpoint's tensors are bound by.
pub(super) fn check_same(read: &ModelConfig, source: &Checkpoint) -> Result<()> {
    // Expressions cannot be compared; what they are written as can.
    if format!("{read:?}") == format!("{:?}", source.config()) {
        return Ok(());
    }
    let faults = FaultList(vec![Fault::file("config.json", FaultKind::Changed)]);
    Err(Error::Checkpoint { dir: source.dir().to_owned(), faults })
}
