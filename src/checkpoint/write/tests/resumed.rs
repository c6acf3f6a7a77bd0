//! What a run makes of what an earlier one left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use blake3::Hash;

use super::*;
use crate::checkpoint::write::journal::{JOURNAL, Journal};
use crate::checkpoint::write::layout::Layout;
use crate::error::Error;

/// Writes until some units are made, then cancels; returns how many are finished.
fn half(out: &Path, units: &[Unit], threads: usize) -> usize {
    struct Cancels<'a>(Maker<'a>, Arc<AtomicBool>);
    impl Produce for Cancels<'_> {
        fn produce(&self, unit: usize, sink: &Sink<'_>) -> Result<()> {
            if unit == self.0.units.len() / 2 {
                self.1.store(true, Ordering::Relaxed);
            }
            self.0.produce(unit, sink)
        }
    }
    let cancel = Arc::new(AtomicBool::new(false));
    let producer = Cancels(Maker::of(units), cancel.clone());
    let mut options = options(threads);
    options.cancel = Some(cancel);
    let mut folder = begin(out).unwrap();
    let cancelled = folder.shards(units, &producer, SHARD_BYTES, &options);
    assert!(matches!(cancelled, Err(Error::Cancelled)), "{cancelled:?}");
    assert!(!out.exists());
    producer.0.made()
}

#[test]
fn a_cancelled_run_is_continued_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let units = units(40, 60);
    let expected = write(&dir.path().join("expected"), &Maker::of(&units), &units, 2).unwrap();
    for threads in [1, 3] {
        let out = dir.path().join(format!("out{threads}"));
        let finished = half(&out, &units, threads);
        assert!(finished > 10, "{finished}");
        let rest = Maker::of(&units);
        let done = Arc::new(AtomicUsize::new(usize::MAX));
        let least = done.clone();
        let mut folder = begin(&out).unwrap();
        let mut options = options(threads);
        options.progress = Some(Arc::new(move |p| {
            least.fetch_min(p.bytes_done as usize, Ordering::Relaxed);
        }));
        let written = folder.shards(&units, &rest, SHARD_BYTES, &options).unwrap();
        folder.json("config.json", &serde_json::json!({})).unwrap();
        folder.finish().unwrap();
        assert_eq!(rest.made(), units.len() - finished);
        assert_eq!(written, expected);
        let known: u64 = units[..finished - threads].iter().map(Unit::bytes).sum();
        assert!(done.load(Ordering::Relaxed) as u64 > known, "progress begins with what is there");
        assert_same(&files(&out), &files(&dir.path().join("expected")));
    }
}

#[test]
fn a_torn_journal_is_believed_up_to_the_tear() {
    let dir = tempfile::tempdir().unwrap();
    let units = units(12, 60);
    let out = dir.path().join("out");
    let finished = half(&out, &units, 1);
    assert!(finished > 2);
    let partial = dir.path().join("out.partial");
    let journal = partial.join(JOURNAL);
    let text = fs::read(&journal).unwrap();
    let lines = |text: &[u8]| text.iter().filter(|&&b| b == b'\n').count();
    assert_eq!(lines(&text), 2 + finished);
    let layout = Layout::of(&units, SHARD_BYTES).unwrap();
    let known = |torn: &[u8]| {
        fs::write(&journal, torn).unwrap();
        let mut journal = Journal::open(&partial, Hash::from_bytes(IDENTITY)).unwrap();
        journal.begin(&layout).unwrap().iter().flatten().count()
    };
    let first = 1 + text.iter().position(|&b| b == b'\n').unwrap();
    for cut in first..=text.len() {
        let torn = &text[..cut];
        assert_eq!(known(torn), lines(torn).saturating_sub(2), "cut at {cut}");
    }
    let last = text[..text.len() - 1].iter().rposition(|&b| b == b'\n').unwrap();
    for (damaged, expected) in [
        ([&text[..], &[0; 300]].concat(), finished),
        ([&text[..], b"{\"unit\":[1,[\"00\"]]}\n"].concat(), finished),
        ([&text[..], b"{\"unit\":[99999,[]]}\n"].concat(), finished),
        // Of two lines about a unit the later one counts, and this one is about another unit 0.
        ([&text[..], b"{\"unit\":[0,[]]}\n"].concat(), finished - 1),
        ([&text[..], b"{\"lost\":[1,0,77]}\n"].concat(), finished - 2),
        ([&text[..=last], &vec![0; text.len() - last - 2], b"\n"].concat(), finished - 1),
        // What stands behind a damaged line is not believed either.
        ([&text[..=last], b"\n", &text[last + 1..]].concat(), finished - 1),
    ] {
        assert_eq!(known(&damaged), expected, "{}", String::from_utf8_lossy(&damaged));
    }

    known(&text[..text.len() - 9]);
    let rest = Maker::of(&units);
    begin(&out).unwrap().shards(&units, &rest, SHARD_BYTES, &options(2)).unwrap();
    assert_eq!(rest.made(), units.len() - (finished - 1));
    // What was noted behind the tear is believed too.
    let rest = Maker::of(&units);
    write(&out, &rest, &units, 2).unwrap();
    assert_eq!(rest.made(), 0);
    write(&dir.path().join("expected"), &Maker::of(&units), &units, 2).unwrap();
    assert_same(&files(&out), &files(&dir.path().join("expected")));
}

/// Fails before it has put anything.
struct Stops;

impl Produce for Stops {
    fn produce(&self, _: usize, _: &Sink<'_>) -> Result<()> {
        Err(Error::Cancelled)
    }
}

#[test]
fn a_shard_that_is_gone_or_cut_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let units = units(60, 60);
    write(&dir.path().join("expected"), &Maker::of(&units), &units, 2).unwrap();
    let layout = Layout::of(&units, SHARD_BYTES).unwrap();
    let (one, two) = (&layout.shards[0], &layout.shards[1]);
    for cut in [false, true] {
        let out = dir.path().join(format!("out{cut}"));
        let finished = half(&out, &units, 1);
        assert!(finished > two.units.end, "{finished}");
        let partial = out.with_extension("partial");
        fs::remove_file(partial.join(&one.name)).unwrap();
        if cut {
            let file = fs::File::options().write(true).open(partial.join(&two.name)).unwrap();
            file.set_len(two.len() - 1).unwrap();
        }
        // Also if that run is stopped when all lengths are right again, but not yet the bytes.
        let stopped = begin(&out).unwrap().shards(&units, &Stops, SHARD_BYTES, &options(1));
        assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
        for shard in [one, two] {
            let file = fs::File::options().write(true).open(partial.join(&shard.name)).unwrap();
            file.set_len(shard.len()).unwrap();
        }
        let rest = Maker::of(&units);
        write(&out, &rest, &units, 2).unwrap();
        let again = one.units.len() + if cut { two.units.len() } else { 0 };
        assert_eq!(rest.made(), units.len() - finished + again);
        assert_same(&files(&out), &files(&dir.path().join("expected")));
    }
}
