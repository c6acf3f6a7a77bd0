//! Registers by live interval.
//!
//! nvcc's PTX gives every value a register of its own. Lowering keeps that as virtual cells; here each gets a place in
//! the warp's register file for as long as it is live, so that the file stays small enough for the caches. Liveness is
//! that of one lane's control flow: writes only ever touch active lanes, so lanes in different places can share a cell.

use super::super::op::{Flow, NONE, Op};

/// A virtual cell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Virtual {
    /// 64 bits.
    pub wide: bool,
    /// Holds a constant or special register for the whole launch.
    pub fixed: bool,
}

/// Virtual → physical cells, and how many there are.
pub(super) struct Allocation {
    pub place: Vec<u32>,
    pub cells: u32,
}

/// Calls `f(cell, written)` for every cell an operation names.
pub(super) fn each_cell(op: &Op, mut f: impl FnMut(u32, bool)) {
    for cell in [op.a, op.b, op.c] {
        if cell != NONE {
            f(cell, false);
        }
    }
    if !matches!(op.flow, Flow::Indexed) {
        for (i, &cell) in op.list.iter().enumerate() {
            if cell != NONE {
                let written = i < op.writes as usize;
                f(cell, written);
                if written && op.adds {
                    f(cell, false);
                }
            }
        }
    }
    if op.d != NONE && !op.d_is_pred() {
        f(op.d, true);
    }
}

/// Gives every virtual cell a place.
pub(super) fn allocate(code: &[Op], cells: &[Virtual]) -> Allocation {
    let intervals = intervals(code, cells);
    let mut place = vec![NONE; cells.len()];
    let mut next = 0;
    for (v, cell) in cells.iter().enumerate().filter(|(_, c)| c.fixed) {
        place[v] = next;
        next += if cell.wide { 2 } else { 1 };
    }
    let mut order: Vec<usize> = (0..cells.len()).filter(|&v| intervals[v].is_some()).collect();
    order.sort_by_key(|&v| intervals[v]);
    // Live ones by end; freed places by width.
    let mut live: std::collections::BinaryHeap<std::cmp::Reverse<(u32, usize)>> = Default::default();
    let mut free: [Vec<u32>; 2] = Default::default();
    for v in order {
        let Some((start, end)) = intervals[v] else { continue };
        while let Some(&std::cmp::Reverse((ended, w))) = live.peek() {
            if ended >= start {
                break;
            }
            live.pop();
            free[usize::from(cells[w].wide)].push(place[w]);
        }
        let wide = cells[v].wide;
        place[v] = free[usize::from(wide)].pop().unwrap_or_else(|| {
            let at = next;
            next += if wide { 2 } else { 1 };
            at
        });
        live.push(std::cmp::Reverse((end, v)));
    }
    // What is written and never read still needs a place to be written to.
    let (spare, mut needed) = (next, 0);
    for v in 0..cells.len() {
        if place[v] == NONE {
            place[v] = spare;
            needed = 2;
        }
    }
    Allocation { place, cells: next + needed }
}

/// First and last operation at which each cell is live or named.
fn intervals(code: &[Op], cells: &[Virtual]) -> Vec<Option<(u32, u32)>> {
    let blocks = basic_blocks(code);
    let words = cells.len().div_ceil(64);
    let mut live_in = vec![vec![0u64; words]; blocks.len()];
    let of_start: std::collections::HashMap<usize, usize> =
        blocks.iter().enumerate().map(|(i, b)| (b.0, i)).collect();
    let mut changed = true;
    while changed {
        changed = false;
        for (i, &(start, end)) in blocks.iter().enumerate().rev() {
            let mut live = live_out(code, end, &of_start, &live_in, words);
            for op in code[start..end].iter().rev() {
                if op.guard.reg == NONE {
                    each_cell(op, |cell, written| {
                        if written {
                            live[cell as usize / 64] &= !(1 << (cell % 64));
                        }
                    });
                }
                each_cell(op, |cell, written| {
                    if !written {
                        live[cell as usize / 64] |= 1 << (cell % 64);
                    }
                });
            }
            if live != live_in[i] {
                live_in[i] = live;
                changed = true;
            }
        }
    }

    let mut found: Vec<Option<(u32, u32)>> = vec![None; cells.len()];
    let mut note = |cell: usize, at: usize| {
        if !cells[cell].fixed {
            let at = at as u32;
            let (first, last) = found[cell].unwrap_or((at, at));
            found[cell] = Some((first.min(at), last.max(at)));
        }
    };
    for (i, &(start, end)) in blocks.iter().enumerate() {
        let out = live_out(code, end, &of_start, &live_in, words);
        for (live, at) in [(&live_in[i], start), (&out, end - 1)] {
            for (w, &word) in live.iter().enumerate() {
                let mut bits = word;
                while bits != 0 {
                    note(w * 64 + bits.trailing_zeros() as usize, at);
                    bits &= bits - 1;
                }
            }
        }
        for (at, op) in code.iter().enumerate().take(end).skip(start) {
            each_cell(op, |cell, _| note(cell as usize, at));
        }
    }
    found
}

fn live_out(
    code: &[Op],
    end: usize,
    of_start: &std::collections::HashMap<usize, usize>,
    live_in: &[Vec<u64>],
    words: usize,
) -> Vec<u64> {
    let mut live = vec![0; words];
    let last = &code[end - 1];
    let mut take = |at: usize| {
        if let Some(&block) = of_start.get(&at) {
            for (mine, theirs) in live.iter_mut().zip(&live_in[block]) {
                *mine |= theirs;
            }
        }
    };
    match last.flow {
        Flow::Branch(target) => take(target as usize),
        Flow::Indexed => last.list.iter().for_each(|&t| take(t as usize)),
        Flow::Next | Flow::Exit => {}
    }
    let falls = match last.flow {
        Flow::Branch(_) | Flow::Exit | Flow::Indexed => last.guard.reg != NONE,
        Flow::Next => true,
    };
    if falls {
        take(end);
    }
    live
}

/// Maximal runs of operations entered only at their start: [start, end).
fn basic_blocks(code: &[Op]) -> Vec<(usize, usize)> {
    let mut starts = vec![false; code.len() + 1];
    starts[0] = true;
    for (i, op) in code.iter().enumerate() {
        match op.flow {
            Flow::Branch(target) => {
                starts[target as usize] = true;
                starts[i + 1] = true;
            }
            Flow::Indexed => {
                op.list.iter().for_each(|&t| starts[t as usize] = true);
                starts[i + 1] = true;
            }
            Flow::Exit => starts[i + 1] = true,
            Flow::Next => {}
        }
    }
    let at: Vec<usize> = (0..code.len()).filter(|&i| starts[i]).chain([code.len()]).collect();
    at.windows(2).map(|w| (w[0], w[1])).collect()
}
