"""TensorRT-LLM's and LMDeploy's pools: a public log's, and the arithmetic of their own code."""

from __future__ import annotations

import pytest

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.models_yaml import load_catalogue
from kvtool.results import SizeRow
from kvtool.sizing.engines.free_share import capacity, plan
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.size import size
from kvtool.system.errors import KvtoolError
from kvtool.units import GIB
from tests.sizing.example import LLAMA_8B

CATALOGUE = load_catalogue()


def row(**more: object) -> SizeRow:
    options = EngineOptions(gpu=find_gpu("h100"), **more)  # type: ignore[arg-type]
    return size(LLAMA_8B, options=SizeOptions(contexts=(8192,), engine=options, gpu=options.gpu)).rows[0]


def test_a_public_log_of_tensorrt_llm() -> None:
    """17.83 GiB available, 8,219 blocks of 32 tokens of 65,536 B (fp8): 16.05 GiB for 263,008 tokens. The log rounds
    what was free to a hundredth of a GiB, which are three blocks.
    """
    start = EngineOptions(name="tensorrt-llm", kv_cache_dtype="fp8")
    found = plan(LLAMA_8B, start, pool_bytes=round(0.9 * 17.83 * GIB))
    assert (found.block_size, found.bytes_per_token) == (32, 65_536)
    assert abs(found.num_blocks - 8_219) <= 3
    assert plan(LLAMA_8B, start, pool_bytes=263_008 * 65_536).num_blocks == 8_219
    assert capacity(found, 1024) == found.num_blocks / 32


def test_lmdeploy_takes_whole_blocks_of_64_tokens() -> None:
    found = plan(LLAMA_8B, EngineOptions(name="lmdeploy", parallel=Parallel(tp=2)), pool_bytes=10 * GIB)
    assert (found.bytes_per_token, found.num_blocks) == (65_536, 10 * GIB // (64 * 65_536))


@pytest.mark.parametrize(("name", "share"), [("tensorrt-llm", 0.9), ("lmdeploy", 0.8)])
def test_a_share_of_what_the_model_leaves(name: str, share: float) -> None:
    """Of all that is free after weights, runtime and, in TensorRT-LLM, the step that it profiles."""
    fit = row(name=name).fit
    assert fit.kv_pool_bytes is not None
    assert fit.usable_bytes == fit.memory_bytes
    free = row(name=name, free_memory_fraction=1.0).fit.kv_pool_bytes
    assert free is not None
    assert fit.kv_pool_bytes == pytest.approx(share * free, abs=1)
    assert (fit.activation_bytes == 0) is (name == "lmdeploy")


def test_what_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(KvtoolError, match="how it shares its pool with the windows, states or indexers of google"):
        plan(CATALOGUE.get("gemma-2-2b"), EngineOptions(name="lmdeploy"), pool_bytes=GIB)
    with pytest.raises(KvtoolError, match=r"--free-memory-fraction 3.0 must be above 0 and at most 1"):
        row(name="lmdeploy", free_memory_fraction=3.0)
