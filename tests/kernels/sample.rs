use abruzzi::device::cuda::kernels::sample::{self, NO_FAULT, NO_TOKEN};
use abruzzi::device::cuda::{CudaTensor, Gpu};
use abruzzi::device::{Precision, SampleSettings, argmax};
use abruzzi::generate::{Sampler, Sampling};
use rand_core::Rng as _;
use rand_pcg::Pcg64Mcg;

use crate::harness::{Random, random, session, some_of};

const GREEDY: SampleSettings = SampleSettings { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
const PLAIN: SampleSettings = SampleSettings { temperature: 1.0, ..GREEDY };
const KIMI: SampleSettings = SampleSettings { temperature: 0.6, top_k: 40, top_p: 0.95, min_p: 0.0 };

/// Ids of the rows of `logits`, and the fault word.
fn draw(
    gpu: &Gpu,
    logits: &[f32],
    vocab: usize,
    settings: &SampleSettings,
    words: &[u64],
) -> (Vec<u32>, u32) {
    let logits = CudaTensor::upload(gpu, vocab, Precision::Full, logits).unwrap();
    let words = gpu.upload(words, "words").unwrap();
    let mut ids = gpu.upload(&vec![0xdead_beef; words.len()], "ids").unwrap();
    let mut fault = gpu.upload(&[NO_FAULT], "a fault").unwrap();
    sample::sample(gpu, &logits, settings, words.all(), ids.all_mut(), fault.all_mut()).unwrap();
    (ids.download().unwrap(), fault.download().unwrap()[0])
}

fn word(random: &mut Random) -> u64 {
    u64::from(random.bits()) << 32 | u64::from(random.bits())
}

/// The word that makes u = share.
fn word_of(share: f64) -> u64 {
    ((share * (1u64 << 53) as f64) as u64) << 11
}

/// A row's ranking, (weight, id), and how much weight the filters leave at its head: the definitions one after the other.
fn filtered(logits: &[f32], s: &SampleSettings) -> (Vec<(f64, u32)>, f64) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |l: f32| if l == max { 1.0 } else { f64::from(((l - max) / s.temperature).exp()) };
    let mut ranked: Vec<u32> = (0..logits.len() as u32).collect();
    let value = |id: u32| logits[id as usize] + 0.0;
    ranked.sort_by(|&a, &b| value(b).total_cmp(&value(a)).then(a.cmp(&b)));
    let ranked: Vec<(f64, u32)> = ranked.into_iter().map(|id| (weight(value(id)), id)).collect();
    let sum = |kept: usize| ranked[..kept].iter().map(|c| c.0).sum::<f64>();
    let mut kept = ranked.len();
    if s.top_k > 0 {
        kept = kept.min(s.top_k);
    }
    if s.top_p < 1.0 {
        let enough = sum(kept) * f64::from(s.top_p);
        let mut reached = 0.0;
        kept = ranked[..kept]
            .iter()
            .position(|c| {
                reached += c.0;
                reached >= enough
            })
            .map_or(kept, |last| last + 1);
    }
    kept = kept.min(ranked.partition_point(|c| c.0 >= f64::from(s.min_p)).max(1));
    let left = sum(kept);
    (ranked, left)
}

/// Holds an id to its place: u · total lies between the sums before and after it, give or take what two exponentials
/// differ by.
fn assert_drawn(logits: &[f32], settings: &SampleSettings, word: u64, id: u32) {
    assert_placed(&filtered(logits, settings), settings, word, id);
}

fn assert_placed((ranked, total): &(Vec<(f64, u32)>, f64), settings: &SampleSettings, word: u64, id: u32) {
    let target = (word >> 11) as f64 / (1u64 << 53) as f64 * total;
    let rank = ranked.iter().position(|c| c.1 == id);
    let rank = rank.unwrap_or_else(|| panic!("{settings:?}: no token {id}"));
    let before: f64 = ranked[..rank].iter().map(|c| c.0).sum();
    let (after, slack) = (before + ranked[rank].0, 2e-6 * total);
    assert!(
        before <= target + slack && target <= after + slack && ranked[rank].0 > 0.0,
        "{settings:?} of {}: token {id} at {before} to {after}, drawn at {target} of {total}",
        ranked.len()
    );
}

