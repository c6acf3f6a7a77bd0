//! Small calls of each kernel: large enough that its loops are most of it, small enough to be executed a step at a time.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use abruzzi::ModelConfig;
use abruzzi::checkpoint::region::{HostMatrix, HostPart, HostRegion, OwnRegion};
use abruzzi::checkpoint::weights::GatedMlp;
use abruzzi::config::{AttentionConfig, MoeConfig};
use abruzzi::device::cpu::{CpuDevice, CpuTensor, HostJob, Isa};
use abruzzi::device::{Device, MlaCall, MlaForm, Precision, SampleSettings};
use abruzzi::quant::{Format, MatrixLayout};

/// What is done with a case: its kernel, its shape, the call.
pub type Visit<'a> = &'a mut dyn FnMut(&str, &str, &mut dyn FnMut());

/// Visits the kernels that are compiled for several instruction sets, on one thread, with the set of the environment.
pub fn visit_kernels(visit: Visit<'_>) {
    let mut cases = Cases::new(visit);
    for format in [Format::Fp8Block, Format::Int4Group32, Format::Bf16] {
        cases.expert(format, 1, 4);
        cases.expert(format, 4, 2);
    }
    cases.expert(Format::Fp8Block, 32, 1);
    for format in [Format::Fp8Block, Format::Bf16, Format::F32] {
        cases.linear(format, 1, 4);
    }
    for format in [Format::Int4Group32, Format::Bf16] {
        cases.linear(format, 32, 1);
    }
    cases.mla(MlaForm::Absorbed, 2, 32, 1);
    cases.mla(MlaForm::Expanded, 1, 0, 8);
}

/// Visits those that are the same with every set.
pub fn visit_others(visit: Visit<'_>) {
    let mut cases = Cases::new(visit);
    cases.rms_norm(1024);
    cases.route();
    cases.rotations();
    cases.sample(128);
}

struct Cases<'a> {
    device: CpuDevice,
    config: ModelConfig,
    visit: Visit<'a>,
}

/// Rows of a matrix: a tile of `narrow.rs`, and as many as `gemm.rs` multiplies at once.
const ROWS: usize = 12;

/// Columns of a span of eight registers, in which a row of weights is taken: what a set does in the same number of steps.
fn span(isa: Isa) -> usize {
    match isa {
        Isa::Portable => 32,
        Isa::Avx2 => 64,
        Isa::Avx512 | Isa::Avx512Vbmi | Isa::Amx => 128,
    }
}

impl<'a> Cases<'a> {
    fn new(visit: Visit<'a>) -> Cases<'a> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/configs/kimi-k2-instruct.json");
        let config = ModelConfig::from_file(&file).expect("Kimi-K2's configuration");
        Cases { device: CpuDevice::new(1).expect("a thread"), config, visit }
    }

    /// An expert: `rows.rs` for one token, `narrow.rs` for a few, `gemm.rs` or `amx/` for many. Its down matrix has few rows, or they would
    /// be most of the count; it is computed as linear ones are.
    fn expert(&mut self, format: Format, tokens: usize, spans: usize) {
        let hidden = spans * span(self.device.isa());
        let gate = MatrixLayout { format, rows: ROWS, cols: hidden };
        let down = MatrixLayout { format, rows: ROWS, cols: ROWS };
        let mlp = GatedMlp { gate: matrix(gate), up: matrix(gate), down: matrix(down) };
        let x = values(tokens * hidden);
        let mut out = vec![0.0; tokens * down.rows];
        let workers = self.device.workers().expect("the CPU");
        let kernel = format!("expert {}", format.name());
        (self.visit)(&kernel, &of_tokens(tokens, &of_spans(spans)), &mut || {
            let view = mlp.map(HostMatrix::view);
            let job = HostJob { mlp: view, tokens: (0..tokens as u32).collect(), out: &mut out };
            workers.host_experts(&x, &mut [job]).expect("an expert");
        });
    }

    fn linear(&mut self, format: Format, tokens: usize, spans: usize) {
        let cols = spans * span(self.device.isa());
        let w = matrix(MatrixLayout { format, rows: ROWS, cols });
        let (x, mut out) = (self.tensor(tokens, cols), self.tensor(0, ROWS));
        let kernel = format!("linear {}", format.name());
        (self.visit)(&kernel, &of_tokens(tokens, &of_spans(spans)), &mut || {
            self.device.linear(&x, &w, &mut out).expect("a product");
        });
    }

    fn rms_norm(&mut self, cols: usize) {
        let (x, weight) = (self.tensor(1, cols), vec![1.0; cols].into_boxed_slice());
        let mut out = self.tensor(0, cols);
        (self.visit)("RMSNorm", &cols.to_string(), &mut || {
            self.device.rms_norm(&x, &weight, 1e-6, &mut out).expect("a norm");
        });
    }

    /// The choice; the product before it is a linear one.
    fn route(&mut self) {
        let moe = MoeConfig { num_experts: 96, ..self.config.moe };
        let (scores, bias) = (self.tensor(1, moe.num_experts), vec![0.0; moe.num_experts].into_boxed_slice());
        let mut routing = self.device.routing(1, &moe).expect("memory");
        (self.visit)("router", &format!("{} of {}", moe.top_k, moe.num_experts), &mut || {
            self.device.route(&scores, &bias, &moe, &mut routing).expect("a choice");
        });
    }

