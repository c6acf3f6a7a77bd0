//! Healing a smaller model by layer-wise distillation, in closed form.
//!
//! Teacher and student walk side by side. Layer by layer, on the student's own stream (so that what earlier layers do wrong is made
//! good by later ones), the student's routed sum is fitted to what would bring its stream to the teacher's:
//!
//! 1. **Router bias.** What an expert would contribute to a token is b = 2c⟨f, r⟩ − c²‖f‖², the decrease of ‖r − y‖² where r
//!    is what the routed sum should be, f the expert's output and c a typical weight. Over all candidates b ≈ a·(s + β) is fitted by
//!    least squares (s the router's score): β is the bias that makes the router rank by contribution. The new bias lies between the old
//!    one and β, as far along as held-aside tokens say.
//! 2. **Output scales.** With the routing that results, ridge regression of r on the weighted outputs gives each expert a scale,
//!    pulled towards 1.
//!
//! A quarter of the windows is held aside: of all candidates, "change nothing" among them, the one with the least error there is taken.

use serde::Serialize;

use super::heal::{Healing, LayerHealing};
use super::ridge::{Normal, dot};
use super::select::Selection;
use crate::config::MoeConfig;
use crate::device::{Routing, sigmoid};
use crate::error::{Error, Result};
use crate::model::walk::{Walk, WalkLayer, Windows, add, combine, route};

/// How far the bias is moved towards the fitted one, to be tried.
const MOVES: [f32; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];
/// How much it costs to leave a scale of 1, to be tried.
const PENALTIES: [f64; 5] = [1e-3, 1e-2, 1e-1, 1.0, 10.0];
/// Scales beyond these say that something else is wrong.
const SCALES: std::ops::RangeInclusive<f64> = 0.1..=4.0;
/// Of so many windows one is held aside.
const ASIDE: usize = 4;
/// Experts whose contribution to a token is measured, in multiples of those it chooses.
const CANDIDATES: usize = 2;

/// What a student's layers need to be like the teacher's.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Distilled {
    /// By layer of the student; none in dense layers.
    pub layers: Vec<Option<LayerFit>>,
}

/// What a layer needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LayerFit {
    /// By expert: what its output is to be multiplied with.
    pub scale: Vec<f32>,
    /// By expert: the router's bias.
    pub bias: Vec<f32>,
    /// Held-aside tokens: ‖stream − teacher's stream‖² behind the layer as a share of ‖teacher's stream‖², before.
    pub error_before: f64,
    /// The same with these scales and this bias.
    pub error_after: f64,
}

impl Distilled {
    /// The fits as what a recipe mends that makes the student by this selection.
    ///
    /// # Errors
    /// [`Error::Argument`] if it is another student's.
    pub fn healing(&self, selection: &Selection) -> Result<Healing> {
        let layers = self.layers.iter().map(|fit| {
            let LayerFit { scale, bias, .. } = fit.as_ref()?;
            Some(LayerHealing { output_scale: scale.clone(), router_bias: bias.clone() })
        });
        Healing::new(selection, layers.collect())
    }
}

