"""SGLang's pools: what it would allocate of the memory it is given, from its own rules."""

from kvtool.sizing.engines.sglang.document import assumptions, size_engine
from kvtool.sizing.engines.sglang.memory import estimate_pool_bytes
from kvtool.sizing.engines.sglang.plan import VERSION, SglangPlan, capacity, plan
from kvtool.sizing.engines.sglang.versions import HISTORY

__all__ = ["HISTORY", "VERSION", "SglangPlan", "assumptions", "capacity", "estimate_pool_bytes", "plan", "size_engine"]
