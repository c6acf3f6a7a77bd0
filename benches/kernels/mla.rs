use abruzzi::config::AttentionConfig;
use abruzzi::device::Precision;
use abruzzi::device::cuda::CudaKvCache;
use abruzzi::device::cuda::kernels::mla::{self, MlaScratch};
use abruzzi::quant::{Format, MatrixLayout};

use crate::case::{Bench, Unit, Work};
use crate::harness::{poisoned_tensor, random_tensor};
use crate::inputs::matrix;

const ATTENTION: AttentionConfig = AttentionConfig {
    num_heads: 64,
    q_lora_rank: Some(1536),
    kv_lora_rank: 512,
    nope_head_dim: 128,
    rope_head_dim: 64,
    v_head_dim: 128,
    softmax_scale: 0.07,
};

pub fn benches(bench: &mut Bench) {
    let (heads, latent, nope, v) = (64, 512, 128, 128);
    let (dim, head) = (latent + 64, nope + 64);
    let layout = MatrixLayout { format: Format::Fp8Block, rows: heads * (nope + v), cols: latent };
    for (name, tokens, start) in [
        ("mla_decode", 1, 1023),
        ("mla_decode", 1, 32767),
        ("mla_decode", 8, 131_064),
        ("mla_prefill", 16, 112),
        ("mla_prefill", 2048, 0),
        ("mla_prefill", 4096, 28672),
    ] {
        let cached = start + tokens;
        let bytes =
            layout.weight_bytes() + layout.scale_bytes() + cached * dim * 2 + tokens * heads * (head + v) * 2;
        // Query and position pairs.
        let seen = tokens * start + tokens * (tokens + 1) / 2;
        let flops = if name == "mla_decode" {
            2 * seen * heads * (dim + latent) + 2 * tokens * heads * latent * (nope + v)
        } else {
            2 * seen * heads * (head + v) + 2 * cached * latent * heads * (nope + v)
        };
        let work = Work::bytes(bytes).flops(flops, Unit::Bf16);
        bench.case(name, &format!("{tokens} tokens after {start}"), work, |gpu, random| {
            let (q, _) = random_tensor(gpu, random, tokens, heads * head, Precision::Working);
            let kv_b = matrix(gpu, random, layout);
            let mut cache = CudaKvCache::new(gpu, 1, dim).unwrap();
            cache.reserve(cached).unwrap();
            cache.fill_bytes(0).unwrap();
            let mut scratch = MlaScratch::default();
            let mut out = poisoned_tensor(gpu, tokens, heads * v, Precision::Working);
            let attend = if name == "mla_decode" { mla::decode } else { mla::prefill };
            Box::new(move |gpu| {
                attend(gpu, &q, &kv_b, &cache.layer(0), start, &ATTENTION, &mut scratch, &mut out)
            })
        });
    }
}
