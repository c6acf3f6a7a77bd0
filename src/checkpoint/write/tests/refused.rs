//! What is not written, and what is left then.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::checkpoint::write::journal::JOURNAL;
use crate::error::Error;

fn kind(error: Error) -> (ErrorKind, String) {
    let text = error.to_string();
    match error {
        Error::Io { source, .. } => (source.kind(), text),
        other => panic!("{other}"),
    }
}

fn unfinished(out: &Path, identity: [u8; 32]) -> String {
    match Folder::begin(out, identity, 0).err() {
        Some(Error::Unfinished { folder, problem }) => {
            assert_eq!(folder, out.with_extension("partial"));
            problem
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_stands_there_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for kind_of in 0..3 {
        match kind_of {
            0 => fs::create_dir(&out).unwrap(),
            1 => fs::write(&out, "mine").unwrap(),
            _ => std::os::unix::fs::symlink("nowhere", &out).unwrap(),
        }
        let (kind, text) = kind(begin(&out).err().unwrap());
        assert_eq!(kind, ErrorKind::AlreadyExists, "{text}");
        assert!(text.contains("out: cannot create"), "{text}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::remove_file(&out).or_else(|_| fs::remove_dir(&out)).unwrap();
    }
    // It comes into being meanwhile.
    let mut folder = begin(&out).unwrap();
    fs::create_dir(&out).unwrap();
    assert_eq!(kind(folder.finish().err().unwrap()).0, ErrorKind::AlreadyExists);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    fs::remove_dir(&out).unwrap();
    assert!(folder.finish().is_ok());
}

#[test]
fn names_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let none = begin(&dir.path().join("gone/..")).err().unwrap();
    assert_eq!(kind(none).0, ErrorKind::InvalidInput);
    let out = dir.path().join("out");
    let folder = begin(&dir.path().join("out/")).unwrap();
    assert!(dir.path().join("out.partial").is_dir());
    for name in ["", ".", "..", "a/b", "/etc/x", "a/", JOURNAL] {
        let (kind, text) = kind(folder.json(name, &"x").unwrap_err());
        assert_eq!(kind, ErrorKind::InvalidInput, "{name}: {text}");
    }
    let (found, _) = kind(folder.copy_file("x", &dir.path().join("absent")).unwrap_err());
    assert_eq!(found, ErrorKind::NotFound);
    assert_eq!(kind(folder.copy_file("x", dir.path()).unwrap_err()).0, ErrorKind::InvalidInput);
    // A link in the folder is not followed: it may lead anywhere.
    let victim = dir.path().join("victim");
    fs::write(&victim, "kept").unwrap();
    std::os::unix::fs::symlink(&victim, dir.path().join("out.partial/x")).unwrap();
    assert!(folder.json("x", &"overwritten").is_err());
    assert_eq!(fs::read(&victim).unwrap(), b"kept");
    folder.abandon().unwrap();
    assert!(!out.exists() && !dir.path().join("out.partial").exists());
}

#[test]
fn a_disk_without_room_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let (kind, text) = kind(Folder::begin(&out, IDENTITY, 1 << 62).err().unwrap());
    assert_eq!(kind, ErrorKind::StorageFull);
    assert!(text.contains("4611686018427387904 bytes are needed, "), "{text}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_of_another_run_is_refused_by_name_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let partial = dir.path().join("out.partial");
    // Empty, or with a first line that was never finished: nothing was lost, so it may begin.
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join(JOURNAL), "{\"iden").unwrap();
    drop(begin(&out).unwrap());
    let begun = files(&partial);
    let problem = unfinished(&out, [8; 32]);
    assert!(problem.contains("other arguments or another version"), "{problem}");
    assert_same(&files(&partial), &begun);

    fs::write(partial.join("mine"), "kept").unwrap();
    fs::write(partial.join(JOURNAL), "").unwrap();
    assert!(unfinished(&out, IDENTITY).contains("damaged journal"));
    fs::write(partial.join(JOURNAL), "not of this program\n").unwrap();
    assert!(unfinished(&out, IDENTITY).contains("another version"));
    fs::remove_file(partial.join(JOURNAL)).unwrap();
    assert!(unfinished(&out, IDENTITY).contains("has no journal"));
    assert_eq!(files(&partial).into_iter().collect::<Vec<_>>(), [("mine".into(), b"kept".to_vec())]);
    let text = Folder::begin(&out, IDENTITY, 0).err().unwrap().to_string();
    assert!(text.contains("out.partial: ") && text.contains("remove this folder"), "{text}");

    // A journal that never ends costs no memory.
    fs::File::create(partial.join(JOURNAL)).unwrap().set_len(1 << 40).unwrap();
    assert!(unfinished(&out, IDENTITY).contains("larger"));
}

#[test]
fn units_laid_out_otherwise_are_another_run() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let units = units(6, 20);
    begin(&out).unwrap().shards(&units, &Maker::of(&units), SHARD_BYTES, &options(2)).unwrap();
    let mut folder = begin(&out).unwrap();
    let other = folder.shards(&units, &Maker::of(&units), 10_000, &options(2));
    assert!(matches!(other, Err(Error::Unfinished { .. })), "{other:?}");
    let other = folder.shards(&units[..5], &Maker::of(&units), SHARD_BYTES, &options(2));
    assert!(matches!(other, Err(Error::Unfinished { .. })), "{other:?}");
    let maker = Maker::of(&units);
    folder.shards(&units, &maker, SHARD_BYTES, &options(2)).unwrap();
    assert_eq!(maker.made(), 0);
}

