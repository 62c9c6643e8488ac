"""What the inverse question tries: layouts, cache dtypes, formats of weights, and other starts than an engine's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from kvtool.catalog.model import Model
from kvtool.sizing.dtypes import AUTO, canonical_dtype
from kvtool.sizing.fit import MAX_BATCH_SIZE, free_share
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.parallel import Parallel
from kvtool.sizing.solve.layouts import layouts_of
from kvtool.system.errors import KvtoolError

OTHER_WEIGHTS = ("fp8", "int4")  # least lossy first
LARGER_SHARE, FEWER_TOKENS = 0.95, 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked; None or True is what is to be found. `loads` is what an engine would load; of an open start
    the share of the card and the batched tokens may be others than the engine's own.
    """

    users: int | None
    context: int | None
    open_gpus: bool
    open_pp: bool
    open_dtype: bool
    loads: str | None
    open_weights: bool = False
    open_start: bool = False

    def __post_init__(self) -> None:
        if self.users is None and self.context is None:
            raise KvtoolError("--users max and an open context leave too much open: give --users N or --context TOKENS")
        if self.users is not None and not 1 <= self.users <= MAX_BATCH_SIZE:
            raise KvtoolError(f"users {self.users} must be from 1 to {MAX_BATCH_SIZE}, or max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One layout with one cache dtype. None is what was asked for, or an engine's own."""

    parallel: Parallel
    kv_cache_dtype: str
    weight_dtype: str | None = None
    gpu_memory_utilization: float | None = None
    max_num_batched_tokens: int | None = None

    @property
    def is_tuned(self) -> bool:
        """Whether the engine is told what it would choose otherwise."""
        return self.gpu_memory_utilization is not None or self.max_num_batched_tokens is not None

    def options(self, asked: SizeOptions) -> SizeOptions:
        """The options asked for, at this setting."""
        flags = {"gpu_memory_utilization": self.gpu_memory_utilization} if self.gpu_memory_utilization else {}
        told = asked.started_with(**flags)
        return replace(
            told,
            parallel=self.parallel,
            kv_cache_dtypes=(self.kv_cache_dtype,),
            weight_dtype=self.weight_dtype or asked.weight_dtype,
            max_num_batched_tokens=self.max_num_batched_tokens or asked.max_num_batched_tokens,
        )


def settings(model: Model, options: SizeOptions, question: Question) -> Iterator[Setting]:
    """Each layout with each cache dtype, as the engine would start by itself. Raises KvtoolError for no layout."""
    dtypes = options.kv_cache_dtypes
    if question.open_dtype:
        own = canonical_dtype(model.dtype or "bf16")
        dtypes = ("bf16" if own == "fp32" else AUTO, "fp8")
    layouts = layouts_of(model, options, open_pp=question.open_pp) if question.open_gpus else [options.parallel]
    for layout in layouts:
        for dtype in dtypes:
            yield Setting(parallel=layout, kv_cache_dtype=dtype)


def tuned(setting: Setting, options: SizeOptions, users: int) -> Setting | None:
    """The setting with a larger share of the card and fewer tokens a step, where they are free to choose; None where
    neither is.
    """
    share = tokens = None
    if options.gpu is not None and options.gpu_memory_utilization is None and free_share(options.gpu) >= LARGER_SHARE:
        share = LARGER_SHARE
    if options.max_num_batched_tokens is None and users <= FEWER_TOKENS:
        tokens = FEWER_TOKENS
    if share is None and tokens is None:
        return None
    return replace(setting, gpu_memory_utilization=share, max_num_batched_tokens=tokens)
