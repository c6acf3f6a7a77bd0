//! y = W·x for every weight format: which kernel, and who does which rows.

use std::cell::RefCell;
use std::ops::Range;

use super::Isa;
#[cfg(target_arch = "x86_64")]
use super::amx;
use super::format::{Lines, Prepare, Prepared};
use super::gemm::{self, Pack, Packed, PackedSize, Tiles};
use super::narrow;
use super::pool::Pool;
use super::rows::{GatedRows, Output, Rows};
use crate::checkpoint::weights::GatedMlp;
use crate::quant::{MatrixLayout, MatrixView};
#[cfg(target_arch = "x86_64")]
use crate::simd::amx::{Amx, ROWS};

/// Tokens up to which columns stand in the lanes. Beyond, tokens do.
pub(super) const FEW: usize = narrow::MOST;

/// Bytes of weights below which another thread is not worth waking.
const PARALLEL_FROM: usize = 1 << 15;

/// Bytes of weights that a task takes at least: some microseconds.
const TASK_BYTES: usize = 1 << 14;

thread_local! {
    /// A thread's memory for what it decodes and sums up.
    static TASK: RefCell<Task> = RefCell::default();
    /// A calling thread's memory for activations: of the first matrix, of the second, between the two halves of an MLP.
    static CALLER: RefCell<Caller> = RefCell::default();
}

/// Of each way to multiply.
#[derive(Default)]
struct Task {
    few: Lines,
    many: gemm::Scratch,
    #[cfg(target_arch = "x86_64")]
    tiles: amx::Scratch,
}

#[derive(Default)]
pub(super) struct Caller {
    x: Lines,
    up: Lines,
    pub(super) between: Vec<f32>,
}

/// Runs `work` with the thread's memory for activations.
pub(super) fn with_memory<R>(work: impl FnOnce(&mut Caller) -> R) -> R {
    CALLER.with_borrow_mut(work)
}

/// What multiplies, and with which instructions.
#[derive(Clone, Copy)]
pub(super) struct Compute<'a> {
    pub pool: &'a Pool,
    pub isa: Isa,
}

/// How matrices are multiplied with some tokens.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// Columns in the lanes: `rows.rs` and `narrow.rs`.
    Few,
    /// Tokens in the lanes: `gemm.rs`.
    Many,
    /// In AMX's tiles, some groups of 16 tokens.
    #[cfg(target_arch = "x86_64")]
    Tiles(Amx, usize),
}

