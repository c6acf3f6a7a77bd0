use std::collections::HashSet;

use super::super::descriptor::{Descriptor, Major, unused_bits};
use super::super::fragment::*;
use super::super::swizzle::{Swizzle, swizzle};

const MODES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

#[test]
fn swizzles_are_involutions_that_permute_chunks_of_a_row() {
    for mode in MODES {
        for address in (0..8192u32).chain(0x3_8000..0x3_9000) {
            let to = swizzle(mode, address);
            assert_eq!(swizzle(mode, to), address);
            assert_eq!(to / mode.row_bytes(), address / mode.row_bytes());
            assert_eq!(to % 16, address % 16);
        }
    }
    // The chunk index of a 128-byte row is xored with the row.
    assert_eq!(swizzle(Swizzle::B128, 5 * 128 + 2 * 16 + 3), 5 * 128 + 7 * 16 + 3);
    // 64-byte rows: chunk ^= (row / 2) % 4; 32-byte rows: chunk ^= (row / 4) % 2.
    assert_eq!(swizzle(Swizzle::B64, 6 * 64 + 16), 6 * 64 + (1 ^ 3) * 16);
    assert_eq!(swizzle(Swizzle::B32, 4 * 32), 4 * 32 + 16);
    assert_eq!(Swizzle::from_tensor_map(4), None);
}

#[test]
fn descriptors_survive_encoding() {
    for (i, mode) in MODES.into_iter().enumerate() {
        let d = Descriptor {
            start: 0x2_4410,
            leading: 16,
            stride: 1024,
            base_offset: i as u32 + 3,
            swizzle: mode,
        };
        assert_eq!(Descriptor::decode(d.encode()), d);
        assert_eq!(unused_bits(d.encode()), 0);
    }
    // DeepGEMM's K-major SW128: bits 62–63 are 1, SBO 1024.
    let d = Descriptor::decode(1 << 62 | (1024 >> 4) << 32 | 0x400 >> 4);
    assert_eq!((d.start, d.leading, d.stride, d.swizzle), (0x400, 0, 1024, Swizzle::B128));
    assert_eq!(unused_bits(1 << 52), 1 << 52);
}

/// A tile as a tensor copy leaves it: rows of one swizzle row, 16-byte chunks permuted by row.
#[test]
fn k_major_tiles_lie_where_a_tensor_copy_puts_them() {
    for (mode, size) in [(Swizzle::B128, 2), (Swizzle::B64, 2), (Swizzle::B32, 1), (Swizzle::B128, 1)] {
        let row = mode.row_bytes();
        for step in 0..row / 32 {
            let d = Descriptor {
                start: 0x8000 + step * 32,
                leading: 16,
                stride: 8 * row,
                base_offset: 0,
                swizzle: mode,
            };
            for mn in 0..256 {
                for k in 0..32 / size {
                    let plain = 0x8000 + mn * row + step * 32 + k * size;
                    assert_eq!(d.address(Major::K, size, mn, k), swizzle(mode, plain), "{mode:?} {mn} {k}");
                }
            }
        }
    }
}

#[test]
fn mn_major_tiles_lie_where_a_tensor_copy_puts_them() {
    for mode in [Swizzle::B128, Swizzle::B64, Swizzle::B32] {
        let row = mode.row_bytes();
        let depth = 64;
        // Boxes of one swizzle row of MN by 64 of K, one after the other.
        let d =
            Descriptor { start: 0x400, leading: depth * row, stride: 8 * row, base_offset: 0, swizzle: mode };
        for mn in 0..128 {
            for k in 0..16 {
                let bytes = mn * 2;
                let plain = 0x400 + bytes / row * depth * row + k * row + bytes % row;
                assert_eq!(d.address(Major::Mn, 2, mn, k), swizzle(mode, plain), "{mode:?} {mn} {k}");
            }
        }
    }
}

#[test]
fn unswizzled_tiles_are_core_matrices() {
    let d = Descriptor { start: 0, leading: 128, stride: 256, base_offset: 0, swizzle: Swizzle::None };
    // Core matrix (row 3, k chunk 1): 3 × SBO + 1 × LBO; row 2, element 5 within.
    assert_eq!(d.address(Major::K, 2, 3 * 8 + 2, 8 + 5), 3 * 256 + 128 + 2 * 16 + 10);
    assert_eq!(d.address(Major::Mn, 2, 3 * 8 + 5, 8 + 2), 3 * 256 + 128 + 2 * 16 + 10);
}

