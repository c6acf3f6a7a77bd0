//! What kernels did and cost, summed by name: the emulator's profiler.

use std::fmt::Write;

use serde::Serialize;

use super::KernelCost;
use crate::counters::Counters;

/// All launches of a kernel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelRow {
    /// Its name.
    pub kernel: String,
    /// Launches.
    pub launches: u64,
    /// Modelled time of all, in microseconds.
    pub modelled_us: f64,
    /// What the last launch was limited by.
    pub bound: &'static str,
    /// Cost of the last launch.
    pub cost: KernelCost,
    /// Summed counters.
    pub counters: Counters,
}

impl KernelRow {
    /// Adds a launch to its kernel's row, or a row if it is the first.
    pub fn add(rows: &mut Vec<KernelRow>, kernel: &str, cost: KernelCost, counters: &Counters) {
        match rows.iter_mut().find(|row| row.kernel == kernel) {
            Some(row) => {
                row.launches += 1;
                row.modelled_us += cost.total();
                row.bound = cost.bound();
                row.cost = cost;
                row.counters.add(counters);
            }
            None => rows.push(KernelRow {
                kernel: kernel.to_owned(),
                launches: 1,
                modelled_us: cost.total(),
                bound: cost.bound(),
                cost,
                counters: *counters,
            }),
        }
    }
}

/// The rows as an aligned table, the most expensive kernel first.
pub fn table(rows: &[KernelRow]) -> String {
    let mut rows: Vec<&KernelRow> = rows.iter().collect();
    rows.sort_by(|a, b| b.modelled_us.total_cmp(&a.modelled_us));
    let width = rows.iter().map(|r| r.kernel.len()).max().unwrap_or(0).max(6);
    let head = [
        "launches",
        "modelled us",
        "bound",
        "warp instr",
        "DRAM bytes",
        "sect/req",
        "replays",
        "tensor FLOP",
    ];
    let mut text = format!("{:width$}", "kernel");
    for name in head {
        let _ = write!(text, "  {name:>12}");
    }
    text.push('\n');
    for row in rows {
        let c = &row.counters;
        let sectors = c.global_sectors as f64 / c.global_requests.max(1) as f64;
        let _ = writeln!(
            text,
            "{:width$}  {:>12}  {:>12.3}  {:>12}  {:>12}  {:>12}  {sectors:>12.2}  {:>12}  {:>12}",
            row.kernel,
            row.launches,
            row.modelled_us,
            row.bound,
            c.warp_instructions,
            c.dram_read_bytes + c.dram_write_bytes,
            c.bank_replays,
            c.tensor.bf16 + c.tensor.f16 + c.tensor.fp8,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Footprint, Profile, kernel_cost};

    #[test]
    fn launches_of_a_kernel_are_summed_and_columns_line_up() {
        let profile = Profile::named("h100-80gb").unwrap();
        let mut rows = Vec::new();
        for (name, bytes) in [("short", 3_350_000), ("a_longer_name", 6_700_000), ("short", 3_350_000)] {
            let counters = Counters { dram_read_bytes: bytes, ..Counters::default() };
            let cost =
                kernel_cost(&profile, Footprint { threads: 256, ..Footprint::default() }, 1000, &counters);
            KernelRow::add(&mut rows, name, cost, &counters);
        }
        assert_eq!((rows.len(), rows[0].launches, rows[0].counters.dram_read_bytes), (2, 2, 6_700_000));
        assert!((rows[0].modelled_us - 8.0).abs() < 1e-9);
        let text = table(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|l| l.len() == lines[0].len()), "{text}");
        assert!(lines[1].starts_with("short"), "{text}");
    }
}
