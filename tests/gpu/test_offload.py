"""Tiers below a pool on a GPU: pinned slots, streams of their own, and layers that are waited for on the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from kvtool.cache.tiers.options import parse_tiers
from kvtool.catalog.resolve import resolve_model
from kvtool.engine.config import EngineConfig
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.offload.copies import LEAST_COPY_BYTES, PageCopies
from kvtool.engine.offload.page_io import StripeSums
from kvtool.kernels.pages import Pages
from tests.engine.offload import fake_kvikio
from tests.engine.requests import Request, run
from tests.engine.running import engine_of, prompt
from tests.engine.tiny import MAX_POSITIONS, Reference, save_tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LAYERS, NUM_PAGES, WIDTH = 4, 8, 128
AGAIN = [Request(prompt(60, seed), 8, arrival=200 * turn) for turn in range(2) for seed in range(3)]
SPIN_CYCLES = 200_000_000  # of a GPU: a tenth of a second


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    return cache(lambda name: save_tiny(name, tmp_path_factory.mktemp(name)))


def sides(tokens: int) -> tuple[list[Pages], PageCopies, torch.Tensor]:
    """A pool of random K and V on the GPU, and slots for all of it."""
    draw = torch.Generator("cuda").manual_seed(0)
    shape = (NUM_PAGES, tokens, 2, WIDTH)
    layers = [Pages(*(torch.randn(shape, device="cuda", generator=draw) for _ in range(2))) for _ in range(LAYERS)]
    page_bytes = sum(tensor[0].numel() * 4 for layer in layers for tensor in layer.tensors)
    slots = torch.empty(NUM_PAGES, page_bytes, dtype=torch.uint8, pin_memory=True)
    return layers, PageCopies(layers, slots), slots


@pytest.mark.parametrize("tokens", [16, 256])
def test_pages_go_down_and_come_up_the_same(tokens: int) -> None:
    """Small pages come up whole, large ones by layers; the pages may be overwritten once the copy down has begun."""
    layers, copies, slots = sides(tokens)
    groups = 1 + max(copies._group_of)
    assert slots.is_pinned()
    assert groups == (1 if slots.shape[1] < 2 * LEAST_COPY_BYTES else LAYERS)
    before = [tensor.clone() for layer in layers for tensor in layer.tensors]
    ready = copies.down([5, 0, 3], [7, 6, 2])
    for layer in layers:
        for tensor in layer.tensors:
            tensor.zero_()
    ready()
    arrival = copies.up([7, 2, 6], [1, 4, 2])
    after = []
    for index, layer in enumerate(layers):
        arrival.wait(index)
        after += [tensor.clone() for tensor in layer.tensors]  # by the stream that waits for this layer alone
    assert arrival.finish() >= 0.0
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[[1, 4, 2]], old[[5, 3, 0]])
        assert not new[[0, 3, 5, 6, 7]].any()
    copies.close()


def test_a_page_is_not_overwritten_while_what_is_computed_still_reads_it() -> None:
    layers, copies, slots = sides(256)
    slots.zero_()
    before = layers[0].k[3].clone()
    torch.cuda._sleep(SPIN_CYCLES)
    read = layers[0].k[3] + 0.0  # behind the sleep, on the stream that computes
    arrival = copies.up([0], [3])
    arrival.wait(LAYERS - 1)
    assert arrival.finish() >= 0.0
    assert torch.equal(read, before)
    assert not layers[0].k[3].any()
    copies.close()


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("tiers", ["dram=4MiB", "disk={}:4MiB", "dram=64KiB,disk={}:4MiB", "disk={}:4MiB,kvikio"])
@pytest.mark.parametrize("name", ["llama-3-gqa", "deepseek-v2-lite"])
def test_tokens_are_those_without_tiers(
    tiny: Callable[[str], Reference],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    tiers: str,
    graphs: bool,
) -> None:
    """A pool of two prompts serves three, twice: the second time all of them come from below."""
    fake_kvikio.install(monkeypatch)
    folder = str(tiny(name).folder)
    config = EngineConfig(weights=folder, dtype="fp32", device="cuda", backend="triton", block_size=4, graphs=graphs)
    loaded = LoadedModel(resolve_model(folder), config, max_positions=MAX_POSITIONS)
    expected = [sequence.output_ids for sequence in run(engine_of(loaded, num_pages=36), AGAIN)]
    engine = engine_of(loaded, num_pages=36, tiers=parse_tiers(tiers.format(tmp_path)))
    assert engine.offload is not None
    slots = engine.offload.stack.host.slots
    assert slots.is_cuda if "kvikio" in tiers else slots.is_pinned()
    assert [sequence.output_ids for sequence in run(engine, AGAIN)] == expected
    assert sum(tier.hit_tokens for tier in engine.tiers()) > 0
    engine.offload.stack.check()
    engine.close()
    assert loaded.notices.lines == []


def test_a_gpu_sums_a_page_up_as_a_cpu_does() -> None:
    page = torch.randint(0, 256, (3 * 65_536 + 48,), dtype=torch.uint8)
    on_cpu, on_gpu = (StripeSums(65_536, torch.device(name)).of(page.to(name)) for name in ("cpu", "cuda"))
    assert on_cpu == on_gpu


def test_pages_by_kvikio_itself(tiny: Callable[[str], Reference], tmp_path: Path) -> None:
    """Where it is installed, with GPUDirect Storage or without."""
    pytest.importorskip("kvikio")
    folder = str(tiny("llama-3-gqa").folder)
    config = EngineConfig(weights=folder, dtype="fp32", device="cuda", backend="triton", block_size=4)
    loaded = LoadedModel(resolve_model(folder), config, max_positions=MAX_POSITIONS)
    expected = [sequence.output_ids for sequence in run(engine_of(loaded, num_pages=36), AGAIN)]
    engine = engine_of(loaded, num_pages=36, tiers=parse_tiers(f"disk={tmp_path}:4MiB,kvikio"))
    assert [sequence.output_ids for sequence in run(engine, AGAIN)] == expected
    assert engine.tiers()[0].hit_tokens > 0
    engine.close()
    assert loaded.notices.lines == []
