//! Which tensors stand where: the loader's own description, laid out in shards.

use super::fill::Fill;
use crate::checkpoint::Dtype;
use crate::checkpoint::tensors::TensorSpec;
use crate::checkpoint::weights::{MatrixSpec, Storage, VectorSpec, Weights, expert_spec};
use crate::config::ModelConfig;

/// A tensor to be written.
pub(super) struct Tensor {
    pub name: String,
    pub shape: Vec<u64>,
    pub dtype: Dtype,
    pub fill: Fill,
    /// First byte behind the shard's header.
    pub offset: u64,
    pub len: u64,
}

/// All tensors, by shard.
pub(super) struct Plan {
    pub shards: Vec<Vec<Tensor>>,
    pub bytes: u64,
    pub tensors: usize,
    shard_bytes: u64,
}

impl Plan {
    /// Lays out what `config` implies. A shard ends before it would exceed `shard_bytes`.
    pub(super) fn of(config: &ModelConfig, shard_bytes: u64) -> Plan {
        let mut plan = Plan { shards: vec![Vec::new()], bytes: 0, tensors: 0, shard_bytes };
        let (mut matrices, mut vectors) = (Vec::new(), Vec::new());
        let trunk = Weights::describe(config);
        trunk.visit(&mut |m| matrices.push(m), &mut |v| vectors.push(v));
        matrices.into_iter().for_each(|m| plan.matrix(m));
        vectors.into_iter().for_each(|v| plan.vector(v));
        for layer in config.first_k_dense..config.num_layers {
            for expert in 0..config.moe.num_experts {
                expert_spec(config, layer, expert).each().into_iter().for_each(|m| plan.matrix(m));
            }
        }
        plan
    }

    fn matrix(&mut self, spec: &MatrixSpec) {
        let parts = spec.tensors();
        let (weight, scale) = match spec.storage {
            Storage::Plain => (Fill::Normal { cols: spec.cols }, Fill::One),
            Storage::Fp8Block => (Fill::Fp8Codes, Fill::Fp8Scales { cols: spec.cols }),
            Storage::Int4Group32 => (Fill::Int4Words, Fill::Int4Scales { cols: spec.cols }),
        };
        self.push(parts.weight, weight);
        if let Some(part) = parts.scale {
            self.push(part, scale);
        }
        if let Some(part) = parts.shape {
            self.push(part, Fill::Shape([spec.rows, spec.cols].map(|n| n as i32)));
        }
    }

    /// Vectors are norms, which multiply, and the router's biases, which are added.
    fn vector(&mut self, spec: &VectorSpec) {
        let bias = spec.name.ends_with("_bias");
        let tensor = spec.tensor();
        // Checkpoints store the bias more finely: routing turns on small differences of it.
        match bias {
            true => self.push_as(tensor, Dtype::F32, Fill::Bias),
            false => self.push(tensor, Fill::One),
        }
    }

    fn push(&mut self, spec: TensorSpec, fill: Fill) {
        let dtype = spec.dtypes[0];
        self.push_as(spec, dtype, fill);
    }

    fn push_as(&mut self, spec: TensorSpec, dtype: Dtype, fill: Fill) {
        let len = spec.shape.iter().product::<u64>() * dtype.bytes();
        let end = |shard: &[Tensor]| shard.last().map_or(0, |t: &Tensor| t.offset + t.len);
        let mut offset = self.shards.last().map_or(0, |s| end(s));
        if self.shards.is_empty() || (offset > 0 && offset + len > self.shard_bytes) {
            self.shards.push(Vec::new());
            offset = 0;
        }
        if let Some(shard) = self.shards.last_mut() {
            shard.push(Tensor { name: spec.name, shape: spec.shape, dtype, fill, offset, len });
        }
        self.bytes += len;
        self.tensors += 1;
    }
}
