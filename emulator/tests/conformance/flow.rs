//! Warps, atomics, memory and control flow against plain loops.

use cuda_emulator::Memory;
use cuda_emulator::exec::{Launch, Module};

use crate::args;
use crate::common;
use crate::device::{Device, Random};
use crate::report::{Report, assert_same};

fn device() -> Device {
    Device::new(&common::ptx("flow.cu", &[]))
}

#[test]
fn warp_instructions() {
    let mut device = device();
    let mut report = Report::new("shuffles, votes, matches, reductions of a warp");
    let mut random = Random(31);
    for (blocks, threads) in [(1, 32), (5, 96)] {
        let n = blocks * threads;
        // Every other warp agrees in its upper bits.
        let input: Vec<i32> = (0..n)
            .map(|i| if i / 32 % 2 == 0 { random.range(0, 1 << 20) as i32 } else { random.next() as i32 })
            .collect();
        let mut expected = Vec::new();
        for warp in input.chunks(32) {
            for (lane, &x) in warp.iter().enumerate() {
                let mask =
                    |f: &dyn Fn(i32) -> bool| (0..32).fold(0u32, |m, l| m | u32::from(f(warp[l])) << l);
                let sum = |step: usize| (step..32).step_by(2).fold(0i32, |s, l| s.wrapping_add(warp[l]));
                let all = warp.iter().all(|y| y >> 20 == warp[0] >> 20);
                expected.extend([
                    warp[(x & 31) as usize],
                    if lane >= 3 { warp[lane - 3] } else { x },
                    if lane % 16 + 5 < 16 { warp[lane + 5] } else { x },
                    warp[lane ^ 9],
                    warp[lane / 8 * 8 + 2],
                    mask(&|y| y & 1 == 1) as i32,
                    i32::from(warp.contains(&77)) | i32::from(warp.iter().all(|&y| y < 1000)) << 1,
                    mask(&|y| y & 3 == x & 3) as i32,
                    if all { -1 ^ 1 } else { 0 },
                    sum(0).wrapping_add(sum(1)),
                    *warp.iter().min().unwrap(),
                    warp.iter().map(|&y| y as u32).max().unwrap() as i32,
                    warp.iter().fold(0, |s, y| s ^ y),
                    warp[lane ^ 1],
                    warp[31 - lane],
                    if lane % 2 == 1 { sum(1).wrapping_add(1) } else { warp[30] },
                ]);
            }
        }
        report.run("warps", n, &mut device, |d| {
            let (source, out) = (d.upload(&input), d.allocate::<i32>(16 * n));
            d.run("warps", &Launch::linear(blocks as u32, threads as u32), args![source, out]);
            assert_same("warps", &d.download(out, 16 * n), &expected);
            d.free(&[source, out]);
        });
    }
    report.print();
}

