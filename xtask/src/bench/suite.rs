//! `cargo xtask bench`: measures everything that `docs/benchmarks.md` states, and writes it.
//!
//! A section is what commands print, below the commands. All of them have to succeed before a word is written.

mod machine;
mod sections;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::{cargo, command, run};
use sections::Section;

/// The page, from the workspace's root.
const PAGE: &str = "docs/benchmarks.md";

/// What stands between these lines is another command's, and is kept.
const PEERS_BEGIN: &str = "<!-- written by tools/bench_peers.py -->";
const PEERS_END: &str = "<!-- end -->";

/// Runs every section and writes the page; with `full` those that take minutes and gigabytes, too.
pub fn suite(full: bool) -> Result<()> {
    // Before anything is measured: a compiler would be beside it.
    cargo(&["build", "--release", "--bin", "abruzzi", "--example", "load"])?;
    run(command(&["bench", "--no-run"]).args(sections::BENCHES.iter().flat_map(|name| ["--bench", name])))?;
    let page = crate::root().join(PAGE);
    let sections = sections::all(full);
    write(&page, &machine::describe()?, &sections)?;
    println!("{} is new", page.display());
    Ok(())
}

/// The page of these sections, under a temporary name first. If one of them fails the page stays as it was.
fn write(page: &Path, machine: &str, sections: &[Section]) -> Result<()> {
    let old = if page.exists() { fs::read_to_string(page).context(PAGE)? } else { String::new() };
    let peers = between(&old).with_context(|| page.display().to_string())?;
    let mut text = format!(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench`, which anyone can run; each section below is what the commands above its table print.\n\
         `abruzzi` is `target/release/abruzzi`. Rates are medians, with the least and the greatest of the rounds.\n\n{machine}\n"
    );
    for section in sections {
        eprintln!("measuring: {}", section.title);
        let measured = section.measure().with_context(|| format!("section \"{}\"", section.title))?;
        text += &measured;
    }
    text += &format!(
        "## Kernels on a GPU\n\n\
         No run on a card has been recorded. What the emulator counts of each kernel, and what its clock makes of that (modelled), is in\n\
         [kernels.md](kernels.md#counts); `cargo xtask gates` and `cargo xtask test` hold the kernels to it.\n\n\
         ## Other engines\n\n\
         `python3 tools/bench_peers.py --out docs/benchmarks.md` writes what stands here; [notes/peers.md](notes/peers.md) says what is\n\
         compared, and what cannot be.\n\n{PEERS_BEGIN}\n{peers}{PEERS_END}\n"
    );
    let mut file = tempfile::NamedTempFile::new_in(page.parent().unwrap_or(Path::new(".")))?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    // Temporary files are their owner's alone; a page of the repository is for everybody.
    #[cfg(unix)]
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.persist(page).with_context(|| page.display().to_string())?;
    Ok(())
}

/// What stands between the markers of a page, nothing in a page without.
fn between(page: &str) -> Result<&str> {
    let Some((_, rest)) = page.split_once(&format!("{PEERS_BEGIN}\n")) else { return Ok("") };
    let (kept, _) =
        rest.split_once(PEERS_END).with_context(|| format!("no line {PEERS_END:?} after {PEERS_BEGIN:?}"))?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str, sections: &[Section]) -> (Result<()>, String) {
        let dir = tempfile::tempdir().unwrap();
        let page = dir.path().join("benchmarks.md");
        fs::write(&page, text).unwrap();
        let result = write(&page, "| a machine |\n", sections);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left beside the page");
        (result, fs::read_to_string(&page).unwrap())
    }

    fn section(title: &'static str, words: &[&str]) -> Section {
        Section::of_command(title, "What it is.", words)
    }

    #[test]
    fn sections_are_what_their_commands_print_and_the_peers_are_kept() {
        let old = format!("An earlier page.\n{PEERS_BEGIN}\n\n| llama.cpp |\n\n{PEERS_END}\n");
        let sections = [section("One", &["echo", "| 1 |"]), section("Two", &["echo", "| 2 |"])];
        let (result, text) = page(&old, &sections);
        result.unwrap();
        assert!(text.contains("| a machine |") && !text.contains("earlier"), "{text}");
        let one = "## One\n\nWhat it is.\n\n```console\n$ echo \"| 1 |\"\n```\n\n| 1 |\n\n## Two\n";
        assert!(text.contains(one), "{text}");
        assert!(text.ends_with(&format!("{PEERS_BEGIN}\n\n| llama.cpp |\n\n{PEERS_END}\n")), "{text}");
        let (result, again) = page(&text, &sections);
        result.unwrap();
        assert_eq!(again, text);
    }

    #[test]
    fn a_section_that_fails_is_named_and_the_page_stays() {
        for (words, expected) in [(&["false"][..], "false failed"), (&["true"], "printed nothing")] {
            let (result, text) = page("old", &[section("One", &["echo", "1"]), section("Two", words)]);
            let error = format!("{:#}", result.unwrap_err());
            assert!(error.contains("section \"Two\"") && error.contains(expected), "{error}");
            assert_eq!(text, "old");
        }
        let (result, _) = page(&format!("{PEERS_BEGIN}\nno end"), &[]);
        assert!(format!("{:#}", result.unwrap_err()).contains("no line"));
    }
}
