"""TensorRT-LLM and LMDeploy: one pool of equal blocks, in a share of what is free once the model is loaded."""

from kvtool.sizing.engines.free_share.memory import estimates
from kvtool.sizing.engines.free_share.plan import (
    NAMES,
    RULES,
    FreeSharePlan,
    assumptions,
    bytes_per_token,
    capacity,
    plan,
    size_engine,
)

__all__ = [
    "NAMES",
    "RULES",
    "FreeSharePlan",
    "assumptions",
    "bytes_per_token",
    "capacity",
    "estimates",
    "plan",
    "size_engine",
]
