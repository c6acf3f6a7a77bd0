use abruzzi::device::cuda::kernels::rope;
use abruzzi::device::cuda::{Buffer, CudaTensor, Gpu, KvPages};
use abruzzi::device::{KV_PAGE, Precision};
use half::bf16;

use crate::harness::{Random, download, poisoned_tensor, random, random_tensor, session};

/// theta^(−2i / dim), as models have it: the first is 1.
fn frequencies(dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|i| 50000f32.powf(-((2 * i) as f32) / dim as f32)).collect()
}

/// The rotated part in f64, of the f32 angle, and how far a bf16 of it may be off: half a unit in the last place, and
/// 2⁻²⁰ of the pair for the angle.
fn rotated(part: &[f32], position: usize, inv_freq: &[f32], amplitude: f32) -> (Vec<f64>, Vec<f64>) {
    let half = part.len() / 2;
    let (mut out, mut slack) = (vec![0.0; part.len()], vec![0.0; part.len()]);
    for (i, freq) in inv_freq.iter().enumerate() {
        let (sin, cos) = f64::from(position as f32 * freq).sin_cos();
        let (a, b) = (f64::from(part[2 * i]), f64::from(part[2 * i + 1]));
        let amplitude = f64::from(amplitude);
        (out[i], out[half + i]) = ((a * cos - b * sin) * amplitude, (b * cos + a * sin) * amplitude);
        let pair = a.hypot(b) * amplitude * 2f64.powi(-20);
        for at in [i, half + i] {
            slack[at] = out[at].abs() * 2f64.powi(-8) * 1.001 + pair;
        }
    }
    (out, slack)
}

fn assert_rotated(what: impl std::fmt::Debug, got: &[f32], (want, slack): (Vec<f64>, Vec<f64>)) {
    for (i, &g) in got.iter().enumerate() {
        let same = if want[i].is_nan() { g.is_nan() } else { (f64::from(g) - want[i]).abs() <= slack[i] };
        assert!(same, "{what:?} element {i}: {g} for {}", want[i]);
    }
}

/// The largest context of a known model, sincosf's bound for its long way, and the first pages.
const STARTS: [usize; 5] = [0, 63, 105_613, 262_140, (1 << 24) - 4];

#[test]
fn rope_query() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for (i, (tokens, heads, nope, dim)) in [
            (4, 64, 128, 64),
            (3, 5, 64, 32),
            (4, 1, 8, 16),
            (2, 3, 0, 512),
            (3, 2, 16, 128),
            // Not whole vectors, and more pairs than threads.
            (3, 5, 7, 2),
            (2, 3, 8, 48),
            (2, 2, 5, 64),
            (1, 2, 3, 4096),
            (1, 3, 16, 1024),
        ]
        .into_iter()
        .enumerate()
        {
            let (start, amplitude) = (STARTS[i % STARTS.len()], [1.0, 0.75, 1.3][i % 3]);
            let head = nope + dim;
            let (mut q, values) = random_tensor(gpu, &mut random, tokens, heads * head, Precision::Working);
            let inv_freq = frequencies(dim);
            let device_freq = gpu.upload(&inv_freq, "frequencies").unwrap();
            rope::rope_query(gpu, &mut q, start, heads, nope, dim, device_freq.all(), amplitude).unwrap();
            let got = download(gpu, &q);
            for (n, (got, before)) in got.chunks_exact(head).zip(values.chunks_exact(head)).enumerate() {
                let (token, h) = (n / heads, n % heads);
                let what = (tokens, heads, nope, dim, token, h);
                assert_eq!(got[..nope], before[..nope], "{what:?}: the part that does not turn");
                let want = rotated(&before[nope..], start + token, &inv_freq, amplitude);
                assert_rotated(what, &got[nope..], want);
            }
        }
    });
}

