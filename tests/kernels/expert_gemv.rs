//! Routed experts for few tokens, in every weight format.

use abruzzi::checkpoint::RecordLayout;
use abruzzi::checkpoint::weights::GatedMlp;
use abruzzi::config::MoeConfig;
use abruzzi::device::cuda::kernels::expert_gemv::{self, ExpertGemvScratch};
use abruzzi::device::cuda::{CudaRouting, CudaSlots, CudaTensor, Gpu};
use abruzzi::device::{Precision, Routing, Shape as _};
use abruzzi::quant::{Format, MatrixLayout};
use half::bf16;

use crate::gemv::{FORMATS, HostWeights, bf16_values, tensor_in_poison};
use crate::harness::{Random, assert_close, download, poisoned_tensor, quick, random, session, some_of};

pub type Expert = GatedMlp<HostWeights>;

/// A layer's experts on the host and in a pool whose padding is poison.
pub struct Experts {
    pub host: Vec<Expert>,
    pub pool: CudaSlots,
    pub hidden: usize,
    pub intermediate: usize,
}

impl Experts {
    pub fn random(
        gpu: &Gpu,
        random: &mut Random,
        format: Format,
        count: usize,
        hidden: usize,
        intermediate: usize,
    ) -> Experts {
        let host = (0..count)
            .map(|_| GatedMlp {
                gate: HostWeights::random(random, format, intermediate, hidden),
                up: HostWeights::random(random, format, intermediate, hidden),
                down: HostWeights::random(random, format, hidden, intermediate),
            })
            .collect();
        Experts::upload(gpu, host)
    }

    pub fn upload(gpu: &Gpu, host: Vec<Expert>) -> Experts {
        let layout = RecordLayout::new(&host[0].map(|m| m.layout));
        let parts = layout.parts();
        let records: Vec<Vec<u8>> = host
            .iter()
            .map(|expert| {
                let mut record = vec![0xffu8; layout.size()];
                for (part, matrix) in parts.each().into_iter().zip(expert.each()) {
                    record[part.weight.clone()].copy_from_slice(&matrix.weight);
                    record[part.scale.clone()].copy_from_slice(&matrix.scale);
                }
                record
            })
            .collect();
        let pool = CudaSlots::resident(gpu, &layout, records.iter().map(Vec::as_slice)).unwrap();
        let MatrixLayout { rows: intermediate, cols: hidden, .. } = host[0].gate.layout;
        Experts { host, pool, hidden, intermediate }
    }

    /// down·bf16(silu(gate·x) ⊙ (up·x)).
    fn apply(&self, slot: usize, x: &[f32]) -> Vec<f32> {
        let expert = &self.host[slot];
        let (gate, up) = (expert.gate.multiply(x), expert.up.multiply(x));
        let h: Vec<f32> =
            gate.iter().zip(&up).map(|(g, u)| bf16::from_f64(g / (1.0 + (-g).exp()) * u).to_f32()).collect();
        expert.down.multiply(&h).into_iter().map(|v| v as f32).collect()
    }

    /// What each sorted pair should be, expert e being in slot `slot_of[e]`.
    pub fn expected(&self, x: &[f32], routing: &Routing, slot_of: &[u32]) -> Vec<f32> {
        (0..routing.sorted_pairs().len())
            .flat_map(|pair| {
                let (token, expert) = routing.pair(pair);
                self.apply(slot_of[expert] as usize, &x[token * self.hidden..][..self.hidden])
            })
            .collect()
    }

    fn run(&self, gpu: &Gpu, x: &[f32], routing: &Routing) -> Vec<f32> {
        self.run_by(gpu, x, routing, |x, routing, out| {
            let mut scratch = ExpertGemvScratch::new(gpu, routing.pairs(), self.intermediate).unwrap();
            expert_gemv::experts(gpu, x, self.pool.layer(0), routing, &mut scratch, out).unwrap();
        })
    }

