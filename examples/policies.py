"""What an index of prefixes and an eviction policy cost: time an operation and memory a cached page, without tensors.

python examples/policies.py            pages of 16 tokens, 40,000 of them
python examples/policies.py 1000000    as many as you like
"""

from __future__ import annotations

import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from statistics import median

from kvtool.cache import EVICTION, CacheManager
from kvtool.cache.eviction.base import Known
from kvtool.cache.index.index import prefix_index

BLOCK_SIZE = 16
PROMPT_PAGES = 64
LONG = 100_000
ROUNDS = 5


def cache_of(index: str, eviction: str, num_pages: int) -> CacheManager:
    known = Known(page_tokens=BLOCK_SIZE)
    return CacheManager(num_pages, BLOCK_SIZE, index=prefix_index(index, eviction, num_pages=num_pages, known=known))


def serve(cache: CacheManager, tokens: list[int]) -> None:
    """A request that is computed at once, and ends."""
    sequence = cache.open(tokens)
    if not cache.reserve(sequence, len(tokens)):
        raise SystemExit("the pool is smaller than a prompt")
    cache.commit(sequence, tokens)
    cache.close(sequence)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(index: str, eviction: str, num_pages: int) -> str:
    rng = random.Random(0)

    def drawn(pages: int) -> list[int]:
        return rng.choices(range(128_000), k=pages * BLOCK_SIZE + 1)

    tracemalloc.start()
    cache = cache_of(index, eviction, num_pages)
    for _ in range(num_pages // PROMPT_PAGES):
        serve(cache, drawn(PROMPT_PAGES))
    page_bytes = tracemalloc.get_traced_memory()[0] / cache.counters().cached_pages
    tracemalloc.stop()

    prompts = [drawn(num_pages // 2) for _ in range(ROUNDS)]
    cold_s, match_s, hit_s = [], [], []
    for prompt in prompts:
        cold_s.append(seconds(lambda prompt=prompt: serve(cache, prompt)))
        match_s.append(seconds(lambda prompt=prompt: cache.match(prompt)))
        hit_s.append(seconds(lambda prompt=prompt: serve(cache, prompt)))
    pages = num_pages // 2
    cells = [median(times) / pages * 1e6 for times in (match_s, hit_s, cold_s)]
    return f"{index:8}{eviction:21}" + "".join(f"{cell:9.2f}" for cell in cells) + f"{page_bytes:9.0f}"


def long_prompt(index: str) -> str:
    """A prompt of LONG tokens in a pool with room for all rounds: nothing of it is cached, then all of it is."""
    rng = random.Random(1)
    cold_s, match_s, hit_s = [], [], []
    cache = cache_of(index, "lru", (ROUNDS + 1) * (LONG // BLOCK_SIZE + 1))
    for _ in range(ROUNDS):
        prompt = rng.choices(range(128_000), k=LONG)
        cold_s.append(seconds(lambda prompt=prompt: serve(cache, prompt)))
        match_s.append(seconds(lambda prompt=prompt: cache.match(prompt)))
        hit_s.append(seconds(lambda prompt=prompt: serve(cache, prompt)))
    match_ms, hit_ms, cold_ms = (median(times) * 1e3 for times in (match_s, hit_s, cold_s))
    return (
        f"  {index}: found in {match_ms:.1f} ms, served in {hit_ms:.1f}, and in {cold_ms:.1f} where nothing is cached."
    )


def main() -> None:
    num_pages = int(sys.argv[1]) if len(sys.argv) > 1 else 40_000
    print(f"{'index':8}{'eviction':21}{'match':>9}{'hit':>9}{'evict':>9}{'memory':>9}")
    for index, eviction in [("hashed", "lru"), *(("radix", name) for name in EVICTION)]:
        print(row(index, eviction, num_pages))
    print(
        f"us a page of {BLOCK_SIZE} tokens, medians of {ROUNDS}. match: {num_pages // 2:,} cached pages are found.\n"
        "hit: a prompt of them is opened, computed and closed. evict: the same, where nothing of it is cached and\n"
        f"others must go. memory: bytes a page besides its K and V, prompts of {PROMPT_PAGES} pages.\n"
        f"a prompt of {LONG:,} tokens, {LONG // BLOCK_SIZE:,} pages, that is cached:\n"
        f"{long_prompt('hashed')}\n{long_prompt('radix')}"
    )


if __name__ == "__main__":
    main()
