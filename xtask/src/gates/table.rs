//! The table of `docs/kernels.md`.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::rules::{self, Cost, Rule, Rules};
use super::sass::Pattern;
use super::{Kernel, footprint};
use crate::clock::{Profile, blocks_per_sm};

const BEGIN: &str = "<!-- written by `cargo xtask gates --write` with CUDA ";
const END: &str = "<!-- end -->";

/// One line a table of the rules, in the order of files; several kernels of one table share a line.
pub fn table(kernels: &[Kernel], rules: &Rules, profile: &Profile) -> Result<String> {
    let mut text = String::from(
        "| kernel | file | registers | shared memory | threads | blocks an SM | machine code | shape | bytes | \
         operations | limit |\n|---|---|--:|--:|--:|--:|---|---|--:|--:|---|\n",
    );
    let mut done = Vec::new();
    for kernel in kernels {
        let Some(&(name, rule)) = rules::of_kernel(rules, &kernel.usage.name).first() else { continue };
        if done.contains(&name) {
            continue;
        }
        done.push(name);
        let same = |k: &&Kernel| {
            rules::of_kernel(rules, &k.usage.name).first().is_some_and(|(table, _)| *table == name)
        };
        let all: Vec<&Kernel> = kernels.iter().filter(same).collect();
        line(&mut text, name, &all, rule, profile)?;
    }
    Ok(text)
}

fn line(text: &mut String, name: &str, kernels: &[&Kernel], rule: &Rule, profile: &Profile) -> Result<()> {
    let label = if kernels.len() > 1 { format!("`{name}` ({})", kernels.len()) } else { format!("`{name}`") };
    let mut files: Vec<String> = kernels.iter().map(|k| format!("`{}`", k.file)).collect();
    files.dedup();
    let most = |of: fn(&Kernel) -> u32| kernels.iter().map(|k| of(k)).max().unwrap_or(0);
    let blocks =
        kernels.iter().map(|k| blocks_per_sm(&profile.limits, footprint(k, rule))).min().unwrap_or(0);
    write!(
        text,
        "| {label} | {} | {} | {} | {} | {blocks} | {} | ",
        files.join(", "),
        most(|k| k.usage.registers),
        thousands(f64::from(most(|k| k.usage.shared) + rule.dynamic_shared)),
        rule.threads,
        opcodes(kernels, rule),
    )?;
    match &rule.cost {
        Some(cost) => cost_cells(text, cost, profile)?,
        None => writeln!(text, "| | | |")?,
    }
    Ok(())
}

/// What was demanded and how often it is there; of several kernels, of the one with least.
fn opcodes(kernels: &[&Kernel], rule: &Rule) -> String {
    let required = rule.main_loop.iter().flat_map(|l| std::iter::once(&l.of).chain(&l.require));
    let mut shown: Vec<&Pattern> = Vec::new();
    for pattern in rule.require.iter().chain(required) {
        if !shown.contains(&pattern) {
            shown.push(pattern);
        }
    }
    let cell = |pattern: &Pattern| {
        let least = kernels.iter().map(|k| pattern.count(&k.code.code)).min().unwrap_or(0);
        // A bar would end the cell.
        format!("{least} {}", pattern.0.replace(" | ", "/").replace('|', "/"))
    };
    shown.into_iter().map(cell).collect::<Vec<_>>().join(", ")
}

fn cost_cells(text: &mut String, cost: &Cost, profile: &Profile) -> Result<()> {
    let figures = cost.figures(profile)?;
    let shape: Vec<String> = cost.shape.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let flops = if figures.flops > 0.0 { thousands(figures.flops) } else { String::new() };
    let by = if figures.by_memory { "memory" } else { cost.unit.name() };
    let modelled = cost.modelled.map_or(String::new(), |share| format!("; modelled {:.0} %", 100.0 * share));
    let (shape, bytes) = (shape.join(", "), thousands(figures.bytes));
    writeln!(text, "{shape} | {bytes} | {flops} | {:.2} µs, {by}{modelled} |", figures.limit_us)?;
    Ok(())
}

/// `1234567` as `1,234,567`.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Puts the table between its markers in a file, or demands that it stand there.
pub fn update(path: &Path, table: &str, version: &str, write: bool) -> Result<()> {
    let old = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let (written_with, new) = replaced(&old, table, version).with_context(|| path.display().to_string())?;
    if write {
        if new != old {
            fs::write(path, new)?;
            println!("{} is new", path.display());
        }
    } else if written_with != version {
        eprintln!("{} was written with CUDA {written_with}, this is {version}: not compared", path.display());
    } else if new != old {
        bail!("the table of {} is not what was compiled: `cargo xtask gates --write`", path.display());
    }
    Ok(())
}

/// The release the table was written with, and the whole text with a new table.
fn replaced(old: &str, table: &str, version: &str) -> Result<(String, String)> {
    let (front, rest) = old.split_once(BEGIN).with_context(|| format!("no line {BEGIN:?}"))?;
    let (written_with, rest) = rest.split_once(" -->").context("the first marker does not end")?;
    let (_, back) =
        rest.split_once(END).with_context(|| format!("no line {END:?} after the first marker"))?;
    Ok((written_with.to_owned(), format!("{front}{BEGIN}{version} -->\n\n{table}\n{END}{back}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_groups() {
        for (value, text) in
            [(0.0, "0"), (999.0, "999"), (1000.0, "1,000"), (232_448.0, "232,448"), (1e6, "1,000,000")]
        {
            assert_eq!(thousands(value), text);
        }
    }

    #[test]
    fn a_table_that_differs_is_refused_unless_another_release_made_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        fs::write(path, format!("before\n{BEGIN}12.9 -->\nold\n{END}\nafter\n")).unwrap();
        update(path, "| new |\n", "13.0", false).unwrap();
        update(path, "| new |\n", "13.0", true).unwrap();
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(text, format!("before\n{BEGIN}13.0 -->\n\n| new |\n\n{END}\nafter\n"));
        update(path, "| new |\n", "13.0", false).unwrap();
        let error = update(path, "| newer |\n", "13.0", false).unwrap_err().to_string();
        assert!(error.contains("gates --write"), "{error}");
        fs::write(path, "no markers").unwrap();
        assert!(update(path, "", "13.0", true).is_err());
    }
}
