//! wgmma's product for one warp, computed where its accumulators lie.
//!
//! A register of an accumulator holds eight rows of four columns, every other one of eight (see `fragment`): lane l has
//! row l / 4 and column l % 4 · 2 or the one after. So 64 lanes, of two registers, hold the 16 rows of four columns, and a
//! product needs each value of A four times in a row ([`Row`]) and four values of B over and over, which is an ordinary
//! load. Nothing is moved around: the sums are loaded from the register file and stored there.
//!
//! Every element is `acc = fma(a[k], b[k], acc)` in ascending k, as in `gemm`, or summed by the model of `fp8`.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};

use super::gemm::{Isa, dispatch};
use super::panel::{Element, decode_transposed};
use super::vector::{Plain, Vector};
use crate::settings::Fp8Accumulation;

/// One k of A: the value of row r in lanes 4r to 4r + 3.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Row(pub [f32; 64]);

/// Where a panel of B has column `column`: the even ones of eight before the odd ones.
#[inline(always)]
pub fn place(column: usize) -> usize {
    column / 8 * 8 + column % 2 * 4 + column % 8 / 2
}

/// Decodes 16 rows of A, a K step of 32 bytes each.
pub fn spread(element: Element, rows: &[[u8; 32]; 16], out: &mut Vec<Row>) {
    let mut flat = [0f32; 32 * 16];
    let flat = &mut flat[..element.per_step() * 16];
    decode_transposed(element, rows, flat, 16);
    spread_columns(flat, out);
}

/// As [`spread`], of values: `flat` is \[K\]\[16\].
pub fn spread_columns(flat: &[f32], out: &mut Vec<Row>) {
    out.resize(flat.len() / 16, Row([0.0; 64]));
    repeat_with(Isa::best(), flat, out);
}

dispatch! {
    fn repeat_with(flat: &[f32], out: &mut [Row]) = repeat, repeat, repeat
}

#[inline(always)]
fn repeat(flat: &[f32], out: &mut [Row]) {
    for (column, row) in flat.as_chunks::<16>().0.iter().zip(out) {
        for l in 0..64 {
            row.0[l] = column[l / 4];
        }
    }
}

/// `accumulator += a · b`, or `= a · b` if it is `fresh`. `b` is \[K\]\[columns\], its columns where [`place`] says;
/// `file[cells[j]]` is register j of the accumulator. Does nothing if the sizes do not fit each other.
#[allow(clippy::too_many_arguments, reason = "the operands of an instruction")]
pub fn multiply(
    how: Fp8Accumulation,
    a: &[Row],
    b: &[f32],
    columns: usize,
    fresh: bool,
    file: &mut [[f32; 32]],
    cells: &[u32],
) {
    multiply_with(Isa::best(), how, a, b, columns, fresh, file, cells);
}

dispatch! {
    /// [`multiply`] with a given instruction set.
    pub fn multiply_with(
        how: Fp8Accumulation,
        a: &[Row],
        b: &[f32],
        columns: usize,
        fresh: bool,
        file: &mut [[f32; 32]],
        cells: &[u32],
    ) = run::<__m512, 4, 6>, run::<__m256, 4, 2>, run::<Plain, 4, 2>
}

/// Kernels: sums of exact products have a block of `ROWS` vectors of rows times `QUADS` of columns in registers.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "as above")]
fn run<V: Vector, const ROWS: usize, const QUADS: usize>(
    how: Fp8Accumulation,
    a: &[Row],
    b: &[f32],
    columns: usize,
    fresh: bool,
    file: &mut [[f32; 32]],
    cells: &[u32],
) {
    let fits = columns.is_multiple_of(8) && cells.len() == columns / 2 && b.len() >= a.len() * columns;
    if !fits || cells.iter().any(|c| *c as usize >= file.len()) {
        return;
    }
    let (b, file) = (b.as_ptr(), file.as_mut_ptr().cast::<f32>());
    let tile = Tile { a, b, columns, fresh, file, cells };
    let quads = columns / 4;
    // SAFETY: sizes were checked; lanes and quads are inside. `dispatch` found the instruction set.
    unsafe {
        match how {
            Fp8Accumulation::Exact => {
                let mut quad = 0;
                while quads - quad >= QUADS {
                    for lane in (0..64).step_by(ROWS * V::LANES) {
                        tile.exact::<V, ROWS, QUADS>(lane, quad);
                    }
                    quad += QUADS;
                }
                while quads - quad >= 2 {
                    for lane in (0..64).step_by(ROWS * V::LANES) {
                        tile.exact::<V, ROWS, 2>(lane, quad);
                    }
                    quad += 2;
                }
            }
            Fp8Accumulation::Truncated => {
                for quad in (0..quads).step_by(2) {
                    for lane in (0..64).step_by(2 * V::LANES) {
                        tile.truncated::<V, 2, 2>(lane, quad);
                    }
                }
            }
        }
    }
}

/// Operands whose sizes fit each other.
struct Tile<'a> {
    a: &'a [Row],
    b: *const f32,
    columns: usize,
    fresh: bool,
    file: *mut f32,
    cells: &'a [u32],
}

