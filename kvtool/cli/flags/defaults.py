"""Defaults of options from a project's file: `kvtool.toml`, or `[tool.kvtool]` in pyproject.toml.

    gpu = "h100"            # every command that has --gpu
    [bench]
    num-iters = 5           # bench alone

The nearest file from the current folder upwards counts. What is typed goes before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtool.system.errors import KvtoolError, did_you_mean
from kvtool.system.files import read_bytes

FILE, PROJECT, TABLE = "kvtool.toml", "pyproject.toml", b"[tool.kvtool"


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a file says, and its path for messages."""

    path: Path
    values: Mapping[str, Any]

    def of(self, words: tuple[str, ...], options: Mapping[str, str]) -> dict[str, Any]:
        """Parameter name -> value for the command of these `words`, as `trace check`; `options` has its parameters by
        their flags without dashes. Raises KvtoolError."""
        own = self.values
        for word in words:
            own = own.get(word, {})
            if not isinstance(own, Mapping):
                raise KvtoolError(f"{self.path}: {word} is a command: write its options under [{'.'.join(words)}]")
        own = {_dashed(key): value for key, value in own.items()}
        if unknown := next((key for key in own if key not in options), None):
            raise KvtoolError(f"{self.path}: {' '.join(words)} has no {unknown!r}{did_you_mean(unknown, options)}")
        shared = {key: value for key, value in self._shared().items() if key in options}
        return {options[key]: self._text(key, value) for key, value in {**shared, **own}.items()}

    def require_known(self, flags: Collection[str]) -> None:
        """Raises KvtoolError for an option of every command that none of them has."""
        for key in self._shared():
            if key not in flags:
                raise KvtoolError(f"{self.path}: no command has {key!r}{did_you_mean(key, flags)}")

    def _shared(self) -> dict[str, Any]:
        return {_dashed(key): value for key, value in self.values.items() if not isinstance(value, Mapping)}

    def _text(self, key: str, value: Any) -> Any:
        """A list as its comma list."""
        if isinstance(value, list):
            return ",".join(map(str, value))
        if not isinstance(value, str | int | float):
            raise KvtoolError(f"{self.path}: {key} is no text, number or list")
        return value


def _dashed(key: str) -> str:
    return key.replace("_", "-")


def find_defaults(folder: Path) -> Defaults | None:
    """What the nearest file says, from `folder` upwards; None without one. Raises KvtoolError for one that is none."""
    for path in _files(folder):
        content = read_bytes(path)
        if path.name == FILE:
            return Defaults(path, _table(path, content))
        if TABLE in content and (own := _own_table(_table(path, content))) is not None:
            return Defaults(path, own)
    return None


def _own_table(project: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """[tool.kvtool] of a pyproject.toml; None where no more than a comment or a longer name begins like it."""
    tool = project.get("tool")
    own = tool.get("kvtool") if isinstance(tool, Mapping) else None
    return own if isinstance(own, Mapping) else None


def _files(folder: Path) -> Iterator[Path]:
    for place in (folder, *folder.parents):
        for name in (FILE, PROJECT):
            if (place / name).is_file():
                yield place / name


def _table(path: Path, content: bytes) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise KvtoolError(f"{path} is not TOML: {error}") from None
