//! What a recipe would give, from configurations alone.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::plan::Plan;
use super::recipe::{Recipe, check_same};
use super::select::Selection;
use super::target::Target;
use crate::checkpoint::weights::{Mlp, Weights};
use crate::checkpoint::{Checkpoint, Inventory};
use crate::config::ModelConfig;
use crate::config::rewrite::Rewrite;
use crate::error::Result;
use crate::quant::Format;

/// The formats a model is counted in.
const FORMATS: [Format; 3] = [Format::F16, Format::Fp8Block, Format::Int4Group32];

/// Some of a number of things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Share {
    /// How many stay.
    pub kept: usize,
    /// Of how many.
    pub of: usize,
}

/// What becomes of the source's weights of one kind. Matrices and vectors count, scales do not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Fate {
    /// Weights of the new model.
    pub kept: usize,
    /// Weights that are merged into one of those.
    pub merged: usize,
    /// Weights that are left out.
    pub dropped: usize,
}

/// What a recipe would give.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Estimate {
    /// Layers.
    pub layers: Share,
    /// Routed experts a layer.
    pub experts: Share,
    /// Bytes of all tensors in the format asked for.
    pub bytes: u64,
    /// `bytes` was counted from the source's tensors; otherwise plain tensors count as BF16, the router's bias as F32.
    pub exact: bool,
    /// The new model in the format asked for.
    pub inventory: Inventory,
    /// The new model in each format that it can have, by the format's name.
    pub formats: BTreeMap<&'static str, Inventory>,
    /// What becomes of the source's weights, by part.
    pub weights: BTreeMap<&'static str, Fate>,
    /// Shared experts' weights that a kept layer had and its counterpart lacks.
    pub shared_experts_dropped: usize,
}

impl Recipe {
    /// Counts what this recipe makes of the model whose `config.json` (or folder) is given; exactly what
    /// [`Recipe::write`] writes, if the checkpoint is given too.
    ///
    /// # Errors
    /// As [`Recipe::config`].
    pub fn estimate(&self, config: &Path, source: Option<&Checkpoint>) -> Result<Estimate> {
        let (json, own) = Rewrite::read(config)?;
        self.selection.check(&own)?;
        let (_, new) = self.target.config(json.clone(), &own, &self.selection)?;
        let formats = FORMATS.iter().filter_map(|&format| {
            let (_, config) =
                Target::new(format, false).ok()?.config(json.clone(), &own, &self.selection).ok()?;
            Some((format.name(), Inventory::of(&config)))
        });
        let (before, kept) = (count(&own, &Selection::everything(&own)), count(&own, &self.selection));
        let after = count(&new, &Selection::everything(&new));
        let fate = |(part, &total): (&&'static str, &usize)| {
            let stays = kept.get(part).copied().unwrap_or(0);
            let merged = if *part == ROUTED { merged(&self.selection) } else { 0 };
            (*part, Fate { kept: stays, merged, dropped: total - stays - merged })
        };
        let shared = |counts: &BTreeMap<&str, usize>| counts.get(SHARED).copied().unwrap_or(0);
        let inventory = Inventory::of(&new);
        let bytes = match source {
            Some(source) => {
                check_same(&own, source)?;
                Plan::of(self, source, &new).bytes
            }
            None => inventory.total.bytes,
        };
        Ok(Estimate {
            layers: Share { kept: new.num_layers, of: own.num_layers },
            experts: Share { kept: new.moe.num_experts, of: own.moe.num_experts },
            bytes,
            exact: source.is_some(),
            inventory,
            formats: formats.collect(),
            weights: before.iter().map(fate).collect(),
            shared_experts_dropped: shared(&kept) - shared(&after).min(shared(&kept)),
        })
    }
}

const ROUTED: &str = "routed experts";
const SHARED: &str = "shared experts";

