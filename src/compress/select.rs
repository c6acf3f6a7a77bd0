//! Which layers and experts a new model is made of.

use std::collections::HashSet;

use super::layers::Layers;
use crate::checkpoint::MAX_TENSORS;
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// How far from 1 the weights of a group may add up, for lists written with few digits.
const WEIGHT_SUM_TOLERANCE: f32 = 1e-3;

/// One expert of the new model: experts of the source and their weights, which sum to 1. The heaviest comes first.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    members: Vec<(usize, f32)>,
}

impl Group {
    /// An expert that stays as it is.
    pub fn single(expert: usize) -> Group {
        Group { members: vec![(expert, 1.0)] }
    }

    /// Several experts that become one. Equal weights are ordered by expert.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are none, one stands twice, or the weights are not positive or do not sum to 1.
    pub fn merged(mut members: Vec<(usize, f32)>) -> Result<Group> {
        let bad = |problem: String| Err(Error::argument("experts", problem));
        let sum: f32 = members.iter().map(|m| m.1).sum();
        if members.is_empty() {
            return bad("has a group without members".into());
        }
        if let Some((expert, weight)) = members.iter().find(|m| !(m.1 > 0.0 && m.1.is_finite())) {
            return bad(format!("gives expert {expert} the weight {weight}, expected more than 0"));
        }
        if (sum - 1.0).abs() > WEIGHT_SUM_TOLERANCE {
            return bad(format!("has a group whose weights sum to {sum}, expected 1"));
        }
        members.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        members.iter_mut().for_each(|m| m.1 /= sum);
        let distinct: HashSet<usize> = members.iter().map(|m| m.0).collect();
        if distinct.len() < members.len() {
            return bad(format!("has a group with an expert twice: {:?}", experts_of(&members)));
        }
        Ok(Group { members })
    }

    /// Source experts and their weights, the heaviest first.
    pub fn members(&self) -> &[(usize, f32)] {
        &self.members
    }

    /// The heaviest member: it gives the router's row and the order of the merged expert's neurons.
    pub fn head(&self) -> usize {
        self.members[0].0
    }
}

fn experts_of(members: &[(usize, f32)]) -> Vec<usize> {
    members.iter().map(|m| m.0).collect()
}

/// The layers and experts that a new model keeps. Valid for the configuration it was made with: layers ascend and exist,
/// at least one has experts, every layer with experts keeps as many, and what the router chooses from suffices.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    layers: Vec<usize>,
    /// Per kept layer; empty where the layer is dense.
    experts: Vec<Vec<Group>>,
}

impl Selection {
    /// Keeps everything.
    pub fn everything(config: &ModelConfig) -> Selection {
        let layers: Vec<usize> = (0..config.num_layers).collect();
        let experts = layers.iter().map(|&layer| all_of(config, layer)).collect();
        Selection { layers, experts }
    }

    /// Keeps these source layers and all their experts.
    ///
    /// # Errors
    /// [`Error::Argument`] `layers`.
    pub fn all_experts(config: &ModelConfig, layers: &Layers) -> Result<Selection> {
        Selection::new(config, layers, |layer| Ok(all_of(config, layer)))
    }

    /// Keeps these source layers and, of each layer with experts, what `experts` says of it by its source number. The
    /// order of groups means nothing to a model; they are kept in the order of their heads.
    ///
    /// # Errors
    /// [`Error::Argument`] (`layers` or `experts`) saying which layer or expert is wrong and what was expected; errors of
    /// `experts` come through.
    pub fn new(
        config: &ModelConfig,
        layers: &Layers,
        mut experts: impl FnMut(usize) -> Result<Vec<Group>>,
    ) -> Result<Selection> {
        let layers = layers.choose(config)?;
        let mut chosen = Vec::with_capacity(layers.len());
        for &layer in &layers {
            chosen.push(if layer < config.first_k_dense { Vec::new() } else { experts(layer)? });
        }
        let mut selection = Selection { layers, experts: chosen };
        selection.experts.iter_mut().for_each(|groups| groups.sort_by_key(Group::head));
        selection.check(config)?;
        Ok(selection)
    }

