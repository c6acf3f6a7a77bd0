"""Kimi-K2's FP8 checkpoint: writing it, and reading it back.

A projection W is stored as F8_E4M3 codes with an F32 scale for each block of 128x128, `<name>_scale_inv`
[ceil(n/128), ceil(k/128)]: W = code value * scale. Where 128 does not divide a side, its last block is smaller.
Debian's torch knows no 8-bit floats, so the codes are made here.
"""

import json
import os
import struct

import numpy as np
import torch

from optim import is_projection

BLOCK = 128


def magnitudes():
    """The values of the codes 0 to 126: 4 bits of exponent (bias 7), 3 of mantissa. 127 is NaN; 128 is the sign."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    return np.where(exponent == 0, mantissa * 2.0 ** -9, (8 + mantissa) * 2.0 ** (exponent - 10.0))


MAGNITUDES = magnitudes()
MIDPOINTS = (MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2


def encode_e4m3(values):
    """The nearest codes of float64 values; a tie goes to the even code, beyond 448 is 448."""
    size = np.abs(values)
    code = np.searchsorted(MIDPOINTS, size, side="left")  # a tie gives the lower code
    tie = (code < len(MIDPOINTS)) & (size == MIDPOINTS[np.minimum(code, len(MIDPOINTS) - 1)])
    code += tie & (code % 2 == 1)
    return (code | np.where(np.signbit(values), 128, 0)).astype(np.uint8)


def decode_e4m3(codes):
    if (codes & 127 == 127).any():
        raise ValueError("the file holds an F8_E4M3 NaN")
    return np.where(codes & 128, -1, 1) * MAGNITUDES[codes & 127]


def spread(scales, shape):
    """A block's scale at each of its elements."""
    return scales.repeat(BLOCK, 0).repeat(BLOCK, 1)[:shape[0], :shape[1]].astype(np.float64)


def quantize(weight):
    """(codes, scales): the largest magnitude of a block becomes 448."""
    n, k = weight.shape
    blocks = (-(-n // BLOCK), -(-k // BLOCK))
    padded = np.zeros((blocks[0] * BLOCK, blocks[1] * BLOCK), np.float32)
    padded[:n, :k] = np.abs(weight)
    largest = padded.reshape(blocks[0], BLOCK, blocks[1], BLOCK).max((1, 3))
    scales = np.maximum(largest / np.float32(MAGNITUDES[-1]), np.float32(1e-12))
    return encode_e4m3(weight.astype(np.float64) / spread(scales, weight.shape)), scales


def save(network, path):
    """Writes the network's parameters and buffers."""
    tensors = {}  # name -> (dtype, array)
    for name, tensor in network.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            tensors[name] = ("F32", tensor.numpy())
        elif is_projection(name, tensor):
            codes, scales = quantize(tensor.numpy())
            tensors[name], tensors[f"{name}_scale_inv"] = ("F8_E4M3", codes), ("F32", scales)
        else:
            tensors[name] = ("BF16", tensor.bfloat16().view(torch.int16).numpy())
    order = sorted(tensors, key=lambda name: (-tensors[name][1].itemsize, name))  # wide elements first: all are aligned
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in order:
        dtype, array = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_file(path, b"".join([struct.pack("<Q", len(text)), text, *(tensors[name][1].tobytes() for name in order)]))


def load(path):
    """The tensors of a file that `save` wrote, in float32, with the scales applied."""
    content = path.read_bytes()
    data = 8 + struct.unpack_from("<Q", content)[0]
    header = json.loads(content[8:data])

    def stored(name, numpy_type):
        begin, end = header[name]["data_offsets"]
        return np.frombuffer(content[data + begin:data + end], numpy_type).reshape(header[name]["shape"])

    result = {}
    for name, entry in header.items():
        if name == "__metadata__" or name.endswith("_scale_inv"):
            continue
        if entry["dtype"] == "F8_E4M3":
            codes = stored(name, np.uint8)
            array = decode_e4m3(codes) * spread(stored(f"{name}_scale_inv", np.float32), codes.shape)
        elif entry["dtype"] == "BF16":
            array = (stored(name, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            array = stored(name, np.float32)
        result[name] = torch.from_numpy(array.astype(np.float32))
    return result


def write_file(path, content):
    """Writes beside and renames: a file is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
