"""What a common prefix saves: N sequences of prefix + rest take prefix + N x rest, not N x (prefix + rest).

Ranking N items for one user is that case: the prefix is the user's history, the rest one item.
"""

from __future__ import annotations

from kvtool.results import SizeSharing
from kvtool.sizing.options import SizeOptions
from kvtool.sizing.usage import SpecCounts, allocated_bytes


def sharing(specs: SpecCounts, *, context: int, batch_size: int, options: SizeOptions) -> SizeSharing | None:
    """Bytes of the batch on one copy of the model with the prefix once and with it in every sequence; None without."""
    if not options.shared_prefix:
        return None

    def taken(shared_prefix: int) -> int:
        return allocated_bytes(
            specs,
            tokens=context,
            batch_size=batch_size,
            block_size=options.block_size,
            shared_prefix=shared_prefix,
        )

    shared, unshared = taken(options.shared_prefix), taken(0)
    return SizeSharing(
        shared_bytes=shared,
        unshared_bytes=unshared,
        saved_bytes=unshared - shared,
        ratio=unshared / shared if shared else 1.0,
    )
