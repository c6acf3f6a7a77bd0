#!/usr/bin/env python3
"""Writes a checkpoint of `abruzzi synth` as GGUF for llama.cpp's architecture `deepseek2`.

Usage: python3 tools/peers/convert.py CHECKPOINT OUT.gguf [--type matched|q8_0|q4_0]; needs `pip install gguf numpy`.

Type `matched` takes for each tensor the GGUF type nearest to the one it has:
  FP8 128x128 block  -> Q8_0, a step of rounding: 8.5 bits a weight instead of 8.002
  INT4 group 32      -> Q4_0, the same values exactly: codes and scales are copied, 4.5 bits both
  BF16               -> BF16
`q8_0` and `q4_0` quantise every matrix but kv_b_proj, as llama.cpp's users do with the embedding and the head too; `q4_0` leaves the head
in Q8_0 (llama-quantize takes Q6_K for it, which the gguf package cannot write).
Norms, the router and its biases are F32 always, as llama.cpp's own converter has it. kv_b_proj is BF16 always: on a CPU with AMX
the llama.cpp of llama-cpp-python 0.3.36 repacks it if it is quantised, finds that its AMX kernel does not take the permuted queries it is multiplied
with, and aborts (GGML_ASSERT(*cur_backend_id != -1)). That is 8.4 MB a layer of Kimi-K2 more than in FP8.

The tensors' names and the metadata are those of llama.cpp's conversion of DeepseekV3ForCausalLM: kv_b_proj is split into
attn_k_b (transposed) and attn_v_b, the experts of a layer are stacked. Runs in little memory: a piece of a tensor at a time.
"""

import argparse
import os
import pathlib
import sys

from checkpoint import Checkpoint

try:
    import gguf
    import numpy as np
    from gguf import GGMLQuantizationType as Type
except ImportError as e:
    sys.exit(f"{e}; needed: pip install gguf numpy (versions in tools/peers/requirements.txt)")

PIECE = 1 << 24  # Weights converted at a time.
GROUP = 32  # Weights a block of Q8_0 and Q4_0, and a scale of INT4.
FP8_BLOCK = 128
SPARE = 1 << 30  # Room on the disk that must stay free.


