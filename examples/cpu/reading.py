"""How fast decode reads on this CPU: attention over pages and products, out of memory, beside a plain stream in turns.

python examples/cpu/reading.py
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from kvtool.kernels.cpu import products
from kvtool.kernels.cpu.native import Native, native
from kvtool.kernels.weights import Weight

POOL_BYTES = 200_000_000  # of all layers, which take turns: more than a core's own caches hold
BLOCK_SIZE = 16
ROUNDS = 9
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Shape:
    """A batch of sequences of `tokens`, and the heads of a layer."""

    heads: int
    kv_heads: int
    dim: int
    batch: int
    tokens: int


SHAPES = (Shape(9, 3, 64, 8, 512), Shape(9, 3, 64, 1, 2048), Shape(9, 3, 64, 8, 2048), Shape(32, 8, 128, 8, 2048))
ROWS = (1, 2, 4, 8, 16)


def attention(kernels: Native, shape: Shape, order: str) -> tuple[int, Work, Work]:
    """Bytes of K and V of all layers, a decode of each, and a stream over them. Pages lie one after another, or not."""
    pages = shape.batch * shape.tokens // BLOCK_SIZE
    k, v = (torch.ones(pages, BLOCK_SIZE, shape.kv_heads, shape.dim, dtype=torch.bfloat16) for _ in "kv")
    layers = [(k.clone(), v.clone()) for _ in range(max(2, POOL_BYTES // (2 * k.nbytes)))]
    numbers = torch.arange(pages) if order == "in order" else torch.randperm(pages)
    table = numbers.int().view(shape.batch, -1)
    lengths = torch.full((shape.batch,), shape.tokens, dtype=torch.int32)
    q = torch.randn(shape.batch, shape.heads, shape.dim).bfloat16()

    def decode() -> torch.Tensor:
        return [kernels.paged_decode(q, k, v, table, lengths, shape.dim**-0.5, 0) for k, v in layers][-1]

    return sum(2 * k.nbytes for k, _ in layers), replayed(kernels, decode), lambda: stream(kernels, layers)


def product(kernels: Native, rows: int) -> tuple[int, Work, Work]:
    """The same of weights [3072, 576] and `rows` rows."""
    weights = [products.prepare(Weight(torch.ones(3072, 576, dtype=torch.bfloat16))) for _ in range(60)]
    x = torch.randn(rows, 576).bfloat16()
    plain = [(weight.weight,) for weight in weights]

    def multiply() -> torch.Tensor:
        return [products.linear(x, weight) for weight in weights][-1]

    return sum(weight.weight.nbytes for weight in weights), replayed(kernels, multiply), lambda: stream(kernels, plain)


def replayed(kernels: Native, step: Callable[[], torch.Tensor]) -> Work:
    """The step as one call, as the engine has it done."""
    replay = kernels.record(step)[1]
    assert replay is not None

    def again(held: object = step) -> None:  # what the step reads must outlive its replay
        replay()

    return again


def stream(kernels: Native, layers: list[tuple[torch.Tensor, ...]]) -> None:
    for tensors in layers:
        for tensor in tensors:
            kernels.read_all(tensor)


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def line(name: str, moved: int, times_s: list[float], stream_s: list[float]) -> str:
    """GB/s of both, and the median over rounds of the stream's time over the work's in the same round."""
    share = statistics.median(other / mine for mine, other in zip(times_s, stream_s, strict=True))
    mine, other = (moved / statistics.median(times) / 1e9 for times in (times_s, stream_s))
    return f"{name:<44}{mine:6.1f}{other:9.1f}{share:7.2f}"


def lines(kernels: Native) -> Iterator[str]:
    cases = {
        f"{shape.batch} x {shape.tokens}, {shape.heads}/{shape.kv_heads} heads of {shape.dim}, pages {order}": (
            lambda shape=shape, order=order: attention(kernels, shape, order)
        )
        for shape in SHAPES
        for order in ("in order", "at random")
    } | {f"product of {rows} rows": (lambda rows=rows: product(kernels, rows)) for rows in ROWS}
    for name, case in cases.items():
        moved, work, plain = case()
        rounds = [(seconds(work), seconds(plain)) for _ in range(ROUNDS)]
        yield line(name, moved, [mine for mine, _ in rounds], [other for _, other in rounds])


def main() -> None:
    kernels = native()
    if kernels is None:
        sys.exit("the compiled kernels are not here: install gcc")
    print(f"{'bf16, GB/s':<44}{'reads':>6}{'stream':>9}{'share':>7}")
    for text in lines(kernels):
        print(text, flush=True)


if __name__ == "__main__":
    main()
