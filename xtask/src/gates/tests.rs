//! The gates on kernels that break them, compiled here.

use std::fs;

use super::*;

/// A toolchain, a workspace with one kernel file, its cache.
fn compiled(source: &str) -> (tempfile::TempDir, Toolchain, Vec<Compiled>) {
    let toolchain = Toolchain::find_or_install().unwrap();
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("cuda/include")).unwrap();
    fs::write(root.path().join("cuda/sample.cu"), source).unwrap();
    let compiled = compile(&toolchain, root.path(), &root.path().join("cache")).unwrap();
    (root, toolchain, compiled)
}

fn profile() -> Profile {
    Profile::named(Profile::NAMES[0]).unwrap()
}

const PLAIN: &str = r#"
extern "C" __global__ void __launch_bounds__(256) plain(const float4* x, float4* out, int n) {
  __shared__ float4 tile[256];
  for (int i = threadIdx.x; i < n; i += 256) {
    tile[threadIdx.x ^ 1] = x[i];
    __syncthreads();
    out[i] = tile[threadIdx.x];
    __syncthreads();
  }
}
"#;

const LOCAL: &str = r#"
extern "C" __global__ void array(const float* x, float* out, int n) {
  float kept[64];
  for (int i = 0; i < 64; ++i) kept[i] = x[i * n + threadIdx.x];
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += kept[(i * 7 + n) % 64];
  out[threadIdx.x] = sum;
}
extern "C" __global__ void __launch_bounds__(1024, 2) spills(const float* x, float* out, int n) {
  float kept[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) kept[i] = x[i * n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i * n + threadIdx.x] = kept[i] * kept[63 - i];
}
extern "C" __global__ void ignored(float* out) {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  out[0] = 1;
}
"#;

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "there is a CUDA compiler for Linux only")]
fn spills_local_arrays_and_ignored_register_requests_are_caught() {
    let (_root, toolchain, compiled) = compiled(LOCAL);
    let (kernels, mut problems) = read(&toolchain, &compiled).unwrap();
    assert_eq!(kernels.len(), 3);
    let lenient = "[\"*\"]\nkind = \"attention\"\nregisters = 255\nthreads = 1024\noccupancy = 1\n";
    problems.extend(check(&kernels, &rules::parse(lenient).unwrap(), &profile()));
    let has = |kernel: &str, rule: &str| problems.iter().any(|p| p.kernel == kernel && p.rule == rule);
    for kernel in ["array", "spills"] {
        assert!(has(kernel, "stack frame") && has(kernel, "local memory (LDL, STL)"), "{problems:#?}");
        assert!(has(kernel, "ptxas's warnings"), "{problems:#?}");
    }
    assert!(has("spills", "spill stores") && has("spills", "spill loads"), "{problems:#?}");
    assert!(!has("array", "spill stores"), "{problems:#?}");
    // ptxas names no function for C7508.
    let ignored = |p: &&Problem| p.kernel == "cuda/sample.cu" && p.found.starts_with("(C7508)");
    assert_eq!(problems.iter().filter(ignored).count(), 1, "{problems:#?}");
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "there is a CUDA compiler for Linux only")]
fn a_sound_kernel_passes_and_each_rule_can_fail() {
    let (_root, toolchain, compiled) = compiled(PLAIN);
    let (kernels, warnings) = read(&toolchain, &compiled).unwrap();
    assert_eq!((kernels.len(), warnings.len()), (1, 0));
    let found = |rules: &str| check(&kernels, &rules::parse(rules).unwrap(), &profile());
    let sound = "[plain]\nkind = \"rows\"\nregisters = 40\nthreads = 256\noccupancy = 6\nrequire = [\"LDG.128\", \"STG.128\"]\n\
                 forbid = [\"LDL\", \"BRX\"]\nmain_loop = { of = \"LDG\", require = [\"LDS.128\"], forbid = [\"MUFU\"] }\n";
    assert_eq!(found(sound), []);
    // One rule changed, one problem of that rule.
    for (from, to, rule) in [
        ("registers = 40", "registers = 4", "registers"),
        ("threads = 256", "threads = 128", "threads"),
        ("threads = 256", "threads = 256\ndynamic_shared = 232448", "shared memory"),
        ("occupancy = 6", "occupancy = 9", "blocks on an SM"),
        ("\"LDG.128\"", "\"QGMMA\"", "QGMMA"),
        ("\"BRX\"", "\"LDS\"", "LDS"),
        ("of = \"LDG\"", "of = \"EXIT\"", "EXIT in a loop"),
        ("require = [\"LDS.128\"]", "require = [\"LDS.64\"]", "LDS.64 in the loop of LDG"),
        ("\"MUFU\"", "\"STS\"", "STS in the loop of LDG"),
    ] {
        let changed = sound.replacen(from, to, 1);
        assert_ne!(changed, sound);
        let problems = found(&changed);
        assert!(problems.iter().any(|p| p.kernel == "plain" && p.rule == rule), "{to}: {problems:#?}");
    }
    let message = found(&sound.replace("registers = 40", "registers = 4"))[0].to_string();
    assert!(message.starts_with("plain: registers: found ") && message.ends_with("at most 4"), "{message}");
}

