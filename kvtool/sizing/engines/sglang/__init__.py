"""SGLang's pools: what it would allocate of the memory it is given, from its own rules."""

from kvtool.sizing.engines.sglang.document import size_engine
from kvtool.sizing.engines.sglang.plan import VERSION, SglangPlan, plan

__all__ = ["VERSION", "SglangPlan", "plan", "size_engine"]