/// Fits a student, made of the teacher's layers `kept`, to the teacher on calibration text. `progress` is told of each layer.
///
/// # Errors
/// [`Error::Argument`] if `kept` is not as many layers as the student has, or there are not enough windows to hold some aside;
/// [`Error::NonFinite`], what reading reports, [`Error::Cancelled`].
pub fn distill(
    teacher: &Walk,
    student: &Walk,
    kept: &[usize],
    windows: &[Vec<u32>],
    progress: &mut dyn FnMut(usize),
) -> Result<Distilled> {
    let (layers, of_teacher) = (student.config().num_layers, teacher.config().num_layers);
    if kept.len() != layers || kept.iter().any(|&layer| layer >= of_teacher) {
        return Err(Error::argument("kept", format!("does not name {layers} of {of_teacher} layers")));
    }
    if windows.len() < ASIDE {
        let problem = format!("makes {} windows, expected at least {ASIDE}", windows.len());
        return Err(Error::argument("text", problem));
    }
    let (mut wanted, mut stream) = (teacher.embed(windows)?, student.embed(windows)?);
    let mut fitted = Vec::with_capacity(layers);
    let mut done = 0;
    for at in 0..layers {
        // A layer answers for those that were dropped behind it.
        let until = kept.get(at + 1).copied().unwrap_or(of_teacher);
        for layer in done..until {
            teacher.step(layer, &mut wanted, |_| Ok(()))?;
        }
        done = until;
        let layer = student.layer(at)?;
        let x = student.attend(&layer, &mut stream)?;
        student.dense(&layer, &x, &mut stream)?;
        let fit = match layer.router_bias() {
            Some(bias) => Some(
                Fit { walk: student, layer: &layer, bias, x: &x, wanted: wanted.hidden() }
                    .run(&mut stream)?,
            ),
            None => None,
        };
        fitted.push(fit);
        progress(at);
    }
    Ok(Distilled { layers: fitted })
}

/// One layer's fit.
struct Fit<'a> {
    walk: &'a Walk,
    layer: &'a WalkLayer,
    bias: &'a [f32],
    /// What the experts are given.
    x: &'a [f32],
    /// The teacher's stream behind the layer.
    wanted: &'a [f32],
}

/// A chunk of tokens with all candidates' outputs.
struct Chunk<'a> {
    first: usize,
    logits: &'a [f32],
    /// Candidates of each token, best first.
    candidates: &'a Routing,
    /// [tokens, candidates, hidden]
    outputs: &'a [f32],
    /// What the routed sum should be, [tokens, hidden].
    residual: &'a [f32],
}