/// The same seed gives the token that the CPU's sampler draws.
#[test]
fn draws_what_the_sampler_draws() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for vocab in [1, 2, 7, 100, 1001, 4096] {
            for _ in 0..2 {
                let settings = SampleSettings {
                    temperature: 0.3 + random.unit().abs() * 1.5,
                    top_k: random.below(3) * random.below(60),
                    top_p: [1.0, 0.3 + random.unit().abs() * 0.69][random.below(2)],
                    min_p: [0.0, random.unit().abs() * 0.2][random.below(2)],
                };
                let rows = 8;
                let logits: Vec<f32> = random.normals(rows * vocab).iter().map(|v| v * 3.0).collect();
                let mut sampling = Sampling::default();
                sampling.temperature = settings.temperature;
                sampling.top_k = settings.top_k;
                sampling.top_p = settings.top_p;
                sampling.min_p = settings.min_p;
                let seeds: Vec<u64> = (0..rows).map(|_| word(&mut random)).collect();
                let words: Vec<u64> =
                    seeds.iter().map(|&seed| Pcg64Mcg::new(u128::from(seed)).next_u64()).collect();
                let want: Vec<u32> = seeds
                    .iter()
                    .zip(logits.chunks_exact(vocab))
                    .map(|(&seed, row)| Sampler::new(&sampling, seed).sample(row))
                    .collect();
                let (ids, fault) = draw(gpu, &logits, vocab, &settings, &words);
                assert_eq!(ids, want, "{settings:?} of {vocab}");
                assert_eq!(fault, NO_FAULT);
            }
        }
    });
}

/// 0.95 of 1 + 0.05 + 100 · 0.0001 is more than the first has, though not of the first two alone.
#[test]
fn the_nucleus_is_a_share_of_all_tokens() {
    let session = session();
    let mut logits = vec![0.0001f32.ln(); 102];
    (logits[17], logits[4]) = (0.0, 0.05f32.ln());
    let nucleus = SampleSettings { top_p: 0.95, ..PLAIN };
    for (settings, second) in [
        (nucleus, 4),
        // Of what top-k kept the first has enough.
        (SampleSettings { top_k: 2, ..nucleus }, 17),
        // What min-p drops counts too.
        (SampleSettings { min_p: 0.01, ..nucleus }, 4),
    ] {
        let words = [word_of(0.9), word_of(0.99)];
        let (ids, _) = draw(&session.gpu, &logits.repeat(2), logits.len(), &settings, &words);
        assert_eq!(ids, [17, second], "{settings:?}");
        assert_eq!(settings.token(&logits, words[1]), second, "{settings:?} on the host");
    }
}

