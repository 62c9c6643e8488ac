"""A launcher refuses what its kernel would read wrongly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvtool.kernels import load_kernels
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows, Softmax
from kvtool.kernels.triton.tiles.rules import Target
from tests.kernels.triton.ahead_of_time import Launch, record
from tools.gpu.pieces.variants import in_order, pointers


def decode(softmax: Softmax | None = None, **changes: object) -> None:
    """Two sequences of two KV heads, but for what is given."""
    k, v = torch.zeros(5, 16, 2, 32), torch.zeros(5, 16, 2, 32)
    pages = Pages(k, v, **{name: changes.pop(name) for name in ("k_scale", "v_scale") if name in changes})
    pages = replace(pages, **{name: changes.pop(name) for name in ("k", "v", "latent_dim") if name in changes})
    q = changes.pop("q", torch.zeros(2, 4, 32))
    rows = replace(Rows(torch.zeros(2, 3, dtype=torch.int32), torch.ones(2, dtype=torch.int32)), **changes)
    load_kernels("triton").decode(q, pages, rows, softmax or Softmax(1.0))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("q", torch.zeros(2, 4, 16), "does not fit k_cache"),
        ("q", torch.zeros(2, 3, 32), "3 query heads on 2 KV heads"),
        ("q", torch.zeros(2, 4, 32, dtype=torch.float64), "q is torch.float64"),
        ("q", torch.zeros(2, 32, 4).transpose(1, 2), "must be contiguous"),
        ("v", torch.zeros(5, 16, 2, 32, dtype=torch.float16), "v_cache torch.float16"),
        ("v", torch.zeros(4, 16, 2, 32), "differ"),
        ("k", torch.zeros(5, 16, 2, 32, dtype=torch.int16), "k_cache is torch.int16"),
        ("q", torch.zeros(3, 4, 32), "3 queries for 2 sequences"),
        ("block_tables", torch.zeros(2, 3, dtype=torch.int64), "block_tables must be 2-D torch.int32"),
        ("block_tables", torch.zeros(3, 3, dtype=torch.int32), "3 block tables for 2 seq_lens"),
        ("seq_lens", torch.ones(2), "seq_lens must be 1-D torch.int32"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(**{name: value})


def test_a_negative_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window is -1"):
        decode(Softmax(1.0, window=-1))


def scales(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"softmax": Softmax(1.0, softcap=-1.0)}, "softcap is -1.0"),
        ({"softmax": Softmax(1.0, sinks=torch.zeros(2))}, r"sinks \[2\] for 4 query heads"),
        ({"k_scale": scales(5, 16, 2)}, "both be numbers or both be tensors"),
        ({"k_scale": scales(5, 16, 1), "v_scale": scales(5, 16, 1)}, "do not fit the cache"),
        ({"k_scale": scales(5, 16, 2), "v_scale": scales(5, 2, 16).transpose(1, 2)}, "laid out alike"),
    ],
)
def test_features_that_do_not_fit_are_refused(features: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(**features)


def test_a_store_of_other_heads_is_refused() -> None:
    rows, cache = torch.zeros(1, 3, 32), torch.zeros(5, 16, 2, 32)
    with pytest.raises(ValueError, match="do not fit the cache"):
        load_kernels("triton").store(rows, rows, Pages(cache, cache), torch.zeros(1, dtype=torch.int64))


def test_a_latent_as_wide_as_its_row_is_refused() -> None:
    with pytest.raises(ValueError, match="latent_dim 80 of a row of 80"):
        decode(q=torch.zeros(2, 4, 80), k=torch.zeros(5, 16, 80), v=None, latent_dim=80)


def launches(operation: str, num_pages: int = 48) -> list[Launch]:
    """Of one call on a Hopper, with pages that TMA can copy."""

    def call() -> None:
        cache = torch.empty(num_pages, 64, 2, 128, dtype=torch.bfloat16, device="meta")
        q = torch.empty(1, 8, 128, dtype=torch.bfloat16, device="meta")
        table, lens = (torch.empty(*shape, dtype=torch.int32, device="meta") for shape in ((1, 64), (1,)))
        starts = torch.empty(2, dtype=torch.int32, device="meta")
        rows = Rows(table, lens) if operation == "decode" else Rows(table, lens, starts, 1)
        getattr(load_kernels("triton"), operation)(q, Pages(cache, cache), rows, Softmax(1.0))

    return record(call, Target(capability=90, multiprocessors=132, shared_bytes=227 * 1024))


@pytest.mark.parametrize("operation", ["decode", "prefill"])
def test_a_pool_of_another_size_compiles_nothing_new(operation: str) -> None:
    """MLA's prefill gathers as many pages as its prompts have: a variant for some sizes would stall those requests."""
    keys = [[launch.key() for launch in launches(operation, num_pages)] for num_pages in (1, 48, 49)]
    assert keys[0] == keys[1] == keys[2]


@pytest.mark.parametrize("operation", ["decode", "prefill"])
def test_boxes_are_described_on_the_device_and_pointers_can_take_their_place(operation: str) -> None:
    """Descriptors that the host makes gave NaN on some cards (triton#9719): no launch takes one."""
    found = launches(operation)
    assert any(launch.arguments.get("TMA") for launch in found)
    assert not any("Descriptor" in type(value).__name__ for launch in found for value in launch.arguments.values())
    with pointers():
        assert not any(launch.arguments.get("TMA") for launch in launches(operation))


def test_launches_that_start_early_can_be_kept_in_order() -> None:
    assert all(launch.arguments["PDL"] for launch in launches("decode"))
    with in_order():
        assert not any(launch.arguments["PDL"] for launch in launches("decode"))
