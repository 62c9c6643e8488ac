"""Which tool wrote a JSON value, by its shape, and its reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvtool.compare.foreign.aiperf import is_aiperf, read_aiperf
from kvtool.compare.foreign.base import Foreign
from kvtool.compare.foreign.guidellm import is_guidellm, read_guidellm
from kvtool.compare.foreign.llama_bench import is_llama_bench, read_llama_bench
from kvtool.compare.foreign.vllm_serve import is_vllm_serve, read_vllm_serve

READERS: tuple[tuple[Callable[[Any], bool], Callable[[Any, str], Foreign]], ...] = (
    (is_vllm_serve, read_vllm_serve),
    (is_guidellm, read_guidellm),
    (is_aiperf, read_aiperf),
    (is_llama_bench, read_llama_bench),
)


def is_foreign(found: Any) -> bool:
    """Whether one of the readers knows it."""
    return any(knows(found) for knows, _ in READERS)


def read_foreign(found: Any, where: str) -> Foreign:
    """Its cases under our definitions; `where` names the file. Raises KvtoolError."""
    return next(read(found, where) for knows, read in READERS if knows(found))
