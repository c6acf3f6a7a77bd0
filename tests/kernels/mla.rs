use abruzzi::config::AttentionConfig;
use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::mla::{self, MlaScratch};
use abruzzi::device::cuda::{Buffer, CudaMatrix, CudaTensor, Gpu, KvPages};
use abruzzi::quant::{Format, MatrixLayout, MatrixView, fp8};
use half::{bf16, f16};

use crate::harness::{Random, Session, assert_close, download, poisoned_tensor, random, session};

/// Tokens of a page.
const PAGE: usize = 64;

/// Kimi-K2's heads, the demo model's, GLM's.
const K2: [usize; 5] = [512, 64, 128, 128, 64];
const DEMO: [usize; 5] = [128, 32, 64, 64, 16];

/// Latent, rotary, nope and v widths, then heads.
fn config([latent, rope, nope, v, _]: [usize; 5], heads: usize) -> AttentionConfig {
    AttentionConfig {
        num_heads: heads,
        q_lora_rank: None,
        kv_lora_rank: latent,
        nope_head_dim: nope,
        rope_head_dim: rope,
        v_head_dim: v,
        softmax_scale: ((nope + rope) as f32).powf(-0.5),
    }
}

/// One call's inputs, on the device and as the numbers they are there.
struct Case {
    attention: AttentionConfig,
    start: usize,
    tokens: usize,
    kv_b: CudaMatrix,
    /// [heads · (nope + v), latent].
    weights: Vec<f32>,
    q: CudaTensor,
    q_values: Vec<f32>,
    /// Cached rows [start + tokens, latent + rope].
    cached: Vec<f32>,
    cache: Cache,
}

/// Pages in shuffled order. What no token was written to is NaN, and the table has entries beyond the last page that lead
/// nowhere.
struct Cache {
    _pages: Buffer<u16>,
    table: Buffer<u64>,
    stride: usize,
    layer_offset: u64,
}

impl Cache {
    fn new(gpu: &Gpu, random: &mut Random, rows: &[f32], dim: usize) -> Cache {
        let (stride, tokens) = (dim + 8, rows.len() / dim);
        let count = tokens.div_ceil(PAGE);
        // Layers before and behind the one that is read.
        let layers = 3;
        let (layer, page) = (PAGE * stride, layers * PAGE * stride);
        let mut order: Vec<usize> = (0..count).collect();
        for i in (1..count).rev() {
            order.swap(i, random.below(i + 1));
        }
        let mut host = vec![0xffffu16; count * page];
        for (position, row) in rows.chunks_exact(dim).enumerate() {
            let at = order[position / PAGE] * page + layer + position % PAGE * stride;
            for (to, v) in host[at..].iter_mut().zip(row) {
                *to = bf16::from_f32(*v).to_bits();
            }
        }
        let pages = gpu.upload(&host, "pages").unwrap();
        let mut table: Vec<u64> =
            order.iter().map(|p| pages.all().address() + (p * page * 2) as u64).collect();
        table.extend([0xdead_beef_0000_0000u64; 3]);
        Cache {
            _pages: pages,
            table: gpu.upload(&table, "a table").unwrap(),
            stride,
            layer_offset: (layer * 2) as u64,
        }
    }

    fn pages(&self) -> KvPages<'_> {
        KvPages {
            table: self.table.all(),
            layer_offset: self.layer_offset,
            stride: self.stride as u32,
            tokens: (self.table.len() * PAGE) as u32,
        }
    }
}

/// A matrix of about normal values / √cols, in a format; its decoded values.
fn matrix(
    gpu: &Gpu,
    random: &mut Random,
    format: Format,
    rows: usize,
    cols: usize,
) -> (CudaMatrix, Vec<f32>) {
    let layout = MatrixLayout { format, rows, cols };
    let norm = (cols as f32).powf(-0.5);
    let mut scale = Vec::new();
    let weight: Vec<u8> = match format {
        Format::Fp8Block => {
            // Scales that differ by much: a wrong block shows.
            let blocks: usize = layout.scale_shape().unwrap().iter().product();
            for _ in 0..blocks {
                scale.extend_from_slice(&(norm * (random.unit() + 1.5)).to_le_bytes());
            }
            (0..rows * cols).map(|_| code(random.normal())).collect()
        }
        Format::F32 => (0..rows * cols).flat_map(|_| (random.normal() * norm).to_le_bytes()).collect(),
        Format::F16 => {
            (0..rows * cols).flat_map(|_| f16::from_f32(random.normal() * norm).to_le_bytes()).collect()
        }
        _ => (0..rows * cols).flat_map(|_| bf16::from_f32(random.normal() * norm).to_le_bytes()).collect(),
    };
    let view = MatrixView::new(layout, &weight, &scale);
    let mut values = vec![0.0; rows * cols];
    for (row, out) in values.chunks_exact_mut(cols).enumerate() {
        view.decode(row, 0, out);
    }
    (CudaMatrix::from_parts(gpu, layout, &weight, &scale).unwrap(), values)
}

/// An e4m3 code near a value.
fn code(value: f32) -> u8 {
    let magnitude = value.abs().clamp(0.02, 4.0);
    let exponent = magnitude.log2().floor();
    let mantissa = ((magnitude / exponent.exp2() - 1.0) * 8.0) as u8;
    let code = ((exponent as i32 + 7) as u8) << 3 | mantissa;
    if value < 0.0 { code | 0x80 } else { code }
}

