#!/usr/bin/env python3
"""Writes tests/fixtures/int4/golden.safetensors: what Python's compressed-tensors reads in an INT4 file that Abruzzi wrote.

Usage: pip install compressed-tensors transformers torch numpy safetensors, then
       python3 tools/make_int4_golden.py [FILE.safetensors] [GOLDEN.safetensors]
Without arguments it reads tests/fixtures/int4/encoded.safetensors, which tests/quant.rs keeps up to date. Needs no network, no
GPU. tests/quant.rs compares what the engine decodes from the same bytes; any other file that the engine writes can be given.

For each module X of the file (X.weight_packed, X.weight_scale, X.weight_shape):
  X.codes   I8 [rows, cols]: unpacked by compressed_tensors' unpack_from_int32
  X.weight  BF16 [rows, cols]: decompressed by its PackedQuantizationCompressor with the scheme of Kimi-K2-Thinking
and pack_to_int32(X.codes) must be X.weight_packed again, bit by bit.
"""

import argparse
import pathlib
import sys

import compressed_tensors
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tests/fixtures/int4"
BITS, GROUP = 4, 32
WEIGHTS = QuantizationArgs(num_bits=BITS, type="int", symmetric=True, strategy="group", group_size=GROUP)
SCHEME = QuantizationScheme(targets=["Linear"], weights=WEIGHTS)


def unpack(module, tensors):
    """The golden tensors of one module; every mismatch is an error."""
    state = {name: tensors[f"{module}.{name}"] for name in ["weight_packed", "weight_scale", "weight_shape"]}
    shape = torch.Size(state["weight_shape"].tolist())
    codes = unpack_from_int32(state["weight_packed"], BITS, shape)
    if not torch.equal(pack_to_int32(codes, BITS), state["weight_packed"]):
        sys.exit(f"{module}: compressed-tensors packs the same codes to other words")
    golden = {f"{module}.codes": codes.contiguous()}
    # Its dequantize takes whole groups only; the codes above cover the widths that are none.
    if shape[1] % GROUP == 0:
        golden[f"{module}.weight"] = PackedQuantizationCompressor.decompress(state, SCHEME)["weight"].contiguous()
    return golden


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=pathlib.Path, default=FIXTURES / "encoded.safetensors")
    parser.add_argument("target", nargs="?", type=pathlib.Path, default=FIXTURES / "golden.safetensors")
    args = parser.parse_args()
    tensors = load_file(args.source)
    suffix = ".weight_packed"
    modules = sorted(name.removesuffix(suffix) for name in tensors if name.endswith(suffix))
    if not modules:
        sys.exit(f"{args.source}: no tensor ends in {suffix}")
    golden = {}
    for module in modules:
        golden |= unpack(module, tensors)
    versions = {"compressed-tensors": compressed_tensors.__version__, "torch": torch.__version__.split("+")[0]}
    save_file(golden, args.target, metadata=versions)
    print(f"{args.target}: {len(modules)} modules, {versions}")


if __name__ == "__main__":
    main()
