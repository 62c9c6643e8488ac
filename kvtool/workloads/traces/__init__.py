"""Request traces: one reader a format, all of them giving the same typed request."""

from kvtool.workloads.traces.base import TraceRequest
from kvtool.workloads.traces.traces import Trace, open_trace

__all__ = ["Trace", "TraceRequest", "open_trace"]
