//! Module images as `cuModuleLoadData` receives them: nvcc's fatbins, PTX text, cubins.
//!
//! NVIDIA does not document the fatbin; the layout here was read off nvcc 13.0's files. The functions over slices check
//! every length and never panic; those over raw pointers trust the lengths the headers state, as the driver must.

use std::ffi::CStr;
use std::ffi::{c_char, c_void};

use thiserror::Error;

pub use super::cubin::cubin_registers;

/// Compute capability of the stand-in, times ten.
const ARCH: u32 = 90;
const FATBIN: u32 = 0xba55_ed50;
const WRAPPER: u32 = 0x4662_43b1;
const ELF: u32 = u32::from_le_bytes(*b"\x7fELF");
/// Entry kinds.
const KIND_PTX: u16 = 1;
const KIND_CUBIN: u16 = 2;
/// Entry flags: any of the compressions (LZ4 of two generations, Zstandard).
const COMPRESSED: u64 = 0x1000 | 0x2000 | 0x8000;
/// Entry flag: an architecture-specific variant, the `a` of sm_90a.
const SPECIFIC: u64 = 0x10_0000;
/// Bytes of a fatbin header and of the part of an entry's header that is read.
const HEADER: usize = 16;
const ENTRY: usize = 48;
/// Largest image taken from a raw pointer.
const LARGEST: u64 = 4 << 30;

/// What a module image holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image<'a> {
    /// PTX of the most specific architecture the stand-in can run.
    pub ptx: &'a str,
    /// Uncompressed machine code beside it: not executed, but it says how many registers a kernel takes on hardware.
    pub cubins: Vec<Cubin<'a>>,
}

/// Machine code for one architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cubin<'a> {
    /// Compute capability times ten: 90.
    pub arch: u32,
    /// The ELF file.
    pub elf: &'a [u8],
}

impl Image<'_> {
    /// Registers a thread by kernel, from the machine code for sm_90; empty if there is none.
    pub fn registers(&self) -> std::collections::HashMap<String, u32> {
        self.cubins.iter().filter(|c| c.arch == ARCH).flat_map(|c| cubin_registers(c.elf)).collect()
    }
}

/// Why an image cannot be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A null pointer, also inside a fatbin wrapper.
    #[error("the module image is a null pointer")]
    Null,
    /// Neither fatbin nor ELF nor text.
    #[error("the module image is neither a fatbin nor PTX text")]
    Unknown,
    /// Lengths that do not fit the image.
    #[error("the fatbin is damaged or cut short at byte {0}")]
    Damaged(usize),
    /// Machine code alone.
    #[error(
        "the module image is a cubin (machine code); the emulator runs PTX: build with code=[sm_90a,compute_90a]"
    )]
    Cubin,
    /// A fatbin without PTX.
    #[error("the fatbin holds no PTX; build with code=[sm_90a,compute_90a]")]
    NoPtx,
    /// PTX for newer architectures only.
    #[error("the fatbin's PTX is for compute_{0} or newer, beyond this sm_90a device")]
    TooNew(u32),
    /// The PTX entry is compressed.
    #[error("the fatbin's PTX is compressed; build with `--no-compress`")]
    Compressed,
    /// PTX that is not UTF-8.
    #[error("the PTX is not UTF-8 text at byte {0}")]
    NotText(usize),
    /// A header that states more than 4 GiB.
    #[error("the module image states a length of {0} bytes")]
    TooLong(u64),
}

/// The PTX of a module image: a fatbin, or PTX text with or without a NUL behind it.
///
/// # Errors
///
/// If the image holds no PTX that sm_90a could run, and when it is damaged.
pub fn ptx_of_image(image: &[u8]) -> Result<Image<'_>, ImageError> {
    match u32_at(image, 0) {
        Some(FATBIN) => fatbin(image),
        Some(ELF) => Err(ImageError::Cubin),
        _ => {
            let ptx = text(image)?;
            // Binary of another kind often is UTF-8 up to its first NUL.
            if ptx.contains(".version") {
                Ok(Image { ptx, cubins: Vec::new() })
            } else {
                Err(ImageError::Unknown)
            }
        }
    }
}

fn fatbin(image: &[u8]) -> Result<Image<'_>, ImageError> {
    let header = usize::from(u16_at(image, 6).ok_or(ImageError::Damaged(6))?);
    let total = u64_at(image, 8).and_then(|n| usize::try_from(n).ok()).ok_or(ImageError::Damaged(8))?;
    let end = header.checked_add(total).filter(|&end| header >= HEADER && end <= image.len());
    let image = end.and_then(|end| image.get(..end)).ok_or(ImageError::Damaged(8))?;
    let mut cubins = Vec::new();
    let mut best: Option<((u32, bool), u64, &[u8])> = None;
    let mut too_new: Option<u32> = None;
    let mut at = header;
    while at < image.len() {
        let entry = Entry::read(&image[at..]).ok_or(ImageError::Damaged(at))?;
        at += entry.length;
        match entry.kind {
            KIND_PTX if entry.arch > ARCH => {
                too_new = Some(too_new.map_or(entry.arch, |known| known.min(entry.arch)));
            }
            KIND_PTX => {
                let rank = (entry.arch, entry.flags & SPECIFIC != 0);
                if best.is_none_or(|(known, ..)| rank > known) {
                    best = Some((rank, entry.flags, entry.payload));
                }
            }
            KIND_CUBIN if entry.flags & COMPRESSED == 0 => {
                cubins.push(Cubin { arch: entry.arch, elf: entry.payload });
            }
            // Compressed machine code, or link-time intermediate code: neither is needed.
            _ => {}
        }
    }
    match (best, too_new) {
        (Some((_, flags, _)), _) if flags & COMPRESSED != 0 => Err(ImageError::Compressed),
        (Some((.., payload)), _) => Ok(Image { ptx: text(payload)?, cubins }),
        (None, Some(arch)) => Err(ImageError::TooNew(arch)),
        (None, None) => Err(ImageError::NoPtx),
    }
}