    /// Kept layers by their source numbers, ascending.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// The groups of a kept layer, by its new number; none if it is dense.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn experts(&self, layer: usize) -> &[Group] {
        &self.experts[layer]
    }

    /// Experts of the new model's layers; equal in all that have any.
    pub fn num_experts(&self) -> usize {
        self.experts.last().map_or(0, Vec::len)
    }

    /// Dense layers of the new model.
    pub fn first_k_dense(&self) -> usize {
        self.experts.iter().take_while(|groups| groups.is_empty()).count()
    }

    /// The new number of a source layer; `None` if it is dropped.
    pub fn new_layer(&self, source: usize) -> Option<usize> {
        self.layers.binary_search(&source).ok()
    }

    /// Whether no group has several members.
    pub fn merges_nothing(&self) -> bool {
        self.experts.iter().flatten().all(|group| group.members.len() == 1)
    }

    /// Checks it against a configuration, which may be another than that it was made with.
    ///
    /// # Errors
    /// [`Error::Argument`], as of [`Selection::new`].
    pub(super) fn check(&self, config: &ModelConfig) -> Result<()> {
        check_loadable(config)?;
        let is_dense = |layer: usize| layer < config.first_k_dense;
        Layers::List(self.layers.clone()).choose(config)?;
        if let Some((layer, _)) =
            self.layers.iter().zip(&self.experts).find(|(l, groups)| is_dense(**l) && !groups.is_empty())
        {
            let problem =
                format!("of layer {layer} are listed, but it is dense: the selection is of another model");
            return Err(Error::argument("experts", problem));
        }
        let count = self.num_experts();
        check_count(config, count)?;
        for (&layer, groups) in self.layers.iter().zip(&self.experts) {
            if !is_dense(layer) {
                check_layer(config, layer, groups, count)?;
            }
        }
        Ok(())
    }
}

fn all_of(config: &ModelConfig, layer: usize) -> Vec<Group> {
    let count = if layer < config.first_k_dense { 0 } else { config.moe.num_experts };
    (0..count).map(Group::single).collect()
}

/// Refuses a model that is none: lists of its weights would take more memory than any model's.
fn check_loadable(config: &ModelConfig) -> Result<()> {
    let weights = (config.num_layers - config.first_k_dense) * config.moe.num_experts * 3;
    if weights > MAX_TENSORS {
        let problem =
            format!("has {weights} weights in its routed experts; at most {MAX_TENSORS} tensors are loaded");
        return Err(Error::argument("model", problem));
    }
    Ok(())
}

/// Whether a layer may have so many experts, as far as its router decides.
///
/// # Errors
/// [`Error::Argument`] `experts`.
pub(super) fn check_count(config: &ModelConfig, experts: usize) -> Result<()> {
    let moe = &config.moe;
    let bad = |problem: String| Err(Error::argument("experts", format!("is {experts}, {problem}")));
    if !(moe.top_k..=moe.num_experts).contains(&experts) {
        return bad(format!(
            "expected {} (what a token chooses) to {} (what the model has)",
            moe.top_k, moe.num_experts
        ));
    }
    moe.can_choose_among(experts).or_else(bad)
}

