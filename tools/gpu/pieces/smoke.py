"""First of all: is there a card, what is installed, and does every kernel give once what its reference gives."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tools.gpu.cases import Case, NoDeviceError, Result, serve
from tools.gpu.journal import Journal
from tools.gpu.pieces.measuring import DEVICE, PAGE, Batch, UnequalError, bench_document, measured_ceiling
from tools.gpu.pieces.variants import instead
from tools.gpu.plan import FOR_TESTS, NEEDED, tool, workers
from tools.gpu.store import Store

SMOKE_CEILING_S = 0.3
PACKAGES = (
    *NEEDED,
    *FOR_TESTS,
    "nvidia-ml-py",
    "flash-attn",
    "flash-attn-3",
    "flashinfer-python",
    "vllm",
    "sglang",
)
# Model, part, context, batch, cache: one sequence split among all programs, several whole ones, each kind of kernel.
CALLS = (
    ("llama-3.1-8b", "decode", 16384, 1, "bf16"),
    ("llama-3.1-8b", "decode", 300, 64, "bf16"),
    ("llama-3.1-8b", "decode", 1024, 2, "fp8"),
    ("llama-3.1-8b", "prefill", 1024, 1, "bf16"),
    ("llama-3.1-8b", "store", 1, 4, "bf16"),
    ("deepseek-v2-lite", "decode", 1024, 2, "bf16"),
    ("deepseek-v3", "decode", 1024, 2, "bf16"),
    ("deepseek-v2-lite", "prefill", 1024, 1, "bf16"),
    ("deepseek-v2-lite", "store", 1, 4, "bf16"),
)
MODELS = ("qwen3-0.6b", "deepseek-v2-lite", "gemma-3-1b")


def cases(given: Namespace) -> Sequence[Case]:
    """Of every kernel, and of two layers of each kind of model, by graphs."""
    store = Store(given.folder, given.spare)
    return [
        Case("device", device),
        Case("environment", environment),
        Case("limits", partial(limits, store)),
        *(Case(" ".join(map(str, call)), partial(attention, *call)) for call in CALLS),
        *(Case(f"products of {rows} rows", partial(products, rows)) for rows in (1, 16)),
        *(case for name in MODELS for case in of_model(store, name, Journal(store, given.piece))),
    ]


def device() -> Result:
    """Raises NoDeviceError without one."""
    import torch

    if not torch.cuda.is_available():
        raise NoDeviceError(
            f"no CUDA device: torch {torch.__version__} of {sys.executable} sees none, so nothing was measured"
        )
    torch.ones(1, device=DEVICE).sum().item()
    return None


def environment() -> Result:
    """Versions, tools and what the driver says of the card."""
    from kvtool.machine.environment import describe_environment

    return {
        "environment": describe_environment(f"{DEVICE}:0"),
        "packages": {name: _version(name) for name in PACKAGES},
        "tools": {name: tool(name) is not None for name in ("ncu", "nsys", "compute-sanitizer", "nvcc")},
        "cpus": os.cpu_count(),
        "test_processes": workers(),
        "nvidia_smi": subprocess.run(["nvidia-smi", "-q"], capture_output=True, text=True, timeout=20).stdout
        if tool("nvidia-smi")
        else None,
    }


def _version(name: str) -> str | None:
    try:
        return version({"yaml": "pyyaml"}.get(name, name))
    except PackageNotFoundError:
        return None


def limits(store: Store) -> Result:
    """A first look, for what is measured before the device's limits are."""
    measured_ceiling(store, seconds=SMOKE_CEILING_S)
    return None


def attention(model: str, part: str, context: int, batch_size: int, cache: str, where: str = DEVICE) -> Result:
    """One call on pages in random order, against the reference kernels."""
    import torch

    from kvtool.bench.kernels.calls import Measurement, filled_pool
    from kvtool.bench.kernels.options import KernelsOptions
    from kvtool.bench.kernels.work import plan
    from kvtool.catalog.resolve import resolve_model
    from kvtool.kernels import load_kernels
    from kvtool.sizing.formats import parse_cache_format

    options = KernelsOptions(
        contexts=(context,),
        batch_sizes=(batch_size,),
        chunk_len=context,
        num_iters=1,
        block_sizes=(PAGE,),
        device=where,
        parts=(part,),
    )
    found: dict[str, Any] = {}
    for work in plan(resolve_model(model), options, [parse_cache_format(cache, "bf16")], "bf16"):
        place = torch.device(where)
        random = torch.Generator(place).manual_seed(0)
        with torch.inference_mode():
            pool = filled_pool(work, work.call_pages, place, random)
            kernels = load_kernels("triton" if place.type == "cuda" else "torch")
            check = Measurement(work, kernels, pool, 1, random).check()
        if not check.outputs_equal:
            raise UnequalError(f"{work.kernel}: {check.text}", found)
        found[work.kernel] = {"max_abs_diff": check.max_abs_diff, "check": check.text}
    return found


def products(rows: int) -> Result:
    """Every way, with a bias and a residual."""
    import torch

    from kvtool.kernels.reference import step as reference
    from kvtool.kernels.triton.products import Around, candidates

    random = torch.Generator(DEVICE).manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=DEVICE).bfloat16()

    x, weight, bias, plus = drawn(rows, 4096), drawn(2048, 4096) / 64, drawn(2048), drawn(rows, 2048)
    exact = reference.product(*(each.double() for each in (x, weight, bias, plus)))
    errors = {
        name: float((way(x, weight, bias, plus).double() - exact).abs().max())
        for name, way in candidates(rows, weight).items()
    }
    product = exact - plus.double() - bias.double()
    for name, way in candidates(rows, weight).items():
        largest = way(x, weight, None, None, Around(largest=True))
        errors[f"{name}, largest"] = float((product.max(1).values - product.gather(1, largest[:, None])[:, 0]).max())
    if max(errors.values()) > 0.1:
        raise UnequalError(f"largest differences {errors}", None)
    return {"largest_differences": errors}


def of_model(store: Store, name: str, journal: Journal) -> list[Case]:
    """Two layers of it, and in order where that goes wrong: what starts early is then what to look at."""
    case = Case(f"two layers of {name}", partial(two_layers, store, name))
    return [case, instead("in order", case, journal)]


def two_layers(store: Store, model: str) -> Result:
    """A prompt and four tokens by graphs, and one step against the reference kernels."""
    return bench_document(store, Batch(model, 100, 1, 4, num_layers=2), num_iters=1) and None


if __name__ == "__main__":
    sys.exit(serve(cases))
