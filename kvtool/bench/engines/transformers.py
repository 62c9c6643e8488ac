"""transformers' `generate`, which grows its cache by a token a step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvtool.bench.engines.checkpoint import Checkpoint
from kvtool.bench.engines.engine import Answers
from kvtool.bench.peers import distribution_version


def version() -> str | None:
    return distribution_version("transformers")


def start(checkpoint: Checkpoint) -> Generate:
    return Generate(checkpoint.in_transformers)


class TokenTimes:
    """A streamer of `generate`: seconds on the wall at which the tokens of each step are on the CPU."""

    def __init__(self) -> None:
        self.steps_s: list[float] = []
        self._saw_prompts = False

    def put(self, tokens: Tensor) -> None:
        if self._saw_prompts:
            self.steps_s.append(time.perf_counter())
        self._saw_prompts = True

    def end(self) -> None:
        pass


class Generate:
    """`cache` is generate's cache_implementation, None its own choice."""

    def __init__(self, model: Any, *, cache: str | None = None, note: str = "") -> None:
        self.model, self.cache, self.note = model, cache, note

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Answers:
        times = TokenTimes()
        start_s = time.perf_counter()
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.model.device)
        rows = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=output_len,
            do_sample=False,
            streamer=times,
            **({"cache_implementation": self.cache} if self.cache else {}),
        )
        first, last = times.steps_s[0], times.steps_s[-1]
        return Answers(first_s=first - start_s, last_s=last - start_s, output_ids=rows[:, ids.shape[1] :].tolist())

    def close(self) -> None:
        """The model is shared with the other ways to generate."""
