//! What is measured, in the page's order.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::super::{Temporary, median};

/// The bench targets that sections run.
pub const BENCHES: [&str; 3] = ["cpu", "trunk", "tokenizer"];

/// Rounds of the start-up.
const STARTS: usize = 21;

/// The checkpoint of Kimi-K2's dimensions: 8.3 GB, of which a token reads 3.8.
const SYNTH: [&str; 8] = ["--like", "kimi-k2", "--layers", "3", "--experts", "32", "--format", "fp8-block"];

/// Runs commands and makes Markdown of what they say.
type Measure = Box<dyn Fn(&[Vec<String>]) -> Result<String>>;

/// A title, a paragraph, commands, and what they say.
pub struct Section {
    pub title: &'static str,
    says: &'static str,
    commands: Vec<Vec<String>>,
    measure: Measure,
}

impl Section {
    /// What one command prints: a table.
    pub fn of_command(title: &'static str, says: &'static str, words: &[&str]) -> Section {
        Section::new(title, says, &[words], |commands| printed(&commands[0]))
    }

    fn new(
        title: &'static str,
        says: &'static str,
        commands: &[&[&str]],
        measure: impl Fn(&[Vec<String>]) -> Result<String> + 'static,
    ) -> Section {
        let commands = commands.iter().map(|words| words.iter().map(|w| w.to_string()).collect()).collect();
        Section { title, says, commands, measure: Box::new(measure) }
    }

    /// The section's text, measured now.
    ///
    /// # Errors
    /// A command that fails or prints nothing.
    pub fn measure(&self) -> Result<String> {
        let shown: String = self.commands.iter().map(|words| format!("$ {}\n", quoted(words))).collect();
        let measured = (self.measure)(&self.commands)?;
        ensure!(!measured.trim().is_empty(), "{} printed nothing", shown.trim());
        Ok(format!(
            "## {}\n\n{}\n\n```console\n{shown}```\n\n{}\n\n",
            self.title,
            self.says,
            measured.trim_end()
        ))
    }
}

/// Every section; those of `full` write gigabytes.
pub fn all(full: bool) -> Vec<Section> {
    let mut sections = vec![
        Section::of_command(
            "Experts on the CPU",
            "One expert's matrices beside what the machine can do: plain reads of memory by the same threads, multiply-adds of f32 on registers,\n\
             or those of bfloat16 in AMX's tiles, of which a product as exact as in f32 takes three, with INT4 five.\n\
             Plain reads leave it to the processor what to fetch ahead, as STREAM does; kernels see to it themselves, and where there is little\n\
             to compute (BF16) they are faster than that. [notes/cpu.md](notes/cpu.md) explains them.",
            &["cargo", "bench", "--bench", "cpu"],
        ),
        Section::of_command(
            "The rest of a layer, and sampling",
            "One token. Weights and caches of 32 layers in turn; what has none is in the processor's caches.",
            &["cargo", "bench", "--bench", "trunk"],
        ),
        Section::of_command(
            "Tokenizer",
            "One thread, the demo model's vocabulary.",
            &["cargo", "bench", "--bench", "tokenizer"],
        ),
        Section::of_command(
            "The demo model",
            "16.8 M parameters, which lie in the processor's caches.",
            &["abruzzi", "bench", "--device", "cpu", "--depth", "0,1024,4096", "--rounds", "9"],
        ),
        Section::new(
            "Start-up",
            "From the start of the program to its first token: the demo model is found, opened, checked and loaded, the prompt tokenised and\n\
             computed.",
            &[&["abruzzi", "generate", "--device", "cpu", "-p", "In the beginning", "-n", "1", "--json"]],
            |commands| start_up(&commands[0]),
        ),
        Section::new(
            "The program's size",
            "Built without CUDA; symbols are what `strip` takes away.",
            &[&["strip", "-o", "stripped", "target/release/abruzzi"]],
            |_| program_size(),
        ),
        Section::new(
            "Loading",
            "4.3 GB of FP8 experts against `dd` on the same files, in the file cache and on the disk. [notes/loading.md](notes/loading.md) says\n\
             how it is done.",
            &[&["cargo", "xtask", "bench", "load"]],
            |commands| Ok(format!("```text\n{}\n```", judged(&whatever_printed(&commands[0])?)?)),
        ),
    ];
    if full {
        let synth = [&["abruzzi", "synth", "-o", "k2"][..], &SYNTH].concat();
        let bench = ["abruzzi", "bench", "-m", "k2", "--device", "cpu", "--depth", "0,1024", "--rounds", "5"];
        sections.push(Section::new(
            "Kimi-K2's dimensions",
            "A random checkpoint of three layers with 32 experts each: the widths are Kimi-K2's, and so is the vocabulary, whose embedding and\n\
             head weigh more among so few layers. The files are read from the disk once before: written just now they lie in the file cache in\n\
             small blocks.",
            &[&synth, &bench],
            |commands| of_checkpoint(&commands[0], &commands[1]),
        ));
    }
    sections
}