/// Activations as the kernels of a [`Way`] take them.
#[derive(Clone, Copy)]
pub(super) enum Activations<'a> {
    Few(Prepared<'a>),
    Many(Packed<'a>),
    #[cfg(target_arch = "x86_64")]
    Tiles(Amx, amx::Packed<'a>),
}

/// A matrix and what it is multiplied with.
pub(super) type Operand<'a> = (MatrixView<'a>, Activations<'a>);

/// Rows of a matrix for each of its tasks.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    rows: usize,
    each: usize,
}

impl Cut {
    /// Of a matrix that `threads` threads divide.
    pub(super) fn new(layout: &MatrixLayout, way: Way, threads: usize) -> Cut {
        let rows = layout.rows;
        // Several tasks a thread, the same number for each, so that all end at about the same time; a block's rows at most.
        let even = |most: usize, each: usize| {
            rows.div_ceil(rows.div_ceil(most).max(threads * each).next_multiple_of(threads))
        };
        let few = || {
            let least = TASK_BYTES.div_ceil(layout.row_bytes().max(1));
            if layout.weight_bytes() < PARALLEL_FROM { rows } else { rows.div_ceil(threads * 8).max(least) }
        };
        let each = match way {
            Way::Few => few(),
            Way::Many => even(gemm::TILE_ROWS, 4).next_multiple_of(gemm::ROWS_AT_ONCE),
            #[cfg(target_arch = "x86_64")]
            Way::Tiles(_, 1) => few().next_multiple_of(amx::ROWS_AT_ONCE),
            #[cfg(target_arch = "x86_64")]
            Way::Tiles(..) => even(amx::BLOCK, 4).next_multiple_of(amx::ROWS_AT_ONCE),
        };
        Cut { rows, each }
    }

    pub(super) fn tasks(&self) -> usize {
        self.rows.div_ceil(self.each.max(1))
    }

    pub(super) fn range(&self, task: usize) -> Range<usize> {
        task * self.each..((task + 1) * self.each).min(self.rows)
    }
}

impl Compute<'_> {
    /// How matrices that are multiplied together meet `tokens` tokens.
    pub(super) fn way(self, layouts: &[MatrixLayout], tokens: usize) -> Way {
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Amx
            && layouts.iter().all(|w| amx::fewest(w.format).is_some_and(|fewest| tokens >= fewest))
            && let Some(amx) = Amx::get()
        {
            return Way::Tiles(amx, tokens.div_ceil(ROWS));
        }
        if tokens <= FEW { Way::Few } else { Way::Many }
    }

    /// y[t, r] = Σ W[r, c]·x[t, c]. `x` is [tokens, cols], `y` [tokens, rows]; every element of `y` is written.
    ///
    /// # Panics
    /// If the slices do not have those sizes.
    pub(super) fn matmul(self, w: MatrixView<'_>, x: &[f32], y: &mut [f32]) {
        with_memory(|memory| self.matmul_in(&mut memory.x, w, x, y));
    }

    fn matmul_in(self, memory: &mut Lines, w: MatrixView<'_>, x: &[f32], y: &mut [f32]) {
        let layout = w.layout();
        let tokens = x.len() / layout.cols;
        assert!(x.len() == tokens * layout.cols && y.len() == tokens * layout.rows, "matmul of {layout:?}");
        if tokens == 0 {
            return;
        }
        let way = self.way(&[layout], tokens);
        let cut = Cut::new(&layout, way, self.pool.threads());
        let out = Output::new(y, layout.rows);
        let x = self.activations(way, layout, x, None, memory);
        self.pool.run(cut.tasks(), &|task| self.multiply((w, x), cut.range(task), out));
    }

    /// out = down·(silu(gate·x) ⊙ (up·x)). `x` is [tokens, hidden]; or, with `rows`, the rows of x that are meant.
    ///
    /// # Panics
    /// If sizes do not match.
    pub(super) fn gated(
        self,
        mlp: &GatedMlp<MatrixView<'_>>,
        x: &[f32],
        rows: Option<&[u32]>,
        out: &mut [f32],
    ) {
        let (gate, up) = (mlp.gate.layout(), mlp.up.layout());
        let tokens = rows.map_or(x.len() / gate.cols, <[u32]>::len);
        if tokens == 0 {
            return;
        }
        with_memory(|Caller { x: first, up: second, between }| {
            between.clear();
            between.resize(tokens * gate.rows, 0.0);
            let to = Output::new(between, gate.rows);
            let way = self.way(&[gate, up], tokens);
            let cut = Cut::new(&gate, way, self.pool.threads());
            // One preparation does for both, unless their formats differ.
            let of_gate = self.activations(way, gate, x, rows, first);
            let of_up = if gate == up { of_gate } else { self.activations(way, up, x, rows, second) };
            self.pool.run(cut.tasks(), &|task| {
                self.multiply_gated((mlp.gate, of_gate), (mlp.up, of_up), cut.range(task), to);
            });
            self.matmul_in(first, mlp.down, between, out);
        });
    }

    /// y[t, r] = w[r]·x[t] for rows that no other task writes.
    pub(super) fn multiply(self, (w, x): Operand<'_>, rows: Range<usize>, out: Output) {
        TASK.with_borrow_mut(|task| match x {
            Activations::Few(x) => self.isa.run(Rows { w, x, rows, out, tile: &mut task.few }),
            Activations::Many(x) => {
                self.isa.run(Tiles { w, x, up: None, rows, out, scratch: &mut task.many })
            }
            #[cfg(target_arch = "x86_64")]
            Activations::Tiles(amx, x) => amx::multiply(amx, (w, x), None, rows, out, &mut task.tiles),
        });
    }

    /// h[t, r] = silu(gate[r]·x[t]) · (up[r]·x[t]) for rows that no other task writes.
    ///
    /// # Panics
    /// If both activations were not made the same way.
    pub(super) fn multiply_gated(
        self,
        (gate, of_gate): Operand<'_>,
        (up, of_up): Operand<'_>,
        rows: Range<usize>,
        out: Output,
    ) {
        TASK.with_borrow_mut(|task| match (of_gate, of_up) {
            (Activations::Few(x), Activations::Few(y)) => {
                self.isa.run(GatedRows { gate: (gate, x), up: (up, y), rows, out, tile: &mut task.few });
            }
            (Activations::Many(x), Activations::Many(y)) => {
                self.isa.run(Tiles { w: gate, x, up: Some((up, y)), rows, out, scratch: &mut task.many });
            }
            #[cfg(target_arch = "x86_64")]
            (Activations::Tiles(amx, x), Activations::Tiles(_, y)) => {
                amx::multiply(amx, (gate, x), Some((up, y)), rows, out, &mut task.tiles);
            }
            _ => panic!("both matrices of a gate are multiplied the same way"),
        });
    }

    /// Activations of [tokens, cols], or of its rows `rows`.
    pub(super) fn activations<'m>(
        self,
        way: Way,
        layout: MatrixLayout,
        x: &[f32],
        rows: Option<&[u32]>,
        into: &'m mut Lines,
    ) -> Activations<'m> {
        match way {
            Way::Few => {
                let gathered: Vec<f32>;
                let x = match rows {
                    None => x,
                    Some(rows) => {
                        gathered = gather(x, layout.cols, rows);
                        &gathered
                    }
                };
                Activations::Few(self.isa.run(Prepare { layout, x, into }))
            }
            Way::Many => Activations::Many(self.pack(layout, x, rows, into)),
            #[cfg(target_arch = "x86_64")]
            Way::Tiles(amx, _) => {
                Activations::Tiles(amx, amx::Packed::new(amx, self.pool, x, rows, layout.cols, into))
            }
        }
    }

    fn pack<'m>(
        self,
        layout: MatrixLayout,
        x: &[f32],
        rows: Option<&[u32]>,
        into: &'m mut Lines,
    ) -> Packed<'m> {
        let tokens = rows.map_or(x.len() / layout.cols, <[u32]>::len);
        let (floats, panels) = self.isa.run(PackedSize { layout, tokens });
        let values = into.take(floats);
        let out = Output::new(values, floats);
        self.pool.run(panels, &|panel| {
            self.isa.run(Pack { layout, x, rows, tokens, panel, into: out });
        });
        Packed::new(values, panels, tokens)
    }
}