def e4m3_values():
    """The 256 values of FP8 e4m3 (OCP 8-bit floating point, 1.0): no infinities, 0x7F and 0xFF are NaN."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    values[(codes & 0x7F) == 0x7F] = np.nan
    return np.where(codes & 0x80, -values, values).astype(np.float32)


E4M3 = e4m3_values()


class Matrix:
    """A matrix of the checkpoint, read by rows."""

    def __init__(self, checkpoint, module):
        tensors = checkpoint.tensors
        self.module = module
        for suffix, storage in [("weight_packed", "int4"), ("weight", "plain")]:
            if (found := tensors.get(f"{module}.{suffix}")) is not None:
                break
        else:
            sys.exit(f"{checkpoint.folder}: {module}.weight is missing; is it a DeepSeek-V3 checkpoint?")
        self.storage, self.data, self.scale = storage, found, None
        if storage == "int4":
            self.scale = load(tensors[f"{module}.weight_scale"])
            self.rows, self.cols = found.shape[0], found.shape[1] * 8
        elif found.dtype == "F8_E4M3":
            self.storage = "fp8"
            self.scale = load(tensors[f"{module}.weight_scale_inv"])
            self.rows, self.cols = found.shape
        else:
            self.rows, self.cols = found.shape

    def f32(self, first, count):
        """Rows `first` to `first + count` as f32 [count, cols]."""
        raw = load(self.data, first, count)
        if self.storage == "plain":
            return raw
        if self.storage == "fp8":
            scale = self.scale[np.arange(first, first + count) // FP8_BLOCK]
            return E4M3[raw] * np.repeat(scale, FP8_BLOCK, axis=1)[:, : self.cols]
        codes = nibbles(raw).astype(np.float32) - 8
        return codes * np.repeat(self.scale[first : first + count], GROUP, axis=1)

    def q4_0(self, first, count):
        """Rows of an INT4 matrix as Q4_0, bytes [count, cols / 32 * 18]: the same values."""
        codes = nibbles(load(self.data, first, count)).reshape(count, -1, GROUP)
        scale = self.scale[first : first + count]
        half = scale.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), scale):
            sys.exit(f"{self.module}.weight_scale: a scale that F16 does not hold; Q4_0 cannot have the same values")
        packed = codes[:, :, : GROUP // 2] | codes[:, :, GROUP // 2 :] << 4
        return np.concatenate([half[..., None].view(np.uint8), packed], axis=2).reshape(count, -1)


def nibbles(words):
    """Column 8w + i of a row sits in bits 4i to 4i + 3 of word w: [rows, words] to [rows, 8 * words], each 0 to 15."""
    octets = words.view(np.uint8)
    return np.stack([octets & 15, octets >> 4], axis=2).reshape(len(words), -1)


def load(tensor, first=0, count=None):
    """Rows of a tensor: BF16 as f32, F8_E4M3 as codes, the rest as it is."""
    kinds = {"BF16": np.uint16, "F32": np.float32, "F8_E4M3": np.uint8, "I32": np.int32}
    if (kind := kinds.get(tensor.dtype)) is None:
        sys.exit(f"{tensor.file}: a tensor of type {tensor.dtype}, expected {', '.join(kinds)}")
    row = tensor.nbytes // tensor.shape[0]
    count = tensor.shape[0] if count is None else count
    items = count * row // np.dtype(kind).itemsize
    values = np.fromfile(tensor.file, kind, items, offset=tensor.offset + first * row)
    if len(values) != items:
        sys.exit(f"{tensor.file}: ends within a tensor; make the checkpoint anew")
    if tensor.dtype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(count, *tensor.shape[1:])


class Target:
    """A tensor to write: its name, shape (outermost first), type, and a generator of its bytes."""

    def __init__(self, name, shape, kind, pieces):
        self.name, self.shape, self.kind, self.pieces = name, shape, kind, pieces
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            sys.exit(f"{name}: rows of {shape[-1]} weights, {kind.name} needs a multiple of {block}")
        self.nbytes = int(np.prod(shape)) // block * size


def kind_of(matrix, wanted, head=False):
    """The GGUF type of a matrix."""
    if wanted == "matched":
        return {"fp8": Type.Q8_0, "int4": Type.Q4_0, "plain": Type.BF16}[matrix.storage]
    return Type.Q8_0 if wanted == "q8_0" or head else Type.Q4_0


def stacked(name, matrices, kind):
    """Matrices of one shape on top of each other: [n, rows, cols], or [rows, cols] of a single one."""
    first = matrices[0]
    step = max(1, PIECE // first.cols)

    def pieces():
        for m in matrices:
            for row in range(0, m.rows, step):
                count = min(step, m.rows - row)
                exact = m.storage == "int4" and kind == Type.Q4_0
                yield m.q4_0(row, count) if exact else gguf.quants.quantize(m.f32(row, count), kind)

    shape = [first.rows, first.cols]
    return Target(name, [len(matrices), *shape] if len(matrices) > 1 else shape, kind, pieces)


def plain(name, values):
    """A small tensor in F32."""
    return Target(name, list(values.shape), Type.F32, lambda: [values.astype(np.float32)])


def targets(checkpoint, wanted):
    """All tensors of the GGUF file, in order."""
    config = checkpoint.config

    def matrix(name, module, head=False):
        m = Matrix(checkpoint, module)
        return stacked(name, [m], kind_of(m, wanted, head))

    def vector(name, source):
        if source not in checkpoint.tensors:
            sys.exit(f"{checkpoint.folder}: {source} is missing; is it a DeepSeek-V3 checkpoint?")
        return plain(name, load(checkpoint.tensors[source]))

    yield matrix("token_embd.weight", "model.embed_tokens")
    yield vector("output_norm.weight", "model.norm.weight")
    yield matrix("output.weight", "lm_head", head=True)
    for layer in range(config["num_hidden_layers"]):
        blk, source = f"blk.{layer}", f"model.layers.{layer}"
        attention = f"{source}.self_attn"
        yield vector(f"{blk}.attn_norm.weight", f"{source}.input_layernorm.weight")
        yield vector(f"{blk}.ffn_norm.weight", f"{source}.post_attention_layernorm.weight")
        yield vector(f"{blk}.attn_q_a_norm.weight", f"{attention}.q_a_layernorm.weight")
        yield vector(f"{blk}.attn_kv_a_norm.weight", f"{attention}.kv_a_layernorm.weight")
        yield matrix(f"{blk}.attn_q_a.weight", f"{attention}.q_a_proj")
        yield matrix(f"{blk}.attn_q_b.weight", f"{attention}.q_b_proj")
        yield matrix(f"{blk}.attn_kv_a_mqa.weight", f"{attention}.kv_a_proj_with_mqa")
        yield matrix(f"{blk}.attn_output.weight", f"{attention}.o_proj")
        yield from split_kv_b(checkpoint, blk, attention)
        if layer < config["first_k_dense_replace"]:
            for part in ["gate", "up", "down"]:
                yield matrix(f"{blk}.ffn_{part}.weight", f"{source}.mlp.{part}_proj")
            continue
        yield plain(f"{blk}.ffn_gate_inp.weight", Matrix(checkpoint, f"{source}.mlp.gate").f32(0, config["n_routed_experts"]))
        yield vector(f"{blk}.exp_probs_b.bias", f"{source}.mlp.gate.e_score_correction_bias")
        for part in ["gate", "up", "down"]:
            experts = [f"{source}.mlp.experts.{e}.{part}_proj" for e in range(config["n_routed_experts"])]
            experts = [Matrix(checkpoint, module) for module in experts]
            yield stacked(f"{blk}.ffn_{part}_exps.weight", experts, kind_of(experts[0], wanted))
            yield matrix(f"{blk}.ffn_{part}_shexp.weight", f"{source}.mlp.shared_experts.{part}_proj")


def split_kv_b(checkpoint, blk, attention):
    """kv_b_proj [heads * (nope + v), rank] as attn_k_b [heads, rank, nope] and attn_v_b [heads, v, rank], in BF16."""
    config = checkpoint.config
    heads, nope, v = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
    m = Matrix(checkpoint, f"{attention}.kv_b_proj")

    def part(take):
        return lambda: [gguf.quants.quantize(take(m.f32(0, m.rows).reshape(heads, nope + v, m.cols)), Type.BF16)]

    keys = part(lambda w: np.ascontiguousarray(w[:, :nope].transpose(0, 2, 1)))
    values = part(lambda w: np.ascontiguousarray(w[:, nope:]))
    yield Target(f"{blk}.attn_k_b.weight", [heads, m.cols, nope], Type.BF16, keys)
    yield Target(f"{blk}.attn_v_b.weight", [heads, v, m.cols], Type.BF16, values)


def describe(writer, config):
    """The metadata of `deepseek2`, as llama.cpp's converter writes it; no vocabulary, tokens go in as ids."""
    nope, rope, rank = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["kv_lora_rank"]
    writer.add_name("synthetic")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1)  # Absorbed MLA is multi-query attention over the latents.
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + rope)
    writer.add_value_length(rank)
    writer.add_key_length_mla(nope + rope)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if config["n_group"] > 1:
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    writer.add_rope_dimension_count(rope)
    writer.add_rope_freq_base(config["rope_theta"])
    if scaling := config.get("rope_scaling"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])
        writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
    writer.add_tokenizer_model("none")


