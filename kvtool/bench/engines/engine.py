"""What a peer implements: a whole engine that generates on our weights and prompts. The modules beside are peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from kvtool.results import tpot_s

if TYPE_CHECKING:
    from kvtool.bench.engines.checkpoint import Checkpoint

ENGINE_PEERS = ("transformers", "transformers-static", "transformers-paged", "vllm", "sglang")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A batch, generated greedily: seconds until every prompt has its first token, and until all have their last.

    `output_ids` are in the order of the prompts.
    """

    first_s: float
    last_s: float
    output_ids: list[list[int]]

    @property
    def tpot_s(self) -> float | None:
        """Of the whole batch."""
        return tpot_s(self.first_s, self.last_s, len(self.output_ids[0]))


class RunningEngine(Protocol):
    """An engine with the weights in it. `note` tells how it runs, or what its times do not hold."""

    note: str

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Answers:
        """Exactly `output_len` tokens for each prompt, all submitted at once. Raises whatever the library raises."""

    def close(self) -> None:
        """Give its memory back."""


class EnginePeer(Protocol):
    """One library that generates."""

    def version(self) -> str | None:
        """Of the library, None where it does not tell."""

    def start(self, checkpoint: Checkpoint) -> RunningEngine:
        """Load the weights. Raises PeerError, or whatever the library raises."""


def load_engine_peer(name: str) -> EnginePeer:
    """The module of this peer. Its library is not imported yet."""
    return cast(EnginePeer, import_module(f"{__package__}.{name.replace('-', '_')}"))
