//! What a configuration says a checkpoint must hold, against what it holds.
//!
//! Every expected tensor is found once with the right shape and type, or there is a fault; everything left over is
//! explained, or there is a fault.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use super::catalogue::{Catalogue, Located};
use super::header::Dtype;
use super::tensors::TensorSpec;
use super::weights::{GatedMlp, MatrixSpec, VectorSpec, Weights, expert_spec};
use crate::config::ModelConfig;
use crate::error::{Fault, FaultKind};
use crate::quant::{Format, MatrixLayout};

/// A matrix and where its parts lie on disk.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub layout: MatrixLayout,
    pub weight: Located,
    pub scale: Option<Located>,
    /// INT4 only: the recorded shape, which must equal the layout's.
    pub shape: Option<Located>,
}

/// The checkpoint's tensors bound to their roles.
pub(super) struct Bound {
    pub trunk: Weights<Source, Located>,
    /// Per layer; empty in dense layers.
    pub experts: Vec<Vec<GatedMlp<Source>>>,
}

/// Tensors that are there and not used, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SkippedTensors(pub BTreeMap<&'static str, usize>);

impl fmt::Display for SkippedTensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (what, count)) in self.0.iter().enumerate() {
            write!(f, "{}{count} {what}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// Binds every tensor; `None` if anything is missing or misshapen, and `faults` says what.
pub(super) fn bind(
    config: &ModelConfig,
    catalogue: &Catalogue,
    faults: &mut Vec<Fault>,
) -> (Option<Bound>, SkippedTensors) {
    let mut binder = Binder { catalogue, faults, claimed: HashSet::new() };
    let described = Weights::describe(config);
    // Leaves are bound one by one and gathered only if all were found, so that every fault is listed.
    let (mut matrices, mut vectors) = (Vec::new(), Vec::new());
    described.visit(&mut |m| matrices.push(m), &mut |v| vectors.push(v));
    let matrices: Vec<Option<Source>> = matrices.into_iter().map(|m| binder.matrix(m)).collect();
    let vectors: Vec<Option<Located>> = vectors.into_iter().map(|v| binder.vector(v)).collect();
    let experts: Vec<Vec<Option<GatedMlp<Source>>>> = (0..config.num_layers)
        .map(|layer| {
            let count = if layer < config.first_k_dense { 0 } else { config.moe.num_experts };
            (0..count).map(|e| binder.expert(config, layer, e)).collect()
        })
        .collect();
    let claimed = binder.claimed;
    let skipped = leftovers(config, catalogue, &claimed, faults);

    let bound = || -> Option<Bound> {
        let (mut matrices, mut vectors) = (matrices.into_iter(), vectors.into_iter());
        let trunk = described
            .try_map(&mut |_| matrices.next().flatten().ok_or(()), &mut |_| {
                vectors.next().flatten().ok_or(())
            })
            .ok()?;
        let experts: Vec<Vec<GatedMlp<Source>>> =
            experts.into_iter().map(|layer| layer.into_iter().collect()).collect::<Option<_>>()?;
        Some(Bound { trunk, experts })
    }();
    if let Some(bound) = &bound {
        one_layout_a_layer(config, bound, faults);
    }
    (bound, skipped)
}

struct Binder<'a> {
    catalogue: &'a Catalogue,
    faults: &'a mut Vec<Fault>,
    claimed: HashSet<Box<str>>,
}

impl Binder<'_> {
    fn matrix(&mut self, spec: &MatrixSpec) -> Option<Source> {
        let parts = spec.tensors();
        // All three are looked for before one that is missing ends it, so that every fault is listed.
        let weight = self.tensor(parts.weight);
        let scale = parts.scale.map(|part| self.tensor(part));
        let shape = parts.shape.map(|part| self.tensor(part));
        let weight = weight?;
        let plain = match weight.entry.dtype {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            _ => Format::Bf16,
        };
        let found = |part: Option<Option<Located>>| match part {
            Some(part) => part.map(Some),
            None => Some(None),
        };
        Some(Source { layout: spec.layout(plain), weight, scale: found(scale)?, shape: found(shape)? })
    }

