"""Vectors to bytes and back, beside other people's code for the same formats."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from kvtool.engine.pool import codec
from kvtool.kernels.packed.codec import Codec
from kvtool.kernels.packed.rotation import rotate_heads
from kvtool.kernels.quantise import stored, vector_scales
from kvtool.sizing.formats import CACHE_FORMATS

STORABLE = [name for name, cache_format in CACHE_FORMATS.items() if cache_format.storable]


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("name", STORABLE)
@pytest.mark.parametrize("elements", [32, 64, 96, 128])
def test_a_vector_takes_the_bytes_that_it_is_sized_with(name: str, elements: int) -> None:
    vector = CACHE_FORMATS[name].value
    assert vector is not None
    packer = codec(vector, elements)
    encoded = packer.encode(rows(5, 2, elements))
    assert encoded.dtype == torch.uint8
    assert encoded.shape[-1] == packer.stored_bytes == vector.stored_bytes(elements)
    assert packer.decode(encoded).shape == (5, 2, elements)


@pytest.mark.parametrize("name", ["kivi_int4", "kivi_int2"])
def test_a_channel_of_a_group_of_tokens_takes_its_share(name: str) -> None:
    key = CACHE_FORMATS[name].key
    assert key is not None
    assert key.group is not None
    assert codec(key, 128).stored_bytes * 128 == key.stored_bytes(128) * key.group


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_ggmls_blocks_hold_what_ggml_puts_in_them(name: str) -> None:
    """gguf.quants is ggml's own reference in NumPy; fp16 scales leave the last bit of a product to the order of it."""
    vector = CACHE_FORMATS[name].key
    assert vector is not None
    given = rows(40, 64)
    kind = gguf.GGMLQuantizationType[name.upper()]
    expected = gguf.quants.dequantize(gguf.quants.quantize(given.numpy(), kind), kind)
    packer = codec(vector, 64)
    np.testing.assert_allclose(packer.decode(packer.encode(given)).numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dtype"), [("int8_per_token_head", torch.int8), ("fp8_per_token_head", torch.float8_e4m3fn)]
)
def test_it_stores_what_the_kernels_of_whole_pages_store(name: str, dtype: torch.dtype) -> None:
    vector = CACHE_FORMATS[name].key
    assert vector is not None
    given = rows(7, 3, 64)
    scales = vector_scales(given, dtype).unsqueeze(-1)
    packer = codec(vector, 64)
    assert torch.equal(packer.decode(packer.encode(given)), stored(given / scales, dtype).float() * scales)


@pytest.mark.parametrize("name", STORABLE)
def test_vectors_that_are_all_alike_or_zero_come_back(name: str) -> None:
    vector = CACHE_FORMATS[name].value
    assert vector is not None
    packer = codec(vector, 64, 2.0 if CACHE_FORMATS[name].calibrated else None)
    for level in (0.0, 2.0):
        given = torch.full((2, 64), level)
        torch.testing.assert_close(packer.decode(packer.encode(given)), given, rtol=0, atol=2e-3)


def test_a_static_scale_clips_what_was_not_seen_when_it_was_measured() -> None:
    packer = Codec(elements=2, bits=8, scheme="symmetric", static_scale=1 / 127)
    assert packer.decode(packer.encode(torch.tensor([[0.5, 7.0]])))[0].tolist() == pytest.approx(
        [0.5039, 1.0], abs=1e-3
    )


@pytest.mark.parametrize("size", [64, 80, 96, 1])
def test_a_rotation_keeps_lengths_and_undoes_itself(size: int) -> None:
    given = rows(3, 2, size)
    turned = rotate_heads(given)
    torch.testing.assert_close(rotate_heads(turned), given)
    torch.testing.assert_close(turned.norm(dim=-1), given.norm(dim=-1))
    spike = torch.nn.functional.one_hot(torch.tensor([3]), 64).float()
    assert rotate_heads(spike).abs().max() == pytest.approx(1 / 8)
