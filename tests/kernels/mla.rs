use abruzzi::config::AttentionConfig;
use abruzzi::device::Precision;
use abruzzi::device::cuda::kernels::mla::{self, MlaScratch};
use abruzzi::device::cuda::{Buffer, CudaMatrix, CudaTensor, Gpu, KvPages};
use abruzzi::error::Error;
use abruzzi::quant::{Format, MatrixLayout, MatrixView};
use half::{bf16, f16};

use crate::harness::{Random, assert_close, download, poisoned_tensor, quick, random, session, some_of};

/// Tokens of a page.
const PAGE: usize = 64;

/// Latent, rotary, nope and v widths of Kimi-K2, of GLM (a head is 3½ scale blocks) and of the demo model.
const K2: [usize; 4] = [512, 64, 128, 128];
const GLM: [usize; 4] = [512, 64, 192, 256];
const DEMO: [usize; 4] = [128, 32, 64, 64];
/// Nothing a multiple of 64.
const ODD: [usize; 4] = [128, 32, 48, 80];

fn config([latent, rope, nope, v]: [usize; 4], heads: usize) -> AttentionConfig {
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
    fn new(gpu: &Gpu, random: &mut Random, rows: &[f32], dim: usize, stride: usize) -> Cache {
        let tokens = rows.len() / dim;
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

/// A matrix of values of about 1 / √cols, in a format, and its decoded values.
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
    let mut weight = Vec::with_capacity(layout.weight_bytes());
    match format {
        Format::Fp8Block => {
            // Scales that differ by much: a wrong block shows.
            for _ in 0..layout.scale_shape().unwrap().iter().product() {
                scale.extend_from_slice(&(norm * (random.unit() + 1.5)).to_le_bytes());
            }
            // ±0.125 to ±1.875.
            weight.extend((0..rows * cols).map(|_| random.bits() as u8 & 0x9f | 0x20));
        }
        Format::F32 => {
            weight.extend((0..rows * cols).flat_map(|_| (2.0 * random.unit() * norm).to_le_bytes()));
        }
        Format::F16 => {
            let values = (0..rows * cols).map(|_| f16::from_f32(2.0 * random.unit() * norm));
            weight.extend(values.flat_map(f16::to_le_bytes));
        }
        _ => {
            let values = (0..rows * cols).map(|_| bf16::from_f32(2.0 * random.unit() * norm));
            weight.extend(values.flat_map(bf16::to_le_bytes));
        }
    }
    from_bytes(gpu, layout, &weight, &scale)
}

fn from_bytes(gpu: &Gpu, layout: MatrixLayout, weight: &[u8], scale: &[u8]) -> (CudaMatrix, Vec<f32>) {
    let view = MatrixView::new(layout, weight, scale);
    let mut values = vec![0.0; layout.rows * layout.cols];
    for (row, out) in values.chunks_exact_mut(layout.cols).enumerate() {
        view.decode(row, 0, out);
    }
    (CudaMatrix::from_parts(gpu, layout, weight, scale).unwrap(), values)
}

impl Case {
    fn new(
        gpu: &Gpu,
        random: &mut Random,
        widths: [usize; 4],
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
        let cache = Cache::new(gpu, random, &cached, attention.cached_dim(), attention.cached_dim() + 8);
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

    fn run(&self, gpu: &Gpu, form: Form, scratch: &mut MlaScratch) -> Vec<f32> {
        let cols = self.attention.num_heads * self.attention.v_head_dim;
        let mut out = poisoned_tensor(gpu, self.tokens + 1, cols, Precision::Working);
        let launch = match form {
            Form::Decode => mla::decode,
            Form::Prefill => mla::prefill,
        };
        let pages = self.cache.pages();
        launch(gpu, &self.q, &self.kv_b, &pages, self.start, &self.attention, scratch, &mut out).unwrap();
        download(gpu, &out)
    }

    fn check(&self, form: Form, got: &[f32], want: &[f32]) {
        let a = &self.attention;
        let what = (form, a.nope_head_dim, a.num_heads, self.kv_b.layout().format, self.start, self.tokens);
        assert_close(what, got, want, a.num_heads * a.v_head_dim, 1e-4, 0.01);
    }
}

#[derive(Debug, Clone, Copy)]
enum Form {
    Decode,
    Prefill,
}

const BOTH: [Form; 2] = [Form::Decode, Form::Prefill];

/// Widths, heads, format, start, tokens.
type Shape = ([usize; 4], usize, Format, usize, usize);

/// Runs cases under every schedule with all checks.
fn under_every_schedule(form: Form, shapes: &[Shape], scratch: fn() -> MlaScratch) {
    let (session, mut random) = (session(), random());
    let cases: Vec<(Case, Vec<f32>)> = some_of(shapes, 5)
        .iter()
        .map(|&(widths, heads, format, start, tokens)| {
            let case = Case::new(&session.gpu, &mut random, widths, heads, format, start, tokens);
            let want = case.want();
            (case, want)
        })
        .collect();
    session.every_schedule(|gpu| {
        let mut scratch = scratch();
        for (case, want) in &cases {
            case.check(form, &case.run(gpu, form, &mut scratch), want);
        }
    });
}

#[test]
fn decode() {
    let shapes = [
        (K2, 64, Format::Fp8Block, 130, 1),
        (K2, 65, Format::Bf16, 62, 1),
        (K2, 4, Format::Bf16, 62, 2),
        (K2, 1, Format::Fp8Block, 0, 1),
        (GLM, 2, Format::Fp8Block, 64, 1),
        (DEMO, 16, Format::Bf16, 0, 1),
        (DEMO, 4, Format::Fp8Block, 199, 1),
        (DEMO, 4, Format::Fp8Block, 61, 5),
        (ODD, 3, Format::Fp8Block, 400, 2),
    ];
    under_every_schedule(Form::Decode, &shapes, MlaScratch::default);
}

#[test]
fn decode_goes_through_its_stages_again_and_again() {
    // One split: seven pages, two and four stages.
    let shapes = [(K2, 3, Format::Fp8Block, 400, 1), (DEMO, 2, Format::Bf16, 447, 2)];
    under_every_schedule(Form::Decode, &shapes, || MlaScratch::with_limits(0, 1));
}

#[test]
fn prefill() {
    let shapes = [
        (K2, 4, Format::Fp8Block, 0, 65),
        (K2, 1, Format::Bf16, 70, 3),
        (GLM, 1, Format::Fp8Block, 0, 70),
        (DEMO, 4, Format::Fp8Block, 0, 1),
        (DEMO, 4, Format::Bf16, 5, 130),
        (ODD, 3, Format::Fp8Block, 150, 17),
        // More tiles than stages.
        (DEMO, 2, Format::Fp8Block, 400, 20),
    ];
    under_every_schedule(Form::Prefill, &shapes, MlaScratch::default);
}

#[test]
fn prefill_goes_on_from_range_to_range() {
    // 128 positions at a time.
    let shapes = [(DEMO, 4, Format::Bf16, 0, 300), (ODD, 3, Format::Fp8Block, 250, 20)];
    under_every_schedule(Form::Prefill, &shapes, || MlaScratch::with_limits(0, usize::MAX));
}

#[test]
fn both_forms_at_every_length() {
    let (session, mut random) = (session(), random());
    session.fast(|gpu| {
        let mut scratch = MlaScratch::with_limits(1 << 20, usize::MAX);
        let long = 1000 + random.below(100);
        for &length in some_of(&[1, 65, 200, 2, 63, 64, 128, long], 3) {
            for tokens in [1, 2, 4, 5, 17, 64, 130] {
                // Long ones once in a while: the reference is slow.
                if length * tokens > 20_000 && random.below(2) == 0 {
                    continue;
                }
                let Some(start) = length.checked_sub(tokens) else { continue };
                let widths = [DEMO, ODD][random.below(2)];
                let heads = [1, 4, 16][random.below(3)];
                let format = [Format::Fp8Block, Format::Bf16][random.below(2)];
                let case = Case::new(gpu, &mut random, widths, heads, format, start, tokens);
                let want = case.want();
                for form in BOTH {
                    case.check(form, &case.run(gpu, form, &mut scratch), &want);
                }
            }
        }
        for format in [Format::F32, Format::F16] {
            for widths in [K2, DEMO] {
                let case = Case::new(gpu, &mut random, widths, 2, format, 100, 5);
                let want = case.want();
                for form in BOTH {
                    case.check(form, &case.run(gpu, form, &mut scratch), &want);
                }
            }
        }
        if quick() {
            return;
        }
        let case = Case::new(gpu, &mut random, K2, 64, Format::Fp8Block, 1000, 4);
        let want = case.want();
        for form in BOTH {
            case.check(form, &case.run(gpu, form, &mut scratch), &want);
        }
    });
}

#[test]
fn a_nan_is_seen_by_those_who_see_its_row() {
    let (session, mut random) = (session(), random());
    session.fast(|gpu| {
        let mut scratch = MlaScratch::default();
        for (start, tokens, bad) in
            [(62, 5, 62), (62, 5, 64), (62, 5, 66), (0, 70, 0), (0, 70, 69), (10, 135, 5), (10, 135, 77)]
        {
            // In the latent and in the rotated part.
            for (column, value) in [(3, f32::NAN), (130, f32::NAN), (100, f32::INFINITY)] {
                let attention = config(DEMO, 2);
                let dim = attention.cached_dim();
                let spoil = |cached: &mut [f32], _: &mut [f32]| cached[bad * dim + column] = value;
                let case = Case::with(gpu, &mut random, attention, Format::Fp8Block, start, tokens, spoil);
                let want = case.want();
                for (t, row) in want.chunks_exact(2 * DEMO[3]).enumerate() {
                    let seen = start + t >= bad;
                    assert!(row.iter().all(|v| v.is_nan() == seen), "the reference, query {t}");
                }
                for form in BOTH {
                    case.check(form, &case.run(gpu, form, &mut scratch), &want);
                }
            }
        }
    });
}

#[test]
fn a_nan_weight_spoils_its_column_or_its_head() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let attention = config(DEMO, 3);
    let layout = MatrixLayout { format: Format::Fp8Block, rows: 3 * 128, cols: 128 };
    let scale: Vec<u8> = [0.125f32; 3].iter().flat_map(|s| s.to_le_bytes()).collect();
    let mut weight: Vec<u8> =
        (0..layout.rows * layout.cols).map(|_| random.bits() as u8 & 0x9f | 0x20).collect();
    // A key row of head 0, a value row of head 1.
    weight[5 * 128 + 17] = 0x7f;
    weight[(128 + 64 + 9) * 128 + 99] = 0xff;
    let mut case = Case::new(gpu, &mut random, DEMO, 3, Format::Bf16, 3, 70);
    case.attention = attention;
    (case.kv_b, case.weights) = from_bytes(gpu, layout, &weight, &scale);
    let want = case.want();
    for (i, v) in want.iter().enumerate() {
        let column = i % 192;
        assert_eq!(v.is_nan(), column < 64 || column == 64 + 9, "the reference, column {column}");
    }
    for form in BOTH {
        case.check(form, &case.run(gpu, form, &mut MlaScratch::default()), &want);
    }
}

#[test]
fn scores_beyond_the_range_of_exp() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    for sign in [1.0, -1.0] {
        let attention = config(K2, 2);
        // A large score that all keys share changes nothing: 16 · 16 · 64 · scale = 1182.
        let lift = |cached: &mut [f32], q: &mut [f32]| {
            cached.chunks_exact_mut(576).for_each(|row| row[512..].fill(16.0 * sign));
            q.chunks_exact_mut(192).for_each(|row| row[128..].fill(16.0));
        };
        let case = Case::with(gpu, &mut random, attention, Format::Bf16, 150, 3, lift);
        let want = case.want();
        for form in BOTH {
            case.check(form, &case.run(gpu, form, &mut MlaScratch::default()), &want);
        }
    }
}

