//! Tests of the scalar arithmetic against independent definitions.
#![allow(clippy::unwrap_used)]

mod approximations;
mod bit_tricks;
mod conversions;
mod formats;
mod rounding;

/// A small deterministic generator (SplitMix64), so that sweeps reproduce.
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Any f32 pattern.
    pub fn f32(&mut self) -> f32 {
        f32::from_bits(self.next() as u32)
    }
}

/// Values at which f32 code goes wrong.
pub const EDGES: [f32; 22] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1.5,
    2.5,
    -2.5,
    f32::MIN_POSITIVE,
    -f32::MIN_POSITIVE,
    1.0e-45,
    -1.0e-45,
    1.1754942e-38,
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    65504.0,
    65520.0,
    448.0,
    464.0,
];
