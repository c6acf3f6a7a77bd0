//! What ptxas reports with `-v` and its warnings, by kernel.

/// What says that a kernel is not what it was written to be. The first is how ptxas begins its remarks that `setmaxnreg`
/// is ignored (C7508) or wgmma serialised (C7510, C7511, C7515, C7518, …); C7517 is a wait that it put in by itself.
/// C7519, an injected arrive, costs next to nothing and is let through.
const REFUSED: [&str; 4] =
    ["Potential Performance Loss", "(C7517)", "Local memory used", "Registers are spilled"];

/// What a kernel takes, in registers and bytes; the largest of its functions that were not inlined.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    pub name: String,
    /// Of a thread.
    pub registers: u32,
    /// Static, of a block.
    pub shared: u32,
    pub stack: u32,
    pub spill_stores: u32,
    pub spill_loads: u32,
}

/// A warning that fails the build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// `None` where ptxas does not say.
    pub kernel: Option<String>,
    pub text: String,
}

/// Reads a whole log.
pub fn parse(log: &str) -> (Vec<Usage>, Vec<Warning>) {
    let (mut kernels, mut warnings) = (Vec::<Usage>::new(), Vec::new());
    for line in log.lines() {
        if let Some(rest) = line.strip_prefix("ptxas info    : Compiling entry function ") {
            kernels.push(Usage { name: quoted(rest).unwrap_or_default().to_owned(), ..Usage::default() });
        }
        if is_refused(line) {
            let text = line.split_once(" : ").map_or(line, |(_, text)| text).to_owned();
            let kernel = line.split_once("function ").and_then(|(_, rest)| quoted(rest)).map(str::to_owned);
            warnings.push(Warning { kernel, text });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        // "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", of the kernel and then of its functions.
        if line.contains("bytes stack frame, ") {
            kernel.stack = kernel.stack.max(before(line, "bytes stack frame"));
            kernel.spill_stores = kernel.spill_stores.max(before(line, "bytes spill stores"));
            kernel.spill_loads = kernel.spill_loads.max(before(line, "bytes spill loads"));
        }
        if line.starts_with("ptxas info    : Used ") {
            kernel.registers = before(line, "registers");
            kernel.shared = before(line, "bytes smem");
        }
    }
    (kernels, warnings)
}

fn is_refused(line: &str) -> bool {
    line.starts_with("ptxas") && REFUSED.iter().any(|text| line.contains(text))
}

/// The number before `what`; 0 if it is not there.
fn before(line: &str, what: &str) -> u32 {
    let Some((front, _)) = line.split_once(what) else { return 0 };
    front.split_whitespace().next_back().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The text between the first two quotation marks.
fn quoted(text: &str) -> Option<&str> {
    text.split('\'').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ptxas 13.0 on four kernels: a spill, an array in local memory, static shared memory, an ignored setmaxnreg.
    const LOG: &str = "\
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count at entry.
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma \
instructions defining accumulator registers of a wgmma between start and end of the pipeline stage in the function 'fine'
ptxas info    : (C7518) Potential Performance Loss: wgmma.mma_async instructions are serialized due to program \
dependence on compiler-inserted WG.DP in divergent path in the function 'fine'
ptxas info    : (C7517) warpgroup.wait is injected in around line 696 by compiler to allow use of registers defined by \
GMMA in function 'fine'
ptxas info    : (C7519) warpgroup.arrive is injected in around line 183 by compiler to allow use of registers in GMMA \
in function 'fine'
ptxas warning : Local memory used for function 'spills', size of stack frame: 744 bytes
ptxas warning : Registers are spilled to local memory in function 'spills', 792 bytes spill stores, 892 bytes spill loads
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'fine' for 'sm_90a'
ptxas info    : Function properties for fine
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 128 bytes smem
ptxas info    : Compile time = 2.374 ms
ptxas info    : Compiling entry function 'spills' for 'sm_90a'
ptxas info    : Function properties for spills
    744 bytes stack frame, 792 bytes spill stores, 892 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 744 bytes cumulative stack size
ptxas info    : Function properties for helper
    752 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
";

    #[test]
    fn usage_of_each_kernel() {
        let (kernels, _) = parse(LOG);
        let fine = Usage { name: "fine".into(), registers: 10, shared: 128, ..Usage::default() };
        let spills = Usage {
            name: "spills".into(),
            registers: 32,
            shared: 0,
            stack: 752,
            spill_stores: 792,
            spill_loads: 892,
        };
        assert_eq!(kernels, [fine, spills]);
    }

    #[test]
    fn warnings_with_their_kernel_where_ptxas_names_it() {
        let (_, warnings) = parse(LOG);
        let kernels: Vec<_> = warnings.iter().map(|w| w.kernel.as_deref()).collect();
        // The quotation marks in C7508 are around an instruction.
        let fine = Some("fine");
        assert_eq!(kernels, [None, fine, fine, fine, Some("spills"), Some("spills")]);
        assert!(warnings[0].text.starts_with("(C7508) Potential"), "{}", warnings[0].text);
    }

    #[test]
    fn other_warnings_are_none_of_ours() {
        let (kernels, warnings) =
            parse("x.cu(13): warning #177-D: variable \"s\" was declared\nptxas info    : 0 bytes gmem\n");
        assert!(kernels.is_empty() && warnings.is_empty());
    }
}
