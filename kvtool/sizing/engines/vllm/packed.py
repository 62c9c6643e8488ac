"""How vLLM packs pages of several sizes side by side into a block, for DeepSeek-V4's rows, windows and compressors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtool.sizing.engines.vllm.grouping import Group, same_type
from kvtool.sizing.engines.vllm.layers import SLIDING_MLA, LayerCache
from kvtool.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bucket:
    """Layers of one type, by the size of their pages."""

    layers: tuple[LayerCache, ...]

    @property
    def by_page(self) -> dict[int, list[LayerCache]]:
        found: dict[int, list[LayerCache]] = {}
        for cache in self.layers:
            found.setdefault(cache.page_bytes, []).append(cache)
        return found

    @property
    def repeats(self) -> int:
        """How often its most frequent page size occurs: the repeats of a pattern with one layer of each size."""
        return max(map(len, self.by_page.values()))

    @property
    def balanced(self) -> bool:
        return len({len(caches) for caches in self.by_page.values()}) == 1

    def widest(self, count: int) -> int:
        """Page bytes of the largest of `count` groups it is split into."""
        return sum(ceil_div(len(caches), count) * page for page, caches in self.by_page.items())

    def split(self, count: int) -> list[Group]:
        """`count` groups, each with every count-th repeat of the pattern."""
        if count == 1:
            return [Group(layers=self.layers, mixed=True)]
        repeats = list(zip(*self.by_page.values(), strict=True))
        return [
            Group(layers=tuple(cache for repeat in repeats[i::count] for cache in repeat), mixed=True)
            for i in range(count)
        ]


def pack_layers(caches: Sequence[LayerCache]) -> tuple[Group, ...]:
    """Groups that cover about the same number of repeats of the layer pattern, so that they fill the same block."""
    buckets = _buckets(caches)
    floor = max((b.repeats for b in buckets if b.balanced and len(b.by_page) > 1), default=0)
    repeats = _least_padding([b.repeats for b in buckets if b.balanced], floor) if floor else None
    counts = [ceil_div(b.repeats, repeats) if repeats and b.balanced else 1 for b in buckets]
    if repeats is None:
        counts = _without_widening(buckets, counts)
    return tuple(group for bucket, count in zip(buckets, counts, strict=True) for group in bucket.split(count))


def _buckets(caches: Sequence[LayerCache]) -> list[_Bucket]:
    found: list[list[LayerCache]] = []
    for cache in caches:
        home = next((bucket for bucket in found if same_type([*bucket, cache])), None)
        if home is None:
            found.append([cache])
        else:
            home.append(cache)
    return [_Bucket(layers=tuple(bucket)) for bucket in found]


def _least_padding(counts: Sequence[int], floor: int) -> int:
    """The d from `floor` on that leaves the fewest places empty when every count is rounded up to its multiple; the
    larger of two as good.
    """
    return min(range(floor, max(counts) + 1), key=lambda d: (sum(-count % d for count in counts), -d))


def _without_widening(buckets: Sequence[_Bucket], counts: Sequence[int]) -> list[int]:
    """Without a pattern windows are split until they fit the block that the other layers need anyway."""
    windows = [bucket.layers[0].kind == SLIDING_MLA for bucket in buckets]
    block = max(
        bucket.widest(len(bucket.layers) if window else count)
        for bucket, count, window in zip(buckets, counts, windows, strict=True)
    )
    return [
        max(count, ceil_div(len(bucket.layers), max(block // bucket.layers[0].page_bytes, 1))) if window else count
        for bucket, count, window in zip(buckets, counts, windows, strict=True)
    ]
