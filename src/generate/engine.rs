//! A loaded model behind one door, whatever its device.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::choice::{Chosen, DeviceChoice};
use super::session::{CancelToken, Session, SessionOptions};
use crate::checkpoint::{Checkpoint, LoadOptions, LoadProgress, LoadStats, SkippedTensors, memory};
use crate::config::ModelConfig;
use crate::device::cpu::Workers;
use crate::device::{Device, SampleSettings};
use crate::error::{Error, Result};
use crate::experts::fault::Faults;
use crate::experts::plan::{Ask, Hardware, Plan};
use crate::experts::policy::CachePolicy;
use crate::experts::residency::{FILE_RATE, Placement, SlotUse};
use crate::experts::stats::ExpertStats;
use crate::model::{Model, Sequence};
use crate::telemetry::Tracer;
use crate::tokenizer::{ChatTemplate, Message, Tokenizer};

/// A sequence of tokens on some device: what a session needs of a [`Sequence`], with the device's type erased.
pub(super) trait Timeline: Send {
    fn len(&self) -> usize;
    fn truncate(&mut self, len: usize);
    fn logits(&mut self, tokens: &[u32], cancel: &AtomicBool) -> Result<Vec<f32>>;
    fn next(
        &mut self,
        tokens: &[u32],
        settings: &SampleSettings,
        word: u64,
        cancel: &AtomicBool,
    ) -> Result<u32>;
}

impl<D: Device> Timeline for Sequence<D> {
    fn len(&self) -> usize {
        Sequence::len(self)
    }

    fn truncate(&mut self, len: usize) {
        Sequence::truncate(self, len);
    }

    fn logits(&mut self, tokens: &[u32], cancel: &AtomicBool) -> Result<Vec<f32>> {
        Sequence::logits(self, tokens, cancel)
    }

    fn next(
        &mut self,
        tokens: &[u32],
        settings: &SampleSettings,
        word: u64,
        cancel: &AtomicBool,
    ) -> Result<u32> {
        Sequence::next(self, tokens, settings, word, cancel)
    }
}

/// A model with its device's type erased.
pub(super) trait AnyModel: Send + Sync {
    fn config(&self) -> &ModelConfig;
    fn timeline(self: Arc<Self>) -> Result<Box<dyn Timeline>>;
    fn placement(&self) -> String;
    fn workers(&self) -> Option<&Arc<Workers>>;
    fn load_stats(&self) -> LoadStats;
    fn expert_stats(&self) -> ExpertStats;
    fn slot_use(&self) -> Option<SlotUse>;
    fn resize_slots(&self, slots: usize) -> Result<usize>;
    fn audit_experts(&self) -> Result<usize>;
    fn all_at_hand(&self) -> bool;
    fn limit_seconds(&self, step: &ExpertStats, seen: &ExpertStats) -> f64;
}

impl<D: Device> AnyModel for Model<D> {
    fn config(&self) -> &ModelConfig {
        Model::config(self)
    }

    fn timeline(self: Arc<Self>) -> Result<Box<dyn Timeline>> {
        Ok(Box::new(self.sequence()?))
    }

    fn placement(&self) -> String {
        Model::placement(self)
    }

    fn workers(&self) -> Option<&Arc<Workers>> {
        self.device().workers()
    }

    fn load_stats(&self) -> LoadStats {
        Model::load_stats(self)
    }

    fn expert_stats(&self) -> ExpertStats {
        self.residency().stats()
    }

    fn slot_use(&self) -> Option<SlotUse> {
        self.residency().slot_use()
    }

    fn resize_slots(&self, slots: usize) -> Result<usize> {
        self.residency().resize(self.device(), slots)
    }

    fn audit_experts(&self) -> Result<usize> {
        self.residency().audit(self.device())
    }

    fn all_at_hand(&self) -> bool {
        self.residency().all_at_hand()
    }

    fn limit_seconds(&self, step: &ExpertStats, seen: &ExpertStats) -> f64 {
        Model::limit_seconds(self, step, seen)
    }
}

/// What an engine and its sessions share.
pub(super) struct Inner {
    model: Arc<dyn AnyModel>,
    fallback: Option<String>,
    tokenizer: Result<Tokenizer, Unusable>,
    template: Result<ChatTemplate, Unusable>,
    stop_ids: Vec<u32>,
    skipped: SkippedTensors,
}

impl Inner {
    pub(super) fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    pub(super) fn timeline(&self) -> Result<Box<dyn Timeline>> {
        self.model.clone().timeline()
    }

    pub(super) fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().map_err(Unusable::error)
    }

    pub(super) fn render_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        let template = self.template.as_ref().map_err(Unusable::error)?;
        template.render(tokenizer, messages, true)
    }

    pub(super) fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    pub(super) fn expert_stats(&self) -> ExpertStats {
        self.model.expert_stats()
    }

    /// Whether every expert is where it is computed.
    pub(super) fn all_at_hand(&self) -> bool {
        self.model.all_at_hand()
    }

    /// The least seconds for a token that needed the experts of `step`.
    pub(super) fn limit_seconds(&self, step: &ExpertStats, seen: &ExpertStats) -> f64 {
        self.model.limit_seconds(step, seen)
    }
}

