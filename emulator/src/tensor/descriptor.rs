//! wgmma's matrix descriptors: from the 64-bit operand to the address of every element.
//!
//! Bit fields: PTX ISA, "Matrix Descriptor Format" of `wgmma.mma_async`. Layouts: the canonical GMMA layouts that
//! CuTe's `mma_traits_sm90_gmma.hpp` states (T elements make 16 bytes, W is 2, 4 or 8 chunks a swizzled row):
//!
//! | major | swizzle | shape | strides |
//! |---|---|---|---|
//! | K | none | ((8, m), (T, 2)) | ((1T, SBO), (1, LBO)) |
//! | K | 32/64/128 B | ((8, m), (T, 2)) | ((WT, SBO), (1, T)) |
//! | MN | none | ((T, 1, m), (8, k)) | ((1, T, SBO), (1T, LBO)) |
//! | MN | 32/64/128 B | ((T, W, m), (8, k)) | ((1, T, LBO), (WT, SBO)) |
//!
//! The swizzle is applied to the absolute address, after start and offset are added: that is what lets a kernel step
//! along K by adding 32 bytes to the start address inside a 128-byte row.

use super::swizzle::{Swizzle, swizzle};

/// Which index of a matrix is contiguous in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Major {
    /// K: rows of A, columns of B.
    K,
    /// M of A, N of B: the transposed operand, 16-bit types only.
    Mn,
}

/// A decoded descriptor. Offsets are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Address of the matrix in shared memory.
    pub start: u32,
    /// Leading dimension byte offset (LBO).
    pub leading: u32,
    /// Stride dimension byte offset (SBO).
    pub stride: u32,
    /// Phase of the swizzle pattern, for patterns that start off their alignment.
    pub base_offset: u32,
    /// Swizzle mode.
    pub swizzle: Swizzle,
}

impl Descriptor {
    /// Splits the operand. Unused bits are ignored, as hardware does; see [`unused_bits`].
    #[inline(always)]
    pub fn decode(bits: u64) -> Descriptor {
        let field = |at: u32| ((bits >> at) as u32 & 0x3fff) << 4;
        let swizzle = match bits >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::B128,
            2 => Swizzle::B64,
            _ => Swizzle::B32,
        };
        Descriptor {
            start: field(0),
            leading: field(16),
            stride: field(32),
            base_offset: (bits >> 49) as u32 & 7,
            swizzle,
        }
    }

    /// The operand of a descriptor: [`Descriptor::decode`] backwards.
    pub fn encode(&self) -> u64 {
        let field = |bytes: u32, at: u32| u64::from(bytes >> 4 & 0x3fff) << at;
        let swizzle = match self.swizzle {
            Swizzle::None => 0u64,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3,
        };
        field(self.start, 0)
            | field(self.leading, 16)
            | field(self.stride, 32)
            | u64::from(self.base_offset & 7) << 49
            | swizzle << 62
    }

    /// Offset from the start, before swizzling, of the element at `mn` and `k`, each of `size` bytes.
    #[inline(always)]
    pub fn offset(&self, major: Major, size: u32, mn: u32, k: u32) -> u32 {
        let row = self.swizzle.row_bytes();
        let swizzled = self.swizzle != Swizzle::None;
        match (major, swizzled) {
            (Major::K, false) => {
                let bytes = k * size;
                mn % 8 * 16 + mn / 8 * self.stride + bytes / 16 * self.leading + bytes % 16
            }
            (Major::K, true) => mn % 8 * row + mn / 8 * self.stride + k * size,
            (Major::Mn, false) => {
                let bytes = mn * size;
                bytes % 16 + bytes / 16 * self.stride + k % 8 * 16 + k / 8 * self.leading
            }
            (Major::Mn, true) => {
                let bytes = mn * size;
                bytes % row + bytes / row * self.leading + k % 8 * row + k / 8 * self.stride
            }
        }
    }

    /// Shared-memory address of the element at `mn` and `k`. Elements of one 16-byte chunk stay together: along K
    /// when K-major, along MN otherwise.
    #[inline(always)]
    pub fn address(&self, major: Major, size: u32, mn: u32, k: u32) -> u32 {
        let address = self.start + self.offset(major, size, mn, k);
        // A pattern that starts at phase p has its row 0 there.
        let phase = self.base_offset << 7;
        swizzle(self.swizzle, address.wrapping_sub(phase)).wrapping_add(phase)
    }
}

/// Bits that must be zero in a descriptor for Hopper.
pub fn unused_bits(bits: u64) -> u64 {
    bits & !(0x3fff | 0x3fff << 16 | 0x3fff << 32 | 7 << 49 | 3 << 62)
}
