"""How deep lists and objects may stand in each other in a file of a user. What reads them calls itself once a level."""

from __future__ import annotations

from kvtool.errors import KvtoolError

DEEPEST = 100  # a config or a document has some ten levels


def refuse_deep(value: object, where: object) -> None:
    """Raises KvtoolError, naming `where`, for a decoded value of more than DEEPEST levels."""
    level: list[object] = [value]
    for _ in range(DEEPEST):
        level = [item for outer in level for item in _items(outer)]
        if not level:
            return
    raise too_deep(where)


def too_deep(where: object) -> KvtoolError:
    """What is said of a value, read or not, that is nested too deep."""
    return KvtoolError(f"{where} is nested too deep: lists and objects may stand in each other {DEEPEST} times")


def _items(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
