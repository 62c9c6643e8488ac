"""The name of a page: a hash of all tokens up to its end and of what computed them, so that equal names hold equal K/V.

key 0 = hash(fingerprint, tokens of page 0);  key n = hash(key n-1, tokens of page n)
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

KEY_BYTES = 16  # two of 2**40 pages share a name with a chance of 2**-49


def fingerprint(*facts: object) -> bytes:
    """Of whatever K/V depends on beside tokens: weights, dtypes, layout."""
    return blake2b("\0".join(map(repr, facts)).encode(), digest_size=KEY_BYTES).digest()


def extend_keys(keys: list[bytes], tokens: Sequence[int], block_size: int, num_pages: int, root: bytes) -> None:
    """Append the names of the pages that `keys` lacks of the first `num_pages`. O(pages appended)."""
    for page in range(len(keys), num_pages):
        before = keys[-1] if keys else root
        content = array("q", tokens[page * block_size : (page + 1) * block_size]).tobytes()
        keys.append(blake2b(before + content, digest_size=KEY_BYTES).digest())