struct Entry<'a> {
    kind: u16,
    arch: u32,
    flags: u64,
    payload: &'a [u8],
    /// Header and padded payload.
    length: usize,
}

impl Entry<'_> {
    fn read(bytes: &[u8]) -> Option<Entry<'_>> {
        let header = usize::try_from(u32_at(bytes, 4)?).ok().filter(|&n| n >= ENTRY)?;
        let length = header.checked_add(usize::try_from(u64_at(bytes, 8)?).ok()?)?;
        Some(Entry {
            kind: u16_at(bytes, 0)?,
            arch: u32_at(bytes, 28)?,
            flags: u64_at(bytes, 40)?,
            payload: bytes.get(header..length)?,
            length,
        })
    }
}

/// Text up to the first NUL.
fn text(bytes: &[u8]) -> Result<&str, ImageError> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).map_err(|error| ImageError::NotText(error.valid_up_to()))
}

/// The image behind a pointer given to `cuModuleLoadData`: fatbin, fatbin wrapper (what `__cudaFatCubin` sections point
/// at), ELF, or NUL-terminated text.
///
/// # Errors
///
/// For null pointers, and if the header states an impossible length.
///
/// # Safety
///
/// `image` is null or points to an image of one of these kinds that is readable for the length its header states (text:
/// through its NUL) and unchanged for `'a`. A wrapper's data pointer fulfils the same.
pub unsafe fn image_at<'a>(image: *const c_void) -> Result<&'a [u8], ImageError> {
    let mut image = image;
    // SAFETY: the caller vouches for an image; `magic` reads no further than its bytes.
    if unsafe { magic(image) } == Some(WRAPPER) {
        // SAFETY: a wrapper is {u32, u32, pointer, …}: its pointer lies at byte 8.
        image = unsafe { image.byte_add(8).cast::<*const c_void>().read_unaligned() };
    }
    // SAFETY: the caller vouches for the image and for what a wrapper points at.
    let length = unsafe { image_len(image)? };
    // SAFETY: the caller vouches for `length` readable bytes, which nobody changes.
    Ok(unsafe { std::slice::from_raw_parts(image.cast::<u8>(), length) })
}

/// The length of an image (not of a wrapper), from its header; for text without its NUL.
///
/// # Errors
///
/// As [`image_at`].
///
/// # Safety
///
/// As [`image_at`].
pub unsafe fn image_len(image: *const c_void) -> Result<usize, ImageError> {
    if image.is_null() {
        return Err(ImageError::Null);
    }
    // SAFETY: not null, and the caller vouches for an image.
    let length = match unsafe { magic(image) } {
        Some(FATBIN) => {
            // SAFETY: the caller vouches for a whole fatbin header.
            let header: [u8; HEADER] = unsafe { image.cast::<[u8; HEADER]>().read_unaligned() };
            let size = u16_at(&header, 6).unwrap_or(0);
            u64_at(&header, 8).unwrap_or(0).saturating_add(u64::from(size))
        }
        // SAFETY: the caller vouches for a whole ELF file.
        Some(ELF) => unsafe { elf_len(image)? },
        Some(WRAPPER) => return Err(ImageError::Unknown),
        // SAFETY: whatever has no magic is text with a NUL, as the caller vouches.
        _ => unsafe { CStr::from_ptr(image.cast::<c_char>()) }.to_bytes().len() as u64,
    };
    usize::try_from(length).ok().filter(|_| length <= LARGEST).ok_or(ImageError::TooLong(length))
}

/// The first four bytes, read one by one: text may end before.
///
/// # Safety
///
/// As [`image_at`].
unsafe fn magic(image: *const c_void) -> Option<u32> {
    if image.is_null() {
        return None;
    }
    let mut bytes = [0; 4];
    for (n, byte) in bytes.iter_mut().enumerate() {
        // SAFETY: no NUL came before this byte, so that text goes on, and the binary kinds have 16 bytes and more.
        *byte = unsafe { image.cast::<u8>().add(n).read() };
        if *byte == 0 {
            return None;
        }
    }
    Some(u32::from_le_bytes(bytes))
}

/// The end of the furthest of section table and sections.
///
/// # Safety
///
/// `image` points to a whole ELF file.
unsafe fn elf_len(image: *const c_void) -> Result<u64, ImageError> {
    const SIZE: usize = super::cubin::HEADER;
    // SAFETY: an ELF file has its header.
    let header: [u8; SIZE] = unsafe { image.cast::<[u8; SIZE]>().read_unaligned() };
    let table = super::cubin::Table::of(&header).ok_or(ImageError::Cubin)?;
    let length = table.end().max(SIZE as u64);
    if length > LARGEST {
        return Err(ImageError::TooLong(length));
    }
    // SAFETY: the section table belongs to the file, which is readable through it.
    let known = unsafe { std::slice::from_raw_parts(image.cast::<u8>(), length as usize) };
    Ok(table.sections(known).map(|section| section.end()).fold(length, u64::max))
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}