    /// Rotation of queries, and what is put into the cache.
    fn rotations(&mut self) {
        let a = AttentionConfig { num_heads: 4, ..self.config.attention };
        let mut q = self.tensor(1, a.num_heads * a.qk_head_dim());
        (self.visit)("RoPE", &format!("{} heads", a.num_heads), &mut || {
            self.device.rope_query(&mut q, 1000, &a, &self.config.rope).expect("a rotation");
        });
        let (kv_a, norm) = (self.tensor(1, a.cached_dim()), vec![1.0; a.kv_lora_rank].into_boxed_slice());
        let mut cache = self.device.kv_cache(1, a.cached_dim(), None).expect("a cache");
        self.device.kv_reserve(&mut cache, 1).expect("memory");
        (self.visit)("latent to cache", &a.cached_dim().to_string(), &mut || {
            let rope = &self.config.rope;
            self.device.kv_append(&kv_a, &norm, 1e-6, rope, 0, 0, &mut cache).expect("a row");
        });
    }

    /// Attention of `tokens` behind `before`, with a latent of a span and heads of an eighth of Kimi-K2's widths.
    fn mla(&mut self, form: MlaForm, heads: usize, before: usize, tokens: usize) {
        let a = AttentionConfig {
            num_heads: heads,
            kv_lora_rank: span(self.device.isa()),
            nope_head_dim: 16,
            rope_head_dim: 8,
            v_head_dim: 16,
            ..self.config.attention
        };
        let mut rope = self.config.rope.clone();
        rope.inv_freq.truncate(a.rope_head_dim / 2);
        let rows = a.num_heads * (a.nope_head_dim + a.v_head_dim);
        let kv_b = matrix(MatrixLayout { format: Format::Bf16, rows, cols: a.kv_lora_rank });
        let cached = before + tokens;
        let mut cache = self.device.kv_cache(1, a.cached_dim(), None).expect("a cache");
        self.device.kv_reserve(&mut cache, cached).expect("memory");
        let (kv_a, norm) =
            (self.tensor(cached, a.cached_dim()), vec![1.0; a.kv_lora_rank].into_boxed_slice());
        self.device.kv_append(&kv_a, &norm, 1e-6, &rope, 0, 0, &mut cache).expect("rows");
        let q = self.tensor(tokens, a.num_heads * a.qk_head_dim());
        let mut out = self.tensor(0, a.num_heads * a.v_head_dim);
        let call = MlaCall { layer: 0, start: before, attention: &a, form };
        let kernel = match form {
            MlaForm::Absorbed => "MLA, absorbed",
            MlaForm::Expanded => "MLA, expanded",
        };
        let shape = format!("{heads} × 1 span, {cached} cached");
        (self.visit)(kernel, &of_tokens(tokens, &shape), &mut || {
            self.device.mla(&q, &kv_b, &cache, call, &mut out).expect("attention");
        });
    }

    fn sample(&mut self, vocab: usize) {
        let logits = self.tensor(1, vocab);
        let usual = SampleSettings { temperature: 0.6, top_k: 8, top_p: 0.95, min_p: 0.0 };
        let greedy = SampleSettings { temperature: 0.0, ..usual };
        for (kernel, settings) in [("sample, greedy", greedy), ("sample, top-k 8, top-p 0.95", usual)] {
            (self.visit)(kernel, &vocab.to_string(), &mut || {
                black_box(self.device.sample(&logits, &settings, 1 << 63).expect("a token"));
            });
        }
    }

    fn tensor(&self, rows: usize, cols: usize) -> CpuTensor {
        let mut tensor = self.device.tensor(rows, cols, Precision::Full).expect("memory");
        tensor.set(&values(rows * cols));
        tensor
    }
}

fn of_tokens(tokens: usize, shape: &str) -> String {
    let plural = if tokens == 1 { "" } else { "s" };
    format!("{tokens} token{plural}, {shape}")
}

fn of_spans(spans: usize) -> String {
    let plural = if spans == 1 { "" } else { "s" };
    format!("{ROWS} × {spans} span{plural}")
}

fn word(i: usize) -> u32 {
    (i as u32).wrapping_mul(0x9E37_79B9).rotate_left(11)
}

/// From −½ to ½.
fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| word(i) as f32 / u32::MAX as f32 - 0.5).collect()
}

/// Small weights of both signs, and scales of about 2^-6.
fn matrix(layout: MatrixLayout) -> HostMatrix {
    let (weights, scales) = (layout.weight_bytes(), layout.scale_bytes());
    let mut region = OwnRegion::new(weights + scales, "a matrix").expect("memory");
    let (weight, rest) = region.bytes_mut().split_at_mut(weights);
    // bfloat16 of 2^-7 to 2^-6, f32 of about as much, finite codes of FP8, or any nibbles.
    let (keep, set) = match layout.format {
        Format::Bf16 => (0x807f_807f, 0x3c00_3c00),
        Format::F32 => (0x807f_ffff, 0x3c00_0000),
        Format::Fp8Block => (0xb7b7_b7b7, 0),
        Format::Int4Group32 => (u32::MAX, 0),
        Format::F16 => (0x83ff_83ff, 0x2000_2000),
    };
    for (i, bytes) in weight.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *bytes = (word(i) & keep | set).to_le_bytes();
    }
    let scale = if layout.format == Format::Int4Group32 { 0x3c80_3c80 } else { (1.0f32 / 64.0).to_bits() };
    rest[..scales].as_chunks_mut::<4>().0.fill(scale.to_le_bytes());
    let region = Arc::new(HostRegion::Own(region));
    let scale = (scales > 0).then(|| HostPart { region: region.clone(), range: weights..weights + scales });
    HostMatrix { layout, weight: HostPart { region, range: 0..weights }, scale }
}
