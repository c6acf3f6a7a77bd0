//! `cargo xtask gates`: what can be known of the kernels without a GPU. ptxas's report and the machine code of every
//! kernel are held to `cuda/gates.toml`, and the table of `docs/kernels.md` to both.

mod formula;
mod ptxas;
mod rules;
mod sass;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::clock::{Footprint, Profile, blocks_per_sm};
use crate::nvcc::{self, Compiled};
use crate::toolchain::Toolchain;
use rules::{Rule, Rules};
use sass::Pattern;

/// Where the rules are, from the workspace's root.
const RULES: &str = "cuda/gates.toml";
/// Where the table goes.
const TABLE: &str = "docs/kernels.md";

/// A kernel as it was compiled.
#[derive(Debug, Clone)]
struct Kernel {
    file: String,
    usage: ptxas::Usage,
    /// Threads of a block by its `__launch_bounds__`, if it has any.
    bounds: Option<u32>,
    code: sass::Function,
}

/// A rule that is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    /// Or a file or a table's name, where it is no kernel's fault.
    kernel: String,
    rule: String,
    found: String,
    expected: String,
}

impl Problem {
    fn new(kernel: &str, rule: &str, found: impl fmt::Display, expected: impl fmt::Display) -> Problem {
        Problem {
            kernel: kernel.to_owned(),
            rule: rule.to_owned(),
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Problem { kernel, rule, found, expected } = self;
        write!(f, "{kernel}: {rule}: found {found}, expected {expected}")
    }
}

/// Compiles every kernel, holds all of them to their rules, and the table to both; or writes the table.
pub fn run(write: bool) -> Result<()> {
    let root = crate::root();
    let toolchain = Toolchain::find_or_install()?;
    let cache = crate::target_dir().join("cuda-images");
    let compiled = compile(&toolchain, root, &cache)?;
    let (kernels, mut problems) = read(&toolchain, &compiled)?;
    let text = fs::read_to_string(root.join(RULES)).context(RULES)?;
    let rules = rules::parse(&text).context(RULES)?;
    let profile = Profile::named(Profile::NAMES[0])?;
    problems.extend(check(&kernels, &rules, &profile));
    for problem in &problems {
        eprintln!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} kernels, {} problems", kernels.len(), problems.len());
    }
    let table = table::table(&kernels, &rules, &profile)?;
    table::update(&root.join(TABLE), &table, &toolchain.version.to_string(), write)?;
    println!("{} kernels keep {} rules", kernels.len(), rules.len());
    Ok(())
}

fn compile(toolchain: &Toolchain, root: &Path, cache: &Path) -> Result<Vec<Compiled>> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(nvcc::compile_all(&nvcc::Job { toolchain, host_compiler: None, root, cache, jobs })?)
}

/// Every kernel of the fatbins, and what ptxas complained of.
fn read(toolchain: &Toolchain, compiled: &[Compiled]) -> Result<(Vec<Kernel>, Vec<Problem>)> {
    let Some(cuobjdump) = &toolchain.cuobjdump else {
        bail!(
            "no cuobjdump beside {}: install the rest of that toolkit, or unset CUDA_HOME and NVCC and let \
             `cargo xtask toolchain` fetch one",
            toolchain.nvcc.display()
        );
    };
    let (mut kernels, mut problems) = (Vec::new(), Vec::new());
    for image in compiled {
        let file = format!("cuda/{}.cu", image.name);
        let log = fs::read_to_string(&image.log).with_context(|| image.log.display().to_string())?;
        let (usages, warnings) = ptxas::parse(&log);
        for warning in warnings {
            let kernel = warning.kernel.as_deref().unwrap_or(&file);
            problems.push(Problem::new(kernel, "ptxas's warnings", warning.text, "none of these"));
        }
        let dump = Command::new(cuobjdump).arg("-sass").arg(&image.fatbin).output();
        let dump = dump.with_context(|| format!("cannot run {}", cuobjdump.display()))?;
        if !dump.status.success() {
            bail!("cuobjdump {}: {}", image.fatbin.display(), String::from_utf8_lossy(&dump.stderr));
        }
        let fatbin = fs::read(&image.fatbin).with_context(|| image.fatbin.display().to_string())?;
        let fatbin = String::from_utf8_lossy(&fatbin);
        let mut functions = sass::parse(&String::from_utf8_lossy(&dump.stdout));
        for usage in usages {
            let Some(at) = functions.iter().position(|f| f.name == usage.name && !f.code.is_empty()) else {
                bail!("{file}: ptxas reports kernel {}, cuobjdump shows no code of it", usage.name);
            };
            let code = functions.swap_remove(at);
            let bounds = launch_bounds(&fatbin, &usage.name);
            kernels.push(Kernel { file: file.clone(), usage, bounds, code });
        }
        if let Some(function) = functions.first() {
            bail!("{file}: cuobjdump shows function {}, of which ptxas reports nothing", function.name);
        }
    }
    kernels.sort_by(|a, b| (&a.file, &a.usage.name).cmp(&(&b.file, &b.usage.name)));
    Ok((kernels, problems))
}

/// The threads of a kernel's `.maxntid`, from the PTX that lies uncompressed in its fatbin, twice: once for debuggers,
/// with zeros for line ends.
fn launch_bounds(fatbin: &str, kernel: &str) -> Option<u32> {
    let (_, entry) = fatbin.split_once(&format!(".entry {kernel}("))?;
    let (head, _) = entry.split_once('{')?;
    let (_, bounds) = head.split_once(".maxntid")?;
    let end = bounds.find(|c: char| !(c.is_ascii_digit() || matches!(c, ',' | ' ')))?;
    bounds[..end].split(',').map(|n| n.trim().parse::<u32>().ok()).product()
}

