//! Who computes an expert that is not on the GPU: the GPU once it was copied, or the CPU where it lies.
//!
//! A layer's misses are known all at once, when its routing is. The link copies one expert after the other, and the GPU
//! computes each as it arrives, gate and up before down has; the CPU's workers compute one expert after the other, all of them on the same one.
//! [`split`] gives each miss to one of the two so that the layer is finished earliest, by the [`Rates`] that were seen
//! lately. Nothing here waits or measures: times come in, decisions go out, equal inputs give equal decisions.

/// How much of a new observation goes into an estimate. Half of an estimate is older than six observations: a
/// neighbour's burst is seen within a token, a single late interrupt is not believed.
const WEIGHT: f64 = 0.12;

/// Assignments tried before the search gives up being exhaustive. A decoded token's misses need far fewer; a chunk of a
/// prompt, with hundreds of experts of as many row counts, needs far more.
const EXHAUSTIVE: usize = 256;

/// An estimate that follows its observations: their exponentially weighted mean.
pub(crate) fn follow(estimate: &mut f64, seen: f64) {
    if seen.is_finite() && seen > 0.0 {
        *estimate = if *estimate > 0.0 { *estimate + WEIGHT * (seen - *estimate) } else { seen };
    }
}

/// What the machine does, estimated live. A rate of 0 says that the side is absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Bytes a second from host memory to the GPU.
    pub link: f64,
    /// Bytes of experts a second that the CPU's workers compute with for one row, while the link is idle.
    pub cpu: f64,
    /// The same while the link copies: both draw on the host's memory.
    pub cpu_beside_link: f64,
    /// Bytes × rows a second at most: with many rows the CPU is bound by arithmetic, not by memory.
    pub cpu_rows: f64,
    /// Bytes of experts a second that the GPU computes with.
    pub gpu: f64,
    /// Seconds that handing work over costs whatever its size: a launch, or seeing that something has finished.
    pub fixed: f64,
}

impl Rates {
    /// Estimates to begin with: what the link, the host's memory (`dram`, all that it delivers) and the CPU's workers
    /// are said to reach.
    pub fn new(link: f64, cpu: f64, dram: f64, gpu: f64, fixed: f64) -> Rates {
        let cpu_beside_link = cpu.min((dram - link).max(0.0));
        // Eight rows for the price of one: what AVX2 reaches on weights that it has to decode first.
        Rates { link, cpu, cpu_beside_link, cpu_rows: 8.0 * cpu, gpu, fixed }
    }

    /// A copy of `bytes` took `seconds` of the link.
    pub fn observe_copy(&mut self, bytes: u64, seconds: f64) {
        follow(&mut self.link, bytes as f64 / seconds);
    }

    /// The GPU computed with `bytes` of experts for `seconds`.
    pub fn observe_gpu(&mut self, bytes: u64, seconds: f64) {
        follow(&mut self.gpu, bytes as f64 / seconds);
    }

    /// Handing work over took `seconds`.
    pub fn observe_fixed(&mut self, seconds: f64) {
        follow(&mut self.fixed, seconds);
    }

    /// The CPU computed `rows` rows of an expert of `bytes` in `seconds`; `link_busy` if copies ran beside it.
    pub fn observe_cpu(&mut self, bytes: u64, rows: u32, seconds: f64, link_busy: bool) {
        let rate = bytes as f64 / seconds;
        if !rate.is_finite() || rate <= 0.0 {
            return;
        }
        let bandwidth = if link_busy { &mut self.cpu_beside_link } else { &mut self.cpu };
        let with_rows = rate * f64::from(rows);
        // One row is bound by memory. More rows in the same time say that arithmetic is faster than was thought; in a
        // longer time, that it is the limit.
        if rows <= 1 || rate >= *bandwidth {
            follow(bandwidth, rate);
            self.cpu_rows = self.cpu_rows.max(with_rows);
        } else {
            follow(&mut self.cpu_rows, with_rows);
        }
    }

    /// Seconds of the link for one copy.
    pub fn copy_seconds(&self, bytes: u64) -> f64 {
        bytes as f64 / self.link
    }

    /// Seconds of the CPU for `rows` rows of an expert of `bytes`, with an idle link.
    pub fn cpu_seconds(&self, bytes: u64, rows: u32) -> f64 {
        let bytes = bytes as f64;
        (bytes / self.cpu).max(bytes * f64::from(rows) / self.cpu_rows)
    }

