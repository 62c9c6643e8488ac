"""vLLM's groups and blocks: what it would allocate of the memory it is given, from its own rules."""

from kvtool.sizing.engines.vllm.document import assumptions, size_engine
from kvtool.sizing.engines.vllm.inputs import capability_of
from kvtool.sizing.engines.vllm.loaded import beside_weights
from kvtool.sizing.engines.vllm.memory import Graphs, captured, estimates, graphs_bytes
from kvtool.sizing.engines.vllm.plan import VERSION, VllmPlan, capacity, plan
from kvtool.sizing.engines.vllm.refusal import RefusedError, check_free
from kvtool.sizing.engines.vllm.versions import HISTORY, rules_at, rules_of

__all__ = [
    "HISTORY",
    "VERSION",
    "Graphs",
    "RefusedError",
    "VllmPlan",
    "assumptions",
    "beside_weights",
    "capability_of",
    "capacity",
    "captured",
    "check_free",
    "estimates",
    "graphs_bytes",
    "plan",
    "rules_at",
    "rules_of",
    "size_engine",
]
