use abruzzi::device::Precision;
use abruzzi::device::cuda::CudaKvCache;
use abruzzi::device::cuda::kernels::rope;

use crate::case::{Bench, Work};
use crate::harness::random_tensor;

const HEADS: usize = 64;
const NOPE: usize = 128;
const ROPE: usize = 64;
const LATENT: usize = 512;

pub fn benches(bench: &mut Bench) {
    let inv_freq: Vec<f32> = (0..ROPE / 2).map(|i| 50_000f32.powf(-(2.0 * i as f32) / ROPE as f32)).collect();
    for tokens in [1, 64, 1024] {
        let work = Work::bytes(tokens * HEADS * ROPE * 4 + ROPE * 2);
        bench.case("rope_query", &format!("{tokens} tokens"), work, |gpu, random| {
            let (mut q, _) = random_tensor(gpu, random, tokens, HEADS * (NOPE + ROPE), Precision::Working);
            let inv_freq = gpu.upload(&inv_freq, "frequencies").unwrap();
            Box::new(move |gpu| rope::rope_query(gpu, &mut q, 0, HEADS, NOPE, ROPE, inv_freq.all(), 1.0))
        });
        let work = Work::bytes(tokens * (LATENT + ROPE) * 4 + LATENT * 4 + ROPE * 2);
        bench.case("kv_append", &format!("{tokens} tokens"), work, |gpu, random| {
            let (kv, _) = random_tensor(gpu, random, tokens, LATENT + ROPE, Precision::Working);
            let inv_freq = gpu.upload(&inv_freq, "frequencies").unwrap();
            let norm = gpu.upload(&random.normals(LATENT), "weights").unwrap();
            let mut cache = CudaKvCache::new(gpu, 1, LATENT + ROPE).unwrap();
            cache.reserve(tokens).unwrap();
            Box::new(move |gpu| {
                rope::kv_append(gpu, &kv, norm.all(), 1e-6, inv_freq.all(), 1.0, 0, &cache.layer(0))
            })
        });
    }
}
