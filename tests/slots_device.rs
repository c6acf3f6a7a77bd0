//! Slots filled on demand, on the emulated GPU: copies beside the computing, passes over some of the experts, slots that were
//! filled with something else, and what comes to the host while the device goes on.
#![cfg(feature = "cuda")]

#[path = "common/emulator.rs"]
mod emulator;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use abruzzi::checkpoint::RecordLayout;
use abruzzi::checkpoint::weights::GatedMlp;
use abruzzi::config::MoeConfig;
use abruzzi::device::cuda::{CudaDevice, CudaRouting, CudaSlots, CudaTensor, Gpu};
use abruzzi::device::{Device, HostBytes, Pass, Precision, Routing, Shape as _, SlotAt};
use abruzzi::quant::{Format, MatrixLayout};
use half::{bf16, f16};
use rand_core::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

const FORMATS: [Format; 5] = [Format::F32, Format::F16, Format::Bf16, Format::Fp8Block, Format::Int4Group32];
const HIDDEN: usize = 160;
const INNER: usize = 96;
const TOP_K: usize = 2;
/// The layer that has experts; those before are dense.
const LAYER: usize = 2;

/// The emulator's settings are the process's: one test at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    emulator::install();
    emulator::configure(r#"{"reset": true, "checks": true, "schedule": "eager"}"#);
    turn
}

