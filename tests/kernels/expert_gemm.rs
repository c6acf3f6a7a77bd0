//! FP8 products of many tokens against f64 sums over the same codes, and against the layer without quantised activations.

mod nowhere;
mod reference;

use abruzzi::checkpoint::RecordLayout;
use abruzzi::checkpoint::weights::GatedMlp;
use abruzzi::config::MoeConfig;
use abruzzi::device::cuda::kernels::dequant::QuantisedTensor;
use abruzzi::device::cuda::kernels::expert_gemm::{self, ExpertScratch};
use abruzzi::device::cuda::{CudaRouting, CudaSlots, CudaTensor, Gpu};
use abruzzi::device::{Precision, Routing};
use abruzzi::quant::{MatrixLayout, fp8};
use half::bf16;

use crate::harness::{
    Random, assert_close, configure, difference, download, poisoned_tensor, quick, random, real, session,
};
use reference::{Row, Weights, activations, encode, layout, poison, rows_of, to_f32};

// ---- One matrix --------------------------------------------------------------------------------------------------

struct Linear {
    x: Vec<f32>,
    quantised: Vec<Row>,
    weights: Weights,
    /// f64 sums over the codes.
    want: Vec<f32>,
}

impl Linear {
    fn new(x: Vec<f32>, weights: Weights) -> Linear {
        let quantised: Vec<Row> = x.chunks(weights.layout.cols).map(Row::quantise).collect();
        let want = quantised.iter().flat_map(|row| weights.times(&row.values())).collect();
        Linear { x, quantised, weights, want: to_f32(want) }
    }

    fn random(random: &mut Random, [rows, weight_rows, cols]: [usize; 3]) -> Linear {
        Linear::new(activations(random, rows, cols), Weights::random(random, weight_rows, cols))
    }

    /// Runs it; checks codes and that nothing but the rows in use is written.
    fn run(&self, gpu: &Gpu, precision: Precision) -> Vec<f32> {
        let MatrixLayout { rows: weight_rows, cols, .. } = self.weights.layout;
        let rows = self.quantised.len();
        let x = CudaTensor::upload(gpu, cols, Precision::Working, &self.x).unwrap();
        let mut scratch = QuantisedTensor::new(gpu, rows + 7, cols).unwrap();
        poison(gpu, &mut scratch);
        let mut out = poisoned_tensor(gpu, rows + 3, weight_rows, precision);
        expert_gemm::linear_fp8(gpu, &x, &self.weights.device(gpu), &mut scratch, &mut out).unwrap();
        let got = download(gpu, &out);
        assert!(rows_of(&scratch) == self.quantised, "codes of {:?}", self.weights.layout);
        out.resize(rows + 3);
        assert!(download(gpu, &out)[got.len()..].iter().all(|v| v.is_nan()), "rows beyond are written");
        got
    }

    fn check(&self, gpu: &Gpu) {
        let cols = self.weights.layout.rows;
        let what = (self.quantised.len(), self.weights.layout);
        assert_close(what, &self.run(gpu, Precision::Full), &self.want, cols, 1e-10, 1e-5);
        assert_close(what, &self.run(gpu, Precision::Working), &self.want, cols, 1e-5, 1.0 / 256.0);
    }
}

#[test]
fn linear_of_any_shape() {
    let (session, mut random) = (session(), random());
    let shapes = [
        [1, 1, 16],
        [1, 128, 128],
        [63, 40, 48],
        [64, 129, 144],
        [65, 257, 272],
        [128, 300, 400],
        [129, 576, 208],
        [300, 136, 896],
    ];
    let cases = shapes.map(|shape| Linear::random(&mut random, shape));
    session.every_schedule(|gpu| cases.iter().for_each(|case| case.check(gpu)));
}

/// Enough tiles for the kernel of two boxes; the last columns need one only.
#[test]
fn linear_of_many_columns() {
    if quick() {
        return;
    }
    let (session, mut random) = (session(), random());
    let case = Linear::random(&mut random, [3, 134 * 256 - 168, 144]);
    session.every_schedule(|gpu| case.check(gpu));
}

#[test]
fn linear_without_rows() {
    let (session, mut random) = (session(), random());
    let case = Linear::new(Vec::new(), Weights::random(&mut random, 48, 32));
    assert!(case.run(&session.gpu, Precision::Full).is_empty());
}

#[test]
fn linear_of_true_depth() {
    if quick() {
        return;
    }
    let (session, mut random) = (session(), random());
    let case = Linear::random(&mut random, [5, 130, 7168]);
    session.every_schedule(|gpu| case.check(gpu));
}

