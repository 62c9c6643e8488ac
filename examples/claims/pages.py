"""Claims about pages and prefixes, each against kvtool's own block pool, block tables and radix tree.

python examples/claims/pages.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from claim import RIGHT, WRONG, Claim

from kvtool.cache import CacheManager, RadixTree

SHOWN_BY = ("python examples/claims/pages.py",)
BLOCK_SIZE = 16


def page_claims() -> Iterator[Claim]:
    yield second_page()
    yield three_requests()
    yield radix_match()


def second_page() -> Claim:
    cache = CacheManager(num_pages=4, block_size=BLOCK_SIZE)
    sequence = cache.open([])
    pages = []
    for tokens in range(1, 34):
        cache.reserve(sequence, tokens)
        pages.append(len(sequence.table.pages))
    first = pages.index(2) + 1
    return Claim(
        said="With pages of 16, the 17th token takes the second page",
        found=f"token {first} takes it, token {pages.index(3) + 1} the third",
        verdict=RIGHT if first == 17 else WRONG,
        why="A page is taken when the one before is full.",
        shown_by=SHOWN_BY,
    )


def three_requests() -> Claim:
    cache = CacheManager(num_pages=64, block_size=BLOCK_SIZE)
    taken = []
    for tokens in (500, 300, 200):
        sequence = cache.open([])
        cache.reserve(sequence, tokens)
        pages = [page + 1 for page in sequence.table.pages]  # counted from 1, as it is said
        assert pages == list(range(pages[0], pages[-1] + 1))
        taken.append((pages[0], pages[-1]))
    ranges = " and ".join(", ".join(f"{first}-{last}" for first, last in taken).rsplit(", ", 1))
    last = taken[-1][1] - taken[-1][0] + 1
    return Claim(
        said="Requests of 500, 300 and 200 tokens take pages 1-32, 33-51 and 52-63",
        found=f"pages {ranges}",
        verdict=RIGHT if taken == [(1, 32), (33, 51), (52, 63)] else WRONG,
        why=f"200 tokens need {last} pages of 16, not 12: the last one holds 8.",
        shown_by=SHOWN_BY,
    )


def radix_match() -> Claim:
    lengths = (16, 64, 256)
    counts = [tokens_read(pages) // BLOCK_SIZE for pages in lengths]
    shown = " and ".join(
        ", ".join(f"{count} for {pages}" for pages, count in zip(lengths, counts, strict=True)).rsplit(", ", 1)
    )
    return Claim(
        said="A radix tree finds a cached prefix in O(1)",
        found=f"pages of the prompt that were read: {shown} pages of prefix",
        verdict=RIGHT if len(set(counts)) == 1 else WRONG,
        why="Every page of the prefix is read, the first one twice: linear in the prefix, whatever else is cached.",
        shown_by=SHOWN_BY,
    )


class CountedTokens(list[int]):
    """The tokens of a prompt, which count how many of them are read."""

    read = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        self.read += len(found) if isinstance(place, slice) else 1
        return found


def tokens_read(prefix_pages: int, other_prefixes: int = 100) -> int:
    """Tokens of a prompt that one match of its cached prefix reads, in a tree that holds others of the same length."""
    tree = RadixTree(BLOCK_SIZE)
    for prefix in range(other_prefixes + 1):
        first_page = prefix * prefix_pages
        tree.extend(tree.root, tokens(prefix, prefix_pages), range(first_page, first_page + prefix_pages))
    wanted = CountedTokens(tokens(0, prefix_pages))
    assert len(tree.match(wanted)) == prefix_pages
    return wanted.read


def tokens(prefix: int, pages: int) -> list[int]:
    return [token for page in range(pages) for token in (prefix, page, *range(BLOCK_SIZE - 2))]


if __name__ == "__main__":
    for claim in page_claims():
        print(f"{claim.said}: {claim.verdict}, {claim.found}")
