//! The table a test prints, and runs under every schedule.

use std::time::{Duration, Instant};

use crate::device::{Device, Plain, schedules};

/// Rows: kernel, size, schedules, time.
pub struct Report {
    title: &'static str,
    rows: Vec<(String, String, usize, Duration)>,
}

impl Report {
    pub fn new(title: &'static str) -> Report {
        Report { title, rows: Vec::new() }
    }

    /// Runs `body` under every schedule and adds a row.
    pub fn run(&mut self, kernel: &str, size: impl ToString, device: &mut Device, body: impl Fn(&Device)) {
        let start = Instant::now();
        let schedules = schedules();
        for (_, schedule) in &schedules {
            device.settings.schedule = *schedule;
            body(device);
        }
        self.rows.push((kernel.to_owned(), size.to_string(), schedules.len(), start.elapsed()));
    }

    /// Prints the table; empty ones are a mistake.
    pub fn print(&self) {
        assert!(!self.rows.is_empty(), "{}: nothing ran", self.title);
        let mut text =
            format!("{}\n{:<28} {:>28} {:>9} {:>9}\n", self.title, "kernel", "size", "schedules", "ms");
        for (kernel, size, schedules, time) in &self.rows {
            text += &format!("{kernel:<28} {size:>28} {schedules:>9} {:>9.1}\n", time.as_secs_f64() * 1e3);
        }
        print!("{text}");
    }
}

/// Fails at the first difference.
pub fn assert_same<T: Plain>(what: &str, got: &[T], expected: &[T]) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths");
    assert!(!got.is_empty(), "{what}: nothing to compare");
    if let Some(i) = (0..got.len()).find(|&i| got[i] != expected[i]) {
        let wrong = (0..got.len()).filter(|&i| got[i] != expected[i]).count();
        panic!(
            "{what}: value {i} is {:?}, expected {:?} ({wrong} of {} differ)",
            got[i],
            expected[i],
            got.len()
        );
    }
}

/// Fails where a value is more ulps from the exact one than its column allows; `digits` are the format's.
pub fn assert_ulps(what: &str, got: &[f64], exact: &[f64], digits: i32, allowed: &[(&str, f64)]) {
    assert_eq!(got.len(), exact.len(), "{what}: lengths");
    assert!(!got.is_empty(), "{what}: nothing to compare");
    for (i, (&got, &exact)) in got.iter().zip(exact).enumerate() {
        let (function, ulps) = allowed[i % allowed.len()];
        let ulp = 2f64.powi(exact.abs().log2().floor().max(-1022.0) as i32 - digits + 1);
        let off = (got - exact).abs() / ulp;
        let element = i / allowed.len();
        assert!(
            got == exact || off <= ulps,
            "{what}: {function} of element {element} is {got:e}, exactly {exact:e}: {off} ulp off, {ulps} are allowed"
        );
    }
}
