//! Lists of experts in a file, so that a choice can be written down, changed by hand and used again.
//!
//! A JSON object from source layers to lists: `{"1": [0, 5, [[7, 0.6], [9, 0.4]]], "2": [3, 4, 8]}`. A number keeps that
//! expert; a list of pairs merges experts with these weights.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::select::{Group, Selection};
use crate::checkpoint::open_regular;
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// Every expert of the largest models, each with a weight, takes a megabyte.
const FILE_BYTES: u64 = 16 << 20;

/// What to keep, by source layer.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertLists(BTreeMap<usize, Vec<Group>>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Single(usize),
    Merged(Vec<(usize, f32)>),
}

impl ExpertLists {
    /// Reads a file of lists for a model.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Argument`] `experts-list` with the file and the layer that is wrong.
    pub fn read(file: &Path, config: &ModelConfig) -> Result<ExpertLists> {
        let bad = |problem: String| {
            Error::argument("experts-list", format!("is {}, which {problem}", file.display()))
        };
        let mut text = Vec::new();
        open_regular(file)?.take(FILE_BYTES + 1).read_to_end(&mut text).map_err(Error::io(file, "read"))?;
        if text.len() as u64 > FILE_BYTES {
            return Err(bad(format!("is longer than {FILE_BYTES} bytes")));
        }
        let expected = r#"expected an object such as {"1": [0, 5, [[7, 0.6], [9, 0.4]]]}"#;
        let raw: BTreeMap<usize, Vec<Item>> =
            serde_json::from_slice(&text).map_err(|e| bad(format!("cannot be used: {e}; {expected}")))?;
        let with_experts = config.first_k_dense..config.num_layers;
        let mut lists = BTreeMap::new();
        for (layer, items) in raw {
            if !with_experts.contains(&layer) {
                let (first, last) = (config.first_k_dense, config.num_layers - 1);
                return Err(bad(format!(
                    "lists layer {layer}, expected {first} to {last}: those have experts"
                )));
            }
            let groups = items.into_iter().map(|item| match item {
                Item::Single(expert) => Ok(Group::single(expert)),
                Item::Merged(members) => Group::merged(members),
            });
            let groups = groups.collect::<Result<_>>().map_err(|e| match e {
                Error::Argument { problem, .. } => bad(format!("in layer {layer} {problem}")),
                other => other,
            })?;
            lists.insert(layer, groups);
        }
        Ok(ExpertLists(lists))
    }

    /// What is kept of a source layer.
    ///
    /// # Errors
    /// [`Error::Argument`] `experts-list` if the lists do not say.
    pub fn of_layer(&self, layer: usize) -> Result<Vec<Group>> {
        self.0.get(&layer).cloned().ok_or_else(|| {
            Error::argument("experts-list", format!("says nothing of layer {layer}, which is kept"))
        })
    }
}

/// A selection's experts as such lists.
pub(super) fn to_json(selection: &Selection) -> Value {
    let of_group = |group: &Group| match group.members() {
        [(expert, _)] => json!(expert),
        members => json!(members),
    };
    let kept = selection.layers().iter().enumerate().filter(|&(new, _)| !selection.experts(new).is_empty());
    kept.map(|(new, source)| {
        let groups: Vec<Value> = selection.experts(new).iter().map(of_group).collect();
        (source.to_string(), Value::from(groups))
    })
    .collect::<serde_json::Map<_, _>>()
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::Layers;

    fn config() -> ModelConfig {
        let text = include_str!("../../models/demo/config.json");
        ModelConfig::from_json(text.as_bytes(), "config.json".as_ref()).unwrap()
    }

    fn read(text: &str) -> Result<ExpertLists> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lists.json");
        std::fs::write(&file, text).unwrap();
        ExpertLists::read(&file, &config())
    }

    #[test]
    fn a_selection_comes_back_from_its_lists() {
        let text = r#"{"1": [0, 5, 6, [[7, 0.625], [9, 0.25], [30, 0.125]]], "4": [1, 2, 3, 4], "2": [0]}"#;
        let lists = read(text).unwrap();
        let layers = Layers::List(vec![0, 1, 4]);
        let selection = Selection::new(&config(), &layers, |l| lists.of_layer(l)).unwrap();
        assert_eq!(selection.experts(1)[3].members(), [(7, 0.625), (9, 0.25), (30, 0.125)]);
        let again = read(&to_json(&selection).to_string()).unwrap();
        assert_eq!(Selection::new(&config(), &layers, |l| again.of_layer(l)).unwrap(), selection);
        let missing = lists.of_layer(3).unwrap_err().to_string();
        assert_eq!(missing, "`experts-list` says nothing of layer 3, which is kept");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("[]", "cannot be used: "),
            ("{\"1\": [true]}", "expected an object such as"),
            ("{\"x\": [0]}", "cannot be used: "),
            ("{\"0\": [0]}", "lists layer 0, expected 1 to 4"),
            ("{\"5\": [0]}", "lists layer 5, expected 1 to 4"),
            ("{\"2\": [[[0, 0.5]]]}", "in layer 2 has a group whose weights sum to 0.5"),
            ("", "cannot be used: "),
        ] {
            let said = read(text).unwrap_err().to_string();
            assert!(said.contains(expected) && said.contains("lists.json"), "{text}: {said}");
        }
        let gone = ExpertLists::read(Path::new("/nowhere/lists.json"), &config());
        assert!(matches!(gone, Err(Error::Io { .. })));
    }
}
