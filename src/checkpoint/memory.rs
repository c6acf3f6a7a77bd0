//! How much host memory may be taken: the machine's, and the container's if it has less.

use std::fs;

/// Bytes that can be allocated without swapping or being killed, as far as the system tells.
pub fn available() -> u64 {
    machine().unwrap_or(u64::MAX).min(container().unwrap_or(u64::MAX))
}

fn machine() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// What the control group leaves: version 2, then version 1. Its file cache can be reclaimed and counts as free.
fn container() -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let root = "/sys/fs/cgroup";
    let group = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = group.lines().find_map(|l| l.strip_prefix("0::")).unwrap_or("/").trim_end_matches('/');
    let two =
        |name: &str| number(&format!("{root}{own}/{name}")).or_else(|| number(&format!("{root}/{name}")));
    let limit = two("memory.max").or_else(|| number(&format!("{root}/memory/memory.limit_in_bytes")))?;
    let used = two("memory.current").or_else(|| number(&format!("{root}/memory/memory.usage_in_bytes")))?;
    let stat = fs::read_to_string(format!("{root}{own}/memory.stat")).unwrap_or_default();
    let cache = stat.lines().find_map(|l| l.strip_prefix("inactive_file ")?.parse::<u64>().ok()).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}
