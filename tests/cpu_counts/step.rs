//! Counting by the processor's trap flag: with it set, every instruction of a thread ends in a SIGTRAP, whose handler counts.
//! It takes neither a counter of the processor nor a tracer nor a privilege, so it works in virtual machines and containers.
//!
//! Instructions of shared libraries are left out: which `memcpy` the C library takes depends on the processor and on its release,
//! and a single instruction of one may copy a page.

use std::arch::asm;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The trap flag among the processor's.
const TRAP: i32 = 0x100;

static COUNT: AtomicU64 = AtomicU64::new(0);
/// This program's own instructions lie here.
static FIRST: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// There is one count.
static ONE: Mutex<()> = Mutex::new(());

/// Counts calls, one at a time.
pub struct Stepper(());

impl Stepper {
    /// Takes SIGTRAP over, for good. `None` where nothing comes of the flag, as with programs that imitate a processor.
    pub fn new() -> Option<Stepper> {
        let own = own_code();
        FIRST.store(own.start, Ordering::Relaxed);
        BYTES.store(own.len(), Ordering::Relaxed);
        // SAFETY: a zeroed action is one without flags and with nothing blocked; the handler does what a handler may, atomic
        // operations, and takes what SA_SIGINFO has it given.
        let outcome = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = one_more as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGTRAP, &action, std::ptr::null_mut())
        };
        assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
        let stepper = Stepper(());
        (stepper.count(&mut || ()) > 0).then_some(stepper)
    }

    /// Instructions of this program that the call executes on this thread.
    pub fn count(&self, call: &mut dyn FnMut()) -> u64 {
        let _one = ONE.lock().expect("no call has panicked");
        COUNT.store(0, Ordering::SeqCst);
        // SAFETY: of the flags only the trap flag changes, and a handler is there. Signals spare what lies below the stack.
        unsafe { asm!("pushfq", "or dword ptr [rsp], {TRAP}", "popfq", TRAP = const TRAP) };
        call();
        // SAFETY: as above.
        unsafe { asm!("pushfq", "and dword ptr [rsp], {KEEP}", "popfq", KEEP = const !TRAP) };
        COUNT.load(Ordering::SeqCst)
    }
}

/// The handler. Where the interrupted thread is stands in its context.
extern "C" fn one_more(_: libc::c_int, _: *const libc::siginfo_t, context: *const libc::ucontext_t) {
    // SAFETY: the kernel passes a context, which lives until the handler returns.
    let at = unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] } as usize;
    if at.wrapping_sub(FIRST.load(Ordering::Relaxed)) < BYTES.load(Ordering::Relaxed) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where the executable's code lies in memory: the mapping with this function in it.
fn own_code() -> Range<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("this process's memory");
    let here = own_code as *const () as usize;
    let mut ranges = maps.lines().filter_map(|line| {
        let (first, end) = line.split_once(' ')?.0.split_once('-')?;
        Some(usize::from_str_radix(first, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    });
    ranges.find(|range| range.contains(&here)).expect("this function lies somewhere")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Executes two instructions a round.
    fn rounds(count: u32) {
        // SAFETY: counts a register down.
        unsafe { asm!("2: dec {left:e}", "jnz 2b", left = inout(reg) count => _) };
    }

    #[test]
    fn instructions_are_counted_one_by_one() {
        let Some(stepper) = Stepper::new() else {
            return eprintln!("this machine does not trap after an instruction");
        };
        let count = |n: u32| stepper.count(&mut || rounds(std::hint::black_box(n)));
        assert_eq!(count(1000) - count(1), 2 * 999);
        // A library's copy is the call and the return.
        let (from, mut to) = (vec![1u8; 1 << 16], vec![0; 1 << 16]);
        let copied = stepper.count(&mut || to.copy_from_slice(std::hint::black_box(&from)));
        assert!(copied < 200, "{copied} for a copy");
        assert_eq!(from, to);
    }
}
