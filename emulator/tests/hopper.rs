//! Hopper's own instructions against plain arithmetic: wgmma in FP8 and from registers, tensor and bulk copies,
//! ldmatrix and stmatrix, in every schedule.

mod common;

use common::{Params, bytes, download, ptx, schedules, upload};
use cuda_emulator::check::Kind;
use cuda_emulator::exec::{Launch, Module};
use cuda_emulator::num::Rounding;
use cuda_emulator::num::small_float::{e4m3_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use cuda_emulator::settings::Fp8Accumulation;
use cuda_emulator::tensor::tensor_map::{Request, encode};
use cuda_emulator::{Memory, Settings};

const SEEDS: u64 = 5;

fn module() -> Module {
    Module::load(&ptx("hopper.cu", &[]), &Memory::new(64 << 20).unwrap()).unwrap()
}

fn tensor(
    data_type: u32,
    address: u64,
    dims: &[u64],
    strides: &[u64],
    boxes: &[u32],
    swizzle: u32,
) -> [u8; 128] {
    let map = encode(&Request {
        data_type,
        rank: dims.len() as u32,
        address,
        dims,
        strides,
        box_dims: boxes,
        element_strides: &vec![1; dims.len()],
        interleave: 0,
        swizzle,
        l2_promotion: 0,
        oob_fill: 0,
    });
    map.unwrap()
}

/// A generator for test data.
fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    }
}

/// Largest error of a kernel's C against f64, relative to the largest element.
fn fp8_error(module: &Module, kernel: &str, accumulation: Fp8Accumulation) -> f64 {
    const K: usize = 4096;
    let mut next = numbers(7);
    // Positive values of a few binades: sums grow, which is where short accumulators lose what is added late.
    let mut codes = || (0..64 * K).map(|_| 0x28 + (next() % 24) as u8).collect::<Vec<u8>>();
    let (a, b) = (codes(), codes());
    let memory = Memory::new(64 << 20).unwrap();
    let map =
        |data: &[u8]| tensor(0, upload(&memory, "tiles", data), &[K as u64, 64], &[K as u64], &[128, 64], 3);
    let c = memory.arena().allocate(64 * 64 * 4, "C".into()).unwrap();
    let params = Params::default().add(map(&a)).add(map(&b)).add(c).add(K as i32).0;
    let settings = Settings { fp8: accumulation, ..Settings::default() };
    let launch = Launch::linear(1, 128);
    module.kernel(kernel).unwrap().launch(&launch, &params, &memory, &settings).unwrap();
    let got = download::<f32>(c, 64 * 64);
    let value = |codes: &[u8], row: usize, k: usize| f64::from(e4m3_to_f32(codes[row * K + k]));
    let dot =
        |row: usize, column: usize| (0..K).map(|k| value(&a, row, k) * value(&b, column, k)).sum::<f64>();
    let (mut worst, mut largest) = (0f64, 0f64);
    for (i, got) in got.iter().enumerate() {
        let expected = dot(i / 64, i % 64);
        worst = worst.max((f64::from(*got) - expected).abs());
        largest = largest.max(expected.abs());
    }
    worst / largest
}

#[test]
fn fp8_products_lose_what_hardware_loses_unless_promoted() {
    let module = module();
    let error = |kernel, accumulation| fp8_error(&module, kernel, accumulation);
    let exact = error("fp8_plain", Fp8Accumulation::Exact);
    let plain = error("fp8_plain", Fp8Accumulation::Truncated);
    let promoted = error("fp8_promoted", Fp8Accumulation::Truncated);
    println!(
        "K = 4096: exact {exact:.1e}, truncated {plain:.1e}, truncated and promoted every 128 {promoted:.1e}"
    );
    assert!(exact < 1e-6, "{exact}");
    assert!(plain > 5e-3, "a kernel that forgets promotion would not be noticed: {plain}");
    assert!(promoted < plain / 5.0, "{promoted} against {plain}");
}

