//! Routed experts in bf16 for many tokens, in both formats, against f64 sums over the stored weights.

use abruzzi::device::cuda::kernels::expert_bf16::{self, ExpertBf16Scratch};
use abruzzi::device::cuda::{CudaDevice, Gpu};
use abruzzi::device::{Device as _, Pass, Routing};
use abruzzi::quant::Format;
use half::bf16;

use crate::expert_gemv::{Experts, route, some};
use crate::gemv::bf16_values;
use crate::harness::{Random, assert_close, random, session};

const FORMATS: [Format; 2] = [Format::Bf16, Format::Int4Group32];
/// Of gate and up, of h and of decoded INT4 each element is rounded to bf16, which f64 sums are not.
const WHOLE: f64 = 1e-4;
/// Of the largest value. Gate, up, their product, the decoded weights and the output are each rounded to bf16, by up to
/// 1/512; where one term makes an element, all five may add up, the gate's a third larger by silu's slope.
const RELATIVE: f32 = 6.0 / 512.0;

/// Runs them with memory for `decoded` matrices at a time.
fn run(gpu: &Gpu, experts: &Experts, x: &[f32], routing: &Routing, decoded: usize) -> Vec<f32> {
    let bytes = decoded * experts.hidden * experts.intermediate * 2;
    experts.run_by(gpu, x, routing, |x, routing, out| {
        let layer = experts.pool.layer(0);
        let mut scratch = ExpertBf16Scratch::new(gpu, routing.pairs() + 2, layer, bytes).unwrap();
        expert_bf16::experts_bf16(gpu, x, layer, routing, &mut scratch, out).unwrap();
    })
}

/// Inputs of one run, and what it should give.
struct Case {
    routing: Routing,
    x: Vec<f32>,
    want: Vec<f32>,
}

impl Case {
    fn new(random: &mut Random, experts: &Experts, slot_of: &[u32], routing: Routing) -> Case {
        let x = bf16_values(random, routing.tokens() * experts.hidden);
        let want = experts.expected(&x, &routing, slot_of);
        Case { routing, x, want }
    }

    fn check(&self, gpu: &Gpu, experts: &Experts, decoded: usize) {
        let got = run(gpu, experts, &self.x, &self.routing, decoded);
        let what = (experts.host[0].gate.layout, self.routing.tokens(), decoded);
        assert_close(what, &got, &self.want, experts.hidden, WHOLE, RELATIVE);
    }
}

/// Tokens with one expert each, `counts[e]` of expert e, in random order.
fn of_counts(random: &mut Random, counts: &[usize]) -> Routing {
    let mut ids: Vec<usize> = counts.iter().enumerate().flat_map(|(e, &count)| vec![e; count]).collect();
    for i in (1..ids.len()).rev() {
        ids.swap(i, random.below(i + 1));
    }
    route(ids.len(), counts.len(), 1, |token| vec![ids[token]])
}

fn in_order(experts: usize) -> Vec<u32> {
    (0..experts as u32).collect()
}

#[test]
fn experts_with_any_number_of_rows() {
    let (session, mut random) = (session(), random());
    let counts = [0, 1, 63, 0, 64, 65, 128, 129, 200];
    // Rows of INT4 in whole groups, and not.
    for (format, hidden, intermediate) in
        [(Format::Bf16, 136, 72), (Format::Int4Group32, 160, 96), (Format::Int4Group32, 136, 72)]
    {
        let experts = Experts::random(&session.gpu, &mut random, format, counts.len(), hidden, intermediate);
        let routing = of_counts(&mut random, &counts);
        let case = Case::new(&mut random, &experts, &in_order(counts.len()), routing);
        // Batches of one expert at least, of two with one left over, of all.
        let mut decoded = [0, 2, 1, 4, 9].into_iter();
        session.every_schedule(|gpu| case.check(gpu, &experts, decoded.next().unwrap()));
        assert_eq!(experts.pool.stale().unwrap(), None);
    }
}

/// As a layer of K2 sees tokens: 384 experts in slots of any order; few of them chosen, then all.
#[test]
fn experts_are_found_among_384_in_permuted_slots() {
    let (session, mut random) = (session(), random());
    let count = 384;
    for format in FORMATS {
        let experts = Experts::random(&session.gpu, &mut random, format, count, 64, 32);
        let mut slot_of = in_order(count);
        for i in (1..count).rev() {
            slot_of.swap(i, random.below(i + 1));
        }
        experts.pool.set_table(&slot_of).unwrap();
        let few = route(9, count, 8, |_| some(&mut random, count, 8));
        let ends = route(1, count, 2, |_| vec![0, count - 1]);
        let all = route(48, count, 8, |t| (t * 8..t * 8 + 8).collect());
        let cases = [few, ends, all].map(|routing| Case::new(&mut random, &experts, &slot_of, routing));
        session.every_schedule(|gpu| {
            for case in &cases {
                case.check(gpu, &experts, 100);
            }
        });
        assert_eq!(experts.pool.stale().unwrap(), None);
    }
}

