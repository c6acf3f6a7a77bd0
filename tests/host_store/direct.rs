//! Reads around the file cache: through io_uring, one block after another, or, where the system refuses either, the next best
//! way. All give the same bytes and find the same damage. Refusals are real ones, by a filter of system calls.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use abruzzi::checkpoint::region::MappedFile;
use abruzzi::checkpoint::{DirectIo, ReadBuffer};
use abruzzi::experts::ExpertId;
use abruzzi::quant::Format;
use abruzzi::{Checkpoint, Error, LoadOptions, Synth};
use safetensors::SafeTensors;

use crate::common::{demo, oracle};
use crate::truth::{Truth, Watchdog, options};

/// A system call that is refused, all of them or those whose argument has these bits.
struct Refused {
    call: libc::c_long,
    /// Which argument, the bits to look at, and what they are where it is refused.
    when: Option<(u32, u32, u32)>,
    error: libc::c_int,
}

const NO_RING: Refused = Refused { call: libc::SYS_io_uring_setup, when: None, error: libc::EPERM };

impl Refused {
    /// Runs in a thread of its own, where the call is refused.
    fn while_running<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let filtered = || {
            self.install();
            run()
        };
        std::thread::scope(|scope| scope.spawn(filtered).join().unwrap())
    }

    fn install(&self) {
        let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let load = |at| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
        let unless = |k, skip| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, skip, k);
        let end = |k| op(libc::BPF_RET | libc::BPF_K, 0, 0, k);
        // `struct seccomp_data`: the call's number at 0, the arguments from 16 on.
        let condition = self.when.map_or(vec![], |(argument, mask, value)| {
            let and = op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, mask);
            vec![load(16 + 8 * argument), and, unless(value, 1)]
        });
        let mut filter = vec![load(0), unless(self.call as u32, condition.len() as u8 + 1)];
        filter.extend(condition);
        filter.push(end(libc::SECCOMP_RET_ERRNO | self.error as u32));
        filter.push(end(libc::SECCOMP_RET_ALLOW));
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program lives during the call, which copies it; it concerns this thread and those it starts.
        let refused = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
        };
        assert!(!refused, "{}", std::io::Error::last_os_error());
    }
}

