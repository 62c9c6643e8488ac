"""LMDeploy's log: the blocks of TurboMind's cache. Texts as in src/turbomind/models/llama/BlockManager.cc."""

from __future__ import annotations

from collections.abc import Iterable

from kvtool.verify.facts import LogFacts
from kvtool.verify.patterns import collect, facts, template

PATTERNS = (
    template("TurbomindEngineConfig{args:items}", starts=True),
    template("[BlockManager] block_size = {block:floormib} MB"),
    template("[BlockManager] max_block_count = {num_blocks:count}"),
)


def read_lmdeploy_log(windows: Iterable[tuple[str, str]]) -> LogFacts | None:
    """What LMDeploy logged; None where no line is its own."""
    return facts("lmdeploy", collect(windows, PATTERNS), model_flags=("model_path", "model_name"))