#[test]
fn two_cannot_write_the_same_folder() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let first = begin(&out).unwrap();
    // The lock belongs to the open file, so this process is as good as another.
    let (kind, text) = kind(begin(&out).err().unwrap());
    assert_eq!(kind, ErrorKind::ResourceBusy);
    assert!(text.contains("out.partial: ") && text.contains("another process"), "{text}");
    drop(first);
    assert!(begin(&out).is_ok());
}

#[test]
fn a_producer_that_fails_is_heard_and_leaves_what_it_finished() {
    struct Fails<'a>(Maker<'a>);
    impl Produce for Fails<'_> {
        fn produce(&self, unit: usize, sink: &Sink<'_>) -> Result<()> {
            match unit {
                7 => Err(Error::argument("source", "has a hole")),
                _ => self.0.produce(unit, sink),
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let units = units(20, 40);
    for threads in [1, 4] {
        let error = write(&out, &Fails(Maker::of(&units)), &units, threads).unwrap_err();
        assert!(matches!(error, Error::Argument { name: "source", .. }), "{error}");
        assert!(!out.exists() && dir.path().join("out.partial").exists());
    }
    let rest = Maker::of(&units);
    write(&out, &rest, &units, 2).unwrap();
    assert!((1..=13).contains(&rest.made()), "{}", rest.made());
}

#[test]
fn a_producer_that_panics_is_a_panic_and_not_a_hang() {
    struct Panics<'a>(Maker<'a>);
    impl Produce for Panics<'_> {
        fn produce(&self, unit: usize, sink: &Sink<'_>) -> Result<()> {
            assert_ne!(unit, 3, "on purpose");
            self.0.produce(unit, sink)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let units = units(8, 40);
    let producer = Panics(Maker::of(&units));
    assert!(catch_unwind(AssertUnwindSafe(|| write(&out, &producer, &units, 2))).is_err());
    assert!(!out.exists());
    write(&out, &Maker::of(&units), &units, 2).unwrap();
}

#[test]
fn every_byte_is_put_once_or_the_unit_is_refused() {
    type Pieces = &'static [(usize, u64, usize)];
    struct Puts(Pieces);
    impl Produce for Puts {
        fn produce(&self, _: usize, sink: &Sink<'_>) -> Result<()> {
            self.0.iter().try_for_each(|&(tensor, at, len)| sink.put(tensor, at, &vec![1; len]))
        }
    }
    let tensor = |name: &str| NewTensor { name: name.into(), shape: vec![100], dtype: Dtype::U8 };
    let units = [Unit { tensors: vec![tensor("a"), tensor("b")] }];
    let dir = tempfile::tempdir().unwrap();
    let defect = |pieces: Pieces, expected: &str| {
        let error = write(&dir.path().join("out"), &Puts(pieces), &units, 1).unwrap_err();
        assert!(matches!(error, Error::Defect { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    const A: (usize, u64, usize) = (0, 0, 100);
    const B: (usize, u64, usize) = (1, 0, 100);
    defect(&[], "not every byte of a ");
    defect(&[A], "not every byte of b ");
    defect(&[A, (1, 1, 99)], "of b ");
    defect(&[A, (1, 0, 99)], "of b ");
    defect(&[A, (1, 0, 40), (1, 41, 59)], "of b ");
    defect(&[A, B, A], "of a ");
    // As many bytes as there are, but some twice and some not at all.
    defect(&[A, (1, 0, 50), (1, 25, 50)], "of b ");
    defect(&[A, (1, 0, 50), (1, 0, 50)], "of b ");
    defect(&[A, (1, 0, 60), (1, 50, 50), (1, 50, 10), (1, 60, 40)], "of b ");
    defect(&[A, (1, 0, 101)], "101 bytes were put at 0 of b");
    defect(&[A, (1, u64::MAX, 1)], "of b");
    defect(&[A, (2, 0, 1)], "tensor 2 of a unit of 2");
    let pieces: Pieces = &[(1, 50, 50), A, (1, 0, 20), (0, 70, 0), (1, 21, 29), (1, 20, 1)];
    write(&dir.path().join("out"), &Puts(pieces), &units, 1).unwrap();
}

#[test]
fn what_the_loader_would_refuse_is_not_begun() {
    let dir = tempfile::tempdir().unwrap();
    let tensor = |name: &str, shape: &[u64]| Unit {
        tensors: vec![NewTensor { name: name.into(), shape: shape.into(), dtype: Dtype::F32 }],
    };
    let refuse = |units: &[Unit], shard_bytes: u64| {
        let mut folder = begin(&dir.path().join("out")).unwrap();
        folder.shards(units, &Maker::of(units), shard_bytes, &options(1)).unwrap_err()
    };
    for (units, expected) in [
        (vec![tensor("a", &[1]), tensor("a", &[2])], "\"a\" is to be written twice"),
        (vec![tensor("a", &[3, 0])], "[3, 0]"),
        (vec![tensor("a", &[1; 5])], "[1, 1, 1, 1, 1]"),
        (vec![tensor("a", &[1 << 40, 1 << 40])], "too large for any file"),
        (vec![tensor("a", &[1 << 60]), tensor("b", &[1 << 60])], "too large for any file"),
        (vec![tensor(&"n".repeat(513), &[1])], "name"),
        (vec![tensor("__metadata__", &[1])], "name"),
    ] {
        let error = refuse(&units, 1 << 30);
        assert!(matches!(error, Error::Defect { .. }) && error.to_string().contains(expected), "{error}");
    }
    let many: Vec<Unit> = (0..5000).map(|i| tensor(&format!("t{i}"), &[1])).collect();
    let error = refuse(&many, 4);
    assert!(matches!(error, Error::Argument { name: "shard_bytes", .. }), "{error}");
    assert!(error.to_string().contains("5000 shards; at most 4096"), "{error}");
    // Nothing but the journal's first line came of all that.
    assert_eq!(files(&dir.path().join("out.partial")).keys().collect::<Vec<_>>(), [JOURNAL]);
}