/// Weights by part, named as [`Inventory`] names them, of the layers and the experts' heads that are selected.
fn count(config: &ModelConfig, selection: &Selection) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    let mut note = |part, n| *counts.entry(part).or_default() += n;
    let weights = Weights::describe(config);
    note("embedding", 1);
    note("norms and biases", 1);
    note("head", usize::from(weights.head.is_some()));
    for (new, &layer) in selection.layers().iter().enumerate() {
        let layer = &weights.layers[layer];
        let mlp = match &layer.mlp {
            Mlp::Dense(mlp) => {
                note("dense MLP", mlp.each().len());
                mlp.each().len()
            }
            Mlp::Experts { shared, .. } => {
                let shared = shared.as_ref().map_or(0, |mlp| mlp.each().len());
                note("router", 1);
                note(SHARED, shared);
                note(ROUTED, 3 * selection.experts(new).len());
                1 + shared
            }
        };
        note("attention", layer.matrices().len() - mlp);
        note("norms and biases", layer.vectors().len());
    }
    counts
}

/// Weights of experts that are merged into another.
fn merged(selection: &Selection) -> usize {
    let groups = (0..selection.layers().len()).flat_map(|new| selection.experts(new));
    groups.map(|group| 3 * (group.members().len() - 1)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::{Group, Layers};

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/configs").join(name)
    }

    #[test]
    fn the_whole_of_kimi_k2() {
        let file = fixture("kimi-k2-instruct.json");
        let own = ModelConfig::from_file(&file).unwrap();
        let all = Recipe::new(Selection::everything(&own)).estimate(&file, None).unwrap();
        assert_eq!(all.inventory.total.parameters, 1_026_408_232_448);
        assert_eq!(all.bytes, Inventory::of(&own).total.bytes);
        assert!(all.weights.values().all(|fate| fate.merged + fate.dropped == 0));
        // 139,644 tensors in all, of which 61 are inverse frequencies and the quantised matrices have two each.
        let (kept, quantized) =
            (all.weights.values().map(|f| f.kept).sum::<usize>(), 61 * 5 + 3 + 60 * (3 + 3 * 384));
        assert_eq!(kept + quantized, 139_644 - 61);
    }

    #[test]
    fn the_cut_of_k2_mini_counted_right() {
        let file = fixture("kimi-k2-instruct.json");
        let own = ModelConfig::from_file(&file).unwrap();
        let singles = |_| Ok((0..16).map(Group::single).collect());
        let selection = Selection::new(&own, &Layers::Count(24), singles).unwrap();
        let mini = Recipe::new(selection).estimate(&file, None).unwrap();
        let shared = mini.weights[SHARED];
        assert_eq!((shared.kept, shared.dropped, mini.shared_experts_dropped), (3 * 23, 3 * 37, 0));
        assert_eq!(mini.weights[ROUTED].kept, 3 * 16 * 23);
        // By hand: an expert 3 · 7168 · 2048; attention 7168·1536 + 1536·12288 + 7168·576 + 512·16384 + 8192·7168.
        let expert = 3 * 7168 * 2048u64;
        let attention = 7168 * 1536 + 1536 * 12_288 + 7168 * 576 + 512 * 16_384 + 8192 * 7168u64;
        let norms = 24 * (2 * 7168 + 1536 + 512) + 7168 + 23 * 16;
        let total =
            2 * 163_840 * 7168 + 24 * attention + 3 * 7168 * 18_432 + 23 * (17 * expert + 16 * 7168) + norms;
        assert_eq!(mini.inventory.total.parameters, total);
        let fp16 = &mini.formats["fp16"].total;
        assert_eq!(fp16.bytes, 2 * total + 2 * 23 * 16);
        assert!(mini.formats["int4-g32"].total.bytes < mini.formats["fp8-block"].total.bytes);
    }

    #[test]
    fn merged_is_not_dropped() {
        let file = fixture("moonlight.json");
        let own = ModelConfig::from_file(&file).unwrap();
        let pairs = |_| (0..32).map(|g| Group::merged(vec![(2 * g, 0.5), (2 * g + 1, 0.5)])).collect();
        let selection = Selection::new(&own, &Layers::Count(27), pairs).unwrap();
        let estimate = Recipe::new(selection).estimate(&file, None).unwrap();
        let half = 3 * 32 * 26;
        assert_eq!(estimate.weights[ROUTED], Fate { kept: half, merged: half, dropped: 0 });
    }
}
