//! Where experts were found, and what it took to bring them.

use serde::Serialize;

use super::prefetch::PrefetchStats;

/// Counts of one engine, all its sessions, since it was loaded; or their difference over some work.
///
/// A layer's pass needs an expert once, however many of its tokens go there. Where the device holds every expert it looks
/// them up itself and nothing is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExpertStats {
    /// Needed experts that the device had.
    pub hits: u64,
    /// Needed experts that were copied to the device.
    pub over_link: u64,
    /// Needed experts that the CPU computed.
    pub on_cpu: u64,
    /// Of those two, the ones whose record had to be read from a file first.
    pub from_file: u64,
    /// Bytes of the experts that the device had.
    pub hit_bytes: u64,
    /// Bytes copied to the device because a layer needed them.
    pub link_bytes: u64,
    /// Bytes copied to the device ahead of need.
    pub ahead_bytes: u64,
    /// Guesses of which a part was copied, and the rest when the layer was found to use them.
    pub completed_parts: u64,
    /// Guesses of which a part was copied in vain: the layer did not use them, or the device refused the rest.
    pub dropped_parts: u64,
    /// Bytes of the experts that the CPU computed.
    pub cpu_bytes: u64,
    /// Bytes read from files, also ahead of need.
    pub file_bytes: u64,
    /// Experts that left the device for others.
    pub evicted: u64,
    /// What was copied ahead of need.
    pub prefetch: PrefetchStats,
    /// Seconds in which the link was copying, on the host's clock: from a copy's issue, or the end of the one before, to
    /// when the host saw it done. The host looks when it has nothing else to do, so this is never too short.
    pub link_seconds: f64,
    /// Seconds in which the CPU computed experts.
    pub cpu_seconds: f64,
    /// Seconds spent reading files, summed over reading threads.
    pub file_seconds: f64,
    /// Seconds in which the host stood still because of experts the device did not have: records being read, slots in
    /// use; copies under way after the layer's resident and shared experts were done; experts on the CPU, in full if
    /// those were done before them.
    pub waited_seconds: f64,
    /// Copies that the device refused; the CPU computed these experts.
    pub failed_copies: u64,
    /// Copies that brought a wrong checksum and were repeated.
    pub repeated_copies: u64,
}

impl ExpertStats {
    /// Experts that layers needed.
    pub fn needed(&self) -> u64 {
        self.hits + self.over_link + self.on_cpu
    }

    /// Share of needed experts that the device had, 0 to 1; 1 if none was needed.
    pub fn hit_rate(&self) -> f64 {
        share(self.hits, self.needed()).unwrap_or(1.0)
    }

    /// Share of the missed experts' bytes that the CPU computed; `None` without a miss.
    pub fn cpu_share(&self) -> Option<f64> {
        share(self.cpu_bytes, self.link_bytes + self.cpu_bytes)
    }

    /// 1 − waited / (link + CPU): of the time that link and CPU were busy, the share that cost no waiting; `None` if they
    /// never were. It is hidden behind each other (side by side all the time: 0.5) or behind the device's resident
    /// and shared experts.
    pub fn overlap(&self) -> Option<f64> {
        let busy = self.link_seconds + self.cpu_seconds;
        (busy > 0.0).then(|| (1.0 - self.waited_seconds / busy).clamp(0.0, 1.0))
    }

    /// Bytes a second over the link, as seen; `None` before the first copy.
    pub fn link_rate(&self) -> Option<f64> {
        rate(self.link_bytes + self.ahead_bytes, self.link_seconds)
    }

    /// Bytes of experts a second that the CPU computed, as seen; `None` before the first.
    pub fn cpu_rate(&self) -> Option<f64> {
        rate(self.cpu_bytes, self.cpu_seconds)
    }

    /// Bytes a second that one thread read from files, as seen; `None` before the first.
    pub fn file_rate(&self) -> Option<f64> {
        rate(self.file_bytes, self.file_seconds)
    }

    /// The least seconds that the counted work can take: the missed experts' bytes by link and CPU together, at the rates
    /// in `seen`, or what the device reads, at `device` bytes a second, whichever is longer (`docs/how-it-works.md`).
    /// `trunk` is the bytes that the device read besides routed experts, `streamed` those of them that had to cross the link. A
    /// side that `seen` knows no rate of is left out.
    pub fn limit_seconds(&self, seen: &ExpertStats, device: Option<f64>, trunk: u64, streamed: u64) -> f64 {
        let link = seen.link_rate().unwrap_or(0.0);
        let host = link + seen.cpu_rate().unwrap_or(0.0);
        let seconds = |bytes: u64, rate: f64| if rate > 0.0 { bytes as f64 / rate } else { 0.0 };
        // Missed experts may go either way, the trunk only over the link.
        let of_link = seconds(streamed, link);
        let of_host = seconds(self.link_bytes + self.cpu_bytes + if link > 0.0 { streamed } else { 0 }, host);
        let of_device = seconds(trunk + self.hit_bytes + self.link_bytes, device.unwrap_or(0.0));
        of_link.max(of_host).max(of_device)
    }

