//! Kernels with one fault each, compiled from the same source with `-DABRUZZI_MUTANT=n`: a test of the family must fail.
//!
//! A child of this process runs that test with the mutant in the place of the healthy code.

#[path = "../../build/toolchain.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "shared with xtask, which uses all of it")]
mod toolchain;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use toolchain::{Environment, Found, Toolchain};

/// File in `cuda/`, number, what is wrong, the test that notices.
const MUTANTS: &[(&str, u32, &str, &str)] = &[
    ("norm_rope", 1, "angle not rounded to f32", "rope::rope_query"),
    ("norm_rope", 2, "barrier after the angles dropped", "rope::rope_query"),
    ("norm_rope", 3, "every row goes to the first row's page", "rope::kv_append"),
    ("elementwise", 1, "ids are believed", "elementwise::embed_of_a_row_that_is_not_there_is_nan"),
    ("elementwise", 2, "last rank forgotten", "elementwise::combine"),
    ("watch", 1, "names the vector, not the element", "watch::names_the_first_of_any_kind"),
    ("watch", 2, "plain store instead of minimum", "watch::the_first_site_stays"),
    ("sample", 1, "64-bit carry lost", "sample::draws_from_a_whole_vocabulary"),
    ("sample", 2, "barrier before the scan dropped", "sample::draws_what_the_sampler_draws"),
    ("dequant", 1, "maximum of a group skips a step", "dequant::activations_to_fp8"),
    ("dequant", 2, "NaN counted as saturated", "dequant::fp8_weights_to_fp16_saturate_and_say_so"),
    ("dequant", 3, "scale row rounded up", "dequant::slots_to_bf16"),
    ("dequant", 4, "neighbour's INT4 scale not exchanged", "dequant::int4_weights_to_bf16"),
    ("gemm", 1, "producer does not wait for empty stages", "gemm::linear"),
    ("gemm", 2, "stage released before its wgmma is done", "gemm::linear"),
    ("gemm", 3, "tile rows not cut at the group's end", "gemm::grouped"),
    ("gemm", 4, "last wait missing", "gemm::linear"),
    ("expert_gemm", 1, "producer never waits for a free stage", "expert_gemm::linear_of_true_depth"),
    (
        "expert_gemm",
        2,
        "scale row pitch cols / 128 instead of rounded up",
        "expert_gemm::linear_of_any_shape",
    ),
    ("expert_gemm", 3, "no promotion", "expert_gemm::blocks_are_added_in_f32"),
    ("expert_gemm", 4, "stage released before the wgmma wait", "expert_gemm::linear_of_true_depth"),
    (
        "expert_gemm",
        5,
        "generation not checked",
        "expert_gemm::an_expert_that_is_not_in_its_slot_is_reported",
    ),
    ("expert_gemm", 6, "second box uses the first box's scale row", "expert_gemm::linear_of_many_columns"),
    ("expert_gemm", 7, "waits for one wgmma group too few", "expert_gemm::linear_of_any_shape"),
    (
        "gemv",
        1,
        "cp.async wait allows one group too many",
        "gemv::linear_gives_the_same_bits_in_every_schedule",
    ),
    ("gemv", 2, "FP8 scale block row off by one", "gemv::linear_keeps_an_infinite_block_scale_in_its_rows"),
    ("gemv", 3, "arrival counter not wrapped", "gemv::linear_gives_the_same_bits_in_every_schedule"),
    ("gemv", 4, "barrier between groups' sums and their adding dropped", "gemv::linear_in_wide_blocks"),
    (
        "gemv",
        5,
        "barrier before the ring is reused as output dropped",
        "gemv::linear_decodes_every_code_exactly",
    ),
    (
        "expert_gemv",
        1,
        "cp.async wait allows one group too many",
        "expert_gemv::a_stale_slot_is_reported_and_gives_nan",
    ),
    (
        "expert_gemv",
        2,
        "FP8 scale block row off by one",
        "expert_gemv::experts_keep_what_is_not_finite_in_its_place",
    ),
    (
        "expert_gemv",
        3,
        "only the first pass of 16 tokens",
        "expert_gemv::a_stale_slot_is_reported_and_gives_nan",
    ),
    ("expert_gemv", 4, "generation ignored", "expert_gemv::a_stale_slot_is_reported_and_gives_nan"),
    (
        "expert_gemv",
        5,
        "barrier before the ring is reused as output dropped",
        "expert_gemv::a_stale_slot_is_reported_and_gives_nan",
    ),
    ("route", 1, "NaN and infinities ranked like numbers", "route::every_top_k"),
    ("route", 2, "masked groups score 0", "route::every_number_of_experts"),
    ("route", 3, "last of equals within a lane", "route::every_top_k"),
    ("route", 4, "barrier between scan and placing dropped", "route::many_tokens"),
    ("route", 5, "block reports done before its warps are", "route::every_number_of_tokens"),
    ("route", 6, "counter of blocks not reset", "route::many_tokens"),
    ("mla_decode", 1, "FP8 scale row taken from the head's first row", "mla::decode"),
    ("mla_decode", 2, "page tail not zeroed", "mla::decode"),
    ("mla_decode", 3, "no wait for a full stage", "mla::decode"),
    ("mla_decode", 4, "no wait for an empty stage", "mla::decode_goes_through_its_stages_again_and_again"),
    ("mla_prefill", 1, "first scale block for all of k", "mla::prefill"),
    ("mla_prefill", 2, "non-finite values not set aside", "mla::a_nan_is_seen_by_those_who_see_its_row"),
    ("mla_prefill", 3, "causal mask off by one", "mla::prefill"),
    ("mla_prefill", 4, "barrier after decoding weights dropped", "mla::prefill"),
    ("mla_prefill", 5, "no wait for an empty stage", "mla::prefill"),
    (
        "gemm",
        5,
        "generation not compared",
        "expert_bf16::an_expert_that_is_not_in_its_slot_is_reported_and_gives_nan",
    ),
    ("gemm", 6, "place without modulo", "expert_bf16::experts_are_found_among_384_in_permuted_slots"),
    ("gemm", 7, "tiles of experts that are nowhere", "expert_bf16::an_expert_that_is_nowhere_is_left_out"),
    (
        "expert_gemm",
        8,
        "tiles of experts that are nowhere",
        "expert_gemm::nowhere::an_expert_that_is_nowhere_is_left_out",
    ),
    (
        "expert_gemv",
        6,
        "work for experts that are nowhere",
        "expert_gemv::an_expert_that_is_nowhere_is_left_out",
    ),
    ("dequant", 5, "a slot that is none is decoded", "expert_bf16::only_experts_with_rows_are_decoded"),
];

