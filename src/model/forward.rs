//! One chunk of tokens through all layers.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Model;
use super::block::{CachePlace, Stream};
use super::guess::Guess;
use crate::checkpoint::weights::{GatedMlp, Mlp};
use crate::device::{Device, Precision, Routing, Shape, Site, Trip};
use crate::error::{Error, NonFinite, Result};
use crate::experts::residency::LayerCall;
use crate::telemetry::{Row, What};

/// Watched modules whose rows are not simply the chunk's tokens.
const EXPERTS: &str = "mlp.experts";
const HEAD: &str = "lm_head";

/// Tensors of one sequence's forward pass, reused from chunk to chunk.
pub(super) struct Workspace<D: Device> {
    stream: Stream<D>,
    router_logits: D::Tensor,
    pairs: D::Tensor,
    last: D::Tensor,
    pub(super) logits: D::Tensor,
    /// By layer; none in dense ones.
    routing: Vec<Option<D::Routing>>,
    guess: Guess<D>,
    /// Decisions to take instead of the router's in the next chunk, by layer.
    pub(super) replay: Vec<Option<Routing>>,
    /// The session's row in a trace.
    session: Row,
}

impl<D: Device> Workspace<D> {
    pub(super) fn new(model: &Model<D>) -> Result<Self> {
        let (c, device) = (&model.config, &model.device);
        let routing = |layer: usize| match &model.weights.layers[layer].mlp {
            Mlp::Dense(_) => Ok(None),
            Mlp::Experts { .. } => device.routing(model.chunk, &c.moe).map(Some),
        };
        let full = |cols| device.tensor(model.chunk, cols, Precision::Full);
        Ok(Workspace {
            stream: Stream::new(device, c, model.chunk)?,
            router_logits: full(c.moe.num_experts)?,
            pairs: device.tensor(model.chunk * c.moe.top_k, c.hidden_size, Precision::Working)?,
            last: full(c.hidden_size)?,
            logits: full(c.vocab_size)?,
            routing: (0..c.num_layers).map(routing).collect::<Result<_>>()?,
            guess: Guess::new(model)?,
            replay: Vec::new(),
            session: Row::Session(model.experts.trace().session()),
        })
    }
}

impl<D: Device> Workspace<D> {
    /// Forgets what a pass that failed has left behind.
    pub(super) fn clear(&mut self, device: &D) {
        self.replay.clear();
        // If this fails the device has, which the next pass will be told.
        let _ = device.tripped(&mut self.stream.guard);
    }

    /// The routing of the last chunk, by layer; none in dense ones.
    pub(super) fn routing(&self, device: &D) -> Result<Vec<Option<Routing>>> {
        let read = |routing: &Option<D::Routing>| {
            let Some(routing) = routing else { return Ok(None) };
            let mut host = Routing::default();
            device.read_routing(routing, &mut host).map(|()| Some(host))
        };
        self.routing.iter().map(read).collect()
    }
}

impl<D: Device> Model<D> {
    /// Runs `tokens`, which stand from position `start` on, and leaves the logits of the rows `head` in the
    /// workspace. The cache has room; the vocabulary holds the tokens.
    pub(super) fn forward(
        &self,
        work: &mut Workspace<D>,
        cache: &mut D::KvCache,
        start: usize,
        tokens: &[u32],
        head: Range<usize>,
        cancel: &AtomicBool,
    ) -> Result<()> {
        debug_assert!(tokens.len() <= self.chunk);
        let (device, weights) = (&self.device, &self.weights);
        let trace = self.experts.trace();
        let mut at = trace.now();
        device.embed(&weights.embedding, tokens, &mut work.stream.hidden)?;
        device.watch(
            &work.stream.hidden,
            Site { layer: None, module: "model.embed_tokens" },
            &mut work.stream.guard,
        )?;

        let guessed = self.guess_first(work)?;
        for (l, layer) in weights.layers.iter().enumerate() {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            if guessed == Some(l) {
                // The device is at the layers before, which were issued: the host has time to look.
                self.experts.guessed_first(device, l, work.guess.routing())?;
                at = trace.end(work.session, What::Other("guess of the first experts"), at);
            }
            let place = CachePlace { layer: l, cached: l, start };
            work.stream.attend(device, &self.config, layer, cache, place)?;
            at = trace.end(work.session, What::Layer(l, "attention"), at);
            match &layer.mlp {
                Mlp::Dense(mlp) => {
                    work.stream.dense(device, l, mlp)?;
                }
                Mlp::Experts { router, bias, shared } => {
                    self.experts(work, l, router, bias, shared.as_ref())?;
                }
            }
            device.watch(
                &work.stream.hidden,
                Site { layer: Some(l), module: "residual" },
                &mut work.stream.guard,
            )?;
            at = match &layer.mlp {
                Mlp::Dense(_) => trace.end(work.session, What::Layer(l, "mlp"), at),
                Mlp::Experts { .. } => trace.now(),
            };
        }

        work.replay.clear();
        self.head(work, head.clone())?;
        self.experts.check(device)?;
        trace.end(work.session, What::Other("head and checks"), at);
        match device.tripped(&mut work.stream.guard)? {
            Some(trip) => Err(self.locate(trip, start, &head, work)?.into()),
            None => self.check_routing(work, start),
        }
    }