/// A vocabulary of Kimi-K2's size, peaked and flat; every filter alone and together.
#[test]
fn draws_from_a_whole_vocabulary() {
    let (session, mut random) = (session(), random());
    let vocab = 163_840;
    let cases = [
        (3.0, PLAIN),
        (0.01, PLAIN),
        (3.0, KIMI),
        (1.0, SampleSettings { top_k: 5000, ..PLAIN }),
        (1.0, SampleSettings { top_p: 0.9, ..PLAIN }),
        (2.0, SampleSettings { min_p: 0.05, ..PLAIN }),
        (0.1, SampleSettings { top_k: 100_000, top_p: 0.5, min_p: 0.01, temperature: 2.0 }),
    ];
    let mut rows = Vec::new();
    for &(spread, settings) in some_of(&cases, 3) {
        let logits: Vec<f32> = random.normals(vocab).iter().map(|v| v * spread).collect();
        let words = [word(&mut random), 0, u64::MAX];
        rows.push((settings, logits, words));
    }
    let check = |gpu: &Gpu, (settings, logits, words): &(SampleSettings, Vec<f32>, [u64; 3])| {
        let three = logits.repeat(words.len());
        let (ids, fault) = draw(gpu, &three, vocab, settings, words);
        assert_eq!(fault, NO_FAULT);
        let places = filtered(logits, settings);
        for (&word, &id) in words.iter().zip(&ids) {
            assert_placed(&places, settings, word, id);
        }
        assert_eq!(ids[1], argmax(logits));
        ids
    };
    let fast = session.fast(|gpu| rows.iter().map(|row| check(gpu, row)).collect::<Vec<_>>());
    // In any order of warps, with every check, and to the same tokens.
    crate::harness::configure(r#"{"schedule": "random:4"}"#);
    for &case in some_of(&[2, 6], 1) {
        assert_eq!(check(&session.gpu, &rows[case]), fast[case]);
    }
}

#[test]
fn greedy_takes_the_lowest_of_the_largest() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        for vocab in [1, 3, 1000, 4099, 20_000] {
            let rows = 5;
            let mut logits = random.normals(rows * vocab);
            let last = vocab - 1;
            // Two equal maxima; the largest at the end; −0 before 0; infinities; all alike.
            let (low, high) = (random.below(vocab), random.below(vocab));
            (logits[low], logits[high]) = (9.0, 9.0);
            logits[vocab + last] = 9.0;
            for v in &mut logits[2 * vocab..3 * vocab] {
                *v = -v.abs() - 1.0;
            }
            logits[2 * vocab + last] = 0.0;
            logits[2 * vocab + last / 2] = -0.0;
            logits[3 * vocab..4 * vocab].fill(f32::NEG_INFINITY);
            logits[3 * vocab + last] = f32::MIN;
            logits[4 * vocab..].fill(-2.5);
            let want: Vec<u32> = logits.chunks_exact(vocab).map(argmax).collect();
            let (ids, fault) = draw(gpu, &logits, vocab, &GREEDY, &vec![7; rows]);
            assert_eq!((ids, fault), (want, NO_FAULT), "{vocab}");
        }
    });
}

/// Tokens that weigh the same rank by id, down to the last bit of it.
#[test]
fn equal_logits_rank_by_id() {
    let session = session();
    for &vocab in some_of(&[3, 2048, 2049, 70_001], 3) {
        let logits = vec![-1.5f32; vocab];
        // In the middle of a token's share: rounding is elsewhere.
        let at = |token: usize, of: usize| word_of((token as f64 + 0.5) / of as f64);
        let tokens = [0, vocab / 2, vocab - 1];
        let three = logits.repeat(3);
        session.fast(|gpu| {
            let (ids, _) = draw(gpu, &three, vocab, &PLAIN, &tokens.map(|t| at(t, vocab)));
            assert_eq!(ids, tokens.map(|t| t as u32), "{vocab}");
            let few = vocab / 3;
            let some = [0, few / 2, few - 1];
            let top_k = SampleSettings { top_k: few, ..PLAIN };
            let (ids, _) = draw(gpu, &three, vocab, &top_k, &some.map(|t| at(t, few)));
            assert_eq!(ids, some.map(|t| t as u32), "top {few} of {vocab}");
            // Half the weight needs half the tokens, rounded up.
            let half = vocab.div_ceil(2);
            let some = [0, half / 2, half - 1];
            let top_p = SampleSettings { top_p: 0.5, ..PLAIN };
            let (ids, _) = draw(gpu, &three, vocab, &top_p, &some.map(|t| at(t, half)));
            assert_eq!(ids, some.map(|t| t as u32), "half of {vocab}");
        });
    }
}

