"""What `kvtool kernels` is asked to run, and what it runs when it is not told. Knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvtool.bench.peers import peer_names
from kvtool.engine.config import DEFAULT_BLOCK_SIZE, DTYPES, default_block_size
from kvtool.machine.device import resolve_device
from kvtool.system.errors import KvtoolError

PARTS = ("decode", "prefill", "store")
CPU_MODEL, GPU_MODEL = "smollm2-135m", "llama-3.1-8b"
CPU_GRID: dict[str, Any] = {"contexts": (512, 4096), "batch_sizes": (1, 8), "chunk_len": 512, "num_iters": 5}
GPU_GRID: dict[str, Any] = {
    "contexts": (1024, 8192, 32768),
    "batch_sizes": (1, 8, 32),
    "chunk_len": 2048,
    "num_iters": 20,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelsOptions:
    """The grid: every context with every batch size, cache dtype and page size. Lengths are tokens.

    `parts` are the kinds of calls. `chunk_len` is the tokens of a prefill chunk, the last of its context.
    `drop_oversized` leaves out what does not fit the memory, where nobody asked for it by name. `peers` are names of
    `kvtool.bench.peers`.
    """

    contexts: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    chunk_len: int
    num_iters: int
    num_iters_warmup: int = 1
    kv_cache_dtypes: tuple[str, ...] = ("auto",)
    block_sizes: tuple[int, ...] = (DEFAULT_BLOCK_SIZE,)
    dtype: str = "auto"
    device: str = "auto"
    backend: str = "auto"
    seed: int = 0
    drop_oversized: bool = False
    parts: tuple[str, ...] = PARTS
    peers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = {
            "context": self.contexts,
            "batch size": self.batch_sizes,
            "block size": self.block_sizes,
            "chunk-len": (self.chunk_len,),
            "num-iters": (self.num_iters,),
        }
        for name, values in counts.items():
            for value in values:
                if value < 1:
                    raise KvtoolError(f"{name} {value} must be at least 1")
        peer_names(self.peers)  # refuses unknown ones
        if self.num_iters_warmup < 0:
            raise KvtoolError(f"num-iters-warmup {self.num_iters_warmup} must not be negative")
        if self.dtype not in ("auto", *DTYPES):
            raise KvtoolError(f"dtype {self.dtype!r} is not one the kernels compute in: auto, {', '.join(DTYPES)}")


def default_model(device: str) -> str:
    """A larger one on a GPU."""
    return GPU_MODEL if _on_gpu(device) else CPU_MODEL


def kernels_options(device: str, **given: Any) -> KernelsOptions:
    """The options given, and the device's defaults for those that are None."""
    given["block_sizes"] = given.get("block_sizes") or (default_block_size(device),)
    chosen = {name: value for name, value in given.items() if value is not None}
    asked = {"contexts", "batch_sizes"} & chosen.keys()
    grid = GPU_GRID if _on_gpu(device) else CPU_GRID
    return KernelsOptions(**{**grid, **chosen}, device=device, drop_oversized=not asked)


def _on_gpu(device: str) -> bool:
    return resolve_device(device).type == "cuda"