/// Rows of x, one after another.
fn gather(x: &[f32], cols: usize, rows: &[u32]) -> Vec<f32> {
    let mut gathered = Vec::with_capacity(rows.len() * cols);
    for &row in rows {
        gathered.extend_from_slice(&x[row as usize * cols..][..cols]);
    }
    gathered
}
#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::quant::{Format, fp8, int4};
    use proptest::prelude::*;

    fn matmul(isa: Isa, w: MatrixView<'_>, x: &[f32], y: &mut [f32]) {
        Compute { pool: &Pool::new(2).unwrap(), isa }.matmul(w, x, y);
    }

    fn instruction_sets() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.available())
    }

    /// In f64, [tokens, rows].
    pub(in crate::device::cpu) fn naive(w: MatrixView<'_>, x: &[f32]) -> Vec<f64> {
        let (rows, cols) = (w.layout().rows, w.layout().cols);
        let mut row = vec![0.0; cols];
        let tokens = x.len() / cols;
        let mut y = vec![0.0; tokens * rows];
        for r in 0..rows {
            w.decode(r, 0, &mut row);
            for t in 0..tokens {
                y[t * rows + r] =
                    row.iter().zip(&x[t * cols..]).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
            }
        }
        y
    }

    /// Random bytes that are finite in the given format.
    pub(in crate::device::cpu) fn weights(layout: MatrixLayout, seed: u64) -> (Vec<u8>, Vec<u8>) {
        use rand_core::Rng;
        let mut rng = rand_pcg::Pcg64Mcg::new(u128::from(seed) | 1);
        let mut uniform = move || (rng.next_u32() >> 8) as f32 / (1 << 24) as f32 - 0.5;
        let mut weight = vec![0u8; layout.weight_bytes()];
        match layout.format {
            Format::F32 => {
                weight.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&uniform().to_le_bytes()))
            }
            Format::F16 => weight
                .chunks_exact_mut(2)
                .for_each(|b| b.copy_from_slice(&half::f16::from_f32(uniform()).to_le_bytes())),
            Format::Bf16 => weight
                .chunks_exact_mut(2)
                .for_each(|b| b.copy_from_slice(&half::bf16::from_f32(uniform()).to_le_bytes())),
            Format::Fp8Block => weight.iter_mut().for_each(|b| {
                *b = ((uniform() + 0.5) * 256.0) as u8;
                if *b & 0x7f == 0x7f {
                    *b = 0x80;
                }
            }),
            Format::Int4Group32 => weight.iter_mut().for_each(|b| *b = ((uniform() + 0.5) * 256.0) as u8),
        }
        let mut scale = vec![0u8; layout.scale_bytes()];
        if layout.format == Format::Int4Group32 {
            scale
                .chunks_exact_mut(2)
                .for_each(|b| b.copy_from_slice(&half::bf16::from_f32(uniform() / 8.0).to_le_bytes()));
        } else {
            scale.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&(uniform() / 448.0).to_le_bytes()));
        }
        (weight, scale)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn agrees_with_f64_on_ragged_sizes(rows in 1usize..300, cols in 1usize..1500, tokens in 0usize..40, seed: u64) {
            for format in [Format::F32, Format::F16, Format::Bf16, Format::Fp8Block, Format::Int4Group32] {
                let layout = MatrixLayout { format, rows, cols };
                let (weight, scale) = weights(layout, seed);
                let w = MatrixView::new(layout, &weight, &scale);
                let x: Vec<f32> = (0..tokens * cols).map(|i| ((i * 7919 + seed as usize % 1000) % 1000) as f32 / 500.0 - 1.0).collect();
                let want = naive(w, &x);
                for isa in instruction_sets() {
                    let mut y = vec![f32::NAN; tokens * rows];
                    matmul(isa, w, &x, &mut y);
                    for (i, (&got, &want)) in y.iter().zip(&want).enumerate() {
                        let bound = 1e-4 * (1.0 + want.abs()) * (cols as f64).sqrt();
                        prop_assert!((f64::from(got) - want).abs() <= bound, "{format:?} {isa:?} at {i}: {got} for {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn ragged_scale_blocks_use_row_over_128() {
        // 160 rows: the second block has 32 rows and its own scale; dividing by ceil(160/2) = 80 would be wrong.
        let layout = MatrixLayout { format: Format::Fp8Block, rows: 160, cols: 130 };
        let one = 0x38u8;
        assert_eq!(fp8::decode(one), 1.0);
        let weight = vec![one; layout.weight_bytes()];
        let scale: Vec<u8> = [1.0f32, 10.0, 100.0, 1000.0].iter().flat_map(|s| s.to_le_bytes()).collect();
        let w = MatrixView::new(layout, &weight, &scale);
        let mut y = vec![0.0; 160];
        matmul(Isa::detect(), w, &[1.0; 130], &mut y);
        assert_eq!((y[0], y[127], y[128], y[159]), (148.0, 148.0, 14800.0, 14800.0));
    }

    #[test]
    fn int4_matrix_with_known_words() {
        let layout = MatrixLayout { format: Format::Int4Group32, rows: 1, cols: 32 };
        let word = int4::pack([-8, -7, -1, 0, 1, 2, 3, 7]).to_le_bytes();
        let weight: Vec<u8> = word.iter().copied().cycle().take(16).collect();
        let scale = half::bf16::from_f32(0.5).to_le_bytes();
        let mut y = [0.0];
        matmul(Isa::detect(), MatrixView::new(layout, &weight, &scale), &[1.0; 32], &mut y);
        assert_eq!(y[0], -6.0, "4 words of sum -3, scale 0.5");
    }
}