#[test]
fn every_canonical_layout_has_distinct_addresses() {
    for mode in MODES {
        for major in [Major::K, Major::Mn] {
            let row = mode.row_bytes();
            let (leading, stride) = match (major, mode) {
                (_, Swizzle::None) => (128, 256),
                (Major::K, _) => (16, 8 * row),
                (Major::Mn, _) => (16 * row, 8 * row),
            };
            let d = Descriptor { start: 0x1000, leading, stride, base_offset: 0, swizzle: mode };
            let mut seen = HashSet::new();
            for mn in 0..64 {
                for k in 0..16 {
                    let address = d.address(major, 2, mn, k);
                    assert!(address.is_multiple_of(2) && seen.insert(address), "{mode:?} {major:?} {mn} {k}");
                }
            }
        }
    }
}

#[test]
fn a_pattern_off_its_alignment_starts_with_its_row_0() {
    let d = Descriptor { start: 0x400, leading: 16, stride: 1024, base_offset: 0, swizzle: Swizzle::B128 };
    let moved = Descriptor { start: 0x400 + 3 * 128, base_offset: 3, ..d };
    for mn in 0..64 {
        for k in 0..16 {
            assert_eq!(moved.address(Major::K, 2, mn, k), d.address(Major::K, 2, mn, k) + 3 * 128);
        }
    }
}

/// Every place of a rows × columns matrix is held exactly once.
fn bijection(rows: u32, columns: u32, places: impl Iterator<Item = Place>) {
    let mut seen = HashSet::new();
    for (row, column) in places {
        assert!(row < rows && column < columns && seen.insert((row, column)), "{row} {column}");
    }
    assert_eq!(seen.len() as u32, rows * columns);
}

#[test]
fn fragments_hold_each_element_once() {
    for n in (8..=256).step_by(8) {
        bijection(64, n, (0..128).flat_map(|t| (0..n / 2).map(move |j| wgmma_accumulator(t, j))));
    }
    bijection(16, 8, (0..32).flat_map(|l| (0..4).map(move |j| accumulator(l, j))));
    for (bits, registers) in [(16, 4), (16, 2), (8, 4), (8, 2), (32, 4), (32, 2)] {
        let held = 32 / bits;
        let depth = registers * 2 * held;
        let slots = move |r: u32| (0..held).map(move |s| (r, s));
        let a = |l: u32| (0..registers).flat_map(slots).map(move |(r, s)| mma_a(l, r, s, bits));
        bijection(16, depth, (0..32).flat_map(a));
        let b = |l: u32| (0..registers / 2).flat_map(slots).map(move |(r, s)| mma_b(l, r, s, bits));
        bijection(depth, 8, (0..32).flat_map(b));
        if registers == 4 {
            let a = |t: u32| (0..4).flat_map(slots).map(move |(r, s)| wgmma_a(t, r, s, bits));
            bijection(64, depth, (0..128).flat_map(a));
        }
    }
    for transposed in [false, true] {
        bijection(8, 8, (0..32).flat_map(|l| (0..2).map(move |s| matrix8x8(l, s, transposed))));
    }
}

/// Examples read off the figures of the PTX ISA.
#[test]
fn fragments_match_the_figures() {
    assert_eq!(accumulator(5, 3), (9, 3));
    assert_eq!(mma_a(5, 1, 0, 16), (9, 2));
    assert_eq!(mma_a(5, 2, 1, 16), (1, 11));
    assert_eq!(mma_b(6, 1, 1, 16), (13, 1));
    assert_eq!(mma_a(7, 3, 2, 8), (9, 30));
    assert_eq!(mma_b(7, 1, 2, 8), (30, 1));
    assert_eq!(mma_a(7, 2, 0, 32), (1, 7));
    assert_eq!(wgmma_accumulator(32 + 9, 7), (16 + 10, 8 + 3));
    assert_eq!(matrix8x8(9, 1, false), (2, 3));
    assert_eq!(address_lane(3, 2), 26);
    // ldmatrix.x4 of the four quadrants is mma's A fragment.
    for lane in 0..32 {
        for register in 0..4 {
            for slot in 0..2 {
                let (row, column) = matrix8x8(lane, slot, false);
                let place = (row + register % 2 * 8, column + register / 2 * 8);
                assert_eq!(mma_a(lane, register, slot, 16), place);
                // And .trans of a [k][n] matrix is its B fragment.
                let (k, n) = matrix8x8(lane, slot, true);
                assert_eq!(mma_b(lane, register % 2, slot, 16), (k + register % 2 * 8, n));
            }
        }
    }
}
