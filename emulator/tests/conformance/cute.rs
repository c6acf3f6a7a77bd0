//! CuTe's Hopper GEMM tutorials: C = A × Bᵀ in f16, small integers, so every partial sum is exact.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use cuda_emulator::check::{Finding, Kind};
use cuda_emulator::exec::Launch;
use cuda_emulator::ptx::fatbin::ptx_of_image;
use cuda_emulator::settings::Timing;
use cuda_emulator::tensor::tensor_map::{Request, encode};
use half::f16;

use crate::common::{compiled, cutlass, workspace};
use crate::device::{Device, Random, schedules};
use crate::report::{Report, assert_same};

/// Where the tutorials are.
fn tutorials() -> PathBuf {
    cutlass().join("examples/cute/tutorial/hopper")
}

/// `cute.cu` as a program, with a tutorial inside. PTX alone: ptxas would take its time.
fn program(tutorial: &Path) -> PathBuf {
    let cutlass = cutlass();
    let flags = "-std=c++17 --expt-relaxed-constexpr -w -O1 -lineinfo --no-compress -cudart none \
                 -gencode arch=compute_90a,code=compute_90a -DCUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL";
    let mut flags: Vec<OsString> = flags.split_whitespace().map(OsString::from).collect();
    flags.push(format!("-DTUTORIAL=\"{}\"", tutorial.display()).into());
    for include in ["include", "tools/util/include", "examples/common"].map(|i| cutlass.join(i)) {
        flags.extend(["-I".into(), include.into()]);
    }
    let inputs = [tutorial.to_owned(), cutlass.join("include/cutlass/version.h")];
    compiled(&workspace().join("emulator/tests/kernels/cute.cu"), &flags, &inputs, "program")
}

/// A tutorial with passages replaced, kept under target/.
fn repaired(tutorial: &str, passages: &[(&str, &str)]) -> PathBuf {
    let mut text = std::fs::read_to_string(tutorials().join(tutorial)).unwrap();
    for (passage, by) in passages {
        assert_eq!(text.matches(passage).count(), 1, "{tutorial} has the passage to repair: {passage}");
        text = text.replace(passage, by);
    }
    let file = workspace().join("target/emulator-ptx").join(format!("repaired_{tutorial}"));
    if std::fs::read_to_string(&file).ok().as_ref() != Some(&text) {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
    }
    file
}

