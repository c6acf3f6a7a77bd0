//! How fast the emulator is, on one core: thread-instructions a second on plain kernels, FLOP/s on wgmma of bf16 and of
//! FP8 summed either way, with and without checks. By CPU time, as the machine may be busy.
//! `cargo bench -p cuda-emulator --bench speed`

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::time::Duration;

use common::{Params, bytes, ptx, upload};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use cuda_emulator::exec::{Launch, Module};
use cuda_emulator::settings::Fp8Accumulation::{self, Exact, Truncated};
use cuda_emulator::{Memory, Settings};

/// Time this thread has computed, in which others have no part. Launches with one thread run in the caller's.
fn cpu_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec to write to.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
    assert_eq!(failed, 0, "no clock of the thread's own");
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn settings(fp8: Fp8Accumulation) -> [(&'static str, Settings); 2] {
    let one = |settings| Settings { threads: 1, fp8, ..settings };
    [("fast", one(Settings::fast())), ("checked", one(Settings::default()))]
}

fn speed(c: &mut Criterion) {
    let memory = Memory::new(1 << 30).expect("address space");
    let module = Module::load(&ptx("speed.cu", &[]), &memory).expect("the kernels load");
    let n = 64 * 256;
    let x = upload(&memory, "x", &bytes(&vec![1.5f32; n]));
    let y = upload(&memory, "y", &bytes(&vec![0f32; n]));
    let w = upload(&memory, "w", &vec![0x38u8; n * 16]);
    let scales = upload(&memory, "scales", &bytes(&vec![0.5f32; n / 8]));
    let out = upload(&memory, "out", &vec![0u8; n * 32]);
    let a = upload(&memory, "a", &bytes(&vec![0x3f80u16; 64 * 64]));
    let b = upload(&memory, "b", &bytes(&vec![0x3f80u16; 256 * 64]));
    let product = upload(&memory, "product", &vec![0u8; 4 * 64 * 256 * 4]);

    let plain = Launch::linear(64, 256);
    let matrix = Launch { dynamic_shared: 8192 + 32768, ..Launch::linear(4, 128) };
    let arithmetic = Params::default().add(x).add(y).add(n as i32).0;
    let dequant = Params::default().add(w).add(scales).add(out).add(n as i32).0;
    let multiply = Params::default().add(a).add(b).add(product).add(8i32).0;
    let cases = [
        ("arithmetic", "arithmetic", Exact, plain, &arithmetic),
        ("dequant", "dequant", Exact, plain, &dequant),
        ("product", "product", Exact, matrix, &multiply),
        ("product_fp8", "product_fp8", Exact, matrix, &multiply),
        ("product_fp8_truncated", "product_fp8", Truncated, matrix, &multiply),
    ];
    for (name, kernel, fp8, launch, params) in cases {
        let program = module.kernel(kernel).expect("a kernel of this name").clone();
        let mut group = c.benchmark_group(name);
        group.sample_size(10);
        for (mode, settings) in settings(fp8) {
            let run = || program.launch(&launch, params, &memory, &settings).expect("a healthy kernel");
            let counted = run();
            // Thread-instructions for plain kernels, floating-point operations for matrix products.
            let flops = counted.tensor.bf16 + counted.tensor.fp8;
            let work = if flops > 0 { flops } else { counted.thread_instructions };
            group.throughput(Throughput::Elements(work));
            group.bench_function(mode, |bencher| {
                bencher.iter_custom(|times| {
                    let start = cpu_time();
                    for _ in 0..times {
                        black_box(run());
                    }
                    cpu_time() - start
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, speed);
criterion_main!(benches);
