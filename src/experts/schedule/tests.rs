use proptest::prelude::*;

use super::*;

const EXPERT: u64 = 44_000_000;

fn rates() -> Rates {
    Rates::new(55e9, 300e9, 400e9, 2.7e12, 5e-6)
}

fn miss(expert: u32, rows: u32) -> Miss {
    Miss { expert, bytes: EXPERT, down: 0, rows, arriving_in: None, host_in: 0.0 }
}

/// The finish time from the definition: each side's queue walked in the order of `host_in`, in small steps of
/// the CPU's work rather than by the closed form.
fn walk(misses: &[Miss], rates: &Rates, busy: Busy, on_cpu: u32) -> f64 {
    let mut order: Vec<usize> = (0..misses.len()).collect();
    let place = |i: usize| (misses[i].host_in, misses[i].bytes, misses[i].rows);
    order.sort_by(|&a, &b| place(a).partial_cmp(&place(b)).unwrap());
    let cpu = |i: usize| on_cpu >> i & 1 == 1;
    let mut arrivals = Vec::new();
    let mut link = busy.link_free_in;
    for &i in order.iter().filter(|&&i| !cpu(i)) {
        match misses[i].arriving_in {
            Some(at) => arrivals.push((at, i)),
            None => {
                link = link.max(misses[i].host_in) + misses[i].bytes as f64 / rates.link;
                arrivals.push((link, i));
            }
        }
    }
    arrivals.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut done = busy.gpu_free_in;
    for (at, i) in arrivals {
        // One launch when gate and up are there, another when down is.
        let (rest, down) = ((misses[i].bytes - misses[i].down) as f64, misses[i].down as f64);
        done = done.max(at - down / rates.link) + rates.fixed + rest / rates.gpu;
        if misses[i].down > 0 {
            done = done.max(at) + rates.fixed + down / rates.gpu;
        }
    }
    let mut t = busy.cpu_free_in;
    for &i in order.iter().filter(|&&i| cpu(i)) {
        let m = &misses[i];
        t = t.max(m.host_in);
        let (start, mut left) = (t, m.bytes as f64);
        while left > 0.0 {
            let (rate, until) =
                if t < link { (rates.cpu_beside_link, link) } else { (rates.cpu, f64::INFINITY) };
            let end = (t + left / rate).min(until);
            left = if end < until { 0.0 } else { left - (until - t) * rate };
            t = end;
        }
        t = t.max(start + m.bytes as f64 * f64::from(m.rows) / rates.cpu_rows);
    }
    if on_cpu == 0 { done } else { done.max(t + rates.fixed) }
}

fn best_of_all(misses: &[Miss], rates: &Rates, busy: Busy) -> f64 {
    (0..1u32 << misses.len()).map(|on_cpu| walk(misses, rates, busy, on_cpu)).fold(f64::INFINITY, f64::min)
}

fn on_cpu(targets: &[Target]) -> u32 {
    targets.iter().enumerate().map(|(i, &t)| u32::from(t == Target::Cpu) << i).sum()
}

#[test]
fn one_fast_cpu_takes_all_of_few_misses() {
    let misses: Vec<_> = (0..5).map(|e| miss(e, 1)).collect();
    let mut out = Vec::new();
    // Five experts on the CPU take 0.73 ms, one copy alone 0.8 ms.
    split(&misses, &rates(), Busy::default(), &mut out);
    assert_eq!(out, [Target::Cpu; 5]);
    let misses: Vec<_> = (0..8).map(|e| miss(e, 1)).collect();
    split(&misses, &rates(), Busy::default(), &mut out);
    assert_eq!(out[0], Target::Link, "the first of like misses");
    assert_eq!(out[1..], [Target::Cpu; 7]);
}