#[test]
fn what_there_is_no_kernel_for_is_refused() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let mut case = Case::new(gpu, &mut random, DEMO, 1, Format::Bf16, 0, 1);
    let refused = |case: &Case, names: &str| {
        let mut out = poisoned_tensor(gpu, 1, 64, Precision::Working);
        for launch in [mla::decode, mla::prefill] {
            let pages = case.cache.pages();
            let scratch = &mut MlaScratch::default();
            let result = launch(gpu, &case.q, &case.kv_b, &pages, 0, &case.attention, scratch, &mut out);
            let Err(Error::Unsupported { what, instead }) = result else { panic!("{result:?}") };
            assert!(what.contains(names) && instead.contains("--device cpu"), "{what}: {instead}");
        }
    };
    case.attention.kv_lora_rank = 256;
    refused(&case, "kv_lora_rank 256 with qk_rope_head_dim 32");
    case.attention = config(DEMO, 1);
    case.attention.nope_head_dim = 72;
    refused(&case, "qk_nope_head_dim 72");
    case.attention = config(DEMO, 1);
    case.attention.v_head_dim = 512;
    refused(&case, "v_head_dim 512");
}

/// Holds what kernels move to 1.05 times (name, bytes read, bytes written), and shared memory to no bank conflict.
fn assert_moved(counts: &serde_json::Map<String, serde_json::Value>, least: &[(&str, usize, usize)]) {
    for &(kernel, reads, writes) in least {
        let count = |what: &str| counts[kernel]["counters"][what].as_u64().unwrap();
        for (what, least) in [("dram_read_bytes", reads), ("dram_write_bytes", writes)] {
            let moved = count(what);
            assert!(moved * 100 <= least as u64 * 105, "{kernel}: {what} {moved}, {least} at least");
        }
        assert_eq!(count("bank_replays"), 0, "{kernel}");
    }
}

