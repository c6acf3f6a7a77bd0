//! Choosing experts without running the model: by what their routers have learnt.

use super::cluster::{cluster, similar};
use super::layers::Layers;
use super::produce::Rows;
use super::select::{Group, Selection, check_count};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::weights::Mlp;
use crate::config::ModelConfig;
use crate::error::Result;

/// How experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Those whose rows of the router cover the others' best, by cosine similarity; the others are dropped.
    Similarity,
    /// The same ones, into each of which the others are merged that are most like it, all with equal weights.
    Merge,
}

impl Method {
    /// Chooses `experts` of each layer.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] `layers` or `experts` for numbers the model cannot have; [`crate::Error::Checkpoint`] for a damaged
    /// router; [`crate::Error::Io`].
    pub fn select(self, source: &Checkpoint, layers: &Layers, experts: usize) -> Result<Selection> {
        let config = source.config();
        check_count(config, experts)?;
        let groups_of_router = config.moe.n_group;
        let (width, share) = (config.moe.num_experts / groups_of_router, experts / groups_of_router);
        let hidden = config.hidden_size;
        Selection::new(config, layers, |layer| {
            let Mlp::Experts { router, .. } = &source.trunk().layers[layer].mlp else {
                return Ok(Vec::new());
            };
            let rows = Rows::of(router).read_all(source)?;
            let mut chosen = Vec::with_capacity(experts);
            // The router chooses among groups of experts first, so each keeps its share.
            for (g, rows) in rows.chunks(width * hidden).enumerate() {
                let kept = similar(rows, hidden, share);
                let global = |expert: usize| g * width + expert;
                match self {
                    Method::Similarity => chosen.extend(kept.into_iter().map(|e| Group::single(global(e)))),
                    Method::Merge => {
                        // Each counts alike, and those that are kept just enough more to be the centres.
                        let mut usage = vec![1.0f32; width];
                        kept.iter().for_each(|&e| usage[e] = 1.0f32.next_up());
                        for members in cluster(rows, hidden, &usage, share) {
                            chosen.push(Group::merged(
                                members.into_iter().map(|(e, w)| (global(e), w)).collect(),
                            )?);
                        }
                    }
                }
            }
            Ok(chosen)
        })
    }

    /// A selection of the same size, for counting: which experts it holds means nothing.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] as [`Method::select`].
    pub fn outline(self, config: &ModelConfig, layers: &Layers, experts: usize) -> Result<Selection> {
        check_count(config, experts)?;
        let width = config.moe.num_experts / config.moe.n_group;
        let share = experts / config.moe.n_group;
        let group = |at: usize| {
            let (first, i) = (at / share * width, at % share);
            match self {
                Method::Similarity => Ok(Group::single(first + i)),
                Method::Merge => {
                    let members: Vec<usize> =
                        (first..first + width).filter(|e| (e - first) % share == i).collect();
                    let weight = 1.0 / members.len() as f32;
                    Group::merged(members.into_iter().map(|e| (e, weight)).collect())
                }
            }
        };
        Selection::new(config, layers, |_| (0..experts).map(group).collect())
    }
}