#[test]
fn an_absent_side_gets_nothing() {
    let misses: Vec<_> = (0..4).map(|e| miss(e, 1)).collect();
    let mut out = Vec::new();
    let finish = split(&misses, &Rates { cpu: 0.0, ..rates() }, Busy::default(), &mut out);
    assert_eq!(out, [Target::Link; 4]);
    assert!((finish - (4.0 * 0.0008 + 5e-6 + 44e6 / 2.7e12)).abs() < 1e-9, "{finish}");
    let finish = split(&misses, &Rates { link: 0.0, ..rates() }, Busy::default(), &mut out);
    assert_eq!(out, [Target::Cpu; 4]);
    assert!((finish - (4.0 * 44e6 / 300e9 + 5e-6)).abs() < 1e-9, "{finish}");
    assert_eq!(split(&[], &rates(), Busy { gpu_free_in: 7.0, ..Busy::default() }, &mut out), 7.0);
    assert!(out.is_empty());
}

#[test]
fn what_follows_the_last_arrival_is_down() {
    let misses: Vec<_> = (0..4).map(|e| Miss { down: 14_000_000, ..miss(e, 1) }).collect();
    let mut out = Vec::new();
    let finish = split(&misses, &Rates { cpu: 0.0, ..rates() }, Busy::default(), &mut out);
    assert!((finish - (4.0 * 0.0008 + 5e-6 + 14e6 / 2.7e12)).abs() < 1e-9, "{finish}");
    // A GPU that computes more slowly than the link copies is late with the last one's gate and up too.
    let slow = Rates { cpu: 0.0, gpu: 11e9, ..rates() };
    let finish = split(&misses[..1], &slow, Busy::default(), &mut out);
    let begun = 0.0008 - 14e6 / 55e9;
    assert!((finish - (begun + 2.0 * 5e-6 + 44e6 / 11e9)).abs() < 1e-9, "{finish}");
}

#[test]
fn experts_with_many_rows_go_to_the_link() {
    let misses = [miss(0, 1), miss(1, 64), miss(2, 1)];
    let mut out = Vec::new();
    split(&misses, &rates(), Busy::default(), &mut out);
    assert_eq!(out, [Target::Cpu, Target::Link, Target::Cpu]);
}

#[test]
fn copies_under_way_are_awaited_unless_they_come_too_late() {
    let mut misses = [miss(0, 1), miss(1, 1)];
    let mut out = Vec::new();
    misses[1].arriving_in = Some(0.1e-3);
    split(&misses, &rates(), Busy { link_free_in: 0.1e-3, ..Busy::default() }, &mut out);
    assert_eq!(out, [Target::Cpu, Target::Link]);
    misses[1].arriving_in = Some(0.7e-3);
    split(&misses, &rates(), Busy { link_free_in: 0.7e-3, ..Busy::default() }, &mut out);
    assert_eq!(out, [Target::Cpu, Target::Cpu]);
}

#[test]
fn ties_go_to_the_link() {
    // A pass over residents that outlasts both: nothing but the tie decides.
    let rates = Rates { fixed: 0.0, gpu: f64::INFINITY, ..rates() };
    let mut out = Vec::new();
    let misses = [miss(0, 1), miss(1, 1)];
    let finish = split(&misses, &rates, Busy { gpu_free_in: 1.0, ..Busy::default() }, &mut out);
    assert_eq!((finish, &out[..]), (1.0, &[Target::Link; 2][..]));
}

#[test]
fn rates_follow_what_is_seen() {
    let mut rates = rates();
    for _ in 0..100 {
        rates.observe_copy(EXPERT, 44e6 / 20e9);
        rates.observe_cpu(EXPERT, 1, 44e6 / 200e9, false);
        rates.observe_cpu(EXPERT, 1, 44e6 / 100e9, true);
        rates.observe_cpu(EXPERT, 100, 100.0 * 44e6 / 500e9, false);
        rates.observe_gpu(EXPERT, 44e6 / 2e12);
        rates.observe_fixed(9e-6);
    }
    let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 0.01, "{a} against {b}");
    near(rates.link, 20e9);
    near(rates.cpu, 200e9);
    near(rates.cpu_beside_link, 100e9);
    near(rates.cpu_rows, 500e9);
    near(rates.gpu, 2e12);
    near(rates.fixed, 9e-6);
    // What no clock can have said is not believed.
    let before = rates;
    rates.observe_copy(EXPERT, 0.0);
    rates.observe_cpu(EXPERT, 1, -1.0, false);
    rates.observe_copy(0, 1.0);
    assert_eq!(rates, before);
}