/// More experts than a product takes groups.
#[test]
fn experts_are_found_among_1200() {
    let (session, mut random) = (session(), random());
    for format in FORMATS {
        let experts = Experts::random(&session.gpu, &mut random, format, 1200, 16, 8);
        let routing = route(3, 1200, 4, |t| vec![t, 1023 - t, 1024 + t, 1199 - t]);
        let case = Case::new(&mut random, &experts, &in_order(1200), routing);
        session.every_schedule(|gpu| case.check(gpu, &experts, 1200));
    }
}

#[test]
fn experts_at_the_sizes_of_k2() {
    let (session, mut random) = (session(), random());
    for format in FORMATS {
        for (hidden, intermediate) in [(7168, 40), (96, 2048)] {
            let experts = Experts::random(&session.gpu, &mut random, format, 3, hidden, intermediate);
            let routing = route(20, 3, 2, |t| vec![2, t % 2]);
            Case::new(&mut random, &experts, &in_order(3), routing).check(&session.gpu, &experts, 2);
        }
    }
}

#[test]
fn experts_without_tokens() {
    let (session, mut random) = (session(), random());
    let experts = Experts::random(&session.gpu, &mut random, Format::Int4Group32, 4, 64, 32);
    let routing = route(0, 4, 2, |_| unreachable!());
    Case::new(&mut random, &experts, &in_order(4), routing).check(&session.gpu, &experts, 4);
}

#[test]
fn an_expert_that_is_not_in_its_slot_is_reported_and_gives_nan() {
    let (session, mut random) = (session(), random());
    for format in FORMATS {
        let mut experts = Experts::random(&session.gpu, &mut random, format, 6, 144, 72);
        // Expert e is in slot 5 − e. Expert 1 has no rows, expert 2 two row tiles, the second of few rows.
        let slot_of: Vec<u32> = (0..6).rev().collect();
        let routing = of_counts(&mut random, &[3, 0, 140, 5, 2, 70]);
        let Case { routing, x, want } = Case::new(&mut random, &experts, &slot_of, routing);
        let check = |gpu: &_, experts: &Experts, missing: &[usize]| {
            let got = run(gpu, experts, &x, &routing, 4);
            let want: Vec<f32> = want
                .iter()
                .enumerate()
                .map(|(i, &v)| if missing.contains(&routing.pair(i / 144).1) { f32::NAN } else { v })
                .collect();
            assert_close((format, missing), &got, &want, 144, WHOLE, RELATIVE);
        };
        session.every_schedule(|gpu| {
            experts = Experts::upload(gpu, std::mem::take(&mut experts.host));
            let pool = &mut experts.pool;
            pool.set_table(&slot_of).unwrap();
            pool.set_generation(4, 2).unwrap();
            check(gpu, &experts, &[]);
            assert_eq!(experts.pool.stale().unwrap(), None, "expert 1 has no rows");

            experts.pool.set_generation(1, 2).unwrap();
            experts.pool.set_generation(3, 0).unwrap();
            check(gpu, &experts, &[2, 4]);
            assert_eq!(experts.pool.stale().unwrap(), Some((0, 2, 3)), "the smallest of both");

            let mut gone = slot_of.clone();
            gone[0] = 1000;
            experts.pool.set_table(&gone).unwrap();
            check(gpu, &experts, &[0, 2, 4]);
            assert_eq!(experts.pool.stale().unwrap(), Some((0, 0, 1000)), "a slot that is not there");
        });
    }
}

#[test]
fn an_expert_that_is_nowhere_is_left_out() {
    let (session, mut random) = (session(), random());
    for format in FORMATS {
        let experts = Experts::random(&session.gpu, &mut random, format, 6, 144, 72);
        // Row tiles of those left out come before, between and behind the others.
        let routing = of_counts(&mut random, &[3, 0, 140, 5, 2, 70]);
        session.every_schedule(|gpu| {
            for gone in [&[0, 3, 5][..], &[2, 4], &[0, 1, 2, 3, 4, 5]] {
                experts.check_without(
                    gpu,
                    &mut random,
                    &routing,
                    gone,
                    (WHOLE, RELATIVE),
                    |x, routing, out| {
                        let layer = experts.pool.layer(0);
                        let mut scratch =
                            ExpertBf16Scratch::new(gpu, routing.pairs(), layer, 4 * 144 * 72 * 2).unwrap();
                        expert_bf16::experts_bf16(gpu, x, layer, routing, &mut scratch, out).unwrap();
                    },
                );
            }
        });
    }
}

