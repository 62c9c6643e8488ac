"""A launcher refuses what its kernel would read wrongly; backends are loaded by name."""

from __future__ import annotations

import inspect

import pytest
import torch

from kvtool.errors import KvtoolError
from kvtool.kernels import BACKENDS, load_kernels
from kvtool.kernels.interface import Kernels, StepKernels
from kvtool.kernels.reference import step as step_reference

OPERATIONS = [name for name, member in vars(Kernels).items() if inspect.isfunction(member) and name[0] != "_"]


def decode_arguments() -> dict[str, torch.Tensor]:
    return {
        "q": torch.zeros(2, 4, 32),
        "k_cache": torch.zeros(5, 16, 2, 32),
        "v_cache": torch.zeros(5, 16, 2, 32),
        "block_tables": torch.zeros(2, 3, dtype=torch.int32),
        "seq_lens": torch.ones(2, dtype=torch.int32),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_backend_has_the_signatures_of_the_contract(backend: str, operation: str) -> None:
    promised = list(inspect.signature(getattr(Kernels, operation)).parameters.values())[1:]
    offered = list(inspect.signature(getattr(load_kernels(backend), operation)).parameters.values())
    assert offered == promised


@pytest.mark.parametrize(
    "operation", ["add_rms_norm", "split_qkv", "split_latent", "place", "gated", "linear", "experts"]
)
def test_the_fused_kernels_and_their_twins_have_the_signatures_of_the_contract(operation: str) -> None:
    promised = list(inspect.signature(getattr(StepKernels, operation)).parameters.values())[1:]
    for module in (load_kernels("triton").fused, step_reference):
        assert list(inspect.signature(getattr(module, operation)).parameters.values()) == promised


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(KvtoolError, match="unknown backend 'tritn': did you mean triton"):
        load_kernels("tritn")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("q", torch.zeros(2, 4, 16), "does not fit k_cache"),
        ("q", torch.zeros(2, 3, 32), "3 query heads on 2 KV heads"),
        ("q", torch.zeros(2, 4, 32, dtype=torch.float64), "q is torch.float64"),
        ("q", torch.zeros(2, 32, 4).transpose(1, 2), "must be contiguous"),
        ("v_cache", torch.zeros(5, 16, 2, 32, dtype=torch.float16), "v_cache torch.float16"),
        ("v_cache", torch.zeros(4, 16, 2, 32), "differ"),
        ("k_cache", torch.zeros(5, 16, 2, 32, dtype=torch.int16), "k_cache is torch.int16"),
        ("q", torch.zeros(3, 4, 32), "3 queries for 2 sequences"),
        ("block_tables", torch.zeros(2, 3, dtype=torch.int64), "block_tables must be 2-D torch.int32"),
        ("block_tables", torch.zeros(3, 3, dtype=torch.int32), "3 block tables for 2 seq_lens"),
        ("seq_lens", torch.ones(2), "seq_lens must be 1-D torch.int32"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_kernels("triton").paged_decode(**decode_arguments() | {name: value}, scale=1.0)


def test_a_negative_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window is -1"):
        load_kernels("triton").paged_decode(**decode_arguments(), scale=1.0, window=-1)


def scales(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"softcap": -1.0}, "softcap is -1.0"),
        ({"sinks": torch.zeros(2)}, r"sinks \[2\] for 4 query heads"),
        ({"k_scale": scales(5, 16, 2)}, "both be numbers or both be tensors"),
        ({"k_scale": scales(5, 16, 1), "v_scale": scales(5, 16, 1)}, "do not fit the cache"),
        ({"k_scale": scales(5, 16, 2), "v_scale": scales(5, 2, 16).transpose(1, 2)}, "laid out alike"),
    ],
)
def test_features_that_do_not_fit_are_refused(features: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_kernels("triton").paged_decode(**decode_arguments(), scale=1.0, **features)


def test_a_store_of_other_heads_is_refused() -> None:
    rows, cache = torch.zeros(1, 3, 32), torch.zeros(5, 16, 2, 32)
    with pytest.raises(ValueError, match="do not fit the cache"):
        load_kernels("triton").store_kv(rows, rows, cache, cache, torch.zeros(1, dtype=torch.int64))


def test_a_latent_as_wide_as_its_row_is_refused() -> None:
    where = {name: decode_arguments()[name] for name in ("block_tables", "seq_lens")}
    with pytest.raises(ValueError, match="latent_dim 80 of a row of 80"):
        load_kernels("triton").mla_decode(
            torch.zeros(2, 4, 80), torch.zeros(5, 16, 80), latent_dim=80, scale=1, **where
        )