/// One buffer a way: with an io_uring if the system gives us one, and without.
fn buffers(checkpoint: &Checkpoint) -> [(&'static str, ReadBuffer); 2] {
    let queued = ReadBuffer::new().unwrap();
    match checkpoint.direct_io() {
        Ok(DirectIo::Queued) => queued.io_uring().unwrap(),
        Ok(DirectIo::Single(why)) => {
            eprintln!("no io_uring here ({why}): the other ways are tested");
            assert_eq!(queued.io_uring(), Err(why));
        }
        Ok(other) => panic!("{other:?}"),
        Err(why) => eprintln!("no direct reads here ({why}): only the file cache is tested"),
    }
    let single = NO_RING.while_running(|| ReadBuffer::new().unwrap());
    assert!(single.io_uring().is_err());
    [("queued", queued), ("single", single)]
}

/// A checkpoint whose experts are matrices of 1.2 MB or more, in several pieces each that begin anywhere.
fn wide(dir: &Path, format: Format) {
    let config = std::fs::read_to_string(oracle("k2-fp8").join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["hidden_size"] = 1024.into();
    config["moe_intermediate_size"] = 1152.into();
    let like = dir.join("like.json");
    std::fs::write(&like, config.to_string()).unwrap();
    let synth = Synth::like(like.to_str().unwrap()).layers(2).experts(6).format(format);
    synth.write(&dir.join("model"), &LoadOptions::default()).unwrap();
}

fn read(checkpoint: &Checkpoint, id: ExpertId, buffer: Option<&mut ReadBuffer>) -> Result<Vec<u8>, Error> {
    let (layer, expert) = (id.layer as usize, id.expert as usize);
    let mut record = vec![0xa5; checkpoint.record_layout(layer).unwrap().size()];
    match buffer {
        Some(buffer) => checkpoint.read_expert_direct(layer, expert, &mut record, buffer)?,
        None => checkpoint.read_expert(layer, expert, &mut record)?,
    }
    Ok(record)
}

/// The faults that each way names; they must be the same.
fn told(checkpoint: &Checkpoint, id: ExpertId) -> Vec<String> {
    let faults = |result: Result<_, Error>| match result {
        Err(Error::Checkpoint { faults, .. }) => faults.0.iter().map(ToString::to_string).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let cached = faults(read(checkpoint, id, None));
    for (way, mut buffer) in buffers(checkpoint) {
        assert_eq!(faults(read(checkpoint, id, Some(&mut buffer))), cached, "{way}");
        // And once more: what went wrong has left nothing behind.
        assert_eq!(faults(read(checkpoint, id, Some(&mut buffer))), cached, "{way}");
    }
    cached
}

/// First byte of a tensor in a file.
fn offset(file: &Path, tensor: &str) -> u64 {
    let bytes = std::fs::read(file).unwrap();
    let data = SafeTensors::deserialize(&bytes).unwrap().tensor(tensor).unwrap().data().as_ptr();
    data as u64 - bytes.as_ptr() as u64
}

#[test]
fn every_way_gives_the_same_bytes() {
    let _watchdog = Watchdog::new("every_way_gives_the_same_bytes");
    let dir = tempfile::tempdir().unwrap();
    let [fp8, int4] = [("fp8", Format::Fp8Block), ("int4", Format::Int4Group32)].map(|(name, format)| {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        wide(&dir.path().join(name), format);
        dir.path().join(name).join("model")
    });
    for path in [demo(), oracle("k2-int4"), fp8, int4] {
        let truth = Truth::of(&path);
        for (way, mut buffer) in buffers(&truth.checkpoint) {
            truth.forget_cached();
            for &id in &truth.ids {
                let record = read(&truth.checkpoint, id, Some(&mut buffer)).unwrap();
                assert!(record == truth.record(id), "{}: {id}, {way}", path.display());
                // Every other expert is then in the file cache.
                if id.expert % 2 == 0 {
                    read(&truth.checkpoint, id, None).unwrap();
                }
            }
            for &id in truth.ids.iter().rev() {
                let record = read(&truth.checkpoint, id, Some(&mut buffer)).unwrap();
                assert!(record == truth.record(id), "{}: {id}, {way}, partly cached", path.display());
            }
        }
    }
}

#[test]
fn what_goes_around_the_file_cache_is_not_in_it_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    wide(dir.path(), Format::Fp8Block);
    let truth = Truth::of(dir.path().join("model"));
    let path = dir.path().join("model/model-00001-of-00001.safetensors");
    let file = File::open(&path).unwrap();
    let mapped = MappedFile::new(&file, file.metadata().unwrap().len() as usize).unwrap();
    let id = ExpertId::new(1, 4);
    let first = offset(&path, "model.layers.1.mlp.experts.4.up_proj.weight") as usize;
    let up = first..first + 1024 * 1152;
    assert!(mapped.is_cached(up.clone()), "it was just read");
    for (way, mut buffer) in buffers(&truth.checkpoint) {
        truth.forget_cached();
        if truth.checkpoint.direct_io().is_err() || mapped.is_cached(first..first + 1) {
            eprintln!("{way}: these files have no direct reads, or the file cache is all there is of them");
            continue;
        }
        read(&truth.checkpoint, id, Some(&mut buffer)).unwrap();
        let cached = up.clone().step_by(4096).filter(|&at| mapped.is_cached(at..at + 1)).count();
        assert_eq!(cached, 0, "{way}: pages of {}", up.len() / 4096);
    }
    read(&truth.checkpoint, id, None).unwrap();
    assert!(mapped.is_cached(up));
}

#[test]
fn what_is_refused_is_read_another_way() {
    let _watchdog = Watchdog::new("what_is_refused_is_read_another_way");
    let dir = tempfile::tempdir().unwrap();
    wide(dir.path(), Format::Fp8Block);
    let truth = Truth::of(dir.path().join("model"));
    let right = |checkpoint: &Checkpoint, buffer: &mut ReadBuffer| {
        for &id in &truth.ids {
            assert!(read(checkpoint, id, Some(buffer)).unwrap() == truth.record(id), "{id}");
        }
    };
    // No ring, or one that is of no use.
    for (call, error) in [
        (libc::SYS_io_uring_setup, libc::EPERM),
        (libc::SYS_io_uring_setup, libc::ENOSYS),
        (libc::SYS_io_uring_setup, libc::ENOMEM),
        (libc::SYS_io_uring_register, libc::EINVAL),
        (libc::SYS_io_uring_enter, libc::EPERM),
    ] {
        truth.forget_cached();
        Refused { call, when: None, error }.while_running(|| {
            let checkpoint = Checkpoint::open(dir.path().join("model")).unwrap();
            let mut buffer = ReadBuffer::new().unwrap();
            let why = buffer.io_uring().unwrap_err().to_owned();
            right(&checkpoint, &mut buffer);
            if let Ok(way) = checkpoint.direct_io() {
                assert_eq!(way, DirectIo::Single(&why));
                let store = described(checkpoint, truth.slot);
                assert!(store.contains("one block at a time") && store.contains(&why), "{store}");
            }
        });
    }
    // A ring that takes nothing any more, and one that cannot be waited for.
    let enter = |when| Refused { call: libc::SYS_io_uring_enter, when: Some(when), error: libc::EAGAIN };
    for (refused, is_lost) in [(enter((1, !0, 1)), true), (enter((3, 1, 1)), false)] {
        let [(_, mut queued), _] = buffers(&truth.checkpoint);
        let had_ring = queued.io_uring().is_ok() && truth.checkpoint.direct_io().is_ok();
        truth.forget_cached();
        refused.while_running(|| right(&truth.checkpoint, &mut queued));
        // What the file cache has kept of a file that was just written never comes to the ring.
        assert!(!had_ring || queued.io_uring().is_err() == is_lost, "{:?}", queued.io_uring());
        truth.forget_cached();
        right(&truth.checkpoint, &mut queued);
    }
    // A file system that refuses single direct reads: into memory that is aligned, as that of the records is not.
    let [_, (_, mut single)] = buffers(&truth.checkpoint);
    truth.forget_cached();
    Refused { call: libc::SYS_pread64, when: Some((1, 4095, 0)), error: libc::EINVAL }
        .while_running(|| right(&truth.checkpoint, &mut single));
    // And one that refuses to open files for them.
    let direct = libc::O_DIRECT as u32;
    Refused { call: libc::SYS_openat, when: Some((2, direct, direct)), error: libc::EINVAL }.while_running(
        || {
            let checkpoint = Checkpoint::open(dir.path().join("model")).unwrap();
            right(&checkpoint, &mut ReadBuffer::new().unwrap());
            assert!(checkpoint.direct_io().unwrap_err().starts_with("model-00001-of-00001.safetensors: "));
            let store = described(checkpoint, truth.slot);
            assert!(store.contains("read through the file cache (model-00001"), "{store}");
        },
    );
}

/// What a store says of itself that has room for one expert.
fn described(checkpoint: Checkpoint, budget: u64) -> String {
    let policy = Box::<crate::truth::Oldest>::default();
    abruzzi::experts::host::HostStore::new(checkpoint.into(), Some(budget), policy, options(|_| {}))
        .unwrap()
        .describe()
}

#[test]
fn a_store_says_how_it_reads() {
    let truth = Truth::of(demo());
    let said = truth.store(truth.slot * 3, options(|_| {})).describe();
    let way = match truth.checkpoint.direct_io() {
        Ok(DirectIo::Queued) => "read from the file cache or around it by io_uring",
        Ok(_) => "one block at a time (no io_uring: ",
        Err(_) => "read through the file cache (",
    };
    assert!(said.contains(way), "{said}");
}

#[test]
fn damage_in_several_blocks_is_named_the_same_every_way() {
    let _watchdog = Watchdog::new("damage_in_several_blocks_is_named_the_same_every_way");
    let dir = tempfile::tempdir().unwrap();
    wide(dir.path(), Format::Fp8Block);
    let model = dir.path().join("model");
    let file = model.join("model-00001-of-00001.safetensors");
    let name = |part: &str| format!("model.layers.1.mlp.experts.3.{part}");
    let write = OpenOptions::new().write(true).open(&file).unwrap();
    // The values lie in the first, second and third block of up, and in the last of gate.
    let (up, gate) = (offset(&file, &name("up_proj.weight")), offset(&file, &name("gate_proj.weight")));
    for at in [up + 77, up + (512 << 10), up + (600 << 10), up + (1100 << 10), gate + 1024 * 1152 - 1] {
        write.write_all_at(&[0xff], at).unwrap();
    }
    let scale = offset(&file, &name("down_proj.weight_scale_inv"));
    write.write_all_at(&f32::NAN.to_le_bytes(), scale + 8).unwrap();
    write.sync_all().unwrap();

    let truth = Truth::of(&model);
    truth.forget_cached();
    let faults = told(&truth.checkpoint, ExpertId::new(1, 3));
    let [down, gate, up] = &faults[..] else { panic!("{faults:?}") };
    for (fault, tensor, first) in [
        (down, "down_proj.weight_scale_inv", 2),
        (gate, "gate_proj.weight", 1024 * 1152 - 1),
        (up, "up_proj.weight", 77),
    ] {
        assert!(fault.contains(&name(tensor)), "{fault}");
        assert!(fault.contains(&first.to_string()), "{fault}");
    }
    assert!(up.contains('4'), "{up}");
    // Its neighbours are sound.
    let [(_, mut queued), _] = buffers(&truth.checkpoint);
    for expert in [2, 4] {
        let id = ExpertId::new(1, expert);
        assert!(read(&truth.checkpoint, id, Some(&mut queued)).unwrap() == truth.record(id));
    }
}

#[test]
fn a_file_that_became_shorter_is_told_the_same_every_way() {
    let _watchdog = Watchdog::new("a_file_that_became_shorter_is_told_the_same_every_way");
    let dir = tempfile::tempdir().unwrap();
    wide(dir.path(), Format::Fp8Block);
    let model = dir.path().join("model");
    let file = model.join("model-00001-of-00001.safetensors");
    let checkpoint = Checkpoint::open(&model).unwrap();
    // In the second block of up, not at its beginning.
    let tensor = "model.layers.1.mlp.experts.5.up_proj.weight";
    let end = offset(&file, tensor) + (512 << 10) + 12_345;
    OpenOptions::new().write(true).open(&file).unwrap().set_len(end).unwrap();
    let faults = told(&checkpoint, ExpertId::new(1, 5));
    let of = |name: &str| faults.iter().filter(|fault| fault.contains(name)).count();
    assert_eq!(of(&format!("{tensor}:")), 1, "{faults:?}");
    assert!(faults.iter().all(|fault| fault.contains("changed while it was being read")), "{faults:?}");
}