fn check_layer(config: &ModelConfig, layer: usize, groups: &[Group], count: usize) -> Result<()> {
    let moe = &config.moe;
    let bad = |problem: String| Err(Error::argument("experts", format!("of layer {layer} {problem}")));
    if groups.len() != count {
        return bad(format!("are {}, expected {count} as in the last layer", groups.len()));
    }
    let mut seen = HashSet::new();
    for &(expert, _) in groups.iter().flat_map(|group| &group.members) {
        if expert >= moe.num_experts {
            return bad(format!("hold {expert}, expected 0 to {}", moe.num_experts - 1));
        }
        if !seen.insert(expert) {
            return bad(format!("hold {expert} twice"));
        }
    }
    let width = moe.num_experts / moe.n_group;
    let kept_of = |g: usize| groups.iter().filter(|group| group.head() / width == g).count();
    if let Some(g) = (0..moe.n_group).find(|&g| kept_of(g) != count / moe.n_group) {
        return bad(format!(
            "hold {} of the router's group {g} (experts {} to {}), expected {}: as many of each of its {} groups",
            kept_of(g),
            g * width,
            (g + 1) * width - 1,
            count / moe.n_group,
            moe.n_group
        ));
    }
    let stranger = groups.iter().find(|g| g.members.iter().any(|m| m.0 / width != g.head() / width));
    if let Some(group) = stranger {
        return bad(format!(
            "merge {:?} across the router's groups, expected experts of one group of {width}",
            experts_of(&group.members)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> ModelConfig {
        ModelConfig::from_json(text.as_bytes(), "config.json".as_ref()).unwrap()
    }

    fn kimi() -> ModelConfig {
        config(include_str!("../../tests/fixtures/configs/kimi-k2-instruct.json"))
    }

    fn deepseek() -> ModelConfig {
        config(include_str!("../../tests/fixtures/configs/deepseek-v3.json"))
    }

    fn singles(experts: impl IntoIterator<Item = usize>) -> Result<Vec<Group>> {
        Ok(experts.into_iter().map(Group::single).collect())
    }

    #[track_caller]
    fn refused<T: std::fmt::Debug>(result: Result<T>, expected: &str) {
        let said = result.unwrap_err().to_string();
        assert!(said.contains(expected), "{said:?} does not say {expected:?}");
    }

    #[test]
    fn everything_is_valid_and_everything() {
        for config in [kimi(), deepseek()] {
            let all = Selection::everything(&config);
            let same = Selection::new(&config, &Layers::Count(61), |_| singles(0..config.moe.num_experts));
            assert_eq!(same.unwrap(), all);
            assert_eq!(
                (all.first_k_dense(), all.num_experts()),
                (config.first_k_dense, config.moe.num_experts)
            );
            assert!(all.merges_nothing());
        }
    }

    #[test]
    fn a_model_that_cannot_be_loaded_is_not_listed() {
        let mut huge = kimi();
        (huge.num_layers, huge.moe.num_experts) = (1024, 4096);
        let all = Selection::all_experts(&huge, &Layers::Count(2));
        refused(all, "`model` has 12570624 weights in its routed experts; at most 262144 tensors");
    }

    #[test]
    fn dense_layers_are_those_that_are_kept() {
        let config = deepseek();
        for (list, dense) in [(vec![0, 1, 2, 9], 3), (vec![2, 9, 60], 1), (vec![9, 60], 0)] {
            let selection =
                Selection::new(&config, &Layers::List(list.clone()), |_| singles(0..256)).unwrap();
            assert_eq!(selection.first_k_dense(), dense);
            assert_eq!(selection.new_layer(9), Some(list.iter().position(|&l| l == 9).unwrap()));
            assert_eq!(selection.new_layer(10), None);
        }
    }

    #[test]
    fn counts_that_the_router_cannot_use() {
        let select =
            |config: &ModelConfig, n: usize| Selection::new(config, &Layers::Count(3), |_| singles(0..n));
        refused(select(&kimi(), 7), "`experts` is 7, expected 8 (what a token chooses) to 384");
        refused(select(&kimi(), 385), "`experts` is 385");
        refused(select(&deepseek(), 12), "expected a multiple of the model's 8 groups");
        refused(select(&deepseek(), 8), "expected at least 16: 4 of 8 groups");
    }

    #[test]
    fn lists_that_are_wrong_are_named() {
        let config = kimi();
        let layers = Layers::List(vec![0, 5, 9]);
        let of = |five: Result<Vec<Group>>| {
            let mut five = Some(five);
            Selection::new(&config, &layers, |l| if l == 5 { five.take().unwrap() } else { singles(0..8) })
        };
        refused(of(singles(0..9)), "of layer 5 are 9, expected 8");
        refused(of(singles([0, 1, 2, 3, 4, 5, 6, 6])), "of layer 5 hold 6 twice");
        refused(of(singles([0, 1, 2, 3, 4, 5, 6, 384])), "of layer 5 hold 384, expected 0 to 383");
        assert_eq!(of(singles([7, 6, 5, 4, 3, 2, 1, 0])).unwrap(), of(singles(0..8)).unwrap());
    }

    #[test]
    fn groups_of_the_router_keep_their_share() {
        let config = deepseek();
        let of =
            |experts: Vec<usize>| Selection::new(&config, &Layers::Count(2), |_| singles(experts.clone()));
        let even: Vec<usize> = (0..8).flat_map(|g| [g * 32, g * 32 + 5]).collect();
        assert_eq!(of(even.clone()).unwrap().num_experts(), 16);
        let mut uneven = even.clone();
        uneven[2] = 1;
        refused(of(uneven), "hold 3 of the router's group 0 (experts 0 to 31), expected 2");
        let across = |_| {
            let mut groups = singles(even[1..].to_vec())?;
            groups.push(Group::merged(vec![(0, 0.75), (40, 0.25)])?);
            Ok(groups)
        };
        refused(
            Selection::new(&config, &Layers::Count(2), across),
            "merge [0, 40] across the router's groups",
        );
    }

    #[test]
    fn groups_are_sorted_and_checked() {
        let group = Group::merged(vec![(3, 0.2), (9, 0.5), (1, 0.3)]).unwrap();
        assert_eq!(group.head(), 9);
        assert_eq!(experts_of(group.members()), [9, 1, 3]);
        refused(Group::merged(vec![]), "without members");
        refused(Group::merged(vec![(0, 0.5), (0, 0.5)]), "an expert twice");
        refused(Group::merged(vec![(0, 0.5), (1, 0.6)]), "expected 1");
        refused(Group::merged(vec![(0, 1.5), (1, -0.5)]), "expert 1 the weight -0.5");
        refused(Group::merged(vec![(0, f32::NAN)]), "expected more than 0");
    }
}