def write(checkpoint, wanted, out):
    """The file, under a temporary name until it is whole."""
    todo = list(targets(checkpoint, wanted))
    size = sum(t.nbytes for t in todo)
    stat = os.statvfs(out.parent)
    if stat.f_bavail * stat.f_frsize < size + SPARE:
        sys.exit(f"{out}: needs {size / 1e9:.1f} GB on the disk and 1 GB beyond; free some, or give another --cache")
    partial = out.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "deepseek2")
    describe(writer, checkpoint.config)
    for t in todo:
        writer.add_tensor_info(t.name, t.shape, np.dtype(np.float32), t.nbytes, raw_dtype=t.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    done = 0
    for t in todo:
        # Not write_tensor_data, which takes a tensor as a whole: the head has 4.7 GB in f32.
        writer.write_padding(file, file.tell())
        start = file.tell()
        for piece in t.pieces():
            piece.tofile(file)
        if file.tell() - start != t.nbytes:
            sys.exit(f"{t.name}: wrote {file.tell() - start} bytes, expected {t.nbytes}")
        writer.write_padding(file, t.nbytes)
        done += t.nbytes
        if sys.stdout.isatty():
            print(f"\r{out.name}: {done / 1e9:.2f} of {size / 1e9:.2f} GB", end="", flush=True)
    writer.close()
    os.replace(partial, out)
    print(f"\r{out.name}: {len(todo)} tensors, {size / 1e9:.2f} GB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--type", choices=["matched", "q8_0", "q4_0"], default="matched")
    args = parser.parse_args()
    checkpoint = Checkpoint(args.checkpoint)
    missing = [key for key in ["kv_lora_rank", "q_lora_rank", "n_routed_experts"] if not checkpoint.config.get(key)]
    if missing:
        sys.exit(f"{args.checkpoint}: config.json has no {missing[0]}; expected a Kimi-K2 or DeepSeek-V3 checkpoint")
    write(checkpoint, args.type, args.out)


if __name__ == "__main__":
    main()