#[test]
fn wgmma_takes_a_from_registers_and_negates_it() {
    let module = module();
    let mut next = numbers(3);
    let mut small = || (0..64 * 16).map(|_| (next() % 17) as f32 - 8.0).collect::<Vec<f32>>();
    let (a, b) = (small(), small());
    let half =
        |v: &[f32]| bytes(&v.iter().map(|x| f32_to_bf16(*x, Rounding::Nearest, false)).collect::<Vec<_>>());
    let expected: Vec<f32> = (0..64 * 64)
        .map(|i| -(0..16).map(|k| a[i / 64 * 16 + k] * b[i % 64 * 16 + k]).sum::<f32>())
        .collect();
    for (name, settings) in schedules(SEEDS) {
        let memory = Memory::new(64 << 20).unwrap();
        let (a, b) = (upload(&memory, "A", &half(&a)), upload(&memory, "B", &half(&b)));
        let c = memory.arena().allocate(64 * 64 * 4, "C".into()).unwrap();
        let params = Params::default().add(a).add(b).add(c).0;
        let kernel = module.kernel("registers").unwrap();
        kernel
            .launch(&Launch::linear(1, 128), &params, &memory, &settings)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(download::<f32>(c, 64 * 64), expected, "{name}");
    }
}

#[test]
fn accumulators_are_free_once_their_group_is_waited_for() {
    const ROUNDS: i32 = 3;
    let module = module();
    let mut next = numbers(5);
    let mut small = || (0..64 * 16).map(|_| (next() % 17) as f32 - 8.0).collect::<Vec<f32>>();
    let (a, b) = (small(), small());
    let half =
        |v: &[f32]| bytes(&v.iter().map(|x| f32_to_bf16(*x, Rounding::Nearest, false)).collect::<Vec<_>>());
    let times = (2 * ROUNDS + 1) as f32;
    let expected: Vec<f32> = (0..64 * 64)
        .map(|i| times * (0..16).map(|k| a[i / 64 * 16 + k] * b[i % 64 * 16 + k]).sum::<f32>())
        .collect();
    let run = |kernel: &str, settings: &Settings| {
        let memory = Memory::new(64 << 20).unwrap();
        let (a, b) = (upload(&memory, "A", &half(&a)), upload(&memory, "B", &half(&b)));
        let c = memory.arena().allocate(64 * 64 * 4, "C".into()).unwrap();
        let params = Params::default().add(a).add(b).add(c).add(ROUNDS).0;
        let kernel = module.kernel(kernel).unwrap();
        let launched = kernel.launch(&Launch::linear(1, 128), &params, &memory, settings);
        launched.map(|_| download::<f32>(c, 64 * 64))
    };
    for (name, settings) in schedules(SEEDS) {
        let got = run("ping_pong_waited", &settings).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(got, expected, "{name}");
        let finding = run("ping_pong_early", &settings).expect_err(&name);
        assert_eq!(finding.kind, Kind::WgmmaAccumulator, "{name}: {finding}");
    }
    assert_eq!(run("ping_pong_waited", &Settings::fast()).unwrap(), expected);
}

