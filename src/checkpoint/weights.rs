//! The shape of a model's weights, stated once.
//!
//! [`Weights`] is the tree of everything a model has except its routed experts. It is generic over what stands at
//! the leaves: a description (the manifest, parameter counts), host memory (after loading), device memory (while
//! running). [`Weights::describe`] builds the description from the configuration; every other tree is mapped from it,
//! so a tensor is named and sized in one place only.

use std::convert::Infallible;

use crate::config::{ModelConfig, Quantization};

/// How a matrix is stored, as far as the configuration decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// `X.weight` as BF16, F16 or F32, whichever the file holds.
    Plain,
    /// `X.weight` as F8_E4M3 and `X.weight_scale_inv` as F32.
    Fp8Block,
    /// `X.weight_packed`, `X.weight_scale` and `X.weight_shape`.
    Int4Group32,
}

/// Description of a matrix [rows, cols]: y = W·x maps cols to rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatrixSpec {
    /// Checkpoint name of the module, prefix included, without `.weight`.
    pub module: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// How it is stored.
    pub storage: Storage,
}

/// Description of a vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VectorSpec {
    /// Full checkpoint name of the tensor.
    pub name: String,
    /// Elements.
    pub len: usize,
}

/// Everything but the routed experts. `M` stands for matrices, `V` for vectors.
#[derive(Debug, Clone)]
pub struct Weights<M, V> {
    /// [vocab, hidden]
    pub embedding: M,
    /// In order.
    pub layers: Vec<Layer<M, V>>,
    /// Shape \[hidden\].
    pub norm: V,
    /// [vocab, hidden]; `None` where it is the embedding.
    pub head: Option<M>,
}

/// A part of the trunk that is placed as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrunkPart {
    /// The embedding table, which is the head as well where that is tied.
    Embedding,
    /// A layer but its routed experts.
    Layer(usize),
    /// The head.
    Head,
}

/// One transformer layer.
#[derive(Debug, Clone)]
pub struct Layer<M, V> {
    /// Shape \[hidden\].
    pub input_norm: V,
    /// Attention.
    pub attention: Attention<M, V>,
    /// Shape \[hidden\].
    pub post_attention_norm: V,
    /// Dense MLP or experts.
    pub mlp: Mlp<M, V>,
}

/// Multi-head latent attention.
#[derive(Debug, Clone)]
pub struct Attention<M, V> {
    /// How queries are made.
    pub query: Query<M, V>,
    /// [kv_lora + rope, hidden]
    pub kv_a: M,
    /// Shape \[kv_lora\].
    pub kv_a_norm: V,
    /// [heads · (nope + v), kv_lora]; per head the key rows, then the value rows.
    pub kv_b: M,
    /// [hidden, heads · v]
    pub output: M,
}

/// The query projection.
#[derive(Debug, Clone)]
pub enum Query<M, V> {
    /// One matrix [heads · (nope + rope), hidden].
    Direct(M),
    /// Down, norm, up.
    LowRank {
        /// [q_lora, hidden]
        a: M,
        /// Shape \[q_lora\].
        norm: V,
        /// [heads · (nope + rope), q_lora]
        b: M,
    },
}

/// A gated MLP: down · (silu(gate · x) ⊙ (up · x)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatedMlp<M> {
    /// [intermediate, hidden]
    pub gate: M,
    /// [intermediate, hidden]
    pub up: M,
    /// [hidden, intermediate]
    pub down: M,
}

/// What follows attention in a layer.
#[derive(Debug, Clone)]
pub enum Mlp<M, V> {
    /// One gated MLP.
    Dense(GatedMlp<M>),
    /// Router and shared experts; the routed experts live in their own store.
    Experts {
        /// [experts, hidden]
        router: M,
        /// \[experts\], added to the scores for choosing only.
        bias: V,
        /// All shared experts as one MLP; `None` where the model has none.
        shared: Option<GatedMlp<M>>,
    },
}

