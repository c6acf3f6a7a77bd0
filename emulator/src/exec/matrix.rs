//! Matrices of wgmma in shared memory: which bytes a K step reads, the checks of these reads, the panels they become.

use super::access::refusal;
use super::op::{Ctx, Op};
use super::race::{ASYNC, Clock};
use super::shared::{Refusal, Who};
use super::tensor_ops::chunk;
use crate::check::Kind;
use crate::tensor::descriptor::{Descriptor, Major};
use crate::tensor::panel::{self, Element};
use crate::tensor::warp_tile::place;

/// Most rows (columns of B) of a matrix.
const MOST: usize = 256;
/// Decoded right-hand sides that are kept while shared memory does not change.
const PANELS: usize = 48;

/// What a panel was decoded from: descriptor, types, flags.
pub(super) type Key = (u64, u32, i64);

/// Right-hand sides decoded since shared memory last changed. All warps multiply by the same.
#[derive(Default)]
pub(super) struct Panels {
    version: u64,
    kept: Vec<(Key, Vec<f32>)>,
    /// Buffers to decode into.
    free: Vec<Vec<f32>>,
}

impl Panels {
    /// The panel of this key, if shared memory still has the version it was decoded at.
    pub fn find(&mut self, version: u64, key: Key) -> Option<usize> {
        if self.version != version {
            self.version = version;
            self.free.extend(self.kept.drain(..).map(|(_, panel)| panel));
        }
        self.kept.iter().position(|(k, _)| *k == key)
    }

    /// A buffer for a panel of this many values, whatever they are.
    pub fn buffer(&mut self, len: usize) -> Vec<f32> {
        if self.kept.len() >= PANELS {
            self.free.push(self.kept.remove(0).1);
        }
        let mut buffer = self.free.pop().unwrap_or_default();
        buffer.resize(len, 0.0);
        buffer
    }

    /// Keeps a panel of the current version.
    pub fn keep(&mut self, key: Key, panel: Vec<f32>) -> usize {
        self.kept.push((key, panel));
        self.kept.len() - 1
    }

    /// A panel that is kept.
    pub fn panel(&self, at: usize) -> &[f32] {
        &self.kept[at].1
    }
}

/// One K step of an operand in shared memory.
pub(super) struct Matrix {
    pub descriptor: Descriptor,
    pub major: Major,
    pub element: Element,
    /// Rows (columns of B) from this one on, a multiple of eight …
    pub first: u32,
    /// … so many, a multiple of eight.
    pub count: u32,
}

impl Matrix {
    /// Calls `f(row, addresses)` with those of the two 16-byte chunks of each K-major row.
    #[inline(always)]
    fn rows(&self, mut f: impl FnMut(usize, [u32; 2])) {
        let (size, half) = (self.element.size() as u32, self.element.per_step() as u32 / 2);
        for row in 0..self.count {
            let chunk = |k| self.descriptor.address(Major::K, size, self.first + row, k);
            f(row as usize, [chunk(0), chunk(half)]);
        }
    }

    /// Address of the eight rows from `row` on at one k of an MN-major operand; only 16-bit types have it.
    #[inline(always)]
    fn eight(&self, row: u32, k: u32) -> u32 {
        self.descriptor.address(Major::Mn, self.element.size() as u32, self.first + row, k)
    }

    /// Checks all reads of the matrix in the name of the warp's asynchronous agent, at its time and with the warp's knowledge
    /// at issue; without checks, only that they are
    /// inside shared memory. `None` after a finding.
    pub fn note(&self, ctx: &mut Ctx<'_>, op: &Op, issued: &Clock) -> Option<()> {
        // Spans of one length: whole rows where their chunks lie side by side, chunks otherwise.
        let mut spans = [0u32; MOST * 2];
        let (mut count, mut len) = (0, 16);
        let mut push = |address| {
            spans[count] = address;
            count += 1;
        };
        match self.major {
            Major::K => {
                // Swizzles keep the chunks of a K step beside each other, in either order.
                let mut together = true;
                self.rows(|_, [a, b]| {
                    together &= a.abs_diff(b) == 16;
                    push(a.min(b));
                });
                if together {
                    len = 32;
                } else {
                    count = 0;
                    self.rows(|_, chunks| {
                        for chunk in chunks {
                            spans[count] = chunk;
                            count += 1;
                        }
                    });
                }
            }
            Major::Mn => {
                for k in 0..self.element.per_step() as u32 {
                    (0..self.count).step_by(8).for_each(|row| push(self.eight(row, k)));
                }
            }
        }
        let spans = &spans[..count];
        let block = &mut *ctx.block;
        let result = if ctx.grid.settings.checks {
            let agent = ASYNC + ctx.warp.id as usize;
            block.shared.note_reads(Who { agent, clock: issued, line: op.line }, spans, len)
        } else {
            let outside = spans.iter().find(|at| !block.shared.contains(**at, len));
            outside.map_or(Ok(()), |at| Err((*at, Refusal::OutOfBounds)))
        };
        if let Err((address, why)) = result {
            let (kind, message): (Kind, String) = refusal(why, address, len, block.shared.len());
            ctx.fail(op, kind, None, message);
            return None;
        }
        Some(())
    }

    /// The rows of a K-major operand as they lie. It was noted before.
    pub fn bytes(&self, ctx: &Ctx<'_>, out: &mut [[u8; 32]], at: impl Fn(usize) -> usize) {
        self.rows(|row, [a, b]| {
            let halves = out[at(row)].as_chunks_mut::<16>().0;
            (halves[0], halves[1]) = (chunk(ctx, a), chunk(ctx, b));
        });
    }

    /// Decodes an MN-major operand to \[k\]\[row\], each row where `at` says. It was noted before.
    pub fn columns(&self, ctx: &Ctx<'_>, out: &mut [f32], at: impl Fn(usize) -> usize) {
        let count = self.count as usize;
        let (mut bytes, mut values) = ([0u8; MOST * 2], [0f32; MOST]);
        for (k, out) in out.chunks_exact_mut(count).enumerate() {
            for (eight, chunk_of) in bytes.as_chunks_mut::<16>().0.iter_mut().take(count / 8).enumerate() {
                *chunk_of = chunk(ctx, self.eight(eight as u32 * 8, k as u32));
            }
            panel::decode(self.element, &bytes[..count * 2], &mut values);
            for (row, value) in values.iter().take(count).enumerate() {
                out[at(row)] = *value;
            }
        }
    }

    /// Decodes B to \[k\]\[column\], columns where `warp_tile` wants them. It was noted before.
    pub fn right_hand_side(&self, ctx: &Ctx<'_>, out: &mut [f32]) {
        if self.major == Major::Mn {
            return self.columns(ctx, out, place);
        }
        let mut rows = [[0u8; 32]; MOST];
        self.bytes(ctx, &mut rows, place);
        let count = self.count as usize;
        panel::decode_transposed(self.element, &rows[..count], out, count);
    }
}
