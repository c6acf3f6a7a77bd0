//! Weights and layers of random values.

use abruzzi::checkpoint::RecordLayout;
use abruzzi::checkpoint::weights::GatedMlp;
use abruzzi::config::MoeConfig;
use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::route;
use abruzzi::device::cuda::{CudaMatrix, CudaRouting, CudaSlots, Gpu};
use abruzzi::quant::{Format, MatrixLayout};
use half::bf16;

use crate::harness::{Random, random_tensor};

/// Kimi-K2.
pub const HIDDEN: usize = 7168;
pub const INNER: usize = 2048;

/// Finite weights and scales.
fn parts(random: &mut Random, layout: MatrixLayout) -> (Vec<u8>, Vec<u8>) {
    let number = |random: &mut Random| match layout.format {
        Format::F32 => random.unit().to_le_bytes().to_vec(),
        Format::F16 => half::f16::from_f32(random.unit()).to_le_bytes().to_vec(),
        Format::Bf16 => bf16::from_f32(random.unit()).to_le_bytes().to_vec(),
        // 0x7f and 0xff are NaN.
        Format::Fp8Block => vec![random.bits() as u8 & 0xbf],
        Format::Int4Group32 => vec![random.bits() as u8],
    };
    // Times do not depend on the values: some thousands of them, repeated.
    let some: Vec<u8> = (0..4099).flat_map(|_| number(random)).collect();
    let weight = some.iter().copied().cycle().take(layout.weight_bytes()).collect();
    let scale = match layout.format {
        Format::Int4Group32 => bf16::from_f32(0.01).to_le_bytes().to_vec(),
        _ => 0.01f32.to_le_bytes().to_vec(),
    };
    (weight, scale.into_iter().cycle().take(layout.scale_bytes()).collect())
}

pub fn matrix(gpu: &Gpu, random: &mut Random, layout: MatrixLayout) -> CudaMatrix {
    let (weight, scale) = parts(random, layout);
    CudaMatrix::from_parts(gpu, layout, &weight, &scale).unwrap()
}

/// Gate, up and down of one expert, and the bytes of all three.
pub fn expert(format: Format) -> (GatedMlp<MatrixLayout>, usize) {
    let wide = MatrixLayout { format, rows: INNER, cols: HIDDEN };
    let mlp = GatedMlp { gate: wide, up: wide, down: MatrixLayout { format, rows: HIDDEN, cols: INNER } };
    let bytes = mlp.each().iter().map(|m| m.weight_bytes() + m.scale_bytes()).sum();
    (mlp, bytes)
}

/// A layer's experts, all alike.
pub fn pool(gpu: &Gpu, random: &mut Random, format: Format, experts: usize) -> CudaSlots {
    let (mlp, _) = expert(format);
    let layout = RecordLayout::new(&mlp);
    let mut record = vec![0; layout.size()];
    for (part, matrix) in layout.parts().each().into_iter().zip(mlp.each()) {
        let (weight, scale) = parts(random, *matrix);
        record[part.weight.clone()].copy_from_slice(&weight);
        record[part.scale.clone()].copy_from_slice(&scale);
    }
    CudaSlots::resident(gpu, &layout, (0..experts).map(|_| record.as_slice())).unwrap()
}

pub fn moe(num_experts: usize, top_k: usize) -> MoeConfig {
    MoeConfig {
        num_experts,
        top_k,
        intermediate_size: INNER,
        num_shared: 0,
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: true,
        routed_scaling_factor: 2.827,
    }
}

/// Random choices, by the router.
pub fn routing(gpu: &Gpu, random: &mut Random, tokens: usize, moe: &MoeConfig) -> CudaRouting {
    let (logits, _) = random_tensor(gpu, random, tokens, moe.num_experts, Precision::Full);
    let bias = gpu.upload(&vec![0.0f32; moe.num_experts], "bias").unwrap();
    let mut routing = CudaRouting::new(gpu, tokens, moe).unwrap();
    route::route(gpu, &logits, bias.all(), moe, &mut routing).unwrap();
    gpu.synchronize().unwrap();
    routing
}

/// Experts that random choices of `tokens` tokens reach.
pub fn reached(tokens: usize, moe: &MoeConfig) -> usize {
    let missed = 1.0 - moe.top_k as f64 / moe.num_experts as f64;
    (moe.num_experts as f64 * (1.0 - missed.powi(tokens as i32))).round() as usize
}
