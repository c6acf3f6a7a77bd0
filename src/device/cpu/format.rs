//! How rows of weights of each format meet activations.
//!
//! A row is taken in **spans** of 8·LANES columns, a span in eight registers. Decoding leaves a span's columns in whatever
//! order is cheapest; activations are put into that order once a call ([`Prepared`]), where it costs a row's worth of work
//! instead of a matrix's. Beyond the last column both sides are zero.
//!
//! INT4 meets a single token as integers: in a span, activations are 16-bit fixed point relative to its largest magnitude (an error of
//! 2^-17 of that at most, between bfloat16 and f32), in two signed bytes each, which byte products take as they are. All
//! others are multiplied in f32.

use crate::quant::int4::GROUP;
use crate::quant::{Format, MatrixLayout, MatrixView, fp8};
use crate::simd::{Kernel, Simd};

/// Sixteen floats in a cache line of their own.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([f32; 16]);

/// Memory for prepared activations and other floats, cache-line aligned, grown when needed and reused.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<Line>);

impl Lines {
    /// `floats` of them; what they hold is left over from before, or zero.
    pub(super) fn take(&mut self, floats: usize) -> &mut [f32] {
        let lines = floats.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; 16]));
        }
        // SAFETY: a line is sixteen floats without padding, and there are enough of them.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), floats) }
    }
}

/// A weight format as an instruction set multiplies it.
///
/// # Safety
/// The functions are to be called inside a kernel for `S`. `weights` points to a span's bytes, `x` to what
/// [`Weights::prepare`] made of a span.
pub(super) trait Weights<S: Simd> {
    /// Columns of a span.
    const SPAN: usize = 8 * S::LANES;
    /// Bytes of a span's weights.
    const BYTES: usize;
    /// Bytes of scales that [`Weights::scale`] reads for a span.
    const SCALE_BYTES: usize;
    /// Floats that a prepared span takes.
    const PREPARED: usize = 8 * S::LANES;

    /// Column of element i of the eight registers in order.
    fn column(i: usize) -> usize;

    /// Bytes from a row's first scale to those of a span.
    #[inline(always)]
    fn scale_at(_span: usize) -> usize {
        0
    }

    /// The scale of every lane; 1 for formats without.
    #[inline(always)]
    unsafe fn scale(_from: *const u8) -> S::F {
        // SAFETY: the caller's: this is a kernel for `S`.
        unsafe { S::splat(1.0) }
    }

    /// Registers that [`Weights::part`] decodes.
    const PART: usize;

    /// Decodes a part of a span into its registers, before the scale.
    unsafe fn part(weights: *const u8, part: usize, values: &mut [S::F; 8]);

    /// A span decoded, before its scale.
    #[inline(always)]
    unsafe fn decode(weights: *const u8) -> [S::F; 8] {
        // SAFETY: the caller's.
        unsafe {
            let mut values = [S::splat(0.0); 8];
            for part in 0..8 / Self::PART {
                Self::part(weights, part, &mut values);
            }
            values
        }
    }

    /// Prepares a span of a single token; `x` may be short at the end of a row.
    #[inline(always)]
    fn prepare(x: &[f32], out: &mut [f32]) {
        in_order::<S, Self>(x, out);
    }

    /// sum += scale · (span · x) lane by lane; `x` as [`Weights::prepare`] leaves it.
    #[inline(always)]
    unsafe fn multiply(weights: *const u8, scale: S::F, x: *const f32, sum: &mut S::F) {
        // SAFETY: the caller's; a prepared span has 8·LANES floats.
        unsafe {
            let mut values = [S::splat(0.0); 8];
            // Two chains of additions, so that one does not wait for the other.
            let mut chains = [S::splat(0.0); 2];
            for part in 0..8 / Self::PART {
                ask_ahead::<S>(weights, part * Self::PART * Self::BYTES / 8, Self::PART * Self::BYTES / 8);
                Self::part(weights, part, &mut values);
                for i in part * Self::PART..(part + 1) * Self::PART {
                    let x = S::load(x.add(i * S::LANES));
                    let chain = &mut chains[i % 2];
                    *chain = if i < 2 { S::mul(values[i], x) } else { S::mul_add(values[i], x, *chain) };
                }
            }
            let both = S::add(chains[0], chains[1]);
            *sum = if Self::SCALE_BYTES == 0 { S::add(*sum, both) } else { S::mul_add(both, scale, *sum) };
        }
    }
}

