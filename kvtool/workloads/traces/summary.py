"""The sums of a trace, request by request."""

from __future__ import annotations

from kvtool.results import TraceSummary
from kvtool.workloads.traces.base import TraceRequest


class Sums:
    """What has been seen of a trace so far."""

    def __init__(self) -> None:
        self.requests = self.blocks = self.block_size = self.input_tokens = self.output_tokens = 0
        self._first_s, self._last_s = float("inf"), float("-inf")

    def add(self, request: TraceRequest) -> None:
        """The block size is that of the first request with blocks."""
        self.requests += 1
        self.blocks += len(request.block_ids)
        self.block_size = self.block_size or (request.block_size if request.block_ids else 0)
        self.input_tokens += request.input_tokens
        self.output_tokens += request.output_tokens
        self._first_s = min(self._first_s, request.arrival_s)
        self._last_s = max(self._last_s, request.arrival_s)

    def summary(self, name: str, form: str, sha256: str) -> TraceSummary:
        """Of all requests that were added."""
        return TraceSummary(
            name=name,
            format=form,
            sha256=sha256,
            requests=self.requests,
            block_size=self.block_size,
            total_blocks=self.blocks,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            duration_s=max(0.0, self._last_s - self._first_s) if self.requests else 0.0,
        )