fn every_schedule(mut test: impl FnMut(&CudaDevice)) {
    for schedule in ["lazy", "eager", "random:1", "random:2"] {
        emulator::configure(&format!(r#"{{"schedule": "{schedule}"}}"#));
        eprintln!("schedule {schedule}");
        test(&CudaDevice::new(Gpu::open(0).unwrap()));
    }
}

/// Records of a layer's experts.
struct Layer {
    layout: RecordLayout,
    records: Vec<Vec<u8>>,
}

impl Layer {
    fn new(format: Format, experts: usize) -> Layer {
        let matrix = |rows, cols| MatrixLayout { format, rows, cols };
        let mlp =
            GatedMlp { gate: matrix(INNER, HIDDEN), up: matrix(INNER, HIDDEN), down: matrix(HIDDEN, INNER) };
        let layout = RecordLayout::new(&mlp);
        let mut random = Pcg64Mcg::seed_from_u64(7);
        let records = (0..experts).map(|_| record(&layout, &mut random)).collect();
        Layer { layout, records }
    }

    /// A copy of a record that nobody else holds.
    fn bytes(&self, expert: usize) -> HostBytes {
        Arc::new(self.records[expert].clone())
    }

    fn slots(&self, device: &CudaDevice, count: usize) -> CudaSlots {
        let mut layouts = vec![None; LAYER];
        layouts.push(Some(self.layout.clone()));
        device.slots(&layouts, self.records.len(), count).unwrap().expect("a GPU has slots")
    }
}

fn record(layout: &RecordLayout, random: &mut Pcg64Mcg) -> Vec<u8> {
    let mut record = vec![0xffu8; layout.size()];
    for part in layout.parts().each() {
        let mut unit = || random.next_u32() as i32 as f32 / (1u32 << 31) as f32;
        let elements = part.layout.rows * part.layout.cols;
        let weight: Vec<u8> = match part.layout.format {
            Format::F32 => (0..elements).flat_map(|_| unit().to_le_bytes()).collect(),
            Format::F16 => (0..elements).flat_map(|_| f16::from_f32(unit()).to_le_bytes()).collect(),
            Format::Bf16 => (0..elements).flat_map(|_| bf16::from_f32(unit()).to_le_bytes()).collect(),
            // 0x7f and 0xff are NaN.
            Format::Fp8Block => part.weight.clone().map(|_| random.next_u32() as u8 & 0xbf).collect(),
            Format::Int4Group32 => part.weight.clone().map(|_| random.next_u32() as u8).collect(),
        };
        record[part.weight.clone()].copy_from_slice(&weight);
        let scale = match part.layout.format {
            Format::Int4Group32 => bf16::from_f32(0.05).to_le_bytes().to_vec(),
            _ => 0.05f32.to_le_bytes().to_vec(),
        };
        for (at, byte) in part.scale.clone().zip(scale.into_iter().cycle()) {
            record[at] = byte;
        }
    }
    record
}

fn moe(num_experts: usize) -> MoeConfig {
    MoeConfig {
        num_experts,
        top_k: TOP_K,
        intermediate_size: INNER,
        num_shared: 0,
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: true,
        routed_scaling_factor: 1.0,
    }
}

/// Token t goes to experts t and t + 1: every expert has as many rows, but for one.
fn in_turns(tokens: usize, experts: usize) -> Routing {
    let mut routing = Routing::default();
    routing.reset(TOP_K);
    for token in 0..tokens {
        let mut logits = vec![-8.0; experts];
        for rank in 0..TOP_K {
            logits[(token + rank) % experts] = 4.0 - rank as f32;
        }
        routing.route_row(&logits, &vec![0.0; experts], &moe(experts));
    }
    routing.sort_by_expert(experts);
    routing
}

/// A batch on the device.
struct Batch {
    host: Routing,
    routing: CudaRouting,
    x: CudaTensor,
    pairs: CudaTensor,
}

impl Batch {
    fn new(device: &CudaDevice, tokens: usize, experts: usize) -> Batch {
        let host = in_turns(tokens, experts);
        let mut routing = device.routing(tokens, &moe(experts)).unwrap();
        device.write_routing(&host, &mut routing).unwrap();
        let mut random = Pcg64Mcg::seed_from_u64(11);
        let values: Vec<f32> =
            (0..tokens * HIDDEN).map(|_| random.next_u32() as i32 as f32 / (1u32 << 31) as f32).collect();
        let x = CudaTensor::upload(device.gpu(), HIDDEN, Precision::Working, &values).unwrap();
        let pairs = device.tensor(tokens * TOP_K, HIDDEN, Precision::Working).unwrap();
        Batch { host, routing, x, pairs }
    }

    fn run(&mut self, device: &CudaDevice, slots: &CudaSlots, pass: Pass<'_>) {
        device.experts(&self.x, slots, LAYER, pass, &self.routing, &mut self.pairs).unwrap();
    }

    fn read(&self, device: &CudaDevice) -> Vec<f32> {
        let mut rows = Vec::new();
        device.read(&self.pairs, &mut rows).unwrap();
        assert_eq!(rows.len(), self.host.sorted_pairs().len() * HIDDEN);
        rows
    }
}

/// Rows of sorted pairs by their experts.
fn rows<'a>(routing: &'a Routing, values: &'a [f32]) -> impl Iterator<Item = (usize, &'a [f32])> {
    values.chunks_exact(HIDDEN).enumerate().map(|(pair, row)| (routing.pair(pair).1, row))
}

/// What the batch should give: every expert in a slot of its own.
fn all_resident(device: &CudaDevice, layer: &Layer, tokens: usize) -> Vec<f32> {
    let experts = layer.records.len();
    let slots = layer.slots(device, experts);
    let at = |expert| SlotAt { slot: expert as u32, generation: 1 };
    for expert in 0..experts {
        let fence = device.fill(&slots, at(expert), layer.bytes(expert)).unwrap();
        device.after(&fence).unwrap();
    }
    device.place(&slots, LAYER, &(0..experts).map(|e| Some(at(e))).collect::<Vec<_>>()).unwrap();
    let mut batch = Batch::new(device, tokens, experts);
    device.blank_pairs(&batch.routing, &mut batch.pairs).unwrap();
    batch.run(device, &slots, Pass::Residents);
    let found = batch.read(device);
    assert!(found.iter().all(|v| v.is_finite()) && found.iter().any(|v| *v != 0.0));
    found
}

/// For each format, batches for each family of kernels: tokens and experts.
fn batches(format: Format) -> Vec<(usize, usize)> {
    match format {
        Format::Bf16 => vec![(5, 6), (70, 6)],
        Format::Fp8Block => vec![(5, 6), (70, 6)],
        // More than 128 rows an expert.
        Format::Int4Group32 => vec![(5, 6), (400, 6)],
        Format::F32 | Format::F16 => vec![(5, 6), (20, 6)],
    }
}

/// Half of the experts are there; the others arrive while the first half is computed. The same bits as with all there, and
/// until the others are computed their rows are what they were.
#[test]
fn a_pass_over_residents_and_one_over_what_arrived_give_what_all_residents_give() {
    let _turn = turn();
    every_schedule(|device| {
        for format in FORMATS {
            for (tokens, experts) in batches(format) {
                let layer = Layer::new(format, experts);
                let want = all_resident(device, &layer, tokens);
                let slots = layer.slots(device, experts + 2);
                // In slots of other numbers, with generations of their own.
                let at = |expert| SlotAt {
                    slot: ((expert * 5 + 3) % (experts + 2)) as u32,
                    generation: 9 + expert as u32,
                };
                let resident = |expert: usize| expert.is_multiple_of(2);
                let mut places = vec![None; experts];
                for expert in (0..experts).filter(|&e| resident(e)) {
                    let fence = device.fill(&slots, at(expert), layer.bytes(expert)).unwrap();
                    device.after(&fence).unwrap();
                    places[expert] = Some(at(expert));
                }
                device.place(&slots, LAYER, &places).unwrap();

                let mut batch = Batch::new(device, tokens, experts);
                device.blank_pairs(&batch.routing, &mut batch.pairs).unwrap();
                assert!(batch.read(device).iter().all(|v| v.is_nan()), "blank");
                device.write_rows(&mut batch.pairs, 1, &[7.0; HIDDEN]).unwrap();
                let before = batch.read(device);
                device.post_routing(&mut batch.routing).unwrap();
                batch.run(device, &slots, Pass::Residents);

                let mut host = Routing::default();
                device.read_routing(&batch.routing, &mut host).unwrap();
                let missing: Vec<usize> =
                    (0..experts).filter(|&e| !resident(e) && !host.pairs_of(e).is_empty()).collect();
                let listed: Vec<(u32, SlotAt)> = missing.iter().map(|&e| (e as u32, at(e))).collect();
                for &expert in &missing {
                    // Fence and bytes are let go at once.
                    device.fill(&slots, at(expert), layer.bytes(expert)).unwrap();
                }
                let computed = batch.read(device);
                let all = rows(&batch.host, &computed)
                    .zip(want.chunks_exact(HIDDEN))
                    .zip(before.chunks_exact(HIDDEN));
                for (((expert, row), want), before) in all {
                    let bits = |row: &[f32]| row.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    let want = if resident(expert) { want } else { before };
                    assert!(
                        bits(row) == bits(want),
                        "{format:?}, {tokens} tokens, expert {expert} after the residents"
                    );
                }

                // The last copy stands behind all of them.
                let last = device
                    .fill(&slots, SlotAt { slot: unused(experts, at), generation: 1 }, layer.bytes(0))
                    .unwrap();
                device.after(&last).unwrap();
                batch.run(device, &slots, Pass::Only(&listed));
                batch.run(device, &slots, Pass::Only(&[]));
                assert!(batch.read(device) == want, "{format:?}, {tokens} tokens");
                assert_eq!(device.stale(&slots).unwrap(), None);
            }
        }
    });
}

/// A slot that no expert is in.
fn unused(experts: usize, at: impl Fn(usize) -> SlotAt) -> u32 {
    let taken: Vec<u32> = (0..experts).map(|e| at(e).slot).collect();
    (0..).find(|slot| !taken.contains(slot)).unwrap()
}

/// The table still names an expert whose slot was filled with another: no row is computed with the wrong weights.
#[test]
fn a_slot_filled_again_is_stale_for_who_still_looks_there() {
    let _turn = turn();
    every_schedule(|device| {
        for format in FORMATS {
            for (tokens, experts) in batches(format) {
                let layer = Layer::new(format, experts);
                let want = all_resident(device, &layer, tokens);
                let slots = layer.slots(device, experts);
                let at = |expert: usize| SlotAt { slot: (experts - 1 - expert) as u32, generation: 4 };
                for expert in 0..experts {
                    device.fill(&slots, at(expert), layer.bytes(expert)).unwrap();
                }
                device.place(&slots, LAYER, &(0..experts).map(|e| Some(at(e))).collect::<Vec<_>>()).unwrap();
                // Expert 1 takes the slot of expert 3.
                let moved = SlotAt { generation: 5, ..at(3) };
                let fence = device.fill(&slots, moved, layer.bytes(1)).unwrap();
                device.after(&fence).unwrap();

                let mut batch = Batch::new(device, tokens, experts);
                let check = |batch: &Batch, computed: &dyn Fn(usize) -> bool| {
                    let got = batch.read(device);
                    for ((expert, row), want) in rows(&batch.host, &got).zip(want.chunks_exact(HIDDEN)) {
                        let what = format!("{format:?}, {tokens} tokens, expert {expert}");
                        match computed(expert) {
                            true => assert_eq!(row, want, "{what}"),
                            false => assert!(row.iter().all(|v| v.is_nan()), "{what}"),
                        }
                    }
                };
                device.blank_pairs(&batch.routing, &mut batch.pairs).unwrap();
                batch.run(device, &slots, Pass::Residents);
                check(&batch, &|expert| expert != 3);
                assert_eq!(device.stale(&slots).unwrap(), Some((LAYER, 3, at(3).slot)));
                assert_eq!(device.stale(&slots).unwrap(), None, "taken");

                // A list tells where the expert is now; one that is out of date does as little harm.
                device.blank_pairs(&batch.routing, &mut batch.pairs).unwrap();
                batch.run(device, &slots, Pass::Only(&[(1, moved), (3, at(3))]));
                check(&batch, &|expert| expert == 1);
                assert_eq!(device.stale(&slots).unwrap(), Some((LAYER, 3, at(3).slot)));

                // Emptied slots, which now serve something else, are as stale.
                device.empty(&slots, &[at(3).slot, at(2).slot]).unwrap();
                device.blank_pairs(&batch.routing, &mut batch.pairs).unwrap();
                batch.run(device, &slots, Pass::Residents);
                check(&batch, &|expert| expert != 2 && expert != 3);
                assert_eq!(device.stale(&slots).unwrap(), Some((LAYER, 2, at(2).slot)));
            }
        }
    });
}

/// A record that comes in two parts: until its last byte is there the slot holds nothing, whatever it held before.
#[test]
fn a_record_in_parts_is_there_when_its_last_byte_is() {
    let _turn = turn();
    every_schedule(|device| {
        for format in FORMATS {
            let (tokens, experts) = (5, 3);
            let layer = Layer::new(format, experts);
            let want = all_resident(device, &layer, tokens);
            let slots = layer.slots(device, experts);
            let at = |expert: usize| SlotAt { slot: expert as u32, generation: 6 };
            let cut = layer.records[0].len() / 3;
            for expert in 0..experts {
                let other = SlotAt { generation: 5, ..at(expert) };
                device.fill(&slots, other, layer.bytes((expert + 1) % experts)).unwrap();
                let first = device.fill_part(&slots, LAYER, at(expert), layer.bytes(expert), 0..cut).unwrap();
                device.after(&first).unwrap();
            }
            device.place(&slots, LAYER, &(0..experts).map(|e| Some(at(e))).collect::<Vec<_>>()).unwrap();
            let mut batch = Batch::new(device, tokens, experts);
            device.blank_pairs(&batch.routing, &mut batch.pairs).unwrap();
            batch.run(device, &slots, Pass::Residents);
            assert!(batch.read(device).iter().all(|v| v.is_nan()), "{format:?}: computed from a part");
            assert_eq!(device.stale(&slots).unwrap(), Some((LAYER, 0, 0)));

            for expert in 0..experts {
                let record = layer.bytes(expert);
                let rest = cut..(*record).as_ref().len();
                let last = device.fill_part(&slots, LAYER, at(expert), record, rest).unwrap();
                device.after(&last).unwrap();
            }
            batch.run(device, &slots, Pass::Residents);
            assert!(batch.read(device) == want, "{format:?}");
            assert_eq!(device.stale(&slots).unwrap(), None);
        }
    });
}

/// Experts whose gate and up are computed with before their down has arrived: the bits of a pass over whole records. Until the
/// last byte is there nobody else finds the expert, and a down that never came is noticed.
#[test]
fn gate_and_up_may_be_computed_with_before_down_is_there() {
    let _turn = turn();
    every_schedule(|device| {
        for format in FORMATS {
            for (tokens, experts) in batches(format) {
                let layer = Layer::new(format, experts);
                let want = all_resident(device, &layer, tokens);
                let slots = layer.slots(device, experts);
                let at = |expert: usize| SlotAt { slot: expert as u32, generation: 6 };
                let (down, all) = (layer.layout.down_start(), layer.layout.size());
                let part = |expert: usize, bytes| {
                    device.fill_part(&slots, LAYER, at(expert), layer.bytes(expert), bytes).unwrap()
                };
                for expert in 0..experts {
                    // What was there before, then a part of gate and up.
                    let other = SlotAt { generation: 5, ..at(expert) };
                    device.fill(&slots, other, layer.bytes((expert + 1) % experts)).unwrap();
                    part(expert, 0..down / 2);
                }
                let gate_up = (0..experts)
                    .map(|expert| part(expert, down / 2..down))
                    .collect::<Vec<_>>()
                    .pop()
                    .unwrap();
                let listed: Vec<_> = (0..experts).map(|e| (e as u32, at(e))).collect();
                let mut batch = Batch::new(device, tokens, experts);
                device.blank_pairs(&batch.routing, &mut batch.pairs).unwrap();
                device.after(&gate_up).unwrap();
                batch.run(device, &slots, Pass::Only(&listed));
                let got = batch.read(device);
                assert!(got.iter().all(|v| v.is_nan()), "{format:?}, {tokens} tokens: computed without down");
                assert_eq!(device.stale(&slots).unwrap(), Some((LAYER, 0, 0)));

                let whole =
                    (0..experts).map(|expert| part(expert, down..all)).collect::<Vec<_>>().pop().unwrap();
                let Batch { x, routing, pairs, .. } = &mut batch;
                device.experts_arriving(x, &slots, LAYER, &listed, &whole, routing, pairs).unwrap();
                assert!(batch.read(device) == want, "{format:?}, {tokens} tokens");
                assert_eq!(device.stale(&slots).unwrap(), None);

                // Gate and up of the next generation: neither its down nor the one before is there.
                let next = SlotAt { generation: 7, ..at(1) };
                let fence = device.fill_part(&slots, LAYER, next, layer.bytes(1), 0..down).unwrap();
                for place in [next, at(1)] {
                    device.blank_pairs(&batch.routing, &mut batch.pairs).unwrap();
                    let Batch { x, routing, pairs, .. } = &mut batch;
                    device.after(&fence).unwrap();
                    device.experts_arriving(x, &slots, LAYER, &[(1, place)], &fence, routing, pairs).unwrap();
                    assert!(batch.read(device).iter().all(|v| v.is_nan()), "{format:?}, {tokens} tokens");
                    assert_eq!(device.stale(&slots).unwrap(), Some((LAYER, 1, 1)));
                }
            }
        }
    });
}

/// Memory that is page-locked, memory that is not, and memory that stops to be: the slot has the record's bytes.
#[test]
fn records_arrive_whole_from_any_memory() {
    let _turn = turn();
    every_schedule(|device| {
        // More than all pieces of the ring, and no whole number of them.
        let bytes = (17 << 20) + 4096;
        let width = bytes / 2 / 3 / 64;
        let matrix = |rows, cols| MatrixLayout { format: Format::Bf16, rows, cols };
        let layout = RecordLayout::new(&GatedMlp {
            gate: matrix(64, width),
            up: matrix(64, width),
            down: matrix(width, 64),
        });
        let layouts = [Some(layout.clone())];
        let slots = device.slots(&layouts, 4, 4).unwrap().unwrap();
        let mut random = Pcg64Mcg::seed_from_u64(3);
        let content = |random: &mut Pcg64Mcg| -> Vec<u8> {
            (0..layout.size() / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect()
        };
        let at = |slot| SlotAt { slot, generation: slot + 1 };

        // Twice: the second has to wait for pieces.
        let first = content(&mut random);
        let second = content(&mut random);
        device.fill(&slots, at(0), Arc::new(first.clone())).unwrap();
        device.fill(&slots, at(1), Arc::new(second.clone())).unwrap();

        let third: HostBytes = Arc::new(content(&mut random));
        let pin = device.pin(third.clone()).unwrap();
        assert!(device.pin(third.clone()).is_err(), "pinned twice");
        let expected = (*third).as_ref().to_vec();
        device.fill(&slots, at(2), third.clone()).unwrap();
        // Waits for the copy.
        drop(pin);
        device.fill(&slots, at(3), third).unwrap();

        for (slot, want) in [&first, &second, &expected, &expected].into_iter().enumerate() {
            assert!(slots.record(slot as u32, layout.size()).unwrap() == *want, "slot {slot}");
        }
    });
}

/// Bytes live until their copy is done, whoever lets go of the fence, and no longer.
#[test]
fn bytes_are_kept_for_the_copy_and_then_let_go() {
    let _turn = turn();
    every_schedule(|device| {
        let layer = Layer::new(Format::Fp8Block, 3);
        let slots = layer.slots(device, 3);
        let mut known: Vec<Weak<Vec<u8>>> = Vec::new();
        let mut fences = Vec::new();
        for slot in 0..3 {
            let bytes = Arc::new(layer.records[slot].clone());
            known.push(Arc::downgrade(&bytes));
            // What is not pinned has been read when the call returns, and is kept all the same.
            let pin = device.pin(bytes.clone()).unwrap();
            let fence = device.fill(&slots, SlotAt { slot: slot as u32, generation: 1 }, bytes).unwrap();
            if slot == 1 {
                drop(fence);
            } else {
                fences.push(fence);
            }
            drop(pin);
        }
        assert!(known[0].upgrade().is_some() && known[2].upgrade().is_some(), "held by their fences");
        for fence in &fences {
            device.wait(fence).unwrap();
            assert!(device.passed(fence).unwrap());
        }
        drop(fences);
        // Whatever was let go before its time is swept by the next.
        device
            .wait(&device.fill(&slots, SlotAt { slot: 0, generation: 2 }, layer.bytes(0)).unwrap())
            .unwrap();
        for (slot, bytes) in known.iter().enumerate() {
            assert!(bytes.upgrade().is_none(), "slot {slot}");
        }
        for slot in 0..3 {
            assert!(slots.record(slot, layer.layout.size()).unwrap() == layer.records[slot as usize]);
        }
    });
}

fn assert_same(got: &Routing, want: &Routing) {
    assert_eq!((got.tokens(), got.ids()), (want.tokens(), want.ids()));
    assert_eq!(got.weights(), want.weights());
    assert_eq!((got.sorted_pairs(), got.positions()), (want.sorted_pairs(), want.positions()));
    assert_eq!(got.offsets(), want.offsets());
}

/// A posted routing or tensor is there while the work issued after it still runs; one that was not posted waits for it.
#[test]
fn what_was_posted_does_not_wait_for_later_work() {
    let _turn = turn();
    let device = CudaDevice::new(Gpu::open(0).unwrap());
    let gpu = device.gpu();
    // Work for a while: 1 GB moved within the device.
    let bytes = 64 << 20;
    let source = gpu.alloc_zeroed::<u8>(bytes, "later work").unwrap();
    let mut target = gpu.alloc::<u8>(bytes, "later work").unwrap();
    let mut later = || {
        for _ in 0..8 {
            target.all_mut().copy_from(gpu, source.all()).unwrap();
        }
        device.fence().unwrap()
    };
    let mut batch = Batch::new(&device, 9, 6);
    gpu.synchronize().unwrap();
    let (mut host, mut values) = (Routing::default(), Vec::new());

    device.post_routing(&mut batch.routing).unwrap();
    let work = later();
    device.read_routing(&batch.routing, &mut host).unwrap();
    assert!(!device.passed(&work).unwrap(), "the posted routing waited");
    assert_same(&host, &batch.host);
    device.wait(&work).unwrap();

    let posted = device.post_rows(&batch.x).unwrap();
    let work = later();
    device.take_rows(posted, &mut values).unwrap();
    assert!(!device.passed(&work).unwrap(), "the posted rows waited");
    let mut read = Vec::new();
    device.read(&batch.x, &mut read).unwrap();
    assert_eq!(values, read);
    assert!(device.passed(&work).unwrap(), "what was not posted waits");

    // A change makes what was posted worthless.
    device.post_routing(&mut batch.routing).unwrap();
    let other = in_turns(4, 6);
    device.write_routing(&other, &mut batch.routing).unwrap();
    let work = later();
    device.read_routing(&batch.routing, &mut host).unwrap();
    assert!(device.passed(&work).unwrap());
    assert_same(&host, &other);
}

/// Rows go in and out rounded once, in both precisions, at widths with and without padding; what is posted is what was
/// there then.
#[test]
fn rows_come_and_go() {
    let _turn = turn();
    every_schedule(|device| {
        for precision in [Precision::Full, Precision::Working] {
            for cols in [5, 8] {
                let value = |i: usize| 1.0 + i as f32 / 1000.0;
                let values: Vec<f32> = (0..6 * cols).map(value).collect();
                let mut tensor = CudaTensor::upload(device.gpu(), cols, precision, &values).unwrap();
                let posted = device.post_rows(&tensor).unwrap();
                let rows: Vec<f32> = (0..2 * cols).map(|i| -value(i)).collect();
                device.write_rows(&mut tensor, 3, &rows).unwrap();
                let rounded = |v: &f32| match precision {
                    Precision::Full => *v,
                    Precision::Working => bf16::from_f32(*v).to_f32(),
                };
                let mut want: Vec<f32> = values.iter().map(rounded).collect();
                let mut got = Vec::new();
                device.take_rows(posted, &mut got).unwrap();
                assert_eq!(got, want, "posted before");
                want[3 * cols..5 * cols].copy_from_slice(&rows.iter().map(rounded).collect::<Vec<_>>());
                device.read(&tensor, &mut got).unwrap();
                assert_eq!(got, want, "{precision:?}, {cols} columns");
                assert_eq!(tensor.rows(), 6);
            }
        }
    });
}
