"""Weights of 8 bits as compressed-tensors stores them: symmetric, one scale a row or one for all.

`naive-quantized` and `int-quantized` keep signed bytes as `X.weight`; `pack-quantized` keeps them as `X.weight_packed`,
bytes around 128 four a word, and the shape beside it. Both keep `X.weight_scale`.
"""

from __future__ import annotations

from collections.abc import Callable, Container

import torch
from torch import Tensor

from kvtool.kernels.blocks import Blocks
from kvtool.system.errors import KvtoolError
from kvtool.units import ceil_div

_MIDDLE = 128
_RUNS = "the engine runs int8 of compressed-tensors, symmetric, with a scale a row"


def int8_blocks(name: str, stored: Container[str], read: Callable[[str], Tensor]) -> Blocks | None:
    """The weight `name`, [out, in], out of the `stored` tensors that `read` reads; None where it is not quantised so.

    Raises KvtoolError for other bits, zero points, and scales of groups.
    """
    if f"{name}_scale" not in stored or not (name in stored or f"{name}_packed" in stored):
        return None
    codes = _codes(name, stored, read)
    if codes is None:
        return None
    zeros, scale = f"{name}_zero_point", read(f"{name}_scale")
    if zeros in stored and bool(read(zeros).any()):
        raise KvtoolError(f"tensor {name!r} has zero points: {_RUNS}")
    if scale.numel() not in (1, len(codes)):
        raise KvtoolError(f"tensor {name!r} has {scale.numel()} scales for {len(codes)} rows: {_RUNS}")
    return Blocks(codes, 8, scale.float().reshape(-1, 1).expand(len(codes), 1).contiguous())


def _codes(name: str, stored: Container[str], read: Callable[[str], Tensor]) -> Tensor | None:
    """uint8 [out, in] around 128; None for a tensor of another dtype."""
    if name in stored:
        whole = read(name)
        return whole.view(torch.uint8) ^ _MIDDLE if whole.dtype == torch.int8 else None
    words, shape = read(f"{name}_packed"), read(f"{name}_shape").tolist()
    if words.dtype != torch.int32 or len(shape) != 2 or tuple(words.shape) != (shape[0], ceil_div(shape[1], 4)):
        raise KvtoolError(f"tensor {name!r} is packed in other than 8 bits: {_RUNS}")
    return words.contiguous().view(torch.uint8)[:, : shape[1]].contiguous()


def dequantised(blocks: Blocks) -> Tensor:
    """What blocks around their middle with a scale a row stand for, in fp32."""
    return blocks.codes.float().sub_(_MIDDLE).mul_(blocks.scale)
