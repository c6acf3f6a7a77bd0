//! The tensor layouts against an oracle nobody here wrote: CuTe's layout algebra, evaluated on the host.
//!
//! `cute_oracle.cpp` is compiled with g++ against CUTLASS's headers (`$CUTLASS_INCLUDE` or `target/toolchain-cutlass`)
//! and CUDA's (`$CUDA_HOME/include` or `target/toolchain`), which `cargo xtask toolchain --cutlass` fetches. Without
//! them this test fails: a check that passes because it did not run is none.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use cuda_emulator::tensor::descriptor::{Descriptor, Major};
use cuda_emulator::tensor::fragment::{self, Place};
use cuda_emulator::tensor::swizzle::{Swizzle, swizzle};

/// A folder that holds `witness`, or how to get it.
fn headers(variable: &str, below: &str, fallback: &str, witness: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = match std::env::var_os(variable) {
        Some(value) => Path::new(&value).join(below),
        None => workspace.join("target").join(fallback),
    };
    assert!(
        folder.join(witness).is_file(),
        "{} is missing: run `cargo xtask toolchain --cutlass` (or set {variable}); `cargo xtask test` does it by itself",
        folder.join(witness).display()
    );
    folder
}

/// Builds and runs the oracle; one (name, parameters, values) a line.
fn oracle() -> Vec<(String, Vec<u64>, Vec<u32>)> {
    let source = "toolchain-cutlass/cutlass_library/source/include";
    let cutlass = headers("CUTLASS_INCLUDE", "", source, "cute/tensor.hpp");
    let cuda = headers("CUDA_HOME", "include", "toolchain/nvidia/cu13/include", "cuda_runtime.h");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (program, tables) = (folder.join("cute_oracle"), folder.join("cute_oracle.txt"));
    let build = Command::new("g++")
        .args(["-std=c++17", "-w"])
        .arg("-isystem")
        .arg(&cutlass)
        .arg("-isystem")
        .arg(&cuda)
        .arg("-isystem")
        .arg(cuda.join("cccl"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cute_oracle.cpp"))
        .arg("-o")
        .arg(&program)
        .output()
        .expect("g++ is needed to evaluate CuTe's layouts");
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    assert!(Command::new(&program).arg(&tables).output().unwrap().status.success());
    let text = std::fs::read_to_string(&tables).unwrap();
    text.lines()
        .map(|line| {
            let (head, values) = line.split_once(" : ").unwrap();
            let mut head = head.split(' ');
            let name = head.next().unwrap().to_string();
            let parameters = head.map(|p| p.parse().unwrap()).collect();
            (name, parameters, values.split(' ').map(|v| v.parse().unwrap()).collect())
        })
        .collect()
}

/// Our values of a fragment table: `values` a thread, numbered as CuTe does, row + rows × column.
fn fragment(threads: u32, values: u32, rows: u32, place: impl Fn(u32, u32) -> Place) -> Vec<u32> {
    let flat = |(row, column): Place| row + rows * column;
    (0..threads).flat_map(|t| (0..values).map(move |v| (t, v))).map(|(t, v)| flat(place(t, v))).collect()
}

#[test]
fn formulas_agree_with_cute() {
    let mut seen: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (name, parameters, theirs) in oracle() {
        let p = |i: usize| parameters[i] as u32;
        let registers = |v: u32| (v / (32 / p(0)), v % (32 / p(0)));
        let ours: Vec<u32> = match name.as_str() {
            "swizzle" => {
                let mode = Swizzle::from_tensor_map(p(0)).unwrap();
                (0..8192).step_by(4).map(|a| swizzle(mode, a)).collect()
            }
            "wgmma_c" => fragment(128, p(2), p(1), fragment::wgmma_accumulator),
            "wgmma_a" => fragment(128, p(2), p(1), |t, v| {
                let (register, slot) = registers(v);
                fragment::wgmma_a(t, register, slot, p(0))
            }),
            "mma_a" => fragment(32, p(2), p(1), |t, v| {
                let (register, slot) = registers(v);
                fragment::mma_a(t, register, slot, p(0))
            }),
            // CuTe counts n + 8 k.
            "mma_b" => fragment(32, p(2), p(1), |t, v| {
                let (register, slot) = registers(v);
                let (k, n) = fragment::mma_b(t, register, slot, p(0));
                (n, k)
            }),
            "mma_c" => fragment(32, p(2), p(1), fragment::accumulator),
            // Lane × 8 + column of the address's lane: matrix, row and column in one.
            "ldmatrix" => (0..32 * 8)
                .map(|i| {
                    let (lane, matrix, slot) = (i / 8, i % 8 / 2, i % 2);
                    let (row, column) = fragment::matrix8x8(lane, slot, p(0) == 1);
                    fragment::address_lane(matrix, row) * 8 + column
                })
                .collect(),
            "tile" => {
                // On the host CuTe cannot tell the start address: it is given apart.
                let descriptor = Descriptor { start: p(5), ..Descriptor::decode(parameters[4]) };
                let major = if p(0) == 1 { Major::Mn } else { Major::K };
                let (mn, depth) = (p(2), p(3));
                (0..mn * depth).map(|i| descriptor.address(major, p(1), i / depth, i % depth)).collect()
            }
            other => panic!("the oracle printed {other:?}"),
        };
        assert_eq!(ours.len(), theirs.len(), "{name} {parameters:?}");
        let wrong = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        if let Some(i) = wrong {
            panic!("{name} {parameters:?}: value {i} is {} here and {} in CuTe", ours[i], theirs[i]);
        }
        let entry = seen.entry(name).or_default();
        entry.0 += 1;
        entry.1 += ours.len();
    }
    for (name, (tables, values)) in &seen {
        println!("{name}: {tables} tables, {values} values, 0 mismatches");
    }
    let tables = |name: &str| seen.get(name).map_or(0, |(tables, _)| *tables);
    assert_eq!([tables("swizzle"), tables("wgmma_c"), tables("wgmma_a"), tables("ldmatrix")], [3, 5, 3, 2]);
    assert_eq!([tables("mma_a"), tables("mma_b"), tables("mma_c")], [6, 6, 6]);
    // Three types and majors × 8 layouts × 8 steps.
    assert_eq!(tables("tile"), 3 * 8 * 8);
}
