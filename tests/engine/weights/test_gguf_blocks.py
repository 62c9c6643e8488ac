"""Blocks of a GGUF file taken apart stand for what llama.cpp's own package makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvtool.engine.weights.gguf_blocks import KINDS, blocks_of
from tests.kernels.cpu.test_quantised import weight_of

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_what_the_package_dequantises(kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)
    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    found = blocks_of(kind, torch.from_numpy(data))
    assert found is not None
    expected = torch.from_numpy(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]))
    assert torch.allclose(weight_of(found).float(), expected, rtol=1e-6, atol=1e-7)


def test_other_blocks_are_not_taken_apart() -> None:
    assert blocks_of("Q6_K", torch.zeros(2, 210, dtype=torch.uint8)) is None
