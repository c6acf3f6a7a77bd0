//! How long is an image? cuModuleLoadData gets a bare pointer.

use super::args::In;
use super::status::{Result, Status};

/// Magic of a fatbin.
const FATBIN: u32 = 0xba55_ed50;
/// Magic of the structure by which the CUDA runtime refers to a fatbin.
const WRAPPER: u32 = 0x4662_43b1;
/// "\x7fELF".
const ELF: u32 = 0x464c_457f;
/// No PTX text is longer; one without its terminating 0 must not be searched for ever.
const LONGEST_TEXT: usize = 1 << 30;

/// The bytes of an image: a fatbin, or PTX text without its terminating 0.
pub(super) fn read(image: In<u8>) -> Result<Vec<u8>> {
    let byte = |at: usize| image.at(at).map(u64::from);
    let number = |at: usize, bytes: usize| (0..bytes).try_fold(0, |n, i| Ok(n | byte(at + i)? << (8 * i)));
    // A shorter text ends before its fourth byte.
    for at in 0..4 {
        if byte(at)? == 0 {
            return if at == 0 { Err(Status::INVALID_IMAGE) } else { image.bytes(at) };
        }
    }
    match number(0, 4)? as u32 {
        FATBIN => {
            let len = number(6, 2)? + number(8, 8)?;
            image.bytes(usize::try_from(len).map_err(|_| Status::INVALID_IMAGE)?)
        }
        WRAPPER => read(In::from_argument(number(8, 8)? as *const u8)),
        // Machine code for one architecture: nothing to execute.
        ELF => Err(Status::NO_BINARY_FOR_GPU),
        _ => {
            let mut len = 0;
            while byte(len)? != 0 {
                len += 1;
                if len > LONGEST_TEXT {
                    return Err(Status::INVALID_IMAGE);
                }
            }
            image.bytes(len)
        }
    }
}
