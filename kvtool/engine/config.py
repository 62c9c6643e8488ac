"""How a model is run: device, dtypes, pages and limits, resolved once and never changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvtool.cache.admission import check_admission
from kvtool.cache.index.index import check_index
from kvtool.cache.tiers.options import TierOptions
from kvtool.catalog.model import Model
from kvtool.engine.preemption import preemption_policy
from kvtool.machine.device import resolve_device
from kvtool.sizing.dtypes import canonical_dtype
from kvtool.system.errors import KvtoolError

if TYPE_CHECKING:
    import torch

DTYPES = ("fp32", "bf16", "fp16")
DEFAULT_BLOCK_SIZE, CUDA_BLOCK_SIZE = 16, 64
MAX_SEED = 2**32 - 1  # of a longer one, torch's CPU generator would see the last 32 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What a run is made with. `weights` is "random", or a folder or .gguf file; `num_layers` None runs them all;
    `graphs` lets decode steps be CUDA graphs where they can be; `other_cores` are those that others keep busy, beside
    whom fewer threads may run where `threads` does not say how many; `partial_hits` copies the part of a cached page
    that a prompt shares; `tiers` below the block pool hold cached prefixes."""

    weights: str = "random"
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    device: str = "auto"
    backend: str = "auto"
    block_size: int = DEFAULT_BLOCK_SIZE
    num_layers: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    prefill_first: bool = False
    prefix_caching: bool = True
    index: str = "radix"
    eviction: str = "lru"
    admission: str = "always"
    preemption: str = "youngest"
    partial_hits: bool = False
    tiers: TierOptions | None = None
    graphs: bool = True
    threads: int | None = None
    other_cores: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise KvtoolError(f"{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise KvtoolError(f"seed {self.seed} must be from 0 to {MAX_SEED}")
        if self.dtype not in ("auto", *DTYPES):
            raise KvtoolError(f"dtype {self.dtype!r} is not one the engine runs: auto, {', '.join(DTYPES)}")
        check_index(self.index, self.eviction)
        check_admission(self.admission)
        preemption_policy(self.preemption)
        if self.partial_hits and self.index != "radix":
            raise KvtoolError(f"the {self.index} index finds whole pages alone: for partial hits take index radix")
        if self.backend not in ("auto", "triton", "torch"):
            raise KvtoolError(f"backend {self.backend!r} is not one of auto, triton, torch")


def default_block_size(device: str) -> int:
    """Tokens a page where nobody says how many: on CUDA as many keys as a tile has, which TMA then copies as one box of
    one page; fewer elsewhere, where nothing is gained and less is left over. Raises as `resolve_device` does."""
    if device == "cpu":
        return DEFAULT_BLOCK_SIZE
    return CUDA_BLOCK_SIZE if resolve_device(device).type == "cuda" else DEFAULT_BLOCK_SIZE


def resolve_backend(name: str, device: torch.device) -> str:
    """`auto` is Triton on a GPU and torch on a CPU. Raises KvtoolError for Triton without a GPU."""
    if name == "auto":
        return "triton" if device.type == "cuda" else "torch"
    if name == "triton" and device.type != "cuda":
        raise KvtoolError("backend 'triton' needs a CUDA device: use 'torch' on a CPU")
    return name


def resolve_dtype(name: str, model: Model, device: torch.device) -> str:
    """`auto` is the model's own dtype; bf16 where the engine does not run it, or it is fp16 on a CPU (slow there)."""
    if name != "auto":
        return name
    own = canonical_dtype(model.dtype or "bf16")
    return own if own in DTYPES and not (own == "fp16" and device.type == "cpu") else "bf16"


def truncated(model: Model, num_layers: int | None) -> Model:
    """The first `num_layers` layers of a model. Raises KvtoolError when it has fewer."""
    if num_layers is None:
        return model
    if not 1 <= num_layers <= model.num_layers:
        raise KvtoolError(f"--num-layers {num_layers} must be from 1 to the {model.num_layers} layers of {model.id}")
    return replace(model, layers=model.layers[:num_layers], params_total=None)
