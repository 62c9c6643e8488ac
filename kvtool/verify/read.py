"""From the lines of a log or of /metrics to the facts in it, whichever engine wrote it."""

from __future__ import annotations

from collections.abc import Iterable

from kvtool.system.errors import KvtoolError
from kvtool.verify.facts import LogFacts
from kvtool.verify.lines import windows
from kvtool.verify.readers import llama_cpp, lmdeploy, metrics, sglang, tensorrt_llm, vllm

_TABLES = (
    metrics.VLLM,
    metrics.SGLANG,
    vllm.PATTERNS,
    sglang.PATTERNS,
    llama_cpp.PATTERNS,
    tensorrt_llm.PATTERNS,
    lmdeploy.PATTERNS,
)
_READERS = (
    metrics.read_vllm_metrics,
    metrics.read_sglang_metrics,
    vllm.read_vllm_log,
    sglang.read_sglang_log,
    llama_cpp.read_llama_cpp_log,
    tensorrt_llm.read_tensorrt_llm_log,
    lmdeploy.read_lmdeploy_log,
)
_MARKERS = tuple({found.marker for table in _TABLES for found in table})
_MAX_LINES = 200_000  # telling lines kept; a start has some dozens


def read_facts(lines: Iterable[str], name: str) -> LogFacts:
    """What the log says. Raises KvtoolError, with `name` of the log, where nothing in it is an engine's."""
    telling = []
    for line, following in windows(lines):
        if any(marker in line for marker in _MARKERS):
            telling.append((line, following))
            if len(telling) == _MAX_LINES:
                break
    found = [facts for reader in _READERS if (facts := reader(telling)) is not None]
    if not found:
        raise KvtoolError(
            f"{name} has no line that kvtool knows: it reads start-up logs of vLLM, SGLang, llama.cpp, Ollama, "
            "TensorRT-LLM and LMDeploy, and /metrics of vLLM and SGLang"
        )
    return max(found, key=_weight)


def _weight(facts: LogFacts) -> tuple[bool, int]:
    """Engines share few texts (an out-of-memory error): the one that says more wrote the log."""
    return bool(facts.readings or facts.flags), len(facts.readings) + len(facts.flags)
