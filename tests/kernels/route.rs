//! The router against [`Routing`], which is itself held to a naive router: ids, weights and every list to the bit.

use abruzzi::Error;
use abruzzi::config::MoeConfig;
use abruzzi::device::cuda::kernels::route;
use abruzzi::device::cuda::{CudaRouting, CudaTensor, Gpu};
use abruzzi::device::{Precision, Routing, Shape};

use crate::harness::{Random, quick, random, session, some_of};

/// Rows of [`fuzz`] unless `ABRUZZI_FUZZ_ROWS` says otherwise.
const FUZZ_ROWS: usize = 150_000;

fn moe(num_experts: usize, top_k: usize, groups: (usize, usize)) -> MoeConfig {
    MoeConfig {
        num_experts,
        top_k,
        intermediate_size: 1,
        num_shared: 0,
        n_group: groups.0,
        topk_group: groups.1,
        norm_topk_prob: true,
        routed_scaling_factor: 2.827,
    }
}

/// The case of one batch: logits row by row, and the bias.
struct Batch {
    moe: MoeConfig,
    logits: Vec<f32>,
    bias: Vec<f32>,
}

/// A number of the kinds that routers have been seen to fail on.
fn special(random: &mut Random) -> f32 {
    const VALUES: [f32; 12] = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -0.0,
        0.0,
        f32::MAX,
        f32::MIN,
        1e-45,
        88.8,
        -88.8,
        -103.9,
        -150.0,
    ];
    VALUES[random.below(VALUES.len())]
}

impl Batch {
    /// Ordinary rows and bias.
    fn ordinary(random: &mut Random, moe: MoeConfig, tokens: usize) -> Batch {
        let logits = (0..tokens * moe.num_experts).map(|_| 6.0 * random.unit()).collect();
        let bias = (0..moe.num_experts).map(|_| 0.3 * random.unit()).collect();
        Batch { moe, logits, bias }
    }

    /// Rows of every kind: ordinary, tied, nearly tied, without candidates, with special values, arbitrary bits.
    fn hostile(random: &mut Random, moe: MoeConfig, tokens: usize) -> Batch {
        let n = moe.num_experts;
        let mut logits = Vec::with_capacity(tokens * n);
        for _ in 0..tokens {
            match random.below(8) {
                0 | 1 => logits.extend((0..n).map(|_| 6.0 * random.unit())),
                2 => logits.extend((0..n).map(|_| random.below(7) as f32 - 3.0)),
                3 => {
                    let near = (4.0 * random.unit()).to_bits();
                    logits.extend((0..n).map(|_| f32::from_bits(near ^ random.below(4) as u32)));
                }
                4 => {
                    let everywhere = special(random);
                    logits.extend((0..n).map(|_| everywhere));
                }
                5 => {
                    let often = 1 + random.below(8);
                    for _ in 0..n {
                        let v = if random.below(8) < often { special(random) } else { 4.0 * random.unit() };
                        logits.push(v);
                    }
                }
                6 => logits.extend((0..n).map(|_| f32::from_bits(random.bits()))),
                _ => logits.extend((0..n).map(|_| -60.0 + 50.0 * random.unit())),
            }
        }
        let kind = random.below(6);
        let bias = (0..n).map(|_| match kind {
            0 => 0.0,
            1 => -5.0 + random.unit(),
            2 => -(random.below(2) as f32) / 2.0,
            3 if random.below(6) == 0 => special(random),
            4 => 1e9 * random.unit(),
            _ => 0.3 * random.unit(),
        });
        Batch { bias: bias.collect(), logits, moe }
    }

    fn tokens(&self) -> usize {
        self.logits.len() / self.moe.num_experts
    }