#[test]
fn atomics() {
    let mut device = device();
    let mut report = Report::new("atomics");
    let mut random = Random(32);
    for (n, threads) in [(1000usize, 64u32), (77, 32), (4096, 256)] {
        let input = random.vec(n, |r| r.next() as i32);
        let blocks = n.div_ceil(threads as usize) as u32;
        let fold = |start: u32, f: &dyn Fn(u32, i32) -> u32| input.iter().fold(start, |t, &x| f(t, x));
        let expected = [
            fold(5, &|t, x| t.wrapping_add(x as u32)),
            fold(6, &|t, x| t.wrapping_sub(x as u32)),
            input.iter().copied().min().unwrap() as u32,
            fold(0, &|t, x| t.max(x as u32)),
            fold(u32::MAX, &|t, x| t & (x | 0xff) as u32),
            fold(0, &|t, x| t | (x & 0xff0) as u32),
            fold(9, &|t, x| t ^ x as u32),
            // As many steps as the counters have values.
            0,
            0,
            n.div_ceil(2) as u32 * 3,
            fold(0, &|t, x| t + (x & 0xff) as u32),
            n as u32 / 2 * 3,
            n as u32,
            2 * n as u32,
            0xabcd,
        ];
        let start = [5u32, 6, i32::MAX as u32, 0, u32::MAX, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1];
        let longs = [
            input.iter().fold(0u64, |t, &x| t.wrapping_add((x as u64).wrapping_mul(1_000_003))),
            (i64::from(*input.iter().max().unwrap()) << 20) as u64,
            u64::from(input.iter().map(|&x| x as u32).min().unwrap()) << 10,
            input.iter().map(|&x| (x & 15) as u64).sum(),
            (0..n).fold(0u64, |t, i| t.wrapping_add(1 << (i & 31))),
        ];
        let floats = [input.iter().map(|&x| (x & 7) as f32).sum::<f32>()];
        let doubles = [input.iter().map(|&x| f64::from(x & 1023) * 0.5).sum::<f64>()];
        report.run("atomics", n, &mut device, |d| {
            let buffers = [
                d.upload(&input),
                d.upload(&start),
                d.upload(&[0u64, i64::MIN as u64, u64::MAX, 0, 0]),
                d.upload(&[0f32]),
                d.upload(&[0f64]),
                d.allocate::<u32>(n),
            ];
            let [source, totals, long, float, double, order] = buffers;
            let launch = Launch::linear(blocks, threads);
            d.run("atomics", &launch, args![source, totals, long, float, double, order, n as i32]);
            assert_same("totals", &d.download(totals, 15), &expected);
            assert_same("64 bits", &d.download(long, 5), &longs);
            assert_same("f32", &d.download(float, 1), &floats);
            assert_same("f64", &d.download(double, 1), &doubles);
            let mut seen: Vec<u32> = d.download(order, n);
            seen.sort_unstable();
            assert_same("counters", &seen, &(0..n as u32).collect::<Vec<_>>());
            d.free(&buffers);
        });
    }
    report.print();
}

#[test]
fn memory_and_tables() {
    let mut device = device();
    let mut report = Report::new("local arrays, constant and global tables, vectors");
    let mut random = Random(33);
    let n = 500;
    let input = random.vec(n, |r| r.range(0, 100_000) as i32);
    let vectors: Vec<[i32; 4]> = random.vec(n, |r| std::array::from_fn(|_| r.next() as i32));
    let primes = [2, 3, 5, 7, 11, 13, 17, 19];
    let words = ["zero", "one", "three"];
    let mixed = [(b'a', 0.5, [1, -2]), (b'b', -4.25, [300, 4])];
    let (mut expected, mut swapped) = (Vec::new(), Vec::new());
    for (i, &x) in input.iter().enumerate() {
        let mut local: [i32; 16] = std::array::from_fn(|j| j as i32 * x);
        for j in 0..16 {
            local[(j * 5 + x as usize) & 15] += primes[j & 7];
        }
        let sum = (0..16).fold(0i64, |s, j| s * 3 + i64::from(local[(j ^ x as usize) & 15]));
        let letters = words[x as usize % 3].bytes().fold(0i32, |l, c| l.wrapping_mul(7) + i32::from(c));
        let (tag, value, pair) = mixed[i & 1];
        let small = letters + i32::from(tag) + (value * 4.0) as i32 + pair[i >> 1 & 1];
        expected.push(sum + 10i64.pow(x as u32 % 5) + i64::from(small));
        let [a, b, c, d] = vectors[i];
        swapped.push([d, c, b.wrapping_add(x & 3), a]);
    }
    report.run("memory", n, &mut device, |d| {
        let (source, vector, out) = (d.upload(&input), d.upload(&vectors), d.allocate::<i64>(n));
        d.run("memory", &Launch::linear(8, 64), args![source, vector, out, n as i32]);
        assert_same("memory", &d.download(out, n), &expected);
        assert_same("vectors", &d.download::<[i32; 4]>(vector, n), &swapped);
        d.free(&[source, vector, out]);
    });
    report.print();
}