/// A span of activations in the order in which weights decode; zeros beyond a short one.
#[inline(always)]
fn in_order<S: Simd, W: Weights<S> + ?Sized>(x: &[f32], out: &mut [f32]) {
    if x.len() == W::SPAN {
        for (i, out) in out.iter_mut().enumerate() {
            *out = x[W::column(i)];
        }
    } else {
        for (i, out) in out.iter_mut().enumerate() {
            *out = x.get(W::column(i)).copied().unwrap_or(0.0);
        }
    }
}

/// Bytes that weights are prefetched ahead into the second-level cache: about what arrives in a memory access's time. A core has
/// room for several times as many lines on their way there as into the first level.
const FAR: usize = 4096;
/// Bytes that they are prefetched ahead from there into the first.
const NEAR: usize = 1024;

/// Prefetches what lies [`FAR`] and [`NEAR`] ahead of `len` bytes at `at` of a span. One line at a time between the arithmetic:
/// several at once wait for each other, which costs a third of the rate.
///
/// # Safety
/// Inside a kernel for `S`.
#[inline(always)]
unsafe fn ask_ahead<S: Simd>(weights: *const u8, at: usize, len: usize) {
    // Not an iterator: one was left a loop of hundreds of instructions where a part is half a line.
    let mut line = at.next_multiple_of(64);
    while line < at + len {
        // SAFETY: the caller's; a prefetch may go anywhere.
        unsafe {
            S::prefetch(weights.wrapping_add(line + NEAR));
            S::prefetch_second(weights.wrapping_add(line + FAR));
        }
        line += 64;
    }
}

pub(super) struct Fp8;
pub(super) struct Int4;
pub(super) struct Bf16;
pub(super) struct F16;
pub(super) struct F32;

impl<S: Simd> Weights<S> for Fp8 {
    const BYTES: usize = 8 * S::LANES;
    const PART: usize = 4;
    const SCALE_BYTES: usize = 4;

    fn column(i: usize) -> usize {
        let step = 4 * S::LANES;
        i / step * step + S::fp8_column(i % step)
    }

    #[inline(always)]
    fn scale_at(span: usize) -> usize {
        span * <Self as Weights<S>>::SPAN / fp8::BLOCK * 4
    }

    #[inline(always)]
    unsafe fn scale(from: *const u8) -> S::F {
        // SAFETY: the caller's: a scale is readable.
        unsafe { S::splat(f32::from_bits(u32::from_le(from.cast::<u32>().read_unaligned())) * S::FP8_FACTOR) }
    }

    #[inline(always)]
    unsafe fn part(weights: *const u8, part: usize, values: &mut [S::F; 8]) {
        // SAFETY: the caller's: 4·LANES codes are readable there.
        unsafe { values[4 * part..][..4].copy_from_slice(&S::fp8(weights.add(4 * S::LANES * part))) }
    }
}

impl<S: Simd> Weights<S> for Bf16 {
    const BYTES: usize = 16 * S::LANES;
    const PART: usize = 2;
    const SCALE_BYTES: usize = 0;

    fn column(i: usize) -> usize {
        let step = 2 * S::LANES;
        i / step * step + S::bf16_column(i % step)
    }

    #[inline(always)]
    unsafe fn part(weights: *const u8, part: usize, values: &mut [S::F; 8]) {
        // SAFETY: the caller's: 2·LANES values are readable there.
        unsafe { values[2 * part..][..2].copy_from_slice(&S::bf16(weights.add(4 * S::LANES * part))) }
    }
}

impl<S: Simd> Weights<S> for F16 {
    const BYTES: usize = 16 * S::LANES;
    const PART: usize = 1;
    const SCALE_BYTES: usize = 0;

    fn column(i: usize) -> usize {
        i
    }

