//! Module images: hand-built fatbins and cubins, damaged ones, and raw pointers.

use std::ffi::c_void;

use cuda_emulator::ptx::fatbin::{Image, ImageError, cubin_registers, image_at, image_len, ptx_of_image};
use proptest::prelude::*;

const PTX: &str = ".version 8.3\n.target sm_90a\n.address_size 64\n";
const SPECIFIC: u64 = 0x10_0000;
const ZSTD: u64 = 0x8000;

/// An entry as nvcc writes it: (kind, architecture, flags, payload).
type Entry<'a> = (u16, u32, u64, &'a [u8]);

fn fatbin(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, arch, flags, payload) in entries {
        let padded = payload.len().next_multiple_of(8);
        let mut header = vec![0; 64];
        header[..2].copy_from_slice(&kind.to_le_bytes());
        header[4..8].copy_from_slice(&64u32.to_le_bytes());
        header[8..16].copy_from_slice(&(padded as u64).to_le_bytes());
        header[28..32].copy_from_slice(&arch.to_le_bytes());
        header[40..48].copy_from_slice(&flags.to_le_bytes());
        body.extend(header);
        body.extend_from_slice(payload);
        body.resize(body.len() + padded - payload.len(), 0);
    }
    let mut image = 0xba55_ed50u32.to_le_bytes().to_vec();
    image.extend(1u16.to_le_bytes());
    image.extend(16u16.to_le_bytes());
    image.extend((body.len() as u64).to_le_bytes());
    image.extend(body);
    image
}

