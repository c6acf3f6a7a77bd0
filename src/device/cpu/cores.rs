//! Which cores this process may use, and binding threads to them.

use std::fs;

/// One hardware thread of each core that this process may run on, ascending. Two threads of a core share what computes and
/// what reads memory: the second adds nothing to kernels that use either fully. Empty where the system does not tell.
pub(super) fn usable() -> Vec<usize> {
    let allowed = allowed();
    let first_of_core = |&cpu: &usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let siblings = fs::read_to_string(path).unwrap_or_default();
        let first = parse_list(&siblings).into_iter().find(|sibling| allowed.contains(sibling));
        first.is_none_or(|first| first == cpu)
    };
    let cores: Vec<usize> = allowed.iter().copied().filter(first_of_core).collect();
    if cores.is_empty() {
        (0..std::thread::available_parallelism().map_or(1, usize::from)).collect()
    } else {
        cores
    }
}

/// Binds the calling thread to a hardware thread. Advice only: elsewhere it is slower, never wrong.
pub(super) fn bind(cpu: usize) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: a zeroed set is an empty one.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        if cpu < 8 * size_of::<libc::cpu_set_t>() {
            // SAFETY: the set has that many bits, and lives during the call, which reads it.
            unsafe {
                libc::CPU_SET(cpu, &mut set);
                libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = cpu;
}

/// Hardware threads this process may run on.
fn allowed() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: a zeroed set is an empty one.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the call writes one set of that size, which lives here.
        if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } == 0 {
            let bits = 8 * size_of::<libc::cpu_set_t>();
            // SAFETY: the set has that many bits.
            return (0..bits).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect();
        }
    }
    Vec::new()
}

/// Numbers of a list as the kernel writes it: `0-3,8`.
fn parse_list(list: &str) -> Vec<usize> {
    let mut numbers = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            numbers.extend(first..=last.min(first.saturating_add(4096)));
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_kernel() {
        assert_eq!(parse_list("0-3,8\n"), [0, 1, 2, 3, 8]);
        assert_eq!(parse_list("5,69"), [5, 69]);
        assert!(parse_list("").is_empty());
        assert!(parse_list("x-3").is_empty());
    }

    #[test]
    fn a_core_is_usable_here() {
        let cores = usable();
        assert!(!cores.is_empty() && cores.is_sorted(), "{cores:?}");
    }
}
