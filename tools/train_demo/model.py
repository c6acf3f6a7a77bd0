"""The DeepSeek-V3 architecture as Kimi-K2 uses it, with the checkpoint's own tensor names.

Attention (MLA): queries through a rank `q_lora_rank`; keys and values through one latent of `kv_lora_rank` a token,
with a rotary part that all heads share. Feed-forward: SwiGLU; from layer `first_k_dense_replace` on, each token goes to
its `num_experts_per_tok` best experts and a shared one.
"""

import math

import torch
from torch import nn
from torch.nn import functional

REQUIRED = {  # what this trainer can do; another value is an error rather than a different model
    "model_type": "kimi_k2", "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "num_nextn_predict_layers": 0,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True, "hidden_act": "silu",
    "moe_layer_freq": 1, "tie_word_embeddings": False, "attention_bias": False,
}


class Unsupported(Exception):
    """A configuration that this trainer cannot train."""


def check(config):
    for key, value in REQUIRED.items():
        if config.get(key) != value:
            raise Unsupported(f"config.json: {key} is {config.get(key)!r}; this trainer needs {value!r}")
    rope = config.get("rope_scaling") or {}
    if rope.get("type") != "yarn" or rope.get("mscale") != rope.get("mscale_all_dim"):
        raise Unsupported("config.json: rope_scaling must be yarn with mscale equal to mscale_all_dim")
    if config.get("quantization_config", {}).get("weight_block_size") != [128, 128]:
        raise Unsupported("config.json: quantization_config must have weight_block_size [128, 128]")


def yarn(config):
    """(rotary frequencies, factor of the softmax scale)."""
    dim, theta, rope = config["qk_rope_head_dim"], config["rope_theta"], config["rope_scaling"]
    factor, original = rope["factor"], rope["original_max_position_embeddings"]

    def pair_with(turns):  # the pair that turns so often in the original context
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_with(rope["beta_fast"])), 0)
    high = min(math.ceil(pair_with(rope["beta_slow"])), dim - 1)
    pairs = torch.arange(dim // 2).float()
    slow = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)  # 0: keep the frequency, 1: divide it by the factor
    plain = theta ** (-2 * pairs / dim)
    attention = 0.1 * rope["mscale_all_dim"] * math.log(factor) + 1
    return plain * (1 - slow) + plain / factor * slow, attention ** 2


def rotate(x, cos, sin):
    """Pairs lie side by side in the weights; the result has all first parts, then all second parts, as Kimi's does."""
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def linear(inputs, outputs):
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=inputs ** -0.5)
    return layer


class Norm(nn.Module):
    def __init__(self, width, epsilon):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon) * self.weight


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden, self.heads = config["hidden_size"], config["num_attention_heads"]
        self.nope, self.rope, self.value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
        self.latent, query, epsilon = config["kv_lora_rank"], config["q_lora_rank"], config["rms_norm_eps"]
        self.scale = (self.nope + self.rope) ** -0.5 * yarn(config)[1]
        self.q_a_proj = linear(hidden, query)
        self.q_a_layernorm = Norm(query, epsilon)
        self.q_b_proj = linear(query, self.heads * (self.nope + self.rope))
        self.kv_a_proj_with_mqa = linear(hidden, self.latent + self.rope)
        self.kv_a_layernorm = Norm(self.latent, epsilon)
        self.kv_b_proj = linear(self.latent, self.heads * (self.nope + self.value))
        self.o_proj = linear(self.heads * self.value, hidden)

    def forward(self, x, cos, sin, mask):
        batch, length, _ = x.shape

        def by_head(y):
            return y.view(batch, length, self.heads, -1).transpose(1, 2)

        q_nope, q_rope = by_head(self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))).split([self.nope, self.rope], -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.latent, self.rope], -1)
        k_nope, value = by_head(self.kv_b_proj(self.kv_a_layernorm(latent))).split([self.nope, self.value], -1)
        k_rope = rotate(k_rope.unsqueeze(1), cos, sin).expand(-1, self.heads, -1, -1)
        query = torch.cat([q_nope, rotate(q_rope, cos, sin).to(q_nope.dtype)], -1)
        key = torch.cat([k_nope, k_rope.to(k_nope.dtype)], -1)
        weights = torch.softmax((query @ key.transpose(-1, -2)).float() * self.scale + mask, -1)
        mixed = weights.to(value.dtype) @ value
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    def __init__(self, hidden, inner):
        super().__init__()
        self.gate_proj, self.up_proj = linear(hidden, inner), linear(hidden, inner)
        self.down_proj = linear(inner, hidden)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """noaux_tc: the bias takes part in the choice of experts, not in their weights; balancing moves it, no gradient."""

    def __init__(self, config):
        super().__init__()
        self.top, self.factor = config["num_experts_per_tok"], config["routed_scaling_factor"]
        experts, hidden = config["n_routed_experts"], config["hidden_size"]
        self.weight = nn.Parameter(torch.randn(experts, hidden) * hidden ** -0.5)
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))
        self.load = None  # tokens of each expert in the latest batch

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            scores = torch.sigmoid(x.float() @ self.weight.t())
        chosen = (scores.detach() + self.e_score_correction_bias).topk(self.top, -1).indices
        weights = scores.gather(1, chosen)
        self.load = torch.bincount(chosen.flatten(), minlength=len(self.e_score_correction_bias)).float()
        return chosen, weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.factor

    def balance(self, rate):
        """Raises the bias of the experts that had too few tokens, lowers that of those with too many."""
        self.e_score_correction_bias += rate * torch.sign(self.load.mean() - self.load)


class Mixture(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
        self.gate = Router(config)
        self.experts = nn.ModuleList(FeedForward(hidden, inner) for _ in range(config["n_routed_experts"]))
        self.shared_experts = FeedForward(hidden, inner)

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        chosen, weights = self.gate(rows)
        order = chosen.flatten().argsort()  # (token, choice) pairs, grouped by expert
        token = torch.div(order, self.gate.top, rounding_mode="floor")
        groups = rows[token].split(self.gate.load.long().tolist())
        outputs = torch.cat([expert(group) for expert, group in zip(self.experts, groups)])
        outputs = outputs.float() * weights.flatten()[order].unsqueeze(1)
        return self.shared_experts(rows).float().index_add(0, token, outputs).view(x.shape)


class Layer(nn.Module):
    def __init__(self, config, number):
        super().__init__()
        hidden, epsilon = config["hidden_size"], config["rms_norm_eps"]
        dense = number < config["first_k_dense_replace"]
        self.input_layernorm = Norm(hidden, epsilon)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(hidden, epsilon)
        self.mlp = FeedForward(hidden, config["intermediate_size"]) if dense else Mixture(config)

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config["num_hidden_layers"]))
        self.norm = Norm(config["hidden_size"], config["rms_norm_eps"])


class Kimi(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.frequencies = yarn(config)[0]
        self.model = Body(config)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
        for weight in (self.model.embed_tokens.weight, self.lm_head.weight):
            nn.init.normal_(weight, std=config["initializer_range"])
        for name, weight in self.named_parameters():  # what is added to the residual starts small
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.data *= (2 * config["num_hidden_layers"]) ** -0.5

    def forward(self, ids):
        """Logits of the next token: ids [batch, length] -> [batch, length, vocabulary]."""
        length = ids.shape[1]
        angles = torch.arange(length)[:, None] * self.frequencies
        mask = torch.full((length, length), -math.inf).triu(1)
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, angles.cos(), angles.sin(), mask)
        return self.lm_head(self.model.norm(x))

    def routers(self):
        return [module for module in self.modules() if isinstance(module, Router)]