    fn run(&self, gpu: &Gpu, routing: &mut CudaRouting) -> (Routing, Vec<u32>) {
        let logits = CudaTensor::upload(gpu, self.moe.num_experts, Precision::Full, &self.logits).unwrap();
        let bias = gpu.upload(&self.bias, "bias").unwrap();
        route::route(gpu, &logits, bias.all(), &self.moe, routing).unwrap();
        assert_eq!(routing.tokens(), logits.rows());
        (routing.download(gpu).unwrap(), routing.sorted_tokens().download(gpu).unwrap())
    }

    fn expected(&self) -> Routing {
        let mut routing = Routing::default();
        routing.reset(self.moe.top_k);
        for row in self.logits.chunks_exact(self.moe.num_experts) {
            routing.route_row(row, &self.bias, &self.moe);
        }
        routing.sort_by_expert(self.moe.num_experts);
        routing
    }

    /// Runs the kernel and holds everything it wrote to the reference.
    fn check(&self, gpu: &Gpu, routing: &mut CudaRouting) {
        let (got, sorted_tokens) = self.run(gpu, routing);
        let want = self.expected();
        let (moe, k) = (&self.moe, self.moe.top_k);
        for token in 0..self.tokens() {
            let pairs = token * k..(token + 1) * k;
            let (ids, weights) = (&got.ids()[pairs.clone()], &got.weights()[pairs.clone()]);
            let row = || &self.logits[token * moe.num_experts..][..moe.num_experts];
            assert!(
                ids.iter().all(|&id| (id as usize) < moe.num_experts)
                    && (1..k).all(|i| !ids[..i].contains(&ids[i])),
                "{moe:?}, token {token}: {ids:?} for {:?}",
                row()
            );
            assert_eq!(
                ids,
                &want.ids()[pairs.clone()],
                "{moe:?}, token {token}: ids for {:?} with bias {:?}",
                row(),
                self.bias
            );
            let bits = |weights: &[f32]| weights.iter().map(|w| w.to_bits()).collect::<Vec<u32>>();
            let want = &want.weights()[pairs];
            assert_eq!(
                bits(weights),
                bits(want),
                "{moe:?}, token {token}: weights {weights:?} for {want:?}, logits {:?}",
                row()
            );
        }
        assert_eq!(got.fault(), want.fault(), "{moe:?}");
        assert_eq!(got.offsets(), want.offsets(), "{moe:?}: offsets");
        assert_eq!(got.sorted_pairs(), want.sorted_pairs(), "{moe:?}: sorted pairs");
        assert_eq!(got.positions(), want.positions(), "{moe:?}: positions");
        let tokens: Vec<u32> = want.sorted_pairs().iter().map(|pair| pair / k as u32).collect();
        assert_eq!(sorted_tokens, tokens, "{moe:?}: tokens of sorted pairs");
    }
}

#[test]
fn every_number_of_tokens() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        // One routing for all: what an earlier batch left must not show.
        let config = moe(384, 8, (1, 1));
        let mut routing = CudaRouting::new(gpu, 512, &config).unwrap();
        for tokens in [512, 1, 65, 2, 64, 63] {
            Batch::ordinary(&mut random, config, tokens).check(gpu, &mut routing);
            Batch::hostile(&mut random, config, tokens).check(gpu, &mut routing);
        }
    });
}

#[test]
fn every_number_of_experts() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for (experts, groups) in [
            (1, (1, 1)),
            (2, (2, 1)),
            (8, (1, 1)),
            (8, (4, 2)),
            (16, (16, 9)),
            (32, (8, 3)),
            (60, (1, 1)),
            (60, (5, 2)),
            (64, (1, 1)),
            (65, (1, 1)),
            (72, (24, 24)),
            (256, (8, 4)),
            (260, (13, 5)),
            (384, (1, 1)),
            (384, (3, 2)),
            (500, (2, 1)),
            (512, (16, 4)),
        ] {
            // Groups with too few experts take what is left.
            let config = moe(experts, 8.min(experts), groups);
            let mut routing = CudaRouting::new(gpu, 70, &config).unwrap();
            Batch::ordinary(&mut random, config, 9).check(gpu, &mut routing);
            Batch::hostile(&mut random, config, 70).check(gpu, &mut routing);
        }
    });
}

