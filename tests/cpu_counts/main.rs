//! What each kernel of the CPU executes, held to the table of `docs/notes/cpu.md`: where a change makes one do more, this says
//! which and by how much, on every machine alike.
//!
//! Counted is the crate as it is released, with the profile `counts`. As tests are compiled, checks of indices and sums are most
//! of a kernel, and loops are not vectorised.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
// Elsewhere there is no trap flag that a program may set for itself, and the sets of the table are x86-64's.

mod cases;
mod step;
mod table;

use std::process::{Command, Stdio};

use abruzzi::device::cpu::{ISA_VARIABLE, Isa};
use step::Stepper;
use table::{Count, Page};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/notes/cpu.md");

/// The page with the table, as it was when this was compiled.
const PAGE: &str = include_str!("../../docs/notes/cpu.md");

/// What compiled the kernels, and how.
const COMPILER: &str = env!("ABRUZZI_COMPILER");

const COMMAND: &str = "cargo test --profile counts --no-default-features --test cpu_counts";

/// Set for a process of this test that counts with one instruction set.
const COUNTS: &str = "ABRUZZI_COUNTS";

/// Begins a line of such a process.
const LINE: &str = "counted:";

#[test]
fn kernels_execute_what_is_recorded() {
    if std::env::var_os(COUNTS).is_some() {
        return count_here();
    }
    let page = Page::of(PAGE);
    if cfg!(debug_assertions) {
        eprintln!("not compiled as kernels are counted, so not compared: {COMMAND}");
        return assert_cases_are_recorded(&page);
    }
    if Stepper::new().is_none() {
        eprintln!("this machine does not trap after an instruction: counts are not compared");
        return assert_cases_are_recorded(&page);
    }
    let found = count();
    assert!(found.iter().all(|c| c.instructions > 0), "{found:#?}");
    if std::env::var_os("ABRUZZI_WRITE_COUNTS").is_some_and(|v| v == "1") {
        return replace(&page.with(COMPILER, &found));
    }
    if page.compiler != COMPILER {
        eprintln!("docs/notes/cpu.md has the counts of {}, this is {COMPILER}: not compared", page.compiler);
        return assert_cases_are_recorded(&page);
    }
    let problems = table::differences(&page.counts(), &found);
    assert!(
        problems.is_empty(),
        "{}\nwhere that is meant: ABRUZZI_WRITE_COUNTS=1 {COMMAND}",
        problems.join("\n")
    );
}

/// Runs every case as it is, and looks it up.
fn assert_cases_are_recorded(page: &Page<'_>) {
    let recorded = page.counts();
    assert!(recorded.iter().all(|c| c.instructions > 0), "{recorded:#?}");
    let mut rows: Vec<(&str, &str)> = recorded.iter().map(|c| (&*c.kernel, &*c.shape)).collect();
    rows.dedup();
    let mut missing = Vec::new();
    let mut look_up = |kernel: &str, shape: &str, call: &mut dyn FnMut()| {
        call();
        match rows.iter().position(|row| *row == (kernel, shape)) {
            Some(row) => drop(rows.remove(row)),
            None => missing.push(format!("{kernel} ({shape})")),
        }
    };
    cases::visit_kernels(&mut look_up);
    cases::visit_others(&mut look_up);
    assert!(
        missing.is_empty() && rows.is_empty(),
        "not recorded: {missing:?}; recorded, but no case: {rows:?}; to record: ABRUZZI_WRITE_COUNTS=1 {COMMAND}"
    );
}

/// Counts with every set that this processor has, each in a process of its own, all at once.
fn count() -> Vec<Count> {
    let program = std::env::current_exe().expect("this program");
    let sets: Vec<Isa> = Isa::ALL.into_iter().filter(|isa| isa.available()).collect();
    let start = |isa: &Isa| {
        let mut command = Command::new(&program);
        command.args(["--exact", "kernels_execute_what_is_recorded", "--nocapture"]);
        command.env(COUNTS, "1").env(ISA_VARIABLE, isa.name()).stdout(Stdio::piped());
        command.spawn().expect("this program once more")
    };
    let children: Vec<_> = sets.iter().map(start).collect();
    let mut counts = Vec::new();
    for (isa, child) in sets.into_iter().zip(children) {
        let out = child.wait_with_output().expect("what it counted");
        let text = String::from_utf8(out.stdout).expect("text");
        assert!(out.status.success(), "{}, {}: {text}", isa.name(), out.status);
        let before = counts.len();
        for line in text.lines().filter_map(|line| line.strip_prefix(LINE)) {
            let cells: Vec<&str> = line.split('|').collect();
            let [kernel, shape, number] = cells[..] else { panic!("{line}") };
            let instructions = number.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
            counts.push(Count { kernel: kernel.to_owned(), shape: shape.to_owned(), isa, instructions });
        }
        assert!(counts.len() - before > 10, "{} counted {} cases: {text}", isa.name(), counts.len() - before);
    }
    counts
}

/// Counts with the set of the environment, and says so on stdout.
fn count_here() {
    let stepper = Stepper::new().expect("as it was in the process before");
    // The harness has begun a line.
    println!();
    let mut count = |kernel: &str, shape: &str, call: &mut dyn FnMut()| {
        // Memory is taken and tables are made by the first call.
        call();
        println!("{LINE}{kernel}|{shape}|{}", stepper.count(call));
    };
    cases::visit_kernels(&mut count);
    // What is the same with every set is counted with the one that every processor has.
    if Isa::chosen().expect("a set of this processor") == Isa::Portable {
        cases::visit_others(&mut count);
    }
}

fn replace(page: &str) {
    let partial = format!("{FILE}.partial");
    std::fs::write(&partial, page).unwrap();
    std::fs::rename(partial, FILE).unwrap();
}
