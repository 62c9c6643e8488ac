"""A config.json object read field by field: every value checked, every wrong one named, every read one remembered."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kvtool.system.errors import KvtoolError

_MAX_INTEGER = 1 << 40


class Fields:
    """One JSON object. A field counts as absent when it is missing or null; `defaults` stand in for absent ones.

    `read` holds every name asked for: what a config says beyond them was not understood. `outer` is the config around a
    nested one, where that is needed.
    """

    def __init__(
        self,
        values: Mapping[str, object],
        *,
        where: str,
        defaults: Mapping[str, object] | None = None,
        outer: Fields | None = None,
    ) -> None:
        self.values = values
        self.where = where
        self.outer = outer
        self.defaults = defaults or {}
        self.read: set[str] = set()

    def error(self, text: str) -> KvtoolError:
        return KvtoolError(f"{self.where}: {text}")

    def given(self, name: str) -> object | None:
        """The value the file itself gives, None when it is missing or null."""
        self.read.add(name)
        return self.values.get(name)

    def get(self, *names: str) -> object | None:
        """The value given under these names, else their default, else None. Two that differ contradict each other."""
        given = {name: value for name in names if (value := self.given(name)) is not None}
        first, *others = given or names
        for other in others if given else ():
            if given[other] != given[first]:
                raise self.error(f"{first!r} is {_show(given[first])} but {other!r} is {_show(given[other])}")
        return given[first] if given else next((self.defaults[name] for name in names if name in self.defaults), None)

    def has(self, name: str) -> bool:
        """Whether the file names the field at all, null included."""
        self.read.add(name)
        return name in self.values

    def integer(self, *names: str, low: int = 1, high: int = _MAX_INTEGER) -> int:
        """A required whole number in low..high, under the first of these names that is given."""
        value = self.optional_integer(*names, low=low, high=high)
        if value is None:
            raise self.error(f"field {names[0]!r} is missing" + (f" (or {names[1]!r})" if len(names) > 1 else ""))
        return value

    def optional_integer(self, *names: str, low: int = 1, high: int = _MAX_INTEGER) -> int | None:
        value = self.get(*names)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"field {names[0]!r} is {_show(value)}: a whole number is needed")
        if not low <= value <= high:
            raise self.error(f"field {names[0]!r} is {_show(value)}: must be from {low} to {high}")
        return value

    def uniform(self, *names: str, low: int = 1, high: int = _MAX_INTEGER) -> int | None:
        """A whole number that a config may also write once a layer; layers that differ are refused."""
        value = self.get(*names)
        if not isinstance(value, list):
            return self.optional_integer(*names, low=low, high=high)
        given = next(name for name in names if self.given(name) is not None)
        found = set(self.integers(given, low=low, high=high) or [])
        if len(found) != 1:
            raise self.error(f"field {given!r} differs between layers, which cannot be counted")
        return found.pop()

    def number(self, *names: str, default: float) -> float:
        value = self.get(*names)
        if value is None:
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or abs(value) > 1e18
            or not math.isfinite(value)
        ):
            raise self.error(f"field {names[0]!r} is {_show(value)}: a finite number is needed")
        return float(value)

    def optional_number(self, *names: str) -> float | None:
        return self.number(*names, default=0.0) if self.get(*names) is not None else None

    def flag(self, *names: str, default: bool) -> bool:
        value = self.get(*names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(f"field {names[0]!r} is {_show(value)}: true or false is needed")
        return value

    def text(self, name: str, *, default: str | None = None) -> str | None:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(f"field {name!r} is {_show(value)}: a string is needed")
        return value

    def strings(self, name: str, *others: str, length: int | None = None) -> list[str] | None:
        """A list of strings, of that length where one is given."""
        value = self.get(name, *others)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"field {name!r} is {_show(value)}: a list of names is needed")
        self._check_length(name, value, length)
        return list(value)

    def integers(
        self, name: str, *, length: int | None = None, low: int = 0, high: int = _MAX_INTEGER
    ) -> list[int] | None:
        """A list of whole numbers in low..high, of that length where one is given."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(item) is int and low <= item <= high for item in value):
            raise self.error(
                f"field {name!r} is {_show(value)}: a list of whole numbers from {low} to {high} is needed"
            )
        self._check_length(name, value, length)
        return list(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A required list of finite numbers."""
        value = self.get(name)
        if not isinstance(value, list) or not all(type(item) in (int, float) and abs(item) < 1e18 for item in value):
            raise self.error(f"field {name!r} is {_show(value)}: a list of numbers is needed")
        return tuple(float(item) for item in value)

    def _check_length(self, name: str, value: list[object], length: int | None) -> None:
        if length is not None and len(value) != length:
            raise self.error(f"field {name!r} has {len(value)} items, but there are {length} layers")

    def nested(self, name: str, *, defaults: Mapping[str, object] | None = None) -> Fields | None:
        """The object under `name`, as fields of their own."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(f"field {name!r} is {_show(value)}: an object is needed")
        return Fields(value, where=f"{self.where}: {name}", defaults=defaults)

    def objects(self, name: str, *, length: int) -> list[Fields]:
        """A required list of objects, one a layer, as fields of their own."""
        value = self.get(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(f"field {name!r} is {_show(value)}: a list of objects is needed")
        self._check_length(name, value, length)
        return [Fields(item, where=f"{self.where}: {name}[{index}]") for index, item in enumerate(value)]

    def refuse(self, name: str, reason: str) -> None:
        """Refuse the config when it gives `name` a value other than null, false, 0 or empty."""
        value = self.given(name)
        if value:
            raise self.error(f"field {name!r} is {_show(value)}: {reason}")


def _show(value: object) -> str:
    """A value short enough for one line; a huge integer cannot be written out in full."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a huge number"
    text = " ".join(repr(value)[:200].split())
    return text if len(text) <= 60 else text[:57] + "..."
