//! How much host memory may be taken: the machine's, and the container's if it has less.

use std::fs;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What this machine's memory offers. Disks are not looked at: whether a checkpoint lies on a fast one, the user knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostMemory {
    /// The smaller of the two below: bytes that can be allocated without swapping or being killed.
    pub available: u64,
    /// `MemAvailable` of the kernel, if it tells.
    pub machine: Option<u64>,
    /// What the tightest of this process's control groups leaves; `None` without a limit.
    pub container: Option<u64>,
    /// Bytes this process may lock by its own limit (`RLIMIT_MEMLOCK`); `None` without a limit. A driver that pins memory
    /// may be allowed more or less.
    pub lockable: Option<u64>,
    /// NUMA nodes.
    pub numa_nodes: usize,
}

/// Bytes that can be allocated without swapping or being killed, as far as the system tells.
pub fn available() -> u64 {
    machine().unwrap_or(u64::MAX).min(container().unwrap_or(u64::MAX))
}

/// Asks the system.
pub fn detect_host() -> HostMemory {
    let (machine, container) = (machine(), container());
    let nodes = fs::read_dir("/sys/devices/system/node").into_iter().flatten().flatten().filter(|entry| {
        let name = entry.file_name();
        name.to_str().and_then(|n| n.strip_prefix("node")).is_some_and(|n| n.parse::<u32>().is_ok())
    });
    HostMemory {
        available: machine.unwrap_or(u64::MAX).min(container.unwrap_or(u64::MAX)),
        machine,
        container,
        lockable: lockable(),
        numa_nodes: nodes.count().max(1),
    }
}

fn machine() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn lockable() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes one `rlimit`, which lives here.
    let failed = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) } != 0;
    (!failed && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

fn container() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    left(Path::new(CGROUPS), &groups)
}

/// Names of a version's files.
struct Version {
    limits: &'static [&'static str],
    used: &'static str,
    /// The file cache, which can be reclaimed, of this group and those below it, in `memory.stat`.
    cache: [&'static str; 2],
}

const TWO: Version = Version {
    limits: &["memory.max", "memory.high"],
    used: "memory.current",
    cache: ["inactive_file ", "active_file "],
};
const ONE: Version = Version {
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    cache: ["total_inactive_file ", "total_active_file "],
};

/// What control groups leave: the least over the process's own and all above it, of both versions. File cache, which may be
/// that of a mapped model, counts as free, as it does in `MemAvailable`; above `memory.high` a process is slowed down, so that is a limit too.
fn left(root: &Path, groups: &str) -> Option<u64> {
    let two = groups.lines().find_map(|l| l.strip_prefix("0::")).unwrap_or("/");
    let one = groups.lines().find_map(|l| {
        let (controllers, path) = l.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|c| c == "memory").then_some(path)
    });
    let two = up(root, two).filter_map(|dir| TWO.left(&dir));
    let one = up(&root.join("memory"), one.unwrap_or("/")).filter_map(|dir| ONE.left(&dir));
    two.chain(one).min()
}

/// The folder of a group and those of all groups above it. In a container the path may not exist below the mount; the mount
/// itself, where the walk ends, is then the container's group.
fn up(root: &Path, group: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let group = group.trim_matches('/').to_owned();
    // A path that climbs is another namespace's and names nothing here.
    let group = if group.split('/').any(|part| part == "..") { String::new() } else { group };
    let root = root.to_owned();
    let depth = if group.is_empty() { 0 } else { group.split('/').count() };
    (0..=depth).rev().map(move |parts| root.join(group.split('/').take(parts).collect::<PathBuf>()))
}

impl Version {
    fn left(&self, dir: &Path) -> Option<u64> {
        let number = |name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
        let limit = self.limits.iter().filter_map(|name| number(name)).min()?;
        let used = number(self.used)?;
        let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
        let lines = |name| stat.lines().find_map(|l| l.strip_prefix(name)?.parse::<u64>().ok());
        let cache: u64 = self.cache.into_iter().filter_map(lines).sum();
        Some(limit.saturating_sub(used.saturating_sub(cache)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), format!("{text}\n")).unwrap();
        }
    }

    #[test]
    fn version_two_takes_the_tightest_on_the_way_up() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(&root.join("a/b"), &[("memory.max", "max"), ("memory.high", "max"), ("memory.current", "5")]);
        assert_eq!(left(root, "0::/a/b\n"), None);
        write(&root.join("a"), &[("memory.max", "1000"), ("memory.current", "300")]);
        assert_eq!(left(root, "0::/a/b\n"), Some(700));
        write(&root.join("a"), &[("memory.stat", "anon 7\ninactive_file 250\nactive_file 9")]);
        assert_eq!(left(root, "0::/a/b\n"), Some(959));
        write(&root.join("a/b"), &[("memory.high", "105")]);
        assert_eq!(left(root, "0::/a/b\n"), Some(100));
        assert_eq!(left(root, "0::/a\n"), Some(959));
        write(&root.join("a"), &[("memory.current", "3000")]);
        assert_eq!(left(root, "0::/a\n"), Some(0));
    }

    #[test]
    fn a_path_of_another_namespace_leaves_the_mount() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &[("memory.max", "640"), ("memory.current", "40")]);
        for groups in ["0::/../../outside\n", "0::/not/here\n", "0::/\n", ""] {
            assert_eq!(left(root.path(), groups), Some(600), "{groups:?}");
        }
    }

    #[test]
    fn version_one() {
        let root = tempfile::tempdir().unwrap();
        let unlimited = "9223372036854771712";
        write(
            &root.path().join("memory"),
            &[("memory.limit_in_bytes", unlimited), ("memory.usage_in_bytes", "0")],
        );
        write(
            &root.path().join("memory/job"),
            &[
                ("memory.limit_in_bytes", "500"),
                ("memory.usage_in_bytes", "450"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 28\ntotal_active_file 2"),
            ],
        );
        assert_eq!(left(root.path(), "7:cpu,cpuacct:/x\n4:memory:/job\n"), Some(80));
        assert_eq!(left(root.path(), "4:memory:/elsewhere\n"), Some(9_223_372_036_854_771_712));
    }

    #[test]
    fn this_machine() {
        let host = detect_host();
        assert!(host.available > 0 && host.numa_nodes > 0, "{host:?}");
        assert!(host.machine.is_none_or(|m| host.available <= m), "{host:?}");
        assert!(host.container.is_none_or(|c| host.available <= c), "{host:?}");
    }
}
