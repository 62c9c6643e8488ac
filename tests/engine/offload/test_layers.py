"""What lies below comes up layer by layer: the first layers compute before the last are there, and none too early."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event

import pytest
import torch

from kvtool.cache.tiers.options import parse_tiers
from kvtool.engine.engine import Engine
from kvtool.engine.offload.copies import PageCopies, grouped
from kvtool.engine.sequence import SamplingParams
from kvtool.kernels.pages import Pages
from tests.engine.conftest import SaveTiny
from tests.engine.running import engine_of, load, prompt

DEADLOCK_S = 60.0  # nobody waits so long but where nothing can go on


def served(engine: Engine) -> list[int]:
    sequence = engine.add(prompt(40), SamplingParams(max_tokens=3))
    list(engine.run_until_idle())
    return sequence.output_ids


@pytest.mark.parametrize("name", ["llama-3-gqa", "deepseek-v3"])
def test_the_first_layer_computes_before_the_last_has_come(
    tiny: SaveTiny, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The last layer's pages are held back until the first layer has computed: were they waited for, it never would."""
    loaded = load(tiny(name).folder, block_size=4)
    engine = engine_of(loaded, tiers=parse_tiers("dram=1MiB"))
    expected = served(engine)
    engine.cache.reset()
    for layer in engine.pool.layers:
        for tensor in layer.tensors:
            tensor.fill_(torch.nan)
    assert engine.offload is not None
    copies, computed, in_time = engine.offload.stack._copies, Event(), []
    first, *others = loaded.transformer.layers
    move = copies._move_on_host

    def held_back(parts: Sequence[int], slots: Sequence[int], pages: Sequence[int]) -> None:
        if list(parts) == copies._groups[-1]:
            in_time.append(computed.wait(DEADLOCK_S))
        move(parts, slots, pages)

    def first_layer(*args: object) -> object:
        stream = first(*args)
        computed.set()
        return stream

    monkeypatch.setattr(copies, "_move_on_host", held_back)
    monkeypatch.setattr(loaded.transformer, "layers", [first_layer, *others])
    assert served(engine) == expected
    assert in_time == [True]
    assert engine.tiers()[0].hit_tokens == 36
    engine.offload.stack.check()
    engine.close()


class NoEvent:
    """In place of a GPU's."""

    def __init__(self, **_: bool) -> None:
        pass

    def record(self, stream: object) -> None:
        pass


@pytest.mark.parametrize("together", [1, 2, 3])
def test_a_gpu_is_sent_the_same_bytes_however_many_layers_go_together(
    monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """What the copying thread does there, but for its streams; `together` layers are one copy."""
    layers = [Pages(torch.randn(9, 4, 2, 8), torch.randn(9, 4, 2, 16), torch.randn(9, 4, 2)) for _ in range(3)]
    before = [tensor.clone() for layer in layers for tensor in layer.tensors]
    page_bytes = sum(tensor[0].numel() * 4 for tensor in before)
    copies = PageCopies(layers, torch.zeros(12, page_bytes, dtype=torch.uint8))
    copies.down([5, 0, 3, 8], [7, 8, 2, 11])()
    for layer in layers:
        for tensor in layer.tensors:
            tensor.zero_()
    monkeypatch.setattr(torch.cuda, "Event", NoEvent)
    parts = list(range(9))
    for first in range(0, 9, 3 * together):
        copies._move_to_device(parts[first : first + 3 * together], [2, 7, 8, 11], [3, 5, 1, 8])
    after = [tensor for layer in layers for tensor in layer.tensors]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[[3, 5, 1, 8]], old[[3, 5, 0, 8]])
        assert not new[[0, 2, 4, 6, 7]].any()
    copies.close()


def test_layers_come_together_where_one_is_too_small_a_copy() -> None:
    assert grouped([0, 0, 1, 1, 2, 2], [3] * 6, least_bytes=1) == [0, 1, 2]
    assert grouped([0, 0, 1, 1, 2, 2], [3] * 6, least_bytes=7) == [0, 0, 1]
    assert grouped([0, 1, 2, 3], [9, 1, 1, 1], least_bytes=2) == [0, 1, 1, 2]
