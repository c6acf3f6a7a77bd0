//! Where a model comes from, written beside it.
//!
//! Nothing in it depends on when, where or in how many runs the model was made: the same recipe gives the same file.

use std::path::Path;

use serde_json::{Value, json};

use super::lists;
use super::proof::Proof;
use super::recipe::Recipe;
use crate::checkpoint::write::Written;
use crate::checkpoint::{Checkpoint, Inventory};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::quant::Format;

/// The file's name.
pub(super) const FILE: &str = "abruzzi-provenance.json";

/// The layers of its source that a model was made of and the experts of each, of merged ones the heaviest.
///
/// # Errors
/// [`Error::Io`] if it has no provenance; [`Error::Unfinished`] if that does not say.
pub(super) fn selected(dir: &Path) -> Result<Vec<(usize, Vec<usize>)>> {
    let file = dir.join(FILE);
    let bytes = std::fs::read(&file).map_err(Error::io(&file, "read"))?;
    let origin: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let found = || -> Option<Vec<(usize, Vec<usize>)>> {
        let layers = origin["selection"]["layers"].as_array()?;
        let number = |value: &Value| value.as_u64().map(|n| n as usize);
        // A number, or for merged experts a list of experts and weights.
        let head = |item: &Value| number(item).or_else(|| number(&item[0][0]));
        let experts = |layer: usize| match origin["selection"]["experts"].get(layer.to_string()) {
            Some(list) => list.as_array()?.iter().map(head).collect(),
            None => Some(Vec::new()),
        };
        layers.iter().map(|layer| number(layer).and_then(|l| Some((l, experts(l)?)))).collect()
    };
    found().ok_or_else(|| Error::Unfinished {
        folder: dir.to_owned(),
        problem: format!("does not say in {FILE} what it was made of"),
    })
}

/// What a model was made of and how.
pub(super) struct Origin<'a> {
    pub recipe: &'a Recipe,
    pub source: &'a Checkpoint,
    /// The new configuration.
    pub config: &'a ModelConfig,
}

impl Origin<'_> {
    /// The file's content.
    pub(super) fn to_json(&self, written: &Written, proof: &Proof) -> Value {
        let Origin { recipe, source, config } = self;
        let own = source.config();
        let dir = source.dir().canonicalize();
        let name = dir.ok().and_then(|dir| Some(dir.file_name()?.to_string_lossy().into_owned()));
        let counted = Inventory::of(config);
        json!({
            "tool": {"name": "abruzzi", "version": env!("CARGO_PKG_VERSION")},
            "source": {
                "name": name,
                "structure_blake3": source.structure().to_hex().to_string(),
                "layers": own.num_layers,
                "experts": own.moe.num_experts,
                "bytes": source.bytes(),
                "dropped": source.skipped().0,
            },
            "selection": {
                "layers": recipe.selection.layers(),
                "experts": lists::to_json(&recipe.selection),
            },
            "format": recipe.target.format().map_or("as the source", Format::name),
            "experts_only": recipe.target.experts_only(),
            "healing": recipe.healing,
            "output": {
                "tensors_blake3": written.hash.to_hex().to_string(),
                "tensors": written.tensors,
                "bytes": written.bytes,
                "shards": written.shards,
                "parameters": counted.total.parameters,
                "active_parameters": counted.active.parameters,
            },
            "proof": proof,
        })
    }
}
