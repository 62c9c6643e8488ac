"""What a card has left for the cache of TensorRT-LLM or LMDeploy: a share of what is free after the weights.

TensorRT-LLM runs max_num_tokens once and takes its peak off first (_torch/pyexecutor/_util.py: _cal_max_memory);
TurboMind asks the driver once the weights are there (BlockManager.cc: GetBlockCount).
"""

from __future__ import annotations

from dataclasses import replace

from kvtool.sizing.engines.estimates import Estimate, Estimates
from kvtool.sizing.engines.free_share.plan import RULES, share_of
from kvtool.sizing.engines.options import EngineOptions
from kvtool.units import MIB, format_bytes

# What CUDA had taken of H100s before anything was loaded, in 33 public starts of vLLM (examples/accuracy): 0.51 GiB.
CONTEXT_BYTES = 522 * MIB


def estimates(taken: Estimates, options: EngineOptions, *, free_bytes: int, weights_bytes: int) -> Estimates:
    """`taken` is what vLLM's forward pass of as many tokens takes and what it has outside of torch, the nearest that
    was worked out: their margins are all of them. A step runs in what the share leaves, unless it is profiled first.
    """
    rules = RULES[options.name]
    profiled = options.name == "tensorrt-llm"
    step = taken.activation.bytes if profiled else 0
    outside = taken.runtime.bytes + CONTEXT_BYTES
    left = max(0, free_bytes - weights_bytes - step - outside)
    kept = round((1 - share_of(options)) * left)
    how = f"a step of {rules.step_tokens:,} tokens is taken to be vLLM's" if profiled else "a step runs in what is kept"
    return replace(
        taken,
        activation=Estimate(bytes=step, margin_bytes=step, text=f"{rules.title}: {how}, not measured"),
        runtime=Estimate(
            bytes=outside,
            margin_bytes=outside,
            text=f"{format_bytes(outside)} of CUDA's context and kernels, as vLLM's starts had; not measured here",
        ),
        graphs=Estimate(
            bytes=kept,
            margin_bytes=0,
            text=f"{format_bytes(kept)} of {format_bytes(left)} free stay so ({rules.flag})",
        ),
    )