/// The words as a shell would have them.
fn quoted(words: &[String]) -> String {
    let quote = |word: &String| {
        if word.contains([' ', '|']) { format!("\"{word}\"") } else { word.clone() }
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

fn binary() -> PathBuf {
    crate::target_dir().join("release/abruzzi")
}

/// The command of these words; `abruzzi` is the one of this workspace.
fn command(words: &[String]) -> Command {
    let mut command = match words[0].as_str() {
        "abruzzi" => Command::new(binary()),
        "cargo" => crate::command(&[]),
        other => Command::new(other),
    };
    command.args(&words[1..]).current_dir(crate::root()).stdin(Stdio::null());
    command
}

/// What a command prints on stdout.
fn printed(words: &[String]) -> Result<String> {
    let out = output(words)?;
    ensure!(out.status.success(), "{} failed", quoted(words));
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The same of a command that also fails where what it measured is less than was asked for: the page says what was measured.
fn whatever_printed(words: &[String]) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(words)?.stdout).into_owned())
}

fn output(words: &[String]) -> Result<Output> {
    command(words).stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {}", words[0]))
}

/// The lines of `bench load` that sum its rounds up.
fn judged(text: &str) -> Result<String> {
    let lines: Vec<_> = text.lines().filter(|l| !l.contains("     dd ")).collect();
    ensure!(lines.iter().any(|l| l.contains("median")), "nothing was measured");
    Ok(lines.join("\n"))
}

/// Milliseconds from the start of a process to its first line.
fn start_up(words: &[String]) -> Result<String> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let begun = Instant::now();
        let mut child = command(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut first = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut lines = BufReader::new(stdout);
            lines.read_line(&mut first)?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            // Or it would meet a closed pipe.
            std::io::copy(&mut lines, &mut std::io::sink())?;
        }
        ensure!(child.wait()?.success(), "{} failed", quoted(words));
        ensure!(first.contains("\"token\""), "{} began with {first:?}, expected a token", quoted(words));
    }
    let (least, most) = times.iter().fold((f64::INFINITY, 0f64), |(l, m), &t| (l.min(t), m.max(t)));
    let middle = median(times);
    Ok(format!(
        "| first token after | rounds | spread |\n|--:|--:|---|\n| {middle:.1} ms | {STARTS} | {least:.1}–{most:.1} ms |"
    ))
}

fn program_size() -> Result<String> {
    let dir = tempfile::tempdir()?;
    let stripped = dir.path().join("stripped");
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(binary()).status();
    ensure!(status.context("cannot start strip; it comes with the C compiler")?.success(), "strip failed");
    let mb = |path: &PathBuf| -> Result<f64> { Ok(std::fs::metadata(path)?.len() as f64 / 1e6) };
    let (all, stripped) = (mb(&binary())?, mb(&stripped)?);
    Ok(format!("| as built | stripped |\n|--:|--:|\n| {all:.2} MB | {stripped:.2} MB |"))
}

/// Writes a checkpoint, reads its files from the disk, and measures it; all in a folder that goes afterwards.
fn of_checkpoint(synth: &[String], bench: &[String]) -> Result<String> {
    let dir = crate::target_dir().join(format!("bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let temporary = Temporary(dir);
    let model = temporary.0.join("k2").display().to_string();
    let there = |words: &[String]| -> Vec<String> {
        words.iter().map(|w| if w == "k2" { model.clone() } else { w.clone() }).collect()
    };
    printed(&there(synth))?;
    crate::run(&mut Command::new("sync"))?;
    let shards = super::super::shards(model.as_ref())?;
    super::super::forget(&shards)?;
    super::super::dd(&shards)?;
    printed(&there(bench))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_distinct_and_the_checkpoint_is_for_full_runs() {
        let titles = |full| all(full).iter().map(|s| s.title).collect::<Vec<_>>();
        let mut distinct = titles(true);
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), titles(true).len());
        assert_eq!(titles(true)[..titles(true).len() - 1], titles(false));
    }

    #[test]
    fn rounds_of_a_load_are_left_out() {
        let text = "warm         dd  4.00 GB/s   load  5.00 GB/s   peak 1.000 of the model's bytes\n\
                    model 4.28 GB, 7 rounds, peak at most 1.005\nwarm median  dd  4.00 GB/s   load  5.00 GB/s";
        assert_eq!(judged(text).unwrap().lines().count(), 2);
        assert!(judged("model 4.28 GB").is_err());
    }
}