#[test]
fn boxes_are_cut_at_the_edges_of_a_tensor() {
    let module = module();
    let (dims, boxes) = ([20u64, 6, 3], [16u32, 4, 2]);
    let values: Vec<u32> = (1..=20 * 6 * 3).collect();
    let at = |x: i64, y: i64, z: i64| {
        let inside = (0..20).contains(&x) && (0..6).contains(&y) && (0..3).contains(&z);
        inside.then_some(((z * 6 + y) * 20 + x) as usize)
    };
    for (x, y, z) in [(0, 0, 0), (4, 2, 1), (8, 3, 2), (-5, -1, -1), (19, 5, 2), (-16, 0, 0), (3, 7, 0)] {
        for (name, settings) in schedules(2) {
            let memory = Memory::new(64 << 20).unwrap();
            let from = upload(&memory, "from", &bytes(&values));
            let to = upload(&memory, "to", &vec![0u8; values.len() * 4]);
            let out = memory.arena().allocate(128 * 4, "out".into()).unwrap();
            let map = |address| tensor(2, address, &dims, &[80, 480], &boxes, 0);
            let params = Params::default().add(map(from)).add(map(to)).add(out).add(x).add(y).add(z).0;
            let kernel = module.kernel("boxes").unwrap();
            kernel
                .launch(&Launch::linear(1, 32), &params, &memory, &settings)
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            let got = download::<u32>(out, 128);
            let mut stored = vec![0u32; values.len()];
            for (i, got) in got.iter().enumerate() {
                let (dx, dy, dz) = (i as i64 % 16, i as i64 / 16 % 4, i as i64 / 64);
                let place = at(i64::from(x) + dx, i64::from(y) + dy, i64::from(z) + dz);
                assert_eq!(*got, place.map_or(0, |p| values[p]), "{name} ({x}, {y}, {z}) element {i}");
                if let Some(place) = place {
                    stored[place] = *got;
                }
            }
            assert_eq!(download::<u32>(to, values.len()), stored, "{name} ({x}, {y}, {z})");
        }
    }
}

#[test]
fn matrices_go_in_and_come_out_transposed() {
    let module = module();
    let halves: Vec<u16> = (0..256).collect();
    let expected: Vec<u16> = (0..256).map(|i| (i / 64 * 64 + i % 8 * 8 + i / 8 % 8) as u16).collect();
    for (name, settings) in schedules(SEEDS) {
        let memory = Memory::new(64 << 20).unwrap();
        let input = upload(&memory, "in", &bytes(&halves));
        let out = memory.arena().allocate(512, "out".into()).unwrap();
        let params = Params::default().add(input).add(out).0;
        let kernel = module.kernel("matrices").unwrap();
        kernel
            .launch(&Launch::linear(1, 128), &params, &memory, &settings)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(download::<u16>(out, 256), expected, "{name}");
    }
}

#[test]
fn mma_sync_multiplies_bf16_and_f16() {
    let module = module();
    let mut next = numbers(11);
    let mut small = |n: usize| (0..n).map(|_| (next() % 15) as f32 - 7.0).collect::<Vec<f32>>();
    let (a, b, c) = (small(16 * 16), small(8 * 16), small(16 * 8));
    let encode =
        |v: &[f32]| bytes(&v.iter().map(|x| f32_to_bf16(*x, Rounding::Nearest, false)).collect::<Vec<_>>());
    // What the same bits are as f16.
    let as_f16 = |v: &[f32]| -> Vec<f32> {
        v.iter().map(|x| f16_to_f32(f32_to_bf16(*x, Rounding::Nearest, false))).collect()
    };
    let product = |a: &[f32], b: &[f32]| -> Vec<f32> {
        (0..128).map(|i| (0..16).map(|k| a[i / 8 * 16 + k] * b[i % 8 * 16 + k]).sum()).collect()
    };
    let sums: Vec<f32> = product(&a, &b).iter().zip(&c).map(|(p, c)| p + c).collect();
    let halves = product(&as_f16(&a), &as_f16(&b));

    let memory = Memory::new(64 << 20).unwrap();
    let (at_a, at_b) = (upload(&memory, "A", &encode(&a)), upload(&memory, "B", &encode(&b)));
    let (at_c, half) =
        (upload(&memory, "C", &bytes(&c)), memory.arena().allocate(256, "half".into()).unwrap());
    let params = Params::default().add(at_a).add(at_b).add(at_c).add(half).0;
    module
        .kernel("products")
        .unwrap()
        .launch(&Launch::linear(1, 32), &params, &memory, &Settings::default())
        .unwrap();
    assert_eq!(download::<f32>(at_c, 128), sums);
    for (got, expected) in download::<u16>(half, 128).into_iter().zip(halves) {
        let difference = (f16_to_f32(got) - expected).abs();
        let step = f16_to_f32(f32_to_f16(expected, Rounding::Nearest, false)).abs() * 2f32.powi(-10);
        assert!(difference <= step, "{} for {expected}", f16_to_f32(got));
    }
}
