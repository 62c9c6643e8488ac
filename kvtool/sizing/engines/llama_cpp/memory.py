"""What llama.cpp takes of a card beside its caches: the weights of the layers there, what it computes in, and CUDA.

There is no share to keep to: it allocates what it needs, or fails. llama-server moves layers to the CPU where less than
--fit-target would stay free, unless --n-gpu-layers says how many are on the GPU (common/fit.cpp).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kvtool.catalog.model import RecurrentLayer
from kvtool.sizing.engines.estimates import Estimate, Estimates
from kvtool.sizing.engines.llama_cpp.compute import compute_bytes
from kvtool.sizing.engines.llama_cpp.plan import LlamaCppPlan, device_of, plan_of
from kvtool.sizing.engines.options import EngineOptions
from kvtool.sizing.weights import Weights
from kvtool.units import MIB, format_bytes

# What Ollama sets aside on every card (discover/gpu.go: cudaMinimumMemory); public starts of llama-server found 180 MiB
# (RTX 2000 Ada), 264 and 279 (RTX 3090) and 472 (RTX 4090) gone before anything was loaded.
CUDA_BYTES, CUDA_ERROR_BYTES = 457 * MIB, 277 * MIB
FIT_TARGET_BYTES = 1024 * MIB  # --fit-target, by default
# Of the compute buffer: dense models on one GPU met their logs; what experts, states and more GPUs add is not counted.
COMPUTE_ERROR, UNCOUNTED_COMPUTE_ERROR = 0.05, 1.0


def start_for(options: EngineOptions, *, tokens: int, batch_size: int) -> EngineOptions:
    """The start whose -c holds a batch of sequences of `tokens` tokens, in a slot each where there are several."""
    slots = options.slots or (batch_size if batch_size > 1 else None)
    cells = tokens if options.name == "ollama" else tokens * batch_size
    return replace(options, slots=slots, max_model_len=cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppCard:
    """The fullest of the GPUs that a start's layers are dealt out to, number `gpu`."""

    options: EngineOptions
    plan: LlamaCppPlan
    weights: Weights
    gpu: int

    @property
    def num_gpus(self) -> int:
        return len(self.plan.flags.tensor_split)

    @property
    def weights_bytes(self) -> int | None:
        return weights_on(self.weights, self.plan, self.gpu)

    def bytes_per_gpu(self, *, tokens: int, batch_size: int, shared_prefix: int = 0) -> int:
        """Its caches where every sequence of a batch has `tokens` tokens: a larger -c, in which a prefix is not shared.
        Where the start is refused there are none.
        """
        start = start_for(self.options, tokens=tokens, batch_size=batch_size)
        return plan_of(self.plan.model, start).bytes_on(self.gpu)

    def estimates(self) -> Estimates:
        compute, model = compute_bytes(self.plan), self.plan.model
        states = any(isinstance(layer.cache, RecurrentLayer) for layer in model.layers)
        counted = model.moe is None and not states and self.num_gpus == 1
        error = COMPUTE_ERROR if counted else UNCOUNTED_COMPUTE_ERROR
        why = "met by four public logs" if counted else "what experts, states and further GPUs add is not counted"
        return Estimates(
            activation=Estimate(
                bytes=compute,
                margin_bytes=round(error * compute),
                text=f"llama.cpp computes {self.plan.start.ubatch:,} tokens in {format_bytes(compute)}: {why}",
            ),
            runtime=Estimate(
                bytes=CUDA_BYTES,
                margin_bytes=CUDA_ERROR_BYTES,
                text=f"{format_bytes(CUDA_BYTES)} for CUDA, as Ollama sets aside; starts lost 180 to 472 MiB to it",
            ),
            graphs=self._kept_free(),
        )

    def _kept_free(self) -> Estimate:
        if self.options.name == "ollama" or self.plan.flags.n_gpu_layers is not None:
            return Estimate(bytes=0, margin_bytes=0, text="nothing is kept free")
        text = f"{format_bytes(FIT_TARGET_BYTES)} stay free (--fit-target), or llama-server moves layers to the CPU"
        return Estimate(bytes=FIT_TARGET_BYTES, margin_bytes=0, text=text)


def fullest_card(weights: Weights, options: EngineOptions) -> LlamaCppCard:
    """The GPU with most weights and caches on it, of a start with `options`. Raises KvtoolError as its plan."""
    plan = plan_of(weights.model, options)

    def held(gpu: int) -> int:
        return (weights_on(weights, plan, gpu) or 0) + plan.bytes_on(gpu)

    fullest = max(range(len(plan.flags.tensor_split)), key=held)
    return LlamaCppCard(options=options, plan=plan, weights=weights, gpu=fullest)


def weights_on(weights: Weights, plan: LlamaCppPlan, gpu: int) -> int | None:
    """Bytes of the layers on one GPU, and of the output head where it is there; the input embedding stays on the CPU,
    of which a tied head is a copy. None where the weights are not known; without their split, by the number of layers.
    """
    if weights.stored_bytes is None:
        return None
    params, stored, count = weights.params, weights.format, plan.model.num_layers
    here = [index for index in range(count) if device_of(index, count, plan.flags) == gpu]
    has_head = device_of(count, count, plan.flags) == gpu
    if params is None:
        return math.ceil(weights.stored_bytes * (len(here) + has_head) / (count + 1))
    layers = sum(sum(stored.bits_of(params.by_layer[index], index)) for index in here)
    every = sum(sum(stored.bits_of(layer, index)) for index, layer in enumerate(params.by_layer))
    beyond = (
        8 * weights.stored_bytes - every - stored.outer(params)
    )  # norms, towers and the like, spread over the layers
    head = stored.read_head(params) if has_head else 0
    return math.ceil((layers + beyond * len(here) / count + head) / 8)
