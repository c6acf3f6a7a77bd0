//! What each kernel executes and moves, held to the table of `docs/kernels.md`: where a change makes one do more, this says which
//! and by how much, on every machine alike.

use std::fmt::Write;

use crate::case::{Bench, Count};
use crate::harness::{configure, real, session};

#[path = "../../benches/kernels/dequant.rs"]
mod dequant;
#[path = "../../benches/kernels/elementwise.rs"]
mod elementwise;
#[path = "../../benches/kernels/expert_gemm.rs"]
mod expert_gemm;
#[path = "../../benches/kernels/expert_gemv.rs"]
mod expert_gemv;
#[path = "../../benches/kernels/gemm.rs"]
mod gemm;
#[path = "../../benches/kernels/gemv.rs"]
mod gemv;
#[path = "../../benches/kernels/mla.rs"]
mod mla;
#[path = "../../benches/kernels/norm.rs"]
mod norm;
#[path = "../../benches/kernels/rope.rs"]
mod rope;
#[path = "../../benches/kernels/route.rs"]
mod route;
#[path = "../../benches/kernels/sample.rs"]
mod sample;

/// The page with the table, as it was when this was compiled.
const PAGE: &str = include_str!("../../docs/kernels.md");
const BEGIN: &str = "<!-- counts with CUDA ";
const END: &str = "<!-- end of counts -->";

/// The release of nvcc that compiled the kernels.
const CUDA: &str = env!("ABRUZZI_CUDA");

/// By how many percent a count may differ from the one recorded.
const ROOM: u64 = 3;

#[test]
fn kernels_execute_and_move_what_is_recorded() {
    if real() {
        return;
    }
    let session = session();
    configure(r#"{"checks": false}"#);
    let found = Bench::counts(&session, |bench| {
        norm::benches(bench);
        rope::benches(bench);
        elementwise::benches(bench);
        dequant::benches(bench);
        route::benches(bench);
        sample::benches(bench);
        gemv::benches(bench);
        expert_gemv::benches(bench);
        gemm::benches(bench);
        expert_gemm::benches(bench);
        mla::benches(bench);
    });
    assert!(found.len() > 20, "{} kernels only", found.len());
    assert!(found.iter().all(|c| c.instructions > 0 && c.bytes > 0), "{found:#?}");
    let (front, version, table, back) = parts(PAGE);
    if std::env::var_os("ABRUZZI_WRITE_COUNTS").is_some_and(|v| v == "1") {
        let page = format!("{front}{BEGIN}{CUDA} -->\n\n{}\n{END}{back}", written(&found));
        return replace(&page);
    }
    if version != CUDA {
        eprintln!("docs/kernels.md has the counts of CUDA {version}, this is {CUDA}: not compared");
        return;
    }
    let problems = differences(&read(table), &found);
    assert!(
        problems.is_empty(),
        "{}\nwhere that is meant: ABRUZZI_WRITE_COUNTS=1 cargo test --features cuda --test kernels counts",
        problems.join("\n")
    );
}

/// The page before the table, the release it was written with, the table, and the page behind it.
fn parts(page: &str) -> (&str, &str, &str, &str) {
    let (front, rest) = page.split_once(BEGIN).expect("the table's beginning");
    let (version, rest) = rest.split_once(" -->").expect("the marker's end");
    let (table, back) = rest.split_once(END).expect("the table's end");
    (front, version, table, back)
}

fn replace(page: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/kernels.md");
    let partial = format!("{path}.partial");
    std::fs::write(&partial, page).unwrap();
    std::fs::rename(partial, path).unwrap();
}

fn written(counts: &[Count]) -> String {
    let mut table = "| case | kernel | instructions | bytes |\n|---|---|--:|--:|\n".to_owned();
    for Count { case, kernel, instructions, bytes } in counts {
        writeln!(table, "| {case} | `{kernel}` | {instructions} | {bytes} |").unwrap();
    }
    table
}

fn read(table: &str) -> Vec<Count> {
    let rows = table.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| case |"));
    let cells = rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    let count = |cells: Vec<&str>| {
        let [case, kernel, instructions, bytes] = cells[..] else { panic!("{cells:?} is no row of counts") };
        let number = |text: &str| text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        let (case, kernel) = (case.to_owned(), kernel.trim_matches('`').to_owned());
        Count { case, kernel, instructions: number(instructions), bytes: number(bytes) }
    };
    cells.map(count).collect()
}

/// What is not as recorded, a line each.
fn differences(recorded: &[Count], found: &[Count]) -> Vec<String> {
    let same = |a: &Count, b: &Count| (&a.case, &a.kernel) == (&b.case, &b.kernel);
    let mut problems = Vec::new();
    for now in found {
        let Some(old) = recorded.iter().find(|old| same(old, now)) else {
            problems.push(format!("{} ({}): not recorded", now.kernel, now.case));
            continue;
        };
        for (what, old, new) in [
            ("instructions", old.instructions, now.instructions),
            ("bytes of device memory", old.bytes, now.bytes),
        ] {
            if old.abs_diff(new) * 100 > old * ROOM {
                let change = 100.0 * (new as f64 / old as f64 - 1.0);
                problems.push(format!(
                    "{} ({}): {new} {what}, recorded {old} ({change:+.1} %)",
                    now.kernel, now.case
                ));
            }
        }
    }
    let gone = recorded.iter().filter(|old| !found.iter().any(|now| same(old, now)));
    problems.extend(gone.map(|old| format!("{} ({}): recorded, but not run", old.kernel, old.case)));
    problems
}

#[test]
fn a_count_beyond_the_room_is_named_with_both_numbers() {
    let count = |kernel: &str, instructions, bytes| Count {
        case: "a case, 1×2".to_owned(),
        kernel: kernel.to_owned(),
        instructions,
        bytes,
    };
    let old = [count("same", 1000, 64), count("more", 1000, 64), count("gone", 1, 1)];
    assert_eq!(read(&written(&old)), old);
    let new = [count("same", 1030, 63), count("more", 1031, 96), count("new", 1, 1)];
    assert_eq!(
        differences(&old, &new),
        [
            "more (a case, 1×2): 1031 instructions, recorded 1000 (+3.1 %)",
            "more (a case, 1×2): 96 bytes of device memory, recorded 64 (+50.0 %)",
            "new (a case, 1×2): not recorded",
            "gone (a case, 1×2): recorded, but not run",
        ]
    );
    assert_eq!(differences(&old[..1], &[count("same", 969, 64)]).len(), 1);
}