    /// What was counted since `before`.
    pub fn since(&self, before: &ExpertStats) -> ExpertStats {
        let prefetch = self.prefetch.since(before.prefetch);
        ExpertStats { prefetch, ..self.with(before, |a, b| a - b, |a, b| a - b) }
    }

    /// Adds what was counted elsewhere, prefetching aside.
    pub(crate) fn add(&mut self, more: &ExpertStats) {
        *self = self.with(more, |a, b| a + b, |a, b| a + b);
    }

    fn with(
        &self,
        other: &ExpertStats,
        count: impl Fn(u64, u64) -> u64,
        seconds: impl Fn(f64, f64) -> f64,
    ) -> ExpertStats {
        ExpertStats {
            hits: count(self.hits, other.hits),
            over_link: count(self.over_link, other.over_link),
            on_cpu: count(self.on_cpu, other.on_cpu),
            from_file: count(self.from_file, other.from_file),
            hit_bytes: count(self.hit_bytes, other.hit_bytes),
            link_bytes: count(self.link_bytes, other.link_bytes),
            ahead_bytes: count(self.ahead_bytes, other.ahead_bytes),
            completed_parts: count(self.completed_parts, other.completed_parts),
            dropped_parts: count(self.dropped_parts, other.dropped_parts),
            cpu_bytes: count(self.cpu_bytes, other.cpu_bytes),
            file_bytes: count(self.file_bytes, other.file_bytes),
            evicted: count(self.evicted, other.evicted),
            prefetch: self.prefetch,
            failed_copies: count(self.failed_copies, other.failed_copies),
            repeated_copies: count(self.repeated_copies, other.repeated_copies),
            link_seconds: seconds(self.link_seconds, other.link_seconds),
            cpu_seconds: seconds(self.cpu_seconds, other.cpu_seconds),
            file_seconds: seconds(self.file_seconds, other.file_seconds),
            waited_seconds: seconds(self.waited_seconds, other.waited_seconds),
        }
    }
}

fn share(part: u64, of: u64) -> Option<f64> {
    (of > 0).then(|| part as f64 / of as f64)
}

fn rate(bytes: u64, seconds: f64) -> Option<f64> {
    (bytes > 0 && seconds > 0.0).then(|| bytes as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> ExpertStats {
        ExpertStats {
            hits: 6,
            over_link: 1,
            on_cpu: 3,
            hit_bytes: 600,
            link_bytes: 100,
            cpu_bytes: 300,
            link_seconds: 2.0,
            cpu_seconds: 3.0,
            waited_seconds: 3.0,
            ..ExpertStats::default()
        }
    }

    #[test]
    fn shares_and_rates() {
        let stats = some();
        assert_eq!((stats.needed(), stats.hit_rate(), stats.cpu_share()), (10, 0.6, Some(0.75)));
        assert_eq!((stats.link_rate(), stats.cpu_rate(), stats.file_rate()), (Some(50.0), Some(100.0), None));
        assert!((stats.overlap().unwrap() - 0.4).abs() < 1e-12);
        let none = ExpertStats::default();
        assert_eq!((none.hit_rate(), none.cpu_share(), none.overlap()), (1.0, None, None));
        // Reading from files may take longer than link and CPU together: then nothing was hidden.
        assert_eq!(ExpertStats { waited_seconds: 9.0, ..some() }.overlap(), Some(0.0));
    }

    #[test]
    fn the_limit_is_the_longer_side() {
        let stats = some();
        // 400 bytes at 150 a second; 700 and the trunk's 100 at the device's rate.
        assert!((stats.limit_seconds(&stats, Some(1e3), 100, 0) - 400.0 / 150.0).abs() < 1e-12);
        assert_eq!(stats.limit_seconds(&stats, Some(100.0), 100, 0), 8.0);
        // Of 1000 bytes of trunk over the link at 50 a second; of 100 that add to what link and CPU share.
        assert_eq!(stats.limit_seconds(&stats, None, 1000, 1000), 20.0);
        assert!((stats.limit_seconds(&stats, None, 100, 100) - 500.0 / 150.0).abs() < 1e-12);
        assert_eq!(ExpertStats::default().limit_seconds(&ExpertStats::default(), None, 5, 5), 0.0);
    }

    #[test]
    fn a_difference_is_what_came_after() {
        let (before, mut after) = (some(), some());
        after.on_cpu += 2;
        after.waited_seconds += 0.5;
        after.prefetch.used += 1;
        let mut expected = ExpertStats { on_cpu: 2, waited_seconds: 0.5, ..ExpertStats::default() };
        expected.prefetch.used = 1;
        assert_eq!(after.since(&before), expected);
        let mut sum = before;
        sum.add(&expected);
        assert_eq!((sum.on_cpu, sum.waited_seconds), (after.on_cpu, after.waited_seconds));
    }
}
