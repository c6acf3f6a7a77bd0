//! AMX: tiles of 16 rows by 64 bytes, multiplied as bfloat16 pairs into f32 (Intel's Software Developer's Manual, volume 1,
//! chapter 18). One product is 16·16·32 multiply-adds.
//!
//! The compiler knows nothing of tiles, so what is in them lasts from one piece of assembly to the next. They are set up by
//! [`Tiles::new`] and given back when it is dropped.

use std::arch::asm;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Rows of a tile, and the f32 of its row.
pub(crate) const ROWS: usize = 16;

/// bfloat16 of a tile's row: the depth of a product.
pub(crate) const DEPTH: usize = 32;

/// Bytes of a tile whose rows lie one after another.
pub(crate) const BYTES: usize = ROWS * ROW_BYTES;

const ROW_BYTES: usize = 64;

/// Parts of a right tile that [`Tiles::multiply`] adds up.
pub(crate) const RIGHT_PARTS: usize = 3;

/// That this processor has AMX with bfloat16 products and what [`Isa::Avx512Vbmi`](super::Isa::Avx512Vbmi) is, and that the system lets
/// this process use tiles.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amx(());

impl Amx {
    /// What is true of this process, asked for once.
    pub(crate) fn get() -> Option<Amx> {
        static HERE: OnceLock<Option<Amx>> = OnceLock::new();
        *HERE.get_or_init(|| {
            let avx512 = super::Isa::Avx512Vbmi.available();
            // Leaf 7: the bits of AMX-BF16 and AMX-TILE. The feature macro does not know them yet.
            let tiles = std::arch::x86_64::__cpuid_count(7, 0).edx;
            let tiles = tiles & 1 << 22 != 0 && tiles & 1 << 24 != 0;
            (avx512 && tiles && permitted()).then_some(Amx(()))
        })
    }
}

/// Linux saves tiles only for processes that ask (Documentation/arch/x86/xstate.rst).
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this call takes two numbers and touches no memory of the process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The tiles of this thread, set up: eight of 16 rows × 64 bytes, of which four are sums.
pub(crate) struct Tiles {
    /// They are the thread's own.
    _thread: PhantomData<*const ()>,
}

/// What meets in the four sums. Right tiles are of three parts that follow each other.
#[derive(Clone, Copy)]
pub(crate) enum Meeting {
    /// Two left tiles, each with two right tiles in turn.
    TwoByTwo([*const u8; 2], [*const u8; 2]),
    /// Four left tiles with a right one.
    FourByOne([*const u8; 4], *const u8),
}

impl Meeting {
    /// What lies so many bytes behind, on the left and on the right.
    #[inline(always)]
    pub(crate) fn further(self, left: usize, right: usize) -> Meeting {
        match self {
            Meeting::TwoByTwo([a, b], [x, y]) => Meeting::TwoByTwo(
                [a.wrapping_add(left), b.wrapping_add(left)],
                [x.wrapping_add(right), y.wrapping_add(right)],
            ),
            Meeting::FourByOne([a, b, c, d], x) => Meeting::FourByOne(
                [a.wrapping_add(left), b.wrapping_add(left), c.wrapping_add(left), d.wrapping_add(left)],
                x.wrapping_add(right),
            ),
        }
    }
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// Nothing else on this thread may be using tiles, as nothing in this crate is.
    pub(crate) fn new(_: Amx) -> Tiles {
        let mut configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        configuration.row_bytes[..8].fill(ROW_BYTES as u16);
        configuration.rows[..8].fill(ROWS as u8);
        // SAFETY: the processor has tiles and the process may use them; 64 bytes are read.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &configuration, options(nostack, preserves_flags)) }
        Tiles { _thread: PhantomData }
    }

