"""How vLLM puts layers into groups that share a block table, so that every group fits the same block of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvtool.sizing.engines.vllm.inputs import Inputs
from kvtool.sizing.engines.vllm.layers import CHUNKED, FULL, MLA, SLIDING, SLIDING_MLA, STATE, LayerCache
from kvtool.sizing.engines.vllm.refusal import RefusedError
from kvtool.sizing.engines.vllm.rules import VllmRules
from kvtool.sizing.formats import CACHE_FORMATS
from kvtool.sizing.specs import ChunkedSpec, IndexerSpec, SlidingSpec
from kvtool.units import ceil_div

UNIFORM_TYPE = "UniformTypeKVCacheSpecs"
_FAMILIES = {MLA: FULL}
# What a spec keeps that is not told how it is quantised: a byte an element, without scales, and equal to no other.
_WITHOUT_SCALES = dict.fromkeys(
    ("fp8", "fp8_e5m2", "int8_per_token_head", "fp8_per_token_head"), replace(CACHE_FORMATS["fp8"], name="untold")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Layers behind one block table. `mixed`: of one type, but maybe with pages of different sizes."""

    layers: tuple[LayerCache, ...]
    mixed: bool = False

    @property
    def kind(self) -> str:
        return UNIFORM_TYPE if self.mixed else self.layers[0].kind

    @property
    def block_size(self) -> int:
        return self.layers[0].block_size

    @property
    def page_bytes(self) -> int:
        """Bytes of a block that this group's layers use."""
        return sum(cache.page_bytes for cache in self.layers)

    @property
    def grows(self) -> bool:
        """Whether a request takes more blocks with every token that it keeps: no window, no state."""
        return self.layers[0].kind in (FULL, MLA)

    def blocks(self, tokens: int, inputs: Inputs) -> int:
        """Blocks that a request of `tokens` tokens takes from the pool for this group."""
        return max(cache.blocks(tokens, inputs) for cache in self.layers)


def one_group(caches: Sequence[LayerCache], rules: VllmRules) -> Group | None:
    """All layers in a single group, where they always need the same number of blocks."""
    if _mergeable(caches, rules):
        first = caches[0]
        return Group(layers=tuple(caches if rules.value_widths else [replace(it, spec=first.spec) for it in caches]))
    return Group(layers=tuple(caches), mixed=True) if same_type(caches) else None


def family(cache: LayerCache) -> str:
    """The spec that a layer's spec counts as: MLA is full attention."""
    return _FAMILIES.get(cache.kind, cache.kind)


def same_type(caches: Sequence[LayerCache]) -> bool:
    """Whether all layers always need the same number of blocks (UniformTypeKVCacheSpecs.is_uniform_type)."""
    first = caches[0]
    if len({(family(cache), cache.block_size) for cache in caches}) > 1:
        return False
    if first.kind in (SLIDING, SLIDING_MLA, CHUNKED):
        return len({cache.window for cache in caches}) == 1
    return first.kind != STATE or len({(cache.page_bytes, cache.state_blocks) for cache in caches}) == 1


def _mergeable(caches: Sequence[LayerCache], rules: VllmRules) -> bool:
    """Whether one spec describes all layers. Windows that are kept as full attention are but a note on it."""
    if all(cache.kind == FULL for cache in caches):
        windows = {cache.window for cache in caches if isinstance(cache.spec, SlidingSpec)}
        chunks = {cache.window for cache in caches if isinstance(cache.spec, ChunkedSpec)}
        if max(len(windows), len(chunks)) > 1:
            raise RefusedError("All attention layers in the same KV cache group must have the same window size.")
        if rules.promoted_apart and (windows or chunks) and len({type(cache.spec) for cache in caches}) > 1:
            return False
        return not (windows and chunks) and len({_layout(cache, rules) for cache in caches}) == 1
    return len(set(caches)) == 1


def _layout(cache: LayerCache, rules: VllmRules) -> tuple[object, ...]:
    names = ("kv_heads", "k_head_dim", *(["v_head_dim"] if rules.value_widths else []), "cache_format")
    return (*(getattr(cache.spec, name) for name in names), cache.block_size, cache.padded_bytes)


