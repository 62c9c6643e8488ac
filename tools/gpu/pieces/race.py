"""Programs that meet: graphs replayed ten thousand times with other inputs each time. Every replay must give the bits
that its inputs gave the first time, and leave the counters at zero. Launches that start early must give the bits of
launches in order.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from tools.gpu.cases import Case, Result, serve
from tools.gpu.pieces.measuring import DEVICE, PAGE, UnequalError
from tools.gpu.pieces.variants import in_order, tiles_with

if TYPE_CHECKING:
    import torch
    from torch import Tensor

REPLAYS, INPUTS = 10_000, 64
MAX_CONTEXT = 32 * 1024
SPLITS = 49  # of 8 programs on 132 multiprocessors
MODELS = ("qwen3-0.6b", "deepseek-v2-lite")
LAYERS, STEPS = 4, 100


def cases(given: Namespace) -> Sequence[Case]:
    """Each kernel whose programs count each other."""
    return [
        Case("decode", decode_of_llama),
        Case("decode of a list", decode_of_a_list),
        Case("decode of MLA", mla),
        *(Case(f"product of {rows} rows", partial(product, rows)) for rows in (1, 4, 16)),
        Case("experts", experts),
        *(Case(f"steps of {name}", partial(steps, name)) for name in MODELS),
    ]


def decode_of_llama() -> Result:
    """One sequence among as many splits as the card has programs for, at 64 random lengths."""
    import torch

    from kvtool.kernels import load_kernels
    from kvtool.kernels.pages import Pages
    from kvtool.kernels.rows import Rows, Softmax

    heads, kv_heads, head_dim, num_pages = 32, 8, 128, MAX_CONTEXT // PAGE
    cache = [_drawn(num_pages, PAGE, kv_heads, head_dim) for _ in range(2)]
    table = torch.randperm(num_pages, device=DEVICE).int()[None]
    lens = torch.ones(1, dtype=torch.int32, device=DEVICE)
    q, rows = _drawn(1, heads, head_dim), Rows(table, lens)
    call = partial(load_kernels("triton").decode, q, Pages(*cache), rows, Softmax(head_dim**-0.5))
    splits = _splits_of(call)
    found = replayed(call, [(lens, each) for each in _lengths()])
    return found | {"splits": splits, "at_least": SPLITS}


def decode_of_a_list() -> Result:
    """The same, each sequence among as many programs as it has work for."""
    with tiles_with("lists"):
        return decode_of_llama()


def mla() -> Result:
    """Latents of 16 heads."""
    import torch

    from kvtool.kernels import load_kernels
    from kvtool.kernels.pages import Pages
    from kvtool.kernels.rows import Rows, Softmax

    num_pages = MAX_CONTEXT // PAGE
    pages = Pages(_drawn(num_pages, PAGE, 576), latent_dim=512)
    table = torch.randperm(num_pages, device=DEVICE).int()[None]
    lens = torch.ones(1, dtype=torch.int32, device=DEVICE)
    call = partial(load_kernels("triton").decode, _drawn(1, 16, 576), pages, Rows(table, lens), Softmax(192**-0.5))
    return replayed(call, [(lens, each) for each in _lengths()])


def product(rows: int) -> Result:
    """Every way of a product whose depth is divided."""
    from kvtool.kernels.triton.products import CUBLAS, candidates

    x, weight = _drawn(rows, 8192), _drawn(1024, 8192)
    inputs = [(x, _drawn(rows, 8192, seed=seed)) for seed in range(INPUTS)]
    ways = {name: way for name, way in candidates(rows, weight).items() if name != CUBLAS}
    return {name: replayed(partial(way, x, weight, None, None), inputs) for name, way in ways.items()}


def experts() -> Result:
    """Sixteen experts, other ones chosen each time."""
    import torch

    from kvtool.kernels.triton import step
    from kvtool.kernels.weights import ExpertWeights, Gate

    count, top_k, rows = 16, 4, 8
    weights = ExpertWeights(gate_up=_drawn(count, 640, 256), down=_drawn(count, 256, 320), gate=Gate("silu"))
    x, shares = _drawn(rows, 256), torch.rand(rows, top_k, device=DEVICE)
    chosen = torch.zeros(rows, top_k, dtype=torch.int64, device=DEVICE)
    random = torch.Generator(DEVICE).manual_seed(0)
    choices = [
        torch.rand(rows, count, device=DEVICE, generator=random).topk(top_k).indices.contiguous() for _ in range(INPUTS)
    ]
    return replayed(partial(step.experts, x, weights, chosen, shares), [(chosen, choice) for choice in choices])


def steps(model: str) -> Result:
    """Decode steps whose launches start before the one in front of them is over, and the same in order: where one of
    them reads what is not written yet, bits differ."""
    import torch

    early = generated(model)
    with in_order():
        ordered = generated(model)
    found: dict[str, object] = {
        "logits": early.numel(),
        "nans": int(early.isnan().sum()),
        "wrong": int((early != ordered).sum()),
        "largest_difference": float((early.float() - ordered.float()).abs().max()),
    }
    if not torch.equal(early, ordered):
        raise UnequalError(str(found), found)
    return found


def generated(model: str) -> Tensor:
    """The logits of every step of four sequences through a few layers, by one graph."""
    import torch

    from kvtool.catalog.resolve import resolve_model
    from kvtool.engine.config import EngineConfig
    from kvtool.engine.engine import Engine
    from kvtool.engine.loaded import LoadedModel
    from kvtool.engine.sequence import SamplingParams

    config = EngineConfig(device=DEVICE, block_size=PAGE, num_layers=LAYERS, prefix_caching=False)
    loaded = LoadedModel(resolve_model(model), config, max_positions=4 * PAGE, num_pages=16)
    engine = Engine(loaded, num_pages=16)
    engine.keep_logits = True
    engine.prepare([4])
    params = SamplingParams(max_tokens=STEPS, ignore_eos=True)
    sequences = [engine.add(list(range(1, 60 + length)), params) for length in range(4)]
    for _ in engine.run_until_idle():
        pass
    return torch.cat([torch.stack(sequence.logits) for sequence in sequences])


def replayed(
    call: Callable[[], Tensor], inputs: Sequence[tuple[Tensor, Tensor]], replays: int = REPLAYS
) -> dict[str, object]:
    """`call` as a graph, its input set to each of `inputs` in turn. Raises UnequalError for other bits or counters."""
    import torch

    with torch.inference_mode():
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call()
        first = []
        for into, value in inputs:
            into.copy_(value)
            graph.replay()
            first.append(out.clone())
        wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
        for turn in range(replays):
            into, value = inputs[turn % len(inputs)]
            into.copy_(value)
            graph.replay()
            wrong += (out != first[turn % len(inputs)]).any()
        found = {"replays": replays, "wrong": int(wrong), "counters_left": _counters_left(), "nans": _nans(first)}
    if found["wrong"] or found["counters_left"] or found["nans"]:
        raise UnequalError(str(found), found)
    return found


def _counters_left() -> int:
    """Of all graphs of the device."""
    import torch

    from kvtool.kernels.triton import gpu

    counters = gpu.arrivals(torch.device(DEVICE, torch.cuda.current_device()), 1)
    of_graphs = gpu._kept_arrivals(torch.device(DEVICE, torch.cuda.current_device()), gpu.GRAPHS)
    return int(of_graphs.count_nonzero()) + int(counters.count_nonzero())


def _nans(outputs: Sequence[Tensor]) -> int:
    return sum(int(output.isnan().any()) for output in outputs)


def _splits_of(call: Callable[[], Tensor]) -> int:
    """Programs of a launch that share a sequence."""
    from unittest.mock import patch

    from kvtool.kernels.triton import attention

    asked: list[int] = []
    num_splits = attention.rules.num_splits

    def seen(*given: int) -> int:
        asked.append(num_splits(*given))
        return asked[-1]

    with patch.object(attention.rules, "num_splits", seen):
        call()
    return asked[-1]


def _lengths() -> list[torch.Tensor]:
    """Short ones, long ones, and all that lie between."""
    import torch

    random = torch.Generator().manual_seed(0)
    drawn = torch.randint(1, MAX_CONTEXT + 1, (INPUTS,), generator=random).tolist()
    drawn[:4] = [1, PAGE, PAGE + 1, MAX_CONTEXT]
    return [torch.tensor([length], dtype=torch.int32, device=DEVICE) for length in drawn]


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    import torch

    random = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(shape, generator=random, device=DEVICE).bfloat16()


if __name__ == "__main__":
    sys.exit(serve(cases))
