"""What a hit is a multiple of, from the model's own plan."""

from __future__ import annotations

from kvtool.catalog.model import Model
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.engines.vllm.plan import plan

LARGE_POOL_BYTES = 1 << 46  # which no plan is short of: block sizes do not depend on it


def planned_unit(model: Model, block_size: int) -> int:
    """Tokens of the blocks that vLLM would match prefixes by on one GPU; in a hybrid a page of attention must hold a
    whole state. `block_size` where it has no plan for the model. Raises KvtoolError for a model that it does not know.
    """
    planned = plan(model, EngineOptions(name="vllm", enable_prefix_caching=True), pool_bytes=LARGE_POOL_BYTES)
    return max(block_size, planned.scheduler_block_size or 0)