#[test]
fn the_strictest_filters_leave_the_best() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let vocab = 5000;
    let logits = random.normals(vocab);
    let best = argmax(&logits);
    for settings in [
        SampleSettings { top_k: 1, ..PLAIN },
        SampleSettings { top_p: 1e-9, ..PLAIN },
        SampleSettings { min_p: 1.0, ..PLAIN },
        SampleSettings { temperature: 1e-30, ..PLAIN },
        SampleSettings { temperature: 1e-6, top_k: 3, top_p: 0.999, min_p: 0.5 },
    ] {
        for word in [0, u64::MAX] {
            let (ids, fault) = draw(gpu, &logits, vocab, &settings, &[word]);
            assert_eq!((ids[0], fault), (best, NO_FAULT), "{settings:?}");
        }
    }
}

/// What can't be ranked gives no token and is named; what can goes on beside it.
#[test]
fn rows_that_cannot_be_drawn_from_are_named() {
    let (session, mut random) = (session(), random());
    session.every_schedule(|gpu| {
        let vocab = 3001;
        for settings in [GREEDY, PLAIN, KIMI] {
            let mut logits = random.normals(6 * vocab);
            logits[2 * vocab + random.below(vocab)] = f32::NAN;
            logits[3 * vocab..4 * vocab].fill(f32::NEG_INFINITY);
            logits[4 * vocab..5 * vocab].fill(-f32::NAN);
            let (ids, fault) = draw(gpu, &logits, vocab, &settings, &[word_of(0.5); 6]);
            assert_eq!(ids[2..5], [NO_TOKEN; 3], "{settings:?}");
            assert_eq!(fault, 2);
            for row in [0, 1, 5] {
                let logits = &logits[row * vocab..][..vocab];
                if settings == GREEDY {
                    assert_eq!(ids[row], argmax(logits));
                } else {
                    assert_drawn(logits, &settings, word_of(0.5), ids[row]);
                }
            }
        }
    });
}

#[test]
fn infinities_outweigh_everything() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let vocab = 2600;
    let mut logits = random.normals(vocab);
    logits[7..1000].fill(f32::NEG_INFINITY);
    (logits[1200], logits[1900]) = (f32::INFINITY, f32::INFINITY);
    for settings in [PLAIN, KIMI, SampleSettings { min_p: 0.5, ..PLAIN }] {
        let (ids, fault) = draw(gpu, &logits.repeat(2), vocab, &settings, &[word_of(0.1), word_of(0.9)]);
        // Top-p 0.95 of two equals still needs both.
        assert_eq!((ids, fault), (vec![1200, 1900], NO_FAULT), "{settings:?}");
    }
    let (ids, _) = draw(gpu, &logits, vocab, &GREEDY, &[0]);
    assert_eq!(ids, [1200]);
    // Tokens at −∞ are never drawn.
    let mut logits = vec![f32::NEG_INFINITY; vocab];
    (logits[30], logits[2000]) = (-3.0e38, -3.0e38);
    let (ids, _) = draw(gpu, &logits.repeat(2), vocab, &PLAIN, &[0, u64::MAX]);
    assert_eq!(ids, [30, 2000]);
}

#[test]
fn a_row_is_read_once_from_memory() {
    let (session, mut random) = (session(), random());
    let gpu = &session.gpu;
    let vocab = 163_840;
    let logits = CudaTensor::upload(gpu, vocab, Precision::Full, &random.normals(vocab)).unwrap();
    let words = gpu.upload(&[word(&mut random)], "words").unwrap();
    let mut ids = gpu.upload(&[0u32], "ids").unwrap();
    let mut fault = gpu.upload(&[NO_FAULT], "a fault").unwrap();
    let Some(counts) = session.counted(|gpu| {
        sample::sample(gpu, &logits, &KIMI, words.all(), ids.all_mut(), fault.all_mut()).unwrap();
    }) else {
        return;
    };
    let counts = &counts["sample"]["counters"];
    eprintln!("{counts}");
    let moved = counts["dram_read_bytes"].as_u64().unwrap() + counts["dram_write_bytes"].as_u64().unwrap();
    let least = vocab as u64 * 4;
    assert!(moved * 100 <= least * 105, "{moved} bytes, {least} at least");
}
