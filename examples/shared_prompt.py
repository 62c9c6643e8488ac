"""Two requests begin with the same prompt: which pages do they share? The cache alone, without tensors.

python examples/shared_prompt.py
"""

from __future__ import annotations

from kvtool.cache import CacheManager, SequenceCache

SYSTEM_PROMPT = list(range(100, 140))  # 40 tokens: two whole pages of 16, and 8 tokens more


def serve(cache: CacheManager, name: str, tokens: list[int]) -> SequenceCache:
    """Open a sequence, get its pages, and say that their K and V are written."""
    sequence = cache.open(tokens)
    if not cache.reserve(sequence, len(tokens)):
        raise SystemExit("no pages left")
    cache.commit(sequence, tokens)
    print(f"{name}: {len(tokens)} tokens in pages {sequence.table.pages}, {sequence.cached_tokens} found in the cache")
    return sequence


def main() -> None:
    cache = CacheManager(num_pages=8, block_size=16)
    first = serve(cache, "first ", [*SYSTEM_PROMPT, *range(200, 212)])
    second = serve(cache, "second", [*SYSTEM_PROMPT, *range(300, 312)])
    cache.close(first)
    cache.close(second)
    cache.check()
    print(cache)


if __name__ == "__main__":
    main()
