"""Tiny models, saved once and shared by all tests of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch

from tests.engine.tiny import Reference, save_tiny

SaveTiny = Callable[[str], Reference]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Products this small lose more to waiting for each other than threads can win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SaveTiny:
    """The tiny model of a name in `CONFIGS`: its folder, and transformers' logits of it."""
    return cache(lambda name: save_tiny(name, tmp_path_factory.mktemp(name)))
