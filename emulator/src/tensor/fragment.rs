//! Which matrix element each lane's registers hold.
//!
//! Source: the fragment figures of the PTX ISA for `mma` and `wgmma.mma_async`; checked against CuTe's layouts
//! (tests/cute_layouts.rs). All fragments come from one pattern: eight groups of four lanes, a group to a row, a lane
//! to the elements that fill its 32-bit register, the next register 8 rows down and then 16 bytes right.

use super::gemm::{Isa, dispatch};

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

/// An accumulator of 16 rows out of its registers: `registers[j]` holds element `j` of every lane (see
/// [`accumulator`]), `out` is \[16\]\[columns\]. Registers beyond `out` are ignored.
pub fn gather(registers: &[&[f32; 32]], columns: usize, out: &mut [f32]) {
    gather_with(Isa::best(), registers, columns, out);
}

dispatch! {
    /// [`gather`] with a given instruction set.
    pub fn gather_with(registers: &[&[f32; 32]], columns: usize, out: &mut [f32])
        = gather_body, gather_body, gather_body
}

#[inline(always)]
fn gather_body(registers: &[&[f32; 32]], columns: usize, out: &mut [f32]) {
    // Two registers interleave to eight columns of eight rows; the next two are eight rows below.
    for (pair, [even, odd]) in registers.as_chunks::<2>().0.iter().enumerate() {
        let at = pair % 2 * 8 * columns + pair / 2 * 8;
        for (row, (even, odd)) in even.as_chunks::<4>().0.iter().zip(odd.as_chunks::<4>().0).enumerate() {
            if let Some(eight) = out.get_mut(at + row * columns..).and_then(|o| o.first_chunk_mut::<8>()) {
                *eight = [even[0], odd[0], even[1], odd[1], even[2], odd[2], even[3], odd[3]];
            }
        }
    }
}

/// [`gather`] backwards.
pub fn scatter(values: &[f32], columns: usize, registers: &mut [&mut [f32; 32]]) {
    scatter_with(Isa::best(), values, columns, registers);
}

dispatch! {
    /// [`scatter`] with a given instruction set.
    pub fn scatter_with(values: &[f32], columns: usize, registers: &mut [&mut [f32; 32]])
        = scatter_body, scatter_body, scatter_body
}

#[inline(always)]
fn scatter_body(values: &[f32], columns: usize, registers: &mut [&mut [f32; 32]]) {
    for (pair, [even, odd]) in registers.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let at = pair % 2 * 8 * columns + pair / 2 * 8;
        let rows = even.as_chunks_mut::<4>().0.iter_mut().zip(odd.as_chunks_mut::<4>().0);
        for (row, (even, odd)) in rows.enumerate() {
            if let Some(eight) = values.get(at + row * columns..).and_then(|v| v.first_chunk::<8>()) {
                *even = [eight[0], eight[2], eight[4], eight[6]];
                *odd = [eight[1], eight[3], eight[5], eight[7]];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathering_and_scattering_follow_the_map() {
        for columns in [8usize, 24, 256] {
            let registers: Vec<[f32; 32]> =
                (0..columns / 2).map(|j| std::array::from_fn(|l| (j * 32 + l) as f32)).collect();
            let borrowed: Vec<&[f32; 32]> = registers.iter().collect();
            for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
                let mut out = vec![-1.0; 16 * columns];
                gather_with(isa, &borrowed, columns, &mut out);
                for (j, register) in registers.iter().enumerate() {
                    for (lane, value) in register.iter().enumerate() {
                        let (row, column) = accumulator(lane as u32, j as u32 % 4);
                        assert_eq!(out[row as usize * columns + j / 4 * 8 + column as usize], *value);
                    }
                }
                let mut back = vec![[0f32; 32]; columns / 2];
                let mut targets: Vec<&mut [f32; 32]> = back.iter_mut().collect();
                scatter_with(isa, &out, columns, &mut targets);
                assert_eq!(back, registers);
            }
        }
    }
}