fn any_miss() -> impl Strategy<Value = Miss> {
    let bytes = prop_oneof![Just(EXPERT), 1_000_000u64..90_000_000];
    let rows = prop_oneof![3 => Just(1u32), 1 => 1u32..40];
    let arriving = proptest::option::weighted(0.2, 0.0..2e-3);
    let host = prop_oneof![3 => Just(0.0), 1 => 0.0..3e-3];
    (bytes, rows, arriving, host).prop_map(|(bytes, rows, arriving_in, host_in)| Miss {
        expert: 0,
        bytes,
        down: if rows % 2 == 0 { bytes / 3 } else { 0 },
        rows,
        arriving_in,
        host_in: if arriving_in.is_some() { 0.0 } else { host_in },
    })
}

fn any_busy() -> impl Strategy<Value = Busy> {
    (0.0..2e-3, 0.0..1e-3, 0.0..1e-3).prop_map(|(link_free_in, cpu_free_in, gpu_free_in)| Busy {
        link_free_in,
        cpu_free_in,
        gpu_free_in,
    })
}

fn any_rates() -> impl Strategy<Value = Rates> {
    (5e9..100e9, 5e9..400e9, 60e9..500e9, 1e-6..1e-4)
        .prop_map(|(link, cpu, dram, fixed)| Rates::new(link, cpu, f64::max(dram, link + 1e9), 2e12, fixed))
}

proptest! {
    /// Eight misses of a decoded token, whatever they are: no assignment finishes earlier, and the time returned is the
    /// time of the assignment returned.
    #[test]
    fn no_assignment_is_better(
        misses in proptest::collection::vec(any_miss(), 1..=8), rates in any_rates(), busy in any_busy(),
    ) {
        let mut out = Vec::new();
        let finish = split(&misses, &rates, busy, &mut out);
        let best = best_of_all(&misses, &rates, busy);
        prop_assert!((finish / best - 1.0).abs() < 1e-9, "{finish} against {best}");
        let walked = walk(&misses, &rates, busy, on_cpu(&out));
        prop_assert!((finish / walked - 1.0).abs() < 1e-9, "{finish} against {walked}");
    }

    /// The division by rows, which chunks of a prompt get, is the optimum too where records are equal and the host's
    /// memory serves both sides.
    #[test]
    fn by_rows_is_best_for_equal_records(
        rows in proptest::collection::vec(1u32..200, 1..=10), rates in any_rates(), busy in any_busy(),
    ) {
        let rates = Rates { cpu_beside_link: rates.cpu, ..rates };
        let misses: Vec<_> = rows.iter().map(|&rows| miss(0, rows)).collect();
        let mut out = vec![Target::Link; misses.len()];
        let finish = Plan::new(&misses, &rates, busy).by_rows(&mut out);
        let best = best_of_all(&misses, &rates, busy);
        prop_assert!((finish / best - 1.0).abs() < 1e-9, "{finish} against {best}");
    }

    #[test]
    fn equal_inputs_give_equal_decisions(
        misses in proptest::collection::vec(any_miss(), 0..=12), rates in any_rates(), busy in any_busy(),
    ) {
        let (mut a, mut b) = (Vec::new(), vec![Target::Cpu]);
        let times = (split(&misses, &rates, busy, &mut a), split(&misses, &rates, busy, &mut b));
        prop_assert_eq!(times.0, times.1);
        prop_assert_eq!(a, b);
    }
}
