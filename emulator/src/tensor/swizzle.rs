//! The shared-memory swizzles of tensor copies and wgmma.
//!
//! A swizzle permutes 16-byte chunks within rows of 32, 64 or 128 bytes so that a column of chunks touches all banks:
//! CuTe's `Swizzle<1,4,3>`, `<2,4,3>` and `<3,4,3>` of the byte address. It acts on the absolute shared-memory
//! address, which is why tiles must be aligned to the pattern.

/// A swizzle mode. The discriminants are those of `CUtensorMapSwizzle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Swizzle {
    /// Addresses as they are.
    #[default]
    None = 0,
    /// Bit 4 ^= bit 7.
    B32 = 1,
    /// Bits 4–5 ^= bits 7–8.
    B64 = 2,
    /// Bits 4–6 ^= bits 7–9.
    B128 = 3,
}

impl Swizzle {
    /// The mode of a `CUtensorMapSwizzle` value, or none for those Hopper does not have.
    pub fn from_tensor_map(value: u32) -> Option<Swizzle> {
        [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128].get(value as usize).copied()
    }

    /// Bytes of a swizzled row; 16 without swizzle.
    #[inline(always)]
    pub fn row_bytes(self) -> u32 {
        16 << self as u32
    }

    /// Bytes after which the pattern repeats, its natural alignment; 16 without swizzle.
    #[inline(always)]
    pub fn pattern_bytes(self) -> u32 {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 256,
            Swizzle::B64 => 512,
            Swizzle::B128 => 1024,
        }
    }

    /// The address bits that change.
    #[inline(always)]
    pub fn mask(self) -> u32 {
        (self.row_bytes() - 1) & 0x70
    }
}

/// The address at which a byte of an unswizzled address lies.
#[inline(always)]
pub fn swizzle(mode: Swizzle, address: u32) -> u32 {
    address ^ ((address >> 3) & mode.mask())
}