    /// Runs `kernels` on x for this routing; checks that nothing beside the pairs is written.
    pub fn run_by(
        &self,
        gpu: &Gpu,
        x: &[f32],
        routing: &Routing,
        kernels: impl FnOnce(&CudaTensor, &CudaRouting, &mut CudaTensor),
    ) -> Vec<f32> {
        let pairs = routing.sorted_pairs().len();
        let mut device_routing =
            CudaRouting::new(gpu, routing.tokens() + 1, &moe(self.host.len(), routing.top_k())).unwrap();
        device_routing.upload(gpu, routing).unwrap();
        let mut out = poisoned_tensor(gpu, pairs + 1, self.hidden, Precision::Working);
        let x = tensor_in_poison(gpu, self.hidden, x);
        kernels(&x, &device_routing, &mut out);
        assert_eq!(out.rows(), pairs);
        let pitch = out.stride() * 2;
        let memory = out.memory_mut().download().unwrap();
        for (row, bytes) in memory.chunks_exact(pitch).enumerate() {
            let beyond = if row < pairs { self.hidden * 2 } else { 0 };
            assert!(bytes[beyond..].iter().all(|&b| b == 0xff), "written beyond row {row} of {pairs}");
        }
        download(gpu, &out)
    }

    fn check(&self, gpu: &Gpu, random: &mut Random, routing: &Routing) {
        let x = bf16_values(random, routing.tokens() * self.hidden);
        let slots: Vec<u32> = (0..self.host.len() as u32).collect();
        let what = (self.host[0].gate.layout, routing.tokens());
        let want = self.expected(&x, routing, &slots);
        assert_close(what, &self.run(gpu, &x, routing), &want, self.hidden, 1e-4, 1.0 / 128.0);
    }
}

fn moe(num_experts: usize, top_k: usize) -> MoeConfig {
    MoeConfig {
        num_experts,
        top_k,
        intermediate_size: 1,
        num_shared: 0,
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: true,
        routed_scaling_factor: 1.0,
    }
}

/// Routes token t to the experts `choose` gives it.
pub fn route(
    tokens: usize,
    experts: usize,
    top_k: usize,
    mut choose: impl FnMut(usize) -> Vec<usize>,
) -> Routing {
    let mut routing = Routing::default();
    routing.reset(top_k);
    let (moe, bias) = (moe(experts, top_k), vec![0.0; experts]);
    for token in 0..tokens {
        let mut logits = vec![-8.0; experts];
        for (rank, expert) in choose(token).into_iter().enumerate() {
            logits[expert] = 4.0 - rank as f32 * 0.1;
        }
        routing.route_row(&logits, &bias, &moe);
    }
    routing.sort_by_expert(experts);
    routing
}

/// `count` different experts.
pub fn some(random: &mut Random, experts: usize, count: usize) -> Vec<usize> {
    let mut chosen: Vec<usize> = Vec::new();
    while chosen.len() < count {
        let expert = random.below(experts);
        if !chosen.contains(&expert) {
            chosen.push(expert);
        }
    }
    chosen
}

#[test]
fn experts_of_any_shape_in_every_format() {
    let (session, mut random) = (session(), random());
    let mut turn = (0..7).cycle();
    session.every_schedule(|gpu| {
        for format in FORMATS {
            for (hidden, intermediate) in [(136, 33), (272, 200), (7, 1), (1, 7), (512, 96)] {
                let experts = Experts::random(gpu, &mut random, format, 5, hidden, intermediate);
                let tokens = [0, 1, 2, 5, 16, 17, 40][turn.next().unwrap()];
                experts.check(gpu, &mut random, &route(tokens, 5, 2, |t| vec![t % 5, (t * 2 + 1) % 5]));
                // All on one expert: 40 tokens are three passes over its weights.
                if tokens == 40 {
                    experts.check(gpu, &mut random, &route(tokens, 5, 1, |_| vec![3]));
                }
            }
        }
        turn.next();
    });
}

#[test]
fn experts_at_the_sizes_of_k2() {
    if quick() {
        return;
    }
    let (session, mut random) = (session(), random());
    // All columns of K2's gate and up with few rows, then all columns of its down with few rows.
    for format in [Format::Fp8Block, Format::Int4Group32, Format::Bf16] {
        for (hidden, intermediate) in [(7168, 40), (96, 2048)] {
            let experts = Experts::random(&session.gpu, &mut random, format, 3, hidden, intermediate);
            for tokens in [1, 17] {
                experts.check(&session.gpu, &mut random, &route(tokens, 3, 2, |t| vec![2, t % 2]));
            }
        }
    }
}

