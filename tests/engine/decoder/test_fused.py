"""Steps of few rows give norms and sums to the products: what they say is what transformers says, and launches are few.

Launches are counted where there is no GPU: kernels are taken down in place of being run, over tensors that have shapes
and no values, and every operation of torch that is no view counts as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kvtool.engine.graphs.decode_step import decode_rows, decode_step
from kvtool.engine.loaded import LoadedModel
from kvtool.engine.pool import KvPool
from kvtool.engine.sampler import Draw
from kvtool.kernels import load_kernels
from tests.engine.conftest import SaveTiny
from tests.engine.running import as_it_is, engine_of, generate, largest_difference, load, prompt, use
from tests.engine.tiny import CONFIGS, MAX_POSITIONS

BLOCK_SIZE = 16

# Of one layer of a decode of one sequence: what lies between two layers of the same kind, by the names of `tiny`.
# Six are: QKV, its heads to query and cache, attention, output, gate and up, down.
LAUNCHES = {
    **dict.fromkeys(("llama-2-mha", "llama-3-gqa", "llama-mqa-tied", "llama-biased", "llama-wide-heads"), 6),
    **dict.fromkeys(("mistral-window", "qwen2", "qwen3", "smollm3", "smollm3-listed", "phi3", "phi3-longrope"), 6),
    # Two, of a router and experts, in the place of an MLP's two.
    **dict.fromkeys(("mixtral", "qwen3-moe", "gpt-oss"), 7),
    # Latents take a product by head more, and a query through a low rank another.
    **dict.fromkeys(("deepseek-v2-lite", "deepseek-v3-halves"), 8),
    **dict.fromkeys(("deepseek-v2-yarn", "deepseek-v3"), 9),
    # A norm behind a branch needs all of it before any of the sum: one launch for both norms and the sum.
    **dict.fromkeys(("gemma2", "gemma3"), 8),
    # LayerNorms, and what is not gated, are torch's own.
    **dict.fromkeys(("gpt2", "opt"), 9),
    # Q and K are normalised over all of their heads, and put together again.
    "olmo2": 11,
}


class Launches(TorchDispatchMode):
    """Counts what a device would be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        makes = name in ("empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view", "detach")
        if func.namespace == "aten" and not makes and not func.is_view:
            self.names[name] += 1
        return found


@contextmanager
def taken_down(counts: Launches) -> Iterator[None]:
    """Triton's launches are counted and run nothing; of a product's ways the first of Triton's own is taken."""
    from kvtool.kernels.triton import attention, experts, pairs, products, route, rows, sample, step, store

    class Taken:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **kwargs: counts.names.update([self.name])

    def way(x, weight, bias=None, plus=None, around=products.NOTHING):
        ways = list(products.candidates(len(x), weight, around).values())
        return ways[1](x, weight, bias, plus, around)

    arrivals = patch("kvtool.kernels.triton.gpu.arrivals", lambda device, count: torch.empty(count, dtype=torch.int32))
    with arrivals, patch.object(products, "linear", way):
        patches = [
            patch.object(module, name, Taken(name))
            for module in (attention, experts, pairs, products, route, rows, sample, step, store)
            for name in vars(module)
            if name.endswith("_kernel")
        ]
        for one in patches:
            one.start()
        try:
            yield
        finally:
            for one in patches:
                one.stop()


def launches_of_a_decode(loaded: LoadedModel) -> Counter[str]:
    rows = decode_rows(1, MAX_POSITIONS, BLOCK_SIZE, torch.device("cpu"))
    pool, counts = KvPool(loaded.specs, 4, BLOCK_SIZE, loaded.device), Launches()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode(), counts, taken_down(counts):
        batch = rows.next_batch(BLOCK_SIZE, loaded.kernels)
        loaded.transformer(batch, pool.layers[: len(loaded.transformer.layers)], loaded.kernels)
    return counts.names


@pytest.mark.parametrize(("name", "launches"), LAUNCHES.items(), ids=LAUNCHES)
def test_launches_a_layer(tiny: SaveTiny, name: str, launches: int) -> None:
    loaded = load(tiny(name).folder)
    use(loaded, load_kernels("triton"))
    more = launches_of_a_decode(loaded)
    del loaded.transformer.layers[-1]
    fewer = launches_of_a_decode(loaded)
    assert (more - fewer).total() == launches, dict(more - fewer)


@pytest.mark.parametrize(("name", "last"), [("llama-3-gqa", "largest_kernel"), ("gemma2", "max")])
def test_a_greedy_step_makes_no_logits(tiny: SaveTiny, name: str, last: str) -> None:
    """A launch looks at the largest of each block; the soft-cap of Gemma rounds, and comes before."""
    loaded = load(tiny(name).folder)
    use(loaded, load_kernels("triton"))
    rows = decode_rows(1, MAX_POSITIONS, BLOCK_SIZE, torch.device("cpu"))
    pool, counts = KvPool(loaded.specs, 4, BLOCK_SIZE, loaded.device), Launches()
    with FakeTensorMode(allow_non_fake_inputs=True), counts, taken_down(counts):
        decode_step(loaded, pool, rows, Draw.GREEDY, torch.Generator(), None)
    assert {kind: counts.names[kind] for kind in ("largest_kernel", "max")} == {
        kind: int(kind == last) for kind in ("largest_kernel", "max")
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_fused_steps_say_what_transformers_says(tiny: SaveTiny, name: str) -> None:
    """Their twins: a prompt in chunks, a decode beside another's prefill, and a step as graphs hold it."""
    reference = tiny(name)
    loaded = load(reference.folder, max_num_batched_tokens=16)
    use(loaded, load_kernels("reference"))
    for sequence in generate(engine_of(loaded, capture=as_it_is), [prompt(21), prompt(3)], 3):
        assert largest_difference(reference, sequence) < 1e-4