#[test]
fn every_top_k() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for top_k in 1..=16 {
            let mut config = moe([64, 384, 16][top_k % 3], top_k, (1, 1));
            config.norm_topk_prob = top_k % 2 == 0;
            let mut routing = CudaRouting::new(gpu, 67, &config).unwrap();
            Batch::hostile(&mut random, config, 67).check(gpu, &mut routing);
        }
    });
}

#[test]
fn many_tokens() {
    if quick() {
        return;
    }
    let (session, mut random) = (session(), random());
    let config = moe(384, 8, (1, 1));
    let mut routing = CudaRouting::new(&session.gpu, 2100, &config).unwrap();
    for tokens in [2048, 2085] {
        Batch::ordinary(&mut random, config, tokens).check(&session.gpu, &mut routing);
    }
    // Every pair to the same experts, the longest runs there are.
    let mut same = Batch::ordinary(&mut random, config, 2048);
    let row = same.logits[..384].to_vec();
    same.logits.chunks_exact_mut(384).for_each(|r| r.copy_from_slice(&row));
    same.check(&session.gpu, &mut routing);
}

#[test]
fn no_tokens() {
    let (session, mut random) = (session(), random());
    let config = moe(8, 2, (1, 1));
    let mut routing = CudaRouting::new(&session.gpu, 4, &config).unwrap();
    let nothing = Batch { moe: config, logits: vec![f32::NAN; 8], bias: vec![0.0; 8] };
    nothing.check(&session.gpu, &mut routing);
    let counts = session.counted(|gpu| {
        Batch::ordinary(&mut random, config, 0).check(gpu, &mut routing);
        assert_eq!(routing.offsets().download(gpu).unwrap(), [0; 9]);
        assert_eq!(routing.download(gpu).unwrap().fault(), None, "of the batch before");
    });
    assert!(counts.is_none_or(|counts| counts.is_empty()), "nothing to launch");
}

#[test]
fn the_first_token_without_candidates_is_named_whichever_block_sees_it() {
    let session = session();
    session.every_schedule(|gpu| {
        let config = moe(8, 3, (1, 1));
        let mut routing = CudaRouting::new(gpu, 100, &config).unwrap();
        let mut batch = Batch { moe: config, logits: vec![0.5; 800], bias: vec![0.0; 8] };
        batch.check(gpu, &mut routing);
        for (token, finite) in [(97, 0), (61, 2), (13, 1)] {
            batch.logits[token * 8 + finite..][..8 - finite].fill(f32::NAN);
            batch.check(gpu, &mut routing);
            let fault = routing.download(gpu).unwrap().fault().unwrap();
            assert_eq!((fault.token, fault.candidates), (token, finite));
        }
        batch.logits.fill(0.5);
        batch.check(gpu, &mut routing);
        assert_eq!(routing.download(gpu).unwrap().fault(), None);
    });
}

#[test]
fn sigmoid_is_the_same_to_the_bit() {
    // With all experts chosen and nothing divided the weights are the scores.
    let (session, mut random) = (session(), random());
    let mut config = moe(8, 8, (1, 1));
    (config.norm_topk_prob, config.routed_scaling_factor) = (false, 1.0);
    session.fast(|gpu| {
        let mut routing = CudaRouting::new(gpu, 1 << 14, &config).unwrap();
        // Values of both signs up to 110, from a random one on, and then any bits.
        let (start, step) = (random.below(16_000) as u32, 110.0f32.to_bits() / (1 << 17));
        let ordered = (0..1 << 17).map(|i| f32::from_bits((start + i / 2 * step * 2) | (i % 2) << 31));
        let any = (0..1 << 16).map(|_| f32::from_bits(random.bits()));
        let logits: Vec<f32> = ordered.chain(any).step_by(if quick() { 61 } else { 1 }).collect();
        // Rows of eight.
        for logits in logits[..logits.len() / 8 * 8].chunks(8 << 14) {
            Batch { moe: config, logits: logits.to_vec(), bias: vec![0.0; 8] }.check(gpu, &mut routing);
        }
    });
}

