use abruzzi::device::Precision;
use abruzzi::device::cuda::CudaRouting;
use abruzzi::device::cuda::kernels::route;

use crate::case::{Bench, Work};
use crate::harness::random_tensor;
use crate::inputs::moe;

pub fn benches(bench: &mut Bench) {
    let moe = moe(384, 8);
    for tokens in [1, 64, 1024, 4096] {
        let work = Work::bytes(tokens * 384 * 4 + 384 * 4 + tokens * 8 * 5 * 4 + 385 * 4);
        bench.case("route_384", &format!("{tokens} tokens"), work, |gpu, random| {
            let (logits, _) = random_tensor(gpu, random, tokens, 384, Precision::Full);
            let bias = gpu.upload(&random.normals(384), "bias").unwrap();
            let mut routing = CudaRouting::new(gpu, tokens, &moe).unwrap();
            Box::new(move |gpu| route::route(gpu, &logits, bias.all(), &moe, &mut routing))
        });
    }
}