impl Case {
    fn new(
        gpu: &Gpu,
        random: &mut Random,
        widths: [usize; 5],
        heads: usize,
        format: Format,
        start: usize,
        tokens: usize,
    ) -> Case {
        Case::with(gpu, random, config(widths, heads), format, start, tokens, |_, _| {})
    }

    /// With a chance to change the cached rows and the queries first.
    fn with(
        gpu: &Gpu,
        random: &mut Random,
        attention: AttentionConfig,
        format: Format,
        start: usize,
        tokens: usize,
        change: impl FnOnce(&mut [f32], &mut [f32]),
    ) -> Case {
        let heads = attention.num_heads;
        let mut round =
            |count| -> Vec<f32> { (0..count).map(|_| bf16::from_f32(random.normal()).to_f32()).collect() };
        let mut cached = round((start + tokens) * attention.cached_dim());
        let mut q_values = round(tokens * heads * attention.qk_head_dim());
        change(&mut cached, &mut q_values);
        let rows = heads * (attention.nope_head_dim + attention.v_head_dim);
        let (kv_b, weights) = matrix(gpu, random, format, rows, attention.kv_lora_rank);
        let q = CudaTensor::upload(gpu, heads * attention.qk_head_dim(), Precision::Working, &q_values);
        let cache = Cache::new(gpu, random, &cached, attention.cached_dim());
        Case { attention, start, tokens, kv_b, weights, q: q.unwrap(), q_values, cached, cache }
    }

    /// The formula of `Device::mla`, expanded, in f64.
    fn want(&self) -> Vec<f32> {
        let a = &self.attention;
        let (latent, nope, v, heads) = (a.kv_lora_rank, a.nope_head_dim, a.v_head_dim, a.num_heads);
        let mut out = vec![0.0; self.tokens * heads * v];
        let dot = |x: &[f32], y: &[f32]| -> f64 {
            x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        };
        for h in 0..heads {
            let rows: Vec<&[f32]> =
                self.weights[h * (nope + v) * latent..][..(nope + v) * latent].chunks_exact(latent).collect();
            let cached: Vec<&[f32]> = self.cached.chunks_exact(a.cached_dim()).collect();
            for t in 0..self.tokens {
                let q = &self.q_values[(t * heads + h) * a.qk_head_dim()..][..a.qk_head_dim()];
                // Absorbed, which is fewer products; sums in f64 make the forms equal.
                let mut query = vec![0f64; latent];
                for (row, q) in rows[..nope].iter().zip(q) {
                    query.iter_mut().zip(*row).for_each(|(s, w)| *s += f64::from(*q) * f64::from(*w));
                }
                let scores: Vec<f64> = cached[..self.start + t + 1]
                    .iter()
                    .map(|c| {
                        let absorbed: f64 = query.iter().zip(*c).map(|(q, c)| q * f64::from(*c)).sum();
                        (absorbed + dot(&q[nope..], &c[latent..])) * f64::from(a.softmax_scale)
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let mut mixed = vec![0f64; latent];
                for (w, c) in weights.iter().zip(&cached) {
                    mixed.iter_mut().zip(*c).for_each(|(m, c)| *m += w / sum * f64::from(*c));
                }
                for (o, row) in out[(t * heads + h) * v..].iter_mut().zip(&rows[nope..]) {
                    *o = row.iter().zip(&mixed).map(|(w, m)| f64::from(*w) * m).sum::<f64>() as f32;
                }
            }
        }
        out
    }

    fn out(&self, gpu: &Gpu) -> CudaTensor {
        let cols = self.attention.num_heads * self.attention.v_head_dim;
        poisoned_tensor(gpu, self.tokens + 1, cols, Precision::Working)
    }

    fn decode(&self, gpu: &Gpu, scratch: &mut MlaScratch) -> Vec<f32> {
        let mut out = self.out(gpu);
        let pages = self.cache.pages();
        mla::decode(gpu, &self.q, &self.kv_b, &pages, self.start, &self.attention, scratch, &mut out)
            .unwrap();
        download(gpu, &out)
    }

    fn check(&self, what: &str, got: &[f32], want: &[f32]) {
        let a = &self.attention;
        let what = (what, a.num_heads, self.kv_b.layout().format, self.start, self.tokens);
        assert_close(what, got, want, a.num_heads * a.v_head_dim, 1e-4, 0.01);
    }
}

#[test]
fn decode() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        let mut scratch = MlaScratch::default();
        for (widths, heads, format, start, tokens) in [
            (K2, 64, Format::Fp8Block, 130, 1),
            (K2, 4, Format::Bf16, 62, 2),
            (K2, 1, Format::Fp8Block, 0, 1),
            (DEMO, 16, Format::Bf16, 0, 1),
            (DEMO, 4, Format::Fp8Block, 199, 1),
            (DEMO, 4, Format::Fp8Block, 61, 4),
        ] {
            let case = Case::new(gpu, &mut random, widths, heads, format, start, tokens);
            case.check("decode", &case.decode(gpu, &mut scratch), &case.want());
        }
    });
}