    #[inline(always)]
    unsafe fn part(weights: *const u8, part: usize, values: &mut [S::F; 8]) {
        // SAFETY: the caller's: LANES values are readable there.
        unsafe { values[part] = S::f16(weights.add(2 * S::LANES * part)) }
    }
}

impl<S: Simd> Weights<S> for F32 {
    const BYTES: usize = 32 * S::LANES;
    const PART: usize = 1;
    const SCALE_BYTES: usize = 0;

    fn column(i: usize) -> usize {
        i
    }

    #[inline(always)]
    unsafe fn part(weights: *const u8, part: usize, values: &mut [S::F; 8]) {
        // SAFETY: the caller's: LANES values are readable there. Checkpoints are little-endian, as is every target with f32
        // weights worth the name.
        unsafe { values[part] = S::load(weights.add(4 * S::LANES * part).cast()) }
    }
}

/// Columns of the widest span.
pub(super) const LARGEST_SPAN: usize = 128;

/// The largest magnitude of fixed-point activations: its bytes are at most ±127.
const FIXED: f32 = 32_512.0;

/// Registers of a prepared INT4 span: high and low bytes of even columns, the same of odd ones, what eight times the
/// activations are, their unit.
const INT4_REGISTERS: usize = 6;

impl<S: Simd> Weights<S> for Int4 {
    const BYTES: usize = 4 * S::LANES;
    const PART: usize = 8;
    const SCALE_BYTES: usize = S::LANES / 4 * 2;
    const PREPARED: usize = INT4_REGISTERS * S::LANES;

    fn column(i: usize) -> usize {
        i % S::LANES * 8 + i / S::LANES
    }

    #[inline(always)]
    fn scale_at(span: usize) -> usize {
        span * (<Self as Weights<S>>::SPAN / GROUP) * 2
    }

    #[inline(always)]
    unsafe fn scale(from: *const u8) -> S::F {
        // SAFETY: the caller's: LANES / 4 scales are readable.
        unsafe { S::int4_scales(from) }
    }

    #[inline(always)]
    unsafe fn part(weights: *const u8, _: usize, values: &mut [S::F; 8]) {
        // SAFETY: the caller's: LANES words are readable.
        unsafe { *values = S::int4(weights) }
    }

