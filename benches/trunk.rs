//! What a layer does beside its experts, and sampling, on the CPU at Kimi-K2's sizes: `cargo bench --bench trunk`.
//!
//! One token, as decoding has it. Weights and caches of several layers are taken in turn, so that none is left in the caches. A
//! rate is of their bytes or of the arithmetic, whichever takes longer at best; a share is of plain reads or of multiply-adds on
//! registers by the same threads in the same rounds. What has little of either has a time only. Writes a table to stdout.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use abruzzi::ModelConfig;
use abruzzi::checkpoint::region::{HostMatrix, HostPart, HostRegion, OwnRegion};
use abruzzi::device::cpu::{CpuDevice, CpuTensor, ceiling};
use abruzzi::device::{Device, MlaCall, MlaForm, Precision, SampleSettings};
use abruzzi::quant::{Format, MatrixLayout};

/// Layers taken in turn: 0.5 GB of caches and projections.
const LAYERS: usize = 32;

/// Tokens in the cache.
const DEPTH: usize = 4096;

/// Rounds of which medians are taken.
const ROUNDS: usize = 7;

fn main() {
    let quick = std::env::args().any(|a| a == "--test");
    let rounds = if quick { 1 } else { ROUNDS };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/configs/kimi-k2-instruct.json");
    let config = ModelConfig::from_file(&file).expect("Kimi-K2's configuration");
    let most = CpuDevice::new(0).expect("threads").threads();

    println!("| threads | kernel | shape | time | rate | limit | share | spread |");
    println!("|---|---|---|--:|--:|--:|--:|---|");
    for threads in 1..=most.min(2) {
        let bench = Bench { device: CpuDevice::new(threads).expect("threads"), config: &config, rounds };
        bench.rms_norm();
        bench.router();
        bench.mla();
        bench.sample();
    }
}

/// What bounds a kernel, for one layer.
enum Bound {
    /// It has too little of either to be bound by.
    Nothing,
    /// Bytes of weights, each read once.
    Bytes(usize),
    /// Floating-point operations; a multiply-add counts two.
    Flops(usize),
}

struct Bench<'a> {
    device: CpuDevice,
    config: &'a ModelConfig,
    rounds: usize,
}