#[test]
fn decode_reads_cache_and_weights_once() {
    let (session, mut random) = (session(), random());
    let (heads, length) = (64, 1024);
    let gpu = &session.gpu;
    let mut case = Case::new(gpu, &mut random, K2, heads, Format::Fp8Block, length - 1, 1);
    // Rows as the engine's caches have them.
    case.cache = Cache::new(gpu, &mut random, &case.cached, 576, 576);
    let mut scratch = MlaScratch::default();
    let Some(counts) = session.counted(|gpu| drop(case.run(gpu, Form::Decode, &mut scratch))) else { return };
    let (half, query, mean) = (heads * 128 * 512, heads * 576 * 2, heads * 512 * 4);
    let splits = length / PAGE;
    let least = [
        ("mla_absorb_fp8", half + heads * 192 * 2, query),
        ("mla_attend_512_64", length * 576 * 2 + query, splits * mean),
        ("mla_combine", splits * mean, mean),
        ("mla_project_fp8_512", half + mean, heads * 128 * 2),
    ];
    assert_moved(&counts, &least);
}

#[test]
fn prefill_reads_cache_and_weights_once() {
    let (session, mut random) = (session(), random());
    let (heads, start, tokens) = (4, 192, 128);
    let gpu = &session.gpu;
    let mut case = Case::new(gpu, &mut random, K2, heads, Format::Fp8Block, start, tokens);
    case.cache = Cache::new(gpu, &mut random, &case.cached, 576, 576);
    let mut scratch = MlaScratch::default();
    let Some(counts) = session.counted(|gpu| drop(case.run(gpu, Form::Prefill, &mut scratch))) else {
        return;
    };
    let (length, rows) = (start + tokens, heads * 256);
    let (expanded, q) = (length * rows * 2, tokens * heads * 192 * 2);
    let least = [
        ("mla_expand_fp8_512", rows * 512 + length * 512 * 2, expanded),
        ("mla_prefill_128", expanded + length * 64 * 2 + q, tokens * heads * 128 * 2),
    ];
    assert_moved(&counts, &least);
}
