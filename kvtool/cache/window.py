"""Which pages a sequence lets go of while it grows: all but its first ones, which hold the sinks, and its newest."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.units import ceil_div

SINK_PAGES = 2  # the first page, and the next, which is written over with the sinks where the cache has them


@dataclass(frozen=True, slots=True)
class SinkWindow:
    """Attention reads the first page and the newest `window_pages`, the one that is being filled included
    (StreamingLLM, arXiv 2309.17453). A step computes at most `step_tokens` of a sequence, whole pages, so that no more
    are held."""

    window_pages: int
    step_tokens: int

    def passed_pages(self, num_tokens: int, block_size: int) -> int:
        """Pages between the sinks and the window, for the last of so many tokens."""
        return max(0, ceil_div(num_tokens, block_size) - 1 - self.window_pages)

    def unread(self, num_tokens: int, block_size: int) -> range:
        """Logical pages that neither the last of so many tokens nor any later one reads."""
        return range(SINK_PAGES, 1 + self.passed_pages(num_tokens, block_size))

    def most_pages(self, num_tokens: int, block_size: int) -> int:
        """That a sequence of so many tokens holds at a time: while the last step of a long prompt is computed."""
        step_pages = ceil_div(self.step_tokens, block_size)
        return min(ceil_div(num_tokens, block_size), 1 + self.window_pages + step_pages)
