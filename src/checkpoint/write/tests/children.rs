//! What only a process of its own can show: a test runs its own binary again, and does there what the variable says.

use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Instant;

use blake3::Hash;
use rand_core::{Rng, SeedableRng};

use super::*;
use crate::checkpoint::write::journal::{JOURNAL, Journal};
use crate::checkpoint::write::layout::Layout;
use crate::error::Error;

/// Set in a child: the folder to work in.
const FOLDER: &str = "ABRUZZI_TEST_WRITE_FOLDER";
/// Set in a child that is to be killed: microseconds until then.
const KILL: &str = "ABRUZZI_TEST_WRITE_KILL";

/// The folder, in a child.
fn child() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// Runs one test of this module in a process of its own, in which [`child`] is `folder`.
fn run(test: &str, folder: &Path, kill: Option<u64>) -> ExitStatus {
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&format!("{module}::{test}"), "--exact", "--quiet"]).env(FOLDER, folder);
    command.envs(kill.map(|micros| (KILL, micros.to_string())));
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    // A child whose test has another name would pass without doing anything.
    assert!(!said.contains("running 0 tests"), "{test} is not the name of a test");
    assert!(out.status.success() || kill.is_some(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    out.status
}

/// Caps what this process may do from here on.
fn limit(resource: libc::__rlimit_resource_t, most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: setrlimit reads one `rlimit`, which lives here; ignoring a signal takes no pointer.
    unsafe {
        assert_eq!(libc::setrlimit(resource, &limit), 0);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

#[test]
fn killed_at_any_moment_the_next_run_makes_the_same_bytes() {
    let units = units(40, 60);
    if let Some(folder) = child() {
        if let Some(micros) = std::env::var(KILL).ok().and_then(|m| m.parse().ok()) {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(micros));
                // SAFETY: neither call takes a pointer.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            });
        }
        write(&folder.join("out"), &Maker::of(&units), &units, 3).unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    write(&dir.path().join("expected"), &Maker::of(&units), &units, 3).unwrap();
    let whole = begun.elapsed().as_micros() as u64;
    let expected = files(&dir.path().join("expected"));
    let layout = Layout::of(&units, SHARD_BYTES).unwrap();
    let (out, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
    let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(1);
    let mut kills = 0;
    loop {
        let name = "killed_at_any_moment_the_next_run_makes_the_same_bytes";
        let kill = (kills < 20).then(|| random.next_u64() % whole);
        let status = run(name, dir.path(), kill);
        let killed = status.signal() == Some(libc::SIGKILL);
        assert!(killed || status.success(), "{status}");
        if out.exists() {
            let mut found = files(&out);
            if killed {
                // It may have been between the rename and this file's removal.
                found.remove(JOURNAL);
            }
            assert_same(&found, &expected);
            if kills == 20 {
                return;
            }
            fs::remove_dir_all(&out).unwrap();
        }
        if killed {
            kills += 1;
            if kills % 2 == 0 && partial.join(JOURNAL).exists() {
                spoil(&partial, &layout);
            }
        }
    }
}

/// After a power failure, what was not synced can be anything.
fn spoil(partial: &Path, layout: &Layout<'_>) {
    let mut journal = Journal::open(partial, Hash::from_bytes(IDENTITY)).unwrap();
    let known = journal.begin(layout).unwrap();
    for (unit, place) in layout.places.iter().enumerate().filter(|(unit, _)| known[*unit].is_none()) {
        let shard = &layout.shards[place.shard];
        let path = partial.join(&shard.name);
        if fs::metadata(&path).is_ok_and(|m| m.len() == shard.len()) {
            let file = fs::File::options().write(true).open(&path).unwrap();
            let bytes = vec![0xa5; layout.units[unit].bytes() as usize];
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, shard.header + place.offset).unwrap();
        }
    }
}

#[test]
fn a_disk_that_fills_up_is_an_error_and_then_the_run_goes_on() {
    // The eighth unit's shard is larger than the child's files may be.
    let mut units = units(7, 60);
    let large = NewTensor { name: "large".into(), shape: vec![3 << 20], dtype: Dtype::U8 };
    units.push(Unit { tensors: vec![large] });
    if let Some(folder) = child() {
        limit(libc::RLIMIT_FSIZE, 2 << 20);
        match write(&folder.join("out"), &Maker::of(&units), &units, 1) {
            Err(Error::Io { path, action: "write", source }) if source.kind() == ErrorKind::FileTooLarge => {
                assert!(path.to_string_lossy().contains("out.partial/model-"), "{path:?}");
            }
            other => panic!("{other:?}"),
        }
        assert!(!folder.join("out").exists());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    run("a_disk_that_fills_up_is_an_error_and_then_the_run_goes_on", dir.path(), None);
    let rest = Maker::of(&units);
    write(&dir.path().join("out"), &rest, &units, 1).unwrap();
    assert_eq!(rest.made(), 1);
    write(&dir.path().join("expected"), &Maker::of(&units), &units, 2).unwrap();
    assert_same(&files(&dir.path().join("out")), &files(&dir.path().join("expected")));
}

/// Many shards of a few bytes each.
fn crumbs() -> Vec<Unit> {
    let tensor = |i| NewTensor { name: format!("t{i}"), shape: vec![2], dtype: Dtype::F32 };
    (0..400).map(|i| Unit { tensors: vec![tensor(i)] }).collect()
}

fn write_crumbs(out: &Path, units: &[Unit]) -> Result<usize> {
    let mut folder = begin(out)?;
    let maker = Maker::of(units);
    folder.shards(units, &maker, 8, &options(4))?;
    Ok(maker.made())
}

#[test]
fn a_journal_that_cannot_be_written_is_an_error_and_then_the_run_goes_on() {
    let units = crumbs();
    if let Some(folder) = child() {
        // Every shard stays below this; the journal, at about 85 bytes a unit, does not.
        limit(libc::RLIMIT_FSIZE, 4 << 10);
        match write_crumbs(&folder.join("out"), &units) {
            Err(Error::Io { path, source, .. }) if source.kind() == ErrorKind::FileTooLarge => {
                assert!(path.ends_with(JOURNAL), "{path:?}");
            }
            other => panic!("{other:?}"),
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    run("a_journal_that_cannot_be_written_is_an_error_and_then_the_run_goes_on", dir.path(), None);
    let journal = fs::read(dir.path().join("out.partial").join(JOURNAL)).unwrap();
    assert!((2 << 10..=4 << 10).contains(&journal.len()), "{}", journal.len());
    let made = write_crumbs(&dir.path().join("out"), &units).unwrap();
    assert!((300..400).contains(&made), "{made}");
}

#[test]
fn files_are_closed_when_their_shards_are_whole() {
    let units = crumbs();
    if let Some(folder) = child() {
        limit(libc::RLIMIT_NOFILE, 40);
        assert_eq!(write_crumbs(&folder.join("out"), &units).unwrap(), 400);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    run("files_are_closed_when_their_shards_are_whole", dir.path(), None);
    assert_eq!(files(&dir.path().join("out.partial")).len(), 402);
}

#[test]
fn a_parent_that_must_not_be_written_is_an_error() {
    if let Some(folder) = child() {
        drop_capabilities();
        match begin(&folder.join("out")).err() {
            Some(Error::Io { path, action: "create", source }) => {
                assert_eq!((path, source.kind()), (folder.join("out.partial"), ErrorKind::PermissionDenied));
            }
            other => panic!("{other:?}"),
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let writable = |yes: bool| {
        let mode = if yes { 0o755 } else { 0o555 };
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    writable(false);
    run("a_parent_that_must_not_be_written_is_an_error", dir.path(), None);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    writable(true);
}

/// Without them permissions hold for the superuser too, in this thread.
fn drop_capabilities() {
    // Version 3 of the structures, this thread, no bit in any set: see capset(2).
    let (header, sets) = ([0x2008_0522u32, 0], [0u32; 6]);
    // SAFETY: the call reads a header of two words and sets of six, which live here.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    assert_eq!(done, 0);
}

#[test]
fn memory_does_not_grow_with_what_is_written() {
    if let Some(folder) = child() {
        struct Zeros;
        impl Produce for Zeros {
            fn produce(&self, unit: usize, sink: &Sink<'_>) -> Result<()> {
                sink.put(0, 0, &vec![unit as u8; 2 << 20])
            }
        }
        let tensor = |i| NewTensor { name: format!("t{i}"), shape: vec![2 << 20], dtype: Dtype::U8 };
        let units: Vec<Unit> = (0..100).map(|i| Unit { tensors: vec![tensor(i)] }).collect();
        let before = peak();
        let mut folder = Folder::begin(&folder.join("out"), IDENTITY, 1).unwrap();
        folder.shards(&units, &Zeros, 50 << 20, &options(2)).unwrap();
        let grown = peak() - before;
        assert!(grown < 64 << 20, "{grown} bytes for 200 MB");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    run("memory_does_not_grow_with_what_is_written", dir.path(), None);
    let bytes: usize = files(&dir.path().join("out.partial")).values().map(Vec::len).sum();
    assert!(bytes > 200 << 20);
}

/// The most memory that this process has had, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}
