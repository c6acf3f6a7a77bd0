//! Choosing experts: by what they were measured to do, or without running the model by what their routers have learnt.

use super::calibrate::{Calibration, ExpertUse};
use super::cluster::{cluster, similar};
use super::layers::Layers;
use super::produce::Rows;
use super::select::{Group, Selection, check_count};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::weights::Mlp;
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// How experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Those whose loss changes the layers' outputs most, as it was measured on text; the others are dropped.
    Usage,
    /// Those whose rows of the router cover the others' best, by cosine similarity; the others are dropped.
    Similarity,
    /// Experts into each of which others are merged whose rows of the router are most like its own. Measured on text: into those
    /// whose loss would change most, by their shares of use; else into those of similarity, all with equal weights.
    Merge,
}

impl Method {
    /// Whether it chooses by measurements.
    pub fn needs_text(self) -> bool {
        self == Method::Usage
    }

    /// Chooses `experts` of each layer, by what was measured where something was.
    ///
    /// # Errors
    /// [`Error::Argument`] `layers` or `experts` for numbers the model cannot have, `text` for a method that needs
    /// measurements without; [`Error::Checkpoint`] for a damaged router; [`Error::Io`].
    pub fn select(
        self,
        source: &Checkpoint,
        layers: &Layers,
        experts: usize,
        measured: Option<&Calibration>,
    ) -> Result<Selection> {
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
            let used =
                measured.and_then(|measured| measured.layers.get(layer)).map(|layer| &layer.experts[..]);
            let mut chosen = Vec::with_capacity(experts);
            // The router chooses among groups of experts first, so each keeps its share.
            for (g, rows) in rows.chunks(width * hidden).enumerate() {
                let used = used.map(|used| &used[g * width..][..width]);
                let kept = match (self, used) {
                    (Method::Similarity, _) | (Method::Merge, None) => similar(rows, hidden, share),
                    (_, Some(used)) => most_missed(used, share),
                    (Method::Usage, None) => {
                        let problem = "is not given; the method `usage` measures on it what experts do";
                        return Err(Error::argument("text", problem));
                    }
                };
                let global = |expert: usize| g * width + expert;
                match self {
                    Method::Usage => chosen.extend(kept.into_iter().map(|e| Group::single(global(e)))),
                    Method::Similarity => chosen.extend(kept.into_iter().map(|e| Group::single(global(e)))),
                    Method::Merge => {
                        let usage = weights_to_merge(&kept, used, width);
                        // An expert that was never used has nothing to add.
                        for members in cluster(rows, hidden, &usage, share) {
                            chosen.push(Group::merged(
                                members
                                    .into_iter()
                                    .filter(|m| m.1 > 0.0)
                                    .map(|(e, w)| (global(e), w))
                                    .collect(),
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
    /// [`Error::Argument`] as [`Method::select`].
    pub fn outline(self, config: &ModelConfig, layers: &Layers, experts: usize) -> Result<Selection> {
        check_count(config, experts)?;
        let width = config.moe.num_experts / config.moe.n_group;
        let share = experts / config.moe.n_group;
        let group = |at: usize| {
            let (first, i) = (at / share * width, at % share);
            match self {
                Method::Usage | Method::Similarity => Ok(Group::single(first + i)),
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

/// The `count` experts whose loss would change the layer most, the lower number first among equals.
fn most_missed(used: &[ExpertUse], count: usize) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..used.len()).collect();
    ranked.sort_by(|&a, &b| used[b].loss.total_cmp(&used[a].loss).then(a.cmp(&b)));
    ranked.truncate(count);
    ranked
}

/// What experts weigh when they are merged: their share of use, or all alike; those that are kept enough more than all others
/// to be the centres.
fn weights_to_merge(kept: &[usize], used: Option<&[ExpertUse]>, width: usize) -> Vec<f32> {
    let mut weights: Vec<f32> = match used {
        Some(used) => used.iter().map(|e| e.mass as f32).collect(),
        None => vec![1.0; width],
    };
    let is_kept = |e: &usize| kept.contains(e);
    let others = (0..width).filter(|e| !is_kept(e)).map(|e| weights[e]).fold(0.0, f32::max);
    kept.iter().for_each(|&e| weights[e] = weights[e].max(others.next_up()));
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(losses: &[f64], masses: &[f64]) -> Vec<ExpertUse> {
        let pairs = losses.iter().zip(masses);
        pairs.map(|(&loss, &mass)| ExpertUse { loss, mass, ..ExpertUse::default() }).collect()
    }

    #[test]
    fn the_most_missed_stay_and_the_lower_number_decides() {
        let used = used(&[1.0, 5.0, 3.0, 5.0, 0.0, 3.0], &[0.0; 6]);
        assert_eq!(most_missed(&used, 2), [1, 3]);
        assert_eq!(most_missed(&used, 3), [1, 3, 2]);
        assert_eq!(most_missed(&used, 6), [1, 3, 2, 5, 0, 4]);
    }

    #[test]
    fn those_that_stay_weigh_more_than_the_others() {
        let used = used(&[0.0; 4], &[9.0, 1.0, 4.0, 0.0]);
        let weights = weights_to_merge(&[1, 3], Some(&used), 4);
        assert_eq!((weights[0], weights[2]), (9.0, 4.0));
        assert!(weights[1] > 9.0 && weights[3] > 9.0 && weights[1] < 9.001);
        let alike = weights_to_merge(&[2], None, 3);
        assert!(alike[2] > 1.0 && alike[..2] == [1.0, 1.0]);
    }
}
