//! What the tests compare with, and what they share.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use abruzzi::checkpoint::weights::{Storage, expert_spec};
use abruzzi::error::Tier;
use abruzzi::experts::ExpertId;
use abruzzi::experts::host::{HostStore, StoreOptions};
use abruzzi::experts::policy::{Policy, Victim};
use abruzzi::{Checkpoint, Error};
use safetensors::SafeTensors;

/// Least recently used.
#[derive(Default)]
pub struct Oldest {
    clock: u64,
    used: HashMap<ExpertId, u64>,
    resident: Vec<ExpertId>,
    stubborn: bool,
}

impl Oldest {
    /// One that never lets go of anything for a newcomer.
    pub fn stubborn() -> Oldest {
        Oldest { stubborn: true, ..Oldest::default() }
    }
}

impl Policy for Oldest {
    fn name(&self) -> &'static str {
        "oldest"
    }

    fn touch(&mut self, id: ExpertId) {
        self.clock += 1;
        self.used.insert(id, self.clock);
    }

    fn insert(&mut self, id: ExpertId) {
        self.resident.push(id);
    }

    fn remove(&mut self, id: ExpertId) {
        self.resident.retain(|&other| other != id);
    }

    fn victim(&mut self, _newcomer: ExpertId, may_go: &mut dyn FnMut(ExpertId) -> bool) -> Victim {
        if self.stubborn {
            return Victim::Bypass;
        }
        let used = |id: &&ExpertId| self.used.get(*id).copied().unwrap_or(0);
        self.resident
            .iter()
            .filter(|&&id| may_go(id))
            .min_by_key(used)
            .map_or(Victim::None, |&id| Victim::Evict(id))
    }

    fn worth(&self, id: ExpertId) -> f64 {
        self.used.get(&id).copied().unwrap_or(0) as f64
    }
}

/// A checkpoint and every record, put together from the tensors that the `safetensors` crate finds.
pub struct Truth {
    pub checkpoint: Arc<Checkpoint>,
    records: HashMap<ExpertId, Vec<u8>>,
    pub ids: Vec<ExpertId>,
    pub slot: u64,
}

impl Truth {
    pub fn of(path: impl AsRef<Path>) -> Truth {
        let checkpoint = Arc::new(Checkpoint::open(path).unwrap());
        let files: Vec<Vec<u8>> =
            shards(checkpoint.dir()).iter().map(|f| std::fs::read(f).unwrap()).collect();
        let files: Vec<SafeTensors<'_>> =
            files.iter().map(|bytes| SafeTensors::deserialize(bytes).unwrap()).collect();
        let tensor = |name: &str| files.iter().find_map(|f| f.tensor(name).ok()).unwrap().data().to_vec();
        let config = checkpoint.config();
        let layers = (0..config.num_layers).filter(|&layer| checkpoint.record_layout(layer).is_some());
        let experts = config.moe.num_experts;
        let ids: Vec<_> = layers.flat_map(|l| (0..experts).map(move |e| ExpertId::new(l, e))).collect();
        let record = |&id: &ExpertId| {
            let layout = checkpoint.record_layout(id.layer as usize).unwrap();
            let mut bytes = vec![0; layout.size()];
            let spec = expert_spec(config, id.layer as usize, id.expert as usize);
            for (place, spec) in layout.parts().each().into_iter().zip(spec.each()) {
                let (weight, scale) = match spec.storage {
                    Storage::Plain => ("weight", None),
                    Storage::Fp8Block => ("weight", Some("weight_scale_inv")),
                    Storage::Int4Group32 => ("weight_packed", Some("weight_scale")),
                };
                let mut put = |suffix: &str, range: &std::ops::Range<usize>| {
                    bytes[range.clone()].copy_from_slice(&tensor(&format!("{}.{suffix}", spec.module)));
                };
                put(weight, &place.weight);
                scale.into_iter().for_each(|suffix| put(suffix, &place.scale));
            }
            (id, bytes)
        };
        let records: HashMap<_, _> = ids.iter().map(record).collect();
        let slot = records.values().map(Vec::len).max().unwrap() as u64;
        drop(files);
        Truth { checkpoint, records, ids, slot }
    }

    pub fn record(&self, id: ExpertId) -> &[u8] {
        &self.records[&id]
    }

    /// Has the system forget what it has of the files, so that they are read from the disk.
    pub fn forget_cached(&self) {
        for shard in shards(self.checkpoint.dir()) {
            let file = std::fs::File::open(shard).unwrap();
            // Pages that were not written yet stay; where the folder cannot be synced nothing is lost but the point.
            let _ = file.sync_all();
            // SAFETY: advice about a file that is open.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
    }

    pub fn whole(&self) -> u64 {
        self.slot * self.ids.len() as u64
    }

    pub fn store(&self, budget: u64, options: StoreOptions) -> Arc<HostStore> {
        HostStore::new(self.checkpoint.clone(), Some(budget), Box::<Oldest>::default(), options).unwrap()
    }

    /// Each thread asks for random experts, holding the last few: only right bytes or errors that name the expert.
    /// Returns how many of each there were.
    pub fn roam(&self, store: &HostStore, threads: u64, steps: usize, hold: usize) -> (u64, u64) {
        let counts = [AtomicU64::new(0), AtomicU64::new(0)];
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let counts = &counts;
                scope.spawn(move || {
                    let mut random = Random(thread + 1);
                    let mut held = std::collections::VecDeque::new();
                    for _ in 0..steps {
                        let id = self.ids[random.below(self.ids.len())];
                        match random.below(8) {
                            0 => drop(store.request(self.ids[random.below(self.ids.len())])),
                            1 => store.demote(self.ids[random.below(self.ids.len())]),
                            _ => {}
                        }
                        match store.get(id) {
                            Ok(record) => {
                                assert_eq!(record.as_ref(), self.record(id), "{id}");
                                assert_eq!(record.id(), id);
                                store.verify(id, record.as_ref(), Tier::Host, None).unwrap();
                                counts[0].fetch_add(1, Ordering::Relaxed);
                                held.push_back(record);
                            }
                            Err(error) => {
                                named(&error, id);
                                counts[1].fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        while held.len() > hold {
                            let old = held.pop_front().unwrap();
                            assert_eq!(old.as_ref(), self.record(old.id()), "changed under its lease");
                        }
                    }
                });
            }
        });
        counts.map(AtomicU64::into_inner).into()
    }
}

fn shards(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect()
}

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

pub fn options(change: impl FnOnce(&mut StoreOptions)) -> StoreOptions {
    let mut options = StoreOptions::default();
    options.checksums = true;
    options.load.threads = 2;
    change(&mut options);
    options
}

/// The error names the expert, and says the tier in its text.
pub fn named(error: &Error, id: ExpertId) {
    let Error::Expert { layer, expert, tier, .. } = error else { panic!("{error:?}") };
    assert_eq!((*layer, *expert), (id.layer as usize, id.expert as usize), "{error}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("expert {expert} of layer {layer} ({tier}")), "{text}");
}

/// A test that hangs ends here, with a word why. Dropped, it does nothing.
pub struct Watchdog(Arc<AtomicBool>);

impl Watchdog {
    pub fn new(test: &'static str) -> Watchdog {
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        std::thread::spawn(move || {
            for _ in 0..1200 {
                std::thread::sleep(Duration::from_millis(100));
                if seen.load(Ordering::Relaxed) {
                    return;
                }
            }
            eprintln!("{test} hangs");
            std::process::abort();
        });
        Watchdog(over)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