    /// Seconds of the GPU for an expert that has just arrived.
    fn gpu_seconds(&self, bytes: u64) -> f64 {
        self.fixed + if self.gpu > 0.0 { bytes as f64 / self.gpu } else { 0.0 }
    }

    /// When the CPU has finished work it begins at `start`, with the link busy until `link_until`.
    fn cpu_end(&self, miss: &Miss, start: f64, link_until: f64) -> f64 {
        let arithmetic = miss.bytes as f64 * f64::from(miss.rows) / self.cpu_rows;
        let bytes = miss.bytes as f64;
        let beside = (link_until - start).max(0.0);
        let of_beside = beside * self.cpu_beside_link;
        let memory = if of_beside >= bytes {
            bytes / self.cpu_beside_link
        } else {
            beside + (bytes - of_beside) / self.cpu
        };
        start + memory.max(arithmetic)
    }
}

/// An expert that a layer needs and that is not on the GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Miss {
    /// The expert, within its layer.
    pub expert: u32,
    /// Bytes of its record.
    pub bytes: u64,
    /// Of these the last ones, down's, without which the GPU computes with the others; 0 if it waits for all.
    pub down: u64,
    /// Rows (tokens) that chose it.
    pub rows: u32,
    /// Seconds until a copy that is under way already (a prefetch) arrives.
    pub arriving_in: Option<f64>,
    /// Seconds until its record is in host memory; 0 if it is there.
    pub host_in: f64,
}

/// Seconds until each side has done what it was asked for before.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Busy {
    /// Until a copy that is issued now begins.
    pub link_free_in: f64,
    /// Until the CPU's workers begin.
    pub cpu_free_in: f64,
    /// Until the GPU has computed the layer's resident experts.
    pub gpu_free_in: f64,
}

/// Who computes a miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// It is copied (or awaited, if its copy is under way), and the GPU computes it.
    Link,
    /// The CPU computes it from the host's record.
    Cpu,
}

/// Divides a layer's misses: `out` holds a target for each. Returns the seconds until the layer's experts are done, as
/// estimated.
///
/// Exhaustive where misses are few kinds (all of a decoded token's), else near it: experts with the most rows
/// go to the link first, and every point of division is tried. Of divisions that finish at the same time, the one
/// with more on the link is taken: what the link brings can be kept. Of misses that are alike, the first go to the link.
pub fn split(misses: &[Miss], rates: &Rates, busy: Busy, out: &mut Vec<Target>) -> f64 {
    out.clear();
    let (link, cpu) = (rates.link > 0.0, rates.cpu > 0.0 && rates.cpu_beside_link > 0.0);
    out.resize(misses.len(), if cpu && !link { Target::Cpu } else { Target::Link });
    if misses.is_empty() {
        return busy.gpu_free_in;
    }
    if link != cpu {
        return Plan::new(misses, rates, busy).finish(out);
    }
    if !link {
        return f64::INFINITY;
    }
    let plan = Plan::new(misses, rates, busy);
    let kinds = plan.kinds();
    let choices = kinds.iter().try_fold(1usize, |n, kind| n.checked_mul(kind.len() + 1));
    match choices {
        Some(choices) if choices <= EXHAUSTIVE => plan.exhaustive(&kinds, choices, out),
        _ => plan.by_rows(out),
    }
}

/// A division being looked for.
struct Plan<'a> {
    misses: &'a [Miss],
    rates: &'a Rates,
    busy: Busy,
    /// Misses in the order in which either side takes them: as they come into host memory, those that come together by size.
    /// So those that are alike follow each other, and which of them go where makes no difference.
    order: Vec<usize>,
}

