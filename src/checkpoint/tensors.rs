//! What a matrix or vector of the description consists of in a file: names, shapes, element types. The manifest expects
//! these, and whoever writes a checkpoint writes these.

use super::header::Dtype;
use super::weights::{MatrixSpec, Storage, VectorSpec, expert_spec};
use crate::config::ModelConfig;
use crate::quant::{Format, MatrixLayout, int4};

/// Element types of an unquantised tensor, the one to write first.
const PLAIN: &[Dtype] = &[Dtype::Bf16, Dtype::F16, Dtype::F32];

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorSpec {
    pub name: String,
    pub shape: Vec<u64>,
    /// What it may be stored as.
    pub dtypes: &'static [Dtype],
}

/// The tensors of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MatrixTensors {
    pub weight: TensorSpec,
    pub scale: Option<TensorSpec>,
    /// INT4 only: the recorded shape.
    pub shape: Option<TensorSpec>,
}

impl MatrixSpec {
    /// Format and size, where a plain matrix is stored as `plain`.
    pub(crate) fn layout(&self, plain: Format) -> MatrixLayout {
        let format = match self.storage {
            Storage::Plain => plain,
            Storage::Fp8Block => Format::Fp8Block,
            Storage::Int4Group32 => Format::Int4Group32,
        };
        MatrixLayout { format, rows: self.rows, cols: self.cols }
    }

    /// What it consists of in a file.
    pub(crate) fn tensors(&self) -> MatrixTensors {
        let tensor = |suffix: &str, shape: [usize; 2], dtypes| TensorSpec {
            name: format!("{}.{suffix}", self.module),
            shape: shape.map(|n| n as u64).to_vec(),
            dtypes,
        };
        let (rows, cols) = (self.rows, self.cols);
        let scale_shape = self.layout(Format::Bf16).scale_shape();
        match self.storage {
            Storage::Plain => {
                MatrixTensors { weight: tensor("weight", [rows, cols], PLAIN), scale: None, shape: None }
            }
            Storage::Fp8Block => MatrixTensors {
                weight: tensor("weight", [rows, cols], &[Dtype::F8E4m3]),
                scale: scale_shape.map(|shape| tensor("weight_scale_inv", shape, &[Dtype::F32])),
                shape: None,
            },
            Storage::Int4Group32 => MatrixTensors {
                weight: tensor("weight_packed", [rows, cols.div_ceil(int4::PER_WORD)], &[Dtype::I32]),
                scale: scale_shape.map(|shape| tensor("weight_scale", shape, &[Dtype::Bf16])),
                shape: Some(TensorSpec { shape: vec![2], ..tensor("weight_shape", [2, 1], &[Dtype::I32]) }),
            },
        }
    }
}

/// Tensors that a model's routed experts consist of in files.
pub(crate) fn routed_tensors(config: &ModelConfig) -> usize {
    let of_matrix = |m: &MatrixSpec| {
        let MatrixTensors { scale, shape, .. } = m.tensors();
        1 + usize::from(scale.is_some()) + usize::from(shape.is_some())
    };
    let of_expert: usize =
        expert_spec(config, config.num_layers - 1, 0).each().into_iter().map(of_matrix).sum();
    (config.num_layers - config.first_k_dense) * config.moe.num_experts * of_expert
}

impl VectorSpec {
    /// What it is in a file.
    pub(crate) fn tensor(&self) -> TensorSpec {
        TensorSpec { name: self.name.clone(), shape: vec![self.len as u64], dtypes: PLAIN }
    }
}