/// Why there is no tokenizer or template; kept for whoever asks for text.
#[derive(Clone)]
struct Unusable {
    file: PathBuf,
    problem: String,
}

impl Unusable {
    fn new(error: Error, dir: &Path) -> Unusable {
        match error {
            Error::Tokenizer { file, problem } => Unusable { file, problem },
            other => Unusable { file: dir.to_owned(), problem: other.to_string() },
        }
    }

    fn error(&self) -> Error {
        Error::Tokenizer { file: self.file.clone(), problem: self.problem.clone() }
    }
}

/// A loaded model. Cheap to clone, shared between threads.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// Sets up and loads an [`Engine`].
pub struct EngineBuilder {
    path: PathBuf,
    device: DeviceChoice,
    load: LoadOptions,
    placement: Placement,
    vram_budget: Option<u64>,
    context: Option<usize>,
}

impl Engine {
    /// Starts from a checkpoint folder.
    pub fn builder(path: impl AsRef<Path>) -> EngineBuilder {
        EngineBuilder {
            path: path.as_ref().to_owned(),
            device: DeviceChoice::default(),
            load: LoadOptions::default(),
            placement: Placement::default(),
            vram_budget: None,
            context: None,
        }
    }

    /// A new session.
    ///
    /// # Errors
    /// [`Error::Argument`] for a context of 0 or beyond the model's, [`Error::OutOfMemory`].
    pub fn session(&self, options: SessionOptions) -> Result<Session> {
        Session::new(self.inner.clone(), options)
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        self.inner.config()
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the checkpoint has none that can be used; token ids can still be run.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.inner.tokenizer()
    }

    /// What loading cost.
    pub fn load_stats(&self) -> LoadStats {
        self.inner.model.load_stats()
    }

    /// Tensors of the checkpoint that this engine does not use.
    pub fn skipped(&self) -> &SkippedTensors {
        &self.inner.skipped
    }

    /// Where experts were found since the engine was loaded, by all its sessions.
    pub fn expert_stats(&self) -> ExpertStats {
        self.inner.model.expert_stats()
    }

    /// Who has the GPU's slots for experts; `None` for a device without.
    pub fn slot_use(&self) -> Option<SlotUse> {
        self.inner.model.slot_use()
    }

    /// Lets experts have `slots` of the slots that were allocated when the engine was loaded, or as many of these as the
    /// key/value caches leave them, now and when the caches give some back; returns how many they have now. May be
    /// called while sessions generate, which waits for the layer at work. What experts lose here they get back by a later call.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a device without slots; what the device reports.
    pub fn resize_slots(&self, slots: usize) -> Result<usize> {
        self.inner.model.resize_slots(slots)
    }

    /// Waits for all work and looks at everything that the GPU's slots hold; for tests.
    ///
    /// # Errors
    /// [`Error::Expert`] for the first slot that is not as it should be.
    #[doc(hidden)]
    pub fn audit_experts(&self) -> Result<usize> {
        self.inner.model.audit_experts()
    }

    /// Why [`DeviceChoice::Auto`] took the processor in a build that could use a GPU.
    pub fn fallback(&self) -> Option<&str> {
        self.inner.fallback.as_deref()
    }

    /// The threads that compute, where that is the processor; `None` where it is a GPU.
    pub fn workers(&self) -> Option<&Arc<Workers>> {
        self.inner.model.workers()
    }

    /// Where everything is and what computes it, in words.
    pub fn placement(&self) -> String {
        self.inner.model.placement()
    }
}

