//! Counting a model from its configuration alone: parameters by part, bytes by format, what a token reads.

use std::collections::BTreeMap;

use serde::Serialize;

use super::weights::{GatedMlp, MatrixSpec, Mlp, Query, VectorSpec, Weights, expert_spec};
use crate::config::ModelConfig;
use crate::quant::Format;

/// Parameters and bytes of one part of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Weights and biases; scales of quantised matrices are storage, not parameters.
    pub parameters: u64,
    /// Bytes on disk, scales included.
    pub bytes: u64,
}

/// What a model consists of.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Inventory {
    /// By part.
    pub parts: BTreeMap<&'static str, Amount>,
    /// By storage format.
    pub formats: BTreeMap<&'static str, Amount>,
    /// Everything.
    pub total: Amount,
    /// What one token is multiplied with: all but the embedding table's other rows and the experts not chosen.
    /// Parameters here are what is usually quoted as active.
    pub active: Amount,
    /// Bytes of one routed expert, scales included.
    pub expert_bytes: u64,
    /// Bytes of routed experts a decoded token reads.
    pub routed_bytes_per_token: u64,
    /// All bytes of weights a decoded token reads.
    pub bytes_per_token: u64,
}

impl Inventory {
    /// Counts what a configuration implies. Unquantised tensors count as BF16, or F32 for the router's bias.
    pub fn of(config: &ModelConfig) -> Inventory {
        let mut inventory = Inventory::default();
        let weights = Weights::describe(config);
        inventory.matrix("embedding", &weights.embedding, 0);
        // One row of the embedding is read.
        inventory.active.parameters += config.hidden_size as u64;
        inventory.active.bytes += 2 * config.hidden_size as u64;
        for (l, layer) in weights.layers.iter().enumerate() {
            inventory.vector(&layer.input_norm, 2);
            inventory.vector(&layer.post_attention_norm, 2);
            let a = &layer.attention;
            match &a.query {
                Query::Direct(q) => inventory.matrix("attention", q, 1),
                Query::LowRank { a, norm, b } => {
                    inventory.matrix("attention", a, 1);
                    inventory.vector(norm, 2);
                    inventory.matrix("attention", b, 1);
                }
            }
            for m in [&a.kv_a, &a.kv_b, &a.output] {
                inventory.matrix("attention", m, 1);
            }
            inventory.vector(&a.kv_a_norm, 2);
            match &layer.mlp {
                Mlp::Dense(mlp) => inventory.gated("dense MLP", mlp, 1),
                Mlp::Experts { router, bias, shared } => {
                    inventory.matrix("router", router, 1);
                    inventory.vector(bias, 4);
                    if let Some(shared) = shared {
                        inventory.gated("shared experts", shared, 1);
                    }
                    inventory.routed(config, l);
                }
            }
        }
        inventory.vector(&weights.norm, 2);
        match &weights.head {
            Some(head) => inventory.matrix("head", head, 1),
            // A tied head is read whole for every token.
            None => {
                let amount = amount(&weights.embedding).0;
                inventory.active.parameters += amount.parameters;
                inventory.active.bytes += amount.bytes;
            }
        }
        inventory.bytes_per_token = inventory.active.bytes;
        inventory
    }

    /// All experts of a layer are alike: one is described and counted.
    fn routed(&mut self, config: &ModelConfig, layer: usize) {
        let (experts, top_k) = (config.moe.num_experts as u64, config.moe.top_k as u64);
        let mut bytes = 0;
        for m in expert_spec(config, layer, 0).each() {
            let (one, format) = amount(m);
            bytes += one.bytes;
            let all = Amount { parameters: one.parameters * experts, bytes: one.bytes * experts };
            self.note("routed experts", format, all);
            self.active.parameters += one.parameters * top_k;
            self.active.bytes += one.bytes * top_k;
        }
        self.expert_bytes = bytes;
        self.routed_bytes_per_token += bytes * top_k;
    }

    fn gated(&mut self, part: &'static str, mlp: &GatedMlp<MatrixSpec>, active: u64) {
        for m in mlp.each() {
            self.matrix(part, m, active);
        }
    }

    fn matrix(&mut self, part: &'static str, spec: &MatrixSpec, active: u64) {
        let (amount, format) = amount(spec);
        self.note(part, format, amount);
        self.active.parameters += amount.parameters * active;
        self.active.bytes += amount.bytes * active;
    }

    fn vector(&mut self, spec: &VectorSpec, element: u64) {
        let amount = Amount { parameters: spec.len as u64, bytes: spec.len as u64 * element };
        self.note("norms and biases", if element == 4 { Format::F32 } else { Format::Bf16 }, amount);
        self.active.parameters += amount.parameters;
        self.active.bytes += amount.bytes;
    }

    fn note(&mut self, part: &'static str, format: Format, amount: Amount) {
        for to in [
            self.parts.entry(part).or_default(),
            self.formats.entry(format.name()).or_default(),
            &mut self.total,
        ] {
            to.parameters += amount.parameters;
            to.bytes += amount.bytes;
        }
    }
}

fn amount(spec: &MatrixSpec) -> (Amount, Format) {
    let layout = spec.layout(Format::Bf16);
    let format = layout.format;
    // INT4 records its shape in two I32 beside the weights.
    let shape = if format == Format::Int4Group32 { 8 } else { 0 };
    let bytes = layout.weight_bytes() + layout.scale_bytes() + shape;
    (Amount { parameters: (spec.rows * spec.cols) as u64, bytes: bytes as u64 }, format)
}
