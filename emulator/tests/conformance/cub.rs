//! CUB's collectives against plain loops.

use cuda_emulator::exec::Launch;

use crate::args;
use crate::common;
use crate::device::{Device, Random};
use crate::report::{Report, assert_same};

/// (threads a block, items a thread) that `kernels/cub.cu` has entries for.
const SHAPES: [(u32, u32); 3] = [(32, 7), (128, 4), (256, 3)];

fn device() -> Device {
    Device::new(&common::ptx("cub.cu", &[]))
}

/// Item counts: a full tile, one item, ragged ends.
fn counts(tile: usize) -> [usize; 4] {
    [tile, 1, 3 * tile + tile / 2 + 1, 5 * tile - 1]
}

#[test]
fn block_scans_and_reductions() {
    let mut device = device();
    let mut report = Report::new("CUB: block scan, block reduce");
    let mut random = Random(1);
    for (threads, items) in SHAPES {
        let tile = (threads * items) as usize;
        for n in counts(tile) {
            let input = random.vec(n, |r| r.next() as i32);
            let launch = Launch::linear(n.div_ceil(tile) as u32, threads);
            let sum = |part: &[i32]| part.iter().fold(0i32, |a, b| a.wrapping_add(*b));
            let sums: Vec<i32> = input.chunks(tile).map(sum).collect();
            for algorithm in ["raking", "warps"] {
                let name = format!("scan_{algorithm}_{threads}_{items}");
                for inclusive in [0, 1] {
                    let mut expected = Vec::new();
                    for part in input.chunks(tile) {
                        expected.extend((0..part.len()).map(|i| sum(&part[..i + inclusive])));
                    }
                    report.run(&name, n, &mut device, |d| {
                        let source = d.upload(&input);
                        let (out, out_sums) = (d.allocate::<i32>(n), d.allocate::<i32>(sums.len()));
                        d.run(&name, &launch, args![source, out, out_sums, n as i32, inclusive as i32]);
                        assert_same(&name, &d.download(out, n), &expected);
                        assert_same(&name, &d.download(out_sums, sums.len()), &sums);
                        d.free(&[source, out, out_sums]);
                    });
                }
            }
            let mut expected = Vec::new();
            for (part, sum_of_part) in input.chunks(tile).zip(&sums) {
                let firsts = &part[..part.len().min(threads as usize)];
                expected.extend([*sum_of_part, *firsts.iter().max().unwrap(), sum(firsts)]);
            }
            let name = format!("reduce_{threads}_{items}");
            report.run(&name, n, &mut device, |d| {
                let (source, out) = (d.upload(&input), d.allocate::<i32>(expected.len()));
                d.run(&name, &launch, args![source, out, n as i32]);
                assert_same(&name, &d.download(out, expected.len()), &expected);
                d.free(&[source, out]);
            });
        }
    }
    report.print();
}

#[test]
fn block_radix_sort() {
    let mut device = device();
    let mut report = Report::new("CUB: block radix sort, 32-bit keys and values");
    let mut random = Random(2);
    for (threads, items) in SHAPES {
        let tile = (threads * items) as usize;
        for (n, descending) in counts(tile).into_iter().zip([0i32, 1, 1, 0]) {
            // Few distinct keys in every other run: stability shows.
            let mask = if n % 2 == 0 { u32::MAX } else { 0xf000_000f };
            let pairs = random.vec(n, |r| (r.next() as u32 & mask, r.next() as u32));
            let (keys, values): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
            let mut sorted = pairs.clone();
            for part in sorted.chunks_mut(tile) {
                part.sort_by_key(|&(key, _)| if descending == 1 { !key } else { key });
            }
            let (sorted_keys, sorted_values): (Vec<u32>, Vec<u32>) = sorted.into_iter().unzip();
            let name = format!("sort_{threads}_{items}");
            report.run(&name, n, &mut device, |d| {
                let (k, v) = (d.upload(&keys), d.upload(&values));
                let launch = Launch::linear(n.div_ceil(tile) as u32, threads);
                d.run(&name, &launch, args![k, v, n as i32, descending]);
                assert_same(&name, &d.download(k, n), &sorted_keys);
                assert_same(&name, &d.download(v, n), &sorted_values);
                d.free(&[k, v]);
            });
        }
    }
    report.print();
}