/// What is not finite in one expert or one token stays there.
#[test]
fn experts_keep_what_is_not_finite_in_its_place() {
    let (session, mut random) = (session(), random());
    for format in FORMATS {
        let mut host = Experts::random(&session.gpu, &mut random, format, 3, 160, 64).host;
        // Row 50 of expert 1's down is NaN.
        let down = &mut host[1].down;
        match format {
            Format::Bf16 => down.weight[(50 * 64 + 63) * 2..][..2].copy_from_slice(&bf16::NAN.to_le_bytes()),
            _ => down.scale[(50 * 2 + 1) * 2..][..2].copy_from_slice(&bf16::NAN.to_le_bytes()),
        }
        let experts = Experts::upload(&session.gpu, host);
        let mut x = bf16_values(&mut random, 9 * 160);
        x[4 * 160 + 159] = f32::INFINITY;
        let routing = route(9, 3, 2, |t| vec![t % 3, (t + 1) % 3]);
        let spoilt =
            |pair: usize, row: usize| routing.pair(pair).0 == 4 || row == 50 && routing.pair(pair).1 == 1;
        session.every_schedule(|gpu| {
            let got = run(gpu, &experts, &x, &routing, 2);
            // An infinity may meet weights of both signs or not: NaN or infinite.
            for (i, v) in got.iter().enumerate() {
                let (pair, row) = (i / 160, i % 160);
                assert_eq!(v.is_finite(), !spoilt(pair, row), "{format:?}: {v} at [{pair}, {row}]");
            }
        });
    }
}

/// Only experts that have rows are decoded, once a matrix; no bank conflicts.
#[test]
fn only_experts_with_rows_are_decoded() {
    let (session, mut random) = (session(), random());
    let (hidden, intermediate) = (1024, 256);
    let experts = Experts::random(&session.gpu, &mut random, Format::Int4Group32, 12, hidden, intermediate);
    let routing = route(3, 12, 2, |t| vec![2 + t, 10]);
    let case = Case::new(&mut random, &experts, &in_order(12), routing);
    let Some(counts) = session.counted(|gpu| case.check(gpu, &experts, 5)) else { return };
    let counts = &counts["int4_to_bf16"]["counters"];
    let moved = counts["dram_read_bytes"].as_u64().unwrap() + counts["dram_write_bytes"].as_u64().unwrap();
    let gate = &experts.host[0].gate;
    let least = 4 * 3 * (gate.weight.len() + gate.scale.len() + hidden * intermediate * 2) as u64;
    assert!(moved * 100 <= least * 105, "{moved} bytes, {least} at least");
    assert_eq!(counts["bank_replays"], 0);
}

/// The device uses these kernels where experts have many rows, the memory-bound ones where they have few.
#[test]
fn the_device_takes_the_kernels_that_suit_the_number_of_rows() {
    let (session, mut random) = (session(), random());
    for (format, experts, tokens, many) in [
        (Format::Bf16, 5, 40, false),
        (Format::Bf16, 5, 41, true),
        (Format::Int4Group32, 2, 128, false),
        (Format::Int4Group32, 2, 129, true),
    ] {
        let routing = route(tokens, experts, 2, |t| vec![t % experts, (t + 1) % experts]);
        let layer = Experts::random(&session.gpu, &mut random, format, experts, 64, 32);
        let case = Case::new(&mut random, &layer, &in_order(experts), routing);
        let counted = session.counted(|gpu| {
            let device = CudaDevice::new(gpu.clone());
            // Twice: the second time in scratch that is there.
            for _ in 0..2 {
                let got = layer.run_by(gpu, &case.x, &case.routing, |x, routing, out| {
                    device.experts(x, &layer.pool, 0, Pass::Residents, routing, out).unwrap();
                });
                assert_close((format, tokens), &got, &case.want, 64, WHOLE, RELATIVE);
            }
        });
        if let Some(counts) = counted {
            assert_eq!(counts.contains_key("group_slots"), many, "{format:?}, {tokens} tokens: {counts:?}");
        }
    }
}