impl EngineBuilder {
    /// Chooses the device.
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.device = device;
        self
    }

    /// Worker threads, for loading and on the CPU; 0 takes one per available core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.load.threads = threads;
        self
    }

    /// Uses at most so many bytes of GPU memory, for everything; by default what is free. What the trunk, the
    /// key/value cache and the workspace leave becomes slots for experts.
    pub fn vram_budget(mut self, bytes: u64) -> Self {
        self.vram_budget = Some(bytes);
        self
    }

    /// Plans GPU memory for sessions of so many tokens; a shorter context leaves more slots for experts. By default the longest
    /// that leaves three quarters of the memory to the rest.
    pub fn context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Where every byte would go, from the configuration alone and without a GPU, if [`EngineBuilder::vram_budget`] was
    /// given.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Io`], [`Error::DoesNotFit`] with the smallest change that would; [`Error::Argument`]
    /// without a budget.
    pub fn plan(&self) -> Result<Plan> {
        let budget = self.vram_budget.ok_or_else(|| Error::argument("vram-budget", "is not given"))?;
        let config = ModelConfig::from_file(&self.path.join("config.json"))?;
        self.plan_for(&config, budget, Ask { context: self.context, ..Ask::default() })
    }

    fn plan_for(&self, config: &ModelConfig, vram: u64, ask: Ask) -> Result<Plan> {
        let mut hardware = Hardware::new(vram, memory::detect_host().available);
        // Experts can always be read from the checkpoint again.
        hardware.nvme = Some(FILE_RATE);
        Plan::new(config, &hardware, &ask)
    }

    /// Keeps so many experts on the GPU, whatever its memory would hold; the others come when they are needed.
    pub fn expert_slots(mut self, slots: usize) -> Self {
        self.placement.slots = Some(slots);
        self
    }

    /// Keeps at most so many bytes of expert records in host memory; the others stay in the checkpoint's files and are
    /// read when they are needed. By default all are kept if they fit; what computes in host memory then uses the files
    /// themselves, mapped, which must not be changed in place meanwhile. With a budget everything is read into memory.
    pub fn host_budget(mut self, bytes: u64) -> Self {
        self.placement.host_budget = Some(bytes);
        self
    }

    /// Begins before all experts are in host memory; one that is needed earlier is read at once. A damaged expert is then
    /// an error of the session that meets it, no longer one of loading.
    pub fn serve_while_loading(mut self) -> Self {
        self.placement.serve_while_loading = true;
        self
    }

    /// Decides what is kept where not everything fits.
    pub fn cache_policy(mut self, policy: CachePolicy) -> Self {
        self.placement.policy = policy;
        self
    }

    /// Whether the CPU computes a share of the experts that are not on the GPU; it does by default.
    pub fn cpu_share(mut self, share: bool) -> Self {
        self.placement.cpu_share = share;
        self
    }

    /// Bytes that each session's key/value cache allocates at most before it takes slots of experts, for tests of that.
    #[doc(hidden)]
    pub fn kv_limit(mut self, bytes: u64) -> Self {
        self.placement.kv_limit = Some(bytes);
        self
    }

    /// Takes the link to be idle before every layer for as long as so many copies of an expert take, for tests of what is copied
    /// in part.
    #[doc(hidden)]
    pub fn idle_copies(mut self, copies: f64) -> Self {
        self.placement.idle_copies = Some(copies);
        self
    }

    /// Whether experts that are read again or copied to the GPU are compared with the checksum of their first read. Each copy
    /// is then waited for. Debug builds do, others do not.
    pub fn checksums(mut self, compare: bool) -> Self {
        self.placement.checksums = compare;
        self
    }

    /// Records what happens when, and where the tokens go; [`Tracer::save`] writes it.
    pub fn trace(mut self, tracer: Tracer) -> Self {
        self.placement.trace = tracer;
        self
    }

    /// Faults on purpose, for tests.
    #[doc(hidden)]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.placement.faults = faults;
        self
    }

    /// Calls `progress` while loading, from loading threads.
    pub fn on_load(mut self, progress: impl Fn(LoadProgress) + Send + Sync + 'static) -> Self {
        self.load.progress = Some(Arc::new(progress));
        self
    }

    /// Cancels loading.
    pub fn cancel(mut self, token: CancelToken) -> Self {
        self.load.cancel = Some(token.0);
        self
    }

    /// Checks the checkpoint's structure, loads it and checks every value on the way.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Checkpoint`] with all faults, [`Error::Io`], [`Error::OutOfMemory`],
    /// [`Error::Cancelled`].
    pub fn load(self) -> Result<Engine> {
        let checkpoint = Arc::new(Checkpoint::open(&self.path)?);
        // Before the weights are read: a device that is not there, or cannot run the model, should not cost minutes to
        // find out.
        let device = Chosen::new(self.device, self.load.threads)?;
        device.supports(checkpoint.config())?;
        let config = checkpoint.config().clone();
        let dir = checkpoint.dir().to_owned();

        // Without a usable tokenizer the model still runs on token ids; the reason is kept for who asks for text.
        let tokenizer = Tokenizer::from_dir(&dir, config.vocab_size).map_err(|e| Unusable::new(e, &dir));
        let template = match &tokenizer {
            Ok(tokenizer) => ChatTemplate::from_dir(&dir, tokenizer).map_err(|e| Unusable::new(e, &dir)),
            Err(why) => Err(why.clone()),
        };
        let mut stop_ids = config.eos_token_ids.clone();
        if let Ok(tokenizer) = &tokenizer {
            stop_ids.extend(tokenizer.stop_ids());
        }
        stop_ids.sort_unstable();
        stop_ids.dedup();

        let fallback = device.fallback();
        let mut placement = self.placement.clone();
        if let Some(free) = device.memory_free()? {
            let plain = checkpoint.plain_format();
            let ask = Ask { plain, context: self.context, ..Ask::default() };
            let vram = self.vram_budget.map_or(free, |budget| budget.min(free));
            let plan = self.plan_for(&config, vram, ask)?;
            placement.chunk = plan.chunk;
            placement.trunk = (plan.trunk.host_bytes > 0).then_some(plan.trunk);
            placement.slots.get_or_insert(plan.slots.count as usize);
        } else {
            placement.mapped = placement.maps(&checkpoint);
        }
        let model = device.model(&checkpoint, &self.load, &placement)?;
        Ok(Engine {
            inner: Arc::new(Inner {
                model,
                fallback,
                tokenizer,
                template,
                stop_ids,
                skipped: checkpoint.skipped().clone(),
            }),
        })
    }
}