    /// Guesses the first layer with experts from the tokens' embeddings, if layers without experts come before it and a guess is
    /// wanted. Returns that layer.
    fn guess_first(&self, work: &mut Workspace<D>) -> Result<Option<usize>> {
        let first = self.weights.layers.iter().position(|layer| matches!(layer.mlp, Mlp::Experts { .. }));
        let Some(before) = first.and_then(|first| first.checked_sub(1)) else { return Ok(None) };
        let hidden = &work.stream.hidden;
        let Some(router) = self.next_router(before).filter(|_| self.experts.wants_guess(hidden.rows()))
        else {
            return Ok(None);
        };
        work.guess.make(self, &router, hidden, None)?;
        Ok(first)
    }

    /// Adds the routed and the shared experts of x to the residual stream.
    fn experts(
        &self,
        work: &mut Workspace<D>,
        layer: usize,
        router: &D::Matrix,
        bias: &D::Vector,
        shared: Option<&GatedMlp<D::Matrix>>,
    ) -> Result<()> {
        let device = &self.device;
        let site = |module| Site { layer: Some(layer), module };
        let Workspace {
            stream: Stream { hidden, normed, update, guard, .. },
            router_logits,
            pairs,
            routing,
            guess,
            replay,
            session,
            ..
        } = work;
        device.linear(normed, router, router_logits)?;
        device.watch(router_logits, site("mlp.gate"), guard)?;
        let Some(routing) = &mut routing[layer] else { unreachable!("a layer of experts has a routing") };
        device.route(router_logits, bias, &self.config.moe, routing)?;
        if let Some(Some(replayed)) = replay.get(layer) {
            device.write_routing(replayed, routing)?;
        }
        // Shared experts are always there: they are computed while routed ones are on their way.
        let call =
            LayerCall { layer, x: normed, routing: &mut *routing, pairs: &mut *pairs, session: *session };
        let tokens = hidden.rows();
        let next = self.next_router(layer).filter(|_| self.experts.wants_guess(tokens));
        self.experts.compute(device, call, || {
            if let Some(shared) = shared {
                device.gated_mlp(normed, shared, update)?;
                device.watch(update, site("mlp.shared_experts"), guard)?;
            }
            let Some(next) = next else { return Ok(None) };
            guess.make(self, &next, hidden, shared.is_some().then_some(&*update)).map(Some)
        })?;
        self.experts.taint(device, pairs)?;
        device.watch(pairs, site(EXPERTS), guard)?;
        device.combine(pairs, routing, hidden)?;
        match shared {
            Some(_) => device.add(update, hidden),
            None => Ok(()),
        }
    }

    fn head(&self, work: &mut Workspace<D>, rows: Range<usize>) -> Result<()> {
        let device = &self.device;
        device.rows(&work.stream.hidden, rows, &mut work.last)?;
        device.rms_norm(&work.last, &self.weights.norm, self.config.rms_norm_eps, &mut work.stream.normed)?;
        let head = self.weights.head.as_ref().unwrap_or(&self.weights.embedding);
        device.linear(&work.stream.normed, head, &mut work.logits)?;
        device.watch(&work.logits, Site { layer: None, module: HEAD }, &mut work.stream.guard)
    }

    /// Scores that could not fill top-k mean damaged router weights even if every logit was finite.
    fn check_routing(&self, work: &Workspace<D>, start: usize) -> Result<()> {
        match self.device.routing_fault(&work.routing)? {
            None => Ok(()),
            Some((layer, fault)) => Err(NonFinite {
                layer: Some(layer),
                expert: None,
                tensor: "mlp.gate.e_score_correction_bias".to_owned(),
                row: start + fault.token,
                column: 0,
            }
            .into()),
        }
    }

    /// Turns the device's record into an error with names: a row of the pair tensor has an expert, a row of the head's
    /// output is one of the rows it was given.
    fn locate(
        &self,
        trip: Trip,
        start: usize,
        head: &Range<usize>,
        work: &Workspace<D>,
    ) -> Result<NonFinite> {
        let Site { layer, module } = trip.site;
        let (token, expert) = match (module, layer.and_then(|l| work.routing[l].as_ref())) {
            (EXPERTS, Some(routing)) => {
                let mut host = Routing::default();
                self.device.read_routing(routing, &mut host)?;
                let (token, expert) = host.pair(trip.row);
                (token, Some(expert))
            }
            (HEAD, _) => (head.start + trip.row, None),
            _ => (trip.row, None),
        };
        Ok(NonFinite { layer, expert, tensor: module.to_owned(), row: start + token, column: trip.col })
    }
}
