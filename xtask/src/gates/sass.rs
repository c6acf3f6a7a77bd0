//! Machine code as `cuobjdump -sass` prints it, and patterns over its opcodes.

use std::fmt;

use serde::Deserialize;

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    pub address: u64,
    /// With its modifiers: `LDG.E.128`.
    pub opcode: String,
    /// Of a branch.
    pub target: Option<u64>,
}

/// A kernel's machine code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    pub code: Vec<Instruction>,
}

/// Reads everything that `cuobjdump -sass` prints of a fatbin.
pub fn parse(text: &str) -> Vec<Function> {
    let mut functions = Vec::<Function>::new();
    for line in text.lines() {
        let line = line.trim_start();
        if let Some(name) = line.strip_prefix("Function : ") {
            functions.push(Function { name: name.trim().to_owned(), code: Vec::new() });
        } else if let (Some(function), Some(instruction)) = (functions.last_mut(), instruction(line)) {
            function.code.push(instruction);
        }
    }
    functions
}

/// `/*0120*/  @P0 BRA 0x4f0 ;  /* … */`
fn instruction(line: &str) -> Option<Instruction> {
    let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    let address = u64::from_str_radix(address, 16).ok()?;
    let (text, _) = rest.split_once(';')?;
    let mut words = text.split_whitespace().filter(|word| !word.starts_with('@'));
    let opcode = words.next()?.to_owned();
    let hexadecimal = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let target = if opcode.starts_with("BRA") { words.next_back().and_then(hexadecimal) } else { None };
    Some(Instruction { address, opcode, target })
}

impl Function {
    /// The code of the innermost loops that contain an instruction like `of`, each instruction once.
    pub fn loops_with(&self, of: &Pattern) -> Vec<&Instruction> {
        // A branch to itself ends every function and is no loop.
        let backward = |i: &Instruction| i.target.filter(|t| *t < i.address).map(|t| (t, i.address));
        let loops: Vec<(u64, u64)> = self.code.iter().filter_map(backward).collect();
        let innermost = |address: u64| {
            let around = loops.iter().filter(|(from, to)| (*from..=*to).contains(&address));
            around.min_by_key(|(from, to)| to - from).copied()
        };
        let found = self.code.iter().filter(|i| of.matches(&i.opcode));
        let mut wanted: Vec<(u64, u64)> = found.filter_map(|i| innermost(i.address)).collect();
        wanted.dedup();
        let inside = |i: &&Instruction| wanted.iter().any(|(from, to)| (*from..=*to).contains(&i.address));
        self.code.iter().filter(inside).collect()
    }
}

/// An opcode and modifiers it must have, in their order: `LDG.128` is also `LDG.E.EF.128`. A part that ends in `*`
/// stands for all that begin so; alternatives are separated by `|`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Pattern(pub String);

impl Pattern {
    pub fn matches(&self, opcode: &str) -> bool {
        self.0.split('|').any(|alternative| matches(alternative.trim(), opcode))
    }

    pub fn count<'a>(&self, code: impl IntoIterator<Item = &'a Instruction>) -> usize {
        code.into_iter().filter(|i| self.matches(&i.opcode)).count()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn matches(pattern: &str, opcode: &str) -> bool {
    let one = |pattern: &str, part: &str| match pattern.strip_suffix('*') {
        Some(beginning) => part.starts_with(beginning),
        None => part == pattern,
    };
    let (mut patterns, mut parts) = (pattern.split('.'), opcode.split('.'));
    let (first, opcode) = (patterns.next().unwrap_or_default(), parts.next().unwrap_or_default());
    one(first, opcode) && patterns.all(|pattern| parts.any(|part| one(pattern, part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SASS: &str = "
Fatbin elf code:
================
arch = sm_90a

\t\tFunction : first
\t.headerflags\t@\"EF_CUDA_ACCELERATORS EF_CUDA_SM90\"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                 /* 0x00000a00ff017b82 */
                                                                          /* 0x000fe20000000800 */
        /*0010*/                   LDG.E.128.CONSTANT R40, desc[UR14][R16.64] ; /* 0x0000000e10287981 */
        /*0020*/                   LDS.64 R2, [R4] ;                      /* 0x0000000004027984 */
        /*0030*/                   QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR8], R24, gsb0 ; /* 0x00 */
        /*0040*/                   LOP3.LUT R34, R40, 0xffff0000, RZ, 0xc0, !PT ; /* 0xffff000028227812 */
        /*0050*/              @P0 BRA 0x20 ;                              /* 0x0000000000e40947 */
        /*0060*/             @!UP0 UIADD3 UR4, UR4, 0x1, URZ ;            /* 0x0000000000e40947 */
        /*0070*/              @P1 BRA 0x10 ;                              /* 0x0000000000e40947 */
        /*0080*/                   EXIT ;                                 /* 0x000000000000794d */
        /*0090*/                   BRA 0x90;                              /* 0xfffffffc00fc7947 */
\t\t..........
\t\tFunction : second
        /*0000*/                   STL [R1+0x128], R0 ;                   /* 0x0001280001007387 */
Fatbin ptx code:
";

    #[test]
    fn functions_and_opcodes() {
        let functions = parse(SASS);
        let names: Vec<_> = functions.iter().map(|f| (f.name.as_str(), f.code.len())).collect();
        assert_eq!(names, [("first", 10), ("second", 1)]);
        let code = &functions[0].code;
        assert_eq!(code[1].opcode, "LDG.E.128.CONSTANT");
        assert_eq!((code[5].opcode.as_str(), code[5].target), ("BRA", Some(0x20)));
        assert_eq!(code[6].opcode, "UIADD3");
        assert_eq!(functions[1].code[0].opcode, "STL");
    }

    #[test]
    fn the_main_loop_is_the_innermost_one() {
        let function = &parse(SASS)[0];
        let inside: Vec<_> =
            function.loops_with(&Pattern("QGMMA".into())).iter().map(|i| i.address).collect();
        assert_eq!(inside, [0x20, 0x30, 0x40, 0x50]);
        // In the outer loop only, and so with all of it.
        assert_eq!(function.loops_with(&Pattern("LDG".into())).len(), 7);
        // A function's closing branch to itself is no loop.
        assert!(function.loops_with(&Pattern("EXIT".into())).is_empty());
    }

    #[test]
    fn patterns() {
        let is = |pattern: &str, opcode| Pattern(pattern.into()).matches(opcode);
        assert!(is("LDG.128", "LDG.E.EF.128.CONSTANT") && is("LDG", "LDG.E") && is("LDG.E.128", "LDG.E.128"));
        assert!(!is("LDG.128", "LDG.E.64") && !is("LDG.128.E", "LDG.E.128") && !is("LD", "LDG.E"));
        assert!(is("I2F*", "I2FP.F32.S32") && !is("I2F", "I2FP.F32.S32"));
        assert!(
            is("QGMMA | HGMMA", "HGMMA.64x8x16.F32.BF16") && is("F2FP.UNPACK*", "F2FP.F16.E4M3.UNPACK_B")
        );
    }
}
