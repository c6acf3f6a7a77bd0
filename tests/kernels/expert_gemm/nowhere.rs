//! Experts that the table has in no slot.

use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::expert_gemm::{self, ExpertScratch};
use abruzzi::device::cuda::{CudaRouting, CudaTensor};

use super::{Layer, of_counts};
use crate::harness::{download, random, session};

#[test]
fn an_expert_that_is_nowhere_is_left_out() {
    let (session, mut random) = (session(), random());
    // Row tiles of those left out come before, between and behind the others, and beyond the first 32 groups.
    let mut counts = vec![3, 0, 140, 5, 2, 70];
    counts.resize(40, 1);
    let ids = of_counts(&mut random, &counts);
    let layer = Layer::new(&mut random, [144, 272], 40, 6, 1, &ids);
    session.every_schedule(|gpu| {
        let pool = layer.pool(gpu);
        let x = CudaTensor::upload(gpu, layer.hidden, Precision::Working, &layer.x).unwrap();
        let mut routing = CudaRouting::new(gpu, layer.routing.tokens(), &layer.moe).unwrap();
        routing.upload(gpu, &layer.routing).unwrap();
        let pairs = layer.quantised.len();
        let run = |gone: &[usize]| {
            let table: Vec<u32> =
                (0..40).map(|e| if gone.contains(&e) { u32::MAX } else { e as u32 }).collect();
            pool.set_table(&table).unwrap();
            let mut scratch = ExpertScratch::new(gpu, pairs, layer.hidden, layer.intermediate).unwrap();
            let mut out = CudaTensor::new(gpu, pairs, layer.hidden, Precision::Working).unwrap();
            out.resize(pairs);
            out.write_rows(gpu, 0, &vec![7.0; pairs * layer.hidden]).unwrap();
            expert_gemm::experts_fp8(gpu, &x, pool.layer(0), &routing, &mut scratch, &mut out).unwrap();
            assert_eq!(pool.stale().unwrap(), None, "{gone:?}");
            download(gpu, &out)
        };
        let all = run(&[]);
        let everyone: Vec<usize> = (0..40).collect();
        for gone in [&[0, 3, 5, 31, 39][..], &[2, 4, 32], &everyone] {
            for (pair, (got, want)) in
                run(gone).chunks(layer.hidden).zip(all.chunks(layer.hidden)).enumerate()
            {
                let is_gone = gone.contains(&layer.routing.pair(pair).1);
                assert!(
                    if is_gone { got.iter().all(|&v| v == 7.0) } else { got == want },
                    "pair {pair}, {gone:?}"
                );
            }
        }
    });
}