#[test]
fn block_histograms_and_exchanges() {
    let mut device = device();
    let mut report = Report::new("CUB: block histogram, block exchange");
    let mut random = Random(3);
    for (threads, items) in SHAPES {
        let tile = (threads * items) as usize;
        for blocks in [1, 5] {
            let n = tile * blocks;
            let launch = Launch::linear(blocks as u32, threads);
            // Skewed, so that lanes of a warp meet in one bin.
            let input = random.vec(n, |r| (r.next() & r.next() & 0xff) as u8);
            let mut expected = vec![0u32; 256 * blocks];
            for (i, &v) in input.iter().enumerate() {
                expected[i / tile * 256 + v as usize] += 1;
            }
            for algorithm in ["atomic", "sort"] {
                let name = format!("histogram_{algorithm}_{threads}_{items}");
                report.run(&name, n, &mut device, |d| {
                    let (source, out) = (d.upload(&input), d.allocate::<u32>(expected.len()));
                    d.run(&name, &launch, args![source, out]);
                    assert_same(&name, &d.download(out, expected.len()), &expected);
                    d.free(&[source, out]);
                });
            }
            let input = random.vec(n, Random::next);
            let mut ranks: Vec<i32> = (0..n).map(|i| (i % tile) as i32).collect();
            for part in ranks.chunks_mut(tile) {
                for i in (1..tile).rev() {
                    part.swap(i, random.range(0, i as i64 + 1) as usize);
                }
            }
            let mut expected = vec![0u64; n];
            for i in 0..n {
                expected[i / tile * tile + ranks[i] as usize] = input[i];
            }
            let name = format!("exchange_{threads}_{items}");
            report.run(&name, n, &mut device, |d| {
                let (source, rank, out) = (d.upload(&input), d.upload(&ranks), d.allocate::<u64>(n));
                d.run(&name, &launch, args![source, rank, out]);
                assert_same(&name, &d.download(out, n), &expected);
                d.free(&[source, rank, out]);
            });
        }
    }
    report.print();
}

#[test]
fn warp_collectives() {
    let mut device = device();
    let mut report = Report::new("CUB: warp reduce, segmented reduce, warp scan");
    let mut random = Random(4);
    for (threads, width) in [(64usize, 32), (128, 16), (96, 4), (12, 12)] {
        for (n, valid) in [(threads, width), (1, 1), (7 * threads + 5, width / 2)] {
            let (blocks, padded) = (n.div_ceil(threads), n.div_ceil(threads) * threads);
            let mut input = random.vec(n, |r| r.range(-1_000_000, 1_000_000) as i32);
            let mut heads = random.vec(n, |r| i32::from(r.next().is_multiple_of(3)));
            let shown = (input.clone(), heads.clone());
            input.resize(padded, 0);
            heads.resize(padded, 1);
            let mut expected = Vec::new();
            for w in (0..padded).step_by(width) {
                for i in w..w + width {
                    let end = (i + 1..w + width).find(|&j| heads[j] == 1).unwrap_or(w + width);
                    // Only the first lane of a warp and of a segment has the reduction: zero elsewhere.
                    let segment = i == w || heads[i] == 1;
                    expected.push([
                        if i == w { input[w..w + valid].iter().sum() } else { 0 },
                        input[w..i].iter().sum::<i32>(),
                        *input[w..=i].iter().max().unwrap(),
                        if segment { input[i..end].iter().sum() } else { 0 },
                    ]);
                }
            }
            expected.truncate(n);
            let name = format!("warp_{threads}_{width}");
            report.run(&name, n, &mut device, |d| {
                let (source, head) = (d.upload(&shown.0), d.upload(&shown.1));
                let out = d.allocate::<[i32; 4]>(n);
                let launch = Launch::linear(blocks as u32, threads as u32);
                d.run(&name, &launch, args![source, head, out, n as i32, valid as i32]);
                let mut got: Vec<[i32; 4]> = d.download(out, n);
                for i in 0..n {
                    got[i][0] *= i32::from(i % width == 0);
                    got[i][3] *= i32::from(i % width == 0 || heads[i] == 1);
                }
                assert_same(&name, &got, &expected);
                d.free(&[source, head, out]);
            });
        }
    }
    report.print();
}

#[test]
fn decoupled_look_back() {
    let mut device = device();
    let mut report = Report::new("CUB: single-pass scan with decoupled look-back");
    let mut random = Random(5);
    for (threads, items) in SHAPES {
        let tile = (threads * items) as usize;
        for n in [1, tile, 100 * tile + 17] {
            let tiles = n.div_ceil(tile);
            let input = random.vec(n, |r| r.next() as i32);
            let mut sum = 0i32;
            let expected: Vec<i32> = input.iter().map(|v| (sum = sum.wrapping_add(*v), sum).1).collect();
            let name = format!("lookback_{threads}_{items}");
            report.run(&name, n, &mut device, |d| {
                let needed = d.allocate::<u64>(1);
                d.run("lookback_bytes", &Launch::linear(1, 1), args![needed, tiles as i32]);
                let bytes = d.download::<u64>(needed, 1)[0];
                let state = d.allocate::<u8>(bytes as usize);
                let init = Launch::linear(tiles.div_ceil(128) as u32 + 1, 128);
                d.run("lookback_init", &init, args![state, bytes, tiles as i32]);
                let (source, out) = (d.upload(&input), d.allocate::<i32>(n));
                let launch = Launch::linear(tiles as u32, threads);
                d.run(&name, &launch, args![source, out, n as i32, state, bytes]);
                assert_same(&name, &d.download(out, n), &expected);
                d.free(&[needed, state, source, out]);
            });
        }
    }
    report.print();
}