/// Position by position over a stretch where the angle crosses every quadrant, and NaN and infinities in a pair.
#[test]
fn every_quadrant_and_values_that_are_none() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let (tokens, dim) = (40, 16);
    let (_, mut values) = random_tensor(gpu, &mut random, tokens, dim, Precision::Working);
    values[dim + 3] = f32::NAN;
    values[2 * dim + 8] = f32::INFINITY;
    let mut q = CudaTensor::upload(gpu, dim, Precision::Working, &values).unwrap();
    let inv_freq = frequencies(dim);
    let device_freq = gpu.upload(&inv_freq, "frequencies").unwrap();
    rope::rope_query(gpu, &mut q, 0, 1, 0, dim, device_freq.all(), 1.0).unwrap();
    for (t, (got, before)) in download(gpu, &q).chunks_exact(dim).zip(values.chunks_exact(dim)).enumerate() {
        let (want, mut slack) = rotated(before, t, &inv_freq, 1.0);
        // ∞ · cos is infinite with the sign of cos; a difference of two of them is neither side's to bound.
        for (w, s) in want.iter().zip(&mut slack) {
            if w.is_infinite() {
                *s = f64::INFINITY;
            }
        }
        let pairs = got.iter().zip(&want).filter(|(_, w)| w.is_infinite());
        for (g, w) in pairs {
            assert_eq!(f64::from(*g), *w, "token {t}");
        }
        let finite: Vec<f32> =
            got.iter().zip(&want).map(|(g, w)| if w.is_infinite() { 0.0 } else { *g }).collect();
        assert_rotated(t, &finite, (want, slack));
    }
}

#[test]
fn rope_query_moves_only_the_rotary_part() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let (tokens, heads, nope, dim) = (16, 64, 128, 64);
    let (mut q, _) = random_tensor(gpu, &mut random, tokens, heads * (nope + dim), Precision::Working);
    let inv_freq = gpu.upload(&frequencies(dim), "frequencies").unwrap();
    let Some(counts) = session.counted(|gpu| {
        rope::rope_query(gpu, &mut q, 5, heads, nope, dim, inv_freq.all(), 1.0).unwrap();
    }) else {
        return;
    };
    let counts = &counts["rope_query"]["counters"];
    let moved = counts["dram_read_bytes"].as_u64().unwrap() + counts["dram_write_bytes"].as_u64().unwrap();
    let least = (tokens * heads * dim * 2 * 2) as u64;
    assert!(moved * 100 <= least * 105, "{moved} bytes, {least} at least");
    assert_eq!(counts["bank_replays"], 0);
}

/// A cache of two layers whose pages lie apart and out of order, all NaN.
struct Cache {
    pages: Vec<Buffer<u16>>,
    table: Buffer<u64>,
    stride: usize,
}

const LAYERS: usize = 2;

impl Cache {
    fn new(gpu: &Gpu, pages: usize, dim: usize) -> Cache {
        let stride = dim.next_multiple_of(8);
        let mut pages: Vec<Buffer<u16>> =
            (0..pages).map(|_| gpu.alloc(LAYERS * KV_PAGE * stride, "a page").unwrap()).collect();
        pages.reverse();
        for page in &mut pages {
            page.all_mut().fill_bytes(gpu, 0xff).unwrap();
        }
        let table: Vec<u64> = pages.iter().map(|page| page.all().address()).collect();
        Cache { pages, table: gpu.upload(&table, "a page table").unwrap(), stride }
    }

    fn layer(&self, layer: usize, tokens: usize) -> KvPages<'_> {
        KvPages {
            table: self.table.all(),
            layer_offset: (layer * KV_PAGE * self.stride * 2) as u64,
            stride: self.stride as u32,
            tokens: tokens as u32,
        }
    }

    /// Every element, in the order layer, position; padding included.
    fn download(&self) -> Vec<Vec<u16>> {
        let pages: Vec<Vec<u16>> = self.pages.iter().map(|page| page.download().unwrap()).collect();
        let part = KV_PAGE * self.stride;
        (0..LAYERS)
            .map(|layer| pages.iter().flat_map(|page| &page[layer * part..][..part]).copied().collect())
            .collect()
    }
}