def promoted(caches: Sequence[LayerCache], rules: VllmRules) -> list[LayerCache]:
    """Without the hybrid manager windows and chunks are kept as full attention, if there is full attention beside."""
    if not caches or _mergeable(caches, rules) or same_type(caches):
        return list(caches)
    full = {cache.block_size for cache in caches if family(cache) == FULL}
    found = list(caches)
    if full:
        found = [_as_full(cache, full, rules) if cache.kind in (SLIDING, CHUNKED) else cache for cache in caches]
    if not _mergeable(found, rules) and not same_type(found):
        raise RefusedError("Failed to promote local KV cache specs to one unified type.")
    return found


def _as_full(cache: LayerCache, block_sizes: set[int], rules: VllmRules) -> LayerCache:
    shared = rules.promoted_blocks and len(block_sizes) == 1
    spec = cache.spec
    if isinstance(spec, SlidingSpec | ChunkedSpec) and cache.kind not in rules.promoted_whole:
        plain = _WITHOUT_SCALES.get(spec.cache_format.name, spec.cache_format)
        spec = replace(spec, v_head_dim=spec.k_head_dim, cache_format=plain)
    return replace(cache, kind=FULL, spec=spec, block_size=next(iter(block_sizes)) if shared else cache.block_size)


def several_groups(caches: Sequence[LayerCache], rules: VllmRules) -> tuple[Group, ...]:
    """Groups with pages of one size; where MLA has none in common with windows, one group that keeps these whole.
    Raises RefusedError where that does not help either.
    """
    try:
        return _split_evenly(_equal_pages(caches, rules), rules.group_ratio)
    except RefusedError:
        kinds = {cache.kind for cache in caches}
        if not rules.whole_windows or not {MLA, SLIDING} <= kinds or CHUNKED in kinds:
            raise
        whole = promoted(caches, rules)
        if not same_type(whole):
            raise
        return (Group(layers=tuple(whole), mixed=True),)


def _equal_pages(caches: Sequence[LayerCache], rules: VllmRules) -> list[LayerCache]:
    """All pages as large as the largest: with more tokens where it is a multiple, else with padding. Raises
    RefusedError where the release can do neither.
    """
    largest = max(cache.page_bytes for cache in caches)
    if any(isinstance(cache.spec, IndexerSpec) for cache in caches):  # whose kernels read whole rows
        rules = replace(rules, padded_latent_pages=False)
    return [_enlarged(cache, largest, rules) for cache in caches]


def _enlarged(cache: LayerCache, page_bytes: int, rules: VllmRules) -> LayerCache:
    if cache.page_bytes == page_bytes:
        return cache
    multiple = page_bytes % cache.page_bytes == 0 and rules.unified_pages
    if not (rules.padded_states if cache.kind == STATE else rules.padded_pages or multiple):
        raise RefusedError(
            f"NotImplementedError: the page of layer {cache.layer} ({cache.page_bytes} B) cannot be made as large as "
            f"the largest ({page_bytes} B): this release of vLLM does not pad it"
        )
    if cache.kind == STATE:
        return replace(cache, padded_bytes=page_bytes)
    if multiple:
        return replace(cache, block_size=cache.block_size * (page_bytes // cache.page_bytes))
    if cache.kind == MLA and not rules.padded_latent_pages:
        raise RefusedError(
            f"page size of layer {cache.layer} ({cache.page_bytes} B) is not divisible by the maximum page size "
            f"({page_bytes} B) and cannot be padded. Padding is only supported for non-MLA attention layers."
        )
    return replace(cache, padded_bytes=page_bytes)


def _split_evenly(caches: Sequence[LayerCache], ratio: float) -> tuple[Group, ...]:
    """Equal layers in groups of as many as the rarest kind has, or as the most frequent one where it has less than
    `ratio` times as many; each n-th layer, so that pipeline stages get their part of every group.
    """
    buckets: dict[LayerCache, list[LayerCache]] = {}
    for cache in caches:
        buckets.setdefault(cache, []).append(cache)
    fewest, most = min(map(len, buckets.values())), max(map(len, buckets.values()))
    size = most if most < ratio * fewest else fewest
    groups = []
    for bucket in buckets.values():
        count = ceil_div(len(bucket), size)
        groups += [Group(layers=tuple(bucket[i::count])) for i in range(count)]
    return tuple(groups)
