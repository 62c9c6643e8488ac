"""What the block pool of 4,096 tokens takes in each cache format: predicted, held, and what the process grew by.

python examples/pools.py
"""

from __future__ import annotations

import psutil
import torch

from kvtool.catalog.resolve import resolve_model
from kvtool.engine.pool import KvPool, pool_specs
from kvtool.sizing.formats import parse_cache_format
from kvtool.sizing.layers import layer_specs
from kvtool.units import MIB

FORMATS = ("bf16", "fp8", "int8_per_token_head", "int4", "int4_per_token_head", "q8_0", "q4_0", "bf16/int4")
TOKENS, BLOCK_SIZE = 4096, 16


def resident_bytes() -> int:
    """Of this process."""
    return int(psutil.Process().memory_info().rss)


def main() -> None:
    model = resolve_model("smollm2-135m")
    print(f"{'cache':22}{'predicted':>11}{'held':>11}{'grew by':>11}   MiB; of bf16")
    whole, pools = 0, []  # all of them stay, since freed memory would be used again
    for name in FORMATS:
        specs = pool_specs(layer_specs(model, parse_cache_format(name)))
        predicted = sum(spec.allocated_bytes(TOKENS, BLOCK_SIZE) for spec in specs)
        before = resident_bytes()
        pools.append(pool := KvPool(specs, TOKENS // BLOCK_SIZE, BLOCK_SIZE, torch.device("cpu")))
        for layer in pool.layers:
            for tensor in layer.tensors:
                tensor.view(torch.uint8).fill_(1)  # memory that nobody has written to is not there yet
        grown = resident_bytes() - before
        whole = whole or grown
        figures = "".join(f"{size / MIB:11.1f}" for size in (predicted, pool.bytes, grown))
        print(f"{name:22}{figures}{grown / whole:10.3f}")


if __name__ == "__main__":
    main()