/// NaN and infinities of x make their row NaN and no other; NaN weights their column.
#[test]
fn linear_of_values_that_are_not_finite() {
    let (session, mut random) = (session(), random());
    let (rows, cols) = (6, 272);
    let mut x = activations(&mut random, rows, cols);
    x[cols + 3] = f32::NAN;
    x[2 * cols + 271] = f32::NEG_INFINITY;
    x[4 * cols..5 * cols].fill(-0.0);
    let mut weights = Weights::random(&mut random, 140, cols);
    weights.codes[139 * cols + 5] = 0xff;
    let case = Linear::new(x, weights);
    assert_eq!(case.want.iter().filter(|v| v.is_nan()).count(), 2 * 140 + 4);
    session.every_schedule(|gpu| case.check(gpu));
}

/// Sums of positive products over all of K2's hidden width, where the tensor core's truncated sums lose the most. Each
/// block of 128 summed on its own and added in f32 stays within a part in 1000; one sum over all of them is off by far
/// more. Scales are all equal, so that only the sums differ.
#[test]
fn blocks_are_added_in_f32() {
    let (session, mut random) = (session(), random());
    if real() {
        return;
    }
    let (rows, weight_rows, cols) = (2, 9, 7168);
    let positive = |random: &mut Random| (random.normal().abs() * 100.0 + 1.0).min(447.0);
    let mut x: Vec<f32> = (0..rows * cols).map(|_| bf16::from_f32(positive(&mut random)).to_f32()).collect();
    x.iter_mut().step_by(fp8::BLOCK).for_each(|v| *v = 448.0);
    let weights = Weights {
        layout: layout(weight_rows, cols),
        codes: (0..weight_rows * cols).map(|_| encode(positive(&mut random))).collect(),
        scales: vec![0.5; cols / fp8::BLOCK],
    };
    let case = Linear::new(x, weights);
    for (mode, bound) in [("exact", 1e-5), ("truncated", 1e-3)] {
        configure(&format!(r#"{{"fp8": "{mode}"}}"#));
        let got = case.run(&session.gpu, Precision::Full);
        let worst = got.iter().zip(&case.want).map(|(g, w)| (g - w).abs() / w).fold(0.0, f32::max);
        eprintln!("{mode}: off by {worst:e}");
        assert!(worst < bound, "{mode} sums: off by {worst:e}, at most {bound:e}");
    }
}

// ---- Experts -----------------------------------------------------------------------------------------------------

/// A layer, its tokens and where they go, with what each of its kernels should make of them.
struct Layer {
    hidden: usize,
    intermediate: usize,
    records: Vec<Vec<u8>>,
    layout: RecordLayout,
    experts: Vec<GatedMlp<Weights>>,
    moe: MoeConfig,
    routing: Routing,
    x: Vec<f32>,
    /// By sorted pair.
    quantised: Vec<Row>,
    /// f64 sums over the codes of x, then silu and product.
    h: Vec<Vec<f64>>,
    /// The layer on x as it is.
    unquantised: Vec<f32>,
}

impl Layer {
    /// `ids` [tokens, top_k]: the experts of each token. Experts share `distinct` sets of weights.
    fn new(
        random: &mut Random,
        [hidden, intermediate]: [usize; 2],
        num_experts: usize,
        distinct: usize,
        top_k: usize,
        ids: &[u32],
    ) -> Layer {
        let tokens = ids.len() / top_k;
        Layer::with_x(random, [hidden, intermediate], num_experts, distinct, top_k, ids, |random| {
            activations(random, tokens, hidden)
        })
    }

    fn with_x(
        random: &mut Random,
        [hidden, intermediate]: [usize; 2],
        num_experts: usize,
        distinct: usize,
        top_k: usize,
        ids: &[u32],
        x: impl FnOnce(&mut Random) -> Vec<f32>,
    ) -> Layer {
        let layouts = GatedMlp {
            gate: layout(intermediate, hidden),
            up: layout(intermediate, hidden),
            down: layout(hidden, intermediate),
        };
        let layout = RecordLayout::new(&layouts);
        let experts: Vec<GatedMlp<Weights>> =
            (0..distinct).map(|_| layouts.map(|l| Weights::random(random, l.rows, l.cols))).collect();
        let record = |expert: &GatedMlp<Weights>| {
            let mut bytes = vec![0u8; layout.size()];
            for (placed, weights) in layout.parts().each().into_iter().zip(expert.each()) {
                bytes[placed.weight.clone()].copy_from_slice(&weights.codes);
                bytes[placed.scale.clone()].copy_from_slice(bytemuck::cast_slice(&weights.scales));
            }
            bytes
        };
        let moe = MoeConfig {
            num_experts,
            top_k,
            intermediate_size: intermediate,
            num_shared: 0,
            n_group: 1,
            topk_group: 1,
            norm_topk_prob: true,
            routed_scaling_factor: 1.0,
        };
        let mut routing = Routing::default();
        routing.reset(top_k);
        let bias = vec![0.0; num_experts];
        for ids in ids.chunks(top_k) {
            let mut logits = vec![-9.0f32; num_experts];
            ids.iter().enumerate().for_each(|(rank, &id)| logits[id as usize] = 4.0 - rank as f32);
            routing.route_row(&logits, &bias, &moe);
        }
        routing.sort_by_expert(num_experts);
        assert_eq!(routing.ids(), ids);

        let x = x(random);
        let silu = |z: f64| z / (1.0 + (-z).exp());
        let gated = |mlp: &GatedMlp<Weights>, x: &[f64]| -> Vec<f64> {
            mlp.gate.times(x).into_iter().zip(mlp.up.times(x)).map(|(g, u)| silu(g) * u).collect()
        };
        let (mut quantised, mut h, mut unquantised) = (Vec::new(), Vec::new(), Vec::new());
        for pair in 0..ids.len() {
            let (token, expert) = routing.pair(pair);
            let mlp = &experts[expert % distinct];
            let exact = &x[token * hidden..][..hidden];
            let row = Row::quantise(exact);
            h.push(gated(mlp, &row.values()));
            let exact: Vec<f64> = exact.iter().map(|&v| v.into()).collect();
            unquantised.extend(to_f32(mlp.down.times(&gated(mlp, &exact))));
            quantised.push(row);
        }
        Layer {
            hidden,
            intermediate,
            records: experts.iter().map(record).collect(),
            layout,
            experts,
            moe,
            routing,
            x,
            quantised,
            h,
            unquantised,
        }
    }

    fn mlp(&self, expert: usize) -> &GatedMlp<Weights> {
        &self.experts[expert % self.experts.len()]
    }

    /// Every expert in the slot of its number.
    fn pool(&self, gpu: &Gpu) -> CudaSlots {
        let records = (0..self.moe.num_experts).map(|e| self.records[e % self.records.len()].as_slice());
        CudaSlots::resident(gpu, &self.layout, records).unwrap()
    }

    /// Runs it and checks every step but for the rows of experts that are `missing`, which must be NaN.
    fn check(&self, gpu: &Gpu, pool: &CudaSlots, missing: &[usize]) {
        let pairs = self.quantised.len();
        let x = CudaTensor::upload(gpu, self.hidden, Precision::Working, &self.x).unwrap();
        let mut routing = CudaRouting::new(gpu, self.routing.tokens() + 2, &self.moe).unwrap();
        routing.upload(gpu, &self.routing).unwrap();
        let mut scratch = ExpertScratch::new(gpu, pairs + 9, self.hidden, self.intermediate).unwrap();
        poison(gpu, &mut scratch.x);
        poison(gpu, &mut scratch.h);
        let mut out = poisoned_tensor(gpu, pairs + 3, self.hidden, Precision::Working);
        expert_gemm::experts_fp8(gpu, &x, pool.layer(0), &routing, &mut scratch, &mut out).unwrap();
        let got = download(gpu, &out);
        assert_eq!(got.len(), pairs * self.hidden);

        assert!(rows_of(&scratch.x) == self.quantised, "codes of x");
        let h = rows_of(&scratch.h);
        let mut want = Vec::with_capacity(got.len());
        for (pair, row) in h.iter().enumerate() {
            let expert = self.routing.pair(pair).1;
            if missing.contains(&expert) {
                assert!(row.codes.iter().all(|&c| c == 0x7f), "h of pair {pair}, whose expert is not there");
                want.extend(vec![f32::NAN; self.hidden]);
            } else {
                check_h(pair, row, &self.h[pair]);
                want.extend(to_f32(self.mlp(expert).down.times(&row.values())));
            }
        }
        assert_close("pairs", &got, &want, self.hidden, 1e-5, 1.0 / 256.0);
        let there = |v: &[f32]| -> Vec<f32> {
            v.iter().zip(&want).filter(|(_, w)| w.is_finite()).map(|(v, _)| *v).collect()
        };
        let whole = difference(&there(&got), &there(&self.unquantised));
        eprintln!("the layer: difference {whole:e}");
        assert!(whole < 3e-3, "the layer: difference {whole:e}");
        out.resize(pairs + 3);
        assert!(download(gpu, &out)[got.len()..].iter().all(|v| v.is_nan()), "rows beyond are written");
    }

    fn run(&self, gpu: &Gpu) {
        let pool = self.pool(gpu);
        self.check(gpu, &pool, &[]);
        assert_eq!(pool.stale().unwrap(), None);
    }
}

/// A quantised row of h against h itself. Its f32 sums and the exponential may tip a value to the neighbouring code, but
/// not further from h than half a step and their error.
fn check_h(pair: usize, row: &Row, want: &[f64]) {
    let groups = want.chunks(fp8::BLOCK).zip(row.codes.chunks(fp8::BLOCK)).zip(&row.scales);
    for (group, ((want, codes), &scale)) in groups.enumerate() {
        let finite = want.iter().filter(|v| v.is_finite());
        let largest = finite.fold(448.0 * f64::from(f32::MIN_POSITIVE), |m, v| m.max(v.abs()));
        let off = (f64::from(scale) * 448.0 / largest - 1.0).abs();
        assert!(off < 1e-4, "pair {pair}, group {group}: scale {scale:e} for a largest value of {largest:e}");
        for (i, (&code, &w)) in codes.iter().zip(want).enumerate() {
            let got = f64::from(fp8::decode(code)) * f64::from(scale);
            let bound = w.abs() * (1.0 / 16.0 + 1e-4) + f64::from(scale) * (1.0 / 1024.0) + largest * 1e-5;
            let same = if w.is_finite() { (got - w).abs() <= bound } else { got.is_nan() };
            assert!(same, "pair {pair}, column {group}·128 + {i} of h: {got:e} for {w:e}");
        }
    }
}

/// The ids of tokens with one expert each, `counts[e]` of expert e, in random order.
fn of_counts(random: &mut Random, counts: &[usize]) -> Vec<u32> {
    let mut ids: Vec<u32> = counts.iter().enumerate().flat_map(|(e, &count)| vec![e as u32; count]).collect();
    for i in (1..ids.len()).rev() {
        ids.swap(i, random.below(i + 1));
    }
    ids
}

/// The ids of tokens with `top_k` distinct experts each.
fn at_random(random: &mut Random, tokens: usize, num_experts: usize, top_k: usize) -> Vec<u32> {
    let mut ids = Vec::new();
    for _ in 0..tokens {
        let mut all: Vec<u32> = (0..num_experts as u32).collect();
        for rank in 0..top_k {
            all.swap(rank, rank + random.below(num_experts - rank));
            ids.push(all[rank]);
        }
    }
    ids
}

#[test]
fn experts_with_any_number_of_rows() {
    let (session, mut random) = (session(), random());
    let counts = [0, 1, 63, 0, 64, 65, 128, 129, 300];
    let ids = of_counts(&mut random, &counts);
    let layer = Layer::new(&mut random, [272, 208], counts.len(), counts.len(), 1, &ids);
    session.every_schedule(|gpu| layer.run(gpu));
}

/// More row tiles than a band has, more tiles than multiprocessors.
#[test]
fn all_tokens_on_one_expert() {
    let (session, mut random) = (session(), random());
    let mut counts = [0; 5];
    counts[3] = if quick() { 200 } else { 2100 };
    let ids = of_counts(&mut random, &counts);
    let layer = Layer::new(&mut random, [272, 144], counts.len(), counts.len(), 1, &ids);
    session.every_schedule(|gpu| layer.run(gpu));
}

#[test]
fn hundreds_of_experts_mostly_empty() {
    let (session, mut random) = (session(), random());
    let ids = at_random(&mut random, 9, 384, 8);
    let layer = Layer::new(&mut random, [80, 48], 384, 7, 8, &ids);
    session.every_schedule(|gpu| layer.run(gpu));
    let last = Layer::new(&mut random, [80, 48], 384, 384, 1, &[383]);
    session.every_schedule(|gpu| last.run(gpu));
}

#[test]
fn experts_of_true_width() {
    if quick() {
        return;
    }
    let (session, mut random) = (session(), random());
    for [hidden, intermediate] in [[7168, 128], [128, 2048]] {
        let ids = at_random(&mut random, 3, 5, 2);
        let layer = Layer::new(&mut random, [hidden, intermediate], 5, 5, 2, &ids);
        session.every_schedule(|gpu| layer.run(gpu));
    }
}

#[test]
fn experts_without_tokens() {
    let (session, mut random) = (session(), random());
    let layer = Layer::new(&mut random, [64, 32], 4, 4, 2, &[]);
    layer.run(&session.gpu);
}

/// A token that is not finite spoils its own pairs only; one of zeros gives zeros.
#[test]
fn experts_of_values_that_are_not_finite() {
    let (session, mut random) = (session(), random());
    let (tokens, hidden) = (7, 144);
    let ids = at_random(&mut random, tokens, 3, 2);
    let layer = Layer::with_x(&mut random, [hidden, 160], 3, 3, 2, &ids, |random| {
        let mut x = activations(random, tokens, hidden);
        x[hidden + 2] = f32::NAN;
        x[3 * hidden + 143] = f32::INFINITY;
        x[5 * hidden..6 * hidden].fill(0.0);
        x
    });
    session.every_schedule(|gpu| layer.run(gpu));
}

#[test]
fn experts_are_where_the_table_says() {
    let (session, mut random) = (session(), random());
    let ids = at_random(&mut random, 20, 6, 3);
    let mut layer = Layer::new(&mut random, [144, 144], 6, 6, 3, &ids);
    // Slot s holds expert `renamed[s]`.
    let renamed = [3, 5, 0, 1, 4, 2];
    layer.records = renamed.iter().map(|&e: &usize| layer.records[e].clone()).collect();
    let slot_of: Vec<u32> = (0..6).map(|e| renamed.iter().position(|&r| r == e).unwrap() as u32).collect();
    session.every_schedule(|gpu| {
        let pool = layer.pool(gpu);
        pool.set_table(&slot_of).unwrap();
        layer.check(gpu, &pool, &[]);
        assert_eq!(pool.stale().unwrap(), None);
    });
}

#[test]
fn an_expert_that_is_not_in_its_slot_is_reported() {
    let (session, mut random) = (session(), random());
    // Expert 1 has no rows.
    let ids = of_counts(&mut random, &[3, 0, 140, 5, 2, 70]);
    let layer = Layer::new(&mut random, [144, 272], 6, 6, 1, &ids);
    session.every_schedule(|gpu| {
        let mut pool = layer.pool(gpu);
        pool.set_generation(1, 2).unwrap();
        layer.check(gpu, &pool, &[]);
        assert_eq!(pool.stale().unwrap(), None, "expert 1 has no rows");
        pool.set_generation(4, 2).unwrap();
        pool.set_generation(2, 0).unwrap();
        layer.check(gpu, &pool, &[2, 4]);
        assert_eq!(pool.stale().unwrap(), Some((0, 2, 2)));

        let pool = layer.pool(gpu);
        pool.set_table(&[0, 1, 2, 3, 4, 1000]).unwrap();
        layer.check(gpu, &pool, &[5]);
        assert_eq!(pool.stale().unwrap(), Some((0, 5, 1000)), "a slot that is not there");
    });
}

/// Every tile is multiplied once, halves of tiles without rows or columns not at all; no bank conflicts.
#[test]
fn nothing_is_multiplied_twice() {
    let (session, mut random) = (session(), random());
    let counts = [1, 64, 65, 0, 130];
    let (hidden, intermediate) = (400, 208);
    let ids = of_counts(&mut random, &counts);
    let layer = Layer::new(&mut random, [hidden, intermediate], counts.len(), counts.len(), 1, &ids);
    let Some(counted) = session.counted(|gpu| layer.run(gpu)) else { return };
    let blocks = |n: usize| n.div_ceil(fp8::BLOCK) * fp8::BLOCK;
    let rows: usize = counts.iter().map(|c| c.div_ceil(64) * 64).sum();
    for (kernel, columns, depth) in
        [("expert_gated_fp8", 2 * intermediate, hidden), ("expert_linear_fp8", hidden, intermediate)]
    {
        let counts = &counted[kernel]["counters"];
        let columns = if columns == hidden { blocks(hidden) } else { 2 * blocks(intermediate) };
        assert_eq!(counts["tensor"]["fp8"], 2 * rows * columns * blocks(depth), "{kernel}: {counts}");
        assert_eq!(counts["bank_replays"], 0, "{kernel}");
        assert_eq!(counts["local_bytes"], 0, "{kernel}");
    }
}