/// As a layer of K2 sees a token or a few: 384 experts of which nearly all are idle, in slots of any order.
#[test]
fn experts_are_found_among_384_in_permuted_slots() {
    let (session, mut random) = (session(), random());
    let count = 384;
    let experts = Experts::random(&session.gpu, &mut random, Format::Int4Group32, count, 64, 32);
    let mut slot_of: Vec<u32> = (0..count as u32).collect();
    for i in (1..count).rev() {
        slot_of.swap(i, random.below(i + 1));
    }
    experts.pool.set_table(&slot_of).unwrap();
    let mut routings = Vec::new();
    for &tokens in some_of(&[1, 3, 60], 2) {
        routings.push(route(tokens, count, 8, |_| some(&mut random, count, 8)));
    }
    // The first and the last expert, and every expert at once.
    routings.push(route(1, count, 2, |_| vec![0, count - 1]));
    routings.push(route(48, count, 8, |t| (t * 8..t * 8 + 8).collect()));
    session.every_schedule(|gpu| {
        for routing in &routings {
            let x = bf16_values(&mut random, routing.tokens() * experts.hidden);
            let want = experts.expected(&x, routing, &slot_of);
            let got = experts.run(gpu, &x, routing);
            assert_close(routing.tokens(), &got, &want, experts.hidden, 1e-4, 1.0 / 128.0);
        }
    });
    assert_eq!(experts.pool.stale().unwrap(), None);
}

/// More experts than one step of the search looks at.
#[test]
fn experts_are_found_among_1200() {
    if quick() {
        return;
    }
    let (session, mut random) = (session(), random());
    let count = 1200;
    let experts = Experts::random(&session.gpu, &mut random, Format::Fp8Block, count, 16, 3);
    for chosen in [vec![0, 511, 512, 1199], vec![1023, 1024, 1100, 1198], vec![1, 2, 3, 4]] {
        experts.check(&session.gpu, &mut random, &route(2, count, 4, |_| chosen.clone()));
    }
}

#[test]
fn a_stale_slot_is_reported_and_gives_nan() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        let mut experts = Experts::random(gpu, &mut random, Format::Fp8Block, 6, 130, 70);
        // Expert e is in slot 5 − e; slots 1 and 3 (experts 4 and 2) hold something else by now.
        let slot_of: Vec<u32> = (0..6).rev().collect();
        experts.pool.set_table(&slot_of).unwrap();
        experts.pool.set_generation(1, 2).unwrap();
        let x = bf16_values(&mut random, 20 * experts.hidden);

        // A stale slot that nobody asks for is no matter.
        let routing = route(20, 6, 2, |t| vec![0, 1 + t % 2 * 2]);
        let got = experts.run(gpu, &x, &routing);
        let want = experts.expected(&x, &routing, &slot_of);
        assert_close("none stale", &got, &want, experts.hidden, 1e-4, 1.0 / 128.0);
        assert_eq!(experts.pool.stale().unwrap(), None);

        experts.pool.set_generation(3, 9).unwrap();
        let routing = route(20, 6, 2, |t| vec![4, [0, 2, 5][t % 3]]);
        let got = experts.run(gpu, &x, &routing);
        let want = experts.expected(&x, &routing, &slot_of);
        for (pair, (got, want)) in got.chunks(experts.hidden).zip(want.chunks(experts.hidden)).enumerate() {
            match routing.pair(pair).1 {
                2 | 4 => assert!(got.iter().all(|v| v.is_nan()), "pair {pair}"),
                _ => assert_close(pair, got, want, experts.hidden, 1e-4, 1.0 / 128.0),
            }
        }
        assert_eq!(experts.pool.stale().unwrap(), Some((0, 2, 3)), "the smallest of both");
    });
}

impl Experts {
    /// Runs `kernels` with experts that the table has nowhere: their rows stay as they are, nothing is reported.
    pub fn check_without(
        &self,
        gpu: &Gpu,
        random: &mut Random,
        routing: &Routing,
        gone: &[usize],
        (whole, relative): (f64, f32),
        kernels: impl FnOnce(&CudaTensor, &CudaRouting, &mut CudaTensor),
    ) {
        let slots: Vec<u32> = (0..self.host.len() as u32).collect();
        let table: Vec<u32> =
            slots.iter().map(|&s| if gone.contains(&(s as usize)) { u32::MAX } else { s }).collect();
        self.pool.set_table(&table).unwrap();
        let x = bf16_values(random, routing.tokens() * self.hidden);
        let mut want = self.expected(&x, routing, &slots);
        for (pair, row) in want.chunks_exact_mut(self.hidden).enumerate() {
            if gone.contains(&routing.pair(pair).1) {
                row.fill(7.0);
            }
        }
        let got = self.run_by(gpu, &x, routing, |x, routing, out| {
            out.resize(routing.pairs());
            out.write_rows(gpu, 0, &vec![7.0; routing.pairs() * self.hidden]).unwrap();
            kernels(x, routing, out);
        });
        for (pair, (got, want)) in got.chunks(self.hidden).zip(want.chunks(self.hidden)).enumerate() {
            if gone.contains(&routing.pair(pair).1) {
                assert!(got == want, "pair {pair} of an expert that is nowhere is written");
            }
        }
        assert_close((routing.tokens(), gone), &got, &want, self.hidden, whole, relative);
        assert_eq!(self.pool.stale().unwrap(), None);
    }
}

