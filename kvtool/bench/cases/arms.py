"""Four ways to keep K and V while generating, each really run by the same decoder and kernels.

no_cache      nothing is kept: every step computes the whole sequence again
contiguous    one tensor a sequence, grown by concatenation: every step copies what is there
preallocated  one tensor a sequence of the maximum length: nothing is copied, most of it stays empty
paged         pages of `block_size` tokens, taken as they are needed
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvtool.engine.batch import StepBatch
from kvtool.engine.engine import Engine
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.pool import KvPool
from kvtool.engine.sequence import SamplingParams
from kvtool.kernels.pages import Pages
from kvtool.kernels.rows import Rows
from kvtool.units import ceil_div

ARMS = ("no_cache", "contiguous", "preallocated", "paged")


@dataclass(frozen=True, slots=True)
class Generated:
    """One generation: token times on the clock since its start, its tokens and logits, and the K/V held at the end."""

    times_s: list[float]
    output_ids: list[int]
    logits: list[Tensor]
    kv_bytes: int


def generate(loaded: LoadedModel, arm: str, prompt_ids: list[int], output_len: int, *, max_tokens: int) -> Generated:
    """`output_len` greedy tokens after the prompt; `max_tokens` is what `preallocated` reserves."""
    if arm == "paged":
        return _paged(loaded, prompt_ids, output_len)
    if arm == "no_cache":
        return _without_cache(loaded, prompt_ids, output_len)
    return _contiguous(loaded, prompt_ids, output_len, room=max_tokens if arm == "preallocated" else None)


def _paged(loaded: LoadedModel, prompt_ids: list[int], output_len: int) -> Generated:
    config = replace(loaded.config, graphs=False)  # launched as the other arms are: only the cache differs
    num_pages = ceil_div(len(prompt_ids) + output_len - 1, config.block_size)
    engine = Engine(loaded, num_pages=num_pages, config=config)
    engine.keep_logits = True
    sequence = engine.add(prompt_ids, SamplingParams(max_tokens=output_len))
    for _ in engine.run_until_idle():
        pass
    times_s = [time_s - sequence.arrival_s for time_s in sequence.token_times_s]
    kv_bytes = engine.cache.counters().peak_pages * engine.pool.page_bytes
    return Generated(times_s, sequence.output_ids, sequence.logits, kv_bytes)


def _without_cache(loaded: LoadedModel, prompt_ids: list[int], output_len: int) -> Generated:
    config = replace(loaded.config, prefix_caching=False)
    engine = Engine(loaded, num_pages=ceil_div(len(prompt_ids) + output_len, config.block_size), config=config)
    engine.keep_logits = True
    token_ids, times_s, logits = list(prompt_ids), [], []
    start_s = engine.clock()
    for _ in range(output_len):
        sequence = engine.add(token_ids, SamplingParams(max_tokens=1))
        engine.step()
        token_ids.append(sequence.output_ids[0])
        times_s.append(engine.clock() - start_s)
        logits.append(sequence.logits[0])
    return Generated(times_s, token_ids[len(prompt_ids) :], logits, kv_bytes=0)


def _contiguous(loaded: LoadedModel, prompt_ids: list[int], output_len: int, *, room: int | None) -> Generated:
    """One page that holds the whole sequence: of `room` tokens, or grown to each new length."""
    cache = KvPool(loaded.specs, 1, room or len(prompt_ids), loaded.device, loaded.amax)
    layers = cache.layers
    token_ids, times_s, logits = list(prompt_ids), [], []
    start_s = time.perf_counter()
    computed = 0
    for _ in range(output_len):
        if room is None and computed:
            layers = [_grown(layer) for layer in layers]
        batch = _one_sequence(token_ids, computed, loaded.device)
        row = loaded.transformer(batch, layers, loaded.kernels)[0]
        computed = len(token_ids)
        token_ids.append(int(row.argmax()))
        times_s.append(time.perf_counter() - start_s)
        logits.append(row)
    held = sum(t.numel() * t.element_size() for layer in layers for t in layer.tensors)
    return Generated(times_s, token_ids[len(prompt_ids) :], logits, held)


def _grown(layer: Pages) -> Pages:
    """Room for one more token: a new tensor, and everything copied into it."""
    return layer.map(lambda tensor: torch.cat((tensor, torch.zeros_like(tensor[:, :1])), dim=1))


def _one_sequence(token_ids: list[int], computed: int, device: torch.device) -> StepBatch:
    """A step over the tokens that are not computed yet, in the one page of a contiguous cache."""
    positions = torch.arange(computed, len(token_ids), device=device)
    num_tokens = len(token_ids) - computed
    rows = Rows(
        block_tables=torch.zeros(1, 1, dtype=torch.int32, device=device),
        seq_lens=torch.tensor([len(token_ids)], dtype=torch.int32, device=device),
        query_starts=torch.tensor([0, num_tokens], dtype=torch.int32, device=device),
        max_query_len=num_tokens,
    )
    is_decode = computed > 0
    return StepBatch(
        token_ids=torch.tensor(token_ids[computed:], device=device),
        positions=positions,
        slots=positions,
        decode=rows if is_decode else None,
        prefill=None if is_decode else rows,
        sample_rows=torch.tensor([num_tokens - 1], device=device),
        prefill_pages=([0],),
    )