fn check_append(
    gpu: &Gpu,
    random: &mut Random,
    (tokens, latent, dim): (usize, usize, usize),
    start: usize,
    amplitude: f32,
) {
    let layer = 1;
    let cache = Cache::new(gpu, (start + tokens).div_ceil(KV_PAGE), latent + dim);
    let (kv_a, values) = random_tensor(gpu, random, tokens, latent + dim, Precision::Working);
    let norm = random.normals(latent);
    let device_norm = gpu.upload(&norm, "a norm").unwrap();
    let inv_freq = frequencies(dim);
    let device_freq = gpu.upload(&inv_freq, "frequencies").unwrap();
    let pages = cache.layer(layer, start + tokens);
    let (norm_at, freq_at) = (device_norm.all(), device_freq.all());
    rope::kv_append(gpu, &kv_a, norm_at, 1e-6, freq_at, amplitude, start, &pages).unwrap();

    let found = cache.download();
    assert!(found[1 - layer].iter().all(|&bits| bits == 0xffff), "the other layer");
    for (position, row) in found[layer].chunks_exact(cache.stride).enumerate() {
        let what = (tokens, latent, dim, start, position);
        if !(start..start + tokens).contains(&position) {
            assert!(row.iter().all(|&bits| bits == 0xffff), "{what:?}: written");
            continue;
        }
        let before = &values[(position - start) * (latent + dim)..][..latent + dim];
        let got: Vec<f32> = row.iter().map(|&bits| bf16::from_bits(bits).to_f32()).collect();
        let mean = before[..latent].iter().map(|v| f64::from(v * v)).sum::<f64>() / latent as f64;
        for (i, (v, w)) in before.iter().zip(&norm).enumerate() {
            let want = f64::from(*v) / (mean + 1e-6).sqrt() * f64::from(*w);
            let error = (f64::from(got[i]) - want).abs();
            assert!(error <= want.abs() * 2f64.powi(-8) * 1.001, "{what:?} {i}: {} for {want}", got[i]);
        }
        assert_rotated(
            what,
            &got[latent..latent + dim],
            rotated(&before[latent..], position, &inv_freq, amplitude),
        );
        assert!(row[latent + dim..].iter().all(|&bits| bits == 0xffff), "{what:?}: padding");
    }
}

#[test]
fn kv_append() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        check_append(gpu, &mut random, (1, 512, 64), 0, 1.0);
        check_append(gpu, &mut random, (9, 512, 64), 60, 1.0);
        check_append(gpu, &mut random, (70, 128, 32), 127, 1.3);
        check_append(gpu, &mut random, (5, 7, 2), 62, 0.75);
        check_append(gpu, &mut random, (3, 1000, 130), 63, 1.0);
        check_append(gpu, &mut random, (17, 8, 6), 0, 1.0);
    });
}

#[test]
fn kv_append_far_into_a_context() {
    let (session, mut random) = (session(), random());
    session.fast(|gpu| check_append(gpu, &mut random, (3, 16, 64), 131_069, 1.0));
}

#[test]
fn no_tokens_append_nothing() {
    let session = session();
    let gpu = &session.gpu;
    let cache = Cache::new(gpu, 1, 16);
    let kv_a = poisoned_tensor(gpu, 2, 16, Precision::Working);
    let norm = gpu.upload(&[1.0f32; 8], "a norm").unwrap();
    let inv_freq = gpu.upload(&[1.0f32; 4], "frequencies").unwrap();
    rope::kv_append(gpu, &kv_a, norm.all(), 1e-6, inv_freq.all(), 1.0, 0, &cache.layer(0, 0)).unwrap();
    assert!(cache.download().iter().flatten().all(|&bits| bits == 0xffff));
}

#[test]
fn kv_append_moves_each_byte_once() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let (tokens, latent, dim) = (256, 512, 64);
    let cache = Cache::new(gpu, tokens / KV_PAGE, latent + dim);
    let (kv_a, _) = random_tensor(gpu, &mut random, tokens, latent + dim, Precision::Working);
    let norm = gpu.upload(&vec![1.0f32; latent], "a norm").unwrap();
    let inv_freq = gpu.upload(&frequencies(dim), "frequencies").unwrap();
    let Some(counts) = session.counted(|gpu| {
        let pages = cache.layer(0, tokens);
        rope::kv_append(gpu, &kv_a, norm.all(), 1e-6, inv_freq.all(), 1.0, 0, &pages).unwrap();
    }) else {
        return;
    };
    let counts = &counts["kv_append"]["counters"];
    let moved = counts["dram_read_bytes"].as_u64().unwrap() + counts["dram_write_bytes"].as_u64().unwrap();
    let least = (tokens * (latent + dim) * 2 * 2) as u64;
    assert!(moved * 100 <= least * 105, "{moved} bytes, {least} at least");
    assert_eq!(counts["bank_replays"], 0);
}