#[test]
fn an_expert_that_is_nowhere_is_left_out() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for format in [Format::Fp8Block, Format::Int4Group32] {
            let experts = Experts::random(gpu, &mut random, format, 6, 136, 70);
            let routing = route(20, 6, 2, |t| vec![t % 6, (t + 1) % 6]);
            for gone in [&[0, 1, 4][..], &[2, 3, 5], &[0, 1, 2, 3, 4, 5]] {
                experts.check_without(
                    gpu,
                    &mut random,
                    &routing,
                    gone,
                    (1e-4, 1.0 / 128.0),
                    |x, routing, out| {
                        let mut scratch = ExpertGemvScratch::new(gpu, routing.pairs(), 70).unwrap();
                        expert_gemv::experts(gpu, x, experts.pool.layer(0), routing, &mut scratch, out)
                            .unwrap();
                    },
                );
            }
        }
    });
}

/// What is not finite in one expert or one token stays there.
#[test]
fn experts_keep_what_is_not_finite_in_its_place() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    for format in [Format::Fp8Block, Format::Int4Group32] {
        let mut host = Experts::random(gpu, &mut random, format, 3, 160, 64).host;
        // Row 50 of expert 1's down is NaN.
        let down = &mut host[1].down;
        match format {
            Format::Fp8Block => down.weight[50 * 64 + 63] = 0xff,
            _ => down.scale[(50 * 2 + 1) * 2..][..2].copy_from_slice(&bf16::NAN.to_le_bytes()),
        }
        let experts = Experts::upload(gpu, host);
        let mut x = bf16_values(&mut random, 9 * 160);
        x[4 * 160 + 159] = f32::NAN;
        let routing = route(9, 3, 2, |t| vec![t % 3, (t + 1) % 3]);
        let (got, slots) = (experts.run(gpu, &x, &routing), [0, 1, 2]);
        assert_close(format, &got, &experts.expected(&x, &routing, &slots), 160, 1e-4, 1.0 / 128.0);
        let nan = got.iter().filter(|v| v.is_nan()).count();
        // Both pairs of token 4, of which one is of expert 1, and row 50 of the five other pairs of that expert.
        assert_eq!(nan, 2 * 160 + 5, "{format:?}");
    }
}

/// One token of K2's width on 8 of the experts: their weights cross the memory interface once, others' never, and no loop
/// meets a bank conflict. So with 16 tokens on one expert.
#[test]
fn experts_read_each_weight_once() {
    let (session, mut random) = (session(), random());
    let (hidden, intermediate, count) = (3072, 256, 10);
    for (format, name) in [(Format::Fp8Block, "fp8"), (Format::Int4Group32, "int4")] {
        let experts = Experts::random(&session.gpu, &mut random, format, count, hidden, intermediate);
        let few = some(&mut random, count, 8);
        for routing in [route(1, count, 8, |_| few.clone()), route(16, count, 1, |_| vec![7])] {
            let (tokens, pairs) = (routing.tokens(), routing.sorted_pairs().len());
            let x = bf16_values(&mut random, tokens * hidden);
            let Some(counts) = session.counted(|gpu| drop(experts.run(gpu, &x, &routing))) else { return };
            let expert = &experts.host[0];
            let bytes = |m: &HostWeights| m.weight.len() + m.scale.len();
            let active = if tokens == 1 { 8 } else { 1 };
            let tile = if tokens <= 8 { 8 } else { 16 };
            for (kernel, weights, activations) in [
                ("gate_up", bytes(&expert.gate) + bytes(&expert.up), tokens * hidden + pairs * intermediate),
                ("down", bytes(&expert.down), pairs * (intermediate + hidden)),
            ] {
                let kernel = format!("{kernel}_{name}_{tile}");
                let counts = &counts[&kernel]["counters"];
                let moved = counts["dram_read_bytes"].as_u64().unwrap()
                    + counts["dram_write_bytes"].as_u64().unwrap();
                let least = (active * weights + activations * 2) as u64;
                assert!(moved * 100 <= least * 105, "{kernel}: {moved} bytes, {least} at least");
                assert_eq!(counts["bank_replays"], 0, "{kernel}");
            }
        }
    }
}
