//! One kernel on one shape, timed and compared with what bounds it.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use abruzzi::device::cuda::{Buffer, Gpu};
use criterion::{Bencher, Criterion, Throughput};
use cuda_emulator::clock::Profile;

use crate::harness::{Random, Session, configure, quick, random, real, session};
pub use crate::work::{Launch, Unit, Work};

/// Written before each launch: it finds nothing of its own in the second-level cache (50 MB), and is issued while the
/// device is still busy, so that the host's time for that doesn't count.
const FLUSH: usize = 64 << 20;
/// Copied to learn what device memory gives.
const COPY: usize = 1 << 30;

/// Everything cases share.
pub struct Bench<'a> {
    criterion: &'a mut Criterion,
    session: Session,
    random: Random,
    flush: Buffer<u8>,
    profile: Profile,
    /// 10⁹ bytes a second of device memory, and how that is known.
    memory: (f64, &'static str),
    table: Option<File>,
}

impl<'a> Bench<'a> {
    /// Opens the GPU, and measures its memory if it is real.
    pub fn new(criterion: &'a mut Criterion) -> Bench<'a> {
        let session = session();
        let name = std::env::var("CUDA_EMULATOR_PROFILE");
        let profile = Profile::named(name.as_deref().unwrap_or(Profile::NAMES[0])).expect("a profile");
        let flush = session.gpu.alloc(FLUSH, "the cache's flush").expect("device memory");
        let memory = if real() {
            (session.gpu.copy_rate(COPY).expect("a copy") / 1e9, "a measured copy")
        } else {
            // Counters make the modelled time; checks only cost.
            configure(r#"{"checks": false}"#);
            (profile.memory_gb_s, "the profile")
        };
        println!("memory: {:.0} GB/s ({})", memory.0, memory.1);
        let table =
            std::env::var_os("ABRUZZI_BENCH_TABLE").map(|path| File::create(path).expect("the table"));
        Bench { criterion, session, random: random(), flush, profile, memory, table }
    }

    /// Times the launches that `setup` prepares; it is called only if the case was asked for.
    pub fn case(
        &mut self,
        kernel: &str,
        shape: &str,
        work: Work,
        setup: impl Fn(&Gpu, &mut Random) -> Launch,
    ) {
        let (seconds, budget) = (work.emulated_seconds(), if quick() { 1.0 } else { 20.0 });
        if !real() && seconds > budget {
            println!("{kernel} {shape}: not on the emulator, which would take some {seconds:.0} s");
            return;
        }
        let label = if real() { kernel.to_owned() } else { format!("modelled/{kernel}") };
        let mut group = self.criterion.benchmark_group(label);
        group.throughput(match work.flops {
            Some((flops, _)) => Throughput::Elements(flops as u64),
            None => Throughput::Bytes(work.bytes as u64),
        });
        let (gpu, random, flush) = (&self.session.gpu, &mut self.random, &mut self.flush);
        let mut prepared: Option<Launch> = None;
        let mut samples = Vec::new();
        let mut once = |samples: &mut Vec<f64>| {
            let launch = prepared.get_or_insert_with(|| setup(gpu, random));
            flush.all_mut().fill_bytes(gpu, 0).expect("the cache's flush");
            let ms = gpu.timed(launch).unwrap_or_else(|e| panic!("{kernel} {shape}: {e}"));
            samples.push(ms * 1e3);
            ms * 1e-3
        };
        if real() {
            group.sample_size(20).warm_up_time(Duration::from_millis(300));
            group.measurement_time(Duration::from_secs(1));
            let run = |b: &mut Bencher| {
                b.iter_custom(|n| Duration::from_secs_f64((0..n).map(|_| once(&mut samples)).sum()));
            };
            group.bench_function(shape, run);
        } else {
            // A modelled time is the same every time: one run will do. Criterion chooses how often to ask by how long
            // an answer takes, so an answer has to take a moment.
            group.sample_size(10).warm_up_time(Duration::from_millis(1));
            group.measurement_time(Duration::from_millis(100));
            let mut seconds = None;
            let run = |b: &mut Bencher| {
                let seconds = *seconds.get_or_insert_with(|| once(&mut samples));
                b.iter_custom(|n| {
                    std::thread::sleep(Duration::from_millis(1));
                    Duration::from_secs_f64(seconds * n as f64)
                });
            };
            group.bench_function(shape, run);
        }
        group.finish();
        if !samples.is_empty() {
            self.report(kernel, shape, work, median(samples));
        }
    }

    fn report(&mut self, kernel: &str, shape: &str, work: Work, us: f64) {
        let memory_us = work.bytes / (self.memory.0 * 1e3);
        let arithmetic = work.flops.map(|(flops, unit)| (flops, flops / (self.tflops(unit) * 1e6)));
        let (rate, limit_us, limit) = match arithmetic {
            Some((flops, flops_us)) if flops_us > memory_us => {
                (format!("{:.0} TFLOP/s", flops / us / 1e6), flops_us, "arithmetic")
            }
            _ => (format!("{:.0} GB/s", work.bytes / us / 1e3), memory_us, "memory"),
        };
        let share = 100.0 * limit_us / us;
        let how = if real() { "measured" } else { "modelled" };
        println!("{how}: {kernel} {shape}: {us:.2} µs, {rate}, {share:.0} % of the limit ({limit})");
        if let Some(table) = &mut self.table {
            writeln!(table, "{kernel}\t{shape}\t{us:.2}\t{rate}\t{share:.0} % {limit}").expect("the table");
        }
    }

    /// 10¹² operations a second by the data sheet.
    fn tflops(&self, unit: Unit) -> f64 {
        match unit {
            // 128 lanes an SM, each a multiplication and an addition a clock.
            Unit::F32 => f64::from(self.profile.sms) * 256.0 * self.profile.clock_ghz * 1e-3,
            Unit::Bf16 => self.profile.tensor_tflops.bf16,
            Unit::Fp8 => self.profile.tensor_tflops.fp8,
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