impl Bench<'_> {
    fn rms_norm(&self) {
        let cols = self.config.hidden_size;
        let (x, weight) = (self.tensor(1, cols), vec![1.0; cols].into_boxed_slice());
        let mut out = self.device.tensor(1, cols, Precision::Full).expect("memory");
        self.case("RMSNorm", &cols.to_string(), Bound::Nothing, |_| {
            self.device.rms_norm(&x, &weight, 1e-6, &mut out).expect("a norm");
        });
    }

    /// The product, then the choice.
    fn router(&self) {
        let (rows, cols) = (self.config.moe.num_experts, self.config.hidden_size);
        let layout = MatrixLayout { format: Format::Bf16, rows, cols };
        let routers: Vec<HostMatrix> = (0..LAYERS).map(|_| matrix(layout)).collect();
        let (x, bias) = (self.tensor(1, cols), vec![0.0; rows].into_boxed_slice());
        let mut scores = self.device.tensor(1, rows, Precision::Full).expect("memory");
        let mut routing = self.device.routing(1, &self.config.moe).expect("memory");
        self.case(
            "router, bf16",
            &format!("{rows} × {cols}"),
            Bound::Bytes(layout.weight_bytes()),
            |layer| {
                self.device.linear(&x, &routers[layer], &mut scores).expect("scores");
                self.device.route(&scores, &bias, &self.config.moe, &mut routing).expect("a choice");
            },
        );
    }

    fn mla(&self) {
        let a = &self.config.attention;
        let (heads, dim) = (a.num_heads, a.cached_dim());
        let layout = MatrixLayout {
            format: Format::Fp8Block,
            rows: heads * (a.nope_head_dim + a.v_head_dim),
            cols: a.kv_lora_rank,
        };
        let kv_b: Vec<HostMatrix> = (0..LAYERS).map(|_| matrix(layout)).collect();
        let mut cache = self.device.kv_cache(LAYERS, dim, None).expect("a cache");
        self.device.kv_reserve(&mut cache, DEPTH).expect("memory");
        let (kv_a, norm) = (self.tensor(DEPTH, dim), vec![1.0; a.kv_lora_rank].into_boxed_slice());
        for layer in 0..LAYERS {
            let rope = &self.config.rope;
            self.device.kv_append(&kv_a, &norm, 1e-6, rope, layer, 0, &mut cache).expect("a cache");
        }
        let q = self.tensor(1, heads * a.qk_head_dim());
        let mut out = self.device.tensor(1, heads * a.v_head_dim, Precision::Full).expect("memory");
        // Every head meets every cached token twice, for its score and for the sum; `kv_b` is applied to the head's query and to
        // that sum. At one token that takes longer than reading the cache.
        let flops = 2 * heads * DEPTH * (dim + a.kv_lora_rank) + 2 * layout.rows * layout.cols;
        self.case(
            "MLA, fp8-block",
            &format!("{heads} heads, {DEPTH} tokens"),
            Bound::Flops(flops),
            |layer| {
                let call = MlaCall { layer, start: DEPTH - 1, attention: a, form: MlaForm::Absorbed };
                self.device.mla(&q, &kv_b[layer], &cache, call, &mut out).expect("attention");
            },
        );
    }

    fn sample(&self) {
        let vocab = self.config.vocab_size;
        let logits = self.tensor(1, vocab);
        let usual = SampleSettings { temperature: 0.6, top_k: 40, top_p: 0.95, min_p: 0.0 };
        let greedy = SampleSettings { temperature: 0.0, ..usual };
        for (name, settings) in [("sample, greedy", greedy), ("sample, top-k 40, top-p 0.95", usual)] {
            self.case(name, &vocab.to_string(), Bound::Nothing, |_| {
                black_box(self.device.sample(&logits, &settings, 1 << 63).expect("a token"));
            });
        }
    }

    /// Runs a kernel for each layer, `rounds` times.
    fn case(&self, kernel: &str, shape: &str, bound: Bound, mut run: impl FnMut(usize)) {
        let workers = self.device.workers().expect("the CPU");
        let (work, unit, mut limit): (_, _, Box<dyn FnMut() -> f64>) = match bound {
            Bound::Nothing => (0, "", Box::new(|| 0.0)),
            Bound::Bytes(bytes) => {
                let mut region = OwnRegion::new(bytes * LAYERS, "memory to be read").expect("memory");
                region.bytes_mut().fill(1);
                let rate = move || region.bytes().len() as f64 / ceiling::read(workers, region.bytes());
                (bytes, "GB/s", Box::new(rate))
            }
            Bound::Flops(flops) => (flops, "GFLOP/s", Box::new(|| ceiling::multiply_adds(workers))),
        };
        let (mut seconds, mut limits) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            limits.push(limit());
            let begun = Instant::now();
            (0..LAYERS).for_each(&mut run);
            seconds.push(begun.elapsed().as_secs_f64() / LAYERS as f64);
        }
        seconds.sort_by(f64::total_cmp);
        limits.sort_by(f64::total_cmp);
        let (middle, limit) = (seconds[self.rounds / 2], limits[self.rounds / 2]);
        let rate = work as f64 / middle;
        let rate = match work {
            0 => "- | - | -".to_owned(),
            _ => format!(
                "{:.1} {unit} | {:.1} {unit} | {:.0} %",
                rate / 1e9,
                limit / 1e9,
                100.0 * rate / limit
            ),
        };
        println!(
            "| {} | {kernel} | {shape} | {:.1} µs | {rate} | {:.1}–{:.1} µs |",
            self.device.threads(),
            middle * 1e6,
            seconds[0] * 1e6,
            seconds[self.rounds - 1] * 1e6
        );
    }

    fn tensor(&self, rows: usize, cols: usize) -> CpuTensor {
        let mut tensor = self.device.tensor(rows, cols, Precision::Full).expect("memory");
        let word = |i: usize| (i as u32).wrapping_mul(0x9E37_79B9).rotate_left(11);
        let values: Vec<f32> = (0..rows * cols).map(|i| word(i) as f32 / u32::MAX as f32 - 0.5).collect();
        tensor.set(&values);
        tensor
    }
}

/// Small weights of both signs, and scales of 2^-6.
fn matrix(layout: MatrixLayout) -> HostMatrix {
    let (weights, scales) = (layout.weight_bytes(), layout.scale_bytes());
    let mut region = OwnRegion::new(weights + scales, "a matrix").expect("memory");
    let (weight, rest) = region.bytes_mut().split_at_mut(weights);
    // As bfloat16 of 2^-7 to 2^-6, or as finite codes.
    let (keep, set) =
        if layout.format == Format::Bf16 { (0x807f_807f, 0x3c00_3c00) } else { (0xb7b7_b7b7, 0) };
    for (i, word) in weight.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *word = ((i as u32).wrapping_mul(0x9E37_79B9).rotate_left(11) & keep | set).to_le_bytes();
    }
    rest[..scales].as_chunks_mut::<4>().0.fill((1.0f32 / 64.0).to_le_bytes());
    let region = Arc::new(HostRegion::Own(region));
    let scale = (scales > 0).then(|| HostPart { region: region.clone(), range: weights..weights + scales });
    HostMatrix { layout, weight: HostPart { region, range: 0..weights }, scale }
}