    #[inline(always)]
    fn prepare(x: &[f32], out: &mut [f32]) {
        let mut largest = 0.0f32;
        let mut finite = true;
        for &value in x {
            largest = largest.max(value.abs());
            finite &= value.is_finite();
        }
        // Whatever is not finite makes all that it touches NaN.
        let unit = if finite { largest / FIXED } else { f32::NAN };
        // Below the smallest normal number the reciprocal would overflow; such a span counts as zero.
        let per_unit = if unit >= f32::MIN_POSITIVE { 1.0 / unit } else { 0.0 };
        let mut fixed = [0i32; LARGEST_SPAN];
        for (fixed, &value) in fixed.iter_mut().zip(x) {
            *fixed = (value * per_unit).round_ties_even() as i32;
        }
        let (bytes, rest) = out.split_at_mut(4 * S::LANES);
        let (offsets, units) = rest.split_at_mut(S::LANES);
        units.fill(unit);
        for (offset, fixed) in offsets.iter_mut().zip(fixed.as_chunks::<8>().0) {
            *offset = f32::from_bits((-8 * fixed.iter().sum::<i32>()) as u32);
        }
        let register = 4 * S::LANES;
        // SAFETY: four bytes a float, of which any are a float.
        let bytes = unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast::<u8>(), 4 * register) };
        let (even, odd) = bytes.split_at_mut(2 * register);
        for (bytes, first) in [(even, 0), (odd, 1)] {
            let (high, low) = bytes.split_at_mut(register);
            for ((high, low), pair) in high.iter_mut().zip(low).zip(fixed.as_chunks::<2>().0) {
                let upper = (pair[first] + 128) >> 8;
                *high = upper as u8;
                *low = (pair[first] - (upper << 8)) as u8;
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply(weights: *const u8, scale: S::F, x: *const f32, sum: &mut S::F) {
        // SAFETY: the caller's; a prepared span has six registers.
        unsafe {
            ask_ahead::<S>(weights, 0, <Self as Weights<S>>::BYTES);
            let part = |i: usize| x.add(i * S::LANES);
            // Nibbles are 0 to 15 and mean 8 less: −8·Σx is where the low sum begins.
            let zero = S::zero_i32();
            let high = S::dot_nibbles(weights, false, part(0).cast(), zero);
            let low = S::dot_nibbles(weights, false, part(1).cast(), S::load_i32(part(4).cast()));
            let high = S::dot_nibbles(weights, true, part(2).cast(), high);
            let low = S::dot_nibbles(weights, true, part(3).cast(), low);
            let unit = S::load(part(5));
            *sum = S::mul_add(S::join(high, low), S::mul(scale, unit), *sum);
        }
    }
}

/// Calls a generic method with the [`Weights`] of a [`Format`].
macro_rules! with_weights {
    ($format:expr, $call:ident::<S, W $(, $more:tt)*>($($argument:expr),*)) => {
        match $format {
            $crate::quant::Format::F32 => $call::<S, $crate::device::cpu::format::F32 $(, $more)*>($($argument),*),
            $crate::quant::Format::F16 => $call::<S, $crate::device::cpu::format::F16 $(, $more)*>($($argument),*),
            $crate::quant::Format::Bf16 => $call::<S, $crate::device::cpu::format::Bf16 $(, $more)*>($($argument),*),
            $crate::quant::Format::Fp8Block => $call::<S, $crate::device::cpu::format::Fp8 $(, $more)*>($($argument),*),
            $crate::quant::Format::Int4Group32 => $call::<S, $crate::device::cpu::format::Int4 $(, $more)*>($($argument),*),
        }
    };
}
pub(super) use with_weights;

/// Activations in the order and form in which rows of a format take them: [tokens, spans]. A single token is as
/// [`Weights::prepare`] leaves it, several are floats in a span's order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prepared<'a> {
    /// All tokens.
    pub values: &'a [f32],
    /// Floats of a token.
    pub stride: usize,
    /// How many tokens.
    pub tokens: usize,
}

/// Prepares rows of x for rows of a format.
pub(super) struct Prepare<'a, 'm> {
    /// Of the matrix.
    pub layout: MatrixLayout,
    /// [tokens, cols].
    pub x: &'a [f32],
    /// Where to.
    pub into: &'m mut Lines,
}

impl<'m> Kernel for Prepare<'_, 'm> {
    type Output = Prepared<'m>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Prepared<'m> {
        with_weights!(self.layout.format, prepare::<S, W>(self))
    }
}

#[inline(always)]
fn prepare<'m, S: Simd, W: Weights<S>>(call: Prepare<'_, 'm>) -> Prepared<'m> {
    let cols = call.layout.cols;
    let tokens = call.x.len() / cols;
    let of_span = if tokens == 1 { W::PREPARED } else { W::SPAN };
    let of_token = cols.div_ceil(W::SPAN) * of_span;
    // A line between tokens: at a multiple of a page apart they would share the sets of the first-level cache.
    let stride = if tokens == 1 { of_token } else { of_token + 16 };
    let values = call.into.take(tokens * stride);
    for (x, out) in call.x.chunks_exact(cols).zip(values.chunks_exact_mut(stride.max(1))) {
        for (x, out) in x.chunks(W::SPAN).zip(out[..of_token].chunks_exact_mut(of_span)) {
            if tokens == 1 {
                W::prepare(x, out);
            } else {
                in_order::<S, W>(x, out);
            }
        }
    }
    Prepared { values, stride, tokens }
}

/// The bytes of a row: its weights and its scales.
#[derive(Clone, Copy)]
pub(super) struct RowBytes<'a> {
    weights: &'a [u8],
    scales: &'a [u8],
    cols: usize,
}

/// Bytes of the widest span (f32) and of its scales.
const SPAN_BYTES: usize = 512;
const SPAN_SCALES: usize = 8;

/// A span's bytes with zeros behind the row's end, and its scales'.
type Padded = ([u8; SPAN_BYTES], [u8; SPAN_SCALES]);

