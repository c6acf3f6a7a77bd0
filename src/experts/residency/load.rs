//! Where experts are to be kept, and bringing them there to begin with.

use std::sync::{Arc, Mutex, PoisonError};

use super::super::ExpertId;
use super::super::cache::{Cache, Reserved};
use super::super::fault::{Faults, Point};
use super::super::host::{HostStore, MappedExperts, StoreOptions};
use super::super::plan::Trunk;
use super::super::policy::CachePolicy;
use super::super::schedule::Rates;
use super::super::stats::ExpertStats;
use super::copying::copy;
use super::in_host::InHost;
use super::on_device::OnDevice;
use super::{AtWork, Residency, State};
use crate::checkpoint::{Checkpoint, LoadOptions, RecordLayout, memory};
use crate::device::cpu::Workers;
use crate::device::{Device, SlotAt};
use crate::error::{Error, Result};
use crate::telemetry::Tracer;

/// Tokens that a forward pass takes at once where nothing else is planned: large enough that decoding the weights is a small
/// part of the work, small enough that activations are (K2: 0.5 GB).
pub const PREFILL_CHUNK: usize = 512;

/// Records of host memory where experts only pass through it on their way to the device.
const PASSING: usize = 64;

/// Where experts are to be kept, and how.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Slots on the device; `None` takes one for every expert. A device that computes in host memory has none.
    pub slots: Option<usize>,
    /// Bytes of host memory for expert records; `None` takes what they need, or what is free of it. The rest stays in the
    /// checkpoint's files and is read when it is needed.
    pub host_budget: Option<u64>,
    /// Whether a device that computes in host memory uses weights in the checkpoint's files, mapped, instead of reading
    /// them into memory. [`Placement::maps`] says whether that is advisable.
    pub mapped: bool,
    /// What a tier keeps where not everything fits.
    pub policy: CachePolicy,
    /// Whether the CPU computes a share of the experts that are not on the device.
    pub cpu_share: bool,
    /// Whether to begin before all records are in host memory: an expert that is needed earlier is read at once. Damage is
    /// then found when it is met, not before the first token.
    pub serve_while_loading: bool,
    /// Where the trunk is; `None` is the device's memory.
    pub trunk: Option<Trunk>,
    /// Tokens that a forward pass takes at once.
    pub chunk: usize,
    /// Bytes that the key/value cache of a sequence may allocate on a device with slots; beyond, as where memory has run out,
    /// it takes slots.
    #[doc(hidden)]
    pub kv_limit: Option<u64>,
    /// Copies of an expert for which the link is taken to be idle before a layer's routing; `None` goes by the times seen.
    #[doc(hidden)]
    pub idle_copies: Option<f64>,
    /// What the machine is believed to do until it has been seen.
    pub rates: Rates,
    /// Whether everything that was read again or copied to the device is compared with the checksum of its first read. Each
    /// copy is then waited for and read back. Debug builds do.
    pub checksums: bool,
    /// Records what happens when.
    pub trace: Tracer,
    /// Faults on purpose.
    #[doc(hidden)]
    pub faults: Faults,
}

impl Default for Placement {
    fn default() -> Placement {
        // PCIe 5.0 x16 as measured by others, half of what twelve channels of DDR5 deliver, an H100's memory.
        let rates = Rates::new(55e9, 200e9, 400e9, 2700e9, 10e-6);
        let policy = CachePolicy::default();
        Placement {
            slots: None,
            host_budget: None,
            mapped: false,
            policy,
            cpu_share: true,
            serve_while_loading: false,
            trunk: None,
            chunk: PREFILL_CHUNK,
            kv_limit: None,
            idle_copies: None,
            rates,
            checksums: cfg!(debug_assertions),
            trace: Tracer::off(),
            faults: Faults::none(),
        }
    }
}

impl Placement {
    /// Whether the checkpoint is better mapped, for a device that computes in host memory: unless memory is budgeted or there is
    /// not enough to keep all of it in the file cache. Faults on purpose need records, too.
    pub fn maps(&self, checkpoint: &Checkpoint) -> bool {
        self.host_budget.is_none() && self.faults.is_none() && checkpoint.bytes() <= memory::available()
    }
}