#[test]
fn launch_bounds_are_the_kernels_own() {
    let ptx = ".visible .entry a(\n.param .b64 a_0\n)\n{\n}\n.visible .entry b(\n)\n.maxntid 64, 4, 1\n.minnctapersm 2\n{\n}\n\
               .visible .entry c()\0.maxntid 384\0{}";
    let found = ["a", "b", "c", "d"].map(|kernel| launch_bounds(ptx, kernel));
    assert_eq!(found, [None, Some(256), Some(384), None]);
}

#[test]
fn kernels_without_rules_and_rules_without_kernels_fail() {
    let usage = ptxas::Usage { name: "wide".into(), registers: 128, ..ptxas::Usage::default() };
    let code = sass::Function { name: "wide".into(), code: Vec::new() };
    let kernels = [Kernel { file: "cuda/x.cu".into(), usage, bounds: None, code }];
    let found = |rules: &str| {
        let problems = check(&kernels, &rules::parse(rules).unwrap(), &profile());
        problems.into_iter().map(|p| (p.kernel, p.rule, p.found)).collect::<Vec<_>>()
    };
    let table =
        |name: &str| format!("[{name:?}]\nkind = \"gemm\"\nregisters = 128\nthreads = 512\noccupancy = 1\n");
    let said = |kernel: &str, rule: &str, found: &str| (kernel.to_owned(), rule.to_owned(), found.to_owned());
    assert_eq!(found(""), [said("wide", "rules", "none, for 128 registers")]);
    assert_eq!(found(&table("wide")), []);
    assert_eq!(
        found(&format!("{}{}", table("wide"), table("gone_*")))[0],
        said("gone_*", "kernel of this table", "none")
    );
    let both = format!("{}{}", table("w*"), table("*e"));
    assert_eq!(found(&both), [said("wide", "rules", "*e and w*")]);
    // 128 × 1,024 registers are twice what there is.
    let problems = found(&table("wide").replace("512", "1024"));
    assert_eq!(problems[0], said("wide", "registers of a block", "131072"));
    assert_eq!(problems[1], said("wide", "blocks on an SM", "0"));
    let broken = format!("{}cost = {{ shape = {{}}, bytes = \"rows\" }}\n", table("wide"));
    assert_eq!(found(&broken)[0].1, "cost");
}

#[test]
fn registers_beyond_what_is_planned_need_a_reason() {
    let usage = ptxas::Usage { name: "norm".into(), registers: 40, ..ptxas::Usage::default() };
    let code = sass::Function { name: "norm".into(), code: Vec::new() };
    let kernels = [Kernel { file: "cuda/x.cu".into(), usage, bounds: None, code }];
    let found = |registers: u32, reason: &str| {
        let text = format!(
            "[norm]\nkind = \"rows\"\nregisters = {registers}\nthreads = 256\noccupancy = 1\n{reason}"
        );
        let problems = check(&kernels, &rules::parse(&text).unwrap(), &profile());
        problems.into_iter().map(|p| (p.rule, p.found)).collect::<Vec<_>>()
    };
    assert_eq!(found(40, ""), []);
    assert_eq!(found(41, ""), [("registers allowed".to_owned(), "41".to_owned())]);
    assert_eq!(found(41, "reason = 'a row is held'"), []);
    assert_eq!(found(41, "reason = ' '"), [("reason".to_owned(), "\" \"".to_owned())]);
    assert_eq!(found(40, "reason = 'none'"), [("reason".to_owned(), "\"none\"".to_owned())]);
}
