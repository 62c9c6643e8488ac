"""The text of /metrics: counters and labels by their names, and which of them say what of a prefix cache."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
MOST_LINES = 100_000


@dataclass(frozen=True, slots=True)
class Page:
    """`values` are summed over all label sets of a name; `labels` are those of its first sample."""

    values: Mapping[str, float]
    labels: Mapping[str, Mapping[str, str]]

    def total(self, names: tuple[str, ...]) -> int | None:
        """The sum of counters, None where the page has none of them."""
        found = [self.values[name] for name in names if name in self.values]
        return round(sum(found)) if found else None


def parse_page(text: str) -> Page:
    """Lines that are no samples are left out, as are values that are no finite number."""
    values: dict[str, float] = {}
    labels: dict[str, dict[str, str]] = {}
    for line in text.splitlines()[:MOST_LINES]:
        match = _SAMPLE.match(line)
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if abs(value) < 1e18:
            values[match[1]] = values.get(match[1], 0.0) + value
            labels.setdefault(match[1], dict(_LABEL.findall(match[2] or "")))
    return Page(values, labels)


@dataclass(frozen=True, slots=True)
class Counters:
    """Names of an engine's counters: prompt tokens, those of them that were found, and requests that gave way. What is
    the sum of several has several names."""

    prompt: tuple[str, ...]
    hits: tuple[str, ...]
    preemptions: tuple[str, ...] = ()


ENGINES = {
    "vllm": Counters(
        prompt=("vllm:prompt_tokens_total",),
        hits=("vllm:prefix_cache_hits_total", "vllm:external_prefix_cache_hits_total"),
        preemptions=("vllm:num_preemptions_total",),
    ),
    "sglang": Counters(
        prompt=("sglang:prompt_tokens_total",),
        hits=("sglang:cached_tokens_total",),
        preemptions=("sglang:num_retracted_requests_total",),
    ),
    "llama.cpp": Counters(
        prompt=("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),
        hits=("llamacpp:prompt_tokens_cached_total",),
    ),
}


@dataclass(frozen=True, slots=True)
class Counted:
    """What a server's counters say of the time between two pages. None: it has no such counter."""

    prompt_tokens: int | None
    hit_tokens: int | None
    preemptions: int | None


def counted(engine: str, before: Page, after: Page) -> Counted:
    """The counters' growth. A counter that fell belongs to a server that was started again: it says nothing."""
    names = ENGINES.get(engine, Counters((), ()))

    def growth(counters: tuple[str, ...]) -> int | None:
        then, now = before.total(counters), after.total(counters)
        if now is None:  # a counter with labels is on the page from its first count on
            return 0 if counters and after.total(names.prompt) is not None and counters == names.hits else None
        grown = now - (then or 0)
        return grown if grown >= 0 else None

    return Counted(growth(names.prompt), growth(names.hits), growth(names.preemptions))