impl<D: Device> Residency<D> {
    /// Makes room on the device and in host memory, and reads the experts: all of them where the tiers hold all, else they
    /// come when they are needed.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Checkpoint`] with the damaged tensors found; what the device reports.
    pub fn load(
        checkpoint: &Arc<Checkpoint>,
        device: &D,
        load: &LoadOptions,
        placement: &Placement,
    ) -> Result<Residency<D>> {
        let config = checkpoint.config();
        let layouts: Vec<_> = (0..config.num_layers).map(|layer| checkpoint.record_layout(layer)).collect();
        let experts = config.moe.num_experts;
        let all = layouts.iter().flatten().count() * experts;
        let slots = placement.slots.unwrap_or(all).min(all);
        let record = layouts.iter().flatten().map(RecordLayout::size).max().unwrap_or(0);
        if placement.faults.strikes(Point::DeviceAlloc) {
            let (what, needed) = (format!("slots for {slots} experts"), (slots * record) as u64);
            return Err(Error::OutOfMemory { what, needed, available: 0 });
        }
        let policy = |slots| placement.policy.build(slots, layouts.len(), experts, config.moe.top_k);
        let memory = device.slots(&layouts, experts, slots)?;
        let all_on_device = memory.is_some() && slots == all;
        let mut pins = Vec::new();
        let mut unpinned = None;
        let (host, on_device) = if placement.mapped && memory.is_none() {
            (InHost::Mapped(MappedExperts::new(checkpoint.clone(), load)), None)
        } else {
            let options = StoreOptions {
                load: load.clone(),
                faults: placement.faults.clone(),
                checksums: placement.checksums,
                background: true,
                ..StoreOptions::default()
            };
            // Experts that all stay on the device only pass through host memory.
            let passing = all_on_device.then(|| (PASSING.min(all.max(1)) * record) as u64);
            let budget = placement.host_budget.or(passing);
            let in_host = budget.map_or(all, |budget| budget as usize / record.max(1)).min(all);
            let store = HostStore::new(checkpoint.clone(), budget, policy(in_host), options)?;
            if memory.is_some() {
                store.on_chunk(&mut |chunk| {
                    // SAFETY: a device looks at the address and the length of what it locks, not at the bytes.
                    match unpinned.is_none().then(|| device.pin(unsafe { chunk.bytes() })) {
                        Some(Ok(pin)) => pins.push(pin),
                        Some(Err(why)) => unpinned = Some(why.to_string()),
                        None => {}
                    }
                    Ok(())
                })?;
            }
            let on_device = memory.map(|memory| {
                let cache = Cache::new(slots as u32, policy(slots));
                OnDevice::new(store.clone(), memory, cache, &layouts, experts, placement)
            });
            (InHost::Stored(store), on_device)
        };
        // Slots that hold every expert are filled in order, which waits for all of them anyway.
        if !placement.serve_while_loading || all_on_device {
            host.wait_loaded()?;
        }

        let workers = match device.workers() {
            Some(workers) => workers.clone(),
            None => Arc::new(Workers::new(load.threads)?),
        };
        let state = State { on_device, at_work: AtWork::default(), stats: ExpertStats::default() };
        let mut residency = Residency {
            workers,
            cpu_share: placement.cpu_share,
            faults: placement.faults.clone(),
            trace: placement.trace.clone(),
            state: Mutex::new(state),
            unpinned,
            pins,
            loaded: host.stats(),
            turn: Mutex::new(()),
            host,
        };
        if all_on_device {
            residency.bring_all(device, &layouts, experts)?;
            residency.loaded = residency.host.stats();
        }
        Ok(residency)
    }

    /// Fills every slot, in order. What the device refuses comes when it is needed.
    fn bring_all(&mut self, device: &D, layouts: &[Option<RecordLayout>], experts: usize) -> Result<()> {
        let layers =
            layouts.iter().enumerate().filter(|(_, layout)| layout.is_some()).map(|(layer, _)| layer);
        let ids = layers.flat_map(|layer| (0..experts).map(move |e| ExpertId::new(layer, e)));
        for id in ids {
            let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
            let State { on_device: Some(on), stats, .. } = state else { return Ok(()) };
            let Reserved::Slot { at, .. } = on.reserve(id, false) else { continue };
            let at = SlotAt { slot: at.slot, generation: at.generation };
            if let Some(arrival) = copy(device, &self.faults, on, id, at, stats)? {
                device.after(&arrival.whole)?;
                on.came(id, at)?;
            }
            on.close(device)?;
        }
        Ok(())
    }
}