    fn vector(&mut self, spec: &VectorSpec) -> Option<Located> {
        self.tensor(spec.tensor())
    }

    fn expert(&mut self, config: &ModelConfig, layer: usize, expert: usize) -> Option<GatedMlp<Source>> {
        let spec = expert_spec(config, layer, expert);
        let [gate, up, down] = spec.each().map(|m| self.matrix(m));
        Some(GatedMlp { gate: gate?, up: up?, down: down? })
    }

    fn tensor(&mut self, expected: TensorSpec) -> Option<Located> {
        let TensorSpec { name, shape, dtypes } = expected;
        let types = dtypes.iter().map(|d| d.name()).collect::<Vec<_>>().join(" or ");
        let Some(found) = self.catalogue.tensors.get(name.as_str()) else {
            self.faults.push(Fault::missing(name, format!("{types} {shape:?}")));
            return None;
        };
        let file = &self.catalogue.shards[found.shard].name;
        let entry = &found.entry;
        self.claimed.insert(name.clone().into_boxed_str());
        let mut sound = true;
        if *entry.shape != *shape {
            let kind = FaultKind::WrongShape { expected: shape, found: entry.shape.to_vec() };
            self.faults.push(Fault::tensor(file, name.clone(), kind));
            sound = false;
        }
        if !dtypes.contains(&entry.dtype) {
            let kind = FaultKind::WrongDtype { expected: types, found: entry.dtype.name().to_owned() };
            self.faults.push(Fault::tensor(file, name, kind));
            sound = false;
        }
        sound.then(|| found.clone())
    }
}

/// Explains every tensor that no role claimed.
fn leftovers(
    config: &ModelConfig,
    catalogue: &Catalogue,
    claimed: &HashSet<Box<str>>,
    faults: &mut Vec<Fault>,
) -> SkippedTensors {
    let mut skipped = SkippedTensors::default();
    let mut unexpected: Vec<&str> = Vec::new();
    for name in catalogue.tensors.keys().filter(|name| !claimed.contains(*name)) {
        match explain(config, name) {
            Some(why) => *skipped.0.entry(why).or_default() += 1,
            None => unexpected.push(name),
        }
    }
    unexpected.sort_unstable();
    for name in unexpected {
        let file = &catalogue.shards[catalogue.tensors[name].shard].name;
        faults.push(Fault::tensor(file, name, FaultKind::Unexpected));
    }
    skipped
}

fn explain(config: &ModelConfig, name: &str) -> Option<&'static str> {
    let Some(name) = name.strip_prefix(&config.tensor_prefix) else {
        return Some("tensors of the vision part");
    };
    if name.ends_with(".self_attn.rotary_emb.inv_freq") {
        return Some("rotary_emb.inv_freq buffers");
    }
    if config.tie_word_embeddings && name == "lm_head.weight" {
        return Some("copy of the tied embedding");
    }
    let layer: usize = name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()?;
    let mtp = config.num_layers..config.num_layers + config.num_mtp_layers;
    mtp.contains(&layer).then_some("tensors of multi-token-prediction layers")
}

/// Records of a layer share one layout, so its experts must share their types.
fn one_layout_a_layer(config: &ModelConfig, bound: &Bound, faults: &mut Vec<Fault>) {
    for (layer, experts) in bound.experts.iter().enumerate() {
        let Some(first) = experts.first() else { continue };
        for (e, expert) in experts.iter().enumerate() {
            for ((found, wanted), spec) in
                expert.each().iter().zip(first.each()).zip(expert_spec(config, layer, e).each())
            {
                if found.layout.format != wanted.layout.format {
                    let kind = FaultKind::WrongDtype {
                        expected: format!("{} as expert 0 of its layer", wanted.layout.format.name()),
                        found: found.layout.format.name().to_owned(),
                    };
                    faults.push(Fault { file: None, tensor: Some(format!("{}.weight", spec.module)), kind });
                }
            }
        }
    }
}