impl Fit<'_> {
    fn run(&self, stream: &mut Windows) -> Result<LayerFit> {
        let moe = self.walk.config().moe;
        let aside = aside(stream);
        let mut slopes = Slopes::new(moe.num_experts);
        self.each_chunk(stream, |chunk| {
            slopes.observe(&chunk, &aside, &moe, self.walk.config().hidden_size);
            Ok(())
        })?;
        let fitted = slopes.bias(self.bias);
        let biases: Vec<Vec<f32>> = MOVES
            .iter()
            .map(|&far| self.bias.iter().zip(&fitted).map(|(old, new)| old + far * (new - old)).collect())
            .collect();
        let mut sums: Vec<Split> = biases.iter().map(|_| Split::new(moe.num_experts)).collect();
        self.each_chunk(stream, |chunk| {
            for (bias, sums) in biases.iter().zip(&mut sums) {
                self.observe(&chunk, bias, &aside, sums);
            }
            Ok(())
        })?;
        let (bias, scale, before, after) = best(&biases, &sums);
        let scale: Vec<f32> = scale.iter().map(|&c| c as f32).collect();
        self.apply(stream, &bias, &scale)?;
        let size = self.size_aside(&aside);
        Ok(LayerFit { scale, bias, error_before: before / size, error_after: after / size })
    }

    /// Shows `look` all tokens, chunk by chunk.
    fn each_chunk(&self, stream: &Windows, mut look: impl FnMut(Chunk<'_>) -> Result<()>) -> Result<()> {
        let (walk, width) = (self.walk, self.walk.config().hidden_size);
        let moe = walk.config().moe;
        let within = moe.num_experts / moe.n_group * moe.topk_group;
        let wide = MoeConfig { top_k: (CANDIDATES * moe.top_k).min(within), ..moe };
        let step = walk.chunk() * width;
        let chunks = self.x.chunks(step).zip(stream.hidden().chunks(step)).zip(self.wanted.chunks(step));
        for (i, ((x, hidden), wanted)) in chunks.enumerate() {
            let first = i * walk.chunk();
            let logits = walk.gate(self.layer, x)?;
            let candidates = route(&logits, self.bias, &wide);
            let outputs = walk.experts(self.layer, x, &candidates, first)?;
            let mut residual: Vec<f32> = wanted.iter().zip(hidden).map(|(w, h)| w - h).collect();
            let shared = walk.shared(self.layer, x)?;
            residual.iter_mut().zip(&shared).for_each(|(r, s)| *r -= s);
            let (logits, outputs, residual) = (&logits, &outputs, &residual);
            look(Chunk { first, logits, candidates: &candidates, outputs, residual })?;
        }
        Ok(())
    }

    /// Adds what each token's choice under `bias` comes to.
    fn observe(&self, chunk: &Chunk<'_>, bias: &[f32], aside: &[bool], sums: &mut Split) {
        let (moe, width) = (self.walk.config().moe, self.walk.config().hidden_size);
        let count = chunk.candidates.top_k();
        let mut weighted = vec![0.0; moe.top_k * width];
        for (t, residual) in chunk.residual.chunks_exact(width).enumerate() {
            let ids = &chunk.candidates.ids()[t * count..][..count];
            let logits = &chunk.logits[t * moe.num_experts..][..moe.num_experts];
            let mut ranked: Vec<(f32, f32, usize)> = ids
                .iter()
                .enumerate()
                .map(|(place, &id)| {
                    let score = sigmoid(logits[id as usize]);
                    (score + bias[id as usize], score, place)
                })
                .collect();
            ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(ids[a.2].cmp(&ids[b.2])));
            ranked.truncate(moe.top_k);
            let sum: f32 = ranked.iter().map(|r| r.1).sum();
            let norm = if moe.norm_topk_prob { sum + 1e-20 } else { 1.0 };
            for (rank, &(_, score, place)) in ranked.iter().enumerate() {
                let weight = score / norm * moe.routed_scaling_factor;
                let output = &chunk.outputs[(t * count + place) * width..][..width];
                let row = &mut weighted[rank * width..][..width];
                row.iter_mut().zip(output).for_each(|(w, v)| *w = weight * v);
            }
            let rows = ranked.iter().zip(weighted.chunks_exact(width));
            let features: Vec<(usize, &[f32])> = rows.map(|(r, row)| (ids[r.2] as usize, row)).collect();
            let sums = if aside[chunk.first + t] { &mut sums.aside } else { &mut sums.fitted };
            sums.observe(&features, residual);
        }
    }

    /// Runs the layer as it will be.
    fn apply(&self, stream: &mut Windows, bias: &[f32], scale: &[f32]) -> Result<()> {
        let (walk, width) = (self.walk, self.walk.config().hidden_size);
        let step = walk.chunk() * width;
        let chunks = self.x.chunks(step).zip(stream.hidden_mut().chunks_mut(step));
        for (i, (x, hidden)) in chunks.enumerate() {
            let routing = route(&walk.gate(self.layer, x)?, bias, &walk.config().moe);
            let outputs = walk.experts(self.layer, x, &routing, i * walk.chunk())?;
            let scaled = routing.weights().iter().zip(routing.ids()).map(|(w, &id)| w * scale[id as usize]);
            let scaled: Vec<f32> = scaled.collect();
            combine(&outputs, &scaled, width, hidden);
            add(&walk.shared(self.layer, x)?, hidden);
        }
        Ok(())
    }

    /// Σ ‖teacher's stream‖² over held-aside tokens.
    fn size_aside(&self, aside: &[bool]) -> f64 {
        let rows = self.wanted.chunks_exact(self.walk.config().hidden_size).zip(aside);
        let size: f64 = rows.filter(|(_, aside)| **aside).map(|(row, _)| dot(row, row)).sum();
        size.max(f64::MIN_POSITIVE)
    }
}

/// By token: whether its window is held aside.
fn aside(windows: &Windows) -> Vec<bool> {
    let of_window = windows.ranges().iter().enumerate();
    of_window.flat_map(|(i, range)| range.clone().map(move |_| i % ASIDE == ASIDE - 1)).collect()
}

