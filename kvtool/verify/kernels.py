"""Which kind of card a log was written on, by the kernels and the capability that it names, where nobody names it."""

from __future__ import annotations

from kvtool.catalog.gpus import Gpu, find_gpu
from kvtool.verify.facts import LogFacts

# A card of each CUDA capability: what kernels take is the same on all of one. Its memory is not the log's.
_BY_CAPABILITY = {
    "8.0": "A100-SXM-80GB",
    "8.6": "RTX-3090-24GB",
    "8.9": "L40S-48GB",
    "9.0": "H100-SXM-80GB",
    "10.0": "B200-SXM-180GB",
    "12.0": "RTX-PRO-6000-Blackwell-96GB",
}
# FlashInfer computes gated delta nets from Hopper on; SGLang's defaults by card.
_BY_DELTA_NET = {"Triton/FLA": "8.9", "FlashInfer": "9.0"}
_BY_BACKEND = {"trtllm_mha": "10.0", "trtllm_mla": "10.0", "fa3": "9.0"}


def kernels_card(facts: LogFacts) -> Gpu | None:
    """A card with the kernels that the log tells of; None where it tells of none."""
    flags = facts.flags
    capability = flags.get("capability") or _BY_DELTA_NET.get(flags.get("delta_net_kernel", ""))
    if facts.engine == "sglang":
        capability = capability or _BY_BACKEND.get(flags.get("attention_backend", ""))
    name = _BY_CAPABILITY.get(capability or "")
    return None if name is None else find_gpu(name)