impl<M> GatedMlp<M> {
    /// The three matrices in the order of an expert record: gate, up, down.
    pub fn each(&self) -> [&M; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// Maps every matrix, in record order.
    pub fn try_map<'a, N, E>(&'a self, mut f: impl FnMut(&'a M) -> Result<N, E>) -> Result<GatedMlp<N>, E> {
        Ok(GatedMlp { gate: f(&self.gate)?, up: f(&self.up)?, down: f(&self.down)? })
    }

    /// [`GatedMlp::try_map`] with a function that cannot fail.
    pub fn map<'a, N>(&'a self, mut f: impl FnMut(&'a M) -> N) -> GatedMlp<N> {
        let Ok(mapped) = self.try_map::<_, Infallible>(|m| Ok(f(m)));
        mapped
    }
}

impl<M, V> Weights<M, V> {
    /// Maps every leaf, in a fixed order (embedding, layers, norm, head); stops at the first error.
    pub fn try_map<'a, N, W, E>(
        &'a self,
        matrix: &mut impl FnMut(&'a M) -> Result<N, E>,
        vector: &mut impl FnMut(&'a V) -> Result<W, E>,
    ) -> Result<Weights<N, W>, E> {
        self.try_map_parts(&mut |_, m| matrix(m), vector)
    }

    /// [`Weights::try_map`] with a function that is told which part of the trunk a matrix belongs to.
    pub fn try_map_parts<'a, N, W, E>(
        &'a self,
        matrix: &mut impl FnMut(TrunkPart, &'a M) -> Result<N, E>,
        vector: &mut impl FnMut(&'a V) -> Result<W, E>,
    ) -> Result<Weights<N, W>, E> {
        let embedding = matrix(TrunkPart::Embedding, &self.embedding)?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for (at, layer) in self.layers.iter().enumerate() {
            layers.push(layer.try_map(&mut |m| matrix(TrunkPart::Layer(at), m), vector)?);
        }
        let norm = vector(&self.norm)?;
        let head = self.head.as_ref().map(|m| matrix(TrunkPart::Head, m)).transpose()?;
        Ok(Weights { embedding, layers, norm, head })
    }
}

impl<M, V> Weights<M, V> {
    /// [`Weights::try_map`] with functions that cannot fail.
    pub fn map<'a, N, W>(
        &'a self,
        matrix: &mut impl FnMut(&'a M) -> N,
        vector: &mut impl FnMut(&'a V) -> W,
    ) -> Weights<N, W> {
        let Ok(mapped) = self.try_map::<_, _, Infallible>(&mut |m| Ok(matrix(m)), &mut |v| Ok(vector(v)));
        mapped
    }

    /// Calls a function for every leaf, in the order of [`Weights::try_map`].
    pub fn visit<'a>(&'a self, matrix: &mut impl FnMut(&'a M), vector: &mut impl FnMut(&'a V)) {
        self.map(matrix, vector);
    }
}

impl<M, V> Layer<M, V> {
    /// Maps every leaf as [`Weights::map`] does.
    pub fn map<'a, N, W>(
        &'a self,
        matrix: &mut impl FnMut(&'a M) -> N,
        vector: &mut impl FnMut(&'a V) -> W,
    ) -> Layer<N, W> {
        let Ok(mapped) = self.try_map::<_, _, Infallible>(&mut |m| Ok(matrix(m)), &mut |v| Ok(vector(v)));
        mapped
    }

    /// Its matrices, in the order of [`Weights::try_map`].
    pub(crate) fn matrices(&self) -> Vec<&M> {
        let mut found = Vec::new();
        self.visit(&mut |m| found.push(m), &mut |_| {});
        found
    }

    /// Its vectors, in the order of [`Weights::try_map`].
    pub(crate) fn vectors(&self) -> Vec<&V> {
        let mut found = Vec::new();
        self.visit(&mut |_| {}, &mut |v| found.push(v));
        found
    }

    fn visit<'a>(&'a self, matrix: &mut impl FnMut(&'a M), vector: &mut impl FnMut(&'a V)) {
        let mut matrix = |m| {
            matrix(m);
            Ok::<_, Infallible>(())
        };
        let mut vector = |v| {
            vector(v);
            Ok(())
        };
        let Ok(_) = self.try_map(&mut matrix, &mut vector);
    }

    fn try_map<'a, N, W, E>(
        &'a self,
        matrix: &mut impl FnMut(&'a M) -> Result<N, E>,
        vector: &mut impl FnMut(&'a V) -> Result<W, E>,
    ) -> Result<Layer<N, W>, E> {
        let attention = &self.attention;
        Ok(Layer {
            input_norm: vector(&self.input_norm)?,
            attention: Attention {
                query: match &attention.query {
                    Query::Direct(q) => Query::Direct(matrix(q)?),
                    Query::LowRank { a, norm, b } => {
                        Query::LowRank { a: matrix(a)?, norm: vector(norm)?, b: matrix(b)? }
                    }
                },
                kv_a: matrix(&attention.kv_a)?,
                kv_a_norm: vector(&attention.kv_a_norm)?,
                kv_b: matrix(&attention.kv_b)?,
                output: matrix(&attention.output)?,
            },
            post_attention_norm: vector(&self.post_attention_norm)?,
            mlp: match &self.mlp {
                Mlp::Dense(mlp) => Mlp::Dense(mlp.try_map(&mut *matrix)?),
                Mlp::Experts { router, bias, shared } => Mlp::Experts {
                    router: matrix(router)?,
                    bias: vector(bias)?,
                    shared: shared.as_ref().map(|s| s.try_map(&mut *matrix)).transpose()?,
                },
            },
        })
    }
}

impl Weights<MatrixSpec, VectorSpec> {
    /// The weights a configuration implies, routed experts apart (see [`expert_spec`]).
    pub fn describe(config: &ModelConfig) -> Self {
        let names = Names { config };
        let head = (!config.tie_word_embeddings)
            .then(|| names.plain("lm_head", config.vocab_size, config.hidden_size));
        Weights {
            embedding: names.plain("model.embed_tokens", config.vocab_size, config.hidden_size),
            layers: (0..config.num_layers).map(|l| names.layer(l)).collect(),
            norm: names.vector("model.norm.weight", config.hidden_size),
            head,
        }
    }
}

/// The weights of one routed expert.
pub fn expert_spec(config: &ModelConfig, layer: usize, expert: usize) -> GatedMlp<MatrixSpec> {
    let names = Names { config };
    names.gated(&format!("model.layers.{layer}.mlp.experts.{expert}"), config.moe.intermediate_size)
}

/// Builds specs: applies the prefix and decides each matrix's storage.
struct Names<'a> {
    config: &'a ModelConfig,
}

impl Names<'_> {
    fn vector(&self, name: &str, len: usize) -> VectorSpec {
        VectorSpec { name: format!("{}{name}", self.config.tensor_prefix), len }
    }

    /// A matrix that no quantisation scheme touches: embedding, head, router.
    fn plain(&self, module: &str, rows: usize, cols: usize) -> MatrixSpec {
        let module = format!("{}{module}", self.config.tensor_prefix);
        MatrixSpec { module, rows, cols, storage: Storage::Plain }
    }

    fn linear(&self, module: &str, rows: usize, cols: usize) -> MatrixSpec {
        let storage = match &self.config.quantization {
            Quantization::None => Storage::Plain,
            Quantization::Fp8Block { skip } if skip.iter().any(|s| s == module) => Storage::Plain,
            Quantization::Fp8Block { .. } => Storage::Fp8Block,
            Quantization::Int4Group32 { ignore } if ignore.iter().any(|rule| rule.matches(module)) => {
                Storage::Plain
            }
            Quantization::Int4Group32 { .. } => Storage::Int4Group32,
        };
        MatrixSpec { storage, ..self.plain(module, rows, cols) }
    }

    fn gated(&self, module: &str, intermediate: usize) -> GatedMlp<MatrixSpec> {
        let hidden = self.config.hidden_size;
        GatedMlp {
            gate: self.linear(&format!("{module}.gate_proj"), intermediate, hidden),
            up: self.linear(&format!("{module}.up_proj"), intermediate, hidden),
            down: self.linear(&format!("{module}.down_proj"), hidden, intermediate),
        }
    }

    fn layer(&self, l: usize) -> Layer<MatrixSpec, VectorSpec> {
        let (config, at) = (self.config, format!("model.layers.{l}"));
        let hidden = config.hidden_size;
        Layer {
            input_norm: self.vector(&format!("{at}.input_layernorm.weight"), hidden),
            attention: self.attention(&format!("{at}.self_attn")),
            post_attention_norm: self.vector(&format!("{at}.post_attention_layernorm.weight"), hidden),
            mlp: if l < config.first_k_dense {
                Mlp::Dense(self.gated(&format!("{at}.mlp"), config.dense_intermediate_size))
            } else {
                let moe = &config.moe;
                Mlp::Experts {
                    router: self.plain(&format!("{at}.mlp.gate"), moe.num_experts, hidden),
                    bias: self.vector(&format!("{at}.mlp.gate.e_score_correction_bias"), moe.num_experts),
                    shared: (moe.num_shared > 0).then(|| {
                        self.gated(
                            &format!("{at}.mlp.shared_experts"),
                            moe.num_shared * moe.intermediate_size,
                        )
                    }),
                }
            },
        }
    }

    fn attention(&self, at: &str) -> Attention<MatrixSpec, VectorSpec> {
        let hidden = self.config.hidden_size;
        let a = &self.config.attention;
        let q_rows = a.num_heads * a.qk_head_dim();
        Attention {
            query: match a.q_lora_rank {
                None => Query::Direct(self.linear(&format!("{at}.q_proj"), q_rows, hidden)),
                Some(rank) => Query::LowRank {
                    a: self.linear(&format!("{at}.q_a_proj"), rank, hidden),
                    norm: self.vector(&format!("{at}.q_a_layernorm.weight"), rank),
                    b: self.linear(&format!("{at}.q_b_proj"), q_rows, rank),
                },
            },
            kv_a: self.linear(&format!("{at}.kv_a_proj_with_mqa"), a.cached_dim(), hidden),
            kv_a_norm: self.vector(&format!("{at}.kv_a_layernorm.weight"), a.kv_lora_rank),
            kv_b: self.linear(
                &format!("{at}.kv_b_proj"),
                a.num_heads * (a.nope_head_dim + a.v_head_dim),
                a.kv_lora_rank,
            ),
            output: self.linear(&format!("{at}.o_proj"), hidden, a.num_heads * a.v_head_dim),
        }
    }
}
