//! The cases of the benches, counted instead of timed: of each name the shape with the least work.

use std::collections::BTreeMap;

use abruzzi::device::cuda::Gpu;

use crate::harness::{Random, Session};
pub use crate::work::{Launch, Unit, Work};

/// What one kernel of a case did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Name and shape of the case, which may launch several kernels.
    pub case: String,
    pub kernel: String,
    /// Instructions, once for each warp that executes them.
    pub instructions: u64,
    /// Bytes read from device memory and written to it.
    pub bytes: u64,
}

/// Looks at all cases first, then counts those of the least work.
pub struct Bench<'a> {
    session: &'a Session,
    /// By name: the seconds of emulation and the shape.
    least: BTreeMap<String, (f64, String)>,
    counts: Option<Vec<Count>>,
}

impl<'a> Bench<'a> {
    /// Counts the cases that `benches` presents. Both its calls present the same.
    pub fn counts(session: &'a Session, benches: impl Fn(&mut Bench<'_>)) -> Vec<Count> {
        let mut bench = Bench { session, least: BTreeMap::new(), counts: None };
        benches(&mut bench);
        bench.counts = Some(Vec::new());
        benches(&mut bench);
        bench.counts.unwrap_or_default()
    }

    /// A kernel on one shape, as the benches' own has it.
    pub fn case(&mut self, name: &str, shape: &str, work: Work, setup: impl Fn(&Gpu, &mut Random) -> Launch) {
        let Some(counts) = &mut self.counts else {
            let seconds = work.emulated_seconds();
            let least = self.least.entry(name.to_owned()).or_insert((f64::INFINITY, String::new()));
            if seconds < least.0 {
                *least = (seconds, shape.to_owned());
            }
            return;
        };
        if self.least[name].1 != shape {
            return;
        }
        let mut launch = setup(&self.session.gpu, &mut Random::seeded(1));
        let counted = self.session.counted(|gpu| launch(gpu).unwrap()).expect("an emulated GPU");
        for (kernel, of_kernel) in counted {
            let counter = |name: &str| of_kernel["counters"][name].as_u64().unwrap();
            counts.push(Count {
                case: format!("{name}, {shape}"),
                kernel,
                instructions: counter("warp_instructions"),
                bytes: counter("dram_read_bytes") + counter("dram_write_bytes"),
            });
        }
    }
}