/// How often a mutant's test is run until it fails. Healthy kernels have one run to pass.
const MUTANT_RUNS: usize = 3;

/// Mutant 0 is the healthy kernel: that its test passes shows that replaced code is run, and that it is not the replacing
/// that fails.
fn cases() -> Vec<(&'static str, u32, &'static str, &'static str)> {
    let mut cases: Vec<_> = MUTANTS.to_vec();
    let mut healthy: Vec<_> = MUTANTS.iter().map(|&(file, _, _, test)| (file, 0, "healthy", test)).collect();
    healthy.sort_unstable();
    healthy.dedup();
    cases.extend(healthy);
    cases
}

#[test]
fn every_mutant_is_caught_and_the_healthy_kernels_are_not() {
    if super::harness::real() || super::harness::quick() {
        // A real GPU need not punish these faults; that is what the emulator is for. And where the tests were carried
        // there are no sources to compile.
        return;
    }
    let cases = cases();
    let compiled = Compiled::default();
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(&(file, number, what, test)) = cases.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let ptx = compiled.ptx(file, number);
                    let mut output = run(&ptx, file, test);
                    // Some faults show in some orders of blocks or for some inputs only, and both are drawn anew.
                    for _ in 1..MUTANT_RUNS {
                        if number != 0 && output.status.success() {
                            output = run(&ptx, file, test);
                        }
                    }
                    let said = String::from_utf8_lossy(&output.stdout);
                    assert!(said.contains("running 1 test"), "{test}: no such test\n{said}");
                    if output.status.success() != (number == 0) {
                        let errors = String::from_utf8_lossy(&output.stderr);
                        wrong
                            .lock()
                            .unwrap()
                            .push(format!("{file} {number} ({what}) in {test}\n{said}{errors}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    eprintln!("{} mutants, {} healthy runs", MUTANTS.len(), cases.len() - MUTANTS.len());
    assert!(wrong.is_empty(), "{} of {} went wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn run(ptx: &Path, file: &str, test: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env("ABRUZZI_TEST_REPLACE", format!("{file}={}", ptx.display()))
        .output()
        .unwrap()
}

/// A file that somebody compiles or has compiled.
type File = Arc<OnceLock<PathBuf>>;

/// What was compiled, each mutant once: several tests run the same healthy kernel, and two compilers writing one file
/// would leave neither's.
struct Compiled {
    folder: tempfile::TempDir,
    files: Mutex<HashMap<(&'static str, u32), File>>,
}

impl Default for Compiled {
    fn default() -> Compiled {
        Compiled { folder: tempfile::tempdir().unwrap(), files: Mutex::default() }
    }
}

impl Compiled {
    /// The mutant's PTX; the first to ask compiles it.
    fn ptx(&self, file: &'static str, number: u32) -> PathBuf {
        let entry = self.files.lock().unwrap().entry((file, number)).or_default().clone();
        entry.get_or_init(|| self.compile(file, number)).clone()
    }

    fn compile(&self, file: &str, number: u32) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let out = self.folder.path().join(format!("{file}-{number}.ptx"));
        let mut nvcc = TOOLCHAIN.nvcc_command();
        nvcc.current_dir(root).args([
            "-std=c++17",
            "-arch=compute_90a",
            "-ptx",
            "-lineinfo",
            "-Icuda/include",
        ]);
        nvcc.arg(format!("-DABRUZZI_MUTANT={number}")).arg("-o").arg(&out).arg(format!("cuda/{file}.cu"));
        let output = nvcc.output().unwrap();
        assert!(output.status.success(), "{file} {number}: {}", String::from_utf8_lossy(&output.stderr));
        out
    }
}

static TOOLCHAIN: LazyLock<Toolchain> = LazyLock::new(|| {
    let environment = Environment::of_process();
    match Toolchain::of_machine(&environment) {
        Ok(Found::Toolkit(toolchain)) => toolchain,
        _ => Toolchain::in_folder(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("target/toolchain"),
            &environment,
        )
        .unwrap_or_else(|e| panic!("{e}; `cargo xtask toolchain` installs a CUDA compiler")),
    }
});
