//! The table of counts in a page: read, written, compared.

use std::fmt::Write;

use abruzzi::device::cpu::Isa;

/// What one call of a kernel executes with one instruction set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    pub kernel: String,
    pub shape: String,
    pub isa: Isa,
    pub instructions: u64,
}

/// By how many percent a count may differ from the one recorded.
const ROOM: u64 = 3;

const BEGIN: &str = "<!-- counts with ";
const END: &str = "<!-- end of counts -->";

/// What a cell holds where nobody has counted.
const NOTHING: &str = "-";

/// A page: before the table, the compiler it was written with, the table, and behind it.
pub struct Page<'a> {
    front: &'a str,
    pub compiler: &'a str,
    table: &'a str,
    back: &'a str,
}

impl<'a> Page<'a> {
    pub fn of(text: &'a str) -> Page<'a> {
        let (front, rest) = text.split_once(BEGIN).expect("the table's beginning");
        let (compiler, rest) = rest.split_once(" -->").expect("the marker's end");
        let (table, back) = rest.split_once(END).expect("the table's end");
        Page { front, compiler, table, back }
    }

    /// The same page with these counts by this compiler, and those recorded of sets that these are not of.
    pub fn with(&self, compiler: &str, found: &[Count]) -> String {
        let mut counts = found.to_vec();
        let others = self.counts().into_iter().filter(|old| {
            found.iter().any(|now| same_case(old, now)) && found.iter().all(|now| old.isa != now.isa)
        });
        counts.extend(others);
        format!("{}{BEGIN}{compiler} -->\n\n{}\n{END}{}", self.front, written(&counts), self.back)
    }

    pub fn counts(&self) -> Vec<Count> {
        let rows = self.table.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| kernel |"));
        let mut counts = Vec::new();
        for row in rows {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [kernel, shape, numbers @ ..] = &cells[..] else { panic!("{row} is no row of counts") };
            assert_eq!(numbers.len(), Isa::ALL.len(), "{row}");
            for (isa, number) in columns().zip(numbers).filter(|(_, number)| **number != NOTHING) {
                let instructions = number.parse().unwrap_or_else(|e| panic!("{number}: {e}"));
                counts.push(Count {
                    kernel: kernel.to_string(),
                    shape: shape.to_string(),
                    isa,
                    instructions,
                });
            }
        }
        counts
    }
}

/// The plainest set first.
fn columns() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().rev()
}

pub fn same_case(a: &Count, b: &Count) -> bool {
    (&a.kernel, &a.shape) == (&b.kernel, &b.shape)
}

fn written(counts: &[Count]) -> String {
    let mut table = "| kernel | shape |".to_owned();
    columns().for_each(|isa| write!(table, " {} |", isa.name()).unwrap());
    table += "\n|---|---|";
    columns().for_each(|_| table += "--:|");
    table += "\n";
    for (i, case) in counts.iter().enumerate() {
        if counts[..i].iter().any(|earlier| same_case(earlier, case)) {
            continue;
        }
        write!(table, "| {} | {} |", case.kernel, case.shape).unwrap();
        for isa in columns() {
            match counts.iter().find(|c| same_case(c, case) && c.isa == isa) {
                Some(count) => write!(table, " {} |", count.instructions).unwrap(),
                None => write!(table, " {NOTHING} |").unwrap(),
            }
        }
        table += "\n";
    }
    table
}

/// What is not as recorded, a line each. Sets of which nothing was found are not compared.
pub fn differences(recorded: &[Count], found: &[Count]) -> Vec<String> {
    let mut problems = Vec::new();
    for now in found {
        let Count { kernel, shape, isa, instructions: new } = now;
        let (case, new) = (format!("{kernel} ({shape}), {}", isa.name()), *new);
        let Some(old) = recorded.iter().find(|old| same_case(old, now) && old.isa == *isa) else {
            problems.push(format!("{case}: not recorded"));
            continue;
        };
        let old = old.instructions;
        if old.abs_diff(new) * 100 > old * ROOM {
            let change = 100.0 * (new as f64 / old as f64 - 1.0);
            problems.push(format!("{case}: {new} instructions, recorded {old} ({change:+.1} %)"));
        }
    }
    for old in recorded {
        let here = found.iter().any(|now| now.isa == old.isa);
        if here && !found.iter().any(|now| same_case(old, now) && now.isa == old.isa) {
            problems.push(format!(
                "{} ({}), {}: recorded, but not run",
                old.kernel,
                old.shape,
                old.isa.name()
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(kernel: &str, isa: Isa, instructions: u64) -> Count {
        Count { kernel: kernel.to_owned(), shape: "1 × 2".to_owned(), isa, instructions }
    }

    #[test]
    fn a_count_beyond_the_room_is_named_with_both_numbers() {
        let (plain, wide) = (Isa::Portable, Isa::Avx2);
        let old = [
            count("same", plain, 1000),
            count("more", plain, 1000),
            count("gone", plain, 1),
            count("elsewhere", wide, 1),
        ];
        let new = [count("same", plain, 1030), count("more", plain, 1031), count("new", plain, 1)];
        assert_eq!(
            differences(&old, &new),
            [
                "more (1 × 2), portable: 1031 instructions, recorded 1000 (+3.1 %)",
                "new (1 × 2), portable: not recorded",
                "gone (1 × 2), portable: recorded, but not run",
            ]
        );
        assert_eq!(differences(&old[..1], &[count("same", plain, 969)]).len(), 1);
    }

    #[test]
    fn writing_keeps_the_page_and_the_sets_that_were_not_run() {
        let empty = format!("before\n{BEGIN}one -->\n\n{END}\nbehind\n");
        let here = [count("a", Isa::Portable, 10), count("a", Isa::Avx2, 5), count("gone", Isa::Avx2, 7)];
        let first = Page::of(&empty).with("two", &here);
        assert!(first.starts_with("before\n") && first.ends_with("\nbehind\n"), "{first}");
        assert_eq!((Page::of(&first).compiler, Page::of(&first).counts()), ("two", here.to_vec()));

        let there = [count("a", Isa::Portable, 11), count("b", Isa::Portable, 3)];
        let second = Page::of(&first).with("three", &there);
        let kept = [there[0].clone(), count("a", Isa::Avx2, 5), there[1].clone()];
        assert_eq!(Page::of(&second).counts(), kept);
    }
}
