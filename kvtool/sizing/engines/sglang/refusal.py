"""What SGLang itself would refuse at its start, or what kvtool cannot plan of it; turned into text by the plan."""

from __future__ import annotations


class RefusedError(Exception):
    """One line: what is wrong with the start, and what would be right."""