/// What `flow` computes of one number.
fn flowed(x: i32) -> (i32, i32, f64) {
    if x <= 0 {
        return (-1, x, 0.0);
    }
    let (mut steps, mut at) = (0, x);
    while at != 1 {
        at = if at & 1 == 1 { 3 * at + 1 } else { at / 2 };
        steps += 1;
    }
    let y = match x % 11 {
        0 => x * 7 + 1,
        1 => x ^ 0x1234,
        2 => !x + 99,
        3 => x + 99,
        4 => x / 3,
        5 => (0..x & 7).fold(x, |y, j| y.wrapping_add(j.wrapping_mul(y))),
        6 => -x,
        7 => x.count_ones() as i32,
        8 => x << 3 | 5,
        _ => 42,
    };
    let (half, k) = (f64::from(x as f32 * 0.5), f64::from(x as i16));
    (steps, y, half * half + k * half + (2.0 * half + k))
}

#[test]
fn control_flow() {
    let mut device = device();
    let mut report = Report::new("loops, switches, calls, coordinates, barriers");
    let mut random = Random(34);
    let n = 777;
    let input = random.vec(n, |r| r.range(-50, 10_000) as i32);
    let (mut integers, mut reals) = (Vec::new(), Vec::new());
    for &x in &input {
        let (steps, y, real) = flowed(x);
        integers.extend([steps, y]);
        reals.push(real);
    }
    report.run("flow", n, &mut device, |d| {
        let (source, out, real) = (d.upload(&input), d.allocate::<i32>(2 * n), d.allocate::<f64>(n));
        d.run("flow", &Launch::linear(7, 128), args![source, out, real, n as i32]);
        assert_same("flow", &d.download(out, 2 * n), &integers);
        assert_same("reals", &d.download(real, n), &reals);
        d.free(&[source, out, real]);
    });

    let (grid, block) = ([3u32, 2, 4], [5u32, 7, 3]);
    let launch = Launch { grid, block, cluster: [1, 1, 1], dynamic_shared: 0 };
    let mut expected = Vec::new();
    for b in 0..grid.iter().product::<u32>() {
        for t in 0..block.iter().product::<u32>() {
            let at = |n: u32, size: [u32; 3]| [n % size[0], n / size[0] % size[1], n / (size[0] * size[1])];
            let ([bx, by, bz], [tx, ty, tz]) = (at(b, grid), at(t, block));
            expected.extend([
                tx | ty << 4 | tz << 8 | bx << 12 | by << 16 | bz << 20,
                (t % 32) | ((t / 32) << 8),
            ]);
        }
    }
    report.run("coordinates", "3×2×4 blocks of 5×7×3", &mut device, |d| {
        let out = d.allocate::<u32>(expected.len());
        d.run("coordinates", &launch, args![out]);
        assert_same("coordinates", &d.download(out, expected.len()), &expected);
        d.free(&[out]);
    });

    report.run("clocks", "3 blocks of 128", &mut device, |d| {
        let out = d.allocate::<i64>(3 * 96);
        d.run("clocks", &Launch::linear(3, 128), args![out]);
        assert_same("clocks", &d.download(out, 3 * 96), &[1i64; 3 * 96]);
        d.free(&[out]);
    });

    let input = random.vec(4 * 160, |r| r.range(-52, 1000) as i32);
    let mut expected = Vec::new();
    for part in input.chunks(160) {
        let odd = part.iter().filter(|&x| x & 1 == 1).count() as i32;
        let (any, all) = (part.contains(&5), part.iter().all(|&x| x > -50));
        expected.extend(part.iter().rev().map(|x| x * 4096 + odd * 4 + i32::from(any) * 2 + i32::from(all)));
    }
    report.run("reverse", input.len(), &mut device, |d| {
        let (source, out) = (d.upload(&input), d.allocate::<i32>(input.len()));
        d.run("reverse", &Launch { dynamic_shared: 640, ..Launch::linear(4, 160) }, args![source, out]);
        assert_same("reverse", &d.download(out, input.len()), &expected);
        d.free(&[source, out]);
    });
    report.print();
}

/// Calls are inlined, so a function that calls itself is refused when the module is loaded, by name.
#[test]
fn recursion_is_refused() {
    let memory = Memory::new(1 << 20).unwrap();
    let error = match Module::load(&common::ptx("recursion.cu", &[]), &memory) {
        Ok(_) => panic!("recursion was not refused"),
        Err(error) => error.to_string(),
    };
    for part in ["recursion", "ackermann", "calls itself; recursion is not supported", "PTX line"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(error.len() < 400, "{error}");
}
