use abruzzi::device::Precision;
use abruzzi::device::SampleSettings;
use abruzzi::device::cuda::kernels::sample::{self, NO_FAULT};

use crate::case::{Bench, Work};
use crate::harness::random_tensor;

const VOCABULARY: usize = 163_840;

pub fn benches(bench: &mut Bench) {
    let settings = SampleSettings { temperature: 0.6, top_k: 40, top_p: 0.95, min_p: 0.0 };
    for (what, settings) in [("greedy", SampleSettings { temperature: 0.0, ..settings }), ("top-p", settings)]
    {
        for rows in [1, 8] {
            let work = Work::bytes(rows * (VOCABULARY * 4 + 12));
            bench.case("sample", &format!("{what}, {rows}×{VOCABULARY}"), work, |gpu, random| {
                let (logits, _) = random_tensor(gpu, random, rows, VOCABULARY, Precision::Full);
                let words = gpu.upload(&vec![1u64 << 63; rows], "words").unwrap();
                let mut ids = gpu.upload(&vec![0u32; rows], "ids").unwrap();
                let mut fault = gpu.upload(&[NO_FAULT], "a fault").unwrap();
                Box::new(move |gpu| {
                    sample::sample(gpu, &logits, &settings, words.all(), ids.all_mut(), fault.all_mut())
                })
            });
        }
    }
}
