"""What changed in which release of an engine: a table of changes, and the rules that hold at a version."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from kvtool.system.errors import KvtoolError

Rules = TypeVar("Rules", bound=Any)
Release = tuple[int, ...]
_RELEASE = re.compile(r"v?(\d+(?:\.\d+)*)")
EXACT, CHECKED, EXTRAPOLATED = "exact", "checked", "extrapolated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """From release `since` on the rule `rule` is `value`: `what` says it in words, `source` where it is to be read."""

    since: str
    rule: str
    value: Any
    what: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class History(Generic[Rules]):
    """The rules of an engine's `first` release, the changes since, and the `modelled` release that plans default to.

    `exact`: releases of whose own plans a test holds hundreds; `checked`: those whose public starts a test holds, or
    whose planner agreed on random models.
    """

    engine: str
    first: str
    modelled: str
    rules: Rules
    changes: tuple[Change, ...]
    exact: tuple[str, ...]
    checked: tuple[str, ...]
    unchecked: str = ""  # what of a checked release was not

    def at(self, version: str | None) -> Rules:
        """The rules that hold at `version`; None is the modelled release."""
        release = parse_release(version or self.modelled)
        values = {one.rule: one.value for one in self.changes if parse_release(one.since) <= release}
        return replace(self.rules, **values)

    def order(self, version: str | None) -> Release:
        """What releases sort by; None is the modelled one."""
        return parse_release(version or self.modelled)

    def between(self, one: str | None, other: str | None) -> list[Change]:
        """The changes that hold at the later of two versions and not at the earlier, oldest first."""
        low, high = sorted(map(self.order, (one, other)))
        return [change for change in self.changes if low < parse_release(change.since) <= high]

    def standing(self, version: str | None) -> str:
        """exact, checked or extrapolated: how far the rules of `version` were held against the engine itself."""
        release = parse_release(version or self.modelled)
        if _holds(release, self.exact):
            return EXACT
        return CHECKED if _holds(release, self.checked) else EXTRAPOLATED

    def caveat(self, version: str | None) -> str | None:
        """What a reader of a plan for `version` must know of it; None for an exact one."""
        standing, name = self.standing(version), f"{self.engine} {version or self.modelled}"
        if standing == EXACT:
            return None
        if standing == CHECKED:
            return (
                f"{name}: checked: by the rules of that release, which its public starts or its own planner agree with"
                f"{self.unchecked}"
            )
        release = parse_release(version or self.modelled)
        if release < parse_release(self.first):
            return f"{name}: extrapolated: the rules known are those from {self.first} on, and its own may differ"
        if release > parse_release(self.modelled):
            return f"{name}: extrapolated: the newest rules known are those of {self.modelled}"
        return f"{name}: extrapolated: by the rules read from its code, which no start of it was held against"


def parse_release(version: str) -> Release:
    """`0.23.1rc1.dev531+ga65f` -> (0, 23, 1); zeros at the end make no difference. Raises KvtoolError."""
    match = _RELEASE.match(version.strip())
    if match is None:
        raise KvtoolError(f"{version[:40]!r} is no version: write one as 0.23 or 0.23.0")
    numbers = [int(number) for number in match[1].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _holds(release: Release, versions: Iterable[str]) -> bool:
    """Whether a minor release is among those: a patch release keeps the rules of its minor one."""
    return _minor(release) in {_minor(parse_release(version)) for version in versions}


def _minor(release: Release) -> Release:
    padded: Sequence[int] = (*release, 0, 0)
    return tuple(padded[:3]) if padded[:2] == (0, 5) else tuple(padded[:2])  # SGLang counts releases in the third
