"""llama.cpp's caches, and Ollama's, which starts it: the cells allocated for a context, whatever the memory."""

from kvtool.sizing.engines.llama_cpp.document import assumptions, size_engine
from kvtool.sizing.engines.llama_cpp.memory import LlamaCppCard, fullest_card, start_for
from kvtool.sizing.engines.llama_cpp.plan import NAMES, VERSION, LlamaCppPlan, capacity, plan, plan_of
from kvtool.sizing.engines.llama_cpp.start import LlamaCppFlags, llama_cpp_start, ollama_start

__all__ = [
    "NAMES",
    "VERSION",
    "LlamaCppCard",
    "LlamaCppFlags",
    "LlamaCppPlan",
    "assumptions",
    "capacity",
    "fullest_card",
    "llama_cpp_start",
    "ollama_start",
    "plan",
    "plan_of",
    "size_engine",
    "start_for",
]
