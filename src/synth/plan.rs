//! Which tensors there are and what each is filled with: the loader's own description.

use super::fill::Fill;
use crate::checkpoint::Dtype;
use crate::checkpoint::tensors::TensorSpec;
use crate::checkpoint::weights::{MatrixSpec, Storage, VectorSpec, Weights, expert_spec};
use crate::checkpoint::write::{NewTensor, Unit};
use crate::config::ModelConfig;

/// All tensors, each a unit of its own: any of them can be made without the others.
pub(super) struct Plan {
    pub units: Vec<Unit>,
    /// By unit.
    pub fills: Vec<Fill>,
    pub bytes: u64,
}

impl Plan {
    /// What `config` implies.
    pub(super) fn of(config: &ModelConfig) -> Plan {
        let mut plan = Plan { units: Vec::new(), fills: Vec::new(), bytes: 0 };
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
        let tensor = NewTensor { name: spec.name, shape: spec.shape, dtype };
        self.bytes += tensor.bytes();
        self.units.push(Unit { tensors: vec![tensor] });
        self.fills.push(fill);
    }
}
