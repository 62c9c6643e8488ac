"""vLLM's groups and blocks: what it would allocate of the memory it is given, from its own rules."""

from kvtool.sizing.engines.vllm.document import assumptions, size_engine
from kvtool.sizing.engines.vllm.plan import VERSION, VllmPlan, capacity, plan

__all__ = ["VERSION", "VllmPlan", "assumptions", "capacity", "plan", "size_engine"]
