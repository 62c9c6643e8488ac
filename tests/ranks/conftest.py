"""One crew of processes for all tests of ranks, and small random models that they run together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch

from kvtool.catalog.model import Model
from kvtool.engine.config import EngineConfig
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.ranks.lead import RankedModel, ranked_config
from kvtool.engine.ranks.worker import Job, work
from kvtool.engine.sequence import SamplingParams
from kvtool.machine.ranks.crew import Crew
from kvtool.machine.ranks.layout import RankLayout
from tests.ranks.models import MODELS

MAX_POSITIONS, NUM_PAGES, SIZE = 768, 128, 4
CONFIG = EngineConfig(dtype="fp32", device="cpu", threads=1, block_size=4, max_num_batched_tokens=300)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Ranks of tiny models lose more to waiting for each other than threads can win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    """This process and three more; a layout of fewer ranks leaves the others idle."""
    started = Crew(SIZE, work)
    yield started
    started.close()


@pytest.fixture
def ranked(crew: Crew) -> Callable[..., object]:
    """A context in which the model of a name runs on a layout."""

    @contextmanager
    def running(name: str, layout: RankLayout, config: EngineConfig = CONFIG) -> Iterator[RankedModel]:
        job = Job(MODELS[name], ranked_config(config, layout), MAX_POSITIONS, NUM_PAGES)
        loaded = RankedModel(job, crew.seat(layout, "cpu", job), crew)
        try:
            yield loaded
        finally:
            if not crew.is_lost:
                loaded.close()

    return running


def prompts(model: Model) -> list[list[int]]:
    """Two that begin alike, one of a token, one longer than a step may be."""
    generator = torch.Generator().manual_seed(7)

    def drawn(count: int) -> list[int]:
        return torch.randint(min(model.vocab_size or 1, 1000), (count,), generator=generator).tolist()

    shared = drawn(24)
    return [shared + drawn(9), drawn(1), shared + drawn(30), drawn(350)]


def run(loaded: LoadedModel, asked: list[list[int]], max_tokens: int = 6) -> list[list[int]]:
    """Greedy tokens; the second half of the prompts comes while the first decodes, and finds its prefixes."""
    engine = Engine(loaded, num_pages=NUM_PAGES)
    params = SamplingParams(max_tokens=max_tokens)
    half = len(asked) // 2
    sequences = [engine.add(prompt, params) for prompt in asked[:half]]
    engine.step()
    engine.step()
    sequences += [engine.add(prompt, params) for prompt in asked[half:]]
    for _ in engine.run_until_idle():
        engine.cache.check()
    return [sequence.output_ids for sequence in sequences]


@cache
def alone(name: str) -> list[list[int]]:
    """What one process says."""
    loaded = LoadedModel(MODELS[name], CONFIG, max_positions=MAX_POSITIONS, num_pages=NUM_PAGES)
    return run(loaded, prompts(loaded.model))
