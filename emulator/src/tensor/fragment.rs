//! Which matrix element each lane's registers hold.
//!
//! Source: the fragment figures of the PTX ISA for `mma` and `wgmma.mma_async`; checked against CuTe's layouts
//! (tests/cute_layouts.rs). All fragments come from one pattern: eight groups of four lanes, a group to a row, a lane
//! to the elements that fill its 32-bit register, the next register 8 rows down and then 16 bytes right.

/// Row and column of an element.
pub type Place = (u32, u32);

/// Accumulator of wgmma m64nN: element `j` of thread `thread` (0–127) of the warpgroup. With f16 accumulators register
/// `r` holds elements 2r and 2r + 1.
#[inline(always)]
pub fn wgmma_accumulator(thread: u32, j: u32) -> Place {
    let (row, column) = accumulator(thread & 31, j & 3);
    (thread / 32 * 16 + row, j / 4 * 8 + column)
}

/// A from registers of wgmma m64: element `slot` (low bits first) of register `register` (0–3), elements of
/// `bits` bits (16: k16, 8: k32, 32: k8).
#[inline(always)]
pub fn wgmma_a(thread: u32, register: u32, slot: u32, bits: u32) -> Place {
    let (row, column) = mma_a(thread & 31, register, slot, bits);
    (thread / 32 * 16 + row, column)
}

/// Accumulator of mma.m16n8: element `j` (0–3).
#[inline(always)]
pub fn accumulator(lane: u32, j: u32) -> Place {
    (lane / 4 + (j / 2) * 8, lane % 4 * 2 + j % 2)
}

/// A of mma.m16n8 (row, k): element `slot` of register `register`, elements of `bits` bits. m16n8k16 of 16-bit,
/// m16n8k32 of 8-bit and m16n8k8 of tf32 elements have four registers; half that K has the first two.
#[inline(always)]
pub fn mma_a(lane: u32, register: u32, slot: u32, bits: u32) -> Place {
    let held = 32 / bits.max(1);
    (lane / 4 + register % 2 * 8, lane % 4 * held + slot + register / 2 * 4 * held)
}

/// B of mma.m16n8 (k, column): element `slot` of register `register`; two registers where A has four.
#[inline(always)]
pub fn mma_b(lane: u32, register: u32, slot: u32, bits: u32) -> Place {
    let held = 32 / bits.max(1);
    (lane % 4 * held + slot + register * 4 * held, lane / 4)
}

/// ldmatrix and stmatrix: the element of an 8×8 matrix of 16-bit elements in half `slot` of the register. Register
/// `i` belongs to matrix `i`, whose row `r` is at the address lane 8i + r gives. `transposed` is `.trans`.
#[inline(always)]
pub fn matrix8x8(lane: u32, slot: u32, transposed: bool) -> Place {
    let (row, column) = (lane / 4, lane % 4 * 2 + slot);
    if transposed { (column, row) } else { (row, column) }
}

/// The lane that gives the address of a row of matrix `matrix` to ldmatrix and stmatrix.
#[inline(always)]
pub fn address_lane(matrix: u32, row: u32) -> u32 {
    matrix * 8 + row
}
