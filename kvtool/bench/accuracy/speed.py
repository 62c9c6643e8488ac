"""How long a decode step takes with each format over growing contexts, and how long it takes to store K and V.

What pages hold does not change the time, so contexts are not computed: pages are taken, and steps decode behind them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from kvtool.bench.accuracy.methods import Method, held_bytes
from kvtool.engine.batch import StepBatch
from kvtool.engine.loaded import LoadedModel
from kvtool.kernels.packed.kivi import KiviPages
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows
from kvtool.machine.pace import Budget
from kvtool.sizing.specs import HeadsSpec

STORED_TOKENS = 256  # at once
STORE_TURNS = 5
TURNS = 4  # where nothing is trimmed
# That tell an error, that tell a small one, and while time is left.
LEAST_TURNS, PLANNED_TURNS, MOST_TURNS = 2, 12, 64
LOOKS = (4, 8, 16, 32)  # turns after which one looks who needs no more of them: to look often is to find by chance


@dataclass(frozen=True, slots=True)
class Timed:
    """Of one method: µs to store a token in all layers; by context ITL in ms, a value a turn, and the bytes held."""

    store_us: float | None
    itl_ms: list[list[float]]
    held: list[int]


@dataclass(frozen=True, slots=True)
class Behind:
    """A decode step of one token behind others: all layers of a cache, and the rows."""

    method: Method
    layers: list[Pages]
    batch: StepBatch

    def seconds(self) -> float:
        """That the step takes, until its token is on the host."""
        start_s = time.perf_counter()
        logits = self.method.loaded.transformer(self.batch, self.layers, self.method.kernels)
        int(logits.argmax())
        return time.perf_counter() - start_s


def in_dtype_of_cache(loaded: LoadedModel, *, max_positions: int) -> LoadedModel:
    """The model as people run it: in the 16 bits of the reference's cache where errors were told apart in fp32. Raises
    DeviceError where there is no room for it beside."""
    dtype = loaded.cache_format.name
    if dtype == loaded.dtype and max_positions <= loaded.max_positions:
        return loaded
    config = replace(loaded.config, dtype=dtype, kv_cache_dtype="auto", num_layers=None)
    return LoadedModel(loaded.model, config, max_positions=max_positions)


def timed(
    methods: Sequence[Method],
    contexts: Sequence[int],
    budget: Budget,
    answered: Callable[[Timed, Timed], bool],
) -> list[Timed]:
    """All methods in turns, a turn being every context of every method: what slows the machine for a while slows the
    whole of a line. TURNS where the budget trims nothing; else as many as there is time for, and after a few of them
    those methods leave theirs to the others of which enough is `answered` beside the first."""
    found = [
        Timed(store_us(method), [[] for _ in contexts], [_held(method, context) for context in contexts])
        for method in methods
    ]
    turns = [
        [(result, at, step) for at, step in enumerate(_steps(method, contexts))]
        for result, method in zip(found, methods, strict=True)
    ]
    for of_method in turns:
        for _, _, step in of_method:
            step.seconds()  # allocates, compiles
    took_s = 0.0
    for turn in range(MOST_TURNS if budget.trims else TURNS):
        if budget.trims and turn in LOOKS:
            turns = [each for each in turns if each[0][0] is found[0] or not answered(each[0][0], found[0])]
        if len(turns) == 1 or (turn >= LEAST_TURNS and budget.times(took_s) < 1):
            break
        start_s = budget.clock()
        steps = [step for of_method in turns for step in of_method]
        for result, at, step in steps if turn % 2 == 0 else reversed(steps):
            result.itl_ms[at].append(step.seconds() * 1e3)
        took_s = budget.clock() - start_s
    return found


def _held(method: Method, context: int) -> int:
    """Bytes of the tensors of a cache of so many tokens, which is made for that and goes again."""
    return held_bytes(_filled(method, context))


def _steps(method: Method, contexts: Sequence[int]) -> list[Behind]:
    """One at each context. The longest has the pages for all of them, but for a cache that grows without pages."""
    whole = None if method.step_tokens else method.held(max(contexts))
    return [Behind(method, whole or _filled(method, context), _batch(method, context)) for context in contexts]


def _batch(method: Method, context: int) -> StepBatch:
    """Of the token that is the last of `context`."""
    table, last = method.table(context), context - 1
    block_size, device = method.loaded.config.block_size, method.loaded.device
    return StepBatch(
        token_ids=torch.zeros(1, dtype=torch.int64, device=device),
        positions=torch.tensor([last], device=device),
        slots=torch.tensor([table[last // block_size] * block_size + last % block_size], device=device),
        decode=Rows(
            block_tables=torch.tensor([table], dtype=torch.int32, device=device),
            seq_lens=torch.tensor([context], dtype=torch.int32, device=device),
            query_starts=torch.tensor([0, 1], dtype=torch.int32, device=device),
            max_query_len=1,
        ),
        prefill=None,
        sample_rows=None,
    )


def _filled(method: Method, context: int) -> list[Pages]:
    """The layers of a cache of so many tokens. One that grows without pages grows once, and is copied."""
    layers = method.held(context)
    grown: KiviPages | None = None
    for index, pages in enumerate(layers):
        if isinstance(pages, KiviPages):
            grown = grown or _grown(pages, method, index, context)
            layers[index] = grown.copy()
    return layers


def _grown(pages: KiviPages, method: Method, index: int, tokens: int) -> KiviPages:
    spec = method.specs[index]
    assert isinstance(spec, HeadsSpec)
    for start in range(0, tokens, pages.group):
        size = min(pages.group, tokens - start)
        k, v = (
            torch.randn(size, spec.kv_heads, dim, device=method.loaded.device)
            for dim in (spec.k_head_dim, spec.v_head_dim)
        )
        pages.write(k, v, torch.zeros(0, dtype=torch.int64))
    return pages


def store_us(method: Method) -> float | None:
    """To store a token in all layers: the median over turns of many tokens at once in the last; None of latents."""
    spec, index = method.specs[-1], len(method.specs) - 1
    if not isinstance(spec, HeadsSpec):
        return None
    count = method.step_tokens or STORED_TOKENS
    loaded = method.loaded
    k, v = (
        torch.randn(count, spec.kv_heads, dim).to(loaded.device, loaded.torch_dtype)
        for dim in (spec.k_head_dim, spec.v_head_dim)
    )
    slots, seconds = torch.arange(count, device=loaded.device), []
    for _ in range(1 + STORE_TURNS):
        pages = method.layer(index, count)
        start_s = time.perf_counter()
        method.kernels.store(k, v, pages, slots)
        if isinstance(pages, KiviPages):
            pages.settle()
        if loaded.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start_s)
    return median(seconds[1:]) / count * len(method.specs) * 1e6