/// Sums over the tokens that are fitted and over those that judge.
struct Split {
    fitted: Normal,
    aside: Normal,
}

impl Split {
    fn new(experts: usize) -> Split {
        Split { fitted: Normal::new(experts), aside: Normal::new(experts) }
    }
}

/// The bias and scales of least error on held-aside tokens, the error with nothing changed, and theirs.
fn best(biases: &[Vec<f32>], sums: &[Split]) -> (Vec<f32>, Vec<f64>, f64, f64) {
    let ones = vec![1.0; biases[0].len()];
    let before = sums[0].aside.error(&ones);
    let mut best = (biases[0].clone(), ones.clone(), before, before);
    for (bias, sums) in biases.iter().zip(sums) {
        let fitted = PENALTIES.iter().filter_map(|&penalty| sums.fitted.ridge_about_one(penalty));
        let bounded = fitted.map(|c| c.iter().map(|c| c.clamp(*SCALES.start(), *SCALES.end())).collect());
        for scale in bounded.chain([ones.clone()]) {
            let error = sums.aside.error(&scale);
            if error < best.3 {
                best = (bias.clone(), scale, before, error);
            }
        }
    }
    best
}

/// Sums for the least-squares fit of contributions on scores.
struct Slopes {
    /// By expert: observations, Σ s, Σ b, Σ s², Σ s·b.
    experts: Vec<[f64; 5]>,
}

impl Slopes {
    fn new(experts: usize) -> Slopes {
        Slopes { experts: vec![[0.0; 5]; experts] }
    }

    fn observe(&mut self, chunk: &Chunk<'_>, aside: &[bool], moe: &MoeConfig, width: usize) {
        let count = chunk.candidates.top_k();
        let typical = if moe.norm_topk_prob {
            moe.routed_scaling_factor / moe.top_k as f32
        } else {
            moe.routed_scaling_factor
        };
        let c = f64::from(typical);
        for (t, residual) in chunk.residual.chunks_exact(width).enumerate() {
            if aside[chunk.first + t] {
                continue;
            }
            for (place, &id) in chunk.candidates.ids()[t * count..][..count].iter().enumerate() {
                let output = &chunk.outputs[(t * count + place) * width..][..width];
                let b = 2.0 * c * dot(output, residual) - c * c * dot(output, output);
                let s = f64::from(sigmoid(chunk.logits[t * moe.num_experts + id as usize]));
                let sums = &mut self.experts[id as usize];
                for (sum, value) in sums.iter_mut().zip([1.0, s, b, s * s, s * b]) {
                    *sum += value;
                }
            }
        }
    }

    /// β of b ≈ a·(s + β), a common to all experts and β each one's own. Experts nobody considered keep their bias, and all do if
    /// contributions do not grow with scores.
    fn bias(&self, old: &[f32]) -> Vec<f32> {
        let (mut with_b, mut with_s) = (0.0, 0.0);
        for [n, s, b, ss, sb] in self.experts.iter().filter(|sums| sums[0] > 0.0) {
            with_b += sb - s * b / n;
            with_s += ss - s * s / n;
        }
        let a = with_b / with_s;
        if !(a > 0.0 && a.is_finite()) {
            return old.to_vec();
        }
        let seen = || self.experts.iter().zip(old).filter(|(sums, _)| sums[0] > 0.0);
        let fit = |&[n, s, b, ..]: &[f64; 5]| (b / n) / a - s / n;
        // Only differences between biases count: the level stays that of the old ones, for the sake of experts not seen.
        let level =
            seen().map(|(sums, &old)| f64::from(old) - fit(sums)).sum::<f64>() / seen().count() as f64;
        let fitted = self.experts.iter().zip(old).map(|(sums, &old)| match sums[0] > 0.0 {
            true => (fit(sums) + level) as f32,
            false => old,
        });
        fitted.collect()
    }
}
