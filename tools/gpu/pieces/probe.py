"""One kernel launched three times, for a tool that watches: `python -m tools.gpu.pieces.probe decode`."""

from __future__ import annotations

import sys
from functools import partial

from tools.gpu.pieces.measuring import DEVICE, PAGE

K = 1024
# Model, part, context, batch: as large as the targets, or as small as still splits.
ATTENTION = {
    "decode": ("llama-3.1-8b", "decode", 4 * K, 32),
    "prefill": ("llama-3.1-8b", "prefill", 8 * K, 1),
    "mla-128": ("deepseek-v3", "decode", 8 * K, 32),
    "small-decode": ("llama-3.1-8b", "decode", 2 * K, 1),
}
PRODUCTS = {"gate-up": (1, 28672, 4096), "small-gemv": (1, 512, 4096)}
KERNELS = {
    "decode": "decode_kernel",
    "prefill": "prefill_kernel",
    "mla-128": "decode_kernel",
    "gate-up": "gemv_kernel",
    "small-decode": "decode_kernel",
    "small-gemv": "gemv_kernel",
    "small-experts": "experts_kernel",
}
LAUNCHES = 3


def main(name: str) -> None:
    import torch

    with torch.inference_mode():
        if name in PRODUCTS:
            product(*PRODUCTS[name])
        elif name == "small-experts":
            experts()
        else:
            attention(*ATTENTION[name])
        torch.cuda.synchronize()


def attention(model: str, part: str, context: int, batch_size: int) -> None:
    import torch

    from kvtool.bench.kernels.calls import Measurement, filled_pool
    from kvtool.bench.kernels.options import KernelsOptions
    from kvtool.bench.kernels.work import plan
    from kvtool.catalog.resolve import resolve_model
    from kvtool.kernels import load_kernels
    from kvtool.sizing.formats import parse_cache_format

    shape = {"contexts": (context,), "batch_sizes": (batch_size,), "chunk_len": context, "block_sizes": (PAGE,)}
    options = KernelsOptions(num_iters=1, device=DEVICE, parts=(part,), **shape)
    (work, *_) = plan(resolve_model(model), options, [parse_cache_format("bf16", "bf16")], "bf16")
    random = torch.Generator(DEVICE).manual_seed(0)
    pool = filled_pool(work, work.call_pages, torch.device(DEVICE), random)
    (call,) = Measurement(work, load_kernels("triton"), pool, 1, random).calls
    for _ in range(LAUNCHES):
        call()


def product(rows: int, columns: int, depth: int) -> None:
    import torch

    from kvtool.kernels.triton.products import candidates

    draw = partial(torch.randn, dtype=torch.bfloat16, device=DEVICE)
    x, weight = draw(rows, depth), draw(columns, depth)
    ways = candidates(rows, weight)
    for _ in range(LAUNCHES):
        for name, way in ways.items():
            if name.startswith("gemv"):
                way(x, weight, None, None)


def experts() -> None:
    import torch

    from kvtool.kernels.triton import step
    from kvtool.kernels.weights import ExpertWeights, Gate

    draw = partial(torch.randn, dtype=torch.bfloat16, device=DEVICE)
    weights = ExpertWeights(gate_up=draw(16, 640, 256), down=draw(16, 256, 320), gate=Gate("silu"))
    shares = torch.rand(8, 4, device=DEVICE)
    for _ in range(LAUNCHES):
        chosen = torch.rand(8, 16, device=DEVICE).topk(4).indices
        step.experts(draw(8, 256), weights, chosen, shares)


if __name__ == "__main__":
    main(sys.argv[1])