/// Everything that is wrong, of all kernels.
fn check(kernels: &[Kernel], rules: &Rules, profile: &Profile) -> Vec<Problem> {
    let mut problems = Vec::new();
    for kernel in kernels {
        let name = &kernel.usage.name;
        universal(kernel, &mut problems);
        match rules::of_kernel(rules, name)[..] {
            [] => {
                let bounds = kernel.bounds.map_or(String::new(), |n| format!(", {n} threads"));
                let found = format!("none, for {} registers{bounds}", kernel.usage.registers);
                problems.push(Problem::new(name, "rules", found, format!("a table: add it to {RULES}")));
            }
            [(_, rule)] => check_rule(kernel, rule, profile, &mut problems),
            ref several => {
                let names: Vec<&str> = several.iter().map(|(name, _)| *name).collect();
                problems.push(Problem::new(name, "rules", names.join(" and "), "one table"));
            }
        }
    }
    for (name, rule) in rules {
        let theirs = |kernel: &Kernel| {
            rules::of_kernel(rules, &kernel.usage.name).iter().any(|(table, _)| table == name)
        };
        if !kernels.iter().any(theirs) {
            problems.push(Problem::new(name, "kernel of this table", "none", "one in cuda/*.cu"));
        }
        let planned = rule.kind.registers();
        match &rule.reason {
            None if rule.registers > planned => {
                let expected = format!("at most {planned} of this kind, or a reason");
                problems.push(Problem::new(name, "registers allowed", rule.registers, expected));
            }
            Some(reason) if rule.registers <= planned || reason.trim().is_empty() => {
                let expected = format!("one, for more than {planned} registers only");
                problems.push(Problem::new(name, "reason", format!("{reason:?}"), expected));
            }
            _ => {}
        }
        if let Some(Err(error)) = rule.cost.as_ref().map(|cost| cost.figures(profile)) {
            problems.push(Problem::new(name, "cost", format!("{error:#}"), "formulas over the shape"));
        }
    }
    problems
}

/// What every kernel must keep.
fn universal(kernel: &Kernel, problems: &mut Vec<Problem>) {
    let usage = &kernel.usage;
    for (rule, found) in [
        ("stack frame", usage.stack),
        ("spill stores", usage.spill_stores),
        ("spill loads", usage.spill_loads),
    ] {
        if found > 0 {
            problems.push(Problem::new(&usage.name, rule, format!("{found} bytes"), "0"));
        }
    }
    let local = Pattern("LDL | STL".into()).count(&kernel.code.code);
    if local > 0 {
        problems.push(Problem::new(&usage.name, "local memory (LDL, STL)", format!("{local} uses"), "none"));
    }
}

fn check_rule(kernel: &Kernel, rule: &Rule, profile: &Profile, problems: &mut Vec<Problem>) {
    let Kernel { usage, bounds, code, .. } = kernel;
    let mut fail = |rule: &str, found: String, expected: String| {
        problems.push(Problem::new(&usage.name, rule, found, expected));
    };
    if usage.registers > rule.registers {
        fail("registers", usage.registers.to_string(), format!("at most {}", rule.registers));
    }
    if let Some(bounds) = bounds.filter(|bounds| *bounds != rule.threads) {
        fail("threads", format!("__launch_bounds__({bounds})"), rule.threads.to_string());
    }
    let limits = &profile.limits;
    let shared = usage.shared + rule.dynamic_shared;
    if shared > limits.shared_per_block_optin {
        fail(
            "shared memory",
            format!("{shared} bytes"),
            format!("at most {}", limits.shared_per_block_optin),
        );
    }
    let registers = usage.registers * rule.threads;
    if registers > limits.registers_per_sm {
        fail("registers of a block", registers.to_string(), format!("at most {}", limits.registers_per_sm));
    }
    let blocks = blocks_per_sm(limits, footprint(kernel, rule));
    if blocks < rule.occupancy {
        fail("blocks on an SM", blocks.to_string(), format!("at least {}", rule.occupancy));
    }
    let mut opcodes = |place: &str, code: &[&sass::Instruction], require: &[Pattern], forbid: &[Pattern]| {
        for pattern in require {
            if pattern.count(code.iter().copied()) == 0 {
                fail(&format!("{pattern}{place}"), "none".into(), "at least one".into());
            }
        }
        for pattern in forbid {
            let found = pattern.count(code.iter().copied());
            if found > 0 {
                fail(&format!("{pattern}{place}"), found.to_string(), "none".into());
            }
        }
    };
    opcodes("", &code.code.iter().collect::<Vec<_>>(), &rule.require, &rule.forbid);
    if let Some(main) = &rule.main_loop {
        let inside = code.loops_with(&main.of);
        // A loop that was not found has nothing forbidden in it either.
        opcodes(" in a loop", &inside, std::slice::from_ref(&main.of), &[]);
        opcodes(&format!(" in the loop of {}", main.of), &inside, &main.require, &main.forbid);
    }
}

fn footprint(kernel: &Kernel, rule: &Rule) -> Footprint {
    let (registers, shared) = (kernel.usage.registers, kernel.usage.shared + rule.dynamic_shared);
    Footprint { threads: rule.threads, registers, shared }
}
