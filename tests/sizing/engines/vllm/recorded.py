"""Plans that vLLM 0.33.0's own code made: its model classes on the meta device, its grouping, its planning functions.

`tests/data/vllm_plans.jsonl`: column names, then a case a line. A group is [how many alike in a row, kind, kinds of its
layers (0: just that), layers, tokens a block, page bytes of a layer, of all, blocks a request, layer indices (some)].
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kvtool.catalog.gpus import find_gpu
from kvtool.catalog.hf_config import read_config
from kvtool.catalog.model import Model
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.parallel import Parallel

DATA = Path(__file__).parents[3] / "data"


@dataclass(frozen=True)
class Case:
    """`expected` has the columns of the plan by name."""

    config: str
    tag: str
    gpu: str
    pool_bytes: int
    flags: dict[str, Any]
    expected: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.config}-{self.tag}-{self.gpu}-{self.pool_bytes}-{self.flags}"

    @property
    def fits(self) -> bool:
        return bool(self.expected["max_concurrency"])

    @property
    def model(self) -> Model:
        return _model(self.config)

    @property
    def options(self) -> EngineOptions:
        flags = dict(self.flags)
        parallel = Parallel(**{name: flags.pop(name, 1) for name in ("tp", "pp", "dcp")})
        card = {"H100": "H100-SXM-80GB", "A100": "A100-SXM-80GB"}[self.gpu]
        return EngineOptions(
            name="vllm",
            parallel=parallel,
            gpu=find_gpu(card),
            kv_cache_memory_bytes=self.pool_bytes,
            **flags,
        )


@cache
def cases() -> list[Case]:
    """All of them."""
    columns, *lines = [json.loads(line) for line in (DATA / "vllm_plans.jsonl").read_text().splitlines()]
    return [Case(*line[:5], expected=dict(zip(columns[5:], line[5:], strict=True))) for line in lines]


@cache
def _model(name: str) -> Model:
    return read_config(DATA / "vllm_configs" / f"{name}.json")
