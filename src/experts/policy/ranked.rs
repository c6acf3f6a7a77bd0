//! Experts in the order in which they may be given up, and something kept for each expert.

use std::collections::BTreeSet;

use super::{ExpertId, Victim};

/// A value for each expert, the default one until it is set.
#[derive(Debug, Default)]
pub(super) struct PerExpert<T> {
    layers: Vec<Vec<T>>,
    unset: T,
}

impl<T: Copy + Default> PerExpert<T> {
    pub fn get(&self, id: ExpertId) -> T {
        let layer = self.layers.get(id.layer as usize);
        layer.and_then(|l| l.get(id.expert as usize)).copied().unwrap_or(self.unset)
    }

    pub fn get_mut(&mut self, id: ExpertId) -> &mut T {
        let (layer, expert) = (id.layer as usize, id.expert as usize);
        if layer >= self.layers.len() {
            self.layers.resize_with(layer + 1, Vec::new);
        }
        let layer = &mut self.layers[layer];
        if expert >= layer.len() {
            layer.resize(expert + 1, self.unset);
        }
        &mut layer[expert]
    }
}

/// Residents, lowest rank first. All but [`Ranked::lowest`] take the logarithm of their number.
#[derive(Debug, Default)]
pub(super) struct Ranked {
    order: BTreeSet<(u64, ExpertId)>,
    ranks: PerExpert<Option<u64>>,
}

impl Ranked {
    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn contains(&self, id: ExpertId) -> bool {
        self.ranks.get(id).is_some()
    }

    /// Adds the expert or gives it another rank.
    pub fn set(&mut self, id: ExpertId, rank: u64) {
        self.remove(id);
        *self.ranks.get_mut(id) = Some(rank);
        self.order.insert((rank, id));
    }

    /// Whether it was there.
    pub fn remove(&mut self, id: ExpertId) -> bool {
        match self.ranks.get_mut(id).take() {
            Some(rank) => self.order.remove(&(rank, id)),
            None => false,
        }
    }

    /// The lowest that may go, and its rank. Takes as many steps as are refused.
    pub fn lowest(&self, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Option<(u64, ExpertId)> {
        self.order.iter().find(|(_, id)| may_go(*id)).copied()
    }

    /// The lowest that may go, unless `newcomer`'s rank is lower still.
    pub fn victim(&self, newcomer: u64, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim {
        match self.lowest(may_go) {
            Some((rank, _)) if newcomer < rank => Victim::Bypass,
            Some((_, id)) => Victim::Evict(id),
            None => Victim::None,
        }
    }
}

/// A number that orders as `value` does.
pub(super) fn rank_of(value: f64) -> u64 {
    let bits = value.to_bits();
    if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
}