/// What a program prints.
fn output_of(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A launch as CuTe's host code asked for it.
struct Recorded {
    kernel: String,
    launch: Launch,
    arguments: Vec<Vec<u8>>,
}

/// Runs the tutorial's host code for one problem.
fn record(program: &Path, device: &Device, order: &str, sizes: [usize; 3], pointers: [u64; 3]) -> Recorded {
    let mut command = Command::new(program);
    command.args(["launch", order]).args(sizes.map(|n| n.to_string())).args(pointers.map(|p| p.to_string()));
    for kernel in device.module.kernels() {
        let bytes: Vec<String> = kernel.params().iter().map(|(_, bytes)| bytes.to_string()).collect();
        command.arg(format!("{}={}", kernel.name(), bytes.join(",")));
    }
    let output = output_of(&mut command);
    let (mut kernel, mut launch, mut arguments, mut maps) = (String::new(), None, Vec::new(), Vec::new());
    let mut lines = output.lines();
    while let Some(line) = lines.next() {
        let (label, values) = line.split_once(' ').unwrap_or((line, ""));
        let numbers = |text: &str| -> Vec<u64> { text.split(' ').filter_map(|n| n.parse().ok()).collect() };
        match label {
            "kernel" => kernel = values.to_owned(),
            "launch" => {
                let n: Vec<u32> = numbers(values).iter().map(|&n| n as u32).collect();
                let triple = |i| [n[i], n[i + 1], n[i + 2]];
                let (grid, block, cluster) = (triple(0), triple(3), triple(6));
                launch = Some(Launch { grid, block, cluster, dynamic_shared: 0 });
            }
            "shared" => launch.as_mut().unwrap().dynamic_shared = values.parse().unwrap(),
            "argument" => arguments.push(numbers(values).iter().map(|&b| b as u8).collect::<Vec<u8>>()),
            "map" => {
                let mut next = || numbers(lines.next().unwrap());
                let (dims, strides, boxes, steps) = (next(), next(), next(), next());
                let narrow = |v: &[u64]| -> Vec<u32> { v.iter().map(|&n| n as u32).collect() };
                let s = numbers(values);
                maps.push(encode(&Request {
                    data_type: s[0] as u32,
                    rank: s[1] as u32,
                    address: s[2],
                    dims: &dims,
                    strides: &strides,
                    box_dims: &narrow(&boxes),
                    element_strides: &narrow(&steps),
                    interleave: s[3] as u32,
                    swizzle: s[4] as u32,
                    l2_promotion: s[5] as u32,
                    oob_fill: s[6] as u32,
                }));
            }
            other => panic!("the tutorial printed {other:?}"),
        }
    }
    let mut placed = 0;
    for argument in &mut arguments {
        for (i, map) in maps.iter().enumerate() {
            if argument.starts_with(format!("tensor map {i}\0").as_bytes()) {
                argument[..128].copy_from_slice(map.as_ref().unwrap());
                placed += 1;
            }
        }
    }
    assert_eq!(placed, maps.len(), "every tensor map is an argument");
    Recorded { kernel, launch: launch.expect("a launch"), arguments }
}

struct Problem {
    m: usize,
    n: usize,
    k: usize,
    /// "nt": A is m-major and B n-major; "tn": both k-major.
    order: &'static str,
    a: Vec<u16>,
    b: Vec<u16>,
    c: Vec<u16>,
}

impl Problem {
    fn new(m: usize, n: usize, k: usize, order: &'static str) -> Problem {
        let mut random = Random((m * 31 + n * 7 + k) as u64);
        let draw = |r: &mut Random| r.range(-2, 3) as i32;
        let (a, b) = (random.vec(m * k, draw), random.vec(n * k, draw));
        let at = |i: usize, rows: usize, p: usize| if order == "nt" { i + p * rows } else { p + i * k };
        let mut c = vec![0; m * n];
        for j in 0..n {
            for i in 0..m {
                let sum: i32 = (0..k).map(|p| a[at(i, m, p)] * b[at(j, n, p)]).sum();
                // f16 holds integers up to 2048, and so must every partial sum in any order.
                assert!((0..k).map(|p| (a[at(i, m, p)] * b[at(j, n, p)]).abs()).sum::<i32>() <= 2048);
                c[i + j * m] = sum;
            }
        }
        let half = |v: Vec<i32>| v.into_iter().map(|v| f16::from_f32(v as f32).to_bits()).collect();
        Problem { m, n, k, order, a: half(a), b: half(b), c: half(c) }
    }

    /// Runs it; the finding that ended the launch, or else the result is right.
    fn run(&self, program: &Path, device: &Device) -> Option<Box<Finding>> {
        let a = device.upload(&self.a);
        let b = device.upload(&self.b);
        // Multiplied by beta, which is zero.
        let c = device.upload(&vec![0x3c00u16; self.m * self.n]);
        let recorded = record(program, device, self.order, [self.m, self.n, self.k], [a, b, c]);
        let arguments: Vec<&[u8]> = recorded.arguments.iter().map(Vec::as_slice).collect();
        let finding = device.launch(&recorded.kernel, &recorded.launch, &arguments).err();
        if finding.is_none() {
            let got: Vec<u16> = device.download(c, self.m * self.n);
            // As numbers: zero has two signs.
            let plain = |v: &[u16]| v.iter().map(|&v| f16::from_bits(v).to_f32()).collect::<Vec<f32>>();
            let what = format!("{} {}×{}×{}", self.order, self.m, self.n, self.k);
            assert_same(&what, &plain(&got), &plain(&self.c));
        }
        device.free(&[a, b, c]);
        finding
    }

    fn size(&self) -> String {
        format!("{}×{}×{}", self.m, self.n, self.k)
    }
}

fn load(tutorial: &Path) -> (PathBuf, Device) {
    let program = program(tutorial);
    let fatbin = program.with_extension("fatbin");
    output_of(Command::new(&program).arg("fatbin").arg(&fatbin));
    let device = Device::new(ptx_of_image(&std::fs::read(fatbin).unwrap()).unwrap().ptx);
    (program, device)
}

/// (m, n, k) in tiles of 128, 128 and 64: more tiles of k than stages, and not a multiple of them.
const SIZES: [(usize, usize, usize); 3] = [(256, 128, 192), (256, 256, 384), (512, 256, 448)];

/// Runs every problem under every schedule without a finding.
fn clean(title: &'static str, tutorial: &Path) {
    let (program, mut device) = load(tutorial);
    let mut report = Report::new(title);
    for order in ["nt", "tn"] {
        for (m, n, k) in SIZES {
            let problem = Problem::new(m, n, k, order);
            report.run(order, problem.size(), &mut device, |device| {
                if let Some(finding) = problem.run(&program, device) {
                    panic!("{:?}\n{finding}", device.settings.schedule);
                }
            });
        }
    }
    report.print();
}

/// What a tutorial as it is comes to under the eager schedule (true) and others: a kind of finding, or exact results.
fn findings(tutorial: &str) -> BTreeSet<(bool, Option<Kind>)> {
    let (program, mut device) = load(&tutorials().join(tutorial));
    let mut kinds = BTreeSet::new();
    for order in ["nt", "tn"] {
        let problem = Problem::new(256, 128, 384, order);
        for (_, schedule) in schedules() {
            device.settings.schedule = schedule;
            kinds.insert((schedule.bulk == Timing::Eager, problem.run(&program, &device).map(|f| f.kind)));
        }
    }
    kinds
}

/// The last rounds of its loop load tiles beyond k that nobody waits for: the block may end, and its shared memory be
/// another's, before they arrive. `cutlass::PipelineTmaAsync::producer_tail` exists for this; the tutorial has nothing.
#[test]
fn the_tma_tutorial_ends_with_copies_in_flight() {
    let found = findings("wgmma_tma_sm90.cu");
    // Copies that happen at once are never in flight: how such things go unnoticed.
    assert!(found.contains(&(true, None)) && found.contains(&(false, Some(Kind::ExitInFlight))), "{found:?}");
    assert!(found.iter().all(|(_, kind)| matches!(kind, None | Some(Kind::ExitInFlight))), "{found:?}");
}

#[test]
fn wgmma_fed_by_tma() {
    let passage = "    if ((warp_idx == 0) && lane_predicate)\n    {\n      int pipe = write_state.index();";
    let by = passage.replace("lane_predicate)", "lane_predicate && k_tile_count > 0)");
    let tutorial = repaired("wgmma_tma_sm90.cu", &[(passage, &by)]);
    clean("CuTe tutorial wgmma_tma_sm90.cu, without its loads beyond k", &tutorial);
}

/// Its warps wait for their own copies only, then multiply what all four have copied; and one warp's next copies
/// overwrite what another's multiplication may still read.
#[test]
fn the_cp_async_tutorial_has_no_barriers() {
    let found = findings("wgmma_sm90.cu");
    assert!(found.contains(&(true, Some(Kind::SharedRace))), "{found:?}");
    // Late copies show as bytes that nobody has written yet, too; right results never come out.
    let expected = [Kind::SharedRace, Kind::Uninitialised].map(Some);
    assert!(found.iter().all(|(_, kind)| expected.contains(kind)), "{found:?}");
}

#[test]
fn wgmma_fed_by_cp_async() {
    let copied = "    cp_async_wait<0>();\n\n    warpgroup_fence_operand(tCrC);";
    let multiplied = "    warpgroup_wait<0>();\n    warpgroup_fence_operand(tCrC);";
    let tutorial = repaired(
        "wgmma_sm90.cu",
        &[
            (
                copied,
                &copied.replace(
                    "\n\n",
                    "\n    cutlass::arch::fence_view_async_shared();\n    __syncthreads();\n\n",
                ),
            ),
            (multiplied, &format!("{multiplied}\n    __syncthreads();")),
            ("#include <cute/tensor.hpp>", "#include <cute/tensor.hpp>\n#include \"cutlass/arch/barrier.h\""),
        ],
    );
    clean("CuTe tutorial wgmma_sm90.cu, with its barriers", &tutorial);
}
