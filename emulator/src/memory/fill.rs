//! Filling memory with one byte so that it costs nothing until it is written.
//!
//! Large ranges are not written but mapped: privately, to a file in memory that holds the byte over and over. Reading
//! finds the file's pages, which all mappings share; writing makes a page of the range's own. Whoever accesses the range
//! notices nothing of it, whatever it goes by.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::OnceLock;

/// What a file holds, and the least that is mapped. A device filled with such pieces stays far below the 65,530 mappings
/// that Linux allows a process.
pub(super) const LARGE: usize = 16 << 20;

/// Fills `len` bytes from `start` on.
///
/// # Safety
/// The range must be part of a private mapping that may be read and written, and nobody else may
/// write to it meanwhile.
pub(super) unsafe fn fill(start: *mut u8, len: usize, byte: u8) {
    let page = page_size();
    let before = start.align_offset(page).min(len);
    let inside = (len - before) / page * page;
    // SAFETY: the pages lie inside the range, which is the caller's to overwrite.
    if len >= LARGE && unsafe { map(start.wrapping_add(before), inside, byte) } {
        let end = before + inside;
        // SAFETY: what is left of the range, before and behind the whole pages.
        unsafe {
            std::ptr::write_bytes(start, byte, before);
            std::ptr::write_bytes(start.wrapping_add(end), byte, len - end);
        }
        return;
    }
    // SAFETY: the caller's contract.
    unsafe { std::ptr::write_bytes(start, byte, len) };
}

/// Maps whole pages. `false` if that is not possible; what was mapped until then is right all the same.
///
/// # Safety
/// As [`fill`]; `start` and `len` are multiples of the page size.
unsafe fn map(start: *mut u8, len: usize, byte: u8) -> bool {
    let Some(file) = holding(byte) else { return false };
    let mut done = 0;
    while done < len {
        let piece = LARGE.min(len - done);
        let (access, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE);
        let at = start.wrapping_add(done);
        // SAFETY: replaces pages of a mapping of the caller's by others that may be accessed in the same way; the file
        // has `LARGE` bytes and nobody else knows it.
        let mapped = unsafe { libc::mmap(at.cast(), piece, access, flags, file.as_raw_fd(), 0) };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        done += piece;
    }
    true
}

/// A file of [`LARGE`] times this byte, one for the whole process; none if the system has none to give.
fn holding(byte: u8) -> Option<&'static File> {
    static FILES: [OnceLock<Option<File>>; 256] = [const { OnceLock::new() }; 256];
    let make = || {
        // SAFETY: a name that ends with zero.
        let descriptor = unsafe { libc::memfd_create(c"cuda-emulator fill".as_ptr(), libc::MFD_CLOEXEC) };
        if descriptor < 0 {
            return None;
        }
        // SAFETY: just opened, and nobody else's.
        let mut file = unsafe { File::from_raw_fd(descriptor) };
        let piece = vec![byte; 1 << 20];
        (0..LARGE / piece.len()).try_for_each(|_| file.write_all(&piece)).ok()?;
        Some(file)
    };
    FILES[usize::from(byte)].get_or_init(make).as_ref()
}

fn page_size() -> usize {
    // SAFETY: no preconditions.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_range_reads_as_filled_and_is_written_by_the_page() {
        let len = 3 * LARGE;
        let mut map = memmap2::MmapOptions::new().len(len).map_anon().unwrap();
        // Off the pages at both ends.
        let (start, filled) = (1234, 2 * LARGE + 77_777);
        // SAFETY: inside the mapping, which is this test's.
        unsafe { fill(map.as_mut_ptr().wrapping_add(start), filled, 0xa5) };
        assert!(map[..start].iter().chain(&map[start + filled..]).all(|b| *b == 0));
        assert!(map[start..start + filled].iter().all(|b| *b == 0xa5));
        let places = [start, start + 4096, LARGE + 1, 2 * LARGE];
        places.iter().for_each(|at| map[*at] = 1);
        let written = (start..start + filled).filter(|at| map[*at] != 0xa5).collect::<Vec<_>>();
        assert_eq!(written, places);
        // SAFETY: as above.
        unsafe { fill(map.as_mut_ptr().wrapping_add(start), filled, 0) };
        assert!(map.iter().all(|b| *b == 0));
    }
}