impl Tile<'_> {
    /// Where lane `lane` of 64 of a quad of columns lies: even columns are in registers 0 and 2 of four, odd ones in 1
    /// and 3, rows from 8 on in the later ones.
    #[inline(always)]
    unsafe fn at(&self, lane: usize, quad: usize) -> *mut f32 {
        // SAFETY: the callers': the quad is one of the tile's, which has two cells for each.
        unsafe {
            let cell = *self.cells.get_unchecked(quad / 2 * 4 + quad % 2 + lane / 32 * 2);
            self.file.add(cell as usize * 32 + lane % 32)
        }
    }

    /// The sums of a block before.
    #[inline(always)]
    unsafe fn sums<V: Vector, const ROWS: usize, const QUADS: usize>(
        &self,
        lane: usize,
        quad: usize,
    ) -> [[V; QUADS]; ROWS] {
        // SAFETY: the callers'.
        unsafe {
            let mut sums = [[V::zero(); QUADS]; ROWS];
            if !self.fresh {
                for (r, row) in sums.iter_mut().enumerate() {
                    for (q, sum) in row.iter_mut().enumerate() {
                        *sum = V::load(self.at(lane + r * V::LANES, quad + q));
                    }
                }
            }
            sums
        }
    }

    /// Calls `f(row, quad, a, b)` for each product of each k of a block.
    #[inline(always)]
    unsafe fn products<V: Vector, const ROWS: usize, const QUADS: usize>(
        &self,
        lane: usize,
        quad: usize,
        mut f: impl FnMut(usize, usize, V, V),
    ) {
        // SAFETY: the callers': lanes and quads are inside.
        unsafe {
            let mut b = self.b.add(quad * 4);
            for a in self.a {
                let mut factors = [V::zero(); ROWS];
                for (r, factor) in factors.iter_mut().enumerate() {
                    *factor = V::load(a.0.as_ptr().add(lane + r * V::LANES));
                }
                for q in 0..QUADS {
                    let b = V::quads(b.add(q * 4));
                    for (r, a) in factors.iter().enumerate() {
                        f(r, q, *a, b);
                    }
                }
                b = b.wrapping_add(self.columns);
            }
        }
    }

    /// # Safety
    /// `ROWS` vectors from lane `lane` on and `QUADS` quads from `quad` on are in the tile, the processor has V's set.
    #[inline(always)]
    unsafe fn exact<V: Vector, const ROWS: usize, const QUADS: usize>(&self, lane: usize, quad: usize) {
        // SAFETY: as above.
        unsafe {
            let mut sums = self.sums::<V, ROWS, QUADS>(lane, quad);
            self.products::<V, ROWS, QUADS>(lane, quad, |r, q, a, b| sums[r][q] = a.fma(b, sums[r][q]));
            for (r, row) in sums.iter().enumerate() {
                for (q, sum) in row.iter().enumerate() {
                    sum.store(self.at(lane + r * V::LANES, quad + q));
                }
            }
        }
    }

    /// The model of `fp8`, step by step the same.
    ///
    /// # Safety
    /// As [`Tile::exact`].
    #[inline(always)]
    unsafe fn truncated<V: Vector, const ROWS: usize, const QUADS: usize>(&self, lane: usize, quad: usize) {
        // SAFETY: as above.
        unsafe {
            let sums = self.sums::<V, ROWS, QUADS>(lane, quad);
            let mut largest = [[V::zero(); QUADS]; ROWS];
            for r in 0..ROWS {
                for q in 0..QUADS {
                    largest[r][q] = V::zero().larger_exponent(sums[r][q]);
                }
            }
            self.products::<V, ROWS, QUADS>(lane, quad, |r, q, a, b| {
                largest[r][q] = largest[r][q].larger_exponent(a.mul(b));
            });
            let mut scales = [[(V::zero(), V::zero()); QUADS]; ROWS];
            let mut whole = [[V::zero(); QUADS]; ROWS];
            let mut special = false;
            for r in 0..ROWS {
                for q in 0..QUADS {
                    scales[r][q] = largest[r][q].scales();
                    whole[r][q] = V::zero().add_whole(sums[r][q].mul(scales[r][q].0));
                    special |= largest[r][q].any_special();
                }
            }
            self.products::<V, ROWS, QUADS>(lane, quad, |r, q, a, b| {
                whole[r][q] = whole[r][q].add_whole(a.mul(b).mul(scales[r][q].0));
            });
            // Infinities and NaN have no exponent to align to: the plain sum says what they give.
            let mut plain = sums;
            if special {
                self.products::<V, ROWS, QUADS>(lane, quad, |r, q, a, b| plain[r][q] = a.fma(b, plain[r][q]));
            }
            for r in 0..ROWS {
                for q in 0..QUADS {
                    let mut sum = whole[r][q].whole_times(scales[r][q].1);
                    if special {
                        sum = largest[r][q].pick_special(plain[r][q], sum);
                    }
                    sum.store(self.at(lane + r * V::LANES, quad + q));
                }
            }
        }
    }
}