impl<'a> Plan<'a> {
    fn new(misses: &'a [Miss], rates: &'a Rates, busy: Busy) -> Plan<'a> {
        let mut order: Vec<usize> = (0..misses.len()).collect();
        let size = |i: usize| (misses[i].bytes, misses[i].rows);
        order.sort_by(|&a, &b| misses[a].host_in.total_cmp(&misses[b].host_in).then(size(a).cmp(&size(b))));
        Plan { misses, rates, busy, order }
    }

    /// Seconds until all experts are done under an assignment.
    fn finish(&self, targets: &[Target]) -> f64 {
        let mut link = self.busy.link_free_in;
        let mut arrivals: Vec<(f64, &Miss)> = Vec::with_capacity(self.misses.len());
        for &i in &self.order {
            let miss = &self.misses[i];
            match (targets[i], miss.arriving_in) {
                (Target::Cpu, _) => {}
                (Target::Link, Some(at)) => arrivals.push((at, miss)),
                (Target::Link, None) => {
                    link = link.max(miss.host_in) + self.rates.copy_seconds(miss.bytes);
                    arrivals.push((link, miss));
                }
            }
        }
        arrivals.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut gpu = self.busy.gpu_free_in;
        for (at, miss) in arrivals {
            gpu = gpu.max(at - self.rates.copy_seconds(miss.down))
                + self.rates.gpu_seconds(miss.bytes - miss.down);
            if miss.down > 0 {
                gpu = gpu.max(at) + self.rates.gpu_seconds(miss.down);
            }
        }
        let mut cpu = self.busy.cpu_free_in;
        let mut any = false;
        for &i in self.order.iter().filter(|&&i| targets[i] == Target::Cpu) {
            let miss = &self.misses[i];
            cpu = self.rates.cpu_end(miss, cpu.max(miss.host_in), link);
            any = true;
        }
        if any { gpu.max(cpu + self.rates.fixed) } else { gpu }
    }

    /// Misses that no assignment could tell apart, together.
    fn kinds(&self) -> Vec<Vec<usize>> {
        let alike = |a: &Miss, b: &Miss| {
            (a.bytes, a.down, a.rows, a.arriving_in, a.host_in)
                == (b.bytes, b.down, b.rows, b.arriving_in, b.host_in)
        };
        let mut kinds: Vec<Vec<usize>> = Vec::new();
        for (i, miss) in self.misses.iter().enumerate() {
            match kinds.iter_mut().find(|kind| alike(&self.misses[kind[0]], miss)) {
                Some(kind) => kind.push(i),
                None => kinds.push(vec![i]),
            }
        }
        kinds
    }

    /// Tries how many of each kind the CPU takes, in every combination.
    fn exhaustive(&self, kinds: &[Vec<usize>], choices: usize, out: &mut Vec<Target>) -> f64 {
        let mut best = (f64::INFINITY, usize::MAX);
        let mut trial = out.clone();
        for choice in 0..choices {
            let (mut rest, mut on_cpu) = (choice, 0);
            for kind in kinds {
                let cpu = rest % (kind.len() + 1);
                rest /= kind.len() + 1;
                on_cpu += cpu;
                for (at, &i) in kind.iter().enumerate() {
                    trial[i] = if at < kind.len() - cpu { Target::Link } else { Target::Cpu };
                }
            }
            self.keep_better(&trial, on_cpu, &mut best, out);
        }
        best.0
    }

    /// Sorted by the CPU's time for them, longest first, misses go to the link up to some point. With equal records
    /// in host memory that is the optimum: exchanging a shorter one on the link for a longer one on the CPU only ever
    /// helps, unless the CPU is slower beside a copy by so much that the order of its work matters. Copies under way
    /// are awaited, or given to the CPU from the last to arrive on.
    fn by_rows(&self, out: &mut Vec<Target>) -> f64 {
        let (mut under_way, mut rest): (Vec<usize>, Vec<usize>) =
            (0..self.misses.len()).partition(|&i| self.misses[i].arriving_in.is_some());
        let cpu = |i: usize| self.rates.cpu_seconds(self.misses[i].bytes, self.misses[i].rows);
        rest.sort_by(|&a, &b| cpu(b).total_cmp(&cpu(a)));
        under_way
            .sort_by(|&a, &b| self.misses[b].arriving_in.partial_cmp(&self.misses[a].arriving_in).unwrap());
        let mut best = (f64::INFINITY, usize::MAX);
        for given_up in 0..=under_way.len() {
            let before = best.0;
            let mut trial = vec![Target::Cpu; self.misses.len()];
            for &i in &under_way[given_up..] {
                trial[i] = Target::Link;
            }
            for link in 0..=rest.len() {
                if link > 0 {
                    trial[rest[link - 1]] = Target::Link;
                }
                self.keep_better(&trial, given_up + rest.len() - link, &mut best, out);
            }
            if best.0 >= before {
                break;
            }
        }
        best.0
    }

    fn keep_better(&self, trial: &[Target], on_cpu: usize, best: &mut (f64, usize), out: &mut Vec<Target>) {
        let finish = self.finish(trial);
        if (finish, on_cpu) < *best {
            *best = (finish, on_cpu);
            out.clear();
            out.extend_from_slice(trial);
        }
    }
}

#[cfg(test)]
mod tests;