    /// Sums begin at zero.
    #[inline(always)]
    pub(crate) fn clear(&self) {
        // SAFETY: tiles are set up; the compiler keeps nothing in them.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem, preserves_flags)
            );
        }
    }

    /// The sums, each [16, 16].
    ///
    /// # Safety
    /// Four tiles are writable.
    #[inline(always)]
    pub(crate) unsafe fn store(&self, to: [*mut f32; 4]) {
        // SAFETY: tiles are set up, and the caller's.
        unsafe {
            asm!(
                "tilestored [{a} + {stride}], tmm0",
                "tilestored [{b} + {stride}], tmm1",
                "tilestored [{c} + {stride}], tmm2",
                "tilestored [{d} + {stride}], tmm3",
                a = in(reg) to[0], b = in(reg) to[1], c = in(reg) to[2], d = in(reg) to[3],
                stride = in(reg) ROW_BYTES,
                options(nostack, preserves_flags)
            );
        }
    }

    /// `rounds` products on each of the four sums, of whatever the other tiles hold.
    pub(crate) fn multiply_alone(&self, rounds: usize) {
        for _ in 0..rounds {
            // SAFETY: tiles are set up; the compiler keeps nothing in them.
            unsafe {
                asm!(
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    options(nostack, nomem, preserves_flags)
                );
            }
        }
    }

    /// Adds products of 32 columns. Left tiles are of `PARTS` parts that follow each other in memory. All parts of a tile are
    /// added up, but for the product of the smallest, which is below what an f32 of the largest holds.
    ///
    /// # Safety
    /// The parts are readable.
    #[inline(always)]
    pub(crate) unsafe fn multiply<const PARTS: usize>(&self, meeting: Meeting) {
        const { assert!(PARTS == 1 || PARTS == 2) };
        // A product takes 52 cycles and every 16 one can begin: those on the same sum are kept apart.
        for part in 0..PARTS {
            let right = RIGHT_PARTS - part;
            // SAFETY: the caller's.
            unsafe {
                match meeting.further(part * BYTES, 0) {
                    Meeting::TwoByTwo(left, [x, y]) => {
                        self.left(left);
                        for at in (0..right * BYTES).step_by(BYTES) {
                            self.two_by_two(x.wrapping_add(at), y.wrapping_add(at));
                        }
                    }
                    Meeting::FourByOne([a, b, c, d], x) => {
                        self.left([a, b]);
                        for at in (0..right * BYTES).step_by(BYTES) {
                            self.first_two(x.wrapping_add(at));
                        }
                        self.left([c, d]);
                        for at in (0..right * BYTES).step_by(BYTES) {
                            self.last_two(x.wrapping_add(at));
                        }
                    }
                }
            }
        }
    }

    /// Takes two left tiles.
    ///
    /// # Safety
    /// They are readable.
    #[inline(always)]
    unsafe fn left(&self, [a, b]: [*const u8; 2]) {
        // SAFETY: tiles are set up, and the caller's.
        unsafe {
            asm!(
                "tileloadd tmm4, [{a} + {stride}]",
                "tileloadd tmm5, [{b} + {stride}]",
                a = in(reg) a, b = in(reg) b, stride = in(reg) ROW_BYTES,
                options(nostack, readonly, preserves_flags)
            );
        }
    }

    /// Both left tiles with two right ones.
    ///
    /// # Safety
    /// They are readable.
    #[inline(always)]
    unsafe fn two_by_two(&self, x: *const u8, y: *const u8) {
        // SAFETY: tiles are set up, and the caller's.
        unsafe {
            asm!(
                "tileloadd tmm6, [{x} + {stride}]",
                "tileloadd tmm7, [{y} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                x = in(reg) x, y = in(reg) y, stride = in(reg) ROW_BYTES,
                options(nostack, readonly, preserves_flags)
            );
        }
    }

    /// Both left tiles with one right one, into the first two sums.
    ///
    /// # Safety
    /// It is readable.
    #[inline(always)]
    unsafe fn first_two(&self, x: *const u8) {
        // SAFETY: tiles are set up, and the caller's.
        unsafe {
            asm!(
                "tileloadd tmm6, [{x} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm5, tmm6",
                x = in(reg) x, stride = in(reg) ROW_BYTES,
                options(nostack, readonly, preserves_flags)
            );
        }
    }

    /// The same into the last two.
    ///
    /// # Safety
    /// It is readable.
    #[inline(always)]
    unsafe fn last_two(&self, x: *const u8) {
        // SAFETY: tiles are set up, and the caller's.
        unsafe {
            asm!(
                "tileloadd tmm7, [{x} + {stride}]",
                "tdpbf16ps tmm2, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                x = in(reg) x, stride = in(reg) ROW_BYTES,
                options(nostack, readonly, preserves_flags)
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: tiles are set up; nobody looks at them any more.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}
