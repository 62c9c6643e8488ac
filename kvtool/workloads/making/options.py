"""What a trace is made with, and what each kind takes where nothing was said."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kvtool.system.errors import KvtoolError, did_you_mean

DEFAULTS: dict[str, dict[str, int | float]] = {
    "agents": {"max_len": 65536, "prefix_len": 0, "think_s": 0.0},
    "multi-turn": {"turns": 6, "prefix_len": 512, "input_len": 256, "output_len": 256, "think_s": 30.0},
    "shared-prefix": {"prefixes": 10, "zipf": 1.0, "prefix_len": 4096, "input_len": 256, "output_len": 128},
    "zipf": {"prefixes": 1000, "zipf": 1.0, "input_len": 4096, "output_len": 128},
    "ranking": {"items": 50, "prefix_len": 2048, "input_len": 32, "output_len": 1},
}
MEANING = {
    "agents": "coding agents with the statistics of DualPath (arXiv 2602.21548), at the longest length nearest to it",
    "multi-turn": "conversations behind a common system prompt, turns and lengths exponential about their means",
    "shared-prefix": "questions behind prefixes, of which some are asked for far more than others",
    "zipf": "whole prompts that come again, some far more than others",
    "ranking": "a recommender: the history of one user before each of many items",
}


@dataclass(frozen=True, kw_only=True)
class Making:
    """Lengths in tokens, times in seconds. None takes the kind's own; what a kind does not have stays None."""

    kind: str
    num_sessions: int = 100
    block_size: int = 64
    turns: int | None = None
    input_len: int | None = None
    output_len: int | None = None
    prefix_len: int | None = None
    max_len: int | None = None
    prefixes: int | None = None
    zipf: float | None = None
    items: int | None = None
    think_s: float | None = None
    request_rate: float | None = None
    burstiness: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in DEFAULTS:
            raise KvtoolError(
                f"kind {self.kind!r} is not one of {', '.join(DEFAULTS)}{did_you_mean(self.kind, DEFAULTS)}"
            )
        for name in ("num_sessions", "block_size", "turns", "input_len", "output_len", "max_len", "prefixes", "items"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise KvtoolError(f"--{name.replace('_', '-')} {value} must be at least 1")
        for name in ("prefix_len", "zipf", "think_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise KvtoolError(f"--{name.replace('_s', '-time').replace('_', '-')} {value:g} must be 0 or more")

    def filled(self) -> Making:
        """With the kind's own values where none were given. Raises KvtoolError for an option that it does not have."""
        own = DEFAULTS[self.kind]
        known = {name for values in DEFAULTS.values() for name in values}
        for name in sorted(known - own.keys()):
            if getattr(self, name) is not None:
                flag = "think-time" if name == "think_s" else name.replace("_", "-")
                has = ", ".join(kind for kind, values in DEFAULTS.items() if name in values)
                raise KvtoolError(f"--{flag} is not of {self.kind}, but of {has}")
        missing: dict[str, Any] = {name: value for name, value in own.items() if getattr(self, name) is None}
        return replace(self, **missing)