/// An ELF file with two kernels: `old` counts its 40 registers in `sh_info`, `new` its 168 in `.nv.info`.
fn cubin() -> Vec<u8> {
    let names = b"\0.text.old\0.text.new\0.nv.info\0.symtab\0.strtab\0";
    let strings = b"\0new\0";
    let mut symbols = vec![0; 48];
    symbols[24] = 1;
    // A record to step over, then the register count of symbol 1.
    let mut info = vec![3, 1, 7, 7, 4, 0x12, 4, 0, 9, 9, 9, 9, 4, 0x2f, 8, 0];
    info.extend(1u32.to_le_bytes());
    info.extend(168u32.to_le_bytes());
    let sections: [(u32, u32, u32, u32, &[u8]); 6] = [
        (0, 3, 0, 0, names),
        (1, 1, 0, 40 << 24, &[0; 16]),
        (11, 1, 0, 14, &[0; 16]),
        (21, 0x7000_0000, 0, 0, &info),
        (30, 2, 5, 0, &symbols),
        (38, 3, 0, 0, strings),
    ];
    let mut file = vec![0; 64];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let mut table = Vec::new();
    for (name, kind, link, info, content) in sections {
        let mut header = vec![0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[0x18..0x20].copy_from_slice(&(file.len() as u64).to_le_bytes());
        header[0x20..0x28].copy_from_slice(&(content.len() as u64).to_le_bytes());
        header[0x28..0x2c].copy_from_slice(&link.to_le_bytes());
        header[0x2c..0x30].copy_from_slice(&info.to_le_bytes());
        table.extend(header);
        file.extend_from_slice(content);
    }
    let at = file.len() as u64;
    file[0x28..0x30].copy_from_slice(&at.to_le_bytes());
    file[0x3a..0x3c].copy_from_slice(&64u16.to_le_bytes());
    file[0x3c..0x3e].copy_from_slice(&6u16.to_le_bytes());
    file.extend(table);
    file
}

#[test]
fn text_with_and_without_nul() {
    for image in [PTX.to_owned(), format!("{PTX}\0"), format!("{PTX}\0rubbish\u{e9}")] {
        assert_eq!(ptx_of_image(image.as_bytes()), Ok(Image { ptx: PTX, cubins: vec![] }));
    }
}

#[test]
fn the_most_specific_runnable_ptx_is_taken() {
    let elf = cubin();
    let image = fatbin(&[
        (1, 80, 0, b".version 7.0"),
        (2, 90, SPECIFIC, &elf),
        (1, 90, SPECIFIC, PTX.as_bytes()),
        (1, 90, 0, b".version 8.0"),
        (1, 100, SPECIFIC, b".version 8.6"),
        (2, 90, ZSTD, b"squeezed"),
        (64, 90, 0, b"other"),
    ]);
    let loaded = ptx_of_image(&image).unwrap();
    assert_eq!(loaded.ptx, PTX);
    assert_eq!(
        loaded.cubins.iter().map(|c| (c.arch, c.elf.len())).collect::<Vec<_>>(),
        [(90, elf.len().next_multiple_of(8))]
    );
    assert_eq!(loaded.registers().get("new"), Some(&168));
}

#[test]
fn refusals() {
    let whole = fatbin(&[(1, 90, SPECIFIC, PTX.as_bytes())]);
    let mut short_header = whole.clone();
    short_header[20..24].copy_from_slice(&8u32.to_le_bytes());
    let cases: [(&[u8], ImageError); 9] = [
        (&fatbin(&[(1, 90, ZSTD, b"squeezed")]), ImageError::Compressed),
        (&fatbin(&[(1, 103, 0, b"x"), (1, 100, 0, b"x")]), ImageError::TooNew(100)),
        (&fatbin(&[(2, 90, 0, b"x")]), ImageError::NoPtx),
        (&fatbin(&[]), ImageError::NoPtx),
        (&fatbin(&[(1, 90, 0, b"\xff")]), ImageError::NotText(0)),
        (&whole[..whole.len() - 1], ImageError::Damaged(8)),
        (&short_header, ImageError::Damaged(16)),
        (&cubin(), ImageError::Cubin),
        (b"hello", ImageError::Unknown),
    ];
    for (image, error) in cases {
        assert_eq!(ptx_of_image(image), Err(error));
    }
    assert!(ImageError::Compressed.to_string().contains("--no-compress"));
}

#[test]
fn registers_of_both_generations() {
    let counts = cubin_registers(&cubin());
    assert_eq!(counts.len(), 2);
    assert_eq!((counts["old"], counts["new"]), (40, 168));
    assert!(cubin_registers(b"\x7fELF").is_empty());
}

#[test]
fn raw_pointers() {
    let image = fatbin(&[(1, 90, SPECIFIC, PTX.as_bytes())]);
    let elf = cubin();
    let text = format!("{PTX}\0");
    for (bytes, length) in [
        (&image[..], image.len()),
        (&elf, elf.len()),
        (text.as_bytes(), PTX.len()),
        (b"\0", 0),
        (b"\x7f\0", 1),
    ] {
        // SAFETY: whole images; text ends with NUL.
        assert_eq!(unsafe { image_at(bytes.as_ptr().cast()) }.map(<[u8]>::len), Ok(length));
    }
    let wrapper =
        Wrapper { magic: 0x4662_43b1, version: 1, data: image.as_ptr().cast(), file: std::ptr::null() };
    let wrapper: *const c_void = std::ptr::from_ref(&wrapper).cast();
    // SAFETY: a wrapper around a whole fatbin.
    assert_eq!(unsafe { image_at(wrapper) }, Ok(&image[..]));
    // SAFETY: as above; only the magic is read.
    assert_eq!(unsafe { image_len(wrapper) }, Err(ImageError::Unknown));
    let empty = Wrapper { magic: 0x4662_43b1, version: 1, data: std::ptr::null(), file: std::ptr::null() };
    // SAFETY: null and a wrapper around null.
    unsafe {
        assert_eq!(image_at(std::ptr::null()), Err(ImageError::Null));
        assert_eq!(image_at(std::ptr::from_ref(&empty).cast()), Err(ImageError::Null));
    }
    let mut huge = image.clone();
    huge[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    // SAFETY: the length is refused before anything behind the header is read.
    assert_eq!(unsafe { image_at(huge.as_ptr().cast()) }, Err(ImageError::TooLong(u64::MAX)));
}

#[repr(C)]
struct Wrapper {
    magic: u32,
    version: u32,
    data: *const c_void,
    file: *const c_void,
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = ptx_of_image(&bytes);
        cubin_registers(&bytes);
    }

    #[test]
    fn no_damage_panics(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let elf = cubin();
        for mut image in [elf.clone(), fatbin(&[(2, 90, 0, &elf), (1, 90, SPECIFIC, PTX.as_bytes())])] {
            for (at, byte) in &damage {
                let at = at.index(image.len());
                image[at] = *byte;
            }
            image.truncate(cut.index(2 * image.len()));
            if let Ok(image) = ptx_of_image(&image) {
                image.registers();
            }
            cubin_registers(&image);
        }
    }
}
