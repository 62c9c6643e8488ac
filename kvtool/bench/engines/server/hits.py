"""Prefix hits of a run as the server counts them: in the usage of each answer, and by its counters around the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtool.bench.engines.server.drive import Driven
from kvtool.engine.endpoint.client import Client
from kvtool.engine.endpoint.prometheus import Counted, Page, counted
from kvtool.engine.endpoint.server import Server, metrics_page

LOOKS, LOOK_EVERY_S = 10, 0.1  # for counters that a server writes down a moment after its answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """Tokens by either source, None where it says nothing; `remark` says why the counters do not count."""

    usage_tokens: int | None
    metrics_tokens: int | None
    preemptions: int | None
    remark: str | None = None

    @property
    def source(self) -> str:
        """usage | metrics | none"""
        return "usage" if self.usage_tokens is not None else "none" if self.metrics_tokens is None else "metrics"

    @property
    def tokens(self) -> int:
        return self.usage_tokens if self.usage_tokens is not None else self.metrics_tokens or 0


class Counter:
    """The server's counters from one page to the next."""

    def __init__(self, client: Client, server: Server, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client, self._server, self._sleep = client, server, sleep
        self._before: Page | None = None

    def begin(self) -> None:
        """Look at them; a server without a page is not asked again."""
        self._before = None if self._server.page is None else metrics_page(self._client)

    def end(self, prompt_tokens: int) -> Counted | None:
        """What they grew by; looked at again until the run's own prompt tokens are in it."""
        for look in range(LOOKS):
            after = None if self._before is None else metrics_page(self._client)
            if after is None or self._before is None:
                return None
            found = counted(self._server.engine, self._before, after)
            if found.prompt_tokens is None or found.prompt_tokens >= prompt_tokens or look == LOOKS - 1:
                return found
            self._sleep(LOOK_EVERY_S)
        return None


def hits_of(runs: Sequence[Driven], counts: Sequence[Counted | None]) -> Hits:
    """Of all runs of a case together. Counters count where the prompts that they grew by are exactly the runs' own."""
    answers = [one.answer for run in runs for one in run.whole]
    told = [answer.cached_tokens for answer in answers if answer.cached_tokens is not None]
    usage = sum(told) if told else None  # some servers leave a 0 out
    known = [count for count in counts if count is not None]
    if not known or len(known) < len(counts):
        return Hits(usage_tokens=usage, metrics_tokens=None, preemptions=None)
    preemptions = _sum([count.preemptions for count in known])
    grown, own = _sum([count.prompt_tokens for count in known]), sum(answer.prompt_tokens for answer in answers)
    if grown != own:
        failed = any(run.failed for run in runs)
        why = "requests failed" if failed else "others used the server too, or it was started again"
        remark = f"/metrics counts {grown} prompt tokens where answers had {own}: {why}, so its hits are not taken"
        return Hits(usage_tokens=usage, metrics_tokens=None, preemptions=preemptions, remark=remark)
    return Hits(usage_tokens=usage, metrics_tokens=_sum([count.hit_tokens for count in known]), preemptions=preemptions)


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