/// Random rows of every kind under random configurations: no id, weight or position may differ.
#[test]
fn fuzz() {
    let (session, mut random) = (session(), random());
    let most = if quick() { 3000 } else { FUZZ_ROWS };
    let rows = std::env::var("ABRUZZI_FUZZ_ROWS").map_or(most, |n| n.parse().unwrap());
    let start = std::time::Instant::now();
    let mut done = 0;
    session.fast(|gpu| {
        while done < rows {
            let tokens = (1 + random.below(1500)).min(rows - done);
            // A tenth of the rows has a real model's number of experts.
            let experts = if random.below(10) == 0 {
                [256, 384, 512][random.below(3)]
            } else {
                [4, 8, 12, 16, 24, 32, 60, 64][random.below(8)]
            };
            let possible: Vec<usize> = (1..=16.min(experts)).filter(|g| experts % g == 0).collect();
            let groups = if random.below(2) == 0 { 1 } else { possible[random.below(possible.len())] };
            let kept = 1 + random.below(groups);
            let most = 16.min(experts / groups * kept);
            let mut config = moe(experts, 1 + random.below(most), (groups, kept));
            config.norm_topk_prob = random.below(4) > 0;
            let mut routing = CudaRouting::new(gpu, tokens, &config).unwrap();
            Batch::hostile(&mut random, config, tokens).check(gpu, &mut routing);
            done += tokens;
        }
    });
    eprintln!("{done} rows in {:.1} s", start.elapsed().as_secs_f64());
}

#[test]
fn what_is_too_much_is_refused_by_name() {
    let session = session();
    let gpu = &session.gpu;
    for (config, name) in [
        (moe(513, 8, (1, 1)), "n_routed_experts = 513"),
        (moe(64, 17, (1, 1)), "num_experts_per_tok = 17"),
        (moe(64, 8, (32, 8)), "n_group = 32"),
    ] {
        let mut routing = CudaRouting::new(gpu, 1, &config).unwrap();
        let logits = CudaTensor::new(gpu, 1, config.num_experts, Precision::Full).unwrap();
        let bias = gpu.alloc_zeroed::<f32>(config.num_experts, "bias").unwrap();
        let refused = route::route(gpu, &logits, bias.all(), &config, &mut routing).unwrap_err();
        assert!(matches!(&refused, Error::Unsupported { what, .. } if what == name), "{refused}");
    }
}

#[test]
fn one_launch_and_each_byte_once() {
    let (session, mut random) = (session(), random());
    for &tokens in some_of(&[64, 512, 2048], 1) {
        let config = moe(384, 8, (1, 1));
        let mut routing = CudaRouting::new(&session.gpu, tokens, &config).unwrap();
        let batch = Batch::ordinary(&mut random, config, tokens);
        let Some(counts) = session.counted(|gpu| drop(batch.run(gpu, &mut routing))) else { return };
        let (names, pairs): (Vec<&String>, usize) = (counts.keys().collect(), tokens * 8);
        assert_eq!(names, ["route_384"]);
        assert_eq!(counts["route_384"]["launches"], 1);
        let counts = &counts["route_384"]["counters"];
        let moved =
            counts["dram_read_bytes"].as_u64().unwrap() + counts["dram_write_bytes"].as_u64().unwrap();
        // Logits and bias in; ids, weights, sorted pairs, their tokens, positions and offsets out.
        let least = (4 * (tokens * 384 + 384 + 5 * pairs + 385)) as u64;
        assert!(moved * 100 <= least * 105, "{tokens} tokens: {moved} bytes, {least} at least");
    }
}
