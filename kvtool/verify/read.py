"""From the lines of a log or of /metrics to the facts in it, whichever engine wrote it."""

from __future__ import annotations

from collections.abc import Iterable

from kvtool.errors import KvtoolError
from kvtool.verify import metrics_text, sglang_log, vllm_log
from kvtool.verify.facts import LogFacts
from kvtool.verify.lines import windows

_MARKERS = tuple(
    {
        found.marker
        for table in (vllm_log.PATTERNS, sglang_log.PATTERNS, metrics_text.VLLM, metrics_text.SGLANG)
        for found in table
    }
)
_MAX_LINES = 200_000  # telling lines kept; a start has some dozens


def read_facts(lines: Iterable[str], name: str) -> LogFacts:
    """What the log says. Raises KvtoolError, with `name` of the log, where nothing in it is an engine's."""
    telling = []
    for line, following in windows(lines):
        if any(marker in line for marker in _MARKERS):
            telling.append((line, following))
            if len(telling) == _MAX_LINES:
                break
    readers = (
        metrics_text.read_vllm_metrics,
        metrics_text.read_sglang_metrics,
        vllm_log.read_vllm_log,
        sglang_log.read_sglang_log,
    )
    found = [facts for reader in readers if (facts := reader(telling)) is not None]
    if not found:
        raise KvtoolError(
            f"{name} has no line that kvtool knows: it reads start-up logs and /metrics of vLLM and SGLang"
        )
    return max(found, key=_weight)


def _weight(facts: LogFacts) -> tuple[bool, int]:
    """Engines share few texts (an out-of-memory error): the one that says more wrote the log."""
    return bool(facts.readings or facts.flags), len(facts.readings) + len(facts.flags)
