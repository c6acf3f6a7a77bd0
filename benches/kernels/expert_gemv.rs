use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::expert_gemv::{self, ExpertGemvScratch};
use abruzzi::quant::Format;

use crate::case::{Bench, Unit, Work};
use crate::harness::{poisoned_tensor, random_tensor};
use crate::inputs::{HIDDEN, INNER, expert, moe, pool, reached, routing};

pub fn benches(bench: &mut Bench) {
    for (name, format) in [("experts_int4", Format::Int4Group32), ("experts_fp8", Format::Fp8Block)] {
        // One expert; all that a token has; a layer.
        for (tokens, experts, top_k) in [(8, 1, 1), (1, 8, 8), (1, 384, 8), (64, 384, 8)] {
            let moe = moe(experts, top_k);
            let pairs = tokens * top_k;
            let bytes = reached(tokens, &moe) * expert(format).1
                + tokens * HIDDEN * 2
                + pairs * (2 * INNER + HIDDEN) * 2;
            let work = Work::bytes(bytes).flops(6 * pairs * INNER * HIDDEN, Unit::Bf16);
            let shape = format!("{tokens} tokens, {top_k} of {experts}");
            bench.case(name, &shape, work, |gpu, random| {
                let (x, _) = random_tensor(gpu, random, tokens, HIDDEN, Precision::Working);
                let pool = pool(gpu, random, format, experts);
                let routing = routing(gpu, random, tokens, &moe);
                let mut scratch = ExpertGemvScratch::new(gpu, pairs, INNER).unwrap();
                let mut out = poisoned_tensor(gpu, pairs, HIDDEN, Precision::Working);
                Box::new(move |gpu| {
                    expert_gemv::experts(gpu, &x, pool.layer(0), &routing, &mut scratch, &mut out)
                })
            });
        }
    }
}