impl<'a> RowBytes<'a> {
    /// # Panics
    /// If the matrix has no such row.
    #[inline(always)]
    pub(super) fn of(w: MatrixView<'a>, row: usize) -> RowBytes<'a> {
        let layout = w.layout();
        let (weights, scales) = w.bytes();
        let (first, len) = match layout.format {
            Format::F32 | Format::F16 | Format::Bf16 => (0, 0),
            Format::Fp8Block => (row / fp8::BLOCK, layout.cols.div_ceil(fp8::BLOCK) * 4),
            Format::Int4Group32 => (row, layout.cols.div_ceil(GROUP) * 2),
        };
        RowBytes {
            weights: &weights[row * layout.row_bytes()..][..layout.row_bytes()],
            scales: &scales[first * len..][..len],
            cols: layout.cols,
        }
    }

    /// Spans that lie in the row whole, and whether a short one follows.
    #[inline(always)]
    pub(super) fn spans<S: Simd, W: Weights<S>>(&self) -> (usize, bool) {
        (self.cols / W::SPAN, !self.cols.is_multiple_of(W::SPAN))
    }

    /// A whole span's weights and their scale.
    ///
    /// # Safety
    /// Inside a kernel for `S`; the row has this whole span.
    #[inline(always)]
    pub(super) unsafe fn span<S: Simd, W: Weights<S>>(&self, span: usize) -> (*const u8, S::F) {
        // SAFETY: the caller's: the span and so its scales lie in the row.
        unsafe {
            let scale = W::scale(self.scales.as_ptr().add(W::scale_at(span)));
            (self.weights.as_ptr().add(span * W::BYTES), scale)
        }
    }

    /// The short span at the end.
    #[inline(always)]
    pub(super) fn tail<S: Simd, W: Weights<S>>(&self) -> Padded {
        let span = self.cols / W::SPAN;
        let (mut bytes, mut scales) = ([0; SPAN_BYTES], [0; SPAN_SCALES]);
        let left = &self.weights[span * W::BYTES..];
        bytes[..left.len()].copy_from_slice(left);
        if W::SCALE_BYTES > 0 {
            let left = &self.scales[W::scale_at(span)..];
            let n = left.len().min(W::SCALE_BYTES);
            scales[..n].copy_from_slice(&left[..n]);
        }
        (bytes, scales)
    }

    /// A span decoded, short or not, and its scale.
    ///
    /// # Safety
    /// Inside a kernel for `S`; the row has columns of this span.
    #[inline(always)]
    pub(super) unsafe fn decode<S: Simd, W: Weights<S>>(&self, span: usize) -> ([S::F; 8], S::F) {
        // SAFETY: the caller's; a copy of a short span is long enough.
        unsafe {
            if span < self.cols / W::SPAN {
                let (weights, scale) = self.span::<S, W>(span);
                (W::decode(weights), scale)
            } else {
                let (bytes, scales) = self.tail::<S, W>();
                (W::decode(bytes.as_ptr()), W::scale(scales.as_ptr()))
            }
        }
    }

    /// Where a span's weights lie.
    #[inline(always)]
    pub(super) fn address<S: Simd, W: Weights<S>>(&self, span: usize) -> *const u8 {
        self.weights.as_ptr().wrapping_add(span * W::BYTES)
    }

    /// A span decoded and scaled, in the format's order.
    ///
    /// # Safety
    /// As [`RowBytes::decode`].
    ///
    /// # Panics
    /// If `out` is shorter than a span.
    #[inline(always)]
    pub(super) unsafe fn decode_into<S: Simd, W: Weights<S>>(&self, span: usize, out: &mut [f32]) {
        assert!(out.len() >= W::SPAN);
        // SAFETY: the caller's, and `out` has room for eight registers.
        unsafe {
            let (values, scale) = self.decode::<S, W>(span);
            for (k, &value) in values.iter().enumerate() {
                let value = if W::SCALE_BYTES == 0 { value } else { S::mul(value, scale) };
                S::store(out.as_mut_ptr().add(k * S::LANES), value);
            }
        }
    }
}
