"""KIVI's cache: tokens one at a time or a group at a time see the same keys, and what is held is what is sized."""

from __future__ import annotations

import pytest
import torch

from kvtool.engine.pool import codec
from kvtool.kernels.packed.kivi import KiviPages, kivi_pages
from kvtool.kernels.packed.pages import lone_rows, packed
from kvtool.kernels.pages import Pages
from kvtool.kernels.reference import attention as reference
from kvtool.kernels.rows import Softmax
from kvtool.sizing.formats import CACHE_FORMATS
from kvtool.sizing.specs import FullSpec
from tests.kernels.conftest import Backend
from tests.kernels.paged_case import largest_error

SPEC = FullSpec(kv_heads=2, k_head_dim=64, v_head_dim=64, cache_format=CACHE_FORMATS["kivi_int2"])


def empty(device: str = "cpu", residual: int = SPEC.cache_format.residual_tokens) -> KiviPages:
    key, value = SPEC.cache_format.key, SPEC.cache_format.value
    assert key is not None
    assert value is not None
    return kivi_pages(
        codec(key, 64),
        codec(value, 64),
        kv_heads=2,
        k_head_dim=64,
        residual=residual,
        rotated=False,
        device=torch.device(device),
    )


def tokens(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(count, 2, 64, generator=generator).bfloat16() for _ in "kv")  # type: ignore[return-value]


NOWHERE = torch.zeros(0, dtype=torch.int64)


def test_a_group_at_a_time_is_read_as_a_token_at_a_time() -> None:
    k, v = tokens(320)
    by_one, by_group = empty(), empty()
    for start in range(0, 320, 64):
        seen = []
        for at in range(start, start + 64):
            by_one.write(k[at : at + 1], v[at : at + 1], NOWHERE)
            seen.append(by_one.read(NOWHERE, at + 1, torch.float32))
        by_group.write(k[start : start + 64], v[start : start + 64], NOWHERE)
        whole = by_group.read(NOWHERE, start + 64, torch.float32)
        for at, (keys, values) in enumerate(seen, start + 1):
            assert torch.equal(keys, whole[0][:at])
            assert torch.equal(values, whole[1][:at])


@pytest.mark.parametrize("count", [1, 128, 191, 192, 320, 500])
def test_it_holds_the_bytes_that_are_sized(count: int) -> None:
    k, v = tokens(count)
    pages = empty()
    for start in range(0, count, 64):
        pages.write(k[start : start + 64], v[start : start + 64], NOWHERE)
    pages.settle()
    assert sum(tensor.nbytes for tensor in pages.tensors) == SPEC.stored_bytes(count)
    newest = pages.read(NOWHERE, count, torch.float32)[0][-128:]
    assert torch.equal(newest, k[-128:].float())


def test_keys_by_channel_bear_an_outlier_that_values_by_token_do_not() -> None:
    """The point of KIVI: one channel of keys is large in every token."""
    k = tokens(256)[0]
    k[..., 5] += 50
    pages = empty()
    for start in range(0, 256, 64):
        pages.write(k[start : start + 64], k[start : start + 64], NOWHERE)
    keys, values = pages.read(NOWHERE, 128, torch.float32)
    others = [i for i in range(64) if i != 5]
    off = [float((found - k[:128].float())[..., others].norm()) for found in (keys, values)]
    assert off[0] < off[1] / 3


def test_every_backend_packs_the_same_bytes_and_attends_to_them(backend: Backend) -> None:
    """Of two groups and a few tokens, the last in a step of its own, the first is packed."""
    device = torch.device(backend.device)
    k, v = (x.float().to(device) for x in tokens(130))
    kernels, pages, by_torch = packed(backend.kernels), empty(backend.device, 64), empty(backend.device, 64)
    for start, stop in ((0, 64), (64, 128), (128, 129), (129, 130)):
        kernels.store(k[start:stop], v[start:stop], pages, NOWHERE)
        by_torch.write(k[start:stop], v[start:stop], NOWHERE)
    assert [len(tensor) for tensor in pages.tensors] == [1, 1, 66, 66]
    for ours, theirs in zip(pages.tensors, by_torch.tensors, strict=True):
        assert torch.equal(ours, theirs)
    q, rows, softmax = torch.randn(1, 6, 64).to(device), lone_rows(130, 1, device), Softmax(0.125)
    keys, values = by_torch.read(NOWHERE, 130, torch.float32)
    expected = reference.decode(q.double(), Pages(keys[None].double(), values[None].double()), rows, softmax)
    assert largest_error(kernels.decode(q, pages, rows, softmax), expected) < 2e-5
