"""Where the blocks that vLLM reserves for one request go: its tokens and states, and what is spent beside them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from kvtool.sizing.engines.vllm.grouping import Group
from kvtool.sizing.engines.vllm.inputs import Inputs, has_state
from kvtool.sizing.engines.vllm.layers import CROSS, FULL, MLA, STATE, LayerCache
from kvtool.sizing.engines.vllm.plan import VllmPlan
from kvtool.sizing.layers import specs_by_layer
from kvtool.units import ceil_div

LOGICAL, REPLICAS, IN_FLIGHT = "tokens and states", "copies on tp ranks", "in flight beside windows"
PROMOTED, STATE_COPIES, ENCODER = "windows kept as full", "states for prefix caching", "encoder reserve"
DRAFTS = "drafts"
TAILS, PAGE_PADDING, STATE_PADDING = "page tails", "padding of pages", "padding of state pages"
GROUP_PADDING, NULL_BLOCK = "padding of groups", "null block"
_ORDER = (
    *(LOGICAL, REPLICAS, IN_FLIGHT, PROMOTED, STATE_COPIES, DRAFTS, ENCODER),
    *(TAILS, PAGE_PADDING, STATE_PADDING, GROUP_PADDING, NULL_BLOCK),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """Bytes on all GPUs of one replica, and their part of everything reserved. `remedy` would make them fewer."""

    term: str
    bytes: int
    ratio: float
    remedy: str | None


def ledger(plan: VllmPlan, tokens: int) -> list[Term]:
    """The terms of a request of `tokens` tokens, in a fixed order; they add up to its blocks and the null block."""
    found = Counter(_per_rank(plan, tokens))
    found = Counter({term: plan.inputs.parallel.tp * size for term, size in found.items()})
    copies = _copies(plan, tokens)
    found[LOGICAL] -= copies
    found[REPLICAS] += copies
    reserved = found.total()
    return [
        Term(term=term, bytes=found[term], ratio=round(found[term] / reserved, 6), remedy=_remedy(term, plan.inputs))
        for term in _ORDER
        if found[term]
    ]


def _per_rank(plan: VllmPlan, tokens: int) -> Counter[str]:
    """What the blocks of one rank of every stage hold."""
    found: Counter[str] = Counter()
    for stage, bytes_per_block in zip(plan.stages, plan.bytes_per_block, strict=True):
        for group, here in zip(plan.groups, stage, strict=True):
            blocks = group.blocks(tokens, plan.inputs)
            found[GROUP_PADDING] += blocks * (bytes_per_block - here.page_bytes)
            found.update(_of_layers(here, blocks, tokens, plan.inputs))
        found[NULL_BLOCK] += bytes_per_block
    return found


def _of_layers(group: Group, blocks: int, tokens: int, inputs: Inputs) -> Counter[str]:
    found: Counter[str] = Counter()
    for cache in group.layers:
        if cache.layer >= inputs.model.num_layers:
            found[DRAFTS] += blocks * cache.content_bytes
            found[PAGE_PADDING] += blocks * (cache.page_bytes - cache.content_bytes)
            continue
        kept = _logical(cache, tokens, inputs)
        padding = STATE_PADDING if cache.kind == STATE else PAGE_PADDING
        found[padding] += blocks * (cache.page_bytes - cache.content_bytes)
        found[LOGICAL] += kept
        if cache.kind == STATE:
            drafted = inputs.speculative_tokens if inputs.rules.aligned_states else 0
            found[DRAFTS] += drafted * cache.content_bytes
            found[STATE_COPIES] += (blocks - drafted) * cache.content_bytes - kept
            continue
        reserved = _reserved(cache, tokens, inputs)
        found[_beside(cache)] += reserved - kept
        found[TAILS] += blocks * cache.content_bytes - reserved
    return found


def _logical(cache: LayerCache, tokens: int, inputs: Inputs) -> int:
    """Bytes of what one rank needs to keep of the sequence."""
    if cache.kind == STATE:
        return cache.content_bytes
    held = ceil_div(tokens, inputs.parallel.dcp) if cache.kind in (FULL, MLA) else tokens
    return min(cache.spec.stored_bytes(held), _reserved(cache, tokens, inputs))


def _reserved(cache: LayerCache, tokens: int, inputs: Inputs) -> int:
    """Bytes of the tokens that a request is admitted with; of the whole rows where one stands for several tokens."""
    held = cache.reserved_tokens(tokens, inputs)
    if cache.kind in (FULL, MLA) and cache.window is None:
        return cache.spec.stored_bytes(held)
    return held * cache.content_bytes // cache.block_size


def _beside(cache: LayerCache) -> str:
    """What the reserve beyond the sequence's own tokens is for."""
    if cache.kind == CROSS:
        return ENCODER
    return PROMOTED if cache.kind == FULL else IN_FLIGHT


def _copies(plan: VllmPlan, tokens: int) -> int:
    """Bytes that tp ranks hold more than one whole copy of the model's cache."""
    inputs = plan.inputs
    whole = specs_by_layer(inputs.model, inputs.cache_format, state=inputs.state)
    total = 0
    for group in plan.groups:
        for cache in group.layers:
            if cache.layer >= inputs.model.num_layers:
                continue
            held = inputs.parallel.tp * _logical(cache, tokens, inputs)
            total += held - min(held, whole[cache.layer][cache.position].stored_bytes(tokens))
    return total


def _remedy(term: str, inputs: Inputs) -> str | None:
    match term:
        case "copies on tp ranks":
            return "--dcp, or dp instead of tp"
        case "in flight beside windows":
            less = ", --no-async-scheduling" if inputs.in_flight_tokens > inputs.max_num_batched_tokens else ""
            return f"--max-num-batched-tokens below {inputs.max_num_batched_tokens}{less}"
        case "windows kept as full":
            return "no --disable-hybrid-kv-cache-manager"
        case "states for prefix caching":
            return "--no-enable-prefix-caching"
        case "drafts":
            return (
                f"fewer than {inputs.speculative_tokens} --num-speculative-tokens" if has_state(inputs.model) else None
            )
        case "encoder reserve":
            return f"--max-num-batched-tokens below {inputs.max_num_batched_tokens}"
        case "page tails" | "padding of state pages" if has_state(inputs.model):
            return "--mamba-ssm-cache-dtype bf16" if inputs.state.recurrent == "fp32" else None
        case _:
            return None
